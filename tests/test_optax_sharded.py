"""rllc.optax with parameters sharded over eight devices: one law, that of one device, however they are cut.

The network is cut in every way at once: a weight over both axes of the mesh, some over one, a bias over none.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rllc.optax import rllc, scale_by_rllc

MEMORY = "M(0.9) + M_2(0.6)"
STEPS = 20
SPECS = {"scale": P("y"), "in": P("y", "x"), "hidden": P("x"), "out": P("x", None), "bias": P()}
DATA = P(None, "y")  # examples are whole, their 8 features are cut
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 8)), RNG.normal(size=(32, 3))
PARAMS = {
    "scale": np.ones(8),
    "in": RNG.normal(size=(8, 16)) / 3,
    "hidden": np.zeros(16),
    "out": RNG.normal(size=(16, 3)) / 4,
    "bias": np.zeros(3),
}
# A sum over shards is taken in another order: a few roundings, which the pseudo-inverse (eps 1e-3) and twenty
# steps of training may make a thousand times larger.
TOLERANCE = {True: 1e-12, False: 2e-4}


@pytest.fixture
def precision(request):
    with jax.enable_x64(request.param):
        yield request.param


def loss(params, x, y, whole=lambda z, axis: z):
    """Of a network of one hidden layer; `whole` sums what the devices of an axis have in parts."""
    h = jnp.tanh(whole(x * params["scale"] @ params["in"], "y") + params["hidden"])
    return jnp.mean((whole(h @ params["out"], "x") + params["bias"] - y) ** 2)


def step(tx, params, state, x, y, loss=loss):
    g = jax.grad(loss)(params, x, y)
    updates, state = tx.update(g, state, params)
    return optax.apply_updates(params, updates), state


def by_hand(tx, mesh, specs=SPECS):
    """A step inside jax.shard_map, where every device sees its part only."""
    state_specs = specs_of_state(tx, specs)
    return jax.shard_map(
        functools.partial(step, tx, loss=functools.partial(loss, whole=jax.lax.psum)),
        mesh=mesh,
        in_specs=(specs, state_specs, DATA, P()),
        out_specs=(specs, state_specs),
    )


def specs_of_state(tx, specs):
    state = jax.eval_shape(tx.init, PARAMS)
    return optax.tree_map_params(tx, lambda _, s: s, state, specs, transform_non_params=lambda _: P())


def mesh_of(kind):
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)


def placed(tree, specs, mesh):
    return jax.tree.map(lambda x, s: jax.device_put(jnp.asarray(x), NamedSharding(mesh, s)), tree, specs)


def train(update, params, state, x, y):
    update = jax.jit(update)
    for _ in range(STEPS):
        # One step at a time: with many under way at once, devices that share two cores wait for each other.
        params, state = jax.block_until_ready(update(params, state, x, y))
    return params, state


@functools.cache
def on_one_device(_precision):
    tx, params = rllc(MEMORY, 0.05, 0.02), jax.tree.map(jnp.asarray, PARAMS)
    return train(functools.partial(step, tx), params, tx.init(params), jnp.asarray(X), jnp.asarray(Y))


def assert_same(got, want, precision):
    """Equal up to TOLERANCE of the largest entry."""

    def check(x, y):
        np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE[precision] * max(1, abs(y).max()))

    jax.tree.map(check, jax.device_get(got), jax.device_get(want))


@pytest.mark.parametrize("precision", [True], ids=["float64"], indirect=True)
@pytest.mark.parametrize("kind", ["auto", "explicit", "shard_map"])
def test_sharded_training_is_that_of_one_device(kind, precision):
    mesh = mesh_of(AxisType.Explicit if kind == "explicit" else AxisType.Auto)
    tx = rllc(MEMORY, 0.05, 0.02, axis_name=("x", "y") if kind == "shard_map" else ())
    update = by_hand(tx, mesh) if kind == "shard_map" else functools.partial(step, tx)
    with jax.set_mesh(mesh):
        x, y = placed((X, Y), (DATA, P()), mesh)
        if kind == "explicit":
            x, gathers = jax.reshard(x, P()), lambda params, *batch: loss(jax.reshard(params, P()), *batch)
            update = functools.partial(step, tx, loss=gathers)
        params = placed(PARAMS, SPECS, mesh)
        state = jax.jit(tx.init)(params) if kind == "auto" else tx.init(params)
        got = train(update, params, state, x, y)
    want = on_one_device(precision)
    assert_same(got, want, precision)
    assert abs(want[1][0].law - 1).max() > 0.05  # it has learned something
    for tree in (got[0], *got[1][0].memory):
        for name, leaf in tree.items():
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, SPECS[name]), leaf.ndim), name
    assert got[1][0].law.sharding.is_fully_replicated


@pytest.mark.parametrize("precision", [False], ids=["float32"], indirect=True)
def test_one_axis_and_training_in_a_scan_inside_of_shard_map(precision):
    """State made inside has the types of the parameters: a scan's carry keeps them."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    specs = {"scale": P(), "in": P(None, "x"), "hidden": P("x"), "out": P("x", None), "bias": P()}
    tx = rllc(MEMORY, 0.05, 0.02, axis_name="x")

    def whole(z, axis):
        return jax.lax.psum(z, axis) if axis == "x" else z

    def run(params, x, y):
        def body(carry, _):
            return step(tx, *carry, x, y, functools.partial(loss, whole=whole)), None

        return jax.lax.scan(body, (params, tx.init(params)), length=STEPS)[0]

    run = jax.shard_map(
        run, mesh=mesh, in_specs=(specs, P(), P()), out_specs=(specs, specs_of_state(tx, specs))
    )
    assert_same(jax.jit(run)(jax.tree.map(jnp.asarray, PARAMS), X, Y), on_one_device(precision), precision)


def test_what_one_shard_cannot_take_all_skip():
    """Not finite, or so large that memory overflows, in one entry: of one device, or of a replicated leaf."""
    mesh, tx = mesh_of(AxisType.Auto), scale_by_rllc(MEMORY, 0.02, weight_decay=0.1, axis_name=("x", "y"))
    specs = specs_of_state(tx, SPECS)
    update = jax.shard_map(tx.update, mesh=mesh, in_specs=(SPECS, specs, SPECS), out_specs=(SPECS, specs))
    update, params = jax.jit(update), placed(jax.tree.map(np.float32, PARAMS), SPECS, mesh)
    _, usual = update(params, tx.init(params), params)
    full = usual._replace(memory=jax.tree.map(lambda m: jnp.full_like(m, 3e38), usual.memory))
    for state, value in ((usual, np.nan), (usual, -np.inf), (full, 3e38)):
        for name, leaf in params.items():
            bad = params | {name: leaf.at[(-1,) * leaf.ndim].set(value)}
            updates, after = jax.block_until_ready(update(bad, state, params))
            assert not any(np.any(u) for u in jax.tree.leaves(updates))
            jax.tree.map(np.testing.assert_array_equal, (after.law, after.memory), (state.law, state.memory))
            assert int(after.skipped) == 1


def test_the_shards_are_summed_by_one_all_reduce_beside_one_for_scales():
    tx = scale_by_rllc(MEMORY, 0.02, axis_name=("x", "y"))
    specs = specs_of_state(tx, SPECS)
    update = jax.shard_map(
        tx.update, mesh=mesh_of(AxisType.Auto), in_specs=(SPECS, specs), out_specs=(SPECS, specs)
    )
    params = jax.tree.map(jnp.asarray, PARAMS)
    text = jax.jit(update).lower(params, tx.init(params)).compile().as_text()
    assert len(re.findall(r"= \S+ all-reduce(?:-start)?\(", text)) == 2


def test_without_axis_name_shard_map_refuses_a_law_that_is_one_shards():
    tx, params = rllc(MEMORY, 0.05, 0.02), jax.tree.map(jnp.asarray, PARAMS)
    with pytest.raises(ValueError, match="out_specs"):
        jax.eval_shape(by_hand(tx, mesh_of(AxisType.Auto)), params, tx.init(params), X, Y)


def test_without_axis_name_every_device_may_have_a_law_of_its_own():
    """Eight networks side by side, each on one device."""
    mesh, tx = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,)), rllc(MEMORY, 0.05, 0.02)
    several = jax.tree.map(lambda p: p * jnp.linspace(0.5, 1.5, 8).reshape(8, *[1] * p.ndim), PARAMS)

    def law(params, state):
        one = jax.tree.map(lambda leaf: leaf[0], (params, state))
        _, state = jax.lax.scan(lambda one, _: (step(tx, *one, X, Y), None), one, length=3)[0]
        return state[0].law[None]

    whole = several, jax.vmap(tx.init)(several)
    together = jax.jit(jax.shard_map(law, mesh=mesh, in_specs=P("x"), out_specs=P("x")))(*whole)
    alone = jax.jit(law)
    alone = [alone(*jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], whole))[0] for i in (0, 7)]
    np.testing.assert_allclose(together[np.array([0, 7])], alone, rtol=TOLERANCE[False])
    assert np.ptp(together, axis=0).min() > 1e-3


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (jax.jit, "axis_name 'x' is not bound here: call update inside jax.shard_map"),
        (lambda f: jax.vmap(f, axis_name="x"), "cannot be told apart here; use jax.shard_map"),
        (
            lambda f: jax.shard_map(
                f, mesh=mesh_of(AxisType.Auto), in_specs=P("x"), out_specs=P("x"), check_vma=False
            ),
            "check_vma=True",
        ),
        (
            lambda f: jax.shard_map(
                f, mesh=mesh_of(AxisType.Auto), in_specs=P("y"), out_specs=P("y"), axis_names={"y"}
            ),
            "'x' is not bound here",
        ),
    ],
    ids=["jit", "vmap", "shard_map that does not check", "another axis"],
)
def test_an_axis_that_cannot_be_summed_over_is_refused(where, text):
    tx = scale_by_rllc(MEMORY, 0.02, axis_name="x")
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(where(lambda g: tx.update(g, tx.init(g))[0]), jnp.ones((8, 4)))
