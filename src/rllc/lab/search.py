"""Rates chosen on seed 0, then all seeds of the chosen: what a comparison and a study do on each task.

    search(plan, among(records))     a Row for each optimizer

With rungs the choice is by successive halving: all settings run a part of the steps, the better ones go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rllc.lab.cells import Cell, points_for
from rllc.lab.records import Record
from rllc.lab.selection import Row, choose, promising
from rllc.lab.settings import Setting
from rllc.lab.tasks import Task, TextTask

__all__ = ["GRIDS", "Batch", "Plan", "RecordsOf", "Rung", "among", "search"]

Batch = dict[str, list[Cell]]
RecordsOf = Callable[[str, Batch], dict[str, list[Record]]]  # what for, whose cells -> whose records


@dataclass(frozen=True)
class Rung:
    """Run `part` of the steps; of all settings, this part goes on to the next rung."""

    part: float
    kept: float

    def steps(self, whole: int) -> int:
        """Of a run of that many."""
        return max(1, round(self.part * whole))

    def left(self, settings: int) -> int:
        """How many of all the settings go on, one at least."""
        return max(1, math.ceil(self.kept * settings))


GRIDS: dict[str, tuple[Rung, ...]] = {
    "full": (),
    "short": (Rung(0.1, 1 / 3), Rung(0.3, 1 / 9)),
    "tenth": (Rung(0.1, 0),),
}
MOST_RUNG_POINTS = 10


@dataclass(frozen=True)
class Plan:
    """The runs on one task: for each optimizer by name the settings to try; `rungs` before the full steps."""

    task: Task | TextTask
    tried: dict[str, tuple[Setting, ...]]
    seeds: int
    steps: int
    device: str = "cpu"
    rungs: tuple[Rung, ...] = ()

    def cell(self, setting: Setting, seed: int) -> Cell:
        """The run in full of one setting with one seed."""
        return Cell(self.task, setting, seed, self.steps, self.device, points_for(self.task, self.steps))

    def short_cell(self, setting: Setting, rung: Rung) -> Cell:
        """The run of a rung: measured less often than one in full, by which it is known; no test data."""
        steps = rung.steps(self.steps)
        points = max(1, min(MOST_RUNG_POINTS, points_for(self.task, steps) // 2))
        return Cell(self.task, setting, 0, steps, self.device, points, tested=False)

    def training_steps(self) -> int:
        """How many there will be at most, if no run is there yet."""
        return sum(map(self._training_steps, map(len, self.tried.values())))

    def _training_steps(self, settings: int) -> int:
        total, left = (self.seeds - 1) * self.steps, settings
        for rung in self.rungs:
            total += left * rung.steps(self.steps)
            left = rung.left(settings)
        return total + left * self.steps


def search(plan: Plan, records_of: RecordsOf) -> list[Row]:
    """One row for each optimizer, in the plan's order."""
    left = dict(plan.tried)
    for rung in plan.rungs:
        cells = {name: [plan.short_cell(s, rung) for s in settings] for name, settings in left.items()}
        found = records_of(f"choosing rates, {rung.steps(plan.steps):,} steps", cells)
        left = {
            name: tuple(r.cell.setting for r in promising(found[name], rung.left(len(plan.tried[name]))))
            for name in cells
        }
    cells = {name: [plan.cell(s, 0) for s in settings] for name, settings in left.items()}
    found = records_of("choosing rates", cells)
    finals = {name: _all_seeds(plan, choose(ended)) for name, ended in found.items()}
    made = records_of("all seeds", finals)
    return [Row(name, plan.tried[name], tuple(made[name]), left[name]) for name in plan.tried]


def among(records: Sequence[Record]) -> RecordsOf:
    """For `search`: of these records, those that are asked for."""
    held = {record.cell: record for record in records}
    return lambda _, batch: {
        name: [held[cell] for cell in cells if cell in held] for name, cells in batch.items()
    }


def _all_seeds(plan: Plan, best: Record | None) -> list[Cell]:
    return [] if best is None else [plan.cell(best.cell.setting, seed) for seed in range(plan.seeds)]
