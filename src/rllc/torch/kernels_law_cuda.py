"""A Triton kernel for the k x k part of a step: `rllc.law` in one program, for `rllc.torch.fused_law_cuda`.

What stands there as a dozen small functions of arrays is here one launch instead of a hundred; the text
follows them line by line. All numbers are float64. Vectors have SIZE entries, a power of two above k: those
beyond what they stand for are zero.
"""

import triton
import triton.language as tl

from rllc import law as _law

__all__ = ["learn"]

LEAP, LOST, QUIET = tl.constexpr(_law.LEAP), tl.constexpr(_law.LOST), tl.constexpr(_law.QUIET)


@triton.jit
def _matrix(pointer, rows: tl.constexpr, columns: tl.constexpr, SIZE: tl.constexpr):
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    return tl.load(pointer + i * columns + j, (i < rows) & (j < columns), other=0.0)


@triton.jit
def _vector(pointer, size: tl.constexpr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    return tl.load(pointer + i, i < size, other=0.0)


@triton.jit
def _eye(size: tl.constexpr, SIZE: tl.constexpr):
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    return tl.where((i == j) & (i < size), 1.0, 0.0).to(tl.float64)


@triton.jit
def _times(A, x):
    return tl.sum(A * x[None, :], 1)


@triton.jit
def _length(x):
    return tl.sqrt(tl.sum(x * x, 0))


@triton.jit
def _power(x, exponent: tl.constexpr):
    """x^exponent of x >= 0, exponent not 0."""
    return tl.where(x > 0, tl.exp(exponent * tl.log(tl.where(x > 0, x, 1.0))), 0.0)


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _solved(A, b, size: tl.constexpr, SIZE: tl.constexpr):
    """A⁻¹ b, A positive definite: Gauss and Jordan's elimination, which needs no pivots for it."""
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    place = tl.arange(0, SIZE)
    for p in tl.static_range(size):
        pivot_row = tl.sum(tl.where(row == p, A, 0.0), 0)
        pivot = tl.sum(tl.where(place == p, pivot_row, 0.0), 0)
        of_pivot = tl.sum(tl.where(place == p, b, 0.0), 0)
        factor = tl.where(place == p, 0.0, tl.sum(tl.where(column == p, A, 0.0), 1) / pivot)
        A -= factor[:, None] * pivot_row[None, :]
        b -= factor * of_pivot
    diagonal = tl.sum(tl.where(row == column, A, 0.0), 1)
    return tl.where(place < size, b / tl.where(place < size, diagonal, 1.0), 0.0)


@triton.jit
def _ridge_solved(
    W,
    v,
    relative: tl.constexpr,
    eps: tl.constexpr,
    rounding: tl.constexpr,
    R: tl.constexpr,
    SIZE: tl.constexpr,
):
    """`rllc.law.GramianRidge.solve` or, where eps is not relative, `rllc.law.Ridge.solve`."""
    trace = tl.sum(tl.sum(W * _eye(R, SIZE), 1), 0)
    amount = trace * (eps / R) if relative else tl.full((), eps, tl.float64)
    amount = tl.maximum(amount, rounding * trace)
    return _solved(W + tl.where(amount > 0, amount, 1.0) * _eye(R, SIZE), v, R, SIZE)


@triton.jit
def _within(x, bound):
    length = _length(x)
    return x * tl.where(length > bound, bound / tl.where(length > 0, length, 1.0), 1.0)


@triton.jit
def _taken(
    law,
    rate,
    x,
    gradient,
    progress,
    lr,
    q: tl.constexpr,
    decay: tl.constexpr,
    clip: tl.constexpr,
    growth: tl.constexpr,
    smoothing: tl.constexpr,
    window: tl.constexpr,
):
    """`rllc.law.LawStep.taken`; growth is e^growth - 1, clip 0 for none."""
    t, mean, size = tl.load(progress) + 1, tl.load(progress + 1), tl.load(progress + 2)
    usual, top = tl.load(progress + 3), tl.load(progress + 4)
    if growth > 0:
        back = tl.where((top > 0) & (lr > top), top / tl.where(lr > 0, lr, 1.0), 1.0)
        law, size, rate = law * back, size * back, tl.where(lr > 0, rate, 0.0)
    if clip > 0:
        x = _within(x, clip)
    rate_now = rate * _power(t, -decay) if decay > 0 else rate
    length = _length(law)
    if growth > 0 or q > 0:
        usual += (gradient - usual) / t
        is_quiet = gradient <= QUIET * usual
    if growth > 0:
        along = tl.sum(law * x, 0) / tl.where(length > 0, length, 1.0)
        mean = smoothing * mean + (1 - smoothing) * along
        ripe = (size == 0) & (mean <= 0) & (t >= window) & (rate > 0)
        size = tl.where(ripe, length, size)
        s = tl.where(size > 0, size, 1.0)
        move = rate_now * s * x
        if q > 0:
            move = _within(move * _power(length / s, q), LEAP * length)
        learned = law + move
        grown = tl.where(is_quiet | (rate <= 0), law, law * (1 + growth))
        law = tl.where(size > 0, _within(learned, s), grown)
        top = tl.where(size > 0, tl.maximum(lr, top), 0.0)
    elif q > 0:
        learned = law + _within(rate_now * _power(length, q) * x, LEAP * length)
        law = tl.where(is_quiet, _within(learned, length), learned)
    else:
        law += rate_now * x
    return law, t, mean, size, usual, top


@triton.jit
def learn(
    found,
    rates,
    fed,
    law,
    faded,
    last,
    progress,
    skipped,
    draws,
    dice,
    seed,
    basis,
    metric,
    growth_of_sums,
    B,
    numbers,
    taken,
    SHARES: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    SIZE: tl.constexpr,
    relative: tl.constexpr,
    eps: tl.constexpr,
    guard: tl.constexpr,
    first: tl.constexpr,
    rounding: tl.constexpr,
    most: tl.constexpr,
    weighed: tl.constexpr,
    moving: tl.constexpr,
    drawn: tl.constexpr,
    q: tl.constexpr,
    decay: tl.constexpr,
    clip: tl.constexpr,
    growth: tl.constexpr,
    smoothing: tl.constexpr,
    window: tl.constexpr,
):
    """The law and what is kept beside it, in place, and the numbers of the second pass.

    found: (SHARES, R+1, R+1) sums. rates: (SHARES, 3) lr, law_lr and weight decay; fed: (SHARES, K) a, or -a.
    law (K), faded (K, K), last () and progress (5) as in `rllc.torch.learning.Learned`; skipped and draws
    count; dice gets the seed and the draws so far. basis (K, R), metric (R, R), growth_of_sums (R+1) and
    B (K, K) as in `rllc.torch.learning.Constants`. numbers (SHARES, K² + 2K + 1) gets B, a, weights and keep;
    taken, a bool, whether it is a step at all. first: the guard's level for a gradient of size one; most:
    what no entry of memory may reach; weighed: whether M⁺g is that of the share of the largest rate; moving:
    whether shares that stay, lr = 0, are not heard beside others.
    """
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    place = tl.arange(0, SIZE)
    growths = _vector(growth_of_sums, R + 1, SIZE)

    ok, nothing = tl.full((), True, tl.int1), tl.full((), 0.0, tl.float64)
    largest, fastest = nothing, nothing
    for s in tl.static_range(SHARES):
        sums = _matrix(found + s * (R + 1) * (R + 1), R + 1, R + 1, SIZE)
        norms = tl.sqrt(tl.sum(tl.where(row == column, sums, 0.0), 1))
        ok &= tl.sum(tl.sum(tl.where(_finite(sums), 0, 1), 1), 0) == 0
        ok &= tl.sum(norms * growths, 0) < most
        largest = tl.maximum(largest, tl.load(rates + 3 * s + 1))
        fastest = tl.maximum(fastest, tl.load(rates + 3 * s))
    rate = largest if weighed else nothing + 1.0

    W = tl.zeros((SIZE, SIZE), tl.float64)
    v = tl.zeros((SIZE,), tl.float64)
    gg = nothing
    for s in tl.static_range(SHARES):
        sums = _matrix(found + s * (R + 1) * (R + 1), R + 1, R + 1, SIZE)
        sums = tl.where(ok, sums, 0.0)
        if moving:
            sums = tl.where((tl.load(rates + 3 * s) > 0) | (fastest <= 0), sums, 0.0)
        W += tl.where((row < R) & (column < R), sums, 0.0)
        last_column = tl.sum(tl.where(column == R, sums, 0.0), 1)
        gg += tl.sum(tl.where(place == R, last_column, 0.0), 0)
        weight = tl.load(rates + 3 * s + 1)
        if weighed:
            weight /= tl.where(largest > 0, largest, 1.0)
        v += weight * tl.where(place < R, last_column, 0.0)

    old_law, old_faded = _vector(law, K, SIZE), _matrix(faded, K, K, SIZE)
    x = _times(_matrix(basis, K, R, SIZE), _ridge_solved(W, v, relative, eps, rounding, R, SIZE))
    if guard:
        held = tl.sum(tl.sum(_matrix(metric, R, R, SIZE) * W, 1), 0)
        level = first * gg
        x = _times(old_faded, x) * tl.minimum(held / tl.where(level > 0, level, 1.0), 1.0)
    gradient = tl.sqrt(gg)
    new_law, t, mean, size, usual, top = _taken(
        old_law, rate, x, gradient, progress, fastest, q, decay, clip, growth, smoothing, window
    )
    counts = ok
    if growth > 0:
        counts = ok & (gradient > 0)
        new_law = tl.where(gradient > 0, new_law, old_law)
    ok &= tl.sum(tl.where(tl.abs(new_law) < LOST, 0, 1), 0) == 0

    transition = _matrix(B, K, K, SIZE)
    faded_on = tl.sum(old_faded[:, :, None] * transition[None, :, :], 1)
    new_law = tl.where(ok, new_law, old_law)
    square = (row < K) & (column < K)
    tl.store(law + place, new_law, place < K)
    tl.store(
        faded + row * K + column,
        tl.where(ok, tl.where(gg > 0, _eye(K, SIZE), faded_on), old_faded),
        square,
    )
    tl.store(last, gradient, ok)
    tl.store(progress, t, counts)
    tl.store(progress + 1, mean, counts)
    tl.store(progress + 2, size, counts)
    tl.store(progress + 3, usual, counts)
    tl.store(progress + 4, top, counts)
    tl.store(skipped, tl.load(skipped) + 1, ok == 0)
    if drawn:
        tl.store(dice, seed)
        tl.store(dice + 1, tl.load(draws))
        tl.store(draws, tl.load(draws) + 1, ok)
    tl.store(taken, ok)
    for s in tl.static_range(SHARES):
        to = numbers + s * (K * K + 2 * K + 1)
        lr, decay_now = tl.load(rates + 3 * s), tl.load(rates + 3 * s + 2)
        tl.store(to + row * K + column, tl.where(ok, transition, _eye(K, SIZE)), square)
        tl.store(to + K * K + place, _vector(fed + s * K, K, SIZE), place < K)
        tl.store(to + K * K + K + place, tl.where(ok, -lr * new_law, 0.0), place < K)
        tl.store(to + K * K + 2 * K, tl.where(ok, 1 - lr * decay_now, 1.0))
