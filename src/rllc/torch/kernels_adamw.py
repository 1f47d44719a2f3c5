"""numba kernels of RLLCAdamW's two passes, in the tables of `rllc.torch.fused_cpu`.

The rows of a table are m, v and, where there is one, the average; then the gradient and the parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rllc.torch import bias, fused_cpu
from rllc.torch.fused_cpu import Batch
from rllc.torch.kernels_cpu import FLAGS, added, view
from rllc.torch.parts import Part

__all__ = ["advance", "count", "counters", "prepare", "scales", "sums"]

Array = NDArray[np.float64]

# As in `rllc.torch.kernels_cpu`. A division by zero gives infinity: to raise an error would cost a branch,
# and with it the vectors.
_kernel = numba.njit(fastmath=FLAGS, error_model="numpy", nogil=True, cache=True)
COUNT = np.empty(0, np.float32)  # of AdamW's steps
BLOCK = 256  # entries at a time of the first pass: m, v, g and u stay in the first-level cache


def prepare(part: Part, plan: Any) -> tuple[list[Batch] | None, Any]:
    """A part as the kernels take it, None if they do not take all of it; and the plan for the next step."""
    batches, plan = fused_cpu.prepare(part, plan)
    if all(batch.kind is not None and batch.kind[0] == batch.kind[-1] for batch in batches):
        return batches, plan
    return None, None


def counters(steps: list[Tensor]) -> np.ndarray | None:
    """The addresses of the counts of steps; None if they are not float32, in a state of somebody else's."""
    return fused_cpu.addresses(steps) if {t.dtype for t in steps} == {torch.float32} else None


def scales(counters: np.ndarray, b1: float, b2: float, eps: float) -> Array:
    """(tensors, 5) `rllc.torch.bias.scales_at`, by each one's count of steps so far."""
    found = np.empty((len(counters), 5))
    _scale(counters, COUNT, b1, b2, eps, found)
    return found


def count(counters: np.ndarray) -> None:
    """One step more for each."""
    _count(counters, COUNT)


def sums(batches: list[Batch], scales: Array) -> Array:
    """(3,) uᵀm̂, uᵀg and gᵀg; `scales` by the parameters' numbers."""
    total = np.zeros(3)
    for batch in batches:
        out = np.empty((len(batch.chunks), 3))
        _run(_sum_chunks, batch, _own(scales, batch), out)
        total += added(out)
    return total


def advance(batches: list[Batch], scales: Array, numbers: Array) -> None:
    """m, v, then θ <- keep θ - rate u, then the average.

    numbers: (7,) rate = lr L, keep = 1 - lr w, β₂, 1-β₁, 1-β₂, the sign of the gradient, and the weight of
        θ in the average.
    """
    for batch in batches:
        kernel = _average_chunks if len(batch.part.memory) == 3 else _advance_chunks
        _run(kernel, batch, _own(scales, batch), numbers)


def _run(kernel: Callable[..., None], batch: Batch, scales: Array, last: Array) -> None:
    like = _like(batch.part.params[0].dtype)
    fused_cpu.spread(batch, partial(kernel, batch.table, batch.chunks, like, scales, last))


def _own(scales: Array, batch: Batch) -> Array:
    return scales if len(scales) == len(batch.part.params) else scales[batch.part.numbers]


@functools.cache
def _like(dtype: torch.dtype) -> np.ndarray:
    return np.empty(0, fused_cpu.DTYPES[dtype])


_scales_at: Any = numba.njit(bias.scales_at, cache=True)


@numba.njit(cache=True)
def _scale(counters: np.ndarray, like: np.ndarray, b1: float, b2: float, eps: float, out: np.ndarray) -> None:
    for i in range(counters.size):
        t = np.float64(view(counters[i], 0, 1, like)[0])
        out[i, 0], out[i, 1], out[i, 2], out[i, 3], out[i, 4] = _scales_at(t, b1, b2, eps)


@numba.njit(cache=True)
def _count(counters: np.ndarray, like: np.ndarray) -> None:
    for i in range(counters.size):
        view(counters[i], 0, 1, like)[0] += 1


@numba.njit(fastmath=FLAGS | {"arcp", "ninf"}, error_model="numpy", cache=True)
def _direction(m: Any, v: Any, eps: Any) -> Any:
    """m/(√v + eps) of finite numbers; in float32 by an estimate of the reciprocal and a Newton step, which is
    faster than a division and as exact, but for a unit in the last place."""
    return m / (np.sqrt(v) + eps)


@_kernel
def _sum_chunks(
    table: np.ndarray,
    chunks: np.ndarray,
    like: np.ndarray,
    scales: np.ndarray,
    out: np.ndarray,
    lo: int,
    hi: int,
) -> None:
    """out[c] = uᵀm̂, uᵀg and gᵀg over chunk c, float64; u = m/(√v + eps) up to the scales of a tensor."""
    real = like.dtype.type
    of_gradient = table.shape[0] - 2
    u = np.empty(BLOCK, like.dtype)
    for c in range(lo, hi):
        t, start, stop = chunks[c]
        m = view(table[0, t], start, stop - start, like)
        v = view(table[1, t], start, stop - start, like)
        g = view(table[of_gradient, t], start, stop - start, like)
        eps = real(scales[t, 0])
        mm = mg = gg = 0.0
        # u apart, block by block: beside sums in float64 its roots and quotients would be half as wide.
        for first in range(0, stop - start, BLOCK):
            last = min(first + BLOCK, stop - start)
            for i in range(first, last):
                u[i - first] = _direction(m[i], v[i], eps)
            for i in range(first, last):
                x, y, z = np.float64(u[i - first]), np.float64(m[i]), np.float64(g[i])
                mm += x * y
                mg += x * z
                gg += z * z
        out[c, 0], out[c, 1], out[c, 2] = scales[t, 1] * mm, scales[t, 2] * mg, gg


@_kernel
def _advance_chunks(
    table: np.ndarray,
    chunks: np.ndarray,
    like: np.ndarray,
    scales: np.ndarray,
    numbers: np.ndarray,
    lo: int,
    hi: int,
) -> None:
    real = like.dtype.type
    keep, b2, c1 = real(numbers[1]), real(numbers[2]), real(numbers[3])
    c2, sign = real(numbers[4]), real(numbers[5])
    for c in range(lo, hi):
        t, start, stop = chunks[c]
        m = view(table[0, t], start, stop - start, like)
        v = view(table[1, t], start, stop - start, like)
        g = view(table[2, t], start, stop - start, like)
        theta = view(table[3, t], start, stop - start, like)
        eps, rate = real(scales[t, 3]), real(scales[t, 4] * numbers[0])
        for i in range(stop - start):
            new = m[i] + c1 * (sign * g[i] - m[i])
            square = b2 * v[i] + c2 * g[i] * g[i]
            m[i], v[i] = new, square
            theta[i] = keep * theta[i] - rate * _direction(new, square, eps)


@_kernel
def _average_chunks(
    table: np.ndarray,
    chunks: np.ndarray,
    like: np.ndarray,
    scales: np.ndarray,
    numbers: np.ndarray,
    lo: int,
    hi: int,
) -> None:
    """The same, and the average in the same loop: apart it would read the parameters again."""
    real = like.dtype.type
    keep, b2, c1 = real(numbers[1]), real(numbers[2]), real(numbers[3])
    c2, sign, weight = real(numbers[4]), real(numbers[5]), real(numbers[6])
    for c in range(lo, hi):
        t, start, stop = chunks[c]
        m = view(table[0, t], start, stop - start, like)
        v = view(table[1, t], start, stop - start, like)
        average = view(table[2, t], start, stop - start, like)
        g = view(table[3, t], start, stop - start, like)
        theta = view(table[4, t], start, stop - start, like)
        eps, rate = real(scales[t, 3]), real(scales[t, 4] * numbers[0])
        for i in range(stop - start):
            new = m[i] + c1 * (sign * g[i] - m[i])
            square = b2 * v[i] + c2 * g[i] * g[i]
            m[i], v[i] = new, square
            moved = keep * theta[i] - rate * _direction(new, square, eps)
            theta[i] = moved
            average[i] += weight * (moved - average[i])
