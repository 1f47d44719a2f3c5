"""numba kernels of the two passes over pointer tables: the loops of `rllc.torch.fused_cpu`.

A table is (k+2, tensors) int64: the addresses of the k units, the gradient and the parameters. The work is
cut into chunks (tensor, start, stop), which the threads of PyTorch share; Python's lock is let go of.
bfloat16 is uint16 here, as numba does not know it. Kernels are compiled on first use and kept on disk.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from rllc.torch.openmp import spread

__all__ = ["BLOCK", "FLAGS", "added", "advance", "gram", "view"]

# Entries of a block: what is written of it in one loop is still in the first-level cache for the next.
BLOCK = 1024

# Sums may be reordered and a product and a sum made in one; NaN and infinity keep their meaning.
FLAGS = {"reassoc", "contract", "nsz"}
kernel = numba.njit(fastmath=FLAGS, nogil=True, cache=True)


def _pointer_typed(typingctx: Any, address: Any, witness: Any) -> Any:
    """An address as a pointer to entries of the witness's dtype."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(witness.dtype)(types.int64, witness), generate


def _float_of_bits_typed(typingctx: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


def _bits_of_float_typed(typingctx: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


# In the kernels these take what follows the typing context.
_pointer: Any = intrinsic(_pointer_typed)
_float_of_bits: Any = intrinsic(_float_of_bits_typed)
_bits_of_float: Any = intrinsic(_bits_of_float_typed)
_carray: Any = numba.carray  # type: ignore[attr-defined]


@kernel
def view(address: int, start: int, count: int, witness: np.ndarray) -> np.ndarray:
    """Entries of a tensor at this address, of the dtype of an empty array `witness`."""
    return _carray(_pointer(np.int64(address + start * witness.itemsize), witness), (count,))


def _read(row: np.ndarray, i: int) -> Any:
    """An entry as a float; bfloat16 are the upper bits of a float32."""


@overload(_read, strict=False)
def _read_typed(row: Any, i: Any) -> Any:
    if row.dtype == types.uint16:
        return lambda row, i: _float_of_bits(np.uint32(np.uint32(row[i]) << np.uint32(16)))
    return lambda row, i: row[i]


# --- First pass -----------------------------------------------------------------------------------
# Tuples of compile-time length: numba unrolls them, so that one loop over the entries holds all sums in
# registers, whatever k is. By halves where it can be, as numba needs some thirty calls of Python, one within
# the other, for each call that it compiles within another.


def _views(table: np.ndarray, row: int, t: int, start: int, count: int, witnesses: tuple) -> Any:
    """The rows of a table from `row` on, cut to a chunk: as many as there are witnesses of their dtypes."""


@overload(_views, strict=False)
def _views_typed(table: Any, row: Any, t: Any, start: Any, count: Any, witnesses: Any) -> Any:
    half = len(witnesses) // 2
    if not half:
        return lambda table, row, t, start, count, witnesses: (
            view(table[row, t], start, count, witnesses[0]),
        )
    return lambda table, row, t, start, count, witnesses: (
        _views(table, row, t, start, count, witnesses[:half])
        + _views(table, row + half, t, start, count, witnesses[half:])
    )


def _entries(rows: tuple, i: int) -> Any:
    """Entry i of every row, as float64."""


@overload(_entries, strict=False)
def _entries_typed(rows: Any, i: Any) -> Any:
    half = len(rows) // 2
    if not half:
        return lambda rows, i: (np.float64(_read(rows[0], i)),)
    return lambda rows, i: _entries(rows[:half], i) + _entries(rows[half:], i)


def _scaled(factor: float, entries: tuple) -> Any:
    """factor times every entry."""


@overload(_scaled, strict=False)
def _scaled_typed(factor: Any, entries: Any) -> Any:
    half = len(entries) // 2
    if not half:
        return lambda factor, entries: (factor * entries[0],)
    return lambda factor, entries: _scaled(factor, entries[:half]) + _scaled(factor, entries[half:])


def _products(entries: tuple) -> Any:
    """x_i x_j for i <= j, row by row."""


@overload(_products, strict=False)
def _products_typed(entries: Any) -> Any:
    if len(entries) == 1:
        return lambda entries: (entries[0] * entries[0],)
    return lambda entries: _scaled(entries[0], entries) + _products(entries[1:])


def _sum(x: tuple, y: tuple) -> Any:
    """x + y, entry by entry."""


@overload(_sum, strict=False)
def _sum_typed(x: Any, y: Any) -> Any:
    half = len(x) // 2
    if not half:
        return lambda x, y: (x[0] + y[0],)
    return lambda x, y: _sum(x[:half], y[:half]) + _sum(x[half:], y[half:])


@kernel
def _sums(rows: tuple, count: int) -> Any:
    sums = _products(_entries(rows, 0))
    for i in range(1, count):
        sums = _sum(sums, _products(_entries(rows, i)))
    return sums


@kernel
def gram(
    threads: int, table: np.ndarray, chunks: np.ndarray, witnesses: tuple, basis: np.ndarray
) -> np.ndarray:
    """basisᵀ S basis, float64, where S holds the inner products of units and gradient."""
    count, rows = chunks.shape[0], len(witnesses)
    sums = np.empty((count, rows * (rows + 1) // 2))
    spread(_gram_chunks, threads, (table, chunks, witnesses, sums), count)
    return _combined(sums, basis)


@kernel
def _gram_chunks(lo: int, hi: int, data: tuple) -> None:
    """out[c] = the inner products over chunk c, upper triangle row by row."""
    table, chunks, witnesses, out = data
    for c in range(lo, hi):
        t, start, stop = chunks[c]
        sums = _sums(_views(table, 0, t, start, stop - start, witnesses), stop - start)
        for p in range(len(sums)):
            out[c, p] = sums[p]


@kernel
def added(sums: np.ndarray) -> np.ndarray:
    """The sum of the rows, one after the other: what the chunks come to, whoever has done them."""
    total = np.zeros(sums.shape[1])
    for c in range(sums.shape[0]):
        for p in range(sums.shape[1]):
            total[p] += sums[c, p]
    return total


@kernel
def _combined(sums: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """basisᵀ S basis, where S is symmetric and the rows of sums add up to its upper triangle, row by row."""
    triangle = added(sums)
    size, rank = basis.shape
    half, whole = np.zeros((size, rank)), np.zeros((rank, rank))
    p = 0
    for i in range(size):
        for j in range(i, size):
            for r in range(rank):
                half[i, r] += triangle[p] * basis[j, r]
                if i != j:
                    half[j, r] += triangle[p] * basis[i, r]
            p += 1
    for i in range(size):
        for q in range(rank):
            for r in range(rank):
                whole[q, r] += basis[i, q] * half[i, r]
    return whole


# --- Second pass ----------------------------------------------------------------------------------


@kernel
def _mix(x: Any) -> Any:
    """`rllc.torch.rounding.mix`."""
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x735A2D97))
    return x ^ (x >> np.uint32(15))


def _write(row: np.ndarray, i: int, value: float, key: int, place: int) -> None:
    """row[i] = value; bfloat16 with stochastic rounding by the hash of (place, key)."""


@overload(_write, strict=False)
def _write_typed(row: Any, i: Any, value: Any, key: Any, place: Any) -> Any:
    def rounded(row: Any, i: Any, value: Any, key: Any, place: Any) -> None:
        noise = _mix(np.uint32(place) ^ np.uint32(key)) & np.uint32(0xFFFF)
        row[i] = np.uint16(np.uint32(_bits_of_float(value) + noise) >> np.uint32(16))

    def plain(row: Any, i: Any, value: Any, key: Any, place: Any) -> None:
        row[i] = value

    return rounded if row.dtype == types.uint16 else plain


@kernel
def _advance_fed_by_one(
    unit: np.ndarray, own: float, source: np.ndarray, factor: float, theta: np.ndarray, keep: float,
    weight: float, key: int, place: int,
) -> None:  # fmt: skip
    """unit <- own unit + factor source, θ <- keep θ + weight unit; an `own` of zero costs no read."""
    if own == 0:
        for i in range(unit.size):
            new = factor * _read(source, i)
            theta[i] = keep * theta[i] + weight * new
            _write(unit, i, new, key, place + i)
    else:
        for i in range(unit.size):
            new = own * _read(unit, i) + factor * _read(source, i)
            theta[i] = keep * theta[i] + weight * new
            _write(unit, i, new, key, place + i)


# Plain loops: an assignment of a slice takes numba four seconds, most of them for the text of an error.


@kernel
def _copy(target: np.ndarray, source: np.ndarray) -> None:
    for i in range(source.size):
        target[i] = source[i]


@kernel
def _start(new: np.ndarray, factor: float, source: np.ndarray) -> None:
    for i in range(new.size):
        new[i] = factor * _read(source, i) if factor != 0 else 0


@kernel
def _add(new: np.ndarray, factor: float, source: np.ndarray) -> None:
    if factor != 0:
        for i in range(new.size):
            new[i] += factor * _read(source, i)


@kernel
def _advance_to(
    unit: np.ndarray, new: np.ndarray, theta: np.ndarray, keep: float, weight: float, key: int, place: int
) -> None:
    for i in range(unit.size):
        theta[i] = keep * theta[i] + weight * new[i]
        _write(unit, i, new[i], key, place + i)


@kernel
def advance(
    threads: int,
    table: np.ndarray,
    chunks: np.ndarray,
    witnesses: tuple,
    B: np.ndarray,
    a: np.ndarray,
    weights: np.ndarray,
    keep: float,
    keys: np.ndarray,
) -> None:
    """M <- M B + g aᵀ, θ <- keep θ + M weights, block by block in the first-level cache.

    witnesses: arrays of the dtypes of units, gradient and parameters; B, a, weights and keep are rounded to
    that of the parameters. keys (k, tensors) start the stochastic rounding.
    """
    k = a.size
    numbers = np.empty((k + 2, k), witnesses[2].dtype)  # B, a and weights
    needed = np.zeros(k, np.bool_)  # as it was, by an earlier unit
    others = np.zeros(k, np.int64)  # how many other units feed this one
    feeder = np.zeros(k, np.int64)  # the last of them
    for j in range(k):
        numbers[k, j], numbers[k + 1, j] = a[j], weights[j]
        for i in range(k):
            numbers[i, j] = B[i, j]
            if i != j and B[i, j] != 0:
                others[j] += 1
                feeder[j] = i
                needed[i] |= i > j
    data = table, chunks, witnesses, numbers, keep, keys, (needed, others, feeder)
    spread(_advance_chunks, threads, data, chunks.shape[0])


@kernel
def _advance_chunks(lo: int, hi: int, data: tuple) -> None:
    table, chunks, witnesses, numbers, keep, keys, (needed, others, feeder) = data
    unit_like, gradient_like, theta_like = witnesses
    real = theta_like.dtype.type
    k = others.size
    B, a, weights = numbers[:k], numbers[k], numbers[k + 1]
    old = np.empty((k, BLOCK), unit_like.dtype)
    buffer = np.empty(BLOCK, theta_like.dtype)
    for c in range(lo, hi):
        t, first, last = chunks[c]
        for start in range(first, last, BLOCK):
            count = min(BLOCK, last - start)
            g = view(table[k, t], start, count, gradient_like)
            theta = view(table[k + 1, t], start, count, theta_like)
            for j in range(k):
                if needed[j]:
                    _copy(old[j], view(table[j, t], start, count, unit_like))
            # Last unit first, because in a Jordan block it needs the old one before it.
            for j in range(k - 1, -1, -1):
                unit = view(table[j, t], start, count, unit_like)
                kept = real(keep if j == k - 1 else 1)
                i = feeder[j]
                if others[j] == 0:
                    _advance_fed_by_one(unit, B[j, j], g, a[j], theta, kept, weights[j], keys[j, t], start)
                elif others[j] == 1 and i < j and a[j] == 0:
                    source = view(table[i, t], start, count, unit_like)
                    _advance_fed_by_one(
                        unit, B[j, j], source, B[i, j], theta, kept, weights[j], keys[j, t], start
                    )
                else:
                    new = buffer[:count]
                    _start(new, B[j, j], unit)
                    for i in range(k):
                        if i > j:
                            _add(new, B[i, j], old[i])
                        elif i < j:
                            _add(new, B[i, j], view(table[i, t], start, count, unit_like))
                    _add(new, a[j], g)
                    _advance_to(unit, new, theta, kept, weights[j], keys[j, t], start)
