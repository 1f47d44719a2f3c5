"""Training with memory and without it, against optax and the core's own iteration; records of it."""

import json
import math

import jax
import numpy as np
import optax
import pytest

from rllc.lab.errors import Damaged, Refused
from rllc.lab.memoryless import records
from rllc.lab.memoryless.problems import tanh_net
from rllc.lab.memoryless.training import train
from rllc.memoryless import Adam, follow

FORM = Adam(0.9, 0.97, 0.01, weight_decay=0.1)
H = 0.01


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def trained(variant):
    found = train(FORM, variant, tanh_net(), H, 4, 5, lambda theta: {"theta": theta})
    assert found["theta"].shape == (6, 13)
    return found["theta"]


def test_with_memory_it_is_the_optimizer():
    problem = tanh_net()
    tx = optax.adamw(H, 0.9, 0.97, eps=0.0, eps_root=0.01, weight_decay=0.1)
    theta, state = problem.start, tx.init(problem.start)
    step = jax.jit(lambda theta, state: tx.update(jax.grad(problem.loss)(theta), state, theta))
    for _ in range(20):
        updates, state = step(theta, state)
        theta = theta + updates
    # optax corrects the bias of v inside of the root, too: the same
    np.testing.assert_allclose(trained("memory")[-1], theta, atol=1e-9)


@pytest.mark.parametrize("variant, corrected", [("without", False), ("with", True)])
def test_without_it_is_the_memoryless_iteration(variant, corrected):
    problem = tanh_net()
    path = follow(FORM, jax.grad(problem.loss), problem.start, H, 20, corrected)
    np.testing.assert_allclose(trained(variant), path[::4], atol=1e-12)


def test_records_are_whole_and_plain(tmp_path):
    path = tmp_path / "found.json"
    records.write(path, {"runs": [{"x": [1.0, math.nan]}, {"x": (2, math.inf)}], "y": 1 / 3})
    assert records.read(path) == {"runs": [{"x": [1.0, None]}, {"x": [2, None]}], "y": 0.33333333}
    assert json.loads(path.read_text()) == records.read(path) and not list(path.parent.glob(".*"))
    path.write_text("{")
    with pytest.raises(Damaged, match="delete it and run again"):
        records.read(path)
    with pytest.raises(Refused, match="choose another --out"):
        records.write(path / "below.json", {})


def test_runs_that_are_there_are_not_made_again(tmp_path):
    path, made = tmp_path / "runs.json", []

    def make(key):
        made.append(key["seed"])
        return {"twice": 2 * key["seed"]}

    records.collect(path, [{"seed": 1}, {"seed": 2}], make)
    content = records.collect(path, [{"seed": 2}, {"seed": 3}], make)
    assert made == [1, 2, 3]
    assert [run["twice"] for run in content["runs"]] == [2, 4, 6]
    assert content["runs"][0]["versions"]["jax"] == jax.__version__
