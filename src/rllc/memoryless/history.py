"""Methods with memory as functions of their history, and the correction of their memoryless counterparts.

    θ_{n+1} = θ_n - h F_n(θ_n, θ_{n-1}, ..., θ_0)                                     the method         (1)
    corr_n(θ) = Σ_{k=1..n} D_{n-k}F_n(θ) Σ_{s=n-k..n-1} F_s(θ)                        its correction     (2)
    θ_{n+1} = θ_n - h (F_n(θ_n) + h corr_n(θ_n))                                      memoryless         (3)

F_n(θ) with one argument means that all of the history is θ, and D_{n-k} is the Jacobian with respect to
θ_{n-k}. Where memory decays and F is smooth, (3) from the same start stays within O(h²) of (1) for n <= T/h,
without the correction within O(h). Source: arXiv 2502.02132; docs/memoryless.md, section 1.

Points are pytrees of floating-point arrays. Nothing here forms a Jacobian: the correction is one jvp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rllc.checks import check_positive, whole_number

__all__ = [
    "Method",
    "check_count",
    "check_step_size",
    "correction",
    "direction",
    "from_optax",
    "memoryless",
    "simulate",
]

Params = Any  # a pytree of floating-point arrays
State = Any  # a pytree of arrays
Gradient = Callable[[Params], Params]
HistoryFunction = Callable[..., Params]
Count = int | jax.Array

add, subtract = optax.tree.add, optax.tree.sub


class Method(NamedTuple):
    """A method (1) as a recurrence, from which F_0, F_1, ... come one after the other.

    Attributes:
        init: θ_0 -> the state before the first step; it may depend on the shape of θ_0 and on its value.
        step: (state, θ_n) -> (F_n, the next state). F_n points uphill.
    """

    init: Callable[[Params], State]
    step: Callable[[State, Params], tuple[Params, State]]


def from_optax(tx: optax.GradientTransformation, grad: Gradient, learning_rate: float) -> Method:
    """The method of an optimizer as it is: F_n = -updates / learning_rate, state started fresh.

    Its derivatives at entries whose gradient is exactly zero, where the root of a square has none, are those
    of a gradient next to zero: their limit, if it has one (ε > 0).

    Args:
        tx: a transformation whose updates are added to the parameters, such as optax.adamw(learning_rate).
        grad: the gradient of the loss.
        learning_rate: h, by which the updates are divided, as tx itself was given it (a number, no schedule).

    Raises:
        ValueError: the learning rate is not a positive number, or tx is no optax transformation; at the first
            step, its state holds points of its own (schedule_free).
    """
    h = check_step_size(learning_rate, "learning_rate")
    if not (hasattr(tx, "init") and hasattr(tx, "update")):  # MultiSteps is no GradientTransformation
        raise ValueError(
            f"from_optax takes an optax transformation such as optax.adamw(1e-3), got {tx!r}; a closed form"
            " has its method(grad)"
        )

    def init(theta: Params) -> State:
        state = tx.init(theta)
        if any(map(_has_points, jax.tree.leaves(state, is_leaf=_has_points))):
            raise ValueError(
                "optax's schedule_free keeps points of its own, which go on while all of the history is one"
                " point, so that it is no function F_n of the history; give the optimizer within it"
            )
        return state

    def step(state: State, theta: Params) -> tuple[Params, State]:
        updates, state = update(grad(theta), state, theta)
        return scale(-1 / h, updates), state

    @jax.custom_jvp
    def update(g: Params, state: State, theta: Params) -> tuple[Params, State]:
        return tx.update(g, state, theta)

    @update.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        g, *rest = primals
        return tx.update(*primals), jax.jvp(tx.update, (jax.tree.map(_off_zero, g), *rest), tangents)[1]

    return Method(init, step)


def _off_zero(g: jax.Array) -> jax.Array:
    """g with a number instead of zeros that is as good as zero but has a square; float16 has none."""
    tiny = float(jnp.finfo(g.dtype).tiny)
    return jnp.where(g == 0, 1e3 * tiny**0.5, g).astype(g.dtype) if tiny < 1e-30 else g


def _has_points(state: State) -> bool:
    return isinstance(state, optax.contrib.ScheduleFreeState)


def direction(method: Method | HistoryFunction, n: Count) -> Callable[[Params], Params]:
    """θ -> F_n(θ), all of the history being θ.

    Raises:
        ValueError: n is no whole number, or negative; or this is no method.
    """
    check_count("n", n)
    _check_method(method)
    if isinstance(method, Method):
        return lambda theta: method.step(_steps(method, theta, n)[0], theta)[0]
    return lambda theta: method(*[theta] * (n + 1))


def correction(method: Method | HistoryFunction, n: Count) -> Callable[[Params], Params]:
    """θ -> corr_n(θ) of equation (2), by one jvp over the history.

    The history is moved along ε: θ_{n-k} = θ + ε Σ_{s=n-k..n-1} F_s(θ), and F_n is differentiated by ε at 0.

    Args:
        method: a Method, which costs O(n) gradients; or a function F of the points (θ_n, ..., θ_0), newest
            first, of any number of them: that costs O(n²), because F_0, ..., F_{n-1} are n calls of it.
        n: the number of steps before, >= 0; of a Method it may be a traced integer.

    Raises:
        ValueError: n is no whole number, or negative; or this is no method.
    """
    check_count("n", n)
    _check_method(method)
    if isinstance(method, Method):
        return _correction_of_recurrence(method, n)

    def corr(theta: Params) -> Params:
        zero = scale(0, theta)
        back = [zero]  # Σ_{s=n-k..n-1} F_s(θ) for k = 0, ..., n
        for k in range(1, n + 1):
            back.append(add(back[-1], method(*[theta] * (n - k + 1))))
        return jax.jvp(method, (theta,) * (n + 1), tuple(back))[1]

    return corr


def _check_method(method: Any) -> None:
    if not isinstance(method, Method) and not callable(method):
        raise ValueError(
            "a method is a Method, as of from_optax(tx, grad, learning_rate) or Adam().method(grad), or a"
            f" function of the points (θ_n, ..., θ_0); got {method!r}"
        )


def _correction_of_recurrence(method: Method, n: Count) -> Callable[[Params], Params]:
    def corr(theta: Params) -> Params:
        _, total = _steps(method, theta, n)

        def moved(epsilon: jax.Array) -> Params:
            """F_n with the history moved by epsilon."""

            def body(_: Any, carry: tuple[State, State, Params]) -> tuple[State, State, Params]:
                state, still, so_far = carry
                back = jax.lax.stop_gradient(subtract(total, so_far))
                _, state = method.step(state, add(theta, scale(epsilon, back)))
                F, still = method.step(still, theta)
                return state, still, add(so_far, F)

            first = method.init(add(theta, scale(epsilon, total)))
            state, *_ = jax.lax.fori_loop(0, n, body, (first, method.init(theta), scale(0, theta)))
            return method.step(state, theta)[0]

        one = jnp.ones((), real_dtype(theta))
        return jax.jvp(moved, (0 * one,), (one,))[1]

    return corr


def _steps(method: Method, theta: Params, n: Count) -> tuple[State, Params]:
    """The state after n steps at θ, and Σ_{s<n} F_s(θ)."""

    def body(_: Any, carry: tuple[State, Params]) -> tuple[State, Params]:
        state, total = carry
        F, state = method.step(state, theta)
        return state, add(total, F)

    return jax.lax.fori_loop(0, n, body, (method.init(theta), scale(0, theta)))


def memoryless(
    method: Method | HistoryFunction, h: float, corrected: bool = True
) -> Callable[[Count, Params], Params]:
    """The iteration (3) of any method: (n, θ_n) -> θ_{n+1}; n may be traced if it is a Method.

    Its cost grows with n; methods with a closed form have `rllc.memoryless.follow`.

    Args:
        method: as in `correction`.
        h: step size > 0.
        corrected: without, the step is h F_n(θ_n) alone, and the distance to the method O(h), not O(h²).

    Raises:
        ValueError: h is not a positive number.
    """
    check_step_size(h)

    def step(n: Count, theta: Params) -> Params:
        F = direction(method, n)(theta)
        if corrected:
            F = add(F, scale(h, correction(method, n)(theta)))
        return add(theta, scale(-h, F))

    return step


def simulate(method: Method, start: Params, h: float, steps: int) -> Params:
    """The method itself, θ_0, ..., θ_steps: leaves (steps + 1, ...).

    Raises:
        ValueError: h is not a positive number, steps no whole number >= 0, or start holds no floating-point
            arrays.
    """
    check_step_size(h)
    check_points("start", start)
    steps = whole_number("steps", steps)

    def body(carry: tuple[State, Params], _: None) -> tuple[Any, Params]:
        state, theta = carry
        F, state = method.step(state, theta)
        theta = add(theta, scale(-h, F))
        return (state, theta), theta

    _, path = jax.lax.scan(body, (method.init(start), start), length=steps)
    return with_start(start, path)


def with_start(start: Params, path: Params) -> Params:
    """θ_0 before the points of a scan."""
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, path)


def check_step_size(h: float, name: str = "the step size h") -> float:
    """h itself; `name` is what the user calls it.

    Raises:
        ValueError: it is not a positive finite number.
    """
    if isinstance(h, jax.core.Tracer):
        return h
    check_positive(name, known(h))
    return float(h)


def known(value: Any) -> Any:
    """What checks may judge: a number of JAX as Python's; what is traced has no value yet and stays."""
    if not isinstance(value, jax.Array) or isinstance(value, jax.core.Tracer):
        return value
    return value.item() if value.ndim == 0 else np.asarray(value)


def check_points(name: str, tree: Params) -> None:
    """Refuse what holds anything but floating-point arrays.

    Raises:
        ValueError: it does.
    """
    for x in jax.tree.leaves(tree):
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.inexact):
            raise ValueError(
                f"{name} must hold floating-point arrays, as of jax.numpy.asarray(1.0), got {x!r}"
            )


def check_count(name: str, value: Count, least: int = 0) -> None:
    """Refuse what is no whole number or less than `least` by its name; what is traced passes.

    Raises:
        ValueError: it is refused.
    """
    if not isinstance(value, jax.core.Tracer):
        whole_number(name, known(value), least)


def combined(weights: Sequence[Any], trees: Sequence[Params]) -> Params:
    """Σ weights trees in the dtype of the trees, leaving out weights that are the number zero."""
    kept = [(w, t) for w, t in zip(weights, trees, strict=True) if not (isinstance(w, float) and w == 0)]
    if not kept:
        return scale(0, trees[-1])
    return jax.tree.map(
        lambda *xs: sum(jnp.asarray(w, x.dtype) * x for (w, _), x in zip(kept, xs, strict=True)),
        *(tree for _, tree in kept),
    )


def scale(factor: Any, tree: Params) -> Params:
    """factor tree, every leaf in its own dtype."""
    return jax.tree.map(lambda x: jnp.asarray(factor, jnp.result_type(x)) * x, tree)


def real_dtype(tree: Params) -> Any:
    """That in which the sizes of all leaves are computed."""
    return jnp.result_type(*(jnp.finfo(x.dtype).dtype for x in jax.tree.leaves(tree)))
