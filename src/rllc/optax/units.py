"""Memory of whole trees: rules of `rllc.memory` leaf by leaf, and transformations of optax as memory units.

unit(optax.scale_by_lion())                                          one unit, measured by its length
unit(optax.scale_by_adam(), adam_metric())                           one unit, in Adam's own metric
unit(optax.trace(0.9), euclidean)                                    M(0.9)
union("M(0.9)", unit(optax.scale_by_lion()), rllc.memory.Adam())     the units of all of them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rllc.memory import MemoryRule, check_units, hidden_of_probe, linear
from rllc.memory import Union as UnionOfRules
from rllc.propagator import Propagator

__all__ = ["Memory", "TreeMemory", "Union", "adam_metric", "as_members", "euclidean", "union", "unit"]

Tree = Any
Trees = tuple[Tree, ...]
Metric = Callable[[Any, Tree], Tree]  # (hidden state, tree) -> P⁻¹ tree


@dataclass(frozen=True)
class TreeMemory:
    """k memory units that are trees like the parameters; made by `unit`, or from a MemoryRule.

    Trees given to it are in at least float32.

    Attributes:
        name: for messages. k: the number of units.
        native: whether units are as long as gradients are (`rllc.memory.MemoryRule`).
        init: params -> hidden state.
        update: (g, units, hidden state, params or None, extra arguments) -> (units, hidden state).
        metric: None, or (hidden state, tree) -> P⁻¹ tree.
    """

    name: str
    k: int
    native: bool
    init: Callable[[Tree], Any]
    update: Callable[[Tree, Trees, Any, Tree | None, dict[str, Any]], tuple[Trees, Any]]
    metric: Metric | None = None


@dataclass(frozen=True)
class Union:
    """The units of several memories, one after the other. The first metric holds for all."""

    members: tuple[TreeMemory, ...]

    @property
    def k(self) -> int:
        return sum(member.k for member in self.members)


Memory = str | Propagator | MemoryRule | TreeMemory | Union


def euclidean(hidden: Any, tree: Tree) -> Tree:
    """The metric of units that are sums of gradients, as those of linear memory are: P = 1."""
    return tree


def adam_metric(b2: float = 0.999, eps: float = 1e-8) -> Metric:
    """The metric P⁻¹ = √v̂ + eps of optax.scale_by_adam(b2=b2, eps=eps), alone or in a chain, for `unit`.

    Raises:
        ValueError: from update, the state holds no ScaleByAdamState, or none of all parameters.
    """

    def metric(hidden: Any, tree: Tree) -> Tree:
        nodes = jax.tree.leaves(hidden, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
        states = [x for x in nodes if isinstance(x, optax.ScaleByAdamState)]
        if not states:
            raise ValueError("adam_metric is for optax.scale_by_adam, and the unit's state holds none")
        state = states[0]
        if len(states) > 1 or str(jax.tree.structure(state.nu)) != str(jax.tree.structure(tree)):
            raise ValueError(
                "adam_metric is for one optax.scale_by_adam of all parameters, not for those of"
                " optax.partition or optax.masked"
            )
        seen = jnp.maximum(state.count, 1)
        return jax.tree.map(
            lambda x, nu: x * (jnp.sqrt(nu / (1 - b2**seen).astype(nu.dtype)) + eps), tree, state.nu
        )

    return metric


def unit(tx: optax.GradientTransformation, metric: Metric | None = None) -> TreeMemory:
    """One memory unit: what tx made of the last gradient. Its state is the hidden state.

    The unit must point uphill, as a gradient does: give optax.scale_by_adam(), not optax.adam(lr), and
    nothing that ends in optax.scale_by_learning_rate or optax.scale(-lr), which point downhill.

    Args:
        tx: any optax transformation; it is given gradients and parameters in at least float32, and extra
            arguments of update, where it takes them. Sums it forms itself (clipping by a global norm) are
            one shard's in jax.shard_map.
        metric: None: the unit's coefficient is measured by lengths, x |m| / |g'|, g' the last gradient
            (`rllc.memory.yardsticks`). `euclidean`: it is not, as the unit is one of linear memory, such as
            optax.trace(0.9), that is M(0.9), or optax.identity(), that is M(0). `adam_metric()`, or your own
            (state of tx, tree) -> P⁻¹ tree, linear in the tree, symmetric and positive: the metric in which
            the unit is a direction of steepest descent.

    Raises:
        ValueError: tx is no optax transformation.
    """
    if not isinstance(tx, optax.GradientTransformation):
        raise ValueError(f"unit needs an optax transformation such as optax.scale_by_adam(), got {tx!r}")
    inner = optax.with_extra_args_support(tx)

    def update(
        g: Tree, units: Trees, hidden: Any, params: Tree | None, extra: dict[str, Any]
    ) -> tuple[Trees, Any]:
        updates, hidden = inner.update(g, hidden, params, **extra)
        return (updates,), hidden

    native = metric is euclidean
    name = f"unit({getattr(tx.update, '__qualname__', repr(tx)).split('.')[0]})"
    return TreeMemory(name, 1, native, tx.init, update, None if native else metric)


def union(*memories: Memory) -> Union:
    """The units of all: notation, Propagators, rules of `rllc.memory`, `unit`s and unions of these.

    Raises:
        ValueError: there is none, or one is no memory.
    """
    if not memories:
        raise ValueError('a union needs at least one memory, such as "M(0.9)"')
    return Union(tuple(member for memory in memories for member in as_members(memory)))


def as_members(memory: Memory) -> tuple[TreeMemory, ...]:
    """What a memory consists of, with each rule of `rllc.memory` as one of whole trees."""
    if isinstance(memory, Union):
        return memory.members
    if isinstance(memory, TreeMemory):
        return (memory,)
    if isinstance(memory, str | Propagator):
        return (_lifted(linear(memory)),)
    if isinstance(memory, UnionOfRules):
        return tuple(member for rule in memory.rules for member in as_members(rule))
    if isinstance(memory, MemoryRule):
        return (_lifted(check_units(memory)),)
    raise ValueError(
        f'not a memory: {memory!r}; give notation such as "M(0.9)", a Propagator, a rule of rllc.memory, or'
        " unit(tx) for an optax transformation tx"
    )


# --- rules leaf by leaf -------------------------------------------------------------------------


def _lifted(rule: MemoryRule) -> TreeMemory:
    """A rule for one leaf as a memory of trees: the hidden state is a tuple of trees.

    A hidden array that is one number for each leaf is stacked: it is nothing like a parameter, and so
    optax.tree_map_params takes it for none.
    """
    name = type(rule).__name__
    numbers = [np.ndim(array) == 0 for array in hidden_of_probe(rule)]

    def packed(arrays: Sequence[Sequence[jax.Array]], tree: Any) -> Any:
        """Each leaf's hidden arrays as the hidden state."""
        columns = zip(numbers, _transposed(arrays, len(numbers)), strict=True)
        return tuple(_stacked(x) if number else jax.tree.unflatten(tree, x) for number, x in columns)

    def unpacked(hidden: Any, leaves: int) -> list[list[jax.Array]]:
        """Each leaf's hidden arrays."""
        columns = zip(numbers, hidden, strict=True)
        return _transposed([list(x) if number else jax.tree.leaves(x) for number, x in columns], leaves)

    def init(params: Tree) -> Any:
        leaves, tree = jax.tree.flatten(params)
        if any(jnp.iscomplexobj(leaf) for leaf in leaves):
            raise ValueError(
                f"{name} is for real parameters; optax.contrib.split_real_and_imaginary(rllc(...)) makes"
                " complex ones real"
            )
        hidden = [rule.init(jnp, leaf) for leaf in leaves]
        for arrays in hidden:
            _check_count(name, "hidden arrays", len(arrays), len(numbers))
        return packed(hidden, tree)

    def update(
        g: Tree, units: Trees, hidden: Any, params: Tree | None, extra: dict[str, Any]
    ) -> tuple[Trees, Any]:
        if params is None:
            raise ValueError(f"{name} needs the parameters: call update(updates, state, params)")
        leaves, tree = jax.tree.flatten(g)
        old = _transposed([jax.tree.leaves(m) for m in units], len(leaves)), unpacked(hidden, len(leaves))
        each = zip(leaves, *old, jax.tree.leaves(params), strict=True)
        new = [rule.update(jnp, g, tuple(m), tuple(h), param) for g, m, h, param in each]
        for found, arrays in new:
            _check_count(name, "units", len(found), rule.k)
            _check_count(name, "hidden arrays", len(arrays), len(numbers))
        made = _transposed([found for found, _ in new], rule.k)
        return tuple(jax.tree.unflatten(tree, m) for m in made), packed([arrays for _, arrays in new], tree)

    def metric(hidden: Any, tree: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(tree)
        assert rule.metric is not None
        each = zip(leaves, unpacked(hidden, len(leaves)), strict=True)
        return jax.tree.unflatten(structure, [rule.metric(jnp, x, tuple(h)) for x, h in each])

    return TreeMemory(name, rule.k, rule.native, init, update, None if rule.metric is None else metric)


def _transposed(rows: Sequence[Sequence[Any]], count: int) -> list[list[Any]]:
    """The `count` columns of the rows, also where there is no row."""
    return [[row[i] for row in rows] for i in range(count)]


def _stacked(numbers: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack(numbers) if numbers else jnp.zeros(0)


def _check_count(name: str, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{name} returned {found} {what}, not {expected}: a rule must keep their number")
