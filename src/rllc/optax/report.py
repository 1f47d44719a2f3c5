"""What a law has learned, as a dict of numbers to log."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rllc.laws import gain_and_delay
from rllc.notation import as_propagator
from rllc.optax.general import ScaleByRulesState
from rllc.optax.leaves import real_leaves
from rllc.optax.linear import ScaleByRLLCState
from rllc.optax.scopes import Spread
from rllc.optax.sums import inner_products, largest_of, matrix, pairs, scale, scaled, tops
from rllc.propagator import Propagator

__all__ = ["law_report"]

States = ScaleByRLLCState | ScaleByRulesState


def law_report(opt_state: Any, memory: str | Propagator | None = None) -> dict[str, jax.Array]:
    """Scalars that say how a law is doing; works on traced states too, so it may be part of a jitted step.

    "law/1" ... "law/k": L. "law_norm": |L|. "count", "skipped": updates asked for, and those skipped.
    "condition": of MᵀM with units at length one, over all parameters: how nearly parallel they are; infinite
    where a unit is zero. It is a pass over the units, so do not ask for it at every step, and on the state of
    one shard inside jax.shard_map it is that shard's.
    "gain", "mean_delay": of the law as a fixed law of linear memory (`rllc.laws.FixedLaw`), the latter not a
    number where the gain is zero; only if the memory is given, as the state does not hold B and a.

    With a scope other than "all" each law has its row: "law/1/2" is unit 2 of law 1, "gain/1" its gain.

    Args:
        opt_state: of a transformation with one `scale_by_rllc` anywhere in it.
        memory: linear memory as it was given to `rllc`.

    Raises:
        ValueError: there is no law in the state, or several; or the memory has another number of units.
    """
    state = _only_state(opt_state)
    report = {
        **_entries("law", state.law),
        **_entries("law_norm", jnp.sqrt(jnp.sum(state.law**2, axis=-1))),
        "count": jnp.asarray(state.count),  # of Flax NNX it is a variable, of a restored state NumPy's
        "skipped": jnp.asarray(state.skipped),
        "condition": _condition(state.memory),
    }
    return report | (_of_linear(state.law, as_propagator(memory)) if memory is not None else {})


def _only_state(opt_state: Any) -> States:
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=_is_state) if _is_state(x)]
    if len(found) != 1:
        remedy = "give the part of it that holds one" if found else "give that of an rllc transformation"
        raise ValueError(f"this state holds {len(found)} laws of scale_by_rllc; {remedy}")
    if jnp.ndim(found[0].count):
        raise ValueError("this state is of several runs at once; call law_report in jax.vmap, too")
    return found[0]


def _is_state(x: Any) -> bool:
    return isinstance(x, States)


def _entries(name: str, values: jax.Array) -> dict[str, jax.Array]:
    """Each entry under its place, counted from one."""
    values = jnp.asarray(values)
    places = list(np.ndindex(values.shape))
    return {"/".join([name, *(str(i + 1) for i in place)]): values[place] for place in places}


def _condition(memory: tuple[Any, ...]) -> jax.Array:
    k, leaves = len(memory), jax.tree.leaves(memory[0])
    one = Spread(False, 1, [0] * len(leaves), [0] * len(real_leaves(memory[0])))
    scales = scale(largest_of(tops([real_leaves(unit) for unit in memory], ()), one))
    units = [real_leaves(scaled(unit, scales[:, j], one)) for j, unit in enumerate(memory)]
    W = matrix(inner_products([(units[i], units[j]) for i, j in pairs(k)], one, ())[0], k)
    size = jnp.sqrt(jnp.diagonal(W))
    length = jnp.where(size > 0, size, 1)
    values = jnp.linalg.eigvalsh(W / length[:, None] / length[None, :])
    return jnp.where(values[0] > 0, values[-1] / jnp.where(values[0] > 0, values[0], 1), jnp.inf)


def _of_linear(law: jax.Array, propagator: Propagator) -> dict[str, jax.Array]:
    gain, delay = gain_and_delay(propagator, law, jnp)
    return {**_entries("gain", gain), **_entries("mean_delay", delay)}
