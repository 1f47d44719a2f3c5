"""rllc.optax with memory that is not linear: against the reference, against optax, and in JAX."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import oracles
from problems import SignMomentum, flat, noisy, noisy_quadratic
from rllc import parse, reference
from rllc.laws import FixedLaw
from rllc.memory import Adam, Deviation, MemoryRule, linear, yardsticks, yardsticks_of
from rllc.memory import union as union_of_rules
from rllc.optax import (
    GramianRidge,
    LawStep,
    Ridge,
    adam_metric,
    euclidean,
    law_report,
    rllc,
    scale_by_rllc,
    union,
    unit,
)
from rllc.optax.units import as_members
from rllc.torch import RLLC

pytestmark = pytest.mark.usefixtures("float64")

N, STEPS = 12, 200
H, NOISE, START = noisy_quadratic(N, STEPS)
PARAMS = {"w": np.arange(6.0).reshape(2, 3) / 5 - 0.4, "b": (np.ones(4), np.array(0.3))}
ADAM, LION = unit(optax.scale_by_adam(), adam_metric()), unit(optax.scale_by_lion())
EVERYTHING = union("M(0.9)", ADAM, LION, Deviation())
SEVERAL = union("M(0.9)", ADAM, SignMomentum())


def split(x):
    return {"a": x[0], "b": (x[1:7].reshape(2, 3), x[7:])}


def run(tx, steps=STEPS):
    """θ and the law after each step of tx on a noisy quadratic, its parameters cut into three."""

    def body(carry, noise):
        params, state = carry
        updates, state = tx.update(split(H * flat(params) + noise), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (flat(params), state[0].law)

    @jax.jit
    def all_steps():
        params = split(jnp.asarray(START))
        return jax.lax.scan(body, (params, tx.init(params)), jnp.asarray(NOISE[:steps]))[1]

    return [np.asarray(x) for x in all_steps()]


def assert_is_reference(tx, oracle, law, c1, law_update):
    thetas, laws = run(tx)
    states = oracle.process(noisy(H, NOISE), START, law, c1, law_update)
    for theta, L, state in zip(thetas, laws, states, strict=False):
        np.testing.assert_allclose(theta, state.theta, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(L, state.L, rtol=1e-9, atol=1e-9)


# --- the same numbers as others -----------------------------------------------------------------


def test_linear_memory_with_a_law_step_that_decays():
    p = parse("M(0.9) + M(0)")
    tx = rllc(p, 0.02, 0.05, guard=False, law_step=LawStep(q=1.0, decay=0.5, clip=0.3))
    law_update = reference.relative(0.05, q=1.0, decay=0.5, clip=0.3)
    assert_is_reference(tx, oracles.linear(p, reference.gramian_ridge(p, 1e-3)), np.ones(2), 0.02, law_update)


def test_a_union_in_the_first_metric_with_guests_measured_by_its_owner():
    tx = rllc(union("M(0.9)", SignMomentum()), 0.01, 0.05, law=[0.1, 1.0])
    assert_is_reference(tx, oracles.momentum_and_signs(N), [0.1, 1.0], 0.01, reference.additive(0.05))


def test_a_transformation_without_a_metric_is_measured_by_the_last_gradient():
    oracle = oracles.without_metric(N, lambda g: np.clip(g, -1, 1))
    assert_is_reference(rllc(unit(optax.clip(1.0)), 0.05, 0.1), oracle, [1.0], 0.05, reference.additive(0.1))


@pytest.mark.parametrize(
    ("memory", "tx"), [("M(0.9)", optax.trace(0.9)), ("M(0)", optax.identity())], ids=["M(0.9)", "M(0)"]
)
def test_momentum_and_the_gradient_as_units_are_linear_memory(memory, tx):
    rates = {"learning_rate": 0.02, "law_learning_rate": 0.01, "weight_decay": 0.1, "guard": False}
    for found, expected in zip(
        run(rllc(unit(tx, euclidean), **rates)), run(rllc(memory, **rates)), strict=True
    ):
        # Entries cross zero on their way: an error is measured by the largest.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_a_fixed_law_of_one_is_adam_to_the_bit():
    tx, adam = rllc(unit(optax.scale_by_adam()), 0.02, 0.0), optax.adam(0.02)
    params = theirs = split(jnp.asarray(START))
    state, their_state = tx.init(params), adam.init(params)
    ours, update = jax.jit(tx.update), jax.jit(adam.update)
    for noise in NOISE[:50]:
        updates, state = ours(split(H * flat(params) + noise), state, params)
        params = optax.apply_updates(params, updates)
        updates, their_state = update(split(H * flat(theirs) + noise), their_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    np.testing.assert_array_equal(flat(params), flat(theirs))


@pytest.mark.parametrize("options", [{}, {"b2": 0.99, "eps": 1e-3}], ids=str)
def test_optaxs_adam_in_its_metric_is_the_rule(options):
    direction = optax.chain(optax.scale(1.0), optax.scale_by_adam(**options))
    ours = run(rllc(unit(direction, adam_metric(**options)), 0.02, 0.05))
    for found, expected in zip(ours, run(rllc(Adam(**options), 0.02, 0.05)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_unions_are_measured_as_those_of_rules():
    rules = union_of_rules("M(0.9) + M(0)", Adam(), Deviation())
    for memory in (rules, Adam(), Deviation(), linear("M_2(0.6)"), union_of_rules(Deviation(), "M(0)")):
        assert yardsticks_of(as_members(memory)) == yardsticks(memory)
    assert [m.name for m in EVERYTHING.members] == [
        "Linear",
        "unit(scale_by_adam)",
        "unit(scale_by_lion)",
        "Deviation",
    ]
    assert yardsticks_of(union("M(0)", union(EVERYTHING, Adam())).members) == (2, 2, None, 2, 2, 2)


def test_the_union_of_the_issue_learns():
    memory = union(linear("M(0.9)"), unit(optax.scale_by_adam()), unit(optax.scale_by_lion(b1=0.9)))
    thetas, laws = run(rllc(memory, 0.002, 0.01), 100)
    assert np.abs(laws[-1] - 1).min() > 1e-3
    assert np.linalg.norm(thetas[-1] * H) < 0.5 * np.linalg.norm(START * H)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_float32_law_is_the_same_for_gradients_from_1e_30_to_1e30(float32, scale):
    tx = scale_by_rllc(union("M(0.9) + M(0)", unit(optax.scale_by_sign()), SignMomentum()), 0.02)
    gradients = 1 + np.random.default_rng(0).normal(size=(25, 50)).astype(np.float32)

    @jax.jit
    def law(scale):
        def body(state, g):
            return tx.update(g * scale, state, g)[1], None

        return jax.lax.scan(body, tx.init(jnp.zeros(50)), jnp.asarray(gradients))[0]

    found, expected = law(jnp.float32(scale)), law(jnp.float32(1))
    assert int(found.skipped) == 0
    assert np.abs(expected.law - 1).min() > 1e-3
    np.testing.assert_allclose(found.law, expected.law, rtol=1e-4)


# --- scopes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["M(0.9) + M(0)", SignMomentum()], ids=["linear", "rule"])
def test_one_law_per_label_is_one_optimizer_per_label(memory):
    rates = {"learning_rate": 0.02, "law_learning_rate": 0.02}
    labels = {"a": "late", "b": ("early", "late")}
    _, laws = run(rllc(memory, **rates, scope=labels), 30)
    parts = optax.partition({name: rllc(memory, **rates) for name in ("late", "early")}, labels)

    def body(carry, noise):
        params, state = carry
        updates, state = parts.update(split(H * flat(params) + noise), state, params)
        return (optax.apply_updates(params, updates), state), {
            name: inner.inner_state[0].law for name, inner in state.inner_states.items()
        }

    params = split(jnp.asarray(START))
    _, alone = jax.jit(lambda: jax.lax.scan(body, (params, parts.init(params)), jnp.asarray(NOISE[:30])))()
    np.testing.assert_allclose(laws[:, 0], alone["early"], rtol=1e-10)
    np.testing.assert_allclose(laws[:, 1], alone["late"], rtol=1e-10)
    assert np.abs(laws[-1, 0] - laws[-1, 1]).max() > 1e-3


def test_a_law_for_every_tensor_and_labels_by_a_function():
    apart = run(rllc("M(0.9)", 0.02, 0.02, scope="tensor"), 20)
    labels = run(rllc("M(0.9)", 0.02, 0.02, scope=lambda tree: split_labels(tree)), 20)
    assert apart[1].shape == (20, 3, 1)
    for found, expected in zip(labels, apart, strict=True):
        np.testing.assert_array_equal(found, expected)


def split_labels(tree):
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list("abc"[: len(leaves)]))


# --- skipped steps and refusals -----------------------------------------------------------------


@functools.cache
def several_laws():
    tx = rllc(SEVERAL, 0.01, 0.02, weight_decay=0.1, scope="tensor")
    return tx, jax.jit(tx.update)


def gradient(params, t=0.0, xp=np):
    return jax.tree.map(lambda x: xp.cos(x + t) * x + 0.3, params)


def test_what_is_not_finite_is_skipped_whole():
    """A gradient that is not, or whose square in the hidden state would not be, in one scope of three."""
    tx, update = several_laws()
    state = tx.init(PARAMS)
    for t in range(3):
        _, state = update(gradient(PARAMS, t), state, PARAMS)
    for value in (np.nan, -np.inf, 1e200):
        bad = gradient(PARAMS) | {"b": (np.ones(4), np.array(value))}
        updates, after = update(bad, state, PARAMS)
        assert not any(np.any(u) for u in jax.tree.leaves(updates))
        same = after[0]._replace(count=state[0].count, skipped=state[0].skipped)
        jax.tree.map(np.testing.assert_array_equal, same, state[0])
        assert (int(after[0].skipped), int(after[0].count)) == (1, 4)


def test_a_hidden_infinity_and_a_key_are_taken_as_they_are_and_extra_arguments_arrive():
    seen = {}

    def update(updates, state, params=None, *, value, **extra_args):
        seen.update(extra_args)
        return jax.tree.map(lambda u: u * value, updates), jnp.minimum(state, value)

    best = optax.GradientTransformationExtraArgs(lambda params: jnp.asarray(jnp.inf), update)
    tx = rllc(union(unit(best), unit(optax.add_noise(0.1, 0.55, key=0))), 0.1, 0.01)
    update = jax.jit(functools.partial(tx.update, other=1))
    _, state = update(gradient(PARAMS), tx.init(PARAMS), PARAMS, value=2.0)
    assert (int(state[0].skipped), float(state[0].hidden[0]), seen) == (0, 2.0, {"other": 1})
    np.testing.assert_allclose(state[0].memory[0]["w"], 2 * gradient(PARAMS)["w"], rtol=1e-6)


class Growing(MemoryRule):
    """One unit at first, and then two."""

    def init(self, xp, param):
        return (xp.zeros_like(param),)

    def update(self, xp, g, units, hidden, param):
        return (g, g), hidden


class Turning(Growing):
    """Its imaginary part had been dropped unseen."""

    def update(self, xp, g, units, hidden, param):
        return (g * (1 + 1j),), hidden


class Hiding(Growing):
    def update(self, xp, g, units, hidden, param):
        return (g,), (*hidden, g)


class Summing(Growing):
    def update(self, xp, g, units, hidden, param):
        return (xp.sum(g),), hidden


def update_once(memory, updates=PARAMS, params=PARAMS, **options):
    tx = rllc(memory, 0.1, 0.01, **options)
    return jax.eval_shape(tx.update, updates, tx.init(PARAMS), params)


def stateless(f):
    return optax.stateless(lambda updates, params: f(updates))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: update_once(Growing()), "Growing returned 2 units, not 1"),
        (lambda: update_once(Turning()), "a unit of Turning is complex where the parameter is real"),
        (lambda: update_once(union("M(0)", Hiding())), "Hiding returned 2 hidden arrays, not 1"),
        (
            lambda: update_once(union("M(0)", Summing())),
            r"unit of Summing and one of Linear have different shapes at \['b'\]\[0\]: \(\) and \(4,\)",
        ),
        (
            lambda: update_once(union(Adam(), unit(stateless(jax.tree.leaves)))),
            r"unit\(stateless\) and one of Adam are trees of different structure",
        ),
        (
            lambda: update_once(Adam(), {"w": PARAMS["w"]}),
            "the gradient and the parameters are trees of",
        ),
        (lambda: update_once(Adam(), params=None), "Adam needs the parameters"),
        (lambda: update_once(unit(optax.trace(0.9), adam_metric())), "holds none"),
        (lambda: update_once("M(0)", scope={"w": "x", "c": "y"}), "no prefix tree of the parameters"),
        (lambda: rllc(Adam(), 0.1, 0.01, inverse=GramianRidge()), r"use rllc.law.DiagonalRidge\(0.001\)"),
        (lambda: rllc(Adam(), 0.1, 0.01, guard=True), r"the guard of a memory rule is LawStep\(clip=...\)"),
        (lambda: rllc(Adam(), 0.1, 0.01, law=[1.0, 2.0]), "law must have 1 entries"),
        (lambda: rllc(Adam(), 0.1, 0.01).init({"z": jnp.ones(2) * 1j}), "split_real_and_imaginary"),
        (lambda: rllc("M(0)", 0.1, 0.01, scope="group"), 'scope must be "all", "tensor"'),
        (lambda: union(), "at least one memory"),
        (lambda: union("M(0)", optax.adam(0.1)), "not a memory"),
        (lambda: unit("adam"), "unit needs an optax transformation"),
    ],
)
def test_what_makes_no_sense_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


# --- a citizen of JAX ---------------------------------------------------------------------------


def test_dtypes_are_kept_and_hidden_state_is_at_least_float32(float32):
    params = {"half": jnp.ones(3, jnp.float16), "brain": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(2)}
    tx = rllc(EVERYTHING, 0.01, 0.02)
    updates, state = jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)
    for tree in (updates, *state[0].memory):
        assert jax.tree.map(lambda x: x.dtype, tree) == jax.tree.map(lambda x: x.dtype, params)
    assert {x.dtype for x in jax.tree.leaves(state[0].hidden)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, jax.eval_shape(tx.init, params))


def test_complex_leaves_equal_their_real_view():
    z = {"z": jnp.array([0.3 + 0.5j, -0.2 - 0.1j])}
    x = {"re": z["z"].real, "im": z["z"].imag}
    tx = rllc(unit(optax.trace(0.5), lambda _, tree: tree), 0.05, 0.05)  # a metric of its own
    z_state, x_state, update = tx.init(z), tx.init(x), jax.jit(tx.update)
    for t in range(4):
        g = {"re": x["re"] ** 3 - 0.1 * t, "im": x["im"] * x["re"] ** 2}
        updates, x_state = update(g, x_state)
        x = optax.apply_updates(x, updates)
        updates, z_state = update({"z": g["re"] + 1j * g["im"]}, z_state)
        z = optax.apply_updates(z, updates)
    np.testing.assert_allclose(z_state[0].law, x_state[0].law, rtol=1e-12)
    np.testing.assert_allclose(z["z"], x["re"] + 1j * x["im"], rtol=1e-12)


def test_vmap_over_rates_and_laws():
    def law(c1, c2, first):
        tx = rllc(union("M(0.9)", Adam()), c1, c2, law=first)
        params = jax.tree.map(jnp.asarray, PARAMS)

        def body(carry, t):
            return a_step(tx, *carry, t), None

        return jax.lax.scan(body, (params, tx.init(params)), jnp.arange(4.0))[0][1][0].law

    rates = jnp.array([0.01, 0.05]), jnp.array([0.1, 0.02]), jnp.array([[1.0, 1.0], [0.0, 2.0]])
    together, alone = jax.jit(jax.vmap(law))(*rates), jax.jit(law)
    for i in range(2):
        np.testing.assert_allclose(together[i], alone(*(x[i] for x in rates)), rtol=1e-9)


def test_donation_and_one_compilation():
    tx = rllc(union("M(0.9)", Adam()), 0.01, 0.02, weight_decay=0.1)
    traces = 0

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, t):
        nonlocal traces
        traces += 1
        updates, state = tx.update(gradient(params, t, jnp), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(lambda x: jnp.array(x, copy=True), PARAMS)
    state = tx.init(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a buffer that could not be donated warns
        for t in range(3):
            before = state[0].memory[0]["w"]
            params, state = step(params, state, jnp.float64(t))
            assert before.is_deleted()
    assert traces == 1


SPECS = {"w": P("x", "y"), "b": P("y"), "c": P()}
WIDE = {"w": np.arange(64.0).reshape(8, 8) / 40 - 0.7, "b": np.linspace(-1, 1, 6), "c": np.ones(3)}


def train(tx, update, params, steps=5):
    state = jax.jit(tx.init)(params)
    for t in range(steps):
        params, state = jax.block_until_ready(update(params, state, jnp.float64(t)))
    return jax.device_get((params, state[0].law))


def a_step(tx, params, state, t):
    updates, state = tx.update(gradient(params, t, jnp), state, params)
    return optax.apply_updates(params, updates), state


@functools.cache
def on_one_device():
    tx = rllc(SEVERAL, 0.01, 0.05)
    return train(tx, jax.jit(functools.partial(a_step, tx)), jax.tree.map(jnp.asarray, WIDE))


@pytest.mark.parametrize("kind", ["explicit", "shard_map"])
def test_sharded_training_is_that_of_one_device(kind):
    axis_type = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    tx = rllc(SEVERAL, 0.01, 0.05, axis_name=("x", "y") if kind == "shard_map" else ())
    step = functools.partial(a_step, tx)
    with jax.set_mesh(mesh):
        params = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), WIDE, SPECS)
        if kind == "shard_map":
            state = jax.eval_shape(tx.init, WIDE)
            specs = optax.tree_map_params(
                tx, lambda _, s: s, state, SPECS, transform_non_params=lambda _: P()
            )
            step = jax.shard_map(step, mesh=mesh, in_specs=(SPECS, specs, P()), out_specs=(SPECS, specs))
        found = train(tx, jax.jit(step), params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), found, on_one_device())
    assert np.abs(found[1] - 1).max() > 0.1


def test_what_one_shard_cannot_take_all_skip():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    tx = scale_by_rllc(union("M(0.9)", Adam()), 0.02, axis_name=("x", "y"))
    state = tx.init(WIDE)
    specs = optax.tree_map_params(tx, lambda _, s: s, state, SPECS, transform_non_params=lambda _: P())
    update = jax.jit(
        jax.shard_map(tx.update, mesh=mesh, in_specs=(SPECS, specs, SPECS), out_specs=(SPECS, specs))
    )
    for name, leaf in WIDE.items():
        bad = leaf.copy()
        bad[(-1,) * leaf.ndim] = 1e200  # its square is not finite
        updates, after = jax.block_until_ready(update(WIDE | {name: bad}, state, WIDE))
        assert int(after.skipped) == 1
        assert not any(np.any(u) for u in jax.tree.leaves((updates, after.memory, after.hidden)))


# --- reports ------------------------------------------------------------------------------------


def test_the_report_of_a_linear_law():
    tx = optax.chain(optax.clip(1.0), rllc("M(0.9) + M(0)", 0.1, 0.01, law=[0.5, 2.0]))
    _, state = jax.jit(tx.update)(gradient(PARAMS), tx.init(PARAMS), PARAMS)
    report, fixed = law_report(state, "M(0.9) + M(0)"), FixedLaw(parse("M(0.9) + M(0)"), np.array([0.5, 2.0]))
    assert report.pop("condition") == np.inf  # both units are the one gradient
    expected = {"law/1": 0.5, "law/2": 2.0, "law_norm": math.sqrt(4.25), "count": 1, "skipped": 0}
    assert jax.tree.map(float, report) == pytest.approx(
        expected | {"gain": fixed.gain, "mean_delay": fixed.mean_delay}
    )


def test_the_report_of_several_laws_and_of_any_memory():
    tx, update = several_laws()
    state = tx.init(PARAMS)
    for t in range(3):
        params = jax.tree.map(lambda x, t=t: x * (1 - 0.1 * t), PARAMS)
        _, state = update(gradient(params, t), state, params)
    report = jax.jit(law_report)(state)
    assert report["law/3/2"] == state[0].law[2, 1]
    M = np.stack([np.asarray(flat(unit)) for unit in state[0].memory], 1)
    M /= np.linalg.norm(M, axis=0)
    assert report["condition"] == pytest.approx(np.linalg.cond(M) ** 2, rel=1e-6)
    with pytest.raises(ValueError, match="holds 2 laws"):
        law_report((state, state))
    with pytest.raises(ValueError, match="of several runs at once"):
        law_report(jax.tree.map(lambda x: jnp.stack([x, x]), state))
    with pytest.raises(ValueError, match=r"laws for M\(0.0\) are \(..., 1\), got shape \(3, 3\)"):
        law_report(state, "M(0)")


def test_the_report_of_a_restored_state_is_of_jax_too():
    tx = rllc(Adam(), 0.1, 0.1)
    state = jax.tree.map(np.asarray, tx.init(jnp.ones(3)))
    assert all(isinstance(x, jax.Array) and x.shape == () for x in law_report(state).values())


def test_another_inverse_in_its_own_units():
    """Ridge with eps of a squared gradient: not the same for gradients of every size."""
    p = parse("M(0.9) + M(0)")
    tx = rllc(linear("M(0.9) + M(0)"), 0.02, 0.05, inverse=Ridge(0.5))
    assert_is_reference(
        tx, oracles.linear(p, reference.ridge(0.5)), np.ones(2), 0.02, reference.additive(0.05)
    )


# --- hidden state of any shape --------------------------------------------------------------------


class RowSizes(MemoryRule):
    """Divided by the root mean square of its rows, whose number is not that of the entries."""

    def init(self, xp, param):
        return xp.zeros_like(param), xp.sum(xp.zeros_like(param), -1)

    def update(self, xp, g, units, hidden, param):
        m, v = 0.9 * hidden[0] + 0.1 * g, 0.99 * hidden[1] + 0.01 * xp.sum(g * g, -1)
        return (m / (xp.sqrt(v)[..., None] + 1e-8),), (m, v)


def in_torch(rule, params, steps):
    """The law of each step, and the parameters at the end, of the same quadratic in torch."""
    tensors = [torch.nn.Parameter(torch.tensor(np.asarray(x))) for x in jax.tree.leaves(params)]
    opt, laws = RLLC(tensors, rule, 0.02, 0.05), []
    for _ in range(steps):
        for p in tensors:
            p.grad = 0.5 * p.detach() + 0.1
        opt.step()
        laws.append(opt.law.numpy())
    return np.array(laws), [p.detach().numpy() for p in tensors]


@pytest.mark.parametrize("shapes", [[(3, 2), (4, 2)], [(3, 2), (5,)], [(5,)], [(3, 2), (1, 4, 2)]])
@pytest.mark.parametrize("memory", [RowSizes, lambda: union_of_rules("M(0.9)", RowSizes())])
def test_hidden_arrays_may_have_any_shape(shapes, memory):
    """And JAX and torch come to the same."""
    rng = np.random.default_rng(0)
    params = {str(i): jnp.asarray(rng.normal(size=shape)) for i, shape in enumerate(shapes)}
    want, ends = in_torch(memory(), params, 5)
    tx, laws = rllc(memory(), 0.02, 0.05), []
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(lambda x: 0.5 * x + 0.1, params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(5):
        params, state = step(params, state)
        laws.append(state[0].law)
    np.testing.assert_allclose(laws, want, rtol=1e-12)
    for x, y in zip(jax.tree.leaves(params), ends, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


class Ragged(MemoryRule):
    def init(self, xp, param):
        zero = xp.zeros_like(param)
        return (zero, zero) if len(param.shape) > 1 else (zero,)


class Totals(MemoryRule):
    def update(self, xp, g, units, hidden, param):
        return (g,), ()

    def metric(self, xp, unit, hidden):
        return xp.sum(unit)


class Unitless(MemoryRule):
    k = 0


MASKED = optax.masked(optax.scale_by_adam(), {"w": True, "b": False})


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: update_once(Ragged()),
            "Ragged returned 1 hidden arrays, not 2",
        ),
        (
            lambda: update_once(Totals()),
            "what the metric of Totals returns and its unit have diff",
        ),
        (
            lambda: update_once(unit(optax.identity(), lambda state, tree: jax.tree.map(jnp.sum, tree))),
            "what the metric of .* returns and its unit have different shapes",
        ),
        (lambda: rllc(Unitless(), 0.1, 0.1), "must be a whole number, 1 or more, got 0"),
        (lambda: rllc("M(0.9)", 0.1, 0.1, law_step="relative"), "law_step must be a rllc.law.LawStep"),
        (
            lambda: update_once(unit(MASKED, adam_metric())),
            "adam_metric is for one optax.scale_by_adam of all parameters",
        ),
    ],
)
def test_what_a_memory_must_not_do(call, text):
    with pytest.raises(ValueError, match=text):
        call()
