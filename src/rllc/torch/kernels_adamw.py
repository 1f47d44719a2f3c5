"""numba kernels of RLLCAdamW's two passes, in the tables of `rllc.torch.fused_cpu`.

The rows of a table are m, v and, where there is one, the average; then the gradient and the parameters.
"""

from __future__ import annotations

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

__all__ = ["advance", "count", "counters", "prepare", "sums"]

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


def count(counters: np.ndarray) -> None:
    """One step more for each."""
    _count(counters, COUNT)


def sums(batches: list[Batch], counters: np.ndarray, b1: float, b2: float, eps: float) -> Array:
    """(3,) uᵀm̂, uᵀg and gᵀg; `counters` by the parameters' numbers."""
    total = np.zeros(3)
    for batch in batches:
        out = np.empty((len(batch.chunks), 3))
        _run(_sum_chunks, batch, counters, b1, b2, eps, out)
        total += added(out)
    return total


def advance(batches: list[Batch], counters: np.ndarray, numbers: Array) -> None:
    """m, v, then θ <- keep θ - rate u, then the average.

    numbers: (7,) rate = lr L, keep = 1 - lr w, β₁, β₂, eps, the sign of the gradient, and the weight of θ in
        the average.
    """
    for batch in batches:
        kernel = _average_chunks if len(batch.part.memory) == 3 else _advance_chunks
        _run(kernel, batch, counters, numbers)


def _run(kernel: Callable[..., None], batch: Batch, counters: np.ndarray, *last: Any) -> None:
    params = batch.part.params
    own = counters if len(counters) == len(params) else counters[batch.part.numbers]
    like = fused_cpu.witness(params[0].dtype)
    fused_cpu.spread(batch, partial(kernel, batch.table, batch.chunks, like, own, *last))


_scales_at: Any = numba.njit(bias.scales_at, cache=True)


@numba.njit(cache=True)
def _scales(counter: int, b1: float, b2: float, eps: float) -> Any:
    return _scales_at(np.float64(view(counter, 0, 1, COUNT)[0]), b1, b2, eps)


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
    counters: np.ndarray,
    b1: float,
    b2: float,
    eps: float,
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
        at, of_metric, of_both, _, _ = _scales(counters[t], b1, b2, eps)
        e = real(at)
        mm = mg = gg = 0.0
        # u apart, block by block: beside sums in float64 its roots and quotients would be half as wide.
        for first in range(0, stop - start, BLOCK):
            last = min(first + BLOCK, stop - start)
            for i in range(first, last):
                u[i - first] = _direction(m[i], v[i], e)
            for i in range(first, last):
                x, y, z = np.float64(u[i - first]), np.float64(m[i]), np.float64(g[i])
                mm += x * y
                mg += x * z
                gg += z * z
        out[c, 0], out[c, 1], out[c, 2] = of_metric * mm, of_both * mg, gg


@_kernel
def _advance_chunks(
    table: np.ndarray,
    chunks: np.ndarray,
    like: np.ndarray,
    counters: np.ndarray,
    numbers: np.ndarray,
    lo: int,
    hi: int,
) -> None:
    real = like.dtype.type
    keep, b2, sign = real(numbers[1]), real(numbers[3]), real(numbers[5])
    c1, c2 = real(1 - numbers[2]), real(1 - numbers[3])
    for c in range(lo, hi):
        t, start, stop = chunks[c]
        m = view(table[0, t], start, stop - start, like)
        v = view(table[1, t], start, stop - start, like)
        g = view(table[2, t], start, stop - start, like)
        theta = view(table[3, t], start, stop - start, like)
        _, _, _, at, ahead = _scales(counters[t], numbers[2], numbers[3], numbers[4])
        eps, rate = real(at), real(ahead * numbers[0])
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
    counters: np.ndarray,
    numbers: np.ndarray,
    lo: int,
    hi: int,
) -> None:
    """The same, and the average in the same loop: apart it would read the parameters again."""
    real = like.dtype.type
    keep, b2, sign, weight = real(numbers[1]), real(numbers[3]), real(numbers[5]), real(numbers[6])
    c1, c2 = real(1 - numbers[2]), real(1 - numbers[3])
    for c in range(lo, hi):
        t, start, stop = chunks[c]
        m = view(table[0, t], start, stop - start, like)
        v = view(table[1, t], start, stop - start, like)
        average = view(table[2, t], start, stop - start, like)
        g = view(table[3, t], start, stop - start, like)
        theta = view(table[4, t], start, stop - start, like)
        _, _, _, at, ahead = _scales(counters[t], numbers[2], numbers[3], numbers[4])
        eps, rate = real(at), real(ahead * numbers[0])
        for i in range(stop - start):
            new = m[i] + c1 * (sign * g[i] - m[i])
            square = b2 * v[i] + c2 * g[i] * g[i]
            m[i], v[i] = new, square
            moved = keep * theta[i] - rate * _direction(new, square, eps)
            theta[i] = moved
            average[i] += weight * (moved - average[i])
