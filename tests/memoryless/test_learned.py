"""RLLC's own memory: the smooth ridge's theorem, the exact inverse's limits, the symmetry of the rates."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rllc
from rllc import reference
from rllc.lab.memoryless.problems import PROBLEMS
from rllc.memoryless import (
    Linear,
    SmoothRidge,
    averaging_law,
    correction,
    direction,
    extrapolating_law,
    follow,
    gain_and_delay,
    simulate,
    unit_rates,
)

MEMORIES = ("M(0.7)", "M(0.7) + M(0.0)", "M_2(0.5)")


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_smooth_ridge_has_the_general_correction(memory):
    f, theta = PROBLEMS["tanh-net"]()
    grad, p = jax.grad(f), rllc.parse(memory)
    form = SmoothRidge(p, ridge=0.3, kappa=2.0, h=0.0)
    point = theta, jnp.linspace(1.0, 0.4, p.k)
    rows = form.coefficients(6)

    @jax.jit
    def both(n):
        row = jax.tree.map(lambda x: jnp.asarray(x)[n], rows)
        method = form.method(grad)
        return row, form.terms(grad, row, point), direction(method, n)(point), correction(method, n)(point)

    for n in (0, 1, 2, 6):
        row, (F, corr), want, (theta_part, law_part) = both(n)
        for got, wanted in zip(F, want, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-12)
        law_of_the_step = -(row.after @ F[1]) * grad(theta)  # the O(h) term of F
        np.testing.assert_allclose(corr[0], theta_part + law_of_the_step, atol=1e-11)
        np.testing.assert_allclose(corr[1], law_part, atol=1e-11)
    late = jax.tree.map(lambda x: x[-1], form.coefficients(500))
    for got, want in zip(form.stationary(), late, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("memory", MEMORIES)
def test_parameters_and_law_together_are_followed_to_second_order(memory):
    f, theta = PROBLEMS["tanh-net"]()
    grad, p = jax.grad(f), rllc.parse(memory)
    start = theta, jnp.ones(p.k)

    @jax.jit  # once for all h: each goes as many steps as the smallest
    def distances(h):
        form = SmoothRidge(p, ridge=0.3, kappa=1.0, h=h)
        run = simulate(form.method(grad), start, h, 2048)
        others = [follow(form, grad, start, h, 2048, corrected) for corrected in (True, False)]
        return [jnp.hstack([a - b for a, b in zip(run, other, strict=True)]) for other in others]

    steps = 512, 1024, 2048
    errors = [[jnp.abs(apart[: n + 1]).max() for apart in distances(1 / n)] for n in steps]
    corrected, plain = -np.diff(np.log2(errors), axis=0).T
    np.testing.assert_allclose(corrected, 2, atol=0.08)
    np.testing.assert_allclose(plain, 1, atol=0.08)


def test_only_products_of_the_rates_matter():
    f, theta = PROBLEMS["tanh-net"]()
    grad = jax.jit(jax.grad(f))
    p, c1, c2, L0 = rllc.parse("M(0.8) + M(0.1)"), 0.04, 0.005, np.array([1.0, 0.3])
    h, l0 = unit_rates(c1, c2, L0)
    pinv = reference.gramian_ridge(p, 1e-3)
    a, b = (
        next(itertools.islice(reference.algorithm_1(grad, theta, p, law, *rates, pinv), 50, None)).theta
        for rates, law in (((c1, c2), L0), ((h, h), l0))
    )
    np.testing.assert_allclose(a, b, rtol=1e-9)


def test_gain_and_delay_of_a_path_of_laws_are_those_of_each():
    p = rllc.parse("M(0.9) + M(0.0)")
    laws = np.array([[0.9, 1.0], [1.0, 1.0], [1.0, -10.0]])
    gain, delay = gain_and_delay(p, laws)
    np.testing.assert_allclose(gain, [10, 11, 0], atol=1e-12)
    np.testing.assert_allclose(delay[:2], [rllc.FixedLaw(p, L).mean_delay for L in laws[:2]], rtol=1e-12)
    assert np.isnan(delay[2])


def test_the_extrapolating_law_of_momentum_and_gradient():
    b = 0.9
    x = extrapolating_law(rllc.parse("M(0.9) + M(0.0)"))
    np.testing.assert_allclose(x, [-((1 - b) ** 2) / b, 1 / b], rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 12, 16])
def test_the_extrapolating_law_of_a_delay_line_is_newtons(order):
    x = extrapolating_law(rllc.M(0.0, order))
    want = [(-1) ** j * math.comb(order, j + 1) for j in range(order)]
    np.testing.assert_allclose(x, want, rtol=1e-13)


@pytest.mark.parametrize("memory", ["M_7(0.9)", "M_9(0.5)", "M_16(0)", "M_3(0.999) + M_3(0)"])
def test_the_extrapolating_law_of_nearly_dependent_units(memory):
    """Against sums without rounding: of weights 1, and of weights times ages 1, 2, ... none."""
    p = rllc.parse(memory)
    B, a, x = ([[Fraction(v) for v in row] for row in m] for m in (p.B, [p.a], [extrapolating_law(p)]))
    resolvent, rows = inverse_of_one_minus(B), a
    for degree in range(p.k):
        rows = product(rows, resolvent)
        terms = [r * v for r, v in zip(rows[0], x[0], strict=True)]
        assert abs(sum(terms) - (degree == 0)) <= 1e-13 * sum(map(abs, terms))


@pytest.mark.parametrize("memory", ["M(0.7) + M(0.0)", "M_2(0.5)", "M_3(0.6)", "M(0.9) + M(-0.9) + CM(0.9i)"])
def test_the_extrapolating_law_extrapolates_polynomials(memory):
    p = rllc.parse(memory)
    x = extrapolating_law(p)
    rule = p.abstract_rule(3000) @ x  # weights of the gradients 1, 2, ... steps back from the new one
    ages = np.arange(1.0, 3001.0)
    for degree in range(p.k):
        np.testing.assert_allclose(rule @ (-ages) ** degree, float(degree == 0), atol=1e-7)
    gain, delay = gain_and_delay(p, x)
    np.testing.assert_allclose([gain, delay], [1, -1], atol=1e-9)


@pytest.mark.parametrize("memory", ["M(0.7) + M(0.0)", "M_2(0.5)"])
def test_on_smooth_gradients_the_exact_inverse_extrapolates_and_a_large_ridge_averages(memory):
    f, theta = PROBLEMS["tanh-net"]()
    grad, p = jax.jit(jax.grad(f)), rllc.parse(memory)
    r0 = gain_vector(p)
    errors = {"exact": [], "ridge": []}
    for h in (1e-2, 1e-3):
        M, x = np.zeros((theta.size, p.k)), np.asarray(theta)
        for _ in range(80):
            g = np.asarray(grad(x))
            last, M = M, M @ p.B + np.outer(g, p.a)
            x = x - h * g
        exact = np.linalg.pinv(last) @ g
        singular = np.linalg.svd(last, compute_uv=False)
        ridged = np.linalg.solve(last.T @ last + 100 * singular[1] ** 2 * np.eye(p.k), last.T @ g)
        errors["exact"].append(np.abs(exact - extrapolating_law(p)).max())
        errors["ridge"].append(np.abs(ridged - r0 / (r0 @ r0)).max())
    assert errors["exact"][1] < 0.02 and errors["exact"][1] < errors["exact"][0] / 5
    assert errors["ridge"][1] < 0.05


def product(A, B):
    return [
        [sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*B, strict=True)] for row in A
    ]


def inverse_of_one_minus(B):
    """(I - B)⁻¹ for an upper triangular B of fractions, by back substitution."""
    k = len(B)
    inverse = [[Fraction(i == j) for j in range(k)] for i in range(k)]
    for i in reversed(range(k)):
        for j in range(k):
            later = sum(B[i][n] * inverse[n][j] for n in range(i + 1, k))
            inverse[i][j] = (inverse[i][j] + later) / (1 - B[i][i])
    return inverse


def gain_vector(p):
    return np.linalg.solve(np.eye(p.k) - p.B.T, p.a)


def test_in_noise_the_law_moves_toward_the_averaging_of_least_variance():
    p = rllc.parse("M(0.8) + M(0.0)")
    law = averaging_law(p)
    np.testing.assert_allclose(law[1] / law[0], -1 / 1.8, rtol=1e-12)
    rng = np.random.default_rng(0)
    n, mean, S = 4000, 0.2, 1.0  # per entry
    gamma, r0 = p.gramian(), gain_vector(p)
    S, G2 = n * S, n * mean**2
    want = np.linalg.solve(gamma, r0) * G2 / (S + G2 * r0 @ np.linalg.solve(gamma, r0))
    total, M = np.zeros(p.k), np.zeros((n, p.k))
    for t in range(400):
        g = mean + rng.normal(size=n)
        if t >= 40:
            total += np.linalg.pinv(M) @ g
        M = M @ p.B + np.outer(g, p.a)
    np.testing.assert_allclose(total / 360, want, atol=0.03 * np.abs(want).max())
    assert gain_and_delay(p, law).delay > gain_and_delay(p, [1.0, 1.0]).delay


def test_equal_units_share_the_averaging_law():
    one, two = (averaging_law(rllc.parse(text)) for text in ("M(0.8) + M(0)", "M(0.8) + M(0.8) + M(0)"))
    np.testing.assert_allclose(two, [one[0] / 2, one[0] / 2, one[1]], rtol=1e-9)


def test_one_units_law_grows_linearly_in_the_small_step_limit():
    """l' = 1/r0: the built-in warm-up."""
    f, theta = PROBLEMS["tanh-net"]()
    grad, p = jax.jit(jax.grad(f)), rllc.parse("M(0.5)")
    found = []
    for h in (1e-2, 1e-3):
        states = reference.algorithm_1(grad, theta, p, [0.0], h, h, reference.cutoff(1e-12))
        L = next(itertools.islice(states, round(0.5 / h) - 1, None)).L
        found.append(float(L[0]) / 0.25)
    # 0.979 and 0.998 in docs/memoryless.md, on another problem
    assert abs(found[1] - 1) < 0.01 and abs(found[1] - 1) < abs(found[0] - 1) / 3


def test_a_text_names_a_memory():
    assert gain_and_delay("M(0.9)", [1.0]) == gain_and_delay(rllc.M(0.9), [1.0])
    assert averaging_law("M(0.9)") == averaging_law(rllc.M(0.9))
    assert extrapolating_law("M(0.9)") == extrapolating_law(rllc.M(0.9))
    assert SmoothRidge("M(0.9)", 1.0, 1.0, 0.1).propagator == rllc.M(0.9)


def test_bad_input():
    with pytest.raises(ValueError, match=r"laws for M\(0.9\) are \(..., 1\), got shape \(2,\)"):
        gain_and_delay("M(0.9)", [1.0, 2.0])
    with pytest.raises(ValueError, match=r"law must be a FixedLaw such as .*, got M\(0.9\)"):
        Linear(rllc.M(0.9))
    with pytest.raises(ValueError, match="ridge must be a positive finite number, got 0"):
        SmoothRidge(rllc.M(0.5), ridge=0.0, kappa=1.0, h=0.1)
    with pytest.raises(ValueError, match="kappa must be a finite number >= 0, got -3"):
        SmoothRidge(rllc.M(0.5), ridge=1.0, kappa=-3.0, h=0.1)
    with pytest.raises(ValueError, match="h must be a finite number >= 0, got nan"):
        SmoothRidge(rllc.M(0.5), ridge=1.0, kappa=1.0, h=float("nan"))
    with pytest.raises(ValueError, match="not independent"):
        extrapolating_law(rllc.parse("M(0.9) + M(0.9)"))
