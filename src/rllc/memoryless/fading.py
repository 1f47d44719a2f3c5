"""Whether memory decays, as the theory supposes, and how fast: measured on a method as it is."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rllc.memoryless.history import Method, Params, State, check_count, real_dtype

__all__ = ["LongMemoryWarning", "decay"]


class LongMemoryWarning(UserWarning):
    """The derivative of F_n by old iterates does not fade, as the theory supposes."""


def decay(method: Method, theta: Params, n: int = 512) -> float:
    """How fast F_n forgets: q such that |D_{n-k}F_n| falls like qᵏ in the older half of n steps at θ.

    Below 1 memory decays. Near 1 the theory does not apply: AdaGrad's, for example, is an average of all
    gradients. Warns of it with the number.

    Args:
        method: the method.
        theta: a point; where memory of a linear method has H = 0 there is nothing to measure, and q is 0.
        n: steps, longer than a fast part of memory takes to vanish; at least 8.

    Raises:
        ValueError: n is less than 8, or the method has no derivative at theta.
    """
    check_count("n", n, least=8)
    sizes, tiny = _sensitivities(method, theta, n), float(jnp.finfo(real_dtype(theta)).tiny)
    if not np.isfinite(sizes).all():
        raise ValueError(
            "the method has no derivative here, as the root of a gradient's entry that is zero has none; give"
            " it an eps within its root (optax: eps_root), or another point"
        )
    oldest = np.argmax(sizes > tiny)
    if sizes[oldest] < 1e10 * tiny:  # what is older has underflowed: memory that ends ends higher up
        sizes = sizes[oldest:]
    quarter = (sizes.size - 1) // 4
    old, middle = sizes[1 : 1 + quarter].sum(), sizes[1 + 2 * quarter : 1 + 3 * quarter].sum()
    q = float((old / middle) ** (1 / (2 * quarter))) if middle > 0 else 0.0
    if q > 1 - 1e-5:
        warnings.warn(
            f"the memory of this method does not decay (measured: a factor of {q:.6f} a step over {n} steps);"
            " its memoryless counterpart need not be close to it",
            LongMemoryWarning,
            stacklevel=2,
        )
    return q


def _sensitivities(method: Method, theta: Params, n: int) -> np.ndarray:
    """|(D_sF_n)ᵀ u| for s = 0, ..., n, a random u and all points θ, by one reverse pass."""
    history = jax.tree.map(lambda x: jnp.broadcast_to(x, (n + 1, *x.shape)), theta)

    def last(points: Params) -> Params:
        state = method.init(jax.tree.map(lambda x: x[0], points))

        def body(state: State, point: Params) -> tuple[State, None]:
            return method.step(state, point)[1], None

        before = jax.tree.map(lambda x: x[:-1], points)
        state, _ = jax.lax.scan(body, state, before)
        return method.step(state, jax.tree.map(lambda x: x[-1], points))[0]

    u = optax.tree.random_like(jax.random.key(0), theta)
    by_point = jax.jit(lambda points, u: jax.vjp(last, points)[1](u)[0])(history, u)
    # In float64 and divided before they are squared, because squares underflow first.
    rows = [np.asarray(x, np.float64).reshape(n + 1, -1) for x in jax.tree.leaves(by_point)]
    largest = np.max([abs(row).max(1) for row in rows], axis=0)
    divisor = np.where(largest > 0, largest, 1.0)[:, None]
    return largest * np.sqrt(sum(np.square(row / divisor).sum(1) for row in rows))
