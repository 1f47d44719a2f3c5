"""The two passes over the parameters, and who makes them.

1. `gram`: the inner products of the units and the gradient, in float64: everything the law needs.
2. `advance`: memory and parameters, M <- M B + g aᵀ and then θ <- keep θ + M weights.

    forloop    one tensor and one operation at a time: the plain text; what torch.compile sees
    foreach    one call for all tensors of a unit, in pieces that bound the extra memory
    fused_cpu  numba kernels that read and write everything once (`pip install "rllc[fast]"`)
    fused_cuda Triton kernels that do; the default on a GPU
    float8     the plain text around units in float8, one tensor at a time
    rules      M, H <- U(M, H, g, θ) of any memory rule, one tensor at a time

All but the last two, which are for other memory, agree: sums to float64 rounding; memory and parameters
to two units in the last place a step. What makes a pass over shards complete is a sum of what `gram` returns
(`rllc.torch.shards.total`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rllc.torch import rounding
from rllc.torch.parts import Part

__all__ = [
    "Array",
    "Passes",
    "Step",
    "held_back",
    "symmetric",
    "unit_rounded",
    "upper_triangle",
    "when_skipped",
]

Array = NDArray[np.float64]


class Step(NamedTuple):
    """The numbers of the second pass: as floats, or as 0-d tensors on the device of the parameters."""

    B: Any  # (k, k), indexed B[i][j]
    a: Sequence[float]  # k
    keep: Any
    weights: Any  # k
    structure: Sequence[Sequence[bool]]  # (k, k): where B may be other than zero
    # On the device a step to be skipped is one with B = I, keep = 1, weights = 0, and this False: its
    # gradient counts as zero. None where the host has seen that it need not be skipped.
    ok: Tensor | None = None
    # (seed, count) of stochastic rounding, None for rounding to nearest.
    draw: tuple[Any, Any] | None = None
    row: Tensor | None = None  # B, a, weights and keep once more, one after the other, if they are so already


class Passes(NamedTuple):
    """One implementation."""

    # (part, plan) -> (work, plan): what both passes want to know of a part, once a step. The plan is what the
    # next step gets to make it quicker; it is checked, and holds no gradient.
    prepare: Callable[[Part, Any], tuple[Any, Any]]
    gram: Callable[[Any, Any], Tensor]  # -> (r, r) float64 sums of [M g] basis, basis (k+1, r)
    advance: Callable[[Any, Step], None]
    # Whether all that a memory rule wants to store can be; of linear memory the sums know it.
    sound: Callable[[Any], Tensor] | None = None
    # The law on the host by a kernel (`rllc.torch.fused_law_cpu`), where these passes are kernels too.
    learn: Callable[..., bool | None] | None = None
    # All of a step in one call (`rllc.torch.fused_law_cpu`), where there is no more than one share.
    whole: Callable[..., bool] | None = None


def unit_rounded(step: Step, part: Part, j: int, i: int, value: Tensor) -> Tensor:
    """What is stored of unit j of parameter i: rounded stochastically if asked, else left to copy_."""
    if step.draw is None:
        return value
    key = rounding.key(*step.draw, part.numbers[i], j)
    return rounding.stochastic(value.float(), key, part.starts[i])


def symmetric(size: int, product: Callable[[int, int], Tensor]) -> Tensor:
    """(size, size) of what product(i, j) is for i <= j."""
    found = {(i, j): product(i, j) for i, j in upper_triangle(size)}
    places = range(size)
    return torch.stack([torch.stack([found[min(i, j), max(i, j)] for j in places]) for i in places])


def upper_triangle(size: int) -> list[tuple[int, int]]:
    """The pairs (i, j), i <= j < size, row by row."""
    return [(i, j) for i in range(size) for j in range(i, size)]


def when_skipped(structure: Sequence[Sequence[bool]]) -> tuple[tuple[bool, ...], ...]:
    """The structure of a step that may be skipped: B is then the identity."""
    return tuple(tuple(found or i == j for j, found in enumerate(row)) for i, row in enumerate(structure))


def held_back(step: Step, gradient: list[Tensor]) -> list[Tensor]:
    """The gradient, or zeros if the step is skipped on the device: by selection, since NaN times 0 is NaN."""
    return gradient if step.ok is None else [torch.where(step.ok, g, 0) for g in gradient]
