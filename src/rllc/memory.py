"""What a memory is: any rule that turns gradients into k memory units (arXiv 2402.15262, Definition 3.1).

    M, H <- U(M, H, g, θ)        H is hidden state, apart from the units; θ is where g was taken

A rule is written once, for one array of parameters, in the array namespace `xp` it is given (numpy, torch or
jax.numpy), and works in `rllc.torch`, in `rllc.optax` and in `rllc.reference`. Sign momentum, for example:

    class SignMomentum(MemoryRule):
        def init(self, xp, param):
            return (xp.zeros_like(param),)

        def update(self, xp, g, units, hidden, param):
            m = 0.9 * hidden[0] + 0.1 * g
            return (xp.sign(m),), (m,)

        def metric(self, xp, unit, hidden):
            return xp.abs(hidden[0]) * unit

    linear("M(0.9) + M(0)")      linear memory in the paper's notation
    Adam()                       Adam's direction P m, with Adam's metric P⁻¹
    Deviation()                  θ - θ̄, θ̄ an average of the weights without a horizon
    AdaptiveMomentum()           M(β) with a β that learns
    union("M(0.9)", Adam())      the units of all of them

A unit P m of a preconditioned optimizer is not a gradient but a direction, and the law is corrected in that
optimizer's own metric: x = (MᵀP⁻¹M)⁺ Mᵀg, the units' best combination to stand for P g. It does not change
when the loss is rescaled, as (MᵀM)⁺Mᵀg would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from rllc.checks import check_nonnegative, check_share, is_number, whole_number
from rllc.law import root
from rllc.notation import as_propagator
from rllc.propagator import Propagator

__all__ = [
    "LAST_GRADIENT",
    "Adam",
    "AdaptiveMomentum",
    "Deviation",
    "Linear",
    "MemoryRule",
    "Union",
    "linear",
    "union",
    "yardsticks",
    "yardsticks_of",
]

Array = Any  # of numpy, torch or jax.numpy: the caller's
Arrays = tuple[Array, ...]

# Of a momentum that learns: float32 tells its β from 0 and 1.
LEAST_BETA = 1e-4
LARGEST_LOGIT = math.log(1 / LEAST_BETA - 1)


class MemoryRule:
    """A memory update rule: derive from it, and write `update`.

    All arrays have the shape of one parameter, but hidden ones may have any; they are at least float32.
    A rule does not change its arguments: it returns new arrays. Units begin as zeros.

    Attributes:
        k: the number of units.
        native: whether units are as long as gradients are, as those of linear memory. The coefficient of
            any other unit is measured by its length (`yardsticks`), unless the rule has a metric.
        metric: None, or a method (xp, unit, hidden) -> P⁻¹ unit, symmetric and positive: the metric in
            which units are directions of steepest descent, from the hidden state they were made with.
    """

    k: int = 1
    native: bool = False
    metric: Callable[[ModuleType, Array, Arrays], Array] | None = None

    def init(self, xp: ModuleType, param: Array) -> Arrays:
        """The hidden state before the first gradient: as many arrays, of any shapes, for every parameter.

        In a union and in JAX it is also asked of np.zeros((1, 1, 1)), to know how many they are.
        """
        return ()

    def update(
        self, xp: ModuleType, g: Array, units: Arrays, hidden: Arrays, param: Array
    ) -> tuple[Arrays, Arrays]:
        """The k units and the hidden state after the gradient g at `param`, all from the old values."""
        raise NotImplementedError(f"{type(self).__name__} has no update(xp, g, units, hidden, param)")


@dataclass(frozen=True)
class Linear(MemoryRule):
    """M <- M B + g aᵀ: linear memory."""

    propagator: Propagator
    native = True
    _weights: list[list[float]] = field(init=False, repr=False, compare=False)  # (k, k+1) of units and g

    def __post_init__(self) -> None:
        object.__setattr__(self, "propagator", as_propagator(self.propagator))
        # Worked out now, since torch.compile can read numbers of NumPy's but not see them come about.
        weights = np.vstack([self.propagator.B, self.propagator.a]).T.tolist()
        object.__setattr__(self, "_weights", weights)

    @property
    def k(self) -> int:  # type: ignore[override]
        return self.propagator.k

    def update(
        self, xp: ModuleType, g: Array, units: Arrays, hidden: Arrays, param: Array
    ) -> tuple[Arrays, Arrays]:
        sources = (*units, g)
        return tuple(_weighted_sum(row, sources) for row in self._weights), ()


@dataclass(frozen=True)
class Adam(MemoryRule):
    """Adam's direction u = P m̂ with P = 1/(√v̂ + eps) (arXiv 1412.6980), and its metric P⁻¹.

    The hidden state is m, v and the number of gradients so far.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name, value in (("b1", self.b1), ("b2", self.b2)):
            check_share(name, value)
        check_nonnegative("eps", self.eps)

    def init(self, xp: ModuleType, param: Array) -> Arrays:
        return xp.zeros_like(param), xp.zeros_like(param), xp.sum(xp.zeros_like(param))

    def update(
        self, xp: ModuleType, g: Array, units: Arrays, hidden: Arrays, param: Array
    ) -> tuple[Arrays, Arrays]:
        m, v, t = hidden
        m = self.b1 * m + (1 - self.b1) * g
        v = self.b2 * v + (1 - self.b2) * (g * g)
        hidden = m, v, t + 1
        size = self._size(xp, hidden)
        direction = m / (1 - self.b1 ** (t + 1)) / xp.where(size == 0, xp.ones_like(size), size)
        return (direction,), hidden

    def metric(self, xp: ModuleType, unit: Array, hidden: Arrays) -> Array:
        return self._size(xp, hidden) * unit

    def _size(self, xp: ModuleType, hidden: Arrays) -> Array:
        """√v̂ + eps: the diagonal of P⁻¹."""
        _, v, t = hidden
        return root(xp, v / (1 - self.b2 ** xp.where(t > 0, t, xp.ones_like(t)))) + self.eps


@dataclass(frozen=True)
class Deviation(MemoryRule):
    """θ - θ̄, with θ̄ the average of the weights so far, the t-th of them counting about as t^power.

    Its correction g·(θ - θ̄) asks whether the step should lead back to the average.
    """

    power: float = 9.0

    def __post_init__(self) -> None:
        check_nonnegative("power", self.power)

    def init(self, xp: ModuleType, param: Array) -> Arrays:
        return xp.zeros_like(param), xp.sum(xp.zeros_like(param))

    def update(
        self, xp: ModuleType, g: Array, units: Arrays, hidden: Arrays, param: Array
    ) -> tuple[Arrays, Arrays]:
        average, t = hidden
        average = average + (self.power + 1) / (t + 1 + self.power) * (param - average)
        return (param - average,), (average, t + 1)


@dataclass(frozen=True)
class AdaptiveMomentum(MemoryRule):
    """m <- β m + g, M(β) with a β = 1/(1 + e^-b) that descends its hypergradient, begun at `beta`.

    n = dm/dβ obeys n <- β n + m: it is the second unit of M_2(β), as the derivative of a unit by its
    eigenvalue is the next unit of its Jordan block. A step along -m, with a positive law, moves θ by -n for
    each unit of β, and the loss by -gᵀn, so that b <- b + rate gᵀn / (|g| |n|).

    There is one β for each array of parameters, in shards one for each shard: unlike the other rules it is
    not elementwise. The hidden state is n and b; β stays between 1e-4 and 1 - 1e-4.
    """

    beta: float = 0.9
    rate: float = 0.01
    native = True

    def __post_init__(self) -> None:
        if not is_number(self.beta, lambda x: LEAST_BETA <= x <= 1 - LEAST_BETA):
            raise ValueError(f"beta must be in [{LEAST_BETA}, 1 - {LEAST_BETA}], got {self.beta!r}")
        check_nonnegative("rate", self.rate)

    def init(self, xp: ModuleType, param: Array) -> Arrays:
        return xp.zeros_like(param), xp.sum(xp.zeros_like(param)) + math.log(self.beta / (1 - self.beta))

    def update(
        self, xp: ModuleType, g: Array, units: Arrays, hidden: Arrays, param: Array
    ) -> tuple[Arrays, Arrays]:
        (m,), (n, b) = units, hidden
        cosine = xp.sum(_direction(xp, g) * _direction(xp, n))
        b = xp.clip(b + self.rate * cosine, -LARGEST_LOGIT, LARGEST_LOGIT)
        beta = 1 / (1 + xp.exp(-b))
        return (beta * m + g,), (beta * n + m, b)


@dataclass(frozen=True)
class Union(MemoryRule):
    """The units of several rules, one after the other: the direct sum. The first metric holds for all."""

    rules: tuple[MemoryRule, ...]
    _units: list[slice] = field(init=False, repr=False, compare=False)  # of each rule
    _hidden: list[slice] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError('a union needs at least one rule, such as linear("M(0.9)")')
        object.__setattr__(self, "_units", _slices([rule.k for rule in self.rules]))
        object.__setattr__(self, "_hidden", _slices([len(hidden_of_probe(rule)) for rule in self.rules]))

    @property
    def k(self) -> int:  # type: ignore[override]
        return sum(rule.k for rule in self.rules)

    def init(self, xp: ModuleType, param: Array) -> Arrays:
        found = [rule.init(xp, param) for rule in self.rules]
        if _slices([len(arrays) for arrays in found]) != self._hidden:
            raise ValueError(
                f"a rule of {self.rules} hides another number of arrays of a parameter of shape"
                f" {tuple(param.shape)} than of others; let it hide an empty array instead of none"
            )
        return tuple(array for arrays in found for array in arrays)

    def update(
        self, xp: ModuleType, g: Array, units: Arrays, hidden: Arrays, param: Array
    ) -> tuple[Arrays, Arrays]:
        updated = [
            rule.update(xp, g, units[own], hidden[its], param)
            for rule, own, its in zip(self.rules, self._units, self._hidden, strict=True)
        ]
        return tuple(u for new, _ in updated for u in new), tuple(h for _, new in updated for h in new)

    @property
    def metric(self) -> Callable[[ModuleType, Array, Arrays], Array] | None:  # type: ignore[override]
        if self.owner is None:
            return None
        rule, its = self.rules[self.owner], self._hidden[self.owner]
        assert rule.metric is not None
        of_owner = rule.metric
        return lambda xp, unit, hidden: of_owner(xp, unit, hidden[its])

    @property
    def owner(self) -> int | None:
        """Which rule's metric it is."""
        return _owner(self.rules)


def linear(memory: str | Propagator) -> Linear:
    """Linear memory as a rule, from the paper's notation such as "M(0.9) + M_2(0.6)" or a Propagator.

    Raises:
        ValueError: the notation breaks, with the place.
    """
    return Linear(as_propagator(memory))


def union(*rules: str | Propagator | MemoryRule) -> Union:
    """The units of all rules in one memory; a text or a Propagator is linear memory.

    Raises:
        ValueError: there is none, or one is no memory rule.
    """
    return Union(tuple(_flat(rules)))


# What a unit's coefficient can be measured against, beside the place of another unit.
LAST_GRADIENT = -1


def yardsticks(rule: MemoryRule) -> tuple[int | None, ...]:
    """For each of the k units, what its coefficient x_j is measured against, so that it is a pure number.

    None: nothing, it is one already, as the unit is native or the metric's own. Otherwise x_j counts as
    x_j |m_j| / |m_i|, with m_i the unit whose place is given, or the last gradient for LAST_GRADIENT.
    """
    return yardsticks_of(rule.rules if isinstance(rule, Union) else (rule,))


def yardsticks_of(members: Sequence[Any]) -> tuple[int | None, ...]:
    """`yardsticks` of the members of a union, of each its k, native and metric."""
    places = _slices([member.k for member in members])
    owner = _owner(members)
    if owner is None:
        return tuple(None if member.native else LAST_GRADIENT for member in members for _ in range(member.k))
    own = places[owner]
    return tuple(None if own.start <= j < own.stop else own.start for j in range(places[-1].stop))


def _owner(members: Sequence[Any]) -> int | None:
    """Whose metric it is: the first that has one."""
    return next((i for i, member in enumerate(members) if member.metric is not None), None)


def _flat(rules: Iterable[str | Propagator | MemoryRule]) -> Iterable[MemoryRule]:
    for rule in rules:
        if isinstance(rule, Union):
            yield from rule.rules
        elif isinstance(rule, MemoryRule):
            yield rule
        elif isinstance(rule, str | Propagator):
            yield linear(rule)
        else:
            raise ValueError(
                f'not a memory rule: {rule!r}; give notation such as "M(0.9)", a Propagator, or an object'
                " of a class derived from rllc.memory.MemoryRule"
            )


def check_units(rule: MemoryRule) -> MemoryRule:
    """The rule itself, if it has units; ValueError else."""
    whole_number(f"k of {rule!r}", rule.k, least=1)
    return rule


def hidden_of_probe(rule: MemoryRule) -> Arrays:
    """What a rule hides of np.zeros((1, 1, 1)): it tells how many arrays, and which of them are numbers."""
    try:
        return rule.init(np, np.zeros((1, 1, 1)))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{rule!r}: in a union and in JAX, init must also take np.zeros((1, 1, 1)), which says how many"
            f" arrays it hides; it failed with: {error}"
        ) from error


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _direction(xp: ModuleType, x: Array) -> Array:
    """x / |x|, zero for zero. First divided by Σ|x|, as the squares of its numbers may be none of float32."""
    x = x / _or_one(xp, xp.sum(xp.abs(x)))
    return x / _or_one(xp, root(xp, xp.sum(x * x)))


def _or_one(xp: ModuleType, length: Array) -> Array:
    return xp.where(length > 0, length, xp.ones_like(length))


def _weighted_sum(weights: Sequence[float], arrays: Arrays) -> Array:
    terms = [w * x for w, x in zip(weights, arrays, strict=True) if w]
    return sum(terms[1:], start=terms[0]) if terms else 0 * arrays[0]
