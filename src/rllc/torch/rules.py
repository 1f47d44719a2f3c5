"""The two passes for memory that is any rule (`rllc.memory.MemoryRule`): M, H <- U(M, H, g, θ).

Linear memory is written over as it is read. A rule is asked first, for all parameters, and what it returns
is looked at before anything changes: a step needs room for a second copy of units and hidden arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rllc.memory import Linear, MemoryRule, Union
from rllc.torch import shards
from rllc.torch.metrics import checked_dual
from rllc.torch.parts import Part, numbered, real, wide_dtype
from rllc.torch.passes import Array, Passes, Step, symmetric, unit_rounded
from rllc.torch.saved import hidden_names

__all__ = ["begin", "check_hidden", "first_fault", "named", "passes"]

Arrays = tuple[Tensor, ...]


class Work(NamedTuple):
    """A part, and what the rule makes of its units and hidden arrays, each in what it is computed in."""

    rule: MemoryRule
    group: dict[str, Any]
    part: Part
    units: list[Arrays]  # of each parameter
    hidden: list[Arrays]


def passes(rule: MemoryRule, group: dict[str, Any]) -> Passes:
    """The implementation for the parameters of a group."""
    return Passes(partial(_prepare, rule, group), _gram, _advance, _sound)


def begin(rule: MemoryRule, p: Tensor) -> dict[str, Tensor]:
    """The hidden state of a parameter before its first gradient, under its names in the optimizer's state.

    Raises:
        ValueError: what the rule returns is no tuple of arrays, or an array cannot be placed in shards.
    """
    theta = real(shards.local(p)).detach()
    found = rule.init(torch, theta.to(wide_dtype(theta)))
    if not _arrays(found):
        raise ValueError(f"{named(rule)}: init must return a tuple of arrays, got {found!r}")
    # Copies: a rule may begin with the parameter itself.
    return {f"h{j}": shards.placed_as(p, x.clone()) for j, x in enumerate(found, 1)}


def check_hidden(rule: MemoryRule, saved: dict[str, Any], groups: Sequence[dict[str, Any]]) -> None:
    """Refuse a saved state with other hidden arrays than the rule begins with; ValueError."""
    for number, p in numbered(saved, groups):
        state = saved["state"].get(number, {})
        shapes = [tuple(state[name].shape) for name in hidden_names(state)]
        expected = [tuple(x.shape) for x in begin(rule, p).values()]
        if state and shapes != expected:
            raise ValueError(
                f"the saved state has hidden arrays of shapes {shapes} for a parameter of shape"
                f" {tuple(p.shape)}, {named(rule)} has {expected}; build the optimizer it was saved with"
            )


def named(rule: MemoryRule) -> str:
    """A rule's name in errors and saved states: the same in every process."""
    if isinstance(rule, Union):
        return f"union({', '.join(map(named, rule.rules))})"
    if isinstance(rule, Linear):
        return repr(rule.propagator)
    # The repr that every object has would name its address.
    return repr(rule) if type(rule).__repr__ is not object.__repr__ else type(rule).__qualname__


def first_fault(works: Sequence[Work]) -> str:
    """Which rule made what of which parameter, of these works that cannot be stored."""
    for rule, group, part, units, hidden in works:
        for i in range(len(part.params)):
            for what, is_sound, arrays, stored in (
                ("unit", lambda new, old: _fits([new], old.dtype), units[i], [u[i] for u in part.memory]),
                ("hidden array", _stays_finite, hidden[i], part.hidden[i]),
            ):
                for j, (new, old) in enumerate(zip(arrays, stored, strict=True), 1):
                    if not bool(is_sound(new, old)):
                        return (
                            f"{named(rule)} made {what} {j} of {_place(group, part, i)} not finite, or too"
                            f" large for {old.dtype}"
                        )
            if not bool(torch.isfinite(_gram_of(rule, part, i)).all()):
                return f"{named(rule)} has units of {_place(group, part, i)} whose metric is not finite"
    return "a memory rule made what is not finite on another process"


# --- The passes -----------------------------------------------------------------------------------


def _prepare(rule: MemoryRule, group: dict[str, Any], part: Part, plan: None) -> tuple[Work, None]:
    found = [_updated(rule, group, part, i) for i in range(len(part.params))]
    return Work(rule, group, part, [units for units, _ in found], [hidden for _, hidden in found]), None


def _updated(rule: MemoryRule, group: dict[str, Any], part: Part, i: int) -> tuple[Arrays, Arrays]:
    """The units and hidden arrays of parameter i after its gradient, in memory of their own."""
    theta, *units, g = (v.to(wide_dtype(part.params[i])) for v in (part.params[i], *part.vectors(i)))
    hidden = tuple(part.hidden[i])
    g = -g if group["maximize"] else g
    given = (theta, g, *units, *hidden)
    before = _versions(given)
    found = rule.update(torch, g, tuple(units), hidden, theta)
    if _versions(given) != before:
        raise ValueError(
            f"{named(rule)}: update has changed its arguments in place; it must return new arrays,"
            " 0.9 * m + g instead of m.mul_(0.9).add_(g)"
        )
    _check(found, (units, hidden), lambda: f"{named(rule)}, for {_place(group, part, i)}")
    return _apart([x.to(theta.dtype) for x in found[0]], given), _apart(found[1], given)


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    """How often each has been written to; not known of inference tensors, nor while compiling."""
    if torch.compiler.is_compiling():
        return []
    return [t._version for t in tensors if not t.is_inference()]


def _check(found: Any, old: tuple[Sequence[Tensor], Sequence[Tensor]], where: Any) -> None:
    """Refuse what is not as many units and hidden arrays as there were, each of its shape."""
    if not (isinstance(found, tuple) and len(found) == 2 and all(map(_arrays, found))):
        raise ValueError(
            f"{where()}: update must return (units, hidden), two tuples of arrays, got {found!r}"
        )
    for what, new, before in zip(("units", "hidden arrays"), found, old, strict=True):
        shapes, expected = ([tuple(x.shape) for x in arrays] for arrays in (new, before))
        if shapes != expected:
            raise ValueError(f"{where()}: update returned {what} of shapes {shapes}, there were {expected}")
    if any(x.is_complex() for x in found[0]):
        raise ValueError(f"{where()}: update returned a complex unit; parameters come, and units go, as real")
    dtypes, stored = ([x.dtype for x in arrays] for arrays in (found[1], old[1]))
    if dtypes != stored:
        raise ValueError(f"{where()}: update returned hidden arrays of {dtypes}, there were {stored}")


def _apart(arrays: Sequence[Tensor], given: Arrays) -> Arrays:
    """A copy of each that lies where one of the given does: these are written over one after the other."""
    if torch.compiler.is_compiling():
        return tuple(x.clone() for x in arrays)
    taken = {t.untyped_storage().data_ptr() for t in given}
    return tuple(x.clone() if x.untyped_storage().data_ptr() in taken else x for x in arrays)


def _gram(work: Work, basis: Array) -> Tensor:
    """MᵀP⁻¹M, Mᵀg and gᵀg in one, (k+1, k+1) float64; the basis is that of the units as they are."""
    part, size = work.part, len(work.part.memory) + 1
    total = torch.zeros(size, size, dtype=torch.float64, device=part.params[0].device)
    for i in range(len(part.params)):
        total = total + _gram_of(work.rule, part, i)
    return total


def _gram_of(rule: MemoryRule, part: Part, i: int) -> Tensor:
    *units, g = (v.to(wide_dtype(part.params[i])) for v in part.vectors(i))
    duals = units if rule.metric is None else [_dual(rule, unit, tuple(part.hidden[i])) for unit in units]
    left, right = ([x.double() for x in (*vectors, g)] for vectors in (units, duals))
    return symmetric(len(left), lambda a, b: (left[a] * right[b]).sum())


def _dual(rule: MemoryRule, unit: Tensor, hidden: Arrays) -> Tensor:
    assert rule.metric is not None
    found = rule.metric(torch, unit, hidden)
    return checked_dual(found, unit, lambda: f"{named(rule)}: metric must return an array")


def _advance(work: Work, step: Step) -> None:
    """M, H <- what the rule made of them, then θ <- keep θ + M weights; nothing where a step is not ok."""
    part = work.part
    for i, theta in enumerate(part.params):
        moved = theta.to(wide_dtype(theta)) * step.keep
        for j, new in enumerate(work.units[i]):
            unit = _unless_skipped(step, new, part.memory[j][i])
            moved = moved + unit * step.weights[j]
            part.memory[j][i].copy_(unit_rounded(step, part, j, i, unit))
        for old, new in zip(part.hidden[i], work.hidden[i], strict=True):
            old.copy_(_unless_skipped(step, new, old))
        theta.copy_(moved)


def _unless_skipped(step: Step, new: Tensor, old: Tensor) -> Tensor:
    return new if step.ok is None else torch.where(step.ok, new, old)


def _sound(work: Work) -> Tensor:
    """Whether units are finite and within what their dtype holds, and hidden arrays stay finite; 0-d bool."""
    stored: dict[torch.dtype, list[Tensor]] = {}
    ok = torch.ones((), dtype=torch.bool, device=work.part.params[0].device)
    for i in range(len(work.part.params)):
        for x, unit in zip(work.units[i], work.part.memory, strict=True):
            stored.setdefault(unit[i].dtype, []).append(x)
        for new, old in zip(work.hidden[i], work.part.hidden[i], strict=True):
            ok = ok & _stays_finite(new, old)
    for dtype, arrays in stored.items():
        ok = ok & _fits(arrays, dtype)
    return ok


def _stays_finite(new: Tensor, old: Tensor) -> Tensor:
    """Whether what was finite is: what was not from the start, such as a best loss so far, may stay so."""
    return (new.isfinite() | ~old.isfinite()).all()


def _fits(arrays: Sequence[Tensor], dtype: torch.dtype) -> Tensor | bool:
    arrays = [x for x in arrays if x.numel()]
    if not dtype.is_floating_point or not arrays:
        return True
    return (torch.stack(torch._foreach_norm(arrays, torch.inf)) <= torch.finfo(dtype).max).all()


def _arrays(found: Any) -> bool:
    return isinstance(found, tuple | list) and all(isinstance(x, Tensor) for x in found)


def _place(group: dict[str, Any], part: Part, i: int) -> str:
    """A parameter's name, or which of its group it is."""
    owner = part.owners[i]
    number = next(n for n, p in enumerate(group["params"]) if p is owner)
    names = group.get("param_names")
    where = repr(names[number]) if names else f"{number} of its group"
    return f"parameter {where}, of shape {tuple(owner.shape)}"
