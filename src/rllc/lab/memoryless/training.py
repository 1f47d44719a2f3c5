"""Training with memory, and without it: the method, its memoryless counterpart, and that with the correction.

train(form, "memory", problem, h, length, intervals, measure)    what `measure` gives, after each interval
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from rllc.lab.memoryless.problems import Params, Problem
from rllc.memoryless.closed import ClosedForm
from rllc.memoryless.history import Gradient, add, scale

__all__ = ["VARIANTS", "Variant", "train"]

Variant = Literal["memory", "without", "with"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


def train(
    form: ClosedForm,
    variant: Variant,
    problem: Problem,
    h: float,
    length: int,
    intervals: int,
    measure: Callable[[Params], dict[str, jax.Array]],
) -> dict[str, np.ndarray]:
    """What is measured at the start and after each interval of `length` steps: arrays (intervals + 1, ...).

    Coefficients are those of finite n, so that start-up and bias correction are as in the method.
    """
    grad = jax.grad(problem.loss)
    state, step = _iteration(form, variant, grad, problem.start, h, length * intervals)

    def interval(carry: Any, i: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        carry = jax.lax.fori_loop(i * length, (i + 1) * length, step, carry)
        return carry, measure(carry[1])

    @jax.jit
    def run(state: Any, start: Params) -> dict[str, jax.Array]:
        _, found = jax.lax.scan(interval, (state, start), jnp.arange(intervals))
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), measure(start), found)

    return jax.tree.map(np.asarray, run(state, problem.start))


def _iteration(
    form: ClosedForm, variant: Variant, grad: Gradient, start: Params, h: float, steps: int
) -> tuple[Any, Callable[[jax.Array, Any], Any]]:
    """The first state, and (n, (state, θ)) -> (state, θ)."""
    if variant == "memory":
        method = form.method(grad)

        def remembering(_: jax.Array, carry: Any) -> Any:
            F, state = method.step(*carry)
            return state, add(carry[1], scale(-h, F))

        return method.init(start), remembering
    dtype = jax.tree.leaves(start)[0].dtype
    rows = jax.tree.map(lambda x: jnp.asarray(x, dtype), form.coefficients(steps))

    def forgetting(n: jax.Array, carry: Any) -> Any:
        terms = form.terms(grad, jax.tree.map(lambda x: x[n], rows), carry[1])
        move = add(terms.direction, scale(h, terms.correction)) if variant == "with" else terms.direction
        return (), add(carry[1], scale(-h, move))

    return (), forgetting
