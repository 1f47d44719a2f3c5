"""rllc_adamw: the reference's numbers, the scale of the loss, skipped steps, and optax around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
from problems import flat, noisy, noisy_quadratic
from rllc import reference
from rllc.optax import LawStep, averaged_params, law_report, rllc_adamw

pytestmark = pytest.mark.usefixtures("float64")

N, STEPS = 12, 200
H, NOISE, START = noisy_quadratic(N, STEPS, seed=5)
C1, C2, DECAY = 0.02, 0.3, 0.1


def split(x):
    return {"a": x[:5], "b": x[5:].reshape(7, 1)}


@functools.cache
def training(tx):
    """(a number for the loss, a step whose gradient is broken) -> (last state, (θ, law, θ̄) of each step)."""

    @jax.jit
    def run(loss, bad):
        def body(carry, noise):
            (params, state), (t, noise) = carry, noise
            g = loss * (H * flat(params) + noise) + jnp.where(t == bad, jnp.nan, 0.0)
            updates, state = tx.update(split(g), state, params)
            params = optax.apply_updates(params, updates)
            seen = flat(params), optax.tree.get(state, "law"), flat(averaged_params(state, params))
            return (params, state), seen

        params = split(jnp.asarray(START))
        return jax.lax.scan(body, (params, tx.init(params)), (jnp.arange(STEPS), jnp.asarray(NOISE)))

    return run


def trained(tx, loss=1.0, bad=-1):
    (_, state), trace = training(tx)(loss, bad)
    return [np.asarray(x) for x in trace], state


STEP = LawStep(q=1.5, clip=1.0)
TX = rllc_adamw(C1, law_learning_rate=C2, weight_decay=DECAY, law=1.0, law_step=STEP)
WITHOUT_EPS = rllc_adamw(C1, law_learning_rate=C2, weight_decay=DECAY, eps=0.0, law=1.0, law_step=STEP)
SEEKER = rllc_adamw()
WARMED_UP = rllc_adamw(lambda count: 1e-3 * jnp.minimum(1.0, jnp.asarray(count, float) / 180))


def warmed_up(t):
    return 1e-3 * min(1.0, (t - 1) / 180)


def test_one_batch_is_learned_by_heart_and_stays_so():
    """As test_torch_adamw.py has it."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 8)), rng.integers(4, size=32)
    shapes = {"w": (8, 64), "b": (64,), "v": (64, 4), "c": (4,)}
    params = {name: jnp.asarray(rng.normal(size=shape) / 4) for name, shape in shapes.items()}

    def loss(p):
        logits = jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"] + p["c"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry, _):
        params, state = carry
        value, g = jax.value_and_grad(loss)(params)
        updates, state = SEEKER.update(g, state, params)
        return (optax.apply_updates(params, updates), state), value

    start = params, SEEKER.init(params)
    (params, state), losses = jax.jit(lambda start: jax.lax.scan(step, start, None, 300))(start)
    assert losses[150:].max() < 1e-3
    assert optax.tree.get(state, "law")[0] < 1e3
    assert max(float(abs(p).max()) for p in params.values()) < 10


@pytest.mark.parametrize(
    ("tx", "c1", "law", "decay", "law_update"),
    [
        (TX, C1, 1.0, DECAY, oracles.of_the_first(reference.relative(C2, q=1.5, clip=1.0))),
        (SEEKER, 1e-3, 0.01, 0.0, reference.seeking(0.04, 1.5, 0.5, 1.0, 0.1, 0.95)),
        (WARMED_UP, warmed_up, 0.01, 0.0, reference.seeking(0.04, 1.5, 0.5, 1.0, 0.1, 0.95, warmed_up)),
    ],
    ids=["relative", "the default", "warm-up"],
)
def test_it_is_the_reference(tx, c1, law, decay, law_update):
    """u = m̂/(√v̂ + eps), x = uᵀg / (1 + 1e-3) uᵀm̂ clipped to 1, L += c2 |L|^1.5 x; θ is a unit of law w."""
    average = 0.0
    states = oracles.adamw(N).process(noisy(H, NOISE), START, [law, decay], c1, law_update)
    trace, _ = trained(tx)
    for t, (theta, found, mean) in enumerate(zip(*trace, strict=True), 1):
        state = next(states)
        average = average + 10 / (t + 9) * (state.theta - average)
        np.testing.assert_allclose(theta, state.theta, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found, state.L[:1], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(mean, average, rtol=1e-9, atol=1e-9)
    assert abs(found[0] / law - 1) > 0.1


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_scale_of_the_loss_changes_nothing(factor):
    for found, expected in zip(trained(WITHOUT_EPS, factor)[0], trained(WITHOUT_EPS)[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8)
    if factor > 1:  # then eps is nothing
        for found, expected in zip(trained(TX, factor)[0], trained(WITHOUT_EPS)[0], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_skipped_step_is_not_averaged_either():
    (thetas, laws, means), state = trained(TX, bad=20)
    for trace in (thetas, laws, means):
        np.testing.assert_array_equal(trace[20], trace[19])
        assert np.any(trace[21] != trace[20])
    report = law_report(state)
    assert (int(report["count"]), int(report["skipped"])) == (STEPS, 1)
    assert int(optax.tree.get(state[1], "count")) == STEPS - 1


def test_without_a_law_and_an_average_it_is_adamw():
    ours = rllc_adamw(C1, law_learning_rate=0.0, weight_decay=DECAY, law=1.0, average=None)
    theirs = optax.adamw(C1, weight_decay=DECAY)
    params = of_theirs = split(jnp.asarray(START))
    states, updates = [ours.init(params), theirs.init(params)], [jax.jit(ours.update), jax.jit(theirs.update)]
    for noise in NOISE[:20]:
        step, states[0] = updates[0](split(H * flat(params) + noise), states[0], params)
        params = optax.apply_updates(params, step)
        step, states[1] = updates[1](split(H * flat(of_theirs) + noise), states[1], of_theirs)
        of_theirs = optax.apply_updates(of_theirs, step)
    np.testing.assert_allclose(flat(params), flat(of_theirs), rtol=1e-12)


def test_one_compilation_while_every_number_changes():
    """inject_hyperparams makes arrays of all of them, and tracers of these."""
    tx = optax.inject_hyperparams(rllc_adamw, static_args="law_step")(
        C1, law_learning_rate=C2, weight_decay=DECAY, law=1.0, law_step=STEP
    )
    traces = 0

    @jax.jit
    def update(g, state, params):
        nonlocal traces
        traces += 1
        return tx.update(g, state, params)

    params = split(jnp.asarray(START))
    state = tx.init(params)
    assert set(state.hyperparams) == {
        *("learning_rate", "law_learning_rate", "b1", "b2", "eps", "weight_decay", "law", "average")
    }

    def law_in(state):
        return state.inner_state[0][0].law

    for noise, (theta, law, _) in zip(NOISE[:5], zip(*trained(TX)[0], strict=True), strict=False):
        updates, state = update(split(H * flat(params) + noise), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(flat(params), theta, rtol=1e-12)
        np.testing.assert_allclose(law_in(state), law, rtol=1e-12)
    state.hyperparams["law_learning_rate"] = jnp.zeros(())
    before = law_in(state)
    _, state = update(params, state, params)
    assert law_in(state) == before
    assert traces == 1


def test_schedules_and_a_law_for_each_tensor():
    tx = rllc_adamw(
        lambda t: C1 / (1 + t),
        law_learning_rate=lambda t: 0.0 * t,
        scope="tensor",
        law=0.5,
        law_step=LawStep(),
    )
    _, state = jax.jit(tx.update)(split(START), tx.init(split(START)), split(START))
    np.testing.assert_array_equal(optax.tree.get(state, "law"), np.full((2, 1), 0.5))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"b1": 1.0}, r"b1 must be in \[0, 1\)"),
        ({"eps": -1.0}, "eps must be a finite number >= 0"),
        ({"average": -1.0}, "power must be a finite number >= 0"),
        ({"law_learning_rate": -1.0}, "law_learning_rate must be"),
        ({"law": [1.0, 2.0]}, "law must have 1 entries"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(ValueError, match=text):
        rllc_adamw(**arguments)


def test_the_compiled_program_grows_in_proportion_to_the_leaves():
    """Not with their square: numbers that all leaves share are not computed anew for each."""

    def lines(leaves):
        params, tx = [jnp.ones(3)] * leaves, rllc_adamw()
        return jax.jit(tx.update).lower(params, tx.init(params), params).compile().as_text().count("\n")

    assert lines(16) - lines(8) < 2.3 * (lines(8) - lines(4))


@pytest.mark.parametrize(("size", "skipped"), [(1e19, 0), (1e20, 1), (1e25, 1)])
def test_after_a_gradient_whose_square_overflows_it_goes_on(float32, size, skipped):
    """As in torch. A thousandth of 1e40 is finite, but not where the bias is corrected: no step followed."""
    params = {"w": jnp.ones(4)}
    state, update = SEEKER.init(params), jax.jit(SEEKER.update)
    for factor in (1.0, size, 1.0, 1.0, 1.0):
        updates, state = update(jax.tree.map(lambda x, f=factor: f * x, params), state, params)
    assert law_report(state)["skipped"] == skipped and np.all(updates["w"] != 0)


def test_decays_in_two_bytes_are_refused(float32):
    """optax.inject_hyperparams has numbers in the dtype of the parameters, and 0.999 in bfloat16 is 1."""
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"b1 is of bfloat16, .* hyperparam_dtype=jnp.float32"):
        tx = optax.inject_hyperparams(rllc_adamw)()
        tx.update(params, tx.init(params), params)
    tx = optax.inject_hyperparams(rllc_adamw, hyperparam_dtype=jnp.float32)()
    _, state = tx.update(params, tx.init(params), params)
    assert law_report(state)["skipped"] == 0
