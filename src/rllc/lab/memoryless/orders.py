"""Distances between a method and its memoryless counterpart, and how they fall with the step size.

    errors(form, problem, sizes, steps)     largest distances in each interval of time, without and with
    slope(sizes, distances)                 the order, from the last four halvings

Expected of max_n |θ_n - θ~_n| over n <= T/h: order 1 without the correction, 2 with it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from rllc.lab.errors import Refused
from rllc.lab.memoryless.problems import Params, Problem
from rllc.memoryless.closed import ClosedForm
from rllc.memoryless.history import add, check_step_size, scale, subtract

__all__ = ["LAST", "ROUNDING", "errors", "halvings", "slope"]

Array = NDArray[np.float64]

LAST = 4  # halvings of which the order is taken
ROUNDING = 1e-13  # below it, in units of the largest parameter, is rounding and not a distance


def halvings(largest: float, count: int) -> Array:
    """The step sizes: largest, largest/2, ..., (count + 1,)."""
    return np.asarray(check_step_size(largest) * 0.5 ** np.arange(count + 1), np.float64)


def errors(form: ClosedForm, problem: Problem, sizes: Array, steps: int, intervals: int = 1) -> Array:
    """max_n |θ_n - θ~_n|_∞ in each interval: (step sizes, intervals, 2), without and with the correction.

    The method and both counterparts run side by side, from one start.

    Args:
        form: the method.
        problem: its start is float64.
        sizes: step sizes, each half of the one before.
        steps: how many of the first size make an interval; of each further size twice as many.
        intervals: of one length in time.

    Raises:
        Refused: the start is not float64, where rounding would hide what is measured.
    """
    if any(x.dtype != np.float64 for x in jax.tree.leaves(problem.start)):
        dtype = jax.tree.leaves(problem.start)[0].dtype
        raise Refused(
            f"the error study needs float64 and the problem is {dtype}, whose rounding is larger than the"
            " distances; make it inside of `with jax.enable_x64(True):`"
        )
    lengths = steps * 2 ** np.arange(len(sizes))
    rows = jax.tree.map(jnp.asarray, form.coefficients(int(lengths[-1]) * intervals))
    run = _side_by_side(form, jax.grad(problem.loss), intervals)
    found = [run(problem.start, h, n, rows) for h, n in zip(sizes, lengths, strict=True)]
    return np.asarray(found, np.float64)


def _side_by_side(form: ClosedForm, grad: Any, intervals: int) -> Any:
    """(start, h, steps of an interval, coefficients) -> (intervals, 2), compiled once for all h."""
    method = form.method(grad)

    def step(n: jax.Array, carry: Any, h: jax.Array, rows: Any) -> Any:
        state, theta, plain, corrected, worst = carry
        row = jax.tree.map(lambda x: x[n], rows)
        F, state = method.step(state, theta)
        G = form.terms(grad, row, plain).direction
        terms = form.terms(grad, row, corrected)
        theta, plain = _moved(theta, h, F), _moved(plain, h, G)
        corrected = _moved(corrected, h, add(terms.direction, scale(h, terms.correction)))
        found = jnp.stack([_distance(theta, plain), _distance(theta, corrected)])
        return state, theta, plain, corrected, jnp.maximum(worst, found)

    @jax.jit
    def run(start: Params, h: jax.Array, steps: jax.Array, rows: Any) -> jax.Array:
        def interval(carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
            carry = (*carry, jnp.zeros(2))
            *carry, worst = jax.lax.fori_loop(
                i * steps, (i + 1) * steps, lambda n, carry: step(n, carry, h, rows), carry
            )
            return tuple(carry), worst

        first = (method.init(start), start, start, start)
        return jax.lax.scan(interval, first, jnp.arange(intervals))[1]

    return run


def _moved(theta: Params, h: jax.Array, direction: Params) -> Params:
    return add(theta, scale(-h, direction))


def _distance(a: Params, b: Params) -> jax.Array:
    return jnp.max(jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(subtract(a, b))]))


def slope(sizes: Array, distances: Array) -> float:
    """The order over the last four halvings; NaN where distances are rounding or not finite."""
    last = distances[-LAST - 1 :]
    if not np.isfinite(last).all() or last.min() < ROUNDING:
        return float("nan")
    return float(np.log(last[0] / last[-1]) / np.log(sizes[-len(last)] / sizes[-1]))
