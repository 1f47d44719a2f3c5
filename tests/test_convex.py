"""The convex study: its problems and its loop against closed forms, its table against its records."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def convex():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("convex", ROOT / "benchmarks" / "convex.py")
    module = sys.modules["convex"] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["convex"]


@pytest.fixture(scope="module")
def trials(convex):
    return convex.read(ROOT / "results" / "convex.parquet")


@pytest.fixture(scope="module")
def logistic(convex):
    return convex.logistic()


@pytest.mark.parametrize("condition, lr", [(10, 1.7), (100, 0.3)])
def test_gradient_descent_takes_the_steps_of_its_closed_form(convex, condition, lr):
    """Every term is an equal share at the start and shrinks by (1 - lr λ)² a step."""
    factors = (1 - lr * np.geomspace(1, 1 / condition, 100)) ** 2
    steps = next(t for t in range(10_000) if np.mean(factors**t) <= 1e-6)
    assert convex.trial(convex.quadratic(condition), "SGD", convex.Setting(lr)).steps == steps


def test_heavy_ball_takes_the_steps_of_its_recursion(convex):
    rates = np.geomspace(1, 0.01, 100)
    previous = x = 1 / np.sqrt(rates)
    steps = 0
    while np.sum(rates * x**2) / 100 > 1e-6:
        previous, x = x, x - 2.8 * rates * x + 0.7 * (x - previous)
        steps += 1
    assert convex.trial(convex.quadratic(100), "heavy ball", convex.Setting(2.8, 0.7)).steps == steps


def test_a_law_that_does_not_learn_is_heavy_ball(convex):
    problem = convex.quadratic(10)
    learned = convex.trial(problem, "M(β)", convex.Setting(1.0, 0.5, 0.0))
    assert learned.steps == convex.trial(problem, "heavy ball", convex.Setting(1.0, 0.5)).steps
    assert learned.law == (1.0,)


def test_divergence_and_the_limit_are_no_steps(convex, monkeypatch):
    assert convex.trial(convex.quadratic(10), "SGD", convex.Setting(2.5)).steps is None
    monkeypatch.setattr(convex, "LIMIT", 20)
    slow = convex.trial(convex.quadratic(100), "SGD", convex.Setting(1.0))
    assert slow.steps is None and 1e-6 < slow.excess < 1


def test_logistic_gradient_and_minimum(convex, logistic):
    start, direction = torch.randn(2, 10, 65, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, gradient = logistic.loss_and_gradient(start)
    h = 1e-6
    ahead, behind = (logistic.loss_and_gradient(start + s * h * direction)[0] for s in (1, -1))
    assert abs((ahead - behind) / (2 * h) - float((gradient * direction).sum())) < 1e-6
    assert abs(logistic.loss_and_gradient(logistic.start)[0] - math.log(10)) < 1e-12
    found = convex._minimiser(logistic.loss_and_gradient, start)
    loss, gradient = logistic.loss_and_gradient(found)
    assert gradient.norm() ** 2 / (2 * convex.L2) < 1e-12  # so far from the minimum, by strong convexity
    assert abs(loss - logistic.minimum) < 1e-12


def test_the_largest_curvature_is_that_of_the_gradient(convex, logistic):
    minimum = convex._minimiser(logistic.loss_and_gradient, logistic.start)
    v = torch.randn(10, 65, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(60):
        v = v / v.norm()
        ahead, behind = (logistic.loss_and_gradient(minimum + s * 1e-5 * v)[1] for s in (1, -1))
        v = (ahead - behind) / 2e-5
    assert abs(v.norm() - logistic.largest) < 1e-3 * logistic.largest
    assert f"{logistic.largest:.2f}" == "0.43"  # as the report says


def test_every_trial_is_recorded(convex, trials):
    assert {len(settings) for settings in convex.METHODS.values()} == {convex.TRIALS}
    assert len(set(trials)) == len(trials) == 5 * len(convex.METHODS) * convex.TRIALS
    assert all((t.steps is None) == (not t.excess <= convex.TARGET) for t in trials)


def test_recorded_trials_can_be_made_again(convex, trials):
    for method in convex.METHODS:
        best = min(convex.of(trials, "quadratic 10", method), key=convex._steps)
        again = convex.trial(convex.quadratic(10), method, convex.Setting(best.lr, best.beta, best.law_lr))
        assert abs(again.steps - best.steps) <= 1  # machines round differently


def test_the_report_is_made_from_the_records(convex, trials):
    assert (ROOT / "results" / "convex.md").read_text() == convex.report(trials)


def test_the_report_says_what_the_records_show(convex, trials):
    """Its one sentence without numbers."""
    problems = convex._problems(trials)
    best = [(convex.fewest(trials, p, "M(β)"), convex.fewest(trials, p, "heavy ball")) for p in problems]
    assert all(learned >= (1 - convex.LEVEL) * fixed for learned, fixed in best)
    assert all(convex.reached(trials, p, "M(β)") > convex.reached(trials, p, "heavy ball") for p in problems)
