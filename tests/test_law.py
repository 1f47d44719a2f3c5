"""The correction against the SVD oracle, in three frameworks, and the invariances of docs/mathematics.md."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from problems import EIGHT, random_propagator, relative_error
from rllc import M, law, memory, reference
from rllc.law import (
    GUARD_FRACTION,
    PROGRESS,
    SEEKING,
    Cutoff,
    DiagonalRidge,
    Frame,
    GramianRidge,
    LawStep,
    Ridge,
    Sums,
)
from rllc.notation import parse
from rllc.torch.learning import HOST

INVERSES = [GramianRidge(1e-3), Ridge(1e-2), Cutoff(1e-6)]
F64 = law.rounding_of(4, np.finfo(np.float64).eps)


def oracle(inverse, p):
    match inverse:
        case GramianRidge(eps):
            return reference.gramian_ridge(p, eps)
        case Ridge(eps):
            return reference.ridge(eps)
        case Cutoff(rcond):
            return reference.cutoff(rcond)


def correction(memory, g, p, inverse, guard=False, xp=np, convert=np.asarray):
    """x for a memory (n, k) and gradient (n,) given in NumPy, computed in namespace xp."""
    C, metric, first = inverse.frame(p)
    U, one = memory @ C, convert(np.float64(1))
    sums = Sums(convert(U.T @ U), convert(U.T @ g), convert(g @ g), one, one)
    frame = Frame(convert(C), convert(metric), first)
    faded = convert(np.eye(p.k)) if guard else None
    x = law.correction(xp, sums, frame, inverse, faded=faded, rounding=F64)
    return np.asarray(x)


def memory_of(p, n=12, steps=30, seed=0):
    """The memory of p after random gradients, and a new gradient."""
    rng = np.random.default_rng(seed)
    m = np.zeros((n, p.k))
    for g in rng.normal(size=(steps, n)):
        m = m @ p.B + np.outer(g, p.a)
    return m, rng.normal(size=n)


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("inverse", INVERSES, ids=repr)
@pytest.mark.parametrize("text", EIGHT)
@pytest.mark.parametrize("framework", ["numpy", "numpy without its wrappers", "torch", "jax"])
def test_equals_the_svd_oracle(framework, text, inverse, guard):
    p = parse(text)
    memory, g = memory_of(p)
    if guard:  # make it bite
        memory = memory * 1e-3
    want = oracle(inverse, p)
    want = (reference.guarded(want, p, GUARD_FRACTION) if guard else want)(memory, g)
    with jax.enable_x64(True):
        xp, convert = {
            "numpy": (np, np.asarray),
            "numpy without its wrappers": (HOST, np.asarray),
            "torch": (torch, torch.as_tensor),
            "jax": (jnp, jnp.asarray),
        }[framework]
        got = correction(memory, g, p, inverse, guard, xp, convert)
    # Gram matrices square the condition number of the units.
    assert relative_error(got, want) < 1e-15 * max(1e3, np.linalg.cond(memory) ** 2)


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("inverse", INVERSES, ids=repr)
def test_zero_memory_and_zero_gradient_give_exactly_zero(inverse, guard):
    p = parse("M(0.9) + M_2(0.6)")
    memory, g = memory_of(p)
    assert not correction(0 * memory, g, p, inverse, guard).any()
    assert not correction(memory, 0 * g, p, inverse, guard).any()
    assert not correction(0 * memory, 0 * g, p, inverse, guard).any()


@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0, 1))
def test_gramian_ridge_keeps_lemma_3_8(seed, k, eps):
    """In the units M Q the law is Q⁻¹ L, whatever the invertible Q; so the steps are the same."""
    p = random_propagator(seed, k)
    rng = np.random.default_rng(seed)
    Q = rng.normal(size=(k, k))
    memory, g = memory_of(p, steps=rng.integers(1, 9), seed=seed)  # at times fewer gradients than units
    kappa = np.linalg.cond(Q) ** 2 * np.linalg.cond(p.gramian())
    assume(kappa < 1e8)
    eps = max(eps, 1e-6)  # below, the rank-deficient start has nothing that fixes the digits
    x = correction(memory, g, p, GramianRidge(eps), guard=True)
    y = correction(memory @ Q, g, p.change_basis(Q), GramianRidge(eps), guard=True)
    assert relative_error(memory @ Q @ y, memory @ x) < 1e-15 * kappa / eps + 1e-11


@pytest.mark.parametrize("inverse", INVERSES, ids=repr)
def test_permutations_and_rotations_are_kept_by_every_inverse(inverse):
    p = random_propagator(3, 3)
    memory, g = memory_of(p)
    x = correction(memory, g, p, inverse)
    for Q in (np.eye(3)[[2, 0, 1]], np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]):
        y = correction(memory @ Q, g, p.change_basis(Q), inverse)
        np.testing.assert_allclose(Q @ y, x, rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-12, 10.0, 1e9])
@pytest.mark.parametrize("inverse", [GramianRidge(1e-3), Cutoff(1e-6)], ids=repr)
def test_rescaling_gradients_changes_nothing(inverse, scale):
    p = parse("M(0.9) + M(0)")
    memory, g = memory_of(p)
    np.testing.assert_allclose(
        correction(scale * memory, scale * g, p, inverse, guard=True),
        correction(memory, g, p, inverse, guard=True),
        rtol=1e-12,
    )


def test_ridge_breaks_rescaling_and_changes_of_units_as_documented():
    p, Q = parse("M(0.9) + M(0)"), np.diag([1.0, 30.0])
    memory, g = memory_of(p)
    x = correction(memory, g, p, Ridge(1e-1))
    assert relative_error(correction(0.1 * memory, 0.1 * g, p, Ridge(1e-1)), x) > 1e-2
    assert relative_error(Q @ correction(memory @ Q, g, p.change_basis(Q), Ridge(1e-1)), x) > 1e-3


@pytest.mark.parametrize("inverse", INVERSES, ids=repr)
def test_equal_units_share_the_correction(inverse):
    p, single = parse("M(0.9) + M(0.9)"), parse("M(0.9)")
    memory, g = memory_of(p)
    x = correction(memory, g, p, inverse)
    assert x[0] == pytest.approx(x[1], rel=1e-12)
    if not isinstance(inverse, Ridge):  # an absolute ridge sees a unit of twice the squared size
        np.testing.assert_allclose(x.sum(), correction(memory[:, :1], g, single, inverse)[0], rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_what_one_gradient_contributes(seed):
    """aᵀΓ⁻¹a = 1 - det(B)² (docs/mathematics.md, section 6)."""
    p = random_propagator(seed, 3)
    want = p.a @ np.linalg.solve(p.gramian(), p.a)
    assert GramianRidge().frame(p).first == pytest.approx(want, rel=1e-9)
    assert want == pytest.approx(1 - np.linalg.det(p.B) ** 2, rel=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
def test_guard_bounds_the_law_for_memory_of_any_size(beta):
    """The exact formula grows like 1/|M|; guarded, x is at most 1/δ times that of the second step of a run of
    equal gradients, and goes to zero with M."""
    p, g = M(beta), np.ones(7)
    second = correction(g[:, None], g, p, GramianRidge())[0]
    sizes = np.geomspace(1e-12, 100, 200)
    exact, kept = (
        np.array([correction(s * g[:, None], g, p, GramianRidge(), guard)[0] for s in sizes])
        for guard in (False, True)
    )
    assert exact[0] > 1e11 * second
    assert kept.max() <= second / GUARD_FRACTION * (1 + 1e-9)
    assert kept[0] < 1e-10 * second
    np.testing.assert_array_equal(
        kept[sizes > GUARD_FRACTION * (1 + 1e-9)], exact[sizes > GUARD_FRACTION * (1 + 1e-9)]
    )


def test_guard_leaves_ordinary_steps_alone():
    for text in EIGHT:
        p = parse(text)
        for steps in (1, 2, 5, 50):  # gradients of one size, from the second step of a run on
            memory, g = memory_of(p, n=4000, steps=steps)
            np.testing.assert_array_equal(
                correction(memory, g, p, GramianRidge(), guard=True),
                correction(memory, g, p, GramianRidge(), guard=False),
            )


@pytest.mark.parametrize(
    "bad", [None, True, "0.1", [1.0], np.array([1.0]), np.array(-1.0), 1j, np.nan, np.float32(-1)]
)
@pytest.mark.parametrize(
    "make",
    [
        *(GramianRidge, Ridge, Cutoff, DiagonalRidge),
        *(
            lambda x, name=name: LawStep(**{name: x})
            for name in ("q", "decay", "growth", "clip", "smoothing")
        ),
        *(lambda x, name=name: memory.Adam(**{name: x}) for name in ("b1", "b2", "eps")),
        memory.Deviation,
        memory.AdaptiveMomentum,
    ],
)
def test_what_is_no_number_in_range_is_refused(make, bad):
    with pytest.raises(ValueError, match=r"must be .*, got "):
        make(bad)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5)], ids=repr)
def test_numbers_of_any_framework_pass(value):
    assert GramianRidge(value).eps is value and memory.Adam(b1=value).b1 is value
    assert jax.jit(lambda x: GramianRidge(x).eps + memory.Adam(b1=x).b1)(0.5) == 1.0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: GramianRidge(-1e-3), "eps must be a finite number >= 0, got -0.001"),
        (lambda: Ridge(float("nan")), "eps must be a finite number >= 0, got nan"),
        (lambda: Cutoff(float("inf")), "rcond must be a finite number >= 0, got inf"),
        (lambda: law.chosen_inverse(1e-3, Ridge(1e-8)), "both given"),
        (lambda: law.chosen_inverse(None, "ridge"), "inverse must be GramianRidge"),
        (lambda: law.initial_law([1.0, 2.0], 3), "law must have 3 entries"),
        (lambda: law.initial_law([1.0, np.nan], 2), "finite real numbers"),
        (lambda: law.initial_law("ones", 2), "law must have 2 entries"),
    ],
)
def test_refusals(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("x", [1.0, -1.0])
def test_a_relative_step_is_at_most_a_tenth_of_the_law(x):
    """A large law is neither turned round nor thrown."""
    new, _ = LawStep(q=1.5).taken(np, np.array([1e6, 0.0]), 0.1, np.array([x, 0.0]), 1.0, np.zeros(PROGRESS))
    np.testing.assert_allclose(new, [1e6 * (1 + 0.1 * x), 0.0])
    small, _ = LawStep(q=1.5).taken(np, np.array([0.04]), 0.1, np.array([x]), 1.0, np.zeros(PROGRESS))
    np.testing.assert_allclose(small, [0.04 + 0.1 * 0.008 * x])


def test_a_text_names_a_memory():
    assert memory.Linear("M(0.9)") == memory.linear("M(0.9)")


def test_a_law_of_zero_stays_zero_in_the_oracle_too():
    update = reference.seeking(0.1, 1.5, 0.5, 1.0, 0.1, 0.5)
    for t in range(1, 5):
        assert not update(np.zeros(2), np.ones(2), np.ones(3), t).any()


@pytest.mark.parametrize("seed", range(8))
def test_a_search_beside_the_oracle_under_a_schedule_and_through_silences(seed):
    """Rates that rise, fall and are zero, gradients that are zero or quiet, corrections of either sign."""
    rng = np.random.default_rng(seed)
    lr = 1e-3 * np.exp(rng.normal(size=400).cumsum() / 4) * (rng.random(400) > 0.1)
    sizes = np.exp(rng.normal(size=400)) * rng.choice([0.0, 1e-3, 1.0], p=[0.1, 0.1, 0.8], size=400)
    update = reference.seeking(0.5, 1.5, 0.5, 1.0, 0.1, 0.95, lambda t: lr[t - 1])
    L = expected = np.array([3e-3, 4e-3])
    progress, top = np.zeros(PROGRESS), 0.0
    for t in range(1, 401):
        x = (rng.normal(size=2) + (1.0 if t < 80 else -0.3)) * (sizes[t - 1] > 0)
        L, progress = SEEKING.taken(np, L, 0.5, x, sizes[t - 1], progress, lr[t - 1])
        expected = update(expected, x, sizes[t - 1] * np.ones(1), t)
        np.testing.assert_allclose(L, expected, rtol=1e-10)
        top = max(top, lr[t - 1]) if progress[2] > 0 and sizes[t - 1] > 0 else top
        assert progress[4] == top
    assert top > 0


def test_a_rate_that_rises_after_the_search_makes_no_step_longer_and_one_that_falls_makes_it_shorter():
    L, progress = np.array([0.01]), np.zeros(PROGRESS)
    for t in range(100):
        L, progress = SEEKING.taken(np, L, 0.04, np.array([1.0 if t < 60 else -1.0]), 1.0, progress, 1e-4)
    found = 1e-4 * L[0]
    for lr in (1e-3, 1e-2, 5e-3, 0.0, 1e-4, 1e-2):
        L, progress = SEEKING.taken(np, L, 0.04, np.zeros(1), 1.0, progress, lr)
        assert lr * L[0] == pytest.approx(found * lr / progress[4], rel=1e-12)
    assert progress[4] == 1e-2


def test_a_growth_that_no_law_survives_is_refused():
    with pytest.raises(ValueError, match="growth must be a number from 0 to 10, got 1000"):
        LawStep(growth=1000)


def test_a_number_of_numpy_is_a_number():
    assert hash(LawStep(q=np.array(1.5))) == hash(LawStep(q=1.5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("smoothing", [0.8, 0.9, 0.95, 0.98, 0.999])
def test_growth_ends_with_the_window_in_any_precision(dtype, smoothing):
    """1 - 0.95 is a little more than 1/20 in float64, and less in float32."""
    step = LawStep(q=1.5, growth=0.1, smoothing=smoothing)
    law, progress, grown = np.ones(1, dtype), np.zeros(PROGRESS, dtype), 0
    for _ in range(2 * round(step.window)):
        new, progress = step.taken(np, law, 0.01, -np.ones(1, dtype), dtype(1), progress)
        progress, grown, law = progress.astype(dtype), grown + (new > law).item(), np.ones(1, dtype)
    assert grown == round(1 / (1 - smoothing)) - 1
