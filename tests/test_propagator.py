"""The value (B, a): its blocks against their closed forms, and what a change of units does and leaves."""

import copy
import math
import pickle
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memories import blocks, change, complexes, is_clear, reals, seeds, unions
from problems import random_propagator
from rllc import CM, M, Propagator, parse


def memory_after(p, gradients):
    """M_t of the update M <- M B + g aᵀ, unit by unit, from the old values."""
    units = [np.zeros(gradients.shape[1]) for _ in range(p.k)]
    for g in gradients:
        units = [p.a[j] * g + sum(p.B[i, j] * units[i] for i in range(p.k)) for j in range(p.k)]
    return np.column_stack(units)


def closed_form(z, order, n):
    """C(i, j-1) z^(i-j+1) for lag i < n and unit j <= order; 0 before unit j has heard anything."""
    return np.array([[comb(i, j) * z ** (i - j) if i >= j else 0 for j in range(order)] for i in range(n)])


@given(reals, st.integers(1, 5))
def test_rules_of_a_jordan_block(beta, order):
    np.testing.assert_allclose(
        M(beta, order).abstract_rule(60), closed_form(beta, order, 60), rtol=1e-12, atol=1e-13
    )


@given(complexes(), st.integers(1, 4))
def test_rules_of_a_complex_block(gamma, order):
    z = closed_form(gamma, order, 60)
    want = np.stack([z.real, z.imag], axis=2).reshape(60, -1)
    np.testing.assert_allclose(CM(gamma, order).abstract_rule(60), want, rtol=1e-11, atol=1e-12)


def test_the_sign_of_complex_momentum():
    """z <- γ z + g as the paper says in words, not the conjugate its matrix gives."""
    gamma, rng = 0.3 + 0.7j, np.random.default_rng(0)
    z, m, p = np.zeros(3, complex), np.zeros((3, 2)), CM(0.3 + 0.7j)
    for g in rng.normal(size=(20, 3)):
        z, m = gamma * z + g, m @ p.B + np.outer(g, p.a)
    np.testing.assert_allclose(m, np.column_stack([z.real, z.imag]), atol=1e-14)


def test_a_second_order_unit_uses_the_old_first():
    g1, g2, g3 = np.eye(3)
    memory = memory_after(M(0.5, order=2), np.array([g1, g2, g3]))
    np.testing.assert_array_equal(memory[:, 0], 0.25 * g1 + 0.5 * g2 + g3)
    np.testing.assert_array_equal(memory[:, 1], 1.0 * g1 + 1.0 * g2)


@given(unions, seeds)
def test_memory_is_gradients_times_rules(p, seed):
    gradients = np.random.default_rng(seed).normal(size=(15, 4))
    want = gradients[::-1].T @ p.abstract_rule(15)
    np.testing.assert_allclose(memory_after(p, gradients), want, rtol=1e-11, atol=1e-9)


def test_abstract_rule_of_no_gradients():
    assert M(0.9).abstract_rule(0).shape == (0, 1)


def test_a_text_is_no_propagator_yet():
    with pytest.raises(TypeError, match=r"got 'M\(0.6\)'; rllc.parse"):
        M(0.9) | "M(0.6)"


@given(blocks, blocks)
def test_union_puts_units_side_by_side(p, q):
    union, k = p | q, p.k
    np.testing.assert_array_equal(union.B[:k, :k], p.B)
    np.testing.assert_array_equal(union.B[k:, k:], q.B)
    assert not union.B[:k, k:].any() and not union.B[k:, :k].any()
    np.testing.assert_array_equal(union.a, [*p.a, *q.a])
    want = np.hstack([p.abstract_rule(20), q.abstract_rule(20)])  # BLAS adds in another order: last bits
    np.testing.assert_allclose(union.abstract_rule(20), want, rtol=1e-13, atol=1e-15 * abs(want).max())
    assert union.k == p.k + q.k
    assert union.spectral_radius == pytest.approx(max(p.spectral_radius, q.spectral_radius), rel=1e-12)


@given(unions, seeds)
def test_change_of_basis_is_the_memory_times_q(p, seed):
    """Theorem 5.2, corrected: a becomes Qᵀa."""
    Q = change(p.k, seed)
    rules = p.abstract_rule(30)
    np.testing.assert_allclose(
        p.change_basis(Q).abstract_rule(30), rules @ Q, atol=1e-9 * (1 + abs(rules).max())
    )


def test_units_may_be_measured_in_anything():
    p = M(0.5, 2).change_basis(np.diag([1.0, 1e-200]))
    assert p == Propagator([[0.5, 1e-200], [0.0, 0.5]], [1.0, 0.0])


@given(seeds)
def test_units_of_any_size_may_be_mixed(seed):
    """From units of sizes over thirty orders of magnitude to others of one size."""
    p, mix = M(0.6, 2) | CM(0.3 + 0.2j), change(4, seed)
    scales = 10.0 ** np.random.default_rng(seed).uniform(-15, 15, 4)
    want, got = p.change_basis(mix), p.change_basis(np.diag(scales)).change_basis(mix / scales[:, None])
    np.testing.assert_allclose(got.B, want.B, atol=1e-12)
    np.testing.assert_allclose(got.a, want.a, atol=1e-12)


def test_equal_up_to_the_sign_of_zero():
    p, q = Propagator([[0.0]], [1.0]), Propagator([[-0.0]], [1.0])
    assert p == q and hash(p) == hash(q)
    assert M(0.9) != M(0.8) and M(0.9) != M(0.9, 2) and M(0.9) != "M(0.9)"
    assert len({M(0.9), parse("M(.9)"), M(0.8)}) == 2


def test_is_immutable_and_keeps_no_hold_of_its_arguments():
    B = np.array([[0.5]])
    p = Propagator(B, [1.0])
    B[0, 0] = 0.7
    assert p.B[0, 0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        p.B[0, 0] = 0.7
    with pytest.raises(AttributeError):
        p.B = B


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_are_equal_and_immutable(again):
    p = again(M(0.9) | M(0.6, 2))
    assert p == M(0.9) | M(0.6, 2) and not p.B.flags.writeable and not p.a.flags.writeable


def test_eigenvalues_of_a_defective_block_are_exact():
    np.testing.assert_array_equal(M(0.6, order=5).eigenvalues, np.full(5, 0.6))
    np.testing.assert_allclose(
        (M(-0.9) | CM(0.3 + 0.2j) | M(0.9)).eigenvalues, [0.9, -0.9, 0.3 + 0.2j, 0.3 - 0.2j], atol=1e-15
    )


def test_the_spectral_radius_decides_not_the_norm():
    p = M(0.9, order=2)
    assert p.spectral_radius == 0.9
    assert np.linalg.norm(p.B, 2) == pytest.approx(1.53, abs=0.01)


@pytest.mark.parametrize(
    ("B", "a", "reason"),
    [
        ([[1.0]], [1.0], "spectral radius of B is 1"),
        ([[0.0, 2.0], [0.6, 0.0]], [1, 0], "spectral radius of B is 1.09"),
        ([[0.5]], [1.0, 2.0], r"B must be \(k, k\)"),
        ([], [], "B must be a real matrix"),
        ([[0.5j]], [1.0], "B must be a real matrix"),
        ([[np.nan]], [1.0], "B has an entry that is not finite"),
        ([[0.5]], [np.inf], "a has an entry that is not finite"),
        ([0.5], [1.0], "B must be a real matrix"),
    ],
)
def test_refuses(B, a, reason):
    with pytest.raises(ValueError, match=reason):
        Propagator(B, a)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: M(1.0), "1.0 is not inside the unit circle"),
        (lambda: M(-1.5), "-1.5 is not inside the unit circle"),
        (lambda: M(float("nan")), "nan is not inside the unit circle"),
        (lambda: M(10**400), "0000 is not inside the unit circle"),
        (lambda: CM(-(10**400)), "0000 is not inside the unit circle"),
        (lambda: M(Fraction(10**400, 3)), "0000/3 is not inside the unit circle"),
        (lambda: M(1 - Fraction(1, 10**30)), "is not inside the unit circle"),  # 1 in float64
        (lambda: M(False), r"M needs a real number, got False; use M\(0.0\)"),
        (lambda: M(0.3 + 0.2j), r"M needs a real number, got \(0.3\+0.2j\); use CM\(0.3\+0.2i\)"),
        (lambda: M(0.3 + 0j, order=2), r"M needs a real number, got \(0.3\+0j\); use M_2\(0.3\)"),
        (lambda: M(0.3 + 0.2j, order=-1), "order of a block must be a whole number, 1 or more, got -1"),
        (lambda: M("0.9"), "M needs a real number, got '0.9'"),
        (lambda: M(None), "M needs a real number, got None"),
        (lambda: M([0.9]), r"M needs a real number, got \[0.9\]"),
        (lambda: CM("0.3+0.2j"), r"CM needs a complex number, got '0.3\+0.2j'"),
        (lambda: M(0.5, order=0), "order of a block must be a whole number, 1 or more, got 0"),
        (lambda: M(0.5, order=1.5), "order of a block must be a whole number, 1 or more, got 1.5"),
        (lambda: M(0.5).abstract_rule(-1), "n must be a whole number, 0 or more, got -1"),
        (lambda: CM(0.6 + 0.8j), "not inside the unit circle"),
        (lambda: CM(1e308 + 1e308j), "not inside the unit circle"),
        (lambda: CM(0.5), r"use M\(0.5\) for a real number"),
        (lambda: CM(0.5, order=2), r"use M_2\(0.5\) for a real number"),
        (lambda: M(0.5).change_basis([[0.0]]), r"Q is singular.*: \[\[0.0\]\]"),
        (lambda: M(0.5, 2).change_basis([[1.0, 1e-9], [1.0, 1e-9]]), "Q is singular"),
        (lambda: M(0.5, 2).change_basis([[0.0, 0.0], [1.0, 2.0]]), "Q is singular"),
        (lambda: M(0.5).change_basis(np.eye(2)), r"Q must be a \(1, 1\) matrix, got shape \(2, 2\)"),
    ],
)
def test_refuses_a_block(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


@given(unions, seeds)
def test_the_reachable_part_carries_the_memory(p, seed):
    """M = M_r Pᵀ at all times, P an isometry."""
    P, reached = p.reachable()
    np.testing.assert_allclose(P.T @ P, np.eye(reached.k), atol=1e-13)
    gradients = np.random.default_rng(seed).normal(size=(30, 3))
    want = memory_after(p, gradients)
    np.testing.assert_allclose(
        memory_after(reached, gradients) @ P.T, want, atol=1e-8 * (1 + abs(want).max())
    )


@pytest.mark.parametrize(
    ("p", "r"),
    [
        (M(0.9) | M(0.9), 1),
        (M(0.6, 2) | M(0.6), 2),
        (CM(0.3 + 0.2j) | CM(0.3 - 0.2j), 2),
        (Propagator(0.7 * np.eye(3) + np.eye(3, k=1), [0, 2, -1]), 2),
        (Propagator(0.7 * np.eye(3) + np.eye(3, k=1), [2, 1, -1]), 3),
        (M(0.9) | M(0.8) | M(0.7), 3),
        (random_propagator(0, 8), 8),
    ],
)
def test_the_size_of_the_reachable_part(p, r):
    P, reached = p.reachable()
    assert P.shape == (p.k, r) and reached.k == r


EQUAL = ["M(0.9) + M(0.9)", "M_2(0.6) + M(0.6)"]
# Units of these are nearly parallel: orthogonalised, they would lose ten digits and more.
EQUAL_BESIDE_LARGE = [
    "M_4(0.99) + M(0.5) + M(0.5)",
    "M_4(0.99) + M_3(0.99) + M_3(-0.5)",
    "M_3(0.999) + M(0.9) + M(0.5) + M(0) + M(-0.0)",
    "M_6(0.99) + CM(0.3+0.4i) + CM(0.3-0.4i) + CM_2(0.3-0.4i)",
]


@pytest.mark.parametrize("text", [*EQUAL, *EQUAL_BESIDE_LARGE])
def test_equal_eigenvalues_are_merged_without_loss(text):
    p = parse(text)
    P, reached = p.reachable()
    rules, want = reached.abstract_rule(p.lags) @ P.T, p.abstract_rule(p.lags)
    assert reached.k == len(P.T) < p.k
    np.testing.assert_allclose(P.T @ P, np.eye(reached.k), atol=1e-15)
    assert (abs(rules - want) <= 1e-14 * abs(want).max(0)).all()


@given(unions, seeds)
def test_the_reachable_part_does_not_depend_on_the_size_of_units(p, seed):
    """Over thirty orders of magnitude it is as large, holds the same rules, and has the same eigenvalues."""
    scales = 10.0 ** np.random.default_rng(seed).uniform(-15, 15, p.k)
    q = p.change_basis(np.diag(scales))
    P, reached = q.reachable()
    if is_clear(p.abstract_rule(60)):
        assert reached.k == p.reachable()[1].k
    np.testing.assert_allclose(P.T @ P, np.eye(reached.k), atol=1e-13)
    want, got = p.abstract_rule(60), reached.abstract_rule(60) @ P.T / scales
    np.testing.assert_allclose(got, want, atol=1e-12 * abs(want).max())


@pytest.mark.parametrize(
    "text", ["CM_2(-0.2+0.4i) + M_4(0.7)", "M_2(0.3)", "CM_3(0.6+0.01i)", "M(0.5) + M(0.5)"]
)
@pytest.mark.parametrize("cond", [1e4, 1e6, 1e7])
def test_nearly_dependent_units_are_not_taken_for_rounding(text, cond):
    """Dense B of large norm: what is small beside it may be much of a unit."""
    p = parse(text)
    for seed in range(5):
        U, _, V = np.linalg.svd(np.random.default_rng(seed).normal(size=(p.k, p.k)))
        q = p.change_basis(U * np.geomspace(1, cond, p.k) @ V)
        P, reached = q.reachable()
        want, got = q.abstract_rule(500), reached.abstract_rule(500) @ P.T
        assert (np.linalg.norm(got - want, axis=0) <= 1e-8 * np.linalg.norm(want, axis=0)).all()


def test_numbers_are_taken_as_written():
    """A unit may be as small as can be, but one that rounding alone fills is not reached."""
    assert Propagator(np.diag([0.9, 0.5]), [1, 1e-300]).reachable()[1].k == 2
    B = [[0.9, 0.0, 0.3], [0.0, 0.9, -0.1], [0.0, 0.0, 0.3]]
    assert Propagator(B, [1, 3, 0]).reachable()[1].k == 1


def test_a_memory_that_hears_nothing_is_refused():
    with pytest.raises(ValueError, match="no gradient ever enters"):
        Propagator([[0.5]], [0.0]).reachable()


@pytest.mark.parametrize("k", [1, 3, 8, 14])
def test_gramian_is_the_sum_it_stands_for(k):
    p = random_propagator(k, k)
    rules = p.abstract_rule(800)
    np.testing.assert_allclose(
        p.gramian(), rules.T @ rules, rtol=1e-9, atol=1e-9 * abs(rules.T @ rules).max()
    )


@pytest.mark.parametrize(
    "text", ["M_12(0.9)", "CM_6(0.9i)", "M(0.999) + M_2(0.9)", "M_10(0.95) + CM(0.1+0.2i)"]
)
def test_gramian_is_exact_in_every_entry(text):
    """Against sums without rounding; units differ by up to 1e9 in size."""
    p = parse(text)
    rules = p.abstract_rule(40_000)
    want = np.array([[math.fsum(x * y) for y in rules.T] for x in rules.T])
    size = np.sqrt(np.diag(want))
    assert (abs(p.gramian() - want) / np.outer(size, size)).max() < 1e-12


def test_gramian_of_a_memory_that_hardly_forgets():
    beta = 1 - 1e-9
    assert M(beta).gramian()[0, 0] == pytest.approx(1 / ((1 - beta) * (1 + beta)), rel=1e-6)


def test_gramian_in_other_units():
    p, Q = random_propagator(3, 5), change(5, 3)
    want = Q.T @ p.gramian() @ Q
    np.testing.assert_allclose(p.change_basis(Q).gramian(), want, rtol=1e-10, atol=1e-10 * abs(want).max())


def test_gramian_is_the_mean_square_of_memory():
    """E MᵀM = S Γ for independent gradients of total variance S; 200,000 of them."""
    p = M(0.5) | CM(0.2 + 0.4j)
    memory = memory_after(p, np.random.default_rng(0).normal(size=(60, 200_000)))
    np.testing.assert_allclose(memory.T @ memory / 200_000, p.gramian(), atol=0.02)


@pytest.mark.parametrize(
    "text", ["M(0.9)", *EQUAL, "M(0.9) + M_2(0.6) + CM_2(0.3+0.2i)", *EQUAL_BESIDE_LARGE]
)
def test_whitening_makes_orthonormal_filters(text):
    p = parse(text)
    T = p.whitening()
    rules = p.abstract_rule(p.lags) @ T
    assert T.shape == (p.k, p.reachable()[1].k)
    np.testing.assert_allclose(rules.T @ rules, np.eye(T.shape[1]), atol=1e-11)


def test_whitening_of_units_that_are_very_small():
    p = Propagator(np.diag([0.9, 0.5]), [1.0, 1e-200])
    np.testing.assert_allclose(p.whitening() * [[1], [1e-200]], (M(0.9) | M(0.5)).whitening(), rtol=1e-12)


def test_a_gramian_that_float64_cannot_hold_is_refused():
    for make in (Propagator.gramian, Propagator.whitening):
        with pytest.raises(ValueError, match="grow too large to square"):
            make(M(1 - 1e-12, 16))


def test_whitening_refuses_units_float64_cannot_tell_apart():
    with pytest.raises(ValueError, match=r"too nearly dependent.*move eigenvalues apart"):
        parse(" + ".join(f"M(0.{i})" for i in range(82, 91))).whitening()


@pytest.mark.parametrize(
    "p",
    [
        Propagator([[0.5, 0.9], [-0.1, 0.5]], [1, 0]),  # as a CM block it would lie outside the disk
        Propagator([[0.5]], [2]),
        Propagator([[0.5, 0.1], [0.0, 0.4]], [1, 0]),
        Propagator([[0.5, 0.0], [0.0, 0.4]], [0, 1]),
        Propagator([[3.0, -4.0, 0], [2.0, -2.9, 0], [0, 0, 0.5]], [1, 0, 1]),
    ],
)
def test_repr_of_what_is_no_union_of_blocks_can_be_evaluated(p):
    assert repr(p).startswith("Propagator(B=")
    assert eval(repr(p), {"Propagator": Propagator}) == p


def test_equivalent_and_normal_form_are_methods():
    p = M(0.6, 2) | M(0.9) | M(0.6)
    assert p.equivalent(M(0.9) | M(0.6, 2)) and not p.equivalent(M(0.9))
    assert repr(p.normal_form().propagator) == "M(0.9) + M_2(0.6)"
