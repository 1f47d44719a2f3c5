"""Cells and records for tests, made by hand."""

import re
from dataclasses import replace

from rllc.lab.cells import Cell, Point, Result
from rllc.lab.optimizers import Rates, trials
from rllc.lab.records import Record
from rllc.lab.settings import SGD, Adam, Rllc
from rllc.lab.tasks import TASKS

DIGITS = TASKS["digits-mlp"]
TWO_UNITS = next(s for s in trials("M(0.9) + M(0.0)", Rates()) if isinstance(s, Rllc))


def cell(setting=Adam(1e-3), seed=0, steps=12, points=3):  # noqa: B008  (frozen)
    return Cell(DIGITS, setting, seed, steps, points=points)


def record(valid, test=None, loss=None, setting=SGD(0.1), seed=0, diverged_at=None, law=()):  # noqa: B008
    """A record with the given validation accuracies (and test accuracies, validation losses)."""
    test, loss = test or valid, loss or [1 - v for v in valid]
    points = [
        Point(10 * i, None if i == 0 else 0.5, loss[i], valid[i], 1 - test[i], test[i], law)
        for i in range(len(valid))
    ]
    made = cell(setting, seed, steps=10 * (len(valid) - 1), points=len(valid) - 1)
    return Record(made, Result(tuple(points), diverged_at, 1.5, 2.0), {}, None, "")


def with_test(made, test):
    """The same record with other test accuracies and losses."""
    points = (
        p._replace(test_accuracy=t, test_loss=-t) for p, t in zip(made.result.points, test, strict=True)
    )
    return replace(made, result=made.result._replace(points=tuple(points)))


def unpadded(table):
    """A Markdown table without the spaces that align its columns."""
    return re.sub(" +", " ", table)
