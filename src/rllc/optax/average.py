"""The polynomial average of the weights, as a transformation to put last in a chain.

    θ̄_t = θ̄_{t-1} + (p+1)/(t+p) (θ_t - θ̄_{t-1}),    t = 1, 2, ...        (Shamir and Zhang, arXiv 1212.1824)

θ_t counts in proportion to about t^p: a window of t/(p+1), in which no length of the run appears.

    tx = optax.chain(optax.adam(3e-3), polynomial_average(9.0))
    ...
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    ...
    evaluate(averaged_params(opt_state, params))

Batch-norm statistics are no parameters: average them beside, with the same function and the same t, here
with Flax; `averaged` starts as the first ones and t at 1.

    averaged = average_into(averaged, batch_stats, t)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rllc.optax.leaves import law_dtype, wide
from rllc.optax.settings import check_rate

__all__ = ["PolynomialAverageState", "average_into", "averaged_params", "polynomial_average"]


class PolynomialAverageState(NamedTuple):
    """State of `polynomial_average`."""

    count: jax.Array  # type: ignore[assignment]  # () int32: steps averaged
    average: optax.Params  # like the parameters, in at least float32; zeros before the first step


def polynomial_average(power: float | jax.Array = 9.0) -> optax.GradientTransformationExtraArgs:
    """Average the parameters that the updates lead to, and let the updates through as they are.

    It must be the LAST of a chain: what comes after it moves the parameters, too. Every call of update is a
    step, also one whose updates are zeros. Parameters of half precision are averaged as they are before
    the last rounding. Read the average with `averaged_params`.

    Args:
        power: p >= 0; 0 is the plain mean of all θ_t.

    Raises:
        ValueError: the power is no finite number >= 0; from update, the parameters are not given.
    """
    check_rate("power", power, may_change=False)

    def init(params: optax.Params) -> PolynomialAverageState:
        zeros = jax.tree.map(lambda x: jnp.zeros_like(wide(x)) if _has_average(x) else x, params)
        return PolynomialAverageState(jnp.zeros((), jnp.int32), zeros)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, PolynomialAverageState]:
        if params is None:
            raise ValueError("polynomial_average needs the parameters: call update(updates, state, params)")
        count = optax.safe_increment(state.count)
        # Not optax.apply_updates: XLA may or may not round what it leaves in half precision.
        moved = jax.tree.map(lambda p, u: wide(p) + wide(u) if _has_average(p) else p, params, updates)
        return updates, PolynomialAverageState(count, average_into(state.average, moved, count, power))

    return optax.GradientTransformationExtraArgs(init, update)


def average_into(average: Any, new: Any, t: int | jax.Array, power: float | jax.Array = 9.0) -> Any:
    """θ̄ + (p+1)/(t+p) (θ - θ̄) leaf by leaf: the average after the t-th θ, t = 1, 2, ...

    At t = 1 it is θ. The result has the dtype of the average, or float32 where that has less.
    """
    weight = (power + 1) / (jnp.asarray(t, law_dtype()) + power)

    def mixed(x: Any, y: Any) -> Any:
        if not _has_average(y):
            return y
        x, y = wide(x), wide(y)
        # A rate in float64 makes float64 of the updates; the state must stay as it is.
        return (x + weight.astype(x.real.dtype) * (y - x)).astype(x.dtype)

    return jax.tree.map(mixed, average, new)


def averaged_params(opt_state: Any, params: optax.Params) -> optax.Params:
    """The average of the parameters, in their dtypes; before the first step the parameters themselves.

    Args:
        opt_state: of a transformation with `polynomial_average` anywhere in it: in a chain, in
            optax.partition or masked (parameters that no average covers are returned as they are), in
            optax.inject_hyperparams. Of runs under vmap call this in vmap, too.
        params: the current parameters.

    Raises:
        ValueError: there is no average in the state, it is of several runs, or of another tree.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_average)
    found = [x for x in nodes if _is_average(x)]
    if not found:
        raise ValueError("this state holds no average; put polynomial_average() last in the chain")
    for state in found:
        params = _averaged(state, params)
    return params


def _averaged(state: PolynomialAverageState, params: optax.Params) -> optax.Params:
    def chosen(average: Any, p: Any) -> Any:
        if isinstance(average, optax.MaskedNode) or not _has_average(p):
            return p
        return jnp.where(state.count > 0, average.astype(jnp.result_type(p)), p)

    if jnp.ndim(state.count):
        raise ValueError("this state is of several runs at once; call averaged_params in jax.vmap, too")
    try:
        return jax.tree.map(chosen, state.average, params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    except ValueError as reason:
        raise ValueError(
            "the average is of another tree than the parameters; of Flax NNX give both as nnx.as_pure has"
            " them, of complex parameters split as they were for the optimizer"
        ) from reason


def _has_average(x: Any) -> bool:
    """Counters and random keys are what they are."""
    return jnp.issubdtype(x.dtype if hasattr(x, "dtype") else jnp.result_type(x), jnp.inexact)


def _is_average(x: Any) -> bool:
    return isinstance(x, PolynomialAverageState)
