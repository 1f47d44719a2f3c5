"""rllc.optax as a citizen of JAX and optax: transformations, wrappers, dtypes, shardings."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from problems import EIGHT
from rllc import parse, reference
from rllc.law import SEEKING, Cutoff, GramianRidge, LawStep, Ridge
from rllc.memory import Adam, union
from rllc.optax import averaged_params, law_report, rllc, rllc_adamw, scale_by_rllc, unit
from rllc.torch import RLLC

pytestmark = pytest.mark.usefixtures("float64")

# NumPy, so that JAX takes them in the precision that is enabled.
PARAMS = {"w": np.arange(6.0).reshape(2, 3) / 5 - 0.4, "b": (np.ones(4), np.array(0.3))}


def loss(params, shift=0.0):
    return sum(jnp.sum(jnp.cos(x + shift) * x**2 + 0.1 * x**2) for x in jax.tree.leaves(params))


gradient_of_loss = jax.jit(jax.grad(loss))  # one program, not one for each operation


def train(tx, params=PARAMS, steps=20, jit=jax.jit):
    """Parameters and state after some steps of tx on `loss`."""
    params = jax.tree.map(jnp.asarray, params)
    state, update = tx.init(params), jit(tx.update)
    for t in range(steps):
        updates, state = update(gradient_of_loss(params, 0.1 * t), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def learned(state):
    """The law in any nesting of states."""
    return optax.tree.get(state, "law")


def assert_same(got, want, rtol=1e-8):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-9), got, want)


MEMORIES = ("M(0.9)", "M(0.9) + M_2(0.6) + CM(0.3+0.2i)")  # the simplest, and every kind of block at once


# What one test has compiled serves the next.
made, made_scale = functools.cache(rllc), functools.cache(scale_by_rllc)


@pytest.fixture(params=MEMORIES)
def tx(request):
    return made(request.param, 0.05, 0.02)


def test_jit_changes_nothing(tx):
    assert_same(train(tx, steps=4), train(tx, steps=4, jit=lambda update: update))


def test_state_dtypes_and_shapes_are_stable(tx):
    def as_shape(x):
        return x.shape, x.dtype

    state = tx.init(PARAMS)
    for _ in range(3):
        shapes = jax.eval_shape(tx.update, PARAMS, state, PARAMS)
        updates, new = tx.update(gradient_of_loss(PARAMS), state, PARAMS)
        assert jax.tree.map(as_shape, shapes) == jax.tree.map(as_shape, (updates, new))
        assert jax.tree.map(as_shape, new) == jax.tree.map(as_shape, state)
        assert jax.tree.map(as_shape, updates) == jax.tree.map(as_shape, PARAMS)
        state = new


def test_eval_shape_of_init(tx):
    shapes = jax.eval_shape(tx.init, PARAMS)
    assert jax.tree.structure(shapes) == jax.tree.structure(tx.init(PARAMS))


def scanned(tx, params, steps):
    """`train` as one program, and the laws on its way."""

    def body(carry, t):
        params, state = carry
        updates, state = tx.update(gradient_of_loss(params, 0.1 * t), state, params)
        return (optax.apply_updates(params, updates), state), learned(state)

    params = jax.tree.map(jnp.asarray, params)
    return jax.lax.scan(body, (params, tx.init(params)), jnp.arange(steps))


def test_scan_equals_a_loop(tx):
    (params, state), laws = scanned(tx, PARAMS, 20)
    assert_same((params, state), train(tx))
    assert_same(laws[-1], learned(state))


def test_cond_on_the_step(tx):
    state = tx.init(PARAMS)
    g = gradient_of_loss(PARAMS)

    def maybe(take):
        return jax.lax.cond(
            take, lambda: tx.update(g, state, PARAMS), lambda: (jax.tree.map(jnp.zeros_like, g), state)
        )

    assert_same(jax.jit(maybe)(True), tx.update(g, state, PARAMS))
    assert_same(jax.jit(maybe)(False)[1], state)


def test_vmap_over_rates_eps_and_laws():
    @jax.jit
    def final(lr, c2, eps, law):
        (params, state), _ = scanned(rllc("M(0.9) + M(0)", lr, c2, law=law, eps=eps), PARAMS, 10)
        return params, learned(state)

    lrs, c2s = jnp.array([0.01, 0.05, 0.0]), jnp.array([0.0, 0.02, 0.1])
    epss, laws = jnp.array([1e-4, 1e-2, 1.0]), jnp.array([[1.0, 1.0], [0.9, 1.0], [0.0, 2.0]])
    together = jax.vmap(final)(lrs, c2s, epss, laws)
    for i in range(3):
        alone = final(lrs[i], c2s[i], epss[i], laws[i])
        assert_same(jax.tree.map(lambda x, i=i: x[i], together), alone)


def test_vmap_over_starts():
    @jax.jit
    def final(far):
        params = jax.tree.map(lambda x: x + far, PARAMS)
        (params, state), _ = scanned(made(MEMORIES[-1], 0.05, 0.02), params, 10)
        return params, learned(state)

    starts = jnp.array([0.1, -0.3, 0.5])
    together = jax.vmap(final)(starts)
    for i, start in enumerate(starts):
        assert_same(jax.tree.map(lambda x, i=i: x[i], together), final(start))


@pytest.mark.parametrize("memory", ["M(0.9) + M(0.9)", "M_3(0.6)"])
def test_gradient_through_the_update_equals_finite_differences(memory):
    """From the first step on, where memory is zero, and through units that are equal."""

    start, k = {"w": jnp.array([0.3, -0.5]), "b": jnp.asarray(0.2)}, parse(memory).k

    def final(x):
        tx = rllc(memory, x[0], x[1], law=jnp.ones(k) * x[2], eps=x[3])
        return loss(scanned(tx, start, 3)[0][0])

    g = assert_has_gradient(final, np.array([0.05, 0.03, 0.9, 0.02]), atol=1e-9)
    assert np.abs(g).min() > 1e-6


def assert_has_gradient(f, x, atol):
    """The gradient of f at x, which must be that of finite differences; f and it are one program."""
    both = jax.jit(jax.value_and_grad(f))
    ahead, behind = ([both(x + s * row)[0] for row in 1e-6 * np.eye(x.size)] for s in (1, -1))
    gradient = both(x)[1]
    np.testing.assert_allclose(gradient, np.subtract(ahead, behind) / 2e-6, rtol=1e-5, atol=atol)
    return gradient


def test_one_compilation_while_rates_change():
    traces = 0

    def counted(*args):
        nonlocal traces
        traces += 1
        return tx.update(*args)

    tx = optax.inject_hyperparams(rllc)("M(0.9) + M(0)", learning_rate=0.05, law_learning_rate=0.02, eps=1e-3)
    update, state, params = jax.jit(counted), tx.init(PARAMS), PARAMS
    for lr, c2, eps in [(0.05, 0.02, 1e-3), (0.01, 0.03, 1e-2), (0.0, 0.0, 1.0)]:
        state.hyperparams.update(
            learning_rate=jnp.asarray(lr), law_learning_rate=jnp.asarray(c2), eps=jnp.asarray(eps)
        )
        updates, state = update(gradient_of_loss(params), state, params)
        params = optax.apply_updates(params, updates)
    assert traces == 1
    assert not any(np.any(u) for u in jax.tree.leaves(updates))  # the last learning rate was zero


def test_inject_hyperparams_equals_plain():
    args = {"memory": "M(0.9)", "learning_rate": 0.05, "law_learning_rate": 0.02, "weight_decay": 0.1}
    injected = train(optax.inject_hyperparams(rllc)(**args))
    plain = train(rllc(**args))
    assert_same((injected[0], learned(injected[1])), (plain[0], learned(plain[1])))


def test_schedules_for_both_rates():
    def by_hand(t):
        return 0.05 / (1 + t), 0.02 * (t >= 3)

    tx = rllc("M(0.9)", lambda t: by_hand(t)[0], lambda t: by_hand(t)[1])
    want, state = PARAMS, rllc("M(0.9)", 0.0, 0.0).init(PARAMS)
    for t in range(8):
        updates, state = rllc("M(0.9)", *map(float, by_hand(t))).update(
            gradient_of_loss(want, 0.1 * t), state
        )
        want = optax.apply_updates(want, updates)
    params, got = train(tx, steps=8)
    assert_same((params, learned(got)), (want, learned(state)))


def test_chain_clips_before_and_scales_after():
    clipped = optax.chain(
        optax.clip_by_global_norm(0.1), scale_by_rllc("M(0.9)", 0.02), optax.scale_by_learning_rate(0.05)
    )
    g = gradient_of_loss(PARAMS)
    small = jax.tree.map(lambda x: x * (0.1 / optax.tree.norm(g)), g)
    updates, state = clipped.update(g, clipped.init(PARAMS), PARAMS)
    plain = made("M(0.9)", 0.05, 0.02)
    want, plain_state = plain.update(small, plain.init(PARAMS), PARAMS)
    assert_same((updates, learned(state)), (want, learned(plain_state)))


def test_masked_and_partition_have_a_law_of_their_own():
    mask = {"w": True, "b": (False, True)}
    tx = optax.masked(rllc("M(0.9) + M(0)", 0.05, 0.02), mask)
    alone = {"w": PARAMS["w"], "b": (None, PARAMS["b"][1])}
    g = gradient_of_loss(PARAMS)
    updates, state = tx.update(g, tx.init(PARAMS), PARAMS)
    inner = rllc("M(0.9) + M(0)", 0.05, 0.02)
    want, inner_state = inner.update({"w": g["w"], "b": (None, g["b"][1])}, inner.init(alone), alone)
    assert_same(
        (updates["w"], updates["b"][1], learned(state)), (want["w"], want["b"][1], learned(inner_state))
    )
    assert_same(updates["b"][0], g["b"][0])

    parts = optax.partition(
        {"rllc": made("M(0.9)", 0.05, 0.02), "sgd": optax.sgd(0.1)}, {"w": "rllc", "b": ("sgd", "rllc")}
    )
    params, state = train(parts, steps=5)
    assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), params))
    assert learned(state).shape == (1,)


def test_multisteps_equals_the_mean_gradient():
    inner = made("M(0.9)", 0.05, 0.02)
    tx = optax.MultiSteps(inner, every_k_schedule=2)
    g1, g2 = gradient_of_loss(PARAMS, 0.0), gradient_of_loss(PARAMS, 0.7)
    state = tx.init(PARAMS)
    updates, state = tx.update(g1, state, PARAMS)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    updates, state = tx.update(g2, state, PARAMS)
    want, _ = inner.update(jax.tree.map(lambda x, y: (x + y) / 2, g1, g2), inner.init(PARAMS), PARAMS)
    assert_same(updates, want)


def test_apply_if_finite_and_the_own_skip_agree():
    g = gradient_of_loss(PARAMS)
    bad = {**g, "w": g["w"].at[0, 1].set(jnp.nan)}
    tx = rllc("M(0.9) + M(0)", 0.05, 0.02, weight_decay=0.1)
    wrapped = optax.apply_if_finite(tx, 5)
    state, wrapped_state = tx.init(PARAMS), wrapped.init(PARAMS)
    for gradient in (g, bad, g):
        updates, state = tx.update(gradient, state, PARAMS)
        wrapped_updates, wrapped_state = wrapped.update(gradient, wrapped_state, PARAMS)
        assert_same(updates, wrapped_updates)
        assert_same((state[0].law, state[0].memory), learned_and_memory(wrapped_state.inner_state))
    assert int(state[0].skipped) == 1


def learned_and_memory(state):
    return state[0].law, state[0].memory


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.7e308])
def test_a_gradient_that_is_not_finite_or_overflows_memory_is_skipped_whole(value):
    tx = made("M(0.9)", 0.05, 0.02, weight_decay=0.1)
    params, state = train(tx, steps=3)
    if value == 1.7e308:
        state = (state[0]._replace(memory=jax.tree.map(lambda m: m + 1.7e308, state[0].memory)), *state[1:])
    g = gradient_of_loss(params)
    updates, new = jax.jit(tx.update)({**g, "b": (g["b"][0], jnp.asarray(value))}, state, params)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    assert_same((new[0].law, new[0].memory), (state[0].law, state[0].memory), rtol=0)
    assert int(new[0].skipped) == 1
    assert int(new[0].count) == int(state[0].count) + 1


@pytest.mark.parametrize("memory", EIGHT)
def test_float32_law_is_the_same_for_gradients_from_1e_30_to_1e30(float32, memory):
    tx = scale_by_rllc(memory, 0.02)
    gradients = np.random.default_rng(0).normal(size=(25, 50)).astype(np.float32)

    @jax.jit
    def law(scale):
        def body(state, g):
            updates, state = tx.update(g * scale, state)
            return state, updates / scale

        state, updates = jax.lax.scan(body, tx.init(jnp.zeros(50)), jnp.asarray(gradients))
        return state.law, updates[-1]

    for scale in (1e-30, 1e-12, 1e12, 1e30):
        assert_same(law(jnp.float32(scale)), law(jnp.float32(1)), rtol=3e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_dtypes_are_kept_and_the_law_is_at_least_float32(dtype):
    tx = made("M(0.9) + M(0)", 0.05, 0.02)
    want, _ = train(tx)
    with jax.enable_x64(dtype == jnp.float64):
        got, state = train(tx, jax.tree.map(lambda x: x.astype(dtype), PARAMS))
        assert {x.dtype for x in jax.tree.leaves((got, state[0].memory))} == {jnp.dtype(dtype)}
        assert learned(state).dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), y, atol=40 * float(jnp.finfo(dtype).eps))


def test_mixed_dtypes_and_a_large_gradient_beside_float16():
    params = {"half": jnp.ones(3, jnp.float16), "single": jnp.ones(3), "brain": jnp.ones(2, jnp.bfloat16)}
    g = {"half": jnp.ones(3, jnp.float16), "single": jnp.full(3, 1e6), "brain": jnp.ones(2, jnp.bfloat16)}
    tx = rllc("M(0.9)", 0.1, 0.01)
    updates, state = tx.update(g, tx.init(params), params)
    assert int(state[0].skipped) == 0  # 1e6 is too much for float16, but it is no float16 leaf's
    assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(lambda x: x.dtype, params)


def test_complex_leaves_equal_their_real_view():
    z = jnp.array([0.3 + 0.5j, -0.2 - 0.1j])
    x = {"re": z.real, "im": z.imag}
    tx = rllc("M(0.9) + M(0)", 0.05, 0.05)
    z_state, x_state = tx.init(z), tx.init(x)
    for t in range(10):
        g = {"re": x["re"] ** 3 - 0.1 * t, "im": x["im"] * x["re"] ** 2}
        updates, x_state = tx.update(g, x_state)
        x = optax.apply_updates(x, updates)
        updates, z_state = tx.update(g["re"] + 1j * g["im"], z_state)
        z = optax.apply_updates(z, updates)
    assert z.dtype == jnp.complex128
    assert_same((z.real, z.imag, learned(z_state)), (x["re"], x["im"], learned(x_state)))


@pytest.mark.parametrize(
    "params", [{}, {"e": jnp.zeros((0, 3))}, {"e": jnp.zeros((0,)), "s": jnp.asarray(2.0)}]
)
def test_empty_trees_empty_leaves_and_scalars(params):
    tx = made("M(0.9) + M(0)", 0.05, 0.02)
    updates, state = jax.jit(tx.update)(jax.tree.map(lambda x: x + 1, params), tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert int(state[0].skipped) == 0
    assert np.isfinite(learned(state)).all()


def test_buffers_can_be_donated(tx):
    want = train(tx, steps=5)

    def step(params, state, t):
        updates, state = tx.update(gradient_of_loss(params, 0.1 * t), state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, PARAMS)
    state = tx.init(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a buffer that could not be donated warns
        for t in range(5):
            before = state[0].memory[0]["w"]
            params, state = step(params, state, jnp.float64(t))
            assert before.is_deleted()
    assert_same((params, state), want)


def test_optax_finds_the_parameter_like_parts_of_the_state(tx):
    marked = optax.tree_map_params(
        tx, lambda _: "param", tx.init(PARAMS), transform_non_params=lambda _: "other"
    )
    assert set(jax.tree.leaves(marked[0].memory)) == {"param"}
    assert marked[0].law == "other"


@pytest.mark.parametrize("silent", [1, 20, 500])
def test_a_gradient_that_returns_after_silence_moves_the_law_as_torch_does(silent):
    gradients = np.r_[
        1 + np.random.default_rng(0).normal(size=(30, 20)), np.zeros((silent, 20)), np.ones((1, 20))
    ]
    tx = made_scale("M(0.9) + M_2(0.6)", 0.01)
    p = torch.nn.Parameter(torch.zeros(20, dtype=torch.float64))
    opt, state, update = RLLC([p], "M(0.9) + M_2(0.6)", 0.0, 0.01), tx.init(jnp.zeros(20)), jax.jit(tx.update)
    for g in gradients:
        before = state.law
        p.grad = torch.tensor(g)
        opt.step()
        _, state = update(jnp.asarray(g), state)
    np.testing.assert_allclose(state.law, opt.law, rtol=1e-10)
    assert np.linalg.norm(state.law - before) < 0.01


def test_zero_learning_rate_leaves_parameters_still_while_the_law_learns():
    params, state = train(rllc("M(0.9)", 0.0, 0.02))
    assert_same(params, PARAMS, rtol=0)
    assert learned(state)[0] != 1


def test_thirty_thousand_float32_steps_do_not_drift(float32):
    """The correction at the end still equals the one from the actual units, in float64."""
    tx = scale_by_rllc("M(0.99) + M(0)", 1e-4)

    def gradient(t):
        return jax.random.normal(jax.random.fold_in(jax.random.key(0), t), (64,)) + 0.3 * jnp.sin(t / 50)

    def body(state, t):
        _, state = tx.update(gradient(t), state)
        return state, None

    state, _ = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(30_000)))(tx.init(jnp.zeros(64)))
    g = gradient(30_000)
    p = parse("M(0.99) + M(0)")
    memory = np.stack([np.asarray(m, np.float64) for m in state.memory], axis=1)
    x = reference.gramian_ridge(p, GramianRidge().eps)(memory, np.asarray(g, np.float64))
    # The law is stored in float32: compare the change that one step makes with a large rate.
    _, after = jax.jit(scale_by_rllc("M(0.99) + M(0)", 1.0).update)(g, state)
    np.testing.assert_allclose(after.law - state.law, x, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: rllc("M(0.9)", -0.1, 0.01), "learning_rate must be a finite number >= 0, got -0.1"),
        (
            lambda: rllc("M(0.9)", 0.1, float("nan")),
            "law_learning_rate must be a finite number >= 0, got nan",
        ),
        (lambda: rllc("M(0.9)", jnp.asarray(-1.0), 0.01), "learning_rate must be"),
        (lambda: rllc("M(0.9)", 0.1, 0.01, eps=-1.0), "eps must be"),
        (lambda: rllc("M(0.9)", 0.1, 0.01, weight_decay=-1.0), "weight_decay must be"),
        (lambda: rllc("M(0.9)", 0.1, 0.01, law=[1.0, 2.0]), "law must have 1 entries"),
        (lambda: rllc("M(0.9)", 0.1, 0.01, law=[np.inf]), "law must hold finite real numbers"),
        (lambda: rllc("M(0.9)", 0.1, 0.01, eps=1.0, inverse=Ridge()), "both given"),
        (lambda: rllc("M(1.1)", 0.1, 0.01), "1.1"),
        (lambda: rllc("M(0.9)", 0.1, 0.01, scope=None), 'scope must be "all", "tensor", .* got None'),
        (lambda: rllc("adam", 0.1, 0.01), "adam"),
        (lambda: rllc(0.9, 0.1, 0.01), "0.9"),
        (lambda: rllc("M(0.9)", 0.1, 0.01).init({"n": jnp.arange(3)}), "no gradient"),
        (
            lambda: rllc("M(0.9)", 0.1, 0.01, weight_decay=0.1).update(
                jnp.ones(2), rllc("M(0.9)", 0.1, 0.01).init(jnp.ones(2))
            ),
            "weight_decay needs the parameters",
        ),
    ],
)
def test_refusals(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("inverse", [Ridge(1e-8), Cutoff(1e-3)], ids=repr)
def test_other_inverses_work_under_jit(inverse):
    tx = rllc("M(0.9) + M(0)", 0.05, 0.02, inverse=inverse)
    assert_same(train(tx, steps=8), train(tx, steps=8, jit=lambda update: update), rtol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: rllc_adamw(rate),
        lambda rate: rllc("M(0.9) + M(0)", rate, 0.1, law_step=LawStep(q=1.5, clip=0.5)),
        lambda rate: rllc(union("M(0.9)", Adam()), rate, 0.1, law_step=LawStep(clip=0.5)),
    ],
    ids=["rllc_adamw", "relative", "rules"],
)
def test_gradients_go_through_every_step_of_the_law(make):
    """By the rate and by the start; also where memory or gradient are zero, and lengths are roots of zero."""

    def final(x):
        tx = make(x[0])

        def body(carry, loud):
            params, state = carry
            g = jnp.append(gradient_of_loss(params[:2]), 0.0) * loud  # of the third it is always zero
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        return loss(jax.lax.scan(body, (x[1:], tx.init(x[1:])), jnp.array([1.0, 0.0, 1.0]))[0][0][:2])

    assert_has_gradient(final, np.array([0.05, 0.7, -0.4, 0.3]), atol=1e-8)


def test_a_gain_that_is_nothing_but_rounding_has_no_delay(float32):
    """(0.03, -0.09) of units whose gains are 10 and 10/3."""
    tx = rllc("M(0.9) + M(0.7)", 0.1, 0.0, law=(0.03, -0.09))
    report = law_report(tx.init(jnp.ones(2)), memory="M(0.9) + M(0.7)")
    assert abs(report["gain"]) < 1e-6 and np.isnan(report["mean_delay"])


def test_a_correction_that_is_no_number_skips_the_step():
    """In the search no law is made of it, which grew for ever."""
    tx = rllc_adamw()
    params = jnp.ones(2)
    state = tx.init(params)
    for size in (1e20, 1.0, 1.0):
        _, state = tx.update(size * params, state, params)
    assert np.isfinite(state[0][0].progress).all()
    bad = rllc(unit(optax.scale_by_adam(), metric=lambda hidden, u: u * jnp.nan), 0.1, 0.1, law_step=SEEKING)
    state = bad.init(params)
    for _ in range(3):
        updates, state = bad.update(params, state, params)
    assert state[0].skipped > 0 and np.isfinite(state[0].progress).all() and not np.any(updates)


@pytest.mark.parametrize(
    ("g", "message"),
    [
        ({"a": np.ones((5, 2))}, r"different shapes at \['a'\]: \(5, 2\) and \(2,\)"),
        ({"b": np.ones(2)}, "trees of different structure"),
    ],
)
def test_a_gradient_of_another_tree_is_refused(g, message):
    tx = rllc("M(0.9)", 0.1, 0.1)
    with pytest.raises(ValueError, match=message):
        tx.update(g, tx.init({"a": jnp.ones(2)}))


@pytest.mark.parametrize(
    ("param", "g", "message"),
    [
        (1j, 1.0, r"gradient is of float32 where the parameter is of complex64, at \['a'\]: make both"),
        (1.0, 1j, "gradient is of complex64 where the parameter is of float32"),
    ],
)
@pytest.mark.parametrize("memory", ["M(0.9)", unit(optax.identity())], ids=["linear", "unit"])
def test_a_complex_gradient_of_a_real_parameter_is_refused_and_the_other_way_round(
    float32, memory, param, g, message
):
    tx = rllc(memory, 0.1, 0.1)
    with pytest.raises(ValueError, match=message):
        tx.update({"a": jnp.full(2, g)}, tx.init({"a": jnp.full(2, param)}))


@pytest.mark.parametrize("memory", ["M(0.9) + M(0)", Adam()], ids=str)
def test_gradients_may_be_numbers_of_python_and_numpy(float32, memory):
    tx, params = rllc(memory, 0.1, 0.1, weight_decay=0.1), {"a": 1.0, "b": np.ones(3)}
    arrays = jax.tree.map(jnp.asarray, params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # float64 of NumPy had been asked for in vain
        found = tx.update(params, tx.init(params), params)
    assert_same(found, tx.update(arrays, tx.init(arrays), arrays), rtol=0)


class Activation:
    """Equal to every other, but it does not print so."""

    def __eq__(self, other):
        return isinstance(other, Activation)

    __hash__ = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    w: jax.Array
    activation: Activation = dataclasses.field(default_factory=Activation, metadata={"static": True})


def test_trees_that_are_equal_may_print_differently():
    tx = made("M(0.9)", 0.05, 0.02)
    updates, _ = tx.update(Layer(jnp.ones(2)), tx.init(Layer(jnp.ones(2))))
    np.testing.assert_allclose(updates.w, -0.05)


TENSOR, TWO = rllc("M(0.9)", 0.1, 0.1, scope="tensor"), rllc("M(0.9) + M(0)", 0.1, 0.1)


@pytest.mark.parametrize(
    ("tx", "state", "message"),
    [
        (made("M(0.9)", 0.05, 0.02), TWO.init(PARAMS), "state has 2 memory units, .* not what 1 units"),
        (TWO, made("M(0.9)", 0.05, 0.02).init(PARAMS), "state has 1 memory units, .* not what 2 units"),
        (made("M(0.9)", 0.05, 0.02), TENSOR.init(PARAMS), r"law of shape \(3, 1\)"),
        (TENSOR, made("M(0.9)", 0.05, 0.02).init(PARAMS), "scope='tensor'"),
        (
            rllc(Adam(), 0.1, 0.1),
            TWO.init(PARAMS),
            "a ScaleByRLLCState where this memory has a ScaleByRulesS",
        ),
        (TWO, ({"law": np.ones(2)}, {}), r"state is a dict .* into the structure of init\(params\)"),
        (TWO, (TWO.init(PARAMS)[0]._replace(progress=np.ones(4)), ()), r"progress of shape \(4,\)"),
        (TWO, jax.vmap(lambda _: TWO.init(PARAMS))(jnp.ones(3)), r"several runs without jax\.vmap"),
    ],
)
def test_the_state_of_another_memory_is_refused(tx, state, message):
    with pytest.raises(ValueError, match=message):
        tx.update(PARAMS, state, PARAMS)


@pytest.mark.parametrize(
    "mask",
    [
        {"w": True, "b": (True, False)},
        {"w": True, "b": (np.True_, False)},
        lambda params: jax.tree.map(lambda x: jnp.ndim(x) > 0, params),
    ],
    ids=["tree", "of NumPy", "function"],
)
def test_what_the_mask_leaves_out_does_not_decay(mask):
    options = {"weight_decay": 0.1, "law_learning_rate": 0.0, "law": 1.0, "average": None}
    ours, theirs = rllc_adamw(0.01, mask=mask, **options), optax.adamw(0.01, weight_decay=0.1, mask=mask)
    assert_same(train(ours, steps=3)[0], train(theirs, steps=3)[0])
    ours, theirs = (
        rllc("M(0.9)", 0.05, 0.0, weight_decay=0.1, mask=mask),
        optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1, mask), optax.scale(-0.05)),
    )
    assert_same(train(ours, steps=3)[0], train(theirs, steps=3)[0])


def test_a_mask_may_be_a_prefix_and_is_refused_where_it_is_none():
    prefix, whole = {"w": False, "b": True}, {"w": False, "b": (True, True)}
    a, b = (train(rllc("M(0.9)", 0.05, 0.02, weight_decay=0.1, mask=m), steps=2)[0] for m in (prefix, whole))
    assert_same(a, b, rtol=0)
    tx = rllc("M(0.9)", 0.05, 0.02, weight_decay=0.1, mask={"w": True})
    with pytest.raises(ValueError, match="mask is no prefix tree of the parameters"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_the_decay_of_other_parameters_is_refused():
    tx = rllc("M(0.9)", 0.05, 0.02, weight_decay=0.1)
    with pytest.raises(ValueError, match="the parameters and the gradient have different shapes at"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS | {"w": np.ones((1, 3))})


def test_a_law_that_runs_away_is_stopped_before_infinity(float32):
    tx, x = rllc_adamw(1.0), jnp.zeros(3)

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jnp.ones(3), state, x)
        return (optax.apply_updates(x, updates), state), None

    (x, state), _ = jax.lax.scan(step, (x, tx.init(x)), length=1500)
    assert jnp.isfinite(x).all() and jnp.isfinite(averaged_params(state, x)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": lambda t: 0.1}, "weight_decay must be a number, got"),
        ({"learning_rate": None}, "learning_rate must be a number or a schedule, got None"),
        ({"learning_rate": 0.1j}, "learning_rate must be a number or a schedule, got 0.1j"),
        ({"law_learning_rate": jnp.ones(2)}, "law_learning_rate must be a number or a schedule, got"),
    ],
)
def test_rates_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rllc("M(0.9)", **{"learning_rate": 0.1, "law_learning_rate": 0.1} | options)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_gradients_of_float32_parameters_make_float32_steps(float32, dtype):
    """The step, before the learning rate makes it small, had to fit into the gradient's dtype."""
    params = {"w": jnp.zeros(4, jnp.float32)}
    ours, theirs = rllc("M(0.9)", 1e-5, 0.0), optax.sgd(1e-5, momentum=0.9)
    found = []
    for tx in (ours, theirs):
        p, state = params, tx.init(params)
        for _ in range(20):
            updates, state = tx.update({"w": jnp.full(4, 1e4, dtype)}, state, p)
            assert updates["w"].dtype == jnp.float32
            p = optax.apply_updates(p, updates)
        found.append(p["w"])
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("memory", ["M(0.9) + M(0)", union("M(0.9)", "M(0)")], ids=["linear", "rules"])
def test_units_that_do_not_add_up_in_float16_make_a_step_in_it_all_the_same(float32, memory):
    """40,000 + 40,000 is infinite there, a hundred-thousandth of it is not; as in torch."""
    x, tx = jnp.ones(4, jnp.float16), rllc(memory, 1e-5, 0.0)
    updates, _ = tx.update(jnp.full(4, 4e4, jnp.float16), tx.init(x), x)
    assert updates.dtype == jnp.float16
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.float16))
    p.grad = torch.full_like(p, 4e4)
    RLLC([p], "M(0.9) + M(0)", lr=1e-5, law_lr=0.0).step()
    np.testing.assert_allclose(x + updates, p.detach(), rtol=0, atol=2**-12)  # half a place of 0.8


def test_the_callers_law_outlives_a_donated_state():
    law, params = jnp.array([0.9, 1.0]), {"w": jnp.zeros(3)}
    tx = rllc("M(0.9) + M(0)", 0.05, 0.01, law=law)
    jax.jit(lambda state: tx.update(params, state, params)[1], donate_argnums=0)(tx.init(params))
    np.testing.assert_array_equal(tx.init(params)[0].law, law)


@pytest.mark.parametrize("law", [jnp.array([jnp.nan]), jnp.array([1 + 1j]), jnp.array([jnp.inf]), [1e31]])
def test_a_law_of_jax_is_judged_too(law):
    with pytest.raises(ValueError, match="law must hold finite real numbers"):
        rllc("M(0.9)", 0.1, 0.1, law=law)


def test_an_optax_transformation_is_no_memory_until_it_is_a_unit():
    with pytest.raises(ValueError, match=r"or unit\(tx\) for an optax transformation tx"):
        rllc(optax.adam(0.1), 0.1, 0.1)


@pytest.mark.parametrize("memory", ["M(0.9) + M(0)", Adam()], ids=str)
def test_jax_at_its_strictest(float32, memory):
    tx, params = rllc(memory, 0.1, 0.1, axis_name=None), {"w": jnp.ones(3)}

    def traced():  # which is when JAX looks at ranks and dtypes
        jax.eval_shape(lambda params: tx.update(params, tx.init(params), params), params)

    with jax.numpy_rank_promotion("raise"):
        traced()
    with jax.numpy_dtype_promotion("strict"):
        traced()
