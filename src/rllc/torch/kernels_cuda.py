"""Triton kernels of the two passes over pointer tables: the loops of `rllc.torch.fused_cuda`.

A table is (k+2, tensors) int64: the addresses of the k units, the gradient and the parameters. The work is
cut into chunks of at most BLOCK entries, (count, 4) int64: tensor, start, stop, and whether the chunk is
whole, with rows that begin at multiples of 16 bytes: these are moved in vectors of 16 bytes, the others entry
by entry, up to their end.

Sums are taken in two stages, of one program's chunks and then of all programs, in an order that depends on
nothing but the number of chunks: the same to the last bit, whatever the schedule.
"""

# ruff: noqa: RUF005  (Triton's language has sums of tuples, no stars)

import triton
import triton.language as tl

__all__ = ["BLOCK", "PROGRAMS", "advance_chunks", "gram_chunks", "sum_partials"]

BLOCK = 4096
WIDTH = 1024  # entries of a chunk that are summed at a time: what the registers hold
PROGRAMS = 1056  # of the first stage at most: eight for each of an H100's multiprocessors
PARTIALS = 64  # that the second stage adds at a time


@triton.jit
def chunk_at(chunks, c, BLOCK: tl.constexpr):
    """Tensor, start, stop and whether it is whole, of the c-th chunk."""
    place = chunks + 4 * c
    start = tl.multiple_of(tl.load(place + 1), BLOCK)  # where every chunk begins
    return tl.load(place), start, tl.load(place + 2), tl.load(place + 3) != 0


@triton.jit
def entries(table, row: tl.constexpr, tensors, t, places, dtype: tl.constexpr, whole: tl.constexpr):
    """The entries of tensor t of that row at these places, as pointers."""
    pointer = tl.load(table + row * tensors + t).to(tl.pointer_type(dtype))
    return (tl.multiple_of(pointer, 16) if whole else pointer) + places


@triton.jit
def load(pointers, inside, whole: tl.constexpr):
    return tl.load(pointers) if whole else tl.load(pointers, inside, other=0.0)


@triton.jit
def store(pointers, values, inside, whole: tl.constexpr):
    if whole:
        tl.store(pointers, values)
    else:
        tl.store(pointers, values, inside)


@triton.jit
def _products_added(
    totals,
    table,
    tensors,
    t,
    start,
    stop,
    K: tl.constexpr,
    unit_dtype: tl.constexpr,
    gradient_dtype: tl.constexpr,
    whole: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """totals[p] += the p-th product, entry by entry, of units and gradient over one chunk."""
    for part in tl.static_range(BLOCK // WIDTH):
        places = start + part * WIDTH + tl.arange(0, WIDTH)
        inside = places < stop
        rows = ()
        for i in tl.static_range(K):
            rows = rows + (load(entries(table, i, tensors, t, places, unit_dtype, whole), inside, whole),)
        rows = rows + (load(entries(table, K, tensors, t, places, gradient_dtype, whole), inside, whole),)
        added = ()
        for i in tl.static_range(K + 1):
            for j in tl.static_range(i, K + 1):
                product = rows[i].to(tl.float64) * rows[j].to(tl.float64)
                added = added + (totals[i * (K + 1) - i * (i - 1) // 2 + j - i] + product,)
        totals = added
    return totals


@triton.jit
def gram_chunks(
    table,
    chunks,
    out,
    tensors,
    count,
    K: tl.constexpr,
    unit_dtype: tl.constexpr,
    gradient_dtype: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """out[p] = the inner products (k+1, k+1) of units and gradient over every P-th chunk from p on, float64.

    P is the number of programs.
    """
    totals = ()
    for _ in tl.static_range((K + 1) * (K + 2) // 2):
        totals = totals + (tl.zeros((WIDTH,), tl.float64),)
    for c in range(tl.program_id(0), count, tl.num_programs(0)):
        t, start, stop, whole = chunk_at(chunks, c, BLOCK)
        if whole:
            totals = _products_added(
                totals, table, tensors, t, start, stop, K, unit_dtype, gradient_dtype, True, BLOCK, WIDTH
            )
        else:
            totals = _products_added(
                totals, table, tensors, t, start, stop, K, unit_dtype, gradient_dtype, False, BLOCK, WIDTH
            )
    out += tl.program_id(0) * (K + 1) * (K + 1)
    for i in tl.static_range(K + 1):
        for j in tl.static_range(i, K + 1):
            total = tl.sum(totals[i * (K + 1) - i * (i - 1) // 2 + j - i], 0)
            tl.store(out + i * (K + 1) + j, total)
            tl.store(out + j * (K + 1) + i, total)


@triton.jit
def sum_partials(
    partials,
    basis,
    out,
    count,
    N: tl.constexpr,
    R: tl.constexpr,
    SIZE: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    """out (R, R) = basisᵀ S basis, S the sum of the partials (count, N, N); basis (N, R); in one program.

    SIZE: a power of two, N at least.
    """
    i, j = tl.arange(0, SIZE * SIZE) // SIZE, tl.arange(0, SIZE * SIZE) % SIZE
    total = tl.zeros((PARTIALS, SIZE * SIZE), tl.float64)
    for first in range(0, count, PARTIALS):
        p = first + tl.arange(0, PARTIALS)
        there = (p < count)[:, None] & ((i < N) & (j < N))[None, :]
        total += tl.load(partials + p[:, None] * (N * N) + (i * N + j)[None, :], there, other=0.0)
    found = tl.reshape(tl.sum(total, 0), (SIZE, SIZE))
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    C = tl.load(basis + row * R + column, (row < N) & (column < R), other=0.0)
    half = tl.sum(found[:, :, None] * C[None, :, :], 1)
    tl.store(out + row * R + column, tl.sum(C[:, :, None] * half[:, None, :], 0), (row < R) & (column < R))


@triton.jit
def _mix(x):
    """`rllc.torch.rounding.mix` of uint32."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    return x ^ (x >> 15)


@triton.jit
def _to_bfloat16(x, places, key):
    """`rllc.torch.rounding.stochastic`."""
    noise = _mix(places.to(tl.uint32) ^ key.to(tl.uint32)) & 0xFFFF
    bits = (x.to(tl.uint32, bitcast=True) + noise) & 0xFFFF0000
    return bits.to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def _key(seed, count, number, unit: tl.constexpr):
    """`rllc.torch.rounding.key`, in uint32."""
    start = seed.to(tl.uint32) + count.to(tl.uint32) * 0x9E3779B1
    return _mix(_mix(_mix(start) + number.to(tl.uint32)) + unit)


@triton.jit
def _advanced(
    table,
    numbers,
    taking,
    dice,
    names,
    tensors,
    t,
    start,
    stop,
    K: tl.constexpr,
    structure: tl.constexpr,
    needed: tl.constexpr,
    fed: tl.constexpr,
    stochastic: tl.constexpr,
    unit_dtype: tl.constexpr,
    gradient_dtype: tl.constexpr,
    theta_dtype: tl.constexpr,
    compute: tl.constexpr,
    whole: tl.constexpr,
    BLOCK: tl.constexpr,
):
    places = start + tl.arange(0, BLOCK)
    inside = places < stop
    g = load(entries(table, K, tensors, t, places, gradient_dtype, whole), inside, whole).to(compute)
    g = tl.where(taking, g, 0.0)
    old = ()
    for i in tl.static_range(K):
        if (needed >> i) & 1:
            old = old + (load(entries(table, i, tensors, t, places, unit_dtype, whole), inside, whole),)
        else:
            old = old + (g,)  # in its place, never used
    parameters = entries(table, K + 1, tensors, t, places, theta_dtype, whole)
    theta = load(parameters, inside, whole).to(compute) * tl.load(numbers + K * K + 2 * K).to(compute)
    for j in tl.static_range(K):
        new = tl.zeros_like(g)
        for i in tl.static_range(K):
            if (structure >> (i * K + j)) & 1:
                new += old[i].to(compute) * tl.load(numbers + i * K + j).to(compute)
        if (fed >> j) & 1:
            new += g * tl.load(numbers + K * K + j).to(compute)
        theta += new * tl.load(numbers + K * K + K + j).to(compute)
        unit = entries(table, j, tensors, t, places, unit_dtype, whole)
        if stochastic:
            key = _key(tl.load(dice), tl.load(dice + 1), tl.load(names + t), j)
            store(unit, _to_bfloat16(new, places, key), inside, whole)
        else:
            store(unit, new.to(unit_dtype), inside, whole)
    store(parameters, theta.to(theta_dtype), inside, whole)


@triton.jit
def advance_chunks(
    table,
    chunks,
    numbers,
    ok,
    dice,
    names,
    tensors,
    K: tl.constexpr,
    structure: tl.constexpr,
    needed: tl.constexpr,
    fed: tl.constexpr,
    stochastic: tl.constexpr,
    unit_dtype: tl.constexpr,
    gradient_dtype: tl.constexpr,
    theta_dtype: tl.constexpr,
    compute: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """M <- M B + g aᵀ, θ <- keep θ + M weights; everything is read once and written once.

    numbers: B (k, k), then a (k), weights (k) and keep, float64. ok: a bool; where it is False the gradient
    counts as zero. dice: seed and count of the stochastic rounding, names: each tensor's number, int64.
    structure, needed and fed: bits of the entries of B, of its rows and of a that are other than zero. A unit
    that nothing new is made of is not read.
    """
    # From the last chunk to the first: what the first pass has read last may still be in the cache.
    t, start, stop, whole = chunk_at(chunks, tl.num_programs(0) - 1 - tl.program_id(0), BLOCK)
    taking = tl.load(ok)
    if whole:
        _advanced(
            *(table, numbers, taking, dice, names, tensors, t, start, stop),
            *(K, structure, needed, fed, stochastic, unit_dtype, gradient_dtype, theta_dtype, compute),
            *(True, BLOCK),
        )
    else:
        _advanced(
            *(table, numbers, taking, dice, names, tensors, t, start, stop),
            *(K, structure, needed, fed, stochastic, unit_dtype, gradient_dtype, theta_dtype, compute),
            *(False, BLOCK),
        )
