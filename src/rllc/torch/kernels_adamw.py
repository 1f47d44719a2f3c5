"""numba kernels of RLLCAdamW's two passes, in the tables of `rllc.torch.fused_cpu`.

The rows of a table are m, v and, where there is one, the average; then the gradient and the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rllc.law import LOST, LawStep
from rllc.torch import bias, fused_cpu
from rllc.torch.fused_cpu import Batch
from rllc.torch.kernels_cpu import FLAGS, added, view
from rllc.torch.kernels_law_cpu import take
from rllc.torch.openmp import spread
from rllc.torch.parts import Part

__all__ = ["advance", "count", "counters", "prepare", "step", "sums"]

Array = NDArray[np.float64]

# As in `rllc.torch.kernels_cpu`. A division by zero gives infinity: to raise an error would cost a branch,
# and with it the vectors.
_kernel = numba.njit(fastmath=FLAGS, error_model="numpy", nogil=True, cache=True)
COUNT = np.empty(0, np.float32)  # of AdamW's steps
LAW = np.empty(0, np.float64)
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
    return sum((_run(_sum, batch, counters, b1, b2, eps) for batch in batches), start=np.zeros(3))


def advance(batches: list[Batch], counters: np.ndarray, numbers: Array) -> None:
    """m, v, then θ <- keep θ - rate u, then the average.

    numbers: (7,) rate = lr L, keep = 1 - lr w, β₁, β₂, eps, the sign of the gradient, and the weight of θ in
        the average.
    """
    for batch in batches:
        _run(_average if len(batch.part.memory) == 3 else _advance, batch, counters, numbers)


def step(
    batch: Batch,
    counters: np.ndarray,
    law: Tensor,
    progress: tuple[float, ...],
    numbers: tuple[float, ...],
    how: LawStep,
) -> tuple[float, tuple[float, ...], float] | None:
    """Both passes and between them the law (1,) float64, in place: the law, its progress and |g|.

    None if the law would be LOST, or a sum is not finite or so large that entries have to be looked at:
    nothing has changed then. In one call, because after a backward pass whatever Python does waits for its
    own instructions, some ten times as long as it takes by itself.

    numbers: lr, then as `advance` has them from keep on, law_lr and the ridge of the relaxed inverse.
    """
    found = _run(_step, batch, counters, law.data_ptr(), progress, numbers, how.numbers)
    done, law_now, *after, size = found
    return (law_now, tuple(after), size) if done else None


def _run(kernel: Callable[..., Any], batch: Batch, counters: np.ndarray, *last: Any) -> Any:
    params = batch.part.params
    own = counters if len(counters) == len(params) else counters[batch.part.numbers]
    like = fused_cpu.witness(params[0].dtype)
    return kernel(fused_cpu.threads(batch), batch.table, batch.chunks, like, own, *last)


_scales_at: Any = numba.njit(bias.scales_at, cache=True)


@numba.njit(cache=True)
def _scales(counter: int, b1: float, b2: float, eps: float) -> Any:
    return _scales_at(np.float64(view(counter, 0, 1, COUNT)[0]), b1, b2, eps)


@numba.njit(cache=True)
def _count(counters: np.ndarray, like: np.ndarray) -> None:
    for i in range(counters.size):
        view(counters[i], 0, 1, like)[0] += 1


@numba.njit(error_model="numpy", nogil=True, cache=True)
def _step(
    threads: int,
    table: np.ndarray,
    chunks: np.ndarray,
    like: np.ndarray,
    counters: np.ndarray,
    address: int,
    before: tuple,
    numbers: tuple,
    how: tuple,
) -> tuple:
    """Whether it was done, the law, its progress and |g|; the law as in `rllc.torch.one_unit.learn`."""
    lr, keep, b1, b2, eps, sign, weight, law_lr, ridge = numbers
    W, v, gg = _sum(threads, table, chunks, like, counters, b1, b2, eps)
    law, x, progress, size = np.empty(1), np.zeros(1), np.array(before), math.sqrt(gg)
    kept = view(address, 0, 1, LAW)
    law[0] = kept[0]
    fits = math.isfinite(W + v) and math.isfinite(like.dtype.type(gg))  # else some g² may be no number
    if fits:
        if W > 0:
            x[0] = sign * v / ((1 + ridge) * W)
        take(law, law_lr, x, size, progress, lr, *how)
    if not fits or not abs(law[0]) < LOST:
        return (0.0, 0.0, *before, 0.0)
    kept[0] = law[0]
    moved = np.array([lr * law[0], keep, b1, b2, eps, sign, weight])
    if table.shape[0] == 5:
        _average(threads, table, chunks, like, counters, moved)
    else:
        _advance(threads, table, chunks, like, counters, moved)
    _count(counters, COUNT)
    return (1.0, law[0], progress[0], progress[1], progress[2], progress[3], progress[4], size)


@numba.njit(fastmath=FLAGS, error_model="numpy", cache=True)
def _direction(m: Any, v: Any, eps: Any) -> Any:
    """m/(√v + eps), the root and the quotient correctly rounded: were an estimate of the reciprocal allowed,
    code for vectors would take it and code for single entries not, and which runs depends on addresses."""
    return m / (np.sqrt(v) + eps)


@_kernel
def _mean(m: Any, g: Any, b1: Any, c1: Any) -> Any:
    """b1 m + c1 g with c1 = 1 - b1, from the nearer of the two, as torch's lerp: m may be much the larger."""
    return m + c1 * (g - m) if c1 < 0.5 else g - b1 * (g - m)


@_kernel
def _sum(
    threads: int,
    table: np.ndarray,
    chunks: np.ndarray,
    like: np.ndarray,
    counters: np.ndarray,
    b1: float,
    b2: float,
    eps: float,
) -> np.ndarray:
    """(3,) float64 uᵀm̂, uᵀg and gᵀg; u = m/(√v + eps) up to the scales of a tensor."""
    out = np.empty((chunks.shape[0], 3))
    spread(_sum_chunks, threads, (table, chunks, like, counters, (b1, b2, eps), out), chunks.shape[0])
    return added(out)


@_kernel
def _sum_chunks(lo: int, hi: int, data: tuple) -> None:
    """out[c] = the sums over chunk c."""
    table, chunks, like, counters, (b1, b2, eps), out = data
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
def _advance(
    threads: int,
    table: np.ndarray,
    chunks: np.ndarray,
    like: np.ndarray,
    counters: np.ndarray,
    numbers: np.ndarray,
) -> None:
    spread(_advance_chunks, threads, (table, chunks, like, counters, numbers), chunks.shape[0])


@_kernel
def _advance_chunks(lo: int, hi: int, data: tuple) -> None:
    table, chunks, like, counters, numbers = data
    real = like.dtype.type
    keep, b2, sign = real(numbers[1]), real(numbers[3]), real(numbers[5])
    b1, c1, c2 = real(numbers[2]), real(1 - numbers[2]), real(1 - numbers[3])
    for c in range(lo, hi):
        t, start, stop = chunks[c]
        m = view(table[0, t], start, stop - start, like)
        v = view(table[1, t], start, stop - start, like)
        g = view(table[2, t], start, stop - start, like)
        theta = view(table[3, t], start, stop - start, like)
        _, _, _, at, ahead = _scales(counters[t], numbers[2], numbers[3], numbers[4])
        eps, rate = real(at), real(ahead * numbers[0])
        for i in range(stop - start):
            new = _mean(m[i], sign * g[i], b1, c1)
            square = b2 * v[i] + c2 * g[i] * g[i]
            m[i], v[i] = new, square
            theta[i] = keep * theta[i] - rate * _direction(new, square, eps)


@_kernel
def _average(
    threads: int,
    table: np.ndarray,
    chunks: np.ndarray,
    like: np.ndarray,
    counters: np.ndarray,
    numbers: np.ndarray,
) -> None:
    """The same, and the average in the same loop: apart it would read the parameters again."""
    spread(_average_chunks, threads, (table, chunks, like, counters, numbers), chunks.shape[0])


@_kernel
def _average_chunks(lo: int, hi: int, data: tuple) -> None:
    table, chunks, like, counters, numbers = data
    real = like.dtype.type
    keep, b2, sign, weight = real(numbers[1]), real(numbers[3]), real(numbers[5]), real(numbers[6])
    b1, c1, c2 = real(numbers[2]), real(1 - numbers[2]), real(1 - numbers[3])
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
            new = _mean(m[i], sign * g[i], b1, c1)
            square = b2 * v[i] + c2 * g[i] * g[i]
            m[i], v[i] = new, square
            moved = keep * theta[i] - rate * _direction(new, square, eps)
            theta[i] = moved
            average[i] += weight * (moved - average[i])
