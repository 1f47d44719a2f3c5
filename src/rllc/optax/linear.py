"""RLLC with linear memory, M <- M B + g aᵀ: Gramian inverse, guard, and one law or several."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rllc import law as _law
from rllc.law import PROGRESS, Frame, Sums
from rllc.optax.leaves import (
    check_leaves,
    given,
    kept,
    machine_epsilon,
    real_leaves,
    shared,
    stored_real_leaves,
    weighted_sum,
    wide,
)
from rllc.optax.scopes import Spread, each, law_of_leaves, only, spread
from rllc.optax.settings import Settings, check_params, check_state, first_law, next_law, uphill
from rllc.optax.shards import check_bound
from rllc.optax.sums import inner_products, largest_of, matrix, pairs, scale, scaled, tops
from rllc.propagator import Propagator

__all__ = ["ScaleByRLLCState", "transformation"]


class ScaleByRLLCState(NamedTuple):
    """State of `scale_by_rllc` with linear memory; k is the number of memory units.

    With a scope other than "all", law, progress and faded have a leading axis: a row for each law.
    """

    count: jax.Array  # type: ignore[assignment]  # () int32: updates asked for, skipped ones too
    skipped: jax.Array  # () int32: updates skipped because a gradient was not finite
    law: jax.Array  # (k,) float32, or float64 where JAX has it enabled: L
    progress: jax.Array  # (5,) like law: of the law's step, as `rllc.law.LawStep.taken` keeps it
    faded: jax.Array  # (k, k) like law: Bˢ, s zero gradients since the last other one (`rllc.law.fade`)
    memory: tuple[optax.Updates, ...]  # k trees like the parameters: m_1, ..., m_k


def transformation(propagator: Propagator, settings: Settings, law: Any) -> optax.GradientTransformation:
    """`scale_by_rllc` with this memory, from L_0 = law."""
    start, frame = _law.initial_law(law, propagator.k), settings.inverse.frame(propagator)
    return optax.GradientTransformation(
        partial(_init, propagator, settings, start), partial(_update, propagator, frame, settings)
    )


def _init(propagator: Propagator, settings: Settings, law: Any, params: optax.Params) -> ScaleByRLLCState:
    check_leaves(params)
    start, k = first_law(settings, law, params), propagator.k
    return ScaleByRLLCState(
        count=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        law=start,
        progress=jnp.zeros((*start.shape[:-1], PROGRESS), start.dtype),
        faded=jnp.broadcast_to(jnp.eye(k, dtype=start.dtype), (*start.shape[:-1], k, k)),
        memory=tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(k)),
    )


def _update(
    propagator: Propagator,
    frame: Frame,
    settings: Settings,
    g: optax.Updates,
    state: ScaleByRLLCState,
    params: optax.Params | None = None,
) -> tuple[optax.Updates, ScaleByRLLCState]:
    """One step: project g on the old memory, correct the law, remember g, combine."""
    check_state(settings, ScaleByRLLCState, propagator.k, state)
    check_bound(settings.axes)
    g = given(g, state.memory[0])
    check_params(settings, g, params)
    laws = spread(settings.scope, state.law, g)
    largest = tops([real_leaves(tree) for tree in (*state.memory, g)], settings.axes)
    sums = _sums(state.memory, g, largest, frame.basis, laws, settings.axes)
    x = _correction(frame, settings, laws, sums, state.faded, machine_epsilon(g))
    fits = _memory_fits(propagator, largest, state.memory[0])
    L, progress, good = next_law(settings, laws, state, x, sums, fits)

    M = _next_memory(propagator, state.memory, g)
    new_state = ScaleByRLLCState(
        count=optax.safe_increment(state.count),
        skipped=jnp.where(good, state.skipped, optax.safe_increment(state.skipped)),
        law=kept(good, L, state.law),
        progress=kept(good, progress, state.progress),
        faded=kept(good, _faded(propagator, laws, state.faded, sums), state.faded),
        memory=jax.tree.map(lambda new, old: kept(good, new, old), M, state.memory),
    )
    return uphill(settings, good, law_of_leaves(L, laws), M, g, state.memory[0], params), new_state


# --- sums ---------------------------------------------------------------------------------------


def _sums(
    memory: tuple[optax.Updates, ...],
    g: optax.Updates,
    largest: jax.Array,
    basis: np.ndarray,
    laws: Spread,
    axes: tuple[str, ...],
) -> Sums:
    """W, v and gᵀg of the units M C, over each law's leaves; its units have one scale."""
    of_laws = largest_of(largest, laws)
    memory_scale, gradient_scale = shared((scale(jnp.max(of_laws[:, :-1], axis=1)), scale(of_laws[:, -1])))
    units = _combined([real_leaves(scaled(unit, memory_scale, laws)) for unit in memory], basis)
    vectors = [*units, real_leaves(scaled(g, gradient_scale, laws))]
    upper = inner_products([(vectors[i], vectors[j]) for i, j in pairs(len(vectors))], laws, axes)
    gram = matrix(upper, len(vectors))
    sums = Sums(gram[:, :-1, :-1], gram[:, :-1, -1], gram[:, -1, -1], memory_scale, gradient_scale)
    return only(laws, sums)


def _combined(units: list[list[jax.Array]], basis: np.ndarray) -> list[list[jax.Array]]:
    """The units M C, leaf by leaf."""
    if np.array_equal(basis, np.eye(len(units))):
        return units
    columns = [[float(c) for c in column] for column in basis.T]
    return [[weighted_sum(column, leaves) for leaves in zip(*units, strict=True)] for column in columns]


# --- the law ------------------------------------------------------------------------------------


def _correction(
    frame: Frame, settings: Settings, laws: Spread, sums: Sums, faded: jax.Array, machine_epsilon: float
) -> jax.Array:
    dtype, (C, G, first) = sums.W.dtype, frame
    frame = Frame(jnp.asarray(C, dtype), jnp.asarray(G, dtype), first)
    rounding = _law.rounding_of(len(G), max(machine_epsilon, float(jnp.finfo(dtype).eps)))

    def one(sums: Sums, faded: jax.Array) -> jax.Array:
        guard = faded if settings.guard else None
        return _law.correction(jnp, sums, frame, settings.inverse, faded=guard, rounding=rounding)

    return each(laws, one, sums, faded)


def _faded(propagator: Propagator, laws: Spread, faded: jax.Array, sums: Sums) -> jax.Array:
    B = jnp.asarray(propagator.B, faded.dtype)
    return each(laws, lambda faded, sums: _law.fade(jnp, faded, B, sums), faded, sums)


# --- memory -------------------------------------------------------------------------------------


def _next_memory(p: Propagator, memory: tuple[optax.Updates, ...], g: optax.Updates) -> tuple[Any, ...]:
    """M B + g aᵀ in at least float32, every unit from the old values; zeros of B and a cost nothing."""

    def unit(j: int) -> Any:
        sources = [(float(b), m) for b, m in zip(p.B[:, j], memory, strict=True) if b]
        if p.a[j]:
            sources.append((float(p.a[j]), g))
        if not sources:
            return jax.tree.map(lambda m: jnp.zeros_like(wide(m)), memory[j])
        weights = [w for w, _ in sources]
        return jax.tree.map(lambda *xs: weighted_sum(weights, xs), *(x for _, x in sources))

    return tuple(unit(j) for j in range(p.k))


def _memory_fits(p: Propagator, largest: jax.Array, unit: optax.Updates) -> jax.Array:
    """Whether no entry of M B + g aᵀ can overflow; False for a gradient that is not finite."""
    limits = [float(jnp.finfo(leaf.dtype).max) for leaf in stored_real_leaves(unit)]
    return (jnp.asarray(p.growth(), largest.dtype) @ largest < jnp.asarray(limits, largest.dtype)).all()
