"""Triton kernels of RLLCAdamW's two passes, over tables and chunks as in `rllc.torch.kernels_cuda`.

The rows of a table are each parameter's count of steps (float32), m, v, gradient, parameters and, where there
is one, the average (float32). `rllc.torch.kernels_adamw` is the same for a CPU.
"""

import triton
import triton.language as tl

from rllc.torch.kernels_cuda import chunk_at, entries, load, store

__all__ = ["advance_chunks", "sum_chunks"]

COUNT, M, V, GRADIENT, PARAMETERS, AVERAGE = (tl.constexpr(row) for row in range(6))


@triton.jit
def _corrections(t, log1: tl.constexpr, log2: tl.constexpr):
    """1 - β₁ᵗ and 1 - β₂ᵗ, from the logarithms of β₁ and β₂."""
    return 1 - tl.exp(t * log1), 1 - tl.exp(t * log2)


@triton.jit
def _count_of(table, tensors, t):
    return tl.load(tl.load(table + COUNT * tensors + t).to(tl.pointer_type(tl.float32))).to(tl.float64)


@triton.jit
def _added(
    mm,
    mg,
    gg,
    table,
    tensors,
    t,
    start,
    stop,
    log1: tl.constexpr,
    log2: tl.constexpr,
    eps: tl.constexpr,
    dtype: tl.constexpr,
    gradient_dtype: tl.constexpr,
    whole: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    count = _count_of(table, tensors, t)
    c1, c2 = _corrections(tl.where(count > 0, count, 1.0), log1, log2)
    # `rllc.torch.bias.scales_at`; before the first step m is zero, and so is every unit.
    root = tl.sqrt(c2)
    small, of_gradient = (eps * root).to(tl.float32), tl.where(count > 0, root / c1, 0.0)
    for part in tl.static_range(BLOCK // WIDTH):
        places = start + part * WIDTH + tl.arange(0, WIDTH)
        inside = places < stop
        m = load(entries(table, M, tensors, t, places, dtype, whole), inside, whole).to(tl.float32)
        v = load(entries(table, V, tensors, t, places, dtype, whole), inside, whole).to(tl.float32)
        g = load(entries(table, GRADIENT, tensors, t, places, gradient_dtype, whole), inside, whole)
        u = (m / (tl.sqrt(v) + small)).to(tl.float64) * of_gradient
        g = g.to(tl.float64)
        mm += u * (m.to(tl.float64) / c1)
        mg += u * g
        gg += g * g
    return mm, mg, gg


@triton.jit
def sum_chunks(
    table,
    chunks,
    out,
    tensors,
    count,
    sign: tl.constexpr,
    log1: tl.constexpr,
    log2: tl.constexpr,
    eps: tl.constexpr,
    dtype: tl.constexpr,
    gradient_dtype: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """out[p] = [[uᵀm̂, uᵀg], [uᵀg, gᵀg]] over every P-th chunk from p on, float64, with the old m and v.

    P is the number of programs; log1 and log2 are log β₁ and log β₂; m is of sign times g.
    """
    mm, mg = tl.zeros((WIDTH,), tl.float64), tl.zeros((WIDTH,), tl.float64)
    gg = tl.zeros((WIDTH,), tl.float64)
    for c in range(tl.program_id(0), count, tl.num_programs(0)):
        t, start, stop, whole = chunk_at(chunks, c, BLOCK)
        if whole:
            mm, mg, gg = _added(
                *(mm, mg, gg, table, tensors, t, start, stop),
                *(log1, log2, eps, dtype, gradient_dtype, True, BLOCK, WIDTH),
            )
        else:
            mm, mg, gg = _added(
                *(mm, mg, gg, table, tensors, t, start, stop),
                *(log1, log2, eps, dtype, gradient_dtype, False, BLOCK, WIDTH),
            )
    out += 4 * tl.program_id(0)
    of_unit = sign * tl.sum(mg, 0)
    tl.store(out, tl.sum(mm, 0))
    tl.store(out + 1, of_unit)
    tl.store(out + 2, of_unit)
    tl.store(out + 3, tl.sum(gg, 0))


@triton.jit
def _advanced(
    table,
    numbers,
    weight,
    tensors,
    t,
    start,
    stop,
    sign: tl.constexpr,
    b1: tl.constexpr,
    b2: tl.constexpr,
    log1: tl.constexpr,
    log2: tl.constexpr,
    eps: tl.constexpr,
    averaged: tl.constexpr,
    dtype: tl.constexpr,
    gradient_dtype: tl.constexpr,
    whole: tl.constexpr,
    BLOCK: tl.constexpr,
):
    c1, c2 = _corrections(_count_of(table, tensors, t) + 1, log1, log2)
    root = tl.sqrt(c2)
    small = (eps * root).to(tl.float32)
    rate, keep = (tl.load(numbers + 2) * root / c1).to(tl.float32), tl.load(numbers + 3).to(tl.float32)
    places = start + tl.arange(0, BLOCK)
    inside = places < stop
    at_m = entries(table, M, tensors, t, places, dtype, whole)
    at_v = entries(table, V, tensors, t, places, dtype, whole)
    g = load(entries(table, GRADIENT, tensors, t, places, gradient_dtype, whole), inside, whole)
    g = g.to(tl.float32)
    m = load(at_m, inside, whole).to(tl.float32)
    difference = sign * g - m
    # From the nearer of the two, as in torch's lerp: m may be much larger than g.
    m = m + (1 - b1) * difference if b1 > 0.5 else sign * g - b1 * difference
    v = b2 * load(at_v, inside, whole).to(tl.float32) + (1 - b2) * g * g
    at_theta = entries(table, PARAMETERS, tensors, t, places, dtype, whole)
    theta = keep * load(at_theta, inside, whole).to(tl.float32) + rate * m / (tl.sqrt(v) + small)
    store(at_m, m.to(dtype), inside, whole)
    store(at_v, v.to(dtype), inside, whole)
    store(at_theta, theta.to(dtype), inside, whole)
    if averaged:
        at_average = entries(table, AVERAGE, tensors, t, places, tl.float32, whole)
        average = load(at_average, inside, whole)
        average += tl.load(weight).to(tl.float32) * (theta.to(dtype).to(tl.float32) - average)
        store(at_average, average, inside, whole)


@triton.jit
def advance_chunks(
    table,
    chunks,
    numbers,
    ok,
    weight,
    tensors,
    sign: tl.constexpr,
    b1: tl.constexpr,
    b2: tl.constexpr,
    log1: tl.constexpr,
    log2: tl.constexpr,
    eps: tl.constexpr,
    averaged: tl.constexpr,
    dtype: tl.constexpr,
    gradient_dtype: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """m and v, θ <- keep θ + rate u, θ̄ += weight (θ - θ̄); nothing at all where ok, a bool, is False.

    numbers: float64, of `rllc.torch.kernels_law_cuda.learn` for one unit: rate = -lr L is the third and
    keep = 1 - lr w the fourth. weight: () float64.
    """
    # From the last chunk to the first: what the first pass has read last may still be in the cache.
    t, start, stop, whole = chunk_at(chunks, tl.num_programs(0) - 1 - tl.program_id(0), BLOCK)
    if tl.load(ok):
        if whole:
            _advanced(
                *(table, numbers, weight, tensors, t, start, stop, sign, b1, b2, log1, log2, eps),
                *(averaged, dtype, gradient_dtype, True, BLOCK),
            )
        else:
            _advanced(
                *(table, numbers, weight, tensors, t, start, stop, sign, b1, b2, log1, log2, eps),
                *(averaged, dtype, gradient_dtype, False, BLOCK),
            )
