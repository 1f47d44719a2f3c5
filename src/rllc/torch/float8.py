"""Units in float8 (e4m3), rounded stochastically, with a float32 scale for each block of at most 256 entries.

A quarter of float32. Blocks are cut within the rows p.shape[0], so that shards of whole rows (FSDP2) have
whole blocks and a checkpoint goes to another number of processes. Scales are the parameter's hidden arrays
"h1", "h2", ..., one for each unit. A parameter of fewer than 4,096 entries, or cut within its rows, has
units in float32.

Rounding is unbiased, so that no unit stalls, but it is coarse: a step adds noise of about 3 % of an entry,
which momentum β adds up to 3 % / √(1 - β²): 7 % for 0.9, 70 % for 0.999.

Containers of torchao are not used: they round to nearest, where β > 0.97 stalls, and cannot be deep-copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rllc.torch import foreach, forloop, rounding, shards
from rllc.torch.forloop import Basis
from rllc.torch.parts import Part, real
from rllc.torch.passes import Step

__all__ = ["DTYPE", "advance", "as_numbers", "begin", "converted", "decoded", "encoded", "gram"]

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max
LEAST_STEP = 2.0**-9  # between two numbers of float8
BLOCK = 256
FEW = 4096


# --- A unit -----------------------------------------------------------------------------------------------


def encoded(unit: Tensor, key: Any = None, start: int = 0) -> tuple[Tensor, Tensor]:
    """Codes (..., as unit) and scales (rows, blocks) of a float32 unit; to nearest if there is no key.

    `start` is the place of the first entry, if this is a piece of a unit.
    """
    x = _blocks(unit)
    top = x.abs().amax(-1)
    scale = torch.where(top > 0, top / LARGEST, 1.0).clamp_min(torch.finfo(torch.float32).tiny)
    x = (x / scale.unsqueeze(-1)).clamp(-LARGEST, LARGEST)
    if key is not None:
        # The power of two below |x|, by its bits.
        power = (x.view(torch.int32) & 0x7F800000).view(torch.float32)
        step = (power / 8).clamp_min(LEAST_STEP)
        x = torch.copysign((x.abs() / step + rounding.uniform(x, key, start)).floor() * step, x)
    return _unblocked(x.to(DTYPE), unit.shape), scale


def decoded(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 unit of these codes and scales."""
    return _unblocked(_blocks(codes.float()) * scale.unsqueeze(-1), codes.shape)


def _blocks(unit: Tensor) -> Tensor:
    """(rows, blocks, entries) of a unit, the end of a row, or of a vector, filled up with zeros."""
    if unit.dim() == 1:
        return functional.pad(unit, (0, -len(unit) % BLOCK)).view(-1, 1, BLOCK)
    blocks, size = _cut(unit.shape)
    columns = math.prod(unit.shape[1:])
    rows = unit.reshape(len(unit), columns)  # none in a process without a part of the parameter
    return functional.pad(rows, (0, blocks * size - columns)).view(len(unit), blocks, size)


def _unblocked(x: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 1:
        return x.reshape(-1)[: shape[0]]
    return x.flatten(1)[:, : math.prod(shape[1:])].reshape(shape)


def _cut(shape: torch.Size) -> tuple[int, int]:
    """Blocks of a row, all of one size, and their size; a vector has rows of one block."""
    columns = math.prod(shape[1:]) if len(shape) > 1 else BLOCK
    blocks = math.ceil(columns / BLOCK)
    return blocks, math.ceil(columns / blocks)


def as_numbers(state: dict[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """Units of the state of a parameter, decoded if they are codes."""
    units = [state[name] for name in names]
    if units[0].dtype != DTYPE:
        return units
    return [decoded(codes, state[scale]) for codes, scale in zip(units, _scales(names), strict=True)]


# --- The state of a parameter -----------------------------------------------------------------------------


def begin(p: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Units of zero under these names, with their scales if the parameter takes any."""
    like = real(p)
    units = {name: torch.zeros_like(like, dtype=torch.float32) for name in names}
    return _stored(like, units) if _takes(like) else units


def converted(
    kept: dict[str, Tensor], p: Tensor, names: Sequence[str], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """The units of a saved state, with their scales if any, as they are in memory of this dtype."""
    like, scales = real(p), _scales(names)
    coded, wanted = kept[names[0]].dtype == DTYPE, dtype == DTYPE and _takes(like)
    if coded and wanted:
        return {name: kept[name].to(p.device) for name in (*names, *scales)}
    units = {name: real(kept[name]) for name in names}
    if coded:
        pairs = [
            (shards.local(kept[name]), shards.local(kept[scale]))
            for name, scale in zip(names, scales, strict=True)
        ]
        units = {name: _placed(like, decoded(*pair)) for name, pair in zip(names, pairs, strict=True)}
    own = torch.float32 if dtype == DTYPE else dtype or like.dtype
    units = {name: unit.to(device=p.device, dtype=own) for name, unit in units.items()}
    return _stored(like, units) if wanted else units


def _stored(like: Tensor, units: dict[str, Tensor]) -> dict[str, Tensor]:
    coded = [encoded(shards.local(unit)) for unit in units.values()]
    found = dict(zip(units, (codes for codes, _ in coded), strict=True))
    found |= dict(zip(_scales(list(units)), (scale for _, scale in coded), strict=True))
    return {name: _placed(like, x) for name, x in found.items()}


def _scales(names: Sequence[str]) -> list[str]:
    return [f"h{j}" for j in range(1, len(names) + 1)]


def _takes(like: Any) -> bool:
    """Whether this parameter's units are in float8: the same answer on every process."""
    whole_rows = not shards.in_shards(like) or (
        like.dim() > 1 and all(x.is_replicate() or x.is_shard(0) for x in like.placements)
    )
    return like.numel() >= FEW and whole_rows


def _placed(like: Any, array: Tensor) -> Tensor:
    """Codes or scales of what of a parameter is here: in shards as the parameter."""
    if not shards.in_shards(like):
        return array
    shape = torch.Size((like.shape[0], *array.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return type(like).from_local(
        array, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride
    )


# --- The passes -------------------------------------------------------------------------------------------


def gram(part: Part, basis: Basis) -> Tensor:
    """Inner products of the vectors [M g] basis, (r, r) float64, the units as they are stored."""
    total = torch.zeros((len(basis[0]),) * 2, dtype=torch.float64, device=part.params[0].device)
    for piece in _pieces(part):
        total = total + forloop.gram(_opened(piece), basis)
    return total


def advance(part: Part, step: Step) -> None:
    """M <- M B + g aᵀ, θ <- keep θ + M weights in float32, and then M is rounded."""
    for piece in _pieces(part):
        opened = _opened(piece)
        forloop.advance(opened, step._replace(draw=None))
        for j, scale in enumerate(piece.hidden[0]):
            key = rounding.key(*step.draw, piece.numbers[0], j) if step.draw else None
            new = encoded(opened.memory[j][0], key, piece.starts[0])
            for old, x in zip((piece.memory[j][0], scale), new, strict=True):
                _keep(old, x, step.ok)


def _pieces(part: Part) -> Iterator[Part]:
    """One parameter after the other; in float8 so many rows of one that they, opened, stay in cache."""
    for i, theta in enumerate(part.params):
        one = part.pick([i])
        if not one.hidden[0]:
            yield one
            continue
        blocks, size = _cut(theta.shape)
        rows, width = (len(theta), 1) if theta.dim() > 1 else (math.ceil(len(theta) / BLOCK), BLOCK)
        room = max(1, foreach.room(theta.device) // (blocks * size))
        for first in range(0, rows, room):
            cut, its = slice(first * width, (first + room) * width), slice(first, first + room)
            yield Part(
                [theta[cut]],
                [one.gradient[0][cut]],
                [[unit[0][cut]] for unit in one.memory],
                one.numbers,
                [first * blocks * size],
                [[scale[its] for scale in one.hidden[0]]],
            )


def _opened(piece: Part) -> Part:
    """A piece with its units as numbers, in memory of their own if they are in float8."""
    if not piece.hidden[0]:
        return piece
    pairs = zip(piece.memory, piece.hidden[0], strict=True)
    return piece._replace(memory=[[decoded(unit[0], scale)] for unit, scale in pairs])


def _keep(old: Tensor, new: Tensor, ok: Tensor | None) -> None:
    """The new array, or the old one if the step is skipped on the device."""
    if ok is None:
        old.copy_(new)
        return
    kind = torch.uint8 if old.dtype == DTYPE else old.dtype  # float8 cannot be selected from
    old.view(kind).copy_(torch.where(ok, new.view(kind), old.view(kind)))
