"""Memory rules in NumPy against the reference, which knows nothing of them."""

import math

import numpy as np
import pytest

import oracles
from problems import Clipped, SignMomentum, noisy, noisy_quadratic
from rllc import reference
from rllc.law import PROGRESS, DiagonalRidge, LawStep, Sums, correction, in_scale, plain_frame
from rllc.memory import (
    LAST_GRADIENT,
    Adam,
    AdaptiveMomentum,
    Deviation,
    MemoryRule,
    linear,
    union,
    yardsticks,
)

N, STEPS = 12, 60
H, NOISE, START = noisy_quadratic(N)


def run(rule, law, c1, c2, step):
    """RLLC with a rule, in NumPy, by the parts that the frameworks use: (θ, M, L) of each step."""
    gradient, theta, L = noisy(H, NOISE), START.copy(), np.asarray(law, float)
    units, hidden, last = (np.zeros(N),) * rule.k, rule.init(np, START), np.float64(0)
    progress = np.zeros(PROGRESS)
    for _ in range(STEPS):
        g, M = gradient(theta), np.stack(units, 1)
        dual = M if rule.metric is None else np.stack([rule.metric(np, u, hidden) for u in units], 1)
        sums = Sums(M.T @ dual, M.T @ g, g @ g, np.float64(1), np.float64(1))
        x = correction(np, sums, plain_frame(rule.k), DiagonalRidge(), faded=None, rounding=1e-15)
        x = in_scale(np, x, sums.W, last, yardsticks(rule))
        L, progress = step.taken(np, L, c2, x, np.linalg.norm(g), progress)
        units, hidden = rule.update(np, g, units, hidden, theta)
        theta, last = theta - c1 * np.stack(units, 1) @ L, np.linalg.norm(g)
        yield theta, np.stack(units, 1), L


def test_a_union_shares_the_first_metric_and_measures_guests_by_its_owner():
    rule = union("M(0.9)", SignMomentum())
    assert yardsticks(rule) == (1, None)
    ours = run(rule, [0.1, 1.0], 0.01, 0.05, LawStep())
    theirs = oracles.momentum_and_signs(N).process(
        noisy(H, NOISE), START, [0.1, 1.0], 0.01, reference.additive(0.05)
    )
    for found, state in zip(ours, theirs, strict=False):
        for ours, expected in zip(found, state, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10)


def test_a_unit_without_a_metric_is_measured_by_the_last_gradient():
    assert yardsticks(Clipped()) == (LAST_GRADIENT,)


def test_the_deviation_from_the_average():
    """θ̄ of θ_0 ... θ_(t-1) with weights close to t^9, by its definition as a sum."""
    theta, M, _ = zip(*run(union("M(0)", Deviation()), [1.0, 0.0], 0.05, 0.0, LawStep()), strict=True)
    seen = np.array([START, *theta[:-1]])
    t = np.arange(1, STEPS + 1)
    # The weight of θ_i in θ̄_t is 10/(i+9) times what later points leave of it.
    weights = np.array([math.prod((s - 1) / (s + 9) for s in t[i:]) * 10 / (t[i - 1] + 9) for i in t])
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(M[-1][:, 1], seen[-1] - weights @ seen, rtol=1e-10, atol=1e-12)


def fed(rule, gradients):
    """Units and hidden state after these gradients."""
    units, hidden = (np.zeros(N),), rule.init(np, START)
    for g in gradients:
        units, hidden = rule.update(np, g, units, hidden, START)
    return units[0], *hidden


def test_adaptive_momentum_moves_its_eigenvalue_by_the_hypergradient():
    m, n, b, law = np.zeros(N), np.zeros(N), math.log(0.9 / 0.1), 0.02
    theta, gradient, betas = START.copy(), noisy(H, NOISE), []
    ours = run(AdaptiveMomentum(rate=0.3), [1.0], law, 0.0, LawStep())
    for t, (found, M, _) in enumerate(ours):
        g = gradient(theta)
        if t > 1:  # there was no step before the first, and n is still zero in the second
            b += 0.3 * (g @ n) / np.linalg.norm(g) / np.linalg.norm(n)
        betas.append(1 / (1 + math.exp(-b)))
        m, n = betas[-1] * m + g, betas[-1] * n + m
        theta = theta - law * m
        np.testing.assert_allclose(found, theta, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(M[:, 0], m, rtol=1e-11, atol=1e-12)
    assert betas[:2] == pytest.approx([0.9, 0.9]) and max(betas) - min(betas) > 0.05


def test_its_hidden_unit_is_the_derivative_by_the_eigenvalue_and_the_second_of_its_jordan_block():
    beta, d = 0.8, 1e-5
    m, n, _ = fed(AdaptiveMomentum(beta, rate=0.0), NOISE[:20])
    above, below = (fed(AdaptiveMomentum(b, rate=0.0), NOISE[:20])[0] for b in (beta + d, beta - d))
    np.testing.assert_allclose(n, (above - below) / (2 * d), rtol=1e-7, atol=1e-8)
    jordan = linear("M_2(0.8)")
    units = (np.zeros(N),) * 2
    for g in NOISE[:20]:
        units, _ = jordan.update(np, g, units, (), START)
    scale = n @ units[1] / (units[1] @ units[1])  # the notation's superdiagonal need not be 1
    np.testing.assert_allclose(units[0], m, rtol=1e-12)
    np.testing.assert_allclose(scale * units[1], n, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1e-37, 1e-20, 1e20, 1e33])
def test_adaptive_momentum_does_not_see_the_size_of_gradients(size):
    """Whose squares float32 does not hold: they must not make β NaN, nor keep it where it is."""

    def eigenvalue(scale):
        rule, m = AdaptiveMomentum(rate=0.3), np.zeros(N, np.float32)
        n, b = (np.asarray(h, np.float32) for h in rule.init(np, m))
        for g in NOISE[:20]:
            (m,), (n, b) = rule.update(np, np.float32(scale) * g.astype(np.float32), (m,), (n, b), START)
        return b

    assert eigenvalue(size) == pytest.approx(eigenvalue(1.0), rel=1e-4)
    assert abs(eigenvalue(1.0) - math.log(0.9 / 0.1)) > 0.1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_adaptive_momentum_stays_inside_the_unit_interval(sign):
    """Every gradient says the same: up to the last bit of the bounds, and no farther."""
    rule = AdaptiveMomentum(rate=1.0)
    units, (n, b) = rule.update(np, START, (np.zeros(N),), rule.init(np, START), START)
    for _ in range(30):
        g = sign * n if n.any() else START
        units, (n, b) = rule.update(np, g, units, (n, b), START)
    assert 1 / (1 + np.exp(-b)) == pytest.approx(1 - 1e-4 if sign > 0 else 1e-4, rel=1e-9)


def test_unions_are_flat_and_hidden_states_stay_apart():
    rule = union(union("M(0.9) + M(0)", Adam()), Deviation())
    assert (rule.k, len(rule.rules), yardsticks(rule)) == (4, 3, (2, 2, None, 2))
    hidden = rule.init(np, START)
    units, hidden = rule.update(np, START, (np.zeros(N),) * 4, hidden, START)
    alone, of_adam = Adam().update(np, START, (np.zeros(N),), Adam().init(np, START), START)
    np.testing.assert_array_equal(units[2], alone[0])
    np.testing.assert_array_equal(rule.metric(np, START, hidden), Adam().metric(np, START, of_adam))


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_law_in_a_metric_does_not_see_the_scale_of_the_loss(factor):
    def scaled(c):
        rule, gradient, theta, L = Adam(eps=0.0), noisy(H, NOISE), START.copy(), np.ones(1)
        units, hidden, progress = (np.zeros(N),), rule.init(np, START), np.zeros(PROGRESS)
        for _ in range(STEPS):
            g, [u] = c * gradient(theta), units
            W, v = np.array([[u @ rule.metric(np, u, hidden)]]), np.array([u @ g])
            sums = Sums(W, v, g @ g, np.float64(1), np.float64(1))
            x = correction(np, sums, plain_frame(1), DiagonalRidge(), faded=None, rounding=1e-15)
            L, progress = LawStep(q=1.5).taken(np, L, 0.3, x, np.linalg.norm(g), progress)
            units, hidden = rule.update(np, g, units, hidden, theta)
            theta = theta - 0.02 * L * units[0]
        return theta

    np.testing.assert_allclose(scaled(factor), scaled(1.0), rtol=1e-11)


def taken(step, law, rate, x):
    law, progress = step.taken(np, np.asarray(law), rate, np.asarray(x), 1.0, np.zeros(PROGRESS))
    assert progress[0] == 1
    return law


def test_the_step_of_the_law_is_clipped_by_its_length():
    step = LawStep(clip=0.5)
    np.testing.assert_allclose(taken(step, [1.0, 1.0], 0.1, [3.0, 4.0]), [1.03, 1.04])
    np.testing.assert_array_equal(taken(step, [1.0, 1.0], 0.1, [0.0, 0.0]), np.ones(2))
    np.testing.assert_allclose(taken(LawStep(q=2.0), [3.0, -4.0], 1e-3, [1.0, 1.0]), [3.025, -3.975])


def test_a_law_grows_until_steps_are_long_enough_and_then_learns_in_units_of_what_it_found():
    step = LawStep(q=1.5, decay=0.5, growth=0.1, smoothing=0.8)
    signs = [1.0] * 20 + [-1.0] * 10 + [1.0] * 20
    law, progress, mean, found = np.array([3e-3, 4e-3]), np.zeros(PROGRESS), 0.0, None
    for t, sign in enumerate(signs, 1):
        before = law
        law, progress = step.taken(np, law, 0.2, sign * np.array([0.6, 0.8]), 7.0, progress)
        mean = 0.8 * mean + 0.2 * sign
        if found is None and t > 5 and mean <= 0:
            found = np.linalg.norm(before)
        length = np.linalg.norm(before)
        expected = length * math.exp(0.1)
        if found is not None:
            expected = min(found, length + 0.2 / math.sqrt(t) * found * (length / found) ** 1.5 * sign)
        np.testing.assert_allclose(law, expected * np.array([0.6, 0.8]), rtol=1e-12)
    assert found == pytest.approx(5e-3 * math.exp(0.1 * 23))  # the mean follows the sign three steps late
    assert progress.tolist() == pytest.approx([50, mean, found, 7.0, 1.0])
    assert np.linalg.norm(law) == pytest.approx(found, rel=1e-12)  # and no further, whatever x says


def test_a_law_whose_rate_is_zero_neither_learns_nor_grows():
    step, law, progress = LawStep(q=1.5, growth=0.1, smoothing=0.5), np.array([0.01]), np.zeros(PROGRESS)
    for x in (1.0, 0.5, -1.0, -1.0) * 5:
        law, progress = step.taken(np, law, 0.0, np.array([x]), 1.0, progress)
    assert law == 0.01


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_law_does_not_grow_by_gradients_a_hundredth_as_large_as_the_mean_of_all_so_far(scale):
    """Nor by none at all, which do not count; it goes on when they are large again, and one huge gradient
    does not stop it.
    """
    step, law, progress = LawStep(growth=0.1), np.array([1.0]), np.zeros(PROGRESS)
    sizes = [1.0] * 9 + [1e-3, 0.0] * 20 + [1.0] + [1e3] + [1.0] * 20
    for t, size in enumerate(sizes, 1):
        before = law
        law, progress = step.taken(np, law, 0.1, np.array([1.0]), scale * size, progress)
        mean = np.mean([size for size in sizes[:t] if size])
        assert progress[3] == pytest.approx(scale * mean, rel=1e-12)
        assert law[0] == pytest.approx(before[0] * (math.exp(0.1) if size > 0.01 * mean else 1.0), rel=1e-15)
    assert law[0] == pytest.approx(math.exp(0.1 * (9 + 1 + 1 + 20)), rel=1e-12)


def test_a_relative_step_makes_no_law_longer_by_so_small_a_gradient():
    """It may turn it, and make it shorter; the paper's step asks no gradient for its size."""
    for x, expected in (([3.0, 4.0], [0.6, 0.8]), ([-0.5, 0.0], [0.55, 0.8]), ([0.0, 1.0], None)):
        laws = {}
        for q in (1.5, 0.0):
            law, progress = np.array([0.6, 0.8]), np.array([9.0, 0.0, 0.0, 1.0, 0.0])
            laws[q], progress = LawStep(q=q).taken(np, law, 0.1, np.array(x), 1e-3, progress)
            assert progress[3] == (pytest.approx(0.9001) if q else 1.0)
        plain = law + 0.1 * np.array(x)
        np.testing.assert_allclose(laws[0.0], plain, rtol=1e-15)
        expected = plain / np.linalg.norm(plain) if expected is None else expected
        np.testing.assert_allclose(laws[1.5], expected, rtol=1e-12)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_diagonal_ridge_does_not_see_lengths(size):
    W = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    v, D = np.array([1.0, 2.0, 0.0]), np.diag([size, 1.0, 1.0])
    x, scaled = (
        DiagonalRidge().solve(np, Sums(A, b, np.float64(1), np.float64(1), np.float64(1)), 1e-15)
        for A, b in ((W, v), (D @ W @ D, D @ v))
    )
    np.testing.assert_allclose(D @ scaled, x, rtol=1e-12)
    assert x[2] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adam(b1=1.0), "b1 must be in"),
        (lambda: Adam(eps=-1.0), "eps must be a finite number >= 0"),
        (lambda: Deviation(math.nan), "power must be a finite number >= 0"),
        (lambda: AdaptiveMomentum(beta=1.0), "beta must be in"),
        (lambda: AdaptiveMomentum(rate=math.inf), "rate must be a finite number >= 0"),
        (lambda: union(), "at least one rule"),
        (lambda: union("M(0.9)", 3), "not a memory rule: 3"),
        (lambda: union("M(1.1)"), "inside the unit circle"),
        (lambda: LawStep(q=-1), "q must be a finite number >= 0"),
        (lambda: LawStep(clip=0), "clip must be a number > 0"),
        (lambda: LawStep(decay=math.inf), "decay must be a finite number >= 0"),
        (lambda: LawStep(growth=-0.1), "growth must be a number from 0 to 10"),
        (lambda: LawStep(smoothing=1.0), "smoothing must be in"),
        (lambda: DiagonalRidge(-1.0), "eps must be a finite number >= 0"),
        (lambda: MemoryRule().update(np, START, (), (), START), "has no update"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        make()
