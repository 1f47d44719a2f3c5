"""The variants of the law study, the runs that compare them, and what the records of those runs say.

    cells(["fashion-mlp"], ["default", "constant"], 3, READINGS)     the runs
    gain(study, "fashion-mlp", Pick("default"), Pick("constant"))    by how much one is better at the end

A study is the records there are, by cell; what has not been run is missing, and nothing here runs it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from rllc.lab.adaptive import at
from rllc.lab.cells import Cell, Point
from rllc.lab.records import Record
from rllc.lab.settings import NOTHING, Adam, Cosine, Rllc, RllcAdamW, Rules, Setting
from rllc.lab.tasks import TASKS

IMAGES = ("fashion-mlp", "cifar10-mlp")
TEXT = "shakespeare-gpt"
MARKS = dict.fromkeys(IMAGES, (1000, 3000, 10_000)) | {TEXT: (300, 1000)}
POINTS = dict.fromkeys(IMAGES, 50) | {TEXT: 10}
READINGS = ("average", "last")
MOST_SEEDS = 10
USUAL = 3e-3  # Adam's rate, where it need not be found

# --- What is compared ---------------------------------------------------------------------------------


class Variant(NamedTuple):
    """A setting, and what it is in words."""

    setting: Setting
    about: str


def _of_rules(*rules: str, scope: str = "all") -> Rules:
    """KNOWN by memory rules; the first unit's law is 1, the others' 0."""
    law = (1.0,) + (0.0,) * (len(rules) - 1)
    return Rules(rules, USUAL, 0.0016, law, scope=scope)


def _of_momentum(rule: str) -> Rules:
    """The default law around a unit that is no direction of Adam's, begun at c1 |L| = 1e-4."""
    return Rules((rule,), 0.1, 0.04, (1e-3,), decay=0.5, growth=0.1)


DEFAULT = RllcAdamW()
KNOWN = RllcAdamW(USUAL, law=1.0, growth=0.0, law_lr=0.0016, decay=0.0)  # begun at the usual rate
VARIANTS: dict[str, Variant] = {
    "constant": Variant(replace(KNOWN, law_lr=0.0), "Adam at 3e-3 and its average: the law stays"),
    "q = 1.5": Variant(KNOWN, "L += c2 |L|^1.5 x, c2 = 0.0016, begun at 3e-3"),
    "q = 1": Variant(replace(KNOWN, q=1.0, law_lr=0.03, decay=0.5), "L += 0.03/√t |L| x, begun at 3e-3"),
    "per tensor": Variant(_of_rules("Adam", scope="tensor"), "q = 1.5 with a law for each tensor"),
    "deviation": Variant(_of_rules("Adam", "deviation"), "q = 1.5 with θ - θ̄ as a second unit, L_0 = (1, 0)"),
    "several averages": Variant(
        _of_rules("Adam", "deviation", "deviation(power=49)"),
        "the same with θ - θ̄ of a fifth of the window as a third unit, L_0 = (1, 0, 0)",
    ),
    "three momenta": Variant(
        _of_rules("Adam", "Adam(b1=0)", "Adam(b1=0.99)"),
        "q = 1.5 with Adam's directions of b1 = 0.9, 0 and 0.99 as three units, L_0 = (1, 0, 0)",
    ),
    "M(0.9)": Variant(_of_momentum("M(0.9)"), "the default's law around momentum, c1 = 0.1"),
    "adaptive momentum": Variant(
        _of_momentum("adaptive momentum"), "the same around a momentum whose β descends its hypergradient"
    ),
    "cosine": Variant(Cosine(Adam(USUAL)), "Adam, 3e-3 falling to 0 over the run, as it is at the end"),
    "search, constant": Variant(
        replace(DEFAULT, law_lr=NOTHING), "the default's search, and then the law stays"
    ),
    "search, q = 1.5": Variant(
        replace(DEFAULT, law_lr=0.0016, decay=0.0), "the default's search, and then q = 1.5 with c2 = 0.0016"
    ),
    "slow search": Variant(
        replace(DEFAULT, growth=0.05, smoothing=0.98), "the default with e^0.05 a step, mean of 50 steps"
    ),
    "fast search": Variant(
        replace(DEFAULT, growth=0.2, smoothing=0.9), "the default with e^0.2 a step, mean of 10 steps"
    ),
    "default": Variant(DEFAULT, "e^0.1 a step while x > 0 (mean of 20 steps), then 0.04/√t relative to it"),
    "lr x 1/100": Variant(replace(DEFAULT, lr=1e-5), "the default begun at c1 |L| = 1e-7"),
    "lr x 1/10": Variant(replace(DEFAULT, lr=1e-4), "the default begun at c1 |L| = 1e-6"),
    "lr x 10": Variant(replace(DEFAULT, lr=1e-2), "the default begun at c1 |L| = 1e-4"),
    "lr x 100": Variant(replace(DEFAULT, lr=0.1), "the default begun at c1 |L| = 1e-3"),
    "additive": Variant(replace(KNOWN, q=0.0, law_lr=0.01), "the paper's L += 0.01 x, begun at 3e-3"),
    "two units": Variant(
        Rllc("M(0.9) + M(0.0)", 1.0, 0.01, (1.0, 1.0)), "the paper's L += 0.01 x on M(0.9) + M(0), c1 = 1"
    ),
}
# Variant -> what the picture calls it. Their first steps are also run by themselves, measured more often.
DRAWN = {
    "default": "default, begun at 1e-5",
    "lr x 100": "default, begun at 1e-3",
    "lr x 1/100": "default, begun at 1e-7",
    "additive": "additive: collapses",
    "two units": "two units, additive: diverges",
}
DRAWN_TASK, BEGINNING = "fashion-mlp", 200


def readings(name: str) -> tuple[str, ...]:
    """Where the weights are measured: at their average, and as they are."""
    return READINGS if isinstance(VARIANTS[name].setting, RllcAdamW | Rules) else ("last",)


def cell(task: str, name: str, reading: str, seed: int) -> Cell:
    """A run of the study."""
    setting = VARIANTS[name].setting
    if reading == "last" and isinstance(setting, RllcAdamW | Rules):
        setting = replace(setting, average=None)
    return Cell(TASKS[task], setting, seed, MARKS[task][-1], points=POINTS[task])


def beginning(name: str) -> Cell:
    """The first steps of a run, every fifth of them measured: no variant here knows its end."""
    return replace(cell(DRAWN_TASK, name, readings(name)[0], 0), steps=BEGINNING, points=BEGINNING // 5)


def cells(tasks: Iterable[str], names: Iterable[str], seeds: int, wanted: Sequence[str]) -> list[Cell]:
    """What is to be run: first all variants with the first seed at the first reading."""
    names = list(names)
    main = [
        cell(task, name, reading, seed)
        for seed in range(seeds)
        for reading in wanted
        for task in tasks
        for name in names
        if reading in readings(name)
    ]
    drawn = [beginning(name) for name in names if name in DRAWN] if DRAWN_TASK in tasks else []
    return drawn + main


# --- What the records say -----------------------------------------------------------------------------

Study = dict[Cell, Record]


class Pick(NamedTuple):
    """A variant at a reading."""

    name: str
    reading: str = "average"


def by_seed(study: Study, task: str, pick: Pick) -> dict[int, Record]:
    """The records of a variant on a task, none at a reading it does not have."""
    if pick.reading not in readings(pick.name):
        return {}
    wanted = {seed: cell(task, pick.name, pick.reading, seed) for seed in range(MOST_SEEDS)}
    return {seed: study[c] for seed, c in wanted.items() if c in study}


def scores(study: Study, task: str, pick: Pick, step: int) -> dict[int, float]:
    """By seed: test accuracy in %, of text the test loss in nats; NaN if it has diverged by then."""
    found = {}
    for seed, record in by_seed(study, task, pick).items():
        point = at(record, step)
        found[seed] = math.nan if point is None else _score(task, point)
    return found


def gain(study: Study, task: str, a: Pick, b: Pick) -> float | None:
    """By how much a is better than b at the end, the mean over the seeds of both, if there is one."""
    ours, theirs = (scores(study, task, pick, MARKS[task][-1]) for pick in (a, b))
    sign = -1 if task == TEXT else 1
    apart = [sign * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    return statistics.mean(apart) if apart else None


def training_loss(record: Record) -> float:
    """The mean over the last tenth of the steps; NaN if it diverged before them."""
    late = [p.train_loss for p in record.result.points if p.train_loss and p.step > 0.9 * record.cell.steps]
    return statistics.mean(late) if late else math.nan


def size(setting: Setting, point: Point) -> float:
    """c1 |L|, the mean over the scopes; NaN where there is no law."""
    if not point.law:
        return math.nan
    k = 1 if isinstance(setting, RllcAdamW) else len(setting.law)  # type: ignore[union-attr]
    return setting.rates[0] * float(np.linalg.norm(np.reshape(point.law, (-1, k)), axis=1).mean())


def size_at(record: Record, step: int) -> float:
    """c1 |L| after so many steps; NaN if it has diverged by then."""
    point = at(record, step)
    return math.nan if point is None else size(record.cell.setting, point)


def largest(study: Study, task: str, name: str) -> float | None:
    """The largest c1 |L| at any measurement after the start: what a search has found, mean over seeds."""
    runs = by_seed(study, task, Pick(name)).values()
    found = [max(size(run.cell.setting, point) for point in run.result.points[1:]) for run in runs]
    return statistics.mean(found) if found else None


def path(study: Study, name: str) -> list[tuple[int, float]]:
    """(step, c1 |L|) of a drawn variant with seed 0, first every 5 steps and then every 200."""
    points = [point for c in drawn_cells(study, name) for point in study[c].result.points]
    by_step = {point.step: size(VARIANTS[name].setting, point) for point in points if point.step}
    return sorted(by_step.items())


def drawn_cells(study: Study, name: str) -> list[Cell]:
    """The runs of a drawn variant with seed 0 of which there are records, the short one first."""
    return [c for c in (beginning(name), cell(DRAWN_TASK, name, readings(name)[0], 0)) if c in study]


def _score(task: str, point: Point) -> float:
    loss, accuracy = point.on_test_data()
    return loss if task == TEXT else 100 * accuracy
