"""RLLC for JAX: an optax gradient transformation.

    import optax
    from rllc.optax import rllc
    tx = rllc("M(0.9) + M(0)", learning_rate=0.1, law_learning_rate=0.01)

A step is Algorithm 1 of arXiv 2402.15262 on the gradient g:

    L <- L + c2 M⁺g,    M <- M B + g aᵀ,    θ <- θ - c1 (M L + w θ)

with c1 the learning rate, c2 the law learning rate, w the weight decay. State is data: arrays only.
The memory is k trees shaped (and sharded) like the parameters; the law is one vector for the whole tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rllc import law as _law
from rllc.law import Cutoff, Frame, GramianRidge, RelaxedInverse, Ridge, Sums
from rllc.notation import as_propagator
from rllc.propagator import Propagator

__all__ = ["Cutoff", "GramianRidge", "Ridge", "ScaleByRLLCState", "rllc", "scale_by_rllc"]

Rate = float | jax.Array | Callable[[jax.Array], Any]  # a number or an optax schedule


class ScaleByRLLCState(NamedTuple):
    """State of `scale_by_rllc`; k is the number of memory units."""

    count: jax.Array  # type: ignore[assignment]  # () int32: updates asked for, skipped ones too
    skipped: jax.Array  # () int32: updates skipped because a gradient was not finite
    law: jax.Array  # (k,) float32, or float64 where JAX has it enabled: L
    faded: jax.Array  # (k, k) like law: Bˢ, s zero gradients since the last other one (`rllc.law.fade`)
    memory: tuple[optax.Updates, ...]  # k trees like the parameters: m_1, ..., m_k


def rllc(
    memory: str | Propagator,
    learning_rate: Rate,
    law_learning_rate: Rate,
    law: Any = None,
    eps: float | jax.Array | None = None,
    inverse: RelaxedInverse | None = None,
    weight_decay: float | jax.Array = 0.0,
    guard: bool = True,
    axis_name: str | tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """RLLC with linear memory: θ <- θ - c1 (M L + w θ), and L learned (arXiv 2402.15262, Algorithm 1).

    With law_learning_rate = 0 it is the fixed optimizer of that memory and law, for example
    "M(0.9)" heavy ball and "M(0.9) + M(0)" with law (0.9, 1) Nesterov's.

    Args:
        memory: notation such as "M(0.9) + M_2(0.6)", or a Propagator (B, a); k units.
        learning_rate: c1 >= 0, a number or a schedule. 0 leaves the parameters still while L learns.
        law_learning_rate: c2 >= 0, a number or a schedule; 0 keeps the law fixed.
        law: L_0, k numbers; ones if None.
        eps: of the default relaxed inverse GramianRidge(eps), a relative number >= 0.
        inverse: another relaxed inverse instead: GramianRidge(eps), Ridge(eps) or Cutoff(rcond).
        weight_decay: w, decoupled and multiplied by the learning rate as in optax.adamw.
        guard: keep a gradient that returns after a silence from throwing L away
            (`rllc.law.correction`); False is the paper's exact formula.
        axis_name: inside jax.shard_map, the mesh axis or axes over which parameters are sharded: sums go
            over all shards, so that every device has the one law. Parameters that are replicated over
            such an axis may stand beside sharded ones and count once; shard_map knows which is which.
            Under jit alone sharded parameters need no axis_name. Needs JAX 0.7 or newer.

    Raises:
        ValueError: a rate, eps, law or memory that makes no sense, named with the remedy; from update,
            an axis_name that is not bound there, or bound where shard_map does not tell the two kinds of
            parameters apart (check_vma=False; vmap).
    """
    _check_rate("learning_rate", learning_rate)
    return optax.chain(
        scale_by_rllc(memory, law_learning_rate, law, eps, inverse, weight_decay, guard, axis_name),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_rllc(
    memory: str | Propagator,
    law_learning_rate: Rate,
    law: Any = None,
    eps: float | jax.Array | None = None,
    inverse: RelaxedInverse | None = None,
    weight_decay: float | jax.Array = 0.0,
    guard: bool = True,
    axis_name: str | tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Turn a gradient g into M L + w θ, updating L and M on the way; arguments as in `rllc`.

    The updates point uphill, as optax has it: chain with `optax.scale_by_learning_rate`.

    A gradient with an entry that is not finite, or so large that a memory unit would overflow, is
    skipped whole: zero updates, memory and law unchanged, `skipped` one up. The weight decay lives here
    so that a skipped step does not decay either.

    Memory has the dtype of the parameters; sums and steps are computed in at least float32. A complex
    leaf is treated as its real view: <x, y> = Re(conj(x) y).
    """
    propagator = as_propagator(memory)
    inverse = _law.chosen_inverse(eps, inverse)
    first_law = _law.initial_law(law, propagator.k)
    _check_rate("law_learning_rate", law_learning_rate)
    _check_rate("weight_decay", weight_decay)
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    rule = _Rule(propagator, inverse, inverse.frame(propagator), law_learning_rate, weight_decay, guard, axes)
    return optax.GradientTransformation(partial(_init, rule, first_law), partial(_update, rule))


class _Rule(NamedTuple):
    """What of a transformation does not change from step to step."""

    propagator: Propagator
    inverse: RelaxedInverse
    frame: Frame
    law_learning_rate: Rate
    weight_decay: float | jax.Array
    guard: bool
    axes: tuple[str, ...]

    def rate(self, count: jax.Array) -> Any:
        return self.law_learning_rate(count) if callable(self.law_learning_rate) else self.law_learning_rate

    def decays(self) -> bool:
        return not (isinstance(self.weight_decay, float | int) and self.weight_decay == 0)


def _init(rule: _Rule, first_law: Any, params: optax.Params) -> ScaleByRLLCState:
    _check_leaves(params)
    dtype, k = _law_dtype(), rule.propagator.k
    return ScaleByRLLCState(
        count=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        law=jnp.asarray(first_law, dtype),
        faded=jnp.eye(k, dtype=dtype),
        memory=tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(k)),
    )


def _update(
    rule: _Rule, g: optax.Updates, state: ScaleByRLLCState, params: optax.Params | None = None
) -> tuple[optax.Updates, ScaleByRLLCState]:
    """One step: project g on the old memory, correct the law, remember g, combine."""
    if rule.decays() and params is None:
        raise ValueError("weight_decay needs the parameters: call update(updates, state, params)")
    _check_bound(rule.axes)
    tops = _tops(state.memory, g, rule.axes)
    sums = _sums(state.memory, g, tops, rule.frame.basis, rule.axes)
    x = _correction(rule, sums, state.faded, _machine_epsilon(g))
    L = (state.law + rule.rate(state.count) * x).astype(state.law.dtype)
    good = jnp.isfinite(L).all() & _memory_fits(rule.propagator, tops, state.memory[0])

    M = _next_memory(rule.propagator, state.memory, g)
    step = _combination(L, M)
    if rule.decays():
        step = jax.tree.map(lambda d, p: d + rule.weight_decay * _wide(p), step, params)

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(good, new.astype(old.dtype), old)

    new_state = ScaleByRLLCState(
        count=optax.safe_increment(state.count),
        skipped=jnp.where(good, state.skipped, optax.safe_increment(state.skipped)),
        law=keep(L, state.law),
        faded=keep(_law.fade(jnp, state.faded, jnp.asarray(rule.propagator.B, L.dtype), sums), state.faded),
        memory=jax.tree.map(keep, M, state.memory),
    )
    return jax.tree.map(lambda d, x: keep(d, jnp.zeros_like(x)), step, g), new_state


# --- the two passes over the parameters ---------------------------------------------------------


def _tops(memory: tuple[optax.Updates, ...], gradient: optax.Updates, axes: tuple[str, ...]) -> jax.Array:
    """The largest modulus in each unit (rows) and leaf (columns), the gradient last: (k + 1, leaves)."""
    dtype = _law_dtype()
    vectors = [_real_leaves(tree) for tree in (*memory, gradient)]
    tops = [[jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in leaves] for leaves in vectors]
    # Not differentiated: the correction does not depend on how its sums were scaled.
    local = jax.lax.stop_gradient(jnp.asarray(tops, dtype).reshape(len(vectors), -1))
    return jax.lax.pmax(local, axes) if axes else local


def _sums(
    memory: tuple[optax.Updates, ...],
    gradient: optax.Updates,
    tops: jax.Array,
    basis: np.ndarray,
    axes: tuple[str, ...],
) -> Sums:
    """W, v and gᵀg of the units M C of the whole tree, each vector scaled before it is squared."""
    dtype, k = _law_dtype(), len(memory)
    memory_scale, gradient_scale = _scale(tops[:k]), _scale(tops[k:])
    units = _combined([_scaled(_real_leaves(unit), memory_scale) for unit in memory], basis)
    vectors, r = [*units, _scaled(_real_leaves(gradient), gradient_scale)], len(units)
    pairs = [(i, j) for i in range(r + 1) for j in range(i, r + 1)]
    products = [_dot(vectors[i], vectors[j], dtype, axes) for i, j in pairs]
    # Stacked, so that all shards are summed by one all-reduce.
    upper = dict(zip(pairs, jax.lax.psum(jnp.stack(products), axes) if axes else products, strict=True))
    W = jnp.stack([jnp.stack([upper[min(i, j), max(i, j)] for j in range(r)]) for i in range(r)])
    v = jnp.stack([upper[i, r] for i in range(r)])
    return Sums(W, v, upper[r, r], memory_scale, gradient_scale)


def _combined(units: list[list[jax.Array]], basis: np.ndarray) -> list[list[jax.Array]]:
    """The units M C, leaf by leaf."""
    if np.array_equal(basis, np.eye(len(units))):
        return units
    columns = [[float(c) for c in column] for column in basis.T]
    return [[_weighted_sum(column, leaves) for leaves in zip(*units, strict=True)] for column in columns]


def _next_memory(p: Propagator, memory: tuple[optax.Updates, ...], g: optax.Updates) -> tuple[Any, ...]:
    """M B + g aᵀ in at least float32, every unit from the old values; zeros of B and a cost nothing."""

    def unit(j: int) -> Any:
        sources = [(float(b), m) for b, m in zip(p.B[:, j], memory, strict=True) if b]
        if p.a[j]:
            sources.append((float(p.a[j]), g))
        if not sources:
            return jax.tree.map(lambda m: jnp.zeros_like(_wide(m)), memory[j])
        weights = [w for w, _ in sources]
        return jax.tree.map(lambda *xs: _weighted_sum(weights, xs), *(x for _, x in sources))

    return tuple(unit(j) for j in range(p.k))


def _combination(L: jax.Array, memory: tuple[Any, ...]) -> Any:
    """M L, leaf by leaf."""
    return jax.tree.map(lambda *ms: _weighted_sum(list(L), ms), *memory)


def _weighted_sum(weights: Sequence[Any], leaves: Sequence[jax.Array]) -> jax.Array:
    wide = [_wide(leaf) for leaf in leaves]
    total = sum(jnp.asarray(w, _real_dtype(x)) * x for w, x in zip(weights, wide, strict=True))
    return total  # type: ignore[return-value]


# --- the law ------------------------------------------------------------------------------------


def _correction(rule: _Rule, sums: Sums, faded: jax.Array, machine_epsilon: float) -> jax.Array:
    dtype, (C, G, first) = sums.W.dtype, rule.frame
    return _law.correction(
        jnp,
        sums,
        Frame(jnp.asarray(C, dtype), jnp.asarray(G, dtype), first),
        rule.inverse,
        faded=faded if rule.guard else None,
        rounding=_law.rounding_of(len(G), max(machine_epsilon, float(jnp.finfo(dtype).eps))),
    )


def _memory_fits(p: Propagator, tops: jax.Array, unit: optax.Updates) -> jax.Array:
    """Whether no entry of M B + g aᵀ can overflow; False for a gradient that is not finite."""
    growth = np.append(np.abs(p.B).sum(1), np.abs(p.a).max())
    limits = [float(jnp.finfo(leaf.dtype).max) for leaf in _stored_real_leaves(unit)]
    return (jnp.asarray(growth, tops.dtype) @ tops < jnp.asarray(limits, tops.dtype)).all()


# --- leaves -------------------------------------------------------------------------------------


def _law_dtype() -> Any:
    return jax.dtypes.canonicalize_dtype(jnp.float64)


def _wide(x: jax.Array) -> jax.Array:
    """At least float32 (complex64), because sums and steps in half precision lose small terms."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _real_dtype(x: jax.Array) -> Any:
    return jnp.finfo(x.dtype).dtype


def _stored_real_leaves(tree: Any) -> list[jax.Array]:
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [part for x in leaves for part in ([x.real, x.imag] if jnp.iscomplexobj(x) else [x])]


def _real_leaves(tree: Any) -> list[jax.Array]:
    return [_wide(leaf) for leaf in _stored_real_leaves(tree)]


def _scale(tops: jax.Array) -> jax.Array:
    """What to divide by: the power of two below the largest entry, which costs no digit; 1 for zeros."""
    top = jnp.max(tops, initial=0)
    exponent = jnp.frexp(top)[1] - 1
    usable = (top >= 4 * jnp.finfo(tops.dtype).tiny) & jnp.isfinite(top)
    return jnp.where(usable, jnp.ldexp(jnp.ones_like(top), exponent), 1)


def _scaled(leaves: list[jax.Array], scale: jax.Array) -> list[jax.Array]:
    return [leaf / scale.astype(leaf.dtype) for leaf in leaves]


def _dot(xs: list[jax.Array], ys: list[jax.Array], dtype: Any, axes: tuple[str, ...]) -> jax.Array:
    # jnp.sum(x * y), not vdot: it works on leaves of any sharding, explicit too.
    terms = [_once(jnp.sum(x * y), axes).astype(dtype) for x, y in zip(xs, ys, strict=True)]
    return sum(terms, start=jnp.zeros((), dtype))


def _machine_epsilon(tree: Any) -> float:
    return max([float(jnp.finfo(_wide(leaf).dtype).eps) for leaf in jax.tree.leaves(tree)], default=0.0)


# --- shards, inside jax.shard_map ---------------------------------------------------------------


def _once(term: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The term, but zero on all devices but the first of those that have the same one."""
    for name in axes:
        if name not in _varying(term):
            term = jnp.where(jax.lax.axis_index(name) == 0, term, 0)
    return term


def _varying(x: jax.Array) -> frozenset[str]:
    """The mapped axes along which x differs from device to device, as shard_map's types say."""
    kind = jax.typeof(x)
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # before and since JAX 0.10


def _check_bound(axes: tuple[str, ...]) -> None:
    for name in axes:
        try:
            index = jax.lax.axis_index(name)
        except NameError:
            raise ValueError(
                f"axis_name {name!r} is not bound here: call update inside jax.shard_map over a mesh with"
                " that axis, or leave axis_name out where jit shards the parameters"
            ) from None
        if name not in _varying(index):
            raise ValueError(
                f"over axis_name {name!r} sharded and replicated parameters cannot be told apart here;"
                " use jax.shard_map with check_vma=True, its default"
            )


def _check_leaves(params: optax.Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}, which has no"
                " gradient; leave it out with optax.masked or optax.partition"
            )


def _check_rate(name: str, value: Any) -> None:
    if callable(value) or isinstance(value, jax.core.Tracer):
        return
    if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0:
        value = value.item()
    _law.check_nonnegative(name, value)
