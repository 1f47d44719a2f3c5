"""RLLC with any memory, M, H <- U(M, H, g, θ) (arXiv 2402.15262, Definition 3.1, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rllc import law as _law
from rllc.law import PROGRESS, DiagonalRidge, Sums
from rllc.memory import yardsticks_of
from rllc.optax.leaves import (
    check_alike,
    check_leaves,
    given,
    kept,
    law_dtype,
    machine_epsilon,
    real_leaves,
    shared,
    spoilt,
    widened,
)
from rllc.optax.scopes import Spread, each, law_of_leaves, only, spread
from rllc.optax.settings import Settings, check_params, check_state, first_law, next_law, uphill
from rllc.optax.shards import check_bound
from rllc.optax.sums import inner_products, largest_of, matrix, pairs, scale, scaled, tops
from rllc.optax.units import TreeMemory

__all__ = ["ScaleByRulesState", "transformation"]

Members = tuple[TreeMemory, ...]


class ScaleByRulesState(NamedTuple):
    """State of `scale_by_rllc` with memory that is not linear; k is the number of memory units.

    With a scope other than "all", law, progress and last_size have a leading axis: a row for each law.
    """

    count: jax.Array  # type: ignore[assignment]  # () int32: updates asked for, skipped ones too
    skipped: jax.Array  # () int32: updates skipped because a gradient or a new unit was not finite
    law: jax.Array  # (k,) float32, or float64 where JAX has it enabled: L
    progress: jax.Array  # (5,) like law: of the law's step, as `rllc.law.LawStep.taken` keeps it
    last_size: jax.Array  # () like law: |g| of the last gradient that memory has taken in
    memory: tuple[optax.Updates, ...]  # k trees like the parameters: m_1, ..., m_k
    hidden: tuple[Any, ...]  # of each member of the memory its hidden state, in at least float32


def transformation(members: Members, settings: Settings, law: Any) -> optax.GradientTransformationExtraArgs:
    """`scale_by_rllc` with this memory, from L_0 = law."""
    start = _law.initial_law(law, sum(member.k for member in members))
    return optax.GradientTransformationExtraArgs(
        partial(_init, members, settings, start), partial(_update, members, settings)
    )


def _init(members: Members, settings: Settings, law: Any, params: optax.Params) -> ScaleByRulesState:
    check_leaves(params)
    start, k = first_law(settings, law, params), sum(member.k for member in members)
    return ScaleByRulesState(
        count=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        law=start,
        progress=jnp.zeros((*start.shape[:-1], PROGRESS), start.dtype),
        last_size=jnp.zeros(start.shape[:-1], start.dtype),
        memory=tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(k)),
        hidden=tuple(member.init(widened(params)) for member in members),
    )


def _update(
    members: Members,
    settings: Settings,
    g: optax.Updates,
    state: ScaleByRulesState,
    params: optax.Params | None = None,
    **extra_args: Any,
) -> tuple[optax.Updates, ScaleByRulesState]:
    """One step: project g on the old memory, correct the law, remember g, combine."""
    check_state(settings, ScaleByRulesState, sum(member.k for member in members), state)
    check_bound(settings.axes)
    g = given(g, state.memory[0])
    check_params(settings, g, params)
    laws = spread(settings.scope, state.law, g)
    M, hidden = _next_memory(members, g, state, params, extra_args)
    sums, unit_scales, broken = _sums(members, settings, laws, g, state, _broken(g, M, state, hidden))
    x = _correction(members, settings, laws, sums, unit_scales, state.last_size, machine_epsilon(g))
    L, progress, good = next_law(settings, laws, state, x, sums, broken == 0)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda new, old: kept(good, new, old), new, old)

    new_state = ScaleByRulesState(
        count=optax.safe_increment(state.count),
        skipped=jnp.where(good, state.skipped, optax.safe_increment(state.skipped)),
        law=keep(L, state.law),
        progress=keep(progress, state.progress),
        last_size=keep(sums.gradient_size(jnp), state.last_size),
        memory=keep(M, state.memory),
        hidden=keep(hidden, state.hidden),
    )
    return uphill(settings, good, law_of_leaves(L, laws), M, g, state.memory[0], params), new_state


# --- memory -------------------------------------------------------------------------------------


def _next_memory(
    members: Members, g: optax.Updates, state: ScaleByRulesState, params: Any, extra: dict[str, Any]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """All units and hidden states after g, in at least float32, every one from the old values."""
    g, memory = widened(g), widened(state.memory)
    theta = None if params is None else widened(params)
    new = [
        member.update(g, units, hidden, theta, extra)
        for member, units, hidden in zip(members, _of_each(members, memory), state.hidden, strict=True)
    ]
    _check_new(members, g, [units for units, _ in new])
    for member, (_, hidden), old in zip(members, new, state.hidden, strict=True):
        check_alike(f"the new hidden state of {member.name}", hidden, "its old one", old)
    return tuple(unit for units, _ in new for unit in units), tuple(hidden for _, hidden in new)


def _of_each(members: Members, units: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """The units of each member."""
    end = 0
    for member in members:
        start, end = end, end + member.k
        yield tuple(units[start:end])


def _check_new(members: Members, g: Any, new: Sequence[Sequence[Any]]) -> None:
    before, reference = "the gradient", g
    for member, units in zip(members, new, strict=True):
        for unit in units:
            check_alike(f"a unit of {member.name}", unit, before, reference)
            pairs = zip(jax.tree.leaves(unit), jax.tree.leaves(g), strict=True)
            if any(jnp.iscomplexobj(new) and not jnp.iscomplexobj(x) for new, x in pairs):
                raise ValueError(
                    f"a unit of {member.name} is complex where the parameter is real; make it real"
                )
            before, reference = f"one of {member.name}", unit


def _broken(g: Any, M: tuple[Any, ...], state: ScaleByRulesState, hidden: Any) -> list[jax.Array]:
    """For each real leaf 1 where g or a new unit is not finite, else 0, as float32."""
    stored = jax.tree.map(lambda new, old: new.astype(old.dtype), M, state.memory)
    columns = zip(*(real_leaves(tree) for tree in (g, *stored)), strict=True)
    flags = [jnp.stack([~jnp.isfinite(x).all() for x in column]).any() for column in columns]
    if flags:
        # Hidden state that is not finite from the start, such as a best loss so far, may stay so.
        pairs = zip(jax.tree.leaves(hidden), jax.tree.leaves(state.hidden), strict=True)
        flags[0] |= jnp.stack([jnp.asarray(False), *(spoilt(new, old) for new, old in pairs)]).any()
    return [flag.astype(jnp.float32) for flag in flags]


# --- the law ------------------------------------------------------------------------------------


def _sums(
    members: Members,
    settings: Settings,
    laws: Spread,
    g: Any,
    state: ScaleByRulesState,
    broken: list[jax.Array],
) -> tuple[Sums, jax.Array, jax.Array]:
    """W = MᵀP⁻¹M and v = Mᵀg of units divided by scales of their own, these, (k,), and how much is broken."""
    largest = tops([real_leaves(tree) for tree in (*state.memory, g)], settings.axes)
    largest, k = largest_of(largest, laws), len(state.memory)
    units_largest = largest[:, :k]
    if not isinstance(settings.inverse, DiagonalRidge):
        # Only for DiagonalRidge the length of a unit is nothing.
        units_largest = jnp.broadcast_to(units_largest.max(1, keepdims=True), units_largest.shape)
    unit_scales, gradient_scale = shared((scale(units_largest), scale(largest[:, k])))
    trees = [scaled(unit, unit_scales[:, j], laws) for j, unit in enumerate(state.memory)]
    units = [real_leaves(x) for x in trees]
    duals = [real_leaves(_dual(members, state.hidden, x)) for x in trees]
    gradient = real_leaves(scaled(g, gradient_scale, laws))
    products = [
        *((units[i], duals[j]) for i, j in pairs(k)),
        *((unit, gradient) for unit in units),
        (gradient, gradient),
        (broken, [jnp.ones_like(flag) for flag in broken]),
    ]
    found = inner_products(products, laws, settings.axes)
    n = len(pairs(k))
    sums = Sums(matrix(found[:, :n], k), found[:, n:-2], found[:, -2], unit_scales.max(1), gradient_scale)
    return *only(laws, (sums, unit_scales)), found[:, -1].sum()


def _dual(members: Members, hidden: tuple[Any, ...], tree: Any) -> Any:
    """P⁻¹ tree, in the first metric there is."""
    for member, own in zip(members, hidden, strict=True):
        if member.metric is not None:
            dual = member.metric(own, tree)
            check_alike(f"what the metric of {member.name} returns", dual, "its unit", tree)
            return dual
    return tree


def _correction(
    members: Members,
    settings: Settings,
    laws: Spread,
    sums: Sums,
    unit_scales: jax.Array,
    last_size: jax.Array,
    machine_epsilon: float,
) -> jax.Array:
    """M⁺g as pure numbers, (k,)."""
    over = yardsticks_of(members)
    rounding = _law.rounding_of(len(over), max(machine_epsilon, float(jnp.finfo(law_dtype()).eps)))

    def one(sums: Sums, unit_scales: jax.Array, last_size: jax.Array) -> jax.Array:
        x = settings.inverse.solve(jnp, sums, rounding)
        x = _law.in_scale(jnp, x, sums.W, jnp.ones_like(last_size), over)
        # x is of scaled vectors: what it counts in is yet to be given its scale back.
        scales = [*unit_scales, last_size]
        measure = jnp.stack([scales[j if i is None else i] for j, i in enumerate(over)])
        return jnp.where(measure > 0, x * (sums.gradient_scale / jnp.where(measure > 0, measure, 1)), 0)

    return each(laws, one, sums, unit_scales, last_size)
