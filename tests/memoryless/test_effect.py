"""Verdicts: which memory regularises, by how much, in which norm, and where that changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rllc
import rllc.optax
from rllc import laws
from rllc.memoryless import (
    Adam,
    Linear,
    Lion,
    LongMemoryWarning,
    NesterovIterates,
    RMSProp,
    SmoothRidge,
    batches,
    correction,
    decay,
    direction,
    explicit_correction,
    follow,
    from_optax,
    memory_effect,
    memoryless,
    simulate,
    unit_rates,
)
from rllc.memoryless.effect import _change


@pytest.mark.parametrize(
    ("law", "delay", "verdict"),
    [
        (laws.sgd(1.0), 0, "neutral"),
        (laws.heavy_ball(1.0, 0.9), 9, "regularises"),
        (laws.nesterov(1.0, 0.9), 8.1, "regularises"),
        (laws.qhm(1.0, 0.9, 0.7), 6.3, "regularises"),
        (laws.adams_bashforth(1.0), -0.5, "anti-regularises"),
        (laws.optimistic(1.0), -1, "anti-regularises"),
        (laws.delayed(1.0, 3), 3, "regularises"),
        (rllc.FixedLaw(rllc.M(-0.5), [1.0]), -1 / 3, "anti-regularises"),
    ],
)
def test_linear_memory(law, delay, verdict):
    effect = memory_effect(law)
    assert effect.verdict == verdict and effect.changes_at is None
    np.testing.assert_allclose([effect.delay, effect.delay_at_zero], delay, atol=1e-12)


def test_nesterovs_delay_is_heavy_balls_less_beta():
    ball, nag = (memory_effect(law).delay for law in (laws.heavy_ball(1.0, 0.9), laws.nesterov(1.0, 0.9)))
    assert abs(ball - nag - 0.9) < 1e-12
    assert abs(memory_effect(NesterovIterates(0.9)).delay - nag) < 1e-12


def test_heavy_ball_on_the_flow_is_the_known_factor():
    tau = memory_effect(laws.heavy_ball(1.0, 0.8)).delay
    assert abs(1 + 2 * tau - (1 + 0.8) / (1 - 0.8)) < 1e-12


def test_a_law_of_gain_zero_has_no_verdict():
    assert memory_effect(rllc.FixedLaw(rllc.M(0.0, 2), [1.0, -1.0])).verdict == "none"


def test_adams_longer_denominator_anti_regularises_where_gradients_are_large():
    effect = memory_effect(Adam(0.9, 0.999, 1e-8))
    assert effect.verdict == "anti-regularises" and effect.norm == "|∇f|₁,ε"
    np.testing.assert_allclose([effect.delay, effect.delay_at_zero], [-990, 9], rtol=1e-3)
    # g² = ε τ1 / (τ2 - τ1)
    np.testing.assert_allclose(effect.changes_at, np.sqrt(1e-8 * 9 / 990), rtol=1e-5)
    outside = memory_effect(Adam(0.9, 0.999, 1e-8, outside=True))
    np.testing.assert_allclose(outside.changes_at, 1e-8 * 9 / 990, rtol=1e-5)
    nadam = memory_effect(Adam(0.9, 0.999, 1e-8, nesterov=True))
    np.testing.assert_allclose(nadam.changes_at, np.sqrt(1e-8 * 8.1 / (999 - 8.1)), rtol=1e-5)


@pytest.mark.parametrize("eps", [1.1e-6, 110.0])
def test_a_change_at_a_round_number_is_found(eps):
    np.testing.assert_allclose(memory_effect(Adam(eps=eps)).changes_at, np.sqrt(eps * 9 / 990), rtol=1e-5)


@pytest.mark.parametrize("eps", [1e-60, 1e-30, 1e-8, 1e10])
@pytest.mark.parametrize(
    ("make", "delay", "at_zero"),
    [
        (Adam, -990, 9),
        (lambda eps: Adam(eps=eps, outside=True), -990, 9),
        (lambda eps: RMSProp(eps=eps), -99, 0),
        (lambda eps: Lion(eps=eps), 0, 90),
    ],
    ids=["Adam", "Adam, outside", "RMSProp", "Lion"],
)
def test_the_effect_does_not_depend_on_the_size_of_eps(make, delay, at_zero, eps):
    effect = memory_effect(make(eps=eps))
    np.testing.assert_allclose([effect.delay, effect.delay_at_zero], [delay, at_zero], atol=1e-8)


@pytest.mark.parametrize(
    ("delays", "at"), [([2, 0, -1, -1], 10), ([-2, 0, 1, 1], 10), ([2, 1, -1 / 3, -1], 10**1.75)]
)
def test_a_change_on_a_sample_is_found(delays, at):
    sizes = np.logspace(0, 3, 31)

    def delay(sizes):
        return np.interp(np.log10(sizes), range(4), delays)

    np.testing.assert_allclose(_change(sizes, delay(sizes), delay, 1e-6), at)


def test_no_change_on_a_sample_is_none():
    assert _change(np.logspace(0, 3, 4), np.array([2.0, 0.0, 0.0, np.nan]), None, 1e-6) is None


def test_equal_decays_leave_adam_regularising_below_eps_only():
    effect = memory_effect(Adam(0.9, 0.9, 1e-8))
    assert effect.verdict == "neutral" and abs(effect.delay_at_zero - 9) < 1e-6


def test_nadam_is_a_little_more_anti_regularising():
    nadam, adam = memory_effect(Adam(nesterov=True)), memory_effect(Adam())
    np.testing.assert_allclose(nadam.delay - adam.delay, 8.1 - 9, rtol=1e-6)


def test_rmsprop_and_lion():
    assert memory_effect(RMSProp(0.99)).verdict == "anti-regularises"
    assert memory_effect(Lion()).verdict == "neutral"
    smooth = memory_effect(Lion(0.9, 0.99, 1e-4))
    assert smooth.verdict == "neutral" and abs(smooth.delay_at_zero - 90) < 1e-6


@pytest.mark.parametrize(
    ("tx", "form"),
    [
        (optax.sgd(0.1, 0.9), Linear(laws.heavy_ball(1.0, 0.9))),
        (optax.adamw(0.1, 0.9, 0.99, eps=0.0, eps_root=1e-6), Adam(0.9, 0.99, 1e-6)),
        (optax.lion(0.1, 0.9, 0.99), Lion(0.9, 0.99)),
    ],
    ids=["heavy ball", "adamw", "lion"],
)
def test_the_measured_effect_is_the_known_one(tx, form):
    measured, known = memory_effect(tx, 0.1), memory_effect(form)
    assert measured.verdict == known.verdict
    np.testing.assert_allclose(measured.delay, known.delay, atol=1e-6)
    np.testing.assert_allclose(measured.delay_at_zero, known.delay_at_zero, atol=1e-4)
    assert (measured.changes_at is None) == (known.changes_at is None)


def test_the_measured_change_of_sign_is_where_it_is():
    np.testing.assert_allclose(memory_effect(optax.adam(0.1), 0.1).changes_at, 1e-8 * 9 / 990, rtol=1e-4)


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9)),
        optax.lamb(0.1),
        rllc.optax.rllc("M(0.9)", 0.1, 0.1),
    ],
    ids=["clipped AdamW", "clipped heavy ball", "LAMB", "RLLC"],
)
def test_an_optimizer_whose_entries_are_coupled_has_no_delay_of_an_entry(tx):
    with pytest.raises(ValueError, match=r"depends on the other entries.*leave out what couples them"):
        memory_effect(tx, 0.1)


def test_clipping_each_entry_is_no_coupling():
    effect = memory_effect(optax.chain(optax.clip(1.0), optax.sgd(0.1, 0.9)), 0.1)
    assert effect.verdict == "neutral" and effect.delay == 0  # what is clipped does not change
    assert abs(effect.delay_at_zero - 9) < 1e-6


@pytest.mark.parametrize(
    ("tx", "said"),
    [
        (optax.adamw(optax.warmup_cosine_decay_schedule(0, 0.1, 1000, 20_000)), "by 87% from step 8192"),
        (optax.sgd(optax.exponential_decay(0.1, 1000, 0.97), 0.9), r"by 22% .* constant learning rate"),
        (optax.MultiSteps(optax.sgd(0.1, 0.9), 2).gradient_transformation(), "by 100% .*without MultiSteps"),
        (optax.chain(optax.sgd(0.1, 0.9), optax.apply_every(3)), "by 100% .*apply_every"),
        (optax.sgd(optax.cosine_decay_schedule(0.1, 1000), 0.9), "after 16384 steps its steps are zero"),
    ],
    ids=["warm-up and cosine", "exponential", "MultiSteps", "apply_every", "ended"],
)
def test_steps_that_depend_on_their_number_are_refused(tx, said):
    with pytest.raises(ValueError, match=said):
        memory_effect(tx, 0.1)


def test_long_memory_and_a_constant_schedule_are_not_taken_for_a_schedule():
    effect = memory_effect(optax.sgd(optax.constant_schedule(0.1), 0.9995), 0.1)
    assert abs(effect.delay / 1999 - 1) < 0.005  # τ after 16,384 steps, of the 1,999 of its limit


def test_schedule_free_is_refused_because_its_state_has_points():
    with pytest.raises(ValueError, match=r"schedule_free keeps points of its own.*the optimizer within it"):
        memory_effect(optax.contrib.schedule_free_sgd(0.1), 0.1)


def test_memory_that_does_not_decay_is_measured_and_warned_of():
    x = jnp.linspace(0.5, 2.0, 4)
    with pytest.warns(LongMemoryWarning, match=r"a factor of (1|0\.99999)"):
        decay(from_optax(optax.adagrad(0.1, initial_accumulator_value=0.0), lambda x: x, 0.1), x)
    assert abs(decay(Linear(laws.heavy_ball(1.0, 0.9)).method(lambda x: x), x) - 0.9) < 1e-9
    assert abs(decay(Adam(0.9, 0.999, 1e-8).method(lambda x: x), x) - 0.999) < 1e-4
    assert decay(Linear(laws.sgd(1.0)).method(lambda x: x), x) == 0


def test_where_a_root_has_no_derivative_decay_says_so():
    clipped = optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1, 0.9))  # the norm of zeros
    with pytest.raises(ValueError, match=r"no derivative here.*eps_root"):
        decay(from_optax(clipped, lambda x: x, 0.1), jnp.zeros(2))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_where_a_gradient_is_zero_the_correction_is_the_limit(dtype):
    """optax's root has no derivative by a zero gradient, and the limit needs none."""
    A = jnp.array([[1.0, 0.5, 0.0], [0.5, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype)
    x = jnp.array([0.4, -0.1, 2.0], dtype)
    assert (A @ x)[1] == (A @ x)[2] == 0

    def grad(x):
        return A @ x

    adam = Adam(0.8, 0.9, 0.3, outside=True)
    methods = from_optax(optax.adam(0.1, 0.8, 0.9, eps=0.3), grad, 0.1), adam.method(grad)
    lion = from_optax(optax.lion(0.1, weight_decay=0.0), grad, 0.1)

    @jax.jit
    def found(n, row):
        known = adam.terms(grad, row, x).correction
        return known, [correction(method, n)(x) for method in methods], direction(lion, n)(x)

    for n in (1, 6, 40):
        known, corrections, of_lion = found(n, jax.tree.map(lambda c, n=n: c[n], adam.coefficients(n)))
        assert abs(known[1]) > 0.01 and known[2] == 0
        for corr in corrections:
            np.testing.assert_allclose(corr, known, rtol=1e3 * float(jnp.finfo(dtype).eps))
        assert of_lion[1] == 0  # values stay
    q, of_form = (decay(method, x) for method in methods)
    assert abs(q - of_form) < 1e-3 and 0.8 < q < 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta", [1e-3, 0.3, 0.5, 0.8, 0.99])
def test_decay_is_measured_where_old_gradients_underflow(dtype, beta):
    x = jnp.linspace(0.5, 2.0, 4, dtype=dtype)
    assert decay(Linear(laws.heavy_ball(1.0, beta)).method(lambda x: x), x) == pytest.approx(beta, rel=1e-4)
    assert decay(Linear(laws.delayed(1.0, 20)).method(lambda x: x), x) == 0


def test_memory_longer_than_the_steps_is_warned_of():
    with pytest.warns(LongMemoryWarning, match=r"fades by 0\.999\d* a step, so that 100 steps do not show"):
        memory_effect(optax.sgd(0.1, 0.999), 0.1, steps=100)
    with pytest.warns(LongMemoryWarning, match="500 steps do not show"):
        measured = memory_effect(optax.sgd(0.1, 0.99), 0.1, steps=500)
    moves = [(1 - 0.99 ** (step + 1)) / (1 - 0.99) for step in range(501)]  # the last is F
    way = sum(0.99**age * sum(moves[500 - age : 500]) for age in range(501))
    assert measured.delay == pytest.approx(way / moves[-1] ** 2)  # 5 % less than the 99 of its limit


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda n: correction(Adam().method(lambda x: x), n), "n"),
        (lambda n: correction(lambda *points: points[0], n), "n"),
        (lambda n: direction(Adam().method(lambda x: x), n), "n"),
        (lambda n: simulate(Adam().method(lambda x: x), jnp.ones(2), 0.1, n), "steps"),
        (lambda n: follow(Adam(), lambda x: x, jnp.ones(2), 0.1, n), "steps"),
        (lambda n: Adam().coefficients(n), "steps"),
        (lambda n: Lion().coefficients(n), "steps"),
        (lambda n: NesterovIterates(0.9).coefficients(n), "steps"),
        (lambda n: Linear(laws.sgd(1.0)).coefficients(n), "steps"),
        (lambda n: SmoothRidge(rllc.M(0.5), 1.0, 1.0, 0.1).coefficients(n), "steps"),
        (lambda n: batches.variance_when_independent(laws.sgd(1.0), n), "n"),
    ],
)
def test_counts_are_whole_numbers(call, name):
    for n in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match=f"{name} must be a whole number, 0 or more, got {n}"):
            call(n)
    call(2)


def test_bad_input():
    for steps in (0, -5, 1e4):
        with pytest.raises(ValueError, match=f"steps must be a whole number, 1 or more, got {steps}"):
            memory_effect(optax.sgd(0.1, 0.9), 0.1, steps)
    for n in (7, 8.0, True):
        with pytest.raises(ValueError, match=f"n must be a whole number, 8 or more, got {n}"):
            decay(Adam().method(lambda x: x), jnp.ones(2), n)
    for h in (0.0, -1.0, float("nan"), float("inf"), True):
        with pytest.raises(ValueError, match="step size h must be a positive finite number"):
            memoryless(Adam().method(lambda x: x), h)
    for call in (
        lambda: memory_effect(optax.sgd(0.1), 0.0),
        lambda: explicit_correction(optax.sgd(0.1), Adam(), 0.0, 1),
    ):
        with pytest.raises(ValueError, match=r"^learning_rate must be a positive finite number, got 0.0"):
            call()
    for nothing in ("adam", rllc.M(0.9)):
        with pytest.raises(ValueError, match="memory_effect takes a closed form"):
            memory_effect(nothing)
    assert batches.effective_batches([0.5, 0.5]) == 2
    with pytest.raises(ValueError, match="weights must not all be zero"):
        batches.effective_batches([0.0, 0.0])
    with pytest.raises(ValueError, match=r"^law_lr must be a positive finite number, got None"):
        unit_rates(0.1, None, [1.0])
    with pytest.raises(ValueError, match="beta2 must be in"):
        Adam(beta2=1.0)
    for eps in (0.0, None, "small"):
        with pytest.raises(ValueError, match="eps must be a positive"):
            RMSProp(eps=eps)
    for make in (Adam, Lion, lambda weight_decay: Linear(laws.sgd(1.0), weight_decay)):
        with pytest.raises(ValueError, match="weight_decay must be a finite number >= 0, got nan"):
            make(weight_decay=float("nan"))
    with pytest.raises(ValueError, match=">= 0, got -1"):
        Lion(eps=-1.0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_an_explicit_correction_keeps_the_dtype_of_updates(dtype):
    tx = explicit_correction(optax.adam(1e-3), Adam(), 1e-3, -1.0)
    theta = jnp.ones(3, dtype)
    updates, _ = tx.update(theta, tx.init(theta), theta, grad_fn=jnp.square)
    assert updates.dtype == dtype


def test_an_explicit_correction_adds_cancels_and_counts_one_product():
    calls = []

    def grad(x):
        calls.append(1)
        return jnp.array([1.0, 3.0]) * x + x**3

    form, h = Linear(laws.heavy_ball(1.0, 0.5)), 0.01
    x = jnp.array([0.3, -0.2])
    g, base = grad(x), optax.sgd(h, momentum=0.5)
    plain, _ = base.update(g, base.init(x), x)
    corr = form.terms(grad, form.stationary(), x).correction
    for strength in (-1.0, 0.0, 2.0):
        tx = explicit_correction(base, form, h, strength)
        calls.clear()
        updates, _ = tx.update(g, tx.init(x), x, grad_fn=grad)
        assert len(calls) == 1
        np.testing.assert_allclose(updates, plain - strength * h**2 * corr, rtol=1e-12)
    with pytest.raises(ValueError, match="grad_fn"):
        tx.update(g, tx.init(x), x)


def test_minus_one_moves_the_optimizer_to_its_uncorrected_counterpart():
    """Cancelled, the distance to the iteration without correction falls with h², not h."""
    import jax

    from rllc.lab.memoryless.problems import PROBLEMS

    f, x0 = PROBLEMS["tanh-net"]()
    grad, form, errors = jax.grad(f), Linear(laws.heavy_ball(1.0, 0.5)), []
    for n in (256, 512, 1024):
        tx = explicit_correction(optax.sgd(1 / n, momentum=0.5), form, 1 / n, -1.0)

        def body(carry, _, tx=tx):
            x, state = carry
            updates, state = tx.update(grad(x), state, x, grad_fn=grad)
            return (x + updates, state), x + updates

        _, path = jax.lax.scan(body, (x0, tx.init(x0)), length=n)
        plain = follow(form, grad, x0, 1 / n, n, corrected=False)[1:]
        errors.append(float(jnp.abs(path - plain).max()))
    orders = -np.diff(np.log2(errors))
    assert (orders > 1.8).all(), orders
