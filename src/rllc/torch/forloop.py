"""The two passes tensor by tensor, in elementwise operations: the plain text of the algorithm.

torch.compile sees this text and makes one kernel of each tensor's part of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from rllc.torch.parts import Part, wide_dtype
from rllc.torch.passes import Array, Step, held_back, symmetric, unit_rounded

__all__ = ["Basis", "advance", "gram"]


# A basis is read as basis[i][j]: under torch.compile it is tuples.
Basis = Array | Sequence[Sequence[float]]


def gram(part: Part, basis: Basis) -> Tensor:
    """Inner products of the vectors [M g] basis, (r, r) float64; what is not finite shows as such."""
    size = len(basis[0])
    total = torch.zeros(size, size, dtype=torch.float64, device=part.params[0].device)
    for i, theta in enumerate(part.params):
        if theta.numel():
            total = total + _gram_of([v.double() for v in part.vectors(i)], basis, theta.dtype)
    return total


def _gram_of(vectors: list[Tensor], basis: Basis, dtype: torch.dtype) -> Tensor:
    # Units combined before they are squared lose half the digits of units combined after.
    rows = [
        reduce(add, [float(row[j]) * v for row, v in zip(basis, vectors, strict=True) if row[j]])
        for j in range(len(basis[0]))
    ]
    if dtype != torch.float64:
        return _products(rows)
    # Squares of float64 may overflow: they are taken of rows scaled by their largest entry.
    size = torch.stack([row.abs().amax() for row in rows])
    size = torch.where(size > 0, size, 1.0)
    return _products([row / s for row, s in zip(rows, size, strict=True)]) * torch.outer(size, size)


def _products(rows: list[Tensor]) -> Tensor:
    return symmetric(len(rows), lambda i, j: (rows[i] * rows[j]).sum())


def advance(part: Part, step: Step) -> None:
    """M <- M B + g aᵀ, all units from the old ones, then θ <- keep θ + M weights."""
    for i, theta in enumerate(part.params):
        *memory, gradient = (v.to(wide_dtype(theta)) for v in part.vectors(i))
        [gradient] = held_back(step, [gradient])
        moved = theta.to(wide_dtype(theta)) * step.keep
        for j, new in enumerate([_unit(step, memory, gradient, j) for j in range(len(memory))]):
            part.memory[j][i].copy_(unit_rounded(step, part, j, i, new))
            moved = moved + new * step.weights[j]
        theta.copy_(moved)


def _unit(step: Step, memory: list[Tensor], gradient: Tensor, j: int) -> Tensor:
    terms = [m * step.B[i][j] for i, m in enumerate(memory) if step.structure[i][j]]
    if step.a[j]:
        terms.append(gradient * step.a[j])
    return reduce(add, terms) if terms else torch.zeros_like(gradient)
