"""The two passes with one call for all tensors of a unit.

Both go through the parameters in pieces: on the CPU a piece stays in cache from one call to the next, and
everywhere it bounds the extra memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rllc.torch.parts import Part, Unit, pieces, wide_dtype
from rllc.torch.passes import Array, Step, held_back, unit_rounded
from rllc.torch.sent import sent

__all__ = ["advance", "gram", "room", "rows_at"]

# Entries of a piece. On the CPU k + 2 rows of it fit into a second-level cache; an accelerator wants few
# large calls.
ROOM = {"cpu": 1 << 17}
ROOM_ELSEWHERE = 1 << 24


def gram(part: Part, basis: Array) -> Tensor:
    """Inner products of the vectors [M g] basis, (r, r) float64; what is not finite shows as such."""
    device = part.params[0].device
    combine = sent(device, basis)
    single = torch.zeros((basis.shape[0],) * 2, dtype=torch.float64, device=device)
    double = torch.zeros((basis.shape[1],) * 2, dtype=torch.float64, device=device)
    # One piece after the other in one place: to ask for new memory takes longer than to fill it.
    place = torch.empty(0, dtype=torch.float64, device=device)
    for piece in pieces(part, room(device)):
        rows = _gathered(piece, place)
        if wide_dtype(piece.params[0]) == torch.float64:
            # Units combined before they are squared lose half the digits of units combined after.
            double += _scaled_gram(combine.T @ rows)
        else:
            single += rows @ rows.T
    return double + combine.T @ single @ combine


def _gathered(piece: Part, place: Tensor) -> Tensor:
    """(k+1, entries) float64: matching rows of all units and the gradient, at a place that grows for them."""
    units = [*piece.memory, piece.gradient]
    sizes = [t.numel() for t in piece.params]
    rows = rows_at(place, len(units), sum(sizes))
    for row, unit in zip(rows, units, strict=True):
        torch._foreach_copy_(row.split(sizes), [t.reshape(-1) for t in unit])
    return rows


def rows_at(place: Tensor, count: int, entries: int) -> Tensor:
    """(count, entries) numbers at a place that grows for them."""
    if count * entries > place.numel():
        place.resize_(count * entries)
    return place[: count * entries].view(count, -1)


def _scaled_gram(rows: Tensor) -> Tensor:
    """Squares of float64 may overflow: they are taken of rows scaled by their largest entry."""
    size = rows.abs().amax(1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    rows = rows / size
    return (rows @ rows.T) * (size @ size.T)


def advance(part: Part, step: Step) -> None:
    """M <- M B + g aᵀ, all units from the old ones, then θ <- keep θ + M weights."""
    for piece in pieces(part, room(part.params[0].device)):
        memory, params = [_wide(unit, piece) for unit in piece.memory], _wide(piece.params, piece)
        _remember(memory, held_back(step, _wide(piece.gradient, piece)), step)
        if isinstance(step.keep, Tensor) or step.keep != 1:
            _scale(params, step.keep)
        for j, unit in enumerate(memory):
            _add(params, unit, step.weights[j])
        for j, (stored, unit) in enumerate(zip(piece.memory, memory, strict=True)):
            if stored is not unit:
                rounded = [unit_rounded(step, piece, j, i, t) for i, t in enumerate(unit)]
                torch._foreach_copy_(stored, rounded)
        if piece.params is not params:
            torch._foreach_copy_(piece.params, params)


def _remember(memory: Sequence[Unit], gradient: Unit, step: Step) -> None:
    """M <- M B + g aᵀ in place; last unit first, because in a Jordan block it needs the old one before it."""
    # Where B is not upper triangular, a unit that an earlier one needs is copied before it changes.
    old = [[t.clone() for t in m] if any(step.structure[i][:i]) else m for i, m in enumerate(memory)]
    for j in reversed(range(len(memory))):
        _scale(memory[j], step.B[j][j] if step.structure[j][j] else 0.0)
        for i in range(len(memory)):
            if i != j and step.structure[i][j]:
                _add(memory[j], old[i], step.B[i][j])
        if step.a[j]:
            _add(memory[j], gradient, step.a[j])


def _scale(unit: Unit, factor: Any) -> None:
    # A float, because torch takes NumPy's for a tensor and converts it for each of the unit's.
    torch._foreach_mul_(unit, factor.to(unit[0].dtype) if isinstance(factor, Tensor) else float(factor))


def _add(unit: Unit, other: Unit, factor: Any) -> None:
    """unit += factor other."""
    if isinstance(factor, Tensor):
        torch._foreach_add_(unit, torch._foreach_mul(other, factor.to(unit[0].dtype)))
    else:
        torch._foreach_add_(unit, other, alpha=float(factor))


def _wide(unit: Unit, piece: Part) -> Unit:
    """The unit itself, or a copy in what the parameters are computed in."""
    dtype = wide_dtype(piece.params[0])
    return unit if unit[0].dtype == dtype else [t.to(dtype) for t in unit]


def room(device: torch.device) -> int:
    """How many entries of a parameter are taken at a time."""
    return ROOM.get(device.type, ROOM_ELSEWHERE)
