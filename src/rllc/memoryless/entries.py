"""What acts entry by entry on parameters: functions of the leaves, and sums over the past."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rllc.memoryless.history import Params, State

__all__ = ["each", "narrow", "weighted_past", "zeros"]

BLOCK = 32  # steps of the past that are summed or passed over together


def each(function: Callable[..., jax.Array], *trees: Params) -> Params:
    """The function of the leaves in float32 at least.

    Raises:
        ValueError: one is complex, of which g² is not the square of its size.
    """
    return jax.tree.map(lambda *xs: function(*map(_wide, xs)), *trees)


def _wide(x: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
        raise ValueError(
            f"Adam, RMSProp and Lion take real parameters, got {x.dtype}; give real and imaginary parts as"
            " parameters of their own"
        )
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def zeros(theta: Params) -> State:
    """Of float32 at least."""
    return each(jnp.zeros_like, theta)


def narrow(tree: Params, like: Params) -> Params:
    """The leaves in the dtypes of the parameters."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def weighted_past(direction: Callable[[Any], jax.Array], first: float, ratio: float, n: Any) -> jax.Array:
    """Σ_{k=1..n} first ratio^(k-1) Σ_{s=n-k..n-1} direction(s), for an n that may be infinite.

    A_{s+1} = ratio A_s + W_{s+1} direction(s) with W_s the sum of the first s weights: no cancellation. What
    is older than the dtype can tell is left out, so that the work is bounded; it is done in blocks, of which
    those before the first step are passed over, so that it has a length that reverse mode can know.
    """
    limit = first / (1 - ratio) ** 2 * direction(np.inf)
    if not isinstance(n, jax.core.Tracer) and np.isinf(n):
        return limit
    steps = jnp.where(jnp.isinf(n), 0, n).astype(jnp.int32)
    told = math.ceil(math.log(jnp.finfo(limit.dtype).eps / 64) / math.log(max(ratio, 1e-3)))
    blocks = math.ceil(told / BLOCK)

    def block(j: jax.Array, total: jax.Array) -> jax.Array:
        start = steps + (j - blocks) * BLOCK

        def step(i: jax.Array, total: jax.Array) -> jax.Array:
            s = jnp.maximum(start + i, 0)
            weight = jnp.asarray(first / (1 - ratio) * (1 - ratio ** (s + 1.0)), limit.dtype)
            return jnp.where(start + i < 0, total, ratio * total + weight * direction(s))

        def whole(total: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, BLOCK, step, total)

        return jax.lax.cond(start + BLOCK > 0, whole, lambda total: total, total)

    return jnp.where(jnp.isinf(n), limit, jax.lax.fori_loop(0, blocks, block, jnp.zeros_like(limit)))
