"""The explicit correction on mini-batches: what is trained, and how runs are told."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from scipy.sparse.linalg import LinearOperator, eigsh

from rllc.lab.memoryless import explicit, explicit_report
from rllc.lab.memoryless.explicit import Setting
from rllc.lab.memoryless.images import Examples, mean_loss

SMALL = Setting(0.05, task="digits-mlp", hidden=(4,), batch=50, steps=12, evaluations=2)


def test_strength_zero_is_heavy_ball():
    found = explicit.run(SMALL, 0.0, 3)
    data, start, batches = explicit._prepared(SMALL, 3)
    assert batches.shape == (2, 6, 2, 50)
    tx = optax.sgd(0.05, momentum=0.9)
    params, state = start, tx.init(start)

    @jax.jit
    def step(params, state, rows):
        batch = Examples(*(x[rows] for x in data.train))
        updates, state = tx.update(jax.grad(mean_loss)(params, batch, jax.nn.relu), state)
        return optax.apply_updates(params, updates), state

    for rows in batches[:, :, 0].reshape(12, 50):
        params, state = step(params, state, rows)
    assert found["step"] == [0, 6, 12]
    assert found["test_loss"][-1] == pytest.approx(float(mean_loss(params, data.test, jax.nn.relu)), rel=1e-4)


def test_strength_and_second_batch_change_the_run():
    plain, added = (explicit.run(SMALL, strength, 3)["train_loss"] for strength in (0.0, 0.5))
    second = explicit.run(dataclasses.replace(SMALL, second=True), 0.5, 3)["train_loss"]
    assert plain[0] == added[0] == second[0]
    assert abs(plain[-1] - added[-1]) > 1e-3 and abs(second[-1] - added[-1]) > 1e-4


def test_sharpness_is_the_largest_eigenvalue():
    data, start, _ = explicit._prepared(SMALL, 0)
    few = Examples(*(x[: explicit.SHARP] for x in data.train))
    flat, tree = jax.flatten_util.ravel_pytree(start)
    grad = jax.grad(lambda x: mean_loss(tree(x), few, jax.nn.relu))
    product = jax.jit(lambda v: jax.jvp(grad, (flat,), (v.astype(flat.dtype),))[1])
    hessian = LinearOperator((flat.size, flat.size), lambda v: np.asarray(product(v.ravel())))
    largest = abs(eigsh(hessian, 1, which="LM", return_eigenvectors=False, tol=1e-3)).max()
    assert explicit.run(SMALL, 0.0, 0)["sharpness"][0] == pytest.approx(largest, rel=0.05)


def test_batches_go_through_all_images_before_any_comes_again():
    batches = explicit._batches(100, Setting(0.1, batch=10, steps=20, evaluations=2), 0)
    for which in (0, 1):
        epochs = batches[:, :, which].reshape(2, 100)
        assert all(sorted(epoch) == list(range(100)) for epoch in epochs.tolist())
    assert (batches[:, :, 0] != batches[:, :, 1]).any()


def curves(loss, accuracy):
    steps = np.arange(len(loss))[None] * 10
    return {"step": steps, "train_loss": np.array([loss]), "test_accuracy": np.array([accuracy])}


def test_runs_are_lost_where_they_are_not_finite_or_twice_as_bad():
    assert explicit_report.lost(curves([2.0, 1.0, 3.9], [0, 0, 0])) is None
    assert explicit_report.lost(curves([2.0, 1.0, 4.1], [0, 0, 0])) == 20
    assert explicit_report.lost(curves([2.0, np.nan, 1.0], [0, 0, 0])) == 10


def test_accuracies_are_compared_at_equal_training_loss():
    """The one run reaches 1.0 with an accuracy of 0.6, the other has 0.5 there, between two evaluations."""
    mine = curves([2.0, 1.5, 1.0], [0.1, 0.3, 0.6])
    plain = curves([2.0, 1.5, 0.5], [0.1, 0.4, 0.6])
    np.testing.assert_allclose(explicit_report.at_equal_loss(mine, plain), [10.0])
