"""What of a transformation does not change from step to step, and what both kinds of memory do with it."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rllc.checks import check_nonnegative
from rllc.law import LOST, PROGRESS, LawStep, RelaxedInverse, Sums
from rllc.optax.leaves import check_alike, kept, law_dtype, shared, weighted_sum, wide
from rllc.optax.scopes import Scope, Spread, each, first_laws

__all__ = ["Rate", "Settings", "check_params", "check_rate", "check_state", "first_law", "next_law", "uphill"]

Rate = float | jax.Array | Callable[[jax.Array], Any]  # a number or an optax schedule


class Settings(NamedTuple):
    """Arguments of `scale_by_rllc`, checked."""

    inverse: RelaxedInverse
    law_learning_rate: Rate
    law_step: LawStep
    weight_decay: float | jax.Array
    guard: bool
    scope: Scope
    axes: tuple[str, ...]
    learning_rate: Rate
    mask: Any  # of the weight decay; None: every parameter decays

    def decays(self) -> bool:
        return not (isinstance(self.weight_decay, float | int) and self.weight_decay == 0)


def first_law(settings: Settings, law: Any, params: optax.Params) -> jax.Array:
    """L_0, (k,), or (laws, k) where there are several."""
    return first_laws(settings.scope, jnp.array(law, law_dtype()), params)  # a copy: states are donated


def next_law(
    settings: Settings, laws: Spread, state: Any, x: jax.Array, sums: Sums, sound: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """L after the correction x, the progress of its steps, and whether to take it: sound, all of it finite
    and L not lost.
    """
    c1, c2 = (
        rate(state.count) if callable(rate) else rate
        for rate in (settings.learning_rate, settings.law_learning_rate)
    )
    dtype = state.law.dtype

    def taken(
        law: jax.Array, x: jax.Array, size: jax.Array, progress: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        law, progress = settings.law_step.taken(jnp, law, c2, x, size, progress, c1)
        return law.astype(dtype), progress.astype(dtype)

    law, progress = each(laws, taken, state.law, x, sums.gradient_size(jnp), state.progress)
    found = jnp.isfinite(x).all() & jnp.isfinite(progress).all() & (jnp.abs(law) < LOST).all()
    law, progress, good = shared((law, progress, (found & sound).astype(dtype)))  # one array, of one dtype
    return law, progress, good > 0


def uphill(
    settings: Settings,
    good: jax.Array,
    laws: Sequence[jax.Array],
    units: tuple[optax.Updates, ...],
    g: optax.Updates,
    stored: optax.Updates,
    params: optax.Params | None,
) -> optax.Updates:
    """M L + w θ, or zeros for a step that is skipped. laws: (k,) for each leaf.

    In the dtypes of g, or of the `stored` units where those have more: of float16 gradients of float32
    parameters the step, which the learning rate has not yet made small, need not fit into float16.
    """
    leaves, tree = jax.tree.flatten(g)
    kinds = [
        jnp.promote_types(x.dtype, unit.dtype)
        for x, unit in zip(leaves, jax.tree.leaves(stored), strict=True)
    ]
    columns = zip(*(jax.tree.leaves(unit) for unit in units), strict=True)
    step = [weighted_sum(list(L), own) for L, own in zip(laws, columns, strict=True)]
    if settings.decays():
        decaying = zip(step, jax.tree.leaves(params), _masked(settings.mask, params), strict=True)
        step = [d + settings.weight_decay * wide(p) if decays else d for d, p, decays in decaying]
    return jax.tree.unflatten(
        tree, [kept(good, d, jnp.zeros_like(x, kind)) for d, x, kind in zip(step, leaves, kinds, strict=True)]
    )


def _masked(mask: Any, params: optax.Params) -> list[Any]:
    """Of each leaf whether its weights decay."""
    if mask is None:
        return [True] * len(jax.tree.leaves(params))
    try:
        return jax.tree.leaves(jax.tree.broadcast(mask(params) if callable(mask) else mask, params))
    except ValueError as error:
        raise ValueError(f"mask is no prefix tree of the parameters: {error}") from None


def check_params(settings: Settings, g: optax.Updates, params: optax.Params | None) -> None:
    """Refuse weight decay of parameters that are not given, or of others."""
    if settings.decays():
        if params is None:
            raise ValueError("weight_decay needs the parameters: call update(updates, state, params)")
        check_alike("the parameters", params, "the gradient", g)


def check_state(settings: Settings, kind: Any, k: int, state: Any) -> None:
    """Refuse the state of another memory or scope, as far as arrays can tell, or what is none."""
    if not isinstance(state, kind):
        raise ValueError(
            f"the state is a {type(state).__name__} where this memory has a {kind.__name__}: init anew, or"
            " restore a saved one into the structure of init(params)"
        )
    several = not (isinstance(settings.scope, str) and settings.scope == "all")
    law, progress = np.shape(state.law), np.shape(state.progress)
    if len(law) != 1 + several or law[-1] != k or progress[-1:] != (PROGRESS,) or len(state.memory) != k:
        raise ValueError(
            f"the state has {len(state.memory)} memory units, a law of shape {law} and a progress of shape"
            f" {progress}, which is not what {k} units with scope={settings.scope!r} have: it is of another"
            " memory, scope or version, or of several runs without jax.vmap"
        )


def check_rate(name: str, value: Any, *, may_change: bool = True) -> None:
    """Refuse what is no finite number >= 0, nor a schedule if it may be one; a traced rate is not judged."""
    if isinstance(value, jax.core.Tracer) or (may_change and callable(value)):
        return
    if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, numbers.Real):
        what = "a number or a schedule" if may_change else "a number"
        raise ValueError(f"{name} must be {what}, got {value!r}")
    check_nonnegative(name, value)
