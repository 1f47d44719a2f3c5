"""What a step need not find out again: that all tensors are those of the last step, where they were then."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rllc.torch.parts import Part, Unit, one_layout

__all__ = ["Kind", "Plan", "held", "places", "places_of", "planned"]

Kind = tuple[torch.dtype, torch.dtype, torch.dtype]  # of units, gradient, parameters


class Plan(NamedTuple):
    """Of a part whose parameters are all of one kind and gapless, in one layout with units and gradient."""

    kind: Kind
    tensors: Unit  # units and parameters
    places: list[list[int]]  # their addresses: their storage may be exchanged
    shapes: list[torch.Size]  # of all
    rows: bool  # whether all are contiguous
    made: Any  # what an implementation has made of it


def planned(
    part: Part, batches: Sequence[Any], make: Callable[[Any], Any] = lambda batch: None
) -> Plan | None:
    """For the next step, if all of the part has come into one batch with a kind; `make` of that batch."""
    [only] = batches if len(batches) == 1 else [None]
    if only is None or only.kind is None or len(only.part.params) < len(part.params):
        return None
    kept = _kept(part)
    rows = all(map(Tensor.is_contiguous, kept))
    return Plan(only.kind, kept, places_of(part), _shapes(kept), rows, make(only))


def held(plan: Plan | None, part: Part) -> Plan | None:
    """The plan, if there is one and it holds for this part; else None, once shapes and devices fit.

    Raises:
        RuntimeError: memory or a gradient has another shape than its parameter, or is on another device, and
            kernels go by addresses.
    """
    if plan is not None and _holds(plan, part):
        return plan
    _check_places(part)
    return None


def _holds(plan: Plan, part: Part) -> bool:
    """Whether all are the tensors of the plan, where they were then, with gradients of the plan's kind."""
    return (
        len(plan.tensors) == len(tensors := _kept(part))
        and all(map(operator.is_, plan.tensors, tensors))
        and {g.dtype for g in part.gradient} == {plan.kind[1]}
        and _shapes(tensors) == plan.shapes
        and _shapes(part.gradient) == plan.shapes[-len(part.gradient) :]
        and not any(map(Tensor.is_neg, part.gradient))
        and _in_one_layout(part, plan.rows)
        and places_of(part) == plan.places
    )


def _check_places(part: Part) -> None:
    for i, theta in enumerate(part.params):
        for t in part.vectors(i):
            if t.device != theta.device:
                raise RuntimeError(
                    f"a parameter on {theta.device} has memory or a gradient on {t.device}: it was moved;"
                    " opt.load_state_dict(opt.state_dict()) takes memory along"
                )
            if t.shape != theta.shape:
                raise RuntimeError(
                    f"a parameter of shape {tuple(theta.shape)} has memory or a gradient of shape"
                    f" {tuple(t.shape)}: it was resized, or its state is another's; make a new optimizer, or"
                    " resize all of opt.state[p]"
                )


def places(unit: Sequence[Tensor]) -> list[int]:
    """Where the entries begin in memory."""
    return [t.data_ptr() for t in unit]


def places_of(part: Part) -> list[list[int]]:
    """Of all units, and of the parameters."""
    return [places(unit) for unit in (*part.memory, part.params)]


def _kept(part: Part) -> Unit:
    return list(itertools.chain(*part.memory, part.params))


def _shapes(unit: Unit) -> list[torch.Size]:
    return [t.shape for t in unit]


def _in_one_layout(part: Part, rows: bool) -> bool:
    """Memory is where it was, and as it was: contiguous, or not all of it."""
    if rows:
        return all(map(Tensor.is_contiguous, part.params + part.gradient))
    return all(one_layout([p, *part.vectors(i)]) for i, p in enumerate(part.params))
