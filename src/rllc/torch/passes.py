"""The two passes over the parameters: the inner products, then memory and step.

A unit is a list of tensors, one for each parameter; memory is a list of k units. Half precision is
computed in float32 and rounded once, when it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rllc.propagator import Propagator

Array = NDArray[np.float64]
Unit = list[Tensor]

# Tensors are gathered into one matrix of at most this many columns for the sums: few enough to stay
# in cache and to bound the extra memory, many enough that small networks need one call.
GATHER = 1 << 18

# Squares of float32 numbers whose sum lies between these have neither overflowed nor lost digits.
SAFE_SQUARES = (1e-24, 1e34)


def gram(memory: Sequence[Unit], gradient: Unit, basis: Array) -> Array:
    """Inner products of the vectors [M g] basis, an (r, r) float64 array: one pass over memory and gradient.

    `basis` is (k+1, r). Entries that are not finite in the input show as such in the result.
    """
    combine = torch.from_numpy(basis.T)
    rows = (combine.to(rows) @ rows for rows in _gathered([*memory, gradient]))
    return sum(map(_gram_of_rows, rows), start=np.zeros((basis.shape[1],) * 2))


def machine_epsilon(unit: Unit) -> float:
    """Of the dtype that the sums of a unit are computed in: the coarsest of its tensors, at least float32."""
    return max(
        torch.finfo(torch.promote_types(dtype, torch.float32)).eps for dtype in {t.dtype for t in unit}
    )


def _gathered(units: Sequence[Unit]) -> Iterator[Tensor]:
    """Matrices whose rows are matching pieces of the units, together covering all tensors."""
    for piece in _pieces(units[0]):
        columns = sum(stop - start for _, start, stop in piece)
        first = units[0][piece[0][0]]
        dtype = torch.promote_types(first.dtype, torch.float32)
        rows = torch.empty(len(units), columns, dtype=dtype, device=first.device)
        for row, unit in zip(rows, units, strict=True):
            torch.cat([unit[i].reshape(-1)[start:stop] for i, start, stop in piece], out=row)
        yield rows


def _pieces(unit: Unit) -> Iterator[list[tuple[int, int, int]]]:
    """Lists of (tensor, start, stop) of at most GATHER entries of one device and dtype."""
    piece: list[tuple[int, int, int]] = []
    room = GATHER
    for i, tensor in enumerate(unit):
        for start in range(0, tensor.numel(), GATHER):
            size = min(tensor.numel() - start, GATHER)
            if piece and (size > room or _kind(tensor) != _kind(unit[piece[-1][0]])):
                yield piece
                piece, room = [], GATHER
            piece.append((i, start, start + size))
            room -= size
    if piece:
        yield piece


def _kind(tensor: Tensor) -> tuple[torch.device, torch.dtype]:
    return tensor.device, tensor.dtype


def _gram_of_rows(rows: Tensor) -> Array:
    products = (rows @ rows.T).double().cpu().numpy()
    squares = np.diag(products)
    if ((squares > SAFE_SQUARES[0]) & (squares < SAFE_SQUARES[1])).all():
        return products
    # Scale every row by its largest entry before squaring, and take the scale out in float64.
    scale = rows.abs().amax(1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1)
    scaled = rows / scale
    size = scale[:, 0].double().cpu().numpy()
    return (scaled @ scaled.T).double().cpu().numpy() * np.outer(size, size)


class Step(NamedTuple):
    """θ <- keep θ + M weights."""

    keep: float
    weights: Array  # (k,)


def advance_one(p: Propagator, memory: Sequence[Unit], gradient: Unit, params: Unit, step: Step) -> None:
    """M <- M B + g aᵀ, then θ <- keep θ + M weights, tensor by tensor: the plain text of the algorithm."""
    for i, theta in enumerate(params):
        dtype = torch.promote_types(theta.dtype, torch.float32)
        B, a, s = (torch.tensor(x, dtype=dtype, device=theta.device) for x in (p.B, p.a, step.weights))
        M = torch.stack([unit[i].to(dtype) for unit in memory], dim=-1)
        M = M @ B + gradient[i].to(dtype)[..., None] * a
        for j, unit in enumerate(memory):
            unit[i].copy_(M[..., j])
        theta.copy_(step.keep * theta.to(dtype) + M @ s)


def advance_foreach(p: Propagator, memory: Sequence[Unit], gradient: Unit, params: Unit, step: Step) -> None:
    """The same as `advance_one`, with one call for all tensors of a unit."""
    wide_memory, wide_params = [_wide(unit) for unit in memory], _wide(params)
    _remember(p, wide_memory, _wide(gradient))
    if step.keep != 1:
        torch._foreach_mul_(wide_params, step.keep)
    for weight, unit in zip(step.weights.tolist(), wide_memory, strict=True):
        torch._foreach_add_(wide_params, unit, alpha=weight)
    for stored, wide in zip([*memory, params], [*wide_memory, wide_params], strict=True):
        if stored is not wide:
            torch._foreach_copy_(stored, wide)


def _remember(p: Propagator, memory: Sequence[Unit], gradient: Unit) -> None:
    """M <- M B + g aᵀ in place; last unit first, because in a Jordan block it needs the old one before it."""
    # Where B is not upper triangular, a unit that an earlier one needs is copied before it changes.
    old = [[t.clone() for t in m] if p.B[i, :i].any() else m for i, m in enumerate(memory)]
    for j in reversed(range(p.k)):
        unit = memory[j]
        torch._foreach_mul_(unit, float(p.B[j, j]))
        for i in np.flatnonzero(p.B[:, j]):
            if i != j:
                torch._foreach_add_(unit, old[i], alpha=float(p.B[i, j]))
        if p.a[j]:
            torch._foreach_add_(unit, gradient, alpha=float(p.a[j]))


def _wide(unit: Unit) -> Unit:
    """The unit itself, or a copy in float32 if it holds half precision."""
    if any(t.dtype in (torch.bfloat16, torch.float16) for t in unit):
        return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in unit]
    return unit
