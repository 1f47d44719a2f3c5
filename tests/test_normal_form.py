"""Lemma 3.8 and Theorems 5.2 and 5.3 as corrected in docs/mathematics.md, and hard cases of normal forms."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memories import change, crowded_unions, normal_unions, seeds, unions
from problems import EIGHT, quadratic, random_propagator, relative_error, tanh_net
from rllc import (
    CM,
    ChangeOfUnits,
    M,
    NormalFormError,
    Propagator,
    change_of_units,
    equivalent,
    parse,
    reference,
)
from rllc.normal_form import _distance, _sine, _unit_cond, normal_form

JORDAN = 0.7 * np.eye(3) + np.eye(3, k=1)
NINE = parse(" + ".join(f"M(0.{i})" for i in range(82, 91)))


def cyclic(b):
    """b times the cyclic shift of four units, the first of which hears the gradient."""
    return Propagator(b * np.roll(np.eye(4), 1, axis=1), [1, 0, 0, 0])


def rllc(p, law, steps=25, problem=None, pinv=None, c2=0.1):
    """θ after each step of Algorithm 1 (the SVD oracle), by default with the Gramian ridge."""
    theta, gradient = problem or quadratic()
    pinv = pinv or reference.gramian_ridge(p, 1e-3)
    states = reference.algorithm_1(gradient, theta, p, law, 0.05, c2, pinv)
    return np.array([state.theta for state in itertools.islice(states, steps)])


def rule_error(p, form):
    """How far M = M_normal Z Pᵀ is off, as the largest relative error of an abstract rule over 200 steps."""
    want = p.abstract_rule(200)
    got = form.propagator.abstract_rule(200) @ form.Z @ form.P.T
    size = np.linalg.norm(want, axis=0)
    return (np.linalg.norm(got - want, axis=0) / np.where(size > 0, size, 1)).max()  # a unit may hear nothing


# What it finds.


@pytest.mark.parametrize(
    ("p", "normal"),
    [
        (parse("M(0.9)"), "M(0.9)"),
        (parse("M(0.9) + M(0.9)"), "M(0.9)"),
        (parse("M_2(0.6) + M(0.6)"), "M_2(0.6)"),
        (parse("CM(0.3+0.2i) + CM(0.3-0.2i)"), "CM(0.3+0.2i)"),
        (parse("CM(0.3-0.2i)"), "CM(0.3+0.2i)"),
        (parse("M(0.5) + CM(0.2+0.7i) + M(-0.8)"), "M(-0.8) + M(0.5) + CM(0.2+0.7i)"),
        (cyclic(0.9), "M(0.9) + M(-0.9) + CM(0.0+0.9i)"),
        (Propagator(JORDAN, [0, 2, -1]), "M_2(0.7)"),
        (Propagator(JORDAN, [2, 1, -1]), "M_3(0.7)"),
        (parse("M(0.9) + M(0) + M_2(0.6)"), "M(0.9) + M_2(0.6) + M(0.0)"),
        (parse("M_64(0)"), "M_64(0.0)"),
        (Propagator([[0.9, 0], [0, 0]], [0.1, 1]), "M(0.9) + M(0.0)"),
    ],
)
def test_normal_forms(p, normal):
    form = normal_form(p)
    assert repr(form.propagator) == normal
    assert rule_error(p, form) < 5e-14


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("M(0.9) + M_2(0.6) + CM_2(0.3+0.2i)", 1e-13),
        ("M_3(0.6)", 1e-13),  # eigenvalues split by 1e-5, merged at a gap of 3e-5
        ("M_4(0.0)", 1e-11),  # by 1e-4
        ("M(0.751) + M(0.749)", 1e-13),  # near, but kept apart
        ("M(-0.5) + CM_2(0.3+0.2i)", 1e-13),
        ("M(0.999)", 1e-13),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_hidden_blocks_are_found(text, error, seed):
    p = parse(text)
    hidden = p.change_basis(np.random.default_rng(seed).normal(size=(p.k, p.k)))
    form = normal_form(hidden)
    assert repr(form.propagator) == text
    assert rule_error(hidden, form) < error


@pytest.mark.parametrize("text", EIGHT)
def test_the_papers_eight_have_normal_forms(text):
    p = parse(text)
    form = normal_form(p)
    assert form.propagator.k == p.k and form.unit_cond < 1e3
    assert sorted(repr(form.propagator).split(" + ")) == sorted(repr(p).split(" + "))


def test_nearby_eigenvalues_become_a_block_when_their_units_are_nearly_the_same():
    p = parse("M(0.9) + M(0.750001) + M(0.749999)")
    form = normal_form(p)
    assert repr(form.propagator) == "M(0.9) + M_2(0.75)"
    assert rule_error(p, form) < 1e-11  # merging at a gap d costs O(d²)
    assert 5e5 < _unit_cond(p) < 2e6
    assert form.unit_cond < 10


def test_near_eigenvalues_are_kept_while_their_units_differ():
    assert 300 < normal_form(parse("M(0.751) + M(0.749)")).unit_cond < 600


@pytest.mark.parametrize("beta", [0.1 + 0.2, 0.9000000000000001, 1 / 3, -1e-9])
def test_a_written_form_keeps_every_digit(beta):
    assert normal_form(M(beta, 2)).propagator == M(beta, 2)
    assert normal_form(CM(complex(beta, 0.4))).propagator == CM(complex(beta, 0.4))
    assert normal_form(CM(complex(beta, -0.4))).propagator == CM(complex(beta, 0.4))


@pytest.mark.parametrize("text", ["CM_4(0.001i)", "CM_3(0.5+0.001i)", "M_4(0.5) + M_4(0.501)"])
def test_a_block_that_holds_the_units_but_nearly_dependent_ones_is_no_normal_form(text):
    """M_8(0) has every unit of CM_4(0.001i) to 1e-11, but these do not give M_8(0) back: 4e-6 are missing."""
    p = parse(text)
    with pytest.raises(NormalFormError, match=r"unit_cond over 1e5"):
        normal_form(p)


@pytest.mark.parametrize("p", [NINE, NINE.change_basis(change(9, 0)), parse("M_64(0.9)")])
def test_refuses_units_too_nearly_dependent(p):
    with pytest.raises(NormalFormError, match=r"unit_cond over 1e5.*run it in the units it is given in"):
        normal_form(p)


def test_a_unit_too_small_to_be_squared_is_merged():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert normal_form(CM(0.5 + 1e-300j)).propagator == M(0.5, 2)


def test_refuses_what_never_moves():
    with pytest.raises(ValueError, match="no gradient ever enters"):
        normal_form(Propagator([[0.5]], [0.0]))


# Theorem 5.3.


@given(normal_unions(), seeds)
def test_theorem_5_3(p, seed):
    """A hidden union of Jordan blocks comes back: the same eigenvalues, the same space of rules."""
    hidden = p.change_basis(change(p.k, seed))
    form = normal_form(hidden)
    np.testing.assert_allclose(
        np.sort_complex(form.propagator.eigenvalues), np.sort_complex(p.eigenvalues), atol=1e-7
    )
    assert rule_error(hidden, form) < 1e-8
    assert equivalent(hidden, form.propagator) and equivalent(p, form.propagator)


@given(crowded_unions(), seeds, st.booleans())
def test_a_normal_form_is_equivalent_to_what_it_is_of(p, seed, hidden):
    p = p.change_basis(change(p.k, seed)) if hidden else p
    assert equivalent(p, p)
    try:
        form = normal_form(p)
    except NormalFormError:
        return
    assert equivalent(p, form.propagator) and equivalent(form.propagator, p)
    assert rule_error(p, form) < 1e-8


@given(unions)
def test_a_normal_form_is_its_own(p):
    try:
        form = normal_form(p)
    except NormalFormError:
        assume(False)
    again = normal_form(form.propagator)
    assert again.propagator == form.propagator
    np.testing.assert_allclose(again.Z, np.eye(form.propagator.k), atol=1e-7)


@given(normal_unions(), seeds, st.booleans())
def test_rllc_takes_the_same_steps_in_normal_form(p, seed, twice):
    """From M_0 = 0 with L_0 mapped by Z Pᵀ, under the one relaxed inverse that keeps Lemma 3.8."""
    hidden = p.change_basis(change(p.k, seed))
    hidden = hidden | M(p.eigenvalues[0].real) if twice and p.eigenvalues[0].imag == 0 else hidden
    form = normal_form(hidden)
    # A law that descends: where the process diverges, rounding grows with it and nothing can be compared.
    small = np.random.default_rng(seed).uniform(0.0, 0.2, form.propagator.k)
    _, law = form.from_normal(np.zeros((1, form.propagator.k)), small)
    _, mapped = form.to_normal(np.zeros((1, hidden.k)), law)
    np.testing.assert_allclose(mapped, small, atol=1e-10)
    for problem in (quadratic(), tanh_net()):
        want = rllc(hidden, law, problem=problem)
        assert relative_error(rllc(form.propagator, mapped, problem=problem), want) < 1e-7


@pytest.mark.parametrize("p", [parse("M(0.9) + M(0.9) + M(0)"), parse("CM(0.3+0.4i) + CM(0.3-0.4i)")])
@pytest.mark.parametrize("inverse", ["exact", "ridge"])
def test_rllc_on_the_reachable_part_is_rllc(p, inverse):
    """M = M_r Pᵀ and L_r = Pᵀ L, step for step (mathematics.md, section 3(i))."""
    P, reached = p.reachable()
    pinv = reference.cutoff(1e-11) if inverse == "exact" else reference.ridge(1e-3)
    law = np.arange(1.0, p.k + 1)
    want = rllc(p, law, pinv=pinv)
    assert relative_error(rllc(reached, P.T @ law, pinv=pinv), want) < 1e-9


def test_states_go_there_and_back():
    rng = np.random.default_rng(0)
    p = parse("M(0.9) + M_2(0.6)").change_basis(change(3, 1))
    form, memory, law = normal_form(p), rng.normal(size=(5, 3)), rng.normal(size=3)
    there = form.to_normal(memory, law)
    np.testing.assert_allclose(there[0] @ there[1], memory @ law, atol=1e-12)
    back = form.from_normal(*there)
    np.testing.assert_allclose(back[0], memory, atol=1e-12)
    np.testing.assert_allclose(back[1], law, atol=1e-12)
    np.testing.assert_allclose(form.Q @ form.Z, np.eye(3), atol=1e-12)


def test_a_text_names_a_memory():
    assert equivalent("M(0.9) + M(0.9)", M(0.9)) and M(0.5).equivalent("M(0.5)")
    np.testing.assert_allclose(change_of_units("M(0.9)", "M(0.9)").Q, [[1.0]])
    with pytest.raises(ValueError, match=r"memory is a text such as .* got list"):
        M(0.5).equivalent([0.5])


def test_a_state_of_other_units_is_refused():
    form = normal_form(parse("M(0.9) + M(0.9)"))
    with pytest.raises(ValueError, match=r"a state of 2 units is M \(n, 2\) and L \(2,\); got \(5, 1\) and"):
        form.to_normal(np.zeros((5, 1)), np.zeros(2))
    with pytest.raises(ValueError, match="a state of 1 units"):
        form.from_normal(np.zeros((5, 1)), np.zeros(2))
    with pytest.raises(ValueError, match="a state is real; give a complex unit as two"):
        form.to_normal(np.zeros((5, 2), complex), np.zeros(2))


# Lemma 3.8 and Theorem 5.2.


@given(st.integers(1, 5), seeds)
def test_lemma_3_8(k, seed):
    """One step of RLLC commutes with (M, L) -> (M Q, Q⁻¹ L) at rank k, for any memory rule U."""
    rng = np.random.default_rng(seed)
    Q, mix = change(k, seed), rng.normal(size=(k, k))
    memory, law, g = rng.normal(size=(8, k)), rng.normal(size=k), rng.normal(size=8)
    to = ChangeOfUnits(Q, np.linalg.inv(Q))

    def rule(M, g):
        return np.tanh(M @ mix + g[:, None])

    def rule_in_other_units(M, g):  # U^Q, definition 3.6
        return rule(M @ np.linalg.inv(Q), g) @ Q

    def step(U, M, L):
        return U(M, g), L + 0.3 * np.linalg.pinv(M) @ g

    here = step(rule, memory, law)
    there = step(rule_in_other_units, *to.states(memory, law))
    for got, want in zip(there, to.states(*here), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(there[0] @ there[1], here[0] @ here[1], rtol=1e-8, atol=1e-8)


@given(normal_unions(), seeds)
def test_theorem_5_2(p, seed):
    """RLLC(B, a, L) and RLLC(Q⁻¹BQ, Qᵀa, Q⁻¹L) take the same steps from M_0 = 0 under the Gramian ridge."""
    Q, law = change(p.k, seed), np.random.default_rng(seed).normal(size=p.k)
    q = p.change_basis(Q)
    assert relative_error(rllc(q, np.linalg.solve(Q, law)), rllc(p, law)) < 1e-9


def test_theorem_5_2_as_printed_is_wrong():
    """With Q a in place of Qᵀa even a fixed law takes other steps."""
    p, Q = parse("M(0.9) + M(0.5)"), np.array([[1.0, 0.5], [-0.3, 1.0]])
    printed = Propagator(np.linalg.solve(Q, p.B @ Q), Q @ p.a)
    law, want = np.ones(2), rllc(p, np.ones(2), c2=0.0)
    assert relative_error(rllc(printed, np.linalg.solve(Q, law), c2=0.0), want) > 0.05
    assert relative_error(rllc(p.change_basis(Q), np.linalg.solve(Q, law), c2=0.0), want) < 1e-12


def test_the_exact_inverse_is_not_equivariant_at_the_start():
    """While rank M_t = t < k only an orthogonal Q keeps the steps (mathematics.md, section 2)."""
    p, law = parse("M(0.9) + M(0.5) + M(0)"), np.ones(3)
    exact, generic, rotation = reference.cutoff(1e-11), change(3, 0, spread=4.0), change(3, 0, spread=1.0)
    want = rllc(p, law, pinv=exact)

    def difference(Q):
        return relative_error(rllc(p.change_basis(Q), np.linalg.solve(Q, law), pinv=exact), want)

    assert difference(generic) > 1e-2
    assert difference(rotation) < 1e-7


# Equivalence.


@given(normal_unions(), seeds)
def test_equivalent_to_itself_in_any_units_and_to_nothing_else(p, seed):
    q = p.change_basis(change(p.k, seed))
    other = p | M(0.7)
    assert equivalent(p, q) and equivalent(q, p)
    assert not equivalent(p, other) and not equivalent(other, p)
    np.testing.assert_allclose(change_of_units(p, q).Q, change(p.k, seed), rtol=1e-6, atol=1e-6)


@given(normal_unions(), seeds)
def test_the_size_of_units_is_no_matter(p, seed):
    """Nor to the digits of the map of states."""
    scales = 10.0 ** np.random.default_rng(seed).uniform(-15, 15, p.k)
    q = p.change_basis(np.diag(scales))
    assert equivalent(p, q) and equivalent(q, p) and not equivalent(p | M(0.7), q)
    want, got = normal_form(p).propagator.eigenvalues, normal_form(q).propagator.eigenvalues
    np.testing.assert_allclose(got, want, atol=1e-9)
    np.testing.assert_allclose(change_of_units(p, q).Q / scales, np.eye(p.k), atol=1e-9)


def test_rllc_takes_the_same_steps_in_units_of_any_size():
    p, scales = parse("M_2(0.6) + M(0.3)"), np.array([1.0, 3e4, 1.0])
    q, law = p.change_basis(np.diag(scales)), np.array([0.1, 0.05, 0.1])
    assert relative_error(rllc(q, law / scales), rllc(p, law)) < 1e-9


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_the_direction_of_a_is_irrelevant(k):
    """The same B with any two vectors a that reach all of it."""
    p = random_propagator(k, k)
    q = Propagator(p.B, np.random.default_rng(1).normal(size=k))
    assert equivalent(p, q)
    Q = change_of_units(p, q).Q
    np.testing.assert_allclose(np.linalg.solve(Q, p.B @ Q), q.B, atol=1e-8)
    np.testing.assert_allclose(Q.T @ p.a, q.a, atol=1e-8)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ("M(0.9) + M(0.9)", "M(0.9)"),
        ("M_2(0.6) + M(0.6)", "M_2(0.6)"),
        ("CM(0.3+0.2i)", "CM(0.3-0.2i)"),
        ("CM(0.3+0.2i) + CM(0.3-0.2i)", "CM(0.3+0.2i)"),
        ("M(0.9) + M(0)", "M(0) + M(0.9)"),
    ],
)
def test_identities(p, q):
    p, q = parse(p), parse(q)
    assert equivalent(p, q) and equivalent(q, p)
    to = change_of_units(p, q)
    memory = np.random.default_rng(0).normal(size=(30, 7)).T @ p.abstract_rule(30)
    there = to.states(memory, np.ones(p.k))
    np.testing.assert_allclose(there[0] @ there[1], memory.sum(axis=1), atol=1e-12)
    back = to.inverse.states(*there)
    np.testing.assert_allclose(back[0], memory, atol=1e-12)
    np.testing.assert_allclose(back[0] @ back[1], memory.sum(axis=1), atol=1e-12)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ("M(0.9)", "M(0.9001)"),
        ("M(0.9) + M(0.6)", "M(0.9) + M(0.5)"),
        ("M_2(0.6)", "M(0.6)"),
        ("M_2(0.6)", "M(0.61) + M(0.59)"),
        ("CM(0.3+0.2i)", "CM(0.3+0.3i)"),
        (repr(NINE), repr(NINE).replace("0.86", "0.6")),  # units of condition 2e9, but written exactly
    ],
)
def test_what_is_not_equivalent(p, q):
    p, q = parse(p), parse(q)
    assert not equivalent(p, q) and not equivalent(q, p)
    with pytest.raises(ValueError, match="no change of units leads from"):
        change_of_units(p, q)


@given(normal_unions(), normal_unions())
def test_the_distance_is_the_sine_of_the_largest_angle_between_rules(p, q):
    A, B = (np.linalg.qr(each.abstract_rule(p.lags + q.lags))[0] for each in (p, q))
    if p.k == q.k:
        assert _sine(p.eigenvalues, q.eigenvalues) == pytest.approx(
            np.linalg.norm(A - B @ (B.T @ A), 2), abs=1e-11
        )
    assert _sine(p.eigenvalues, p.eigenvalues) == 0


@pytest.mark.parametrize(("p", "q"), [("CM_4(0.001i)", "M_8(0)"), ("M_4(0.5) + M_4(0.501)", "M_8(0.5005)")])
def test_nearly_dependent_units_are_told_apart_in_any_units(p, q):
    """Units of condition 1e17, that no least squares can tell from others."""
    p, q = parse(p), parse(q)
    hidden = p.change_basis(change(p.k, 0))
    assert equivalent(p, hidden) and equivalent(hidden, p)
    for other in (q, q.change_basis(change(q.k, 1)), parse("M_8(0.9)")):
        assert not equivalent(p, other) and not equivalent(hidden, other)


def test_the_distance_of_a_delay_line_from_a_complex_block_near_it():
    """w⁷ / (1 + e² w²)⁴ is 4e² off the polynomials that M_8(0) spans."""
    assert _distance(parse("CM_4(0.001i)"), M(0.0, 8)) == pytest.approx(4e-6, rel=1e-4)


def test_a_memory_that_hardly_forgets_is_its_own_equivalent():
    p = Propagator(np.diag([1 - 1e-10, 0.5]), [2, 1])
    assert equivalent(p, p) and not equivalent(p, Propagator(np.diag([1 - 1.01e-10, 0.5]), [2, 1]))
    last = Propagator(np.diag([1 - 2**-53, 0.5]), [2, 1])
    assert equivalent(last, last)
    slow = parse("M_2(0.999999999) + CM(0.999999+0.00001i)")
    assert equivalent(slow, slow) and not equivalent(slow, parse("M_2(0.99999999) + CM(0.999999+0.00001i)"))


def test_a_map_between_nearly_dependent_units_is_refused_where_float64_has_none():
    p = parse("CM_4(0.1+0.0001i) + CM_4(-0.04-0.1i) + CM_4(-0.041-0.1i)")
    q = p.change_basis(change(p.k, 0))
    assert equivalent(p, q)
    with pytest.raises(
        ValueError, match=r"are equivalent, but of units so nearly dependent.*move eigenvalues apart"
    ):
        change_of_units(p, q)


def test_two_near_eigenvalues_approach_a_block_quadratically():
    """A.3: the spaces of rules of M(.75 ± e) and M_2(.75) differ by O(e²)."""
    errors = [_distance(M(0.75 + e) | M(0.75 - e), M(0.75, 2)) for e in (0.1, 0.01, 0.001)]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(100, rel=0.02)


def test_rllc_on_two_near_eigenvalues_approaches_a_block():
    """And so do the steps, with the laws mapped by the units' Taylor expansion."""
    want = rllc(M(0.75, 2), [1.0, 0.5])
    distance = []
    for e in (0.01, 0.001):  # m_2 = d m_1 / dβ: L = (1, 0.5) is (1 ± 0.5/e) / 2 on the pair
        law = [0.5 + 0.25 / e, 0.5 - 0.25 / e]
        distance.append(relative_error(rllc(M(0.75 + e) | M(0.75 - e), law), want))
    assert distance[1] < 1e-5 and distance[0] / distance[1] == pytest.approx(100, rel=0.1)


def test_complex_blocks_of_both_signs_are_one_optimizer():
    p, q = CM(0.3 + 0.4j), CM(0.3 - 0.4j)
    np.testing.assert_allclose(change_of_units(p, q).Q, np.diag([1.0, -1.0]), atol=1e-13)
