"""The polynomial average: against its definition as a weighted sum, and wherever it stands in a state."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rllc.optax import average_into, averaged_params, polynomial_average

START = {"w": jnp.array([1.0, -2.0]), "b": (jnp.array(0.5), jnp.array([3.0]))}


def walk(tx, params=START, steps=7):
    """The parameters after each step, and the last state."""
    state, seen, update = tx.init(params), [params], jax.jit(tx.update)
    for t in range(steps):
        g = jax.tree.map(lambda p, t=t: (0.3 * p + 0.1 * t).astype(p.dtype), seen[-1])
        updates, state = update(g, state, seen[-1])
        seen.append(optax.apply_updates(seen[-1], updates))
    return seen[1:], state


def weighted(thetas, p):
    """Σ w_i θ_i, w_i = (p+1)/(i+p) times what later steps leave of it."""
    t = len(thetas)
    weights = [
        (p + 1) / (i + p) * math.prod((j - 1) / (j + p) for j in range(i + 1, t + 1)) for i in range(1, t + 1)
    ]
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    return jax.tree.map(lambda *xs: sum(w * np.float64(x) for w, x in zip(weights, xs, strict=True)), *thetas)


def assert_close(found, expected, rtol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), found, expected)


@pytest.mark.parametrize("power", [0.0, 9.0])
def test_the_average_is_a_weighted_sum(power):
    seen, state = walk(optax.chain(optax.sgd(0.5), polynomial_average(power)))
    assert_close(averaged_params(state, seen[-1]), weighted(seen, power))
    if power == 0:
        assert_close(averaged_params(state, seen[-1]), jax.tree.map(lambda *xs: sum(xs) / len(xs), *seen))


def test_before_the_first_step_it_is_the_parameters_and_after_it_too():
    tx = optax.chain(optax.sgd(0.5), polynomial_average())
    jax.tree.map(np.testing.assert_array_equal, averaged_params(tx.init(START), START), START)
    [first], state = walk(tx, steps=1)
    jax.tree.map(np.testing.assert_array_equal, averaged_params(state, START), first)


def labels(tree):
    return {"w": "fast", "b": "slow"}


@pytest.mark.parametrize(
    "tx",
    [
        optax.inject_hyperparams(lambda rate, power: optax.chain(optax.sgd(rate), polynomial_average(power)))(
            0.5, 9.0
        ),
        optax.apply_if_finite(optax.chain(optax.sgd(0.5), polynomial_average()), 3),
        optax.partition(
            {name: optax.chain(optax.sgd(0.5), polynomial_average()) for name in ("fast", "slow")}, labels
        ),
    ],
    ids=["inject_hyperparams", "apply_if_finite", "partition"],
)
def test_it_is_found_in_any_state(tx):
    seen, state = walk(tx)
    assert_close(averaged_params(state, seen[-1]), weighted(seen, 9.0))


def test_parameters_that_no_average_covers_are_returned_as_they_are():
    mask = {"w": True, "b": (False, False)}
    seen, state = walk(optax.chain(optax.sgd(0.5), optax.masked(polynomial_average(), mask)))
    found = averaged_params(state, seen[-1])
    assert_close(found["w"], weighted(seen, 9.0)["w"])
    jax.tree.map(np.testing.assert_array_equal, found["b"], seen[-1]["b"])


def test_half_precision_is_averaged_in_float32():
    tx, half = polynomial_average(), jax.tree.map(lambda x: x.astype(jnp.bfloat16), START)
    small = jax.tree.map(lambda x: x * jnp.bfloat16(1e-3), half)  # too small to be seen in bfloat16
    _, state = tx.update(small, tx.init(half), half)
    assert {x.dtype for x in jax.tree.leaves(state.average)} == {jnp.dtype("float32")}
    assert_close(state.average, jax.tree.map(lambda p, u: np.float32(p) + np.float32(u), half, small))
    assert {x.dtype for x in jax.tree.leaves(averaged_params(state, half))} == {jnp.dtype("bfloat16")}


def test_a_rate_in_float64_leaves_the_state_in_float32(float64):
    """It makes updates of float64; in a scan the state must keep its types."""
    params = {"w": jnp.ones(2, jnp.float32)}
    tx = optax.chain(optax.sgd(jnp.asarray(0.5, jnp.float64)), polynomial_average())
    updates, state = tx.update(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.float64 and state[1].average["w"].dtype == jnp.float32


def test_statistics_are_averaged_by_the_same_function():
    statistics = [{"mean": jnp.float32(x)} for x in (2.0, -1.0, 4.0)]
    averaged = statistics[0]
    for t, new in enumerate(statistics, 1):
        averaged = average_into(averaged, new, t, power=3.0)
    assert_close(averaged, weighted(statistics, 3.0))


def test_the_updates_go_through_and_buffers_can_be_donated():
    tx = polynomial_average()
    state = tx.init(START)
    updates, _ = tx.update(START, state, START)
    assert updates is START
    step = jax.jit(lambda params, state: tx.update(params, state, params), donate_argnums=(0, 1))
    step(jax.tree.map(jnp.copy, START), state)
    assert state.average["w"].is_deleted()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: polynomial_average(-1.0), "power must be a finite number >= 0, got -1.0"),
        (
            lambda: polynomial_average().update(START, polynomial_average().init(START)),
            "needs the parameters",
        ),
        (lambda: averaged_params(optax.sgd(0.1).init(START), START), r"put polynomial_average\(\) last"),
    ],
)
def test_refusals(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_of_several_runs_and_of_other_trees_it_says_so():
    tx = optax.chain(optax.sgd(0.1), polynomial_average())
    params = {"w": jnp.ones((4, 1))}
    states = jax.vmap(tx.init)(params)
    with pytest.raises(ValueError, match=r"call averaged_params in jax\.vmap, too"):
        averaged_params(states, params)
    assert jax.vmap(averaged_params)(states, params)["w"].shape == (4, 1)
    with pytest.raises(ValueError, match=r"of another tree than the parameters; of Flax NNX give both"):
        averaged_params(tx.init(params), {"other": jnp.ones((4, 1))})


def test_counters_and_keys_are_what_they_are():
    tx = polynomial_average()
    params = {"w": jnp.ones(2), "n": jnp.asarray(123456789), "key": jax.random.key(3)}
    updates = {"w": jnp.ones(2), "n": jnp.asarray(0), "key": params["key"]}
    _, state = tx.update(updates, tx.init(params), params)
    found = averaged_params(state, params)
    assert found["n"] == params["n"] and found["key"] == params["key"]
    np.testing.assert_allclose(found["w"], 2.0)
