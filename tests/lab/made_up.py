"""Records of studies with numbers made up for tests."""

from dataclasses import replace

from rllc.lab.cells import Cell, Point, Result, points_for
from rllc.lab.optimizers import paper_trials
from rllc.lab.records import Record
from rllc.lab.tasks import TASKS

CIFAR, FASHION, MNIST = (TASKS[f"{name}-mlp"] for name in ("cifar10", "fashion", "mnist"))
BENCHMARKS = ("SGD", "momentum SGD", "Adam")


def run(
    setting,
    test,
    seed=0,
    task=FASHION,
    steps=10_000,
    valid=None,
    law=None,
    ms=2.0,
    diverged_at=None,
    hardware="here",
):
    """A record whose test accuracies are these, evenly spread; losses are 1 minus accuracies.

    Validation accuracies are 1 % more unless given; the law, a tuple for each point, does not move.
    """
    last = max(1, len(test) - 1)
    valid = valid or [accuracy + 0.01 for accuracy in test]
    law = law or [getattr(setting, "law", ())] * len(test)
    points = tuple(
        Point(steps * i // last, None, 1 - v, v, 1 - a, a, law[i])
        for i, (v, a) in enumerate(zip(valid, test, strict=True))
    )
    cell = Cell(task, setting, seed, steps, points=points_for(task, steps))
    return Record(cell, Result(points, diverged_at, ms, 1.0), {"torch": "2.0"}, None, hardware)


def seeds(name, accuracies, setting=None, **more):
    """A run for each seed; an accuracy alone is a run of two points that ends there."""
    setting = setting or paper_trials(name)[0]
    tests = [a if isinstance(a, list) else [0.1, a] for a in accuracies]
    return [run(setting, test, seed, **more) for seed, test in enumerate(tests)]


def rung(name, place, test, **more):
    """A shorter run of another setting, as of successive halving: measured ten times only."""
    made = run(paper_trials(name)[place], test, steps=1000, **more)
    return replace(made, cell=replace(made.cell, points=10))
