"""Triton kernels of the two passes over pointer tables: the loops of `rllc.torch.fused_cuda`.

A table is (k+2, tensors) int64: the addresses of the k units, the gradient and the parameters. The work is
cut into chunks (tensor, start, stop) of at most BLOCK entries, one for each program. Every sum of a chunk
goes to a place of its own, so that their order, and the result to the last bit, does not depend on the
schedule.

Whole chunks of rows that begin at multiples of 16 bytes are moved in vectors of 16 bytes (`whole`); the
others entry by entry, up to their end.
"""

# ruff: noqa: RUF005  (Triton's language has sums of tuples, no stars)

import triton
import triton.language as tl

__all__ = ["BLOCK", "advance_chunks", "gram_chunks"]

BLOCK = 4096


@triton.jit
def _at(table, row: tl.constexpr, tensors, t, places, dtype: tl.constexpr, whole: tl.constexpr):
    """The entries of tensor t of that row at these places, as pointers."""
    pointer = tl.load(table + row * tensors + t).to(tl.pointer_type(dtype))
    return (tl.multiple_of(pointer, 16) if whole else pointer) + places


@triton.jit
def _load(pointers, inside, whole: tl.constexpr):
    return tl.load(pointers) if whole else tl.load(pointers, inside, other=0.0)


@triton.jit
def _store(pointers, values, inside, whole: tl.constexpr):
    if whole:
        tl.store(pointers, values)
    else:
        tl.store(pointers, values, inside)


@triton.jit
def gram_chunks(
    table,
    chunks,
    out,
    tensors,
    K: tl.constexpr,
    unit_dtype: tl.constexpr,
    gradient_dtype: tl.constexpr,
    whole: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[c] = the inner products of units and gradient over chunk c, upper triangle row by row, float64."""
    c = tl.program_id(0).to(tl.int64)
    t, start, stop = tl.load(chunks + 3 * c), tl.load(chunks + 3 * c + 1), tl.load(chunks + 3 * c + 2)
    places = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)  # chunks begin at multiples of BLOCK
    inside = places < stop
    rows = ()
    for i in tl.static_range(K):
        rows = rows + (_load(_at(table, i, tensors, t, places, unit_dtype, whole), inside, whole),)
    rows = rows + (_load(_at(table, K, tensors, t, places, gradient_dtype, whole), inside, whole),)
    pairs: tl.constexpr = (K + 1) * (K + 2) // 2
    for i in tl.static_range(K + 1):
        for j in tl.static_range(i, K + 1):
            product = rows[i].to(tl.float64) * rows[j].to(tl.float64)
            tl.store(out + c * pairs + i * (K + 1) - i * (i - 1) // 2 + j - i, tl.sum(product, 0))


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
def advance_chunks(
    table,
    chunks,
    numbers,
    ok,
    keys,
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
    whole: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """M <- M B + g aᵀ, θ <- keep θ + M weights; everything is read once and written once.

    numbers: B (k, k), then a (k), weights (k) and keep, in the dtype `compute`. ok: a bool; where it is False
    the gradient counts as zero. keys: (k, tensors) int64, the starts of the stochastic rounding. structure,
    needed and fed: bits of the entries of B, of its rows and of a that are other than zero. A unit that
    nothing new is made of is not read.
    """
    c = tl.program_id(0).to(tl.int64)
    t, start, stop = tl.load(chunks + 3 * c), tl.load(chunks + 3 * c + 1), tl.load(chunks + 3 * c + 2)
    places = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)  # chunks begin at multiples of BLOCK
    inside = places < stop
    g = _load(_at(table, K, tensors, t, places, gradient_dtype, whole), inside, whole).to(compute)
    g = tl.where(tl.load(ok), g, 0.0)
    old = ()
    for i in tl.static_range(K):
        if (needed >> i) & 1:
            old = old + (_load(_at(table, i, tensors, t, places, unit_dtype, whole), inside, whole),)
        else:
            old = old + (g,)  # in its place, never used
    parameters = _at(table, K + 1, tensors, t, places, theta_dtype, whole)
    theta = _load(parameters, inside, whole).to(compute) * tl.load(numbers + K * K + 2 * K)
    for j in tl.static_range(K):
        new = tl.zeros_like(g)
        for i in tl.static_range(K):
            if (structure >> (i * K + j)) & 1:
                new += old[i].to(compute) * tl.load(numbers + i * K + j)
        if (fed >> j) & 1:
            new += g * tl.load(numbers + K * K + j)
        theta += new * tl.load(numbers + K * K + K + j)
        unit = _at(table, j, tensors, t, places, unit_dtype, whole)
        if stochastic:
            _store(unit, _to_bfloat16(new, places, tl.load(keys + j * tensors + t)), inside, whole)
        else:
            _store(unit, new.to(unit_dtype), inside, whole)
    _store(parameters, theta.to(theta_dtype), inside, whole)
