"""Rates chosen on seed 0, then all seeds of the chosen: what a comparison and a study do on each task.

    search(plan, maker)       a Row for each optimizer, from records, which are made where they are missing
    making(...)               a Maker: workers, a folder, a progress bar

With rungs the choice is by successive halving: all settings run a part of the steps, the better ones go on.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rllc.lab.cells import Cell, points_for
from rllc.lab.files import Folder
from rllc.lab.records import Record, find
from rllc.lab.selection import Row, choose, promising
from rllc.lab.settings import Setting
from rllc.lab.sweep import Pool, kept, sweep
from rllc.lab.tasks import Task, TextTask

__all__ = ["GRIDS", "Maker", "Plan", "Planned", "Rung", "making", "search"]


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


def search(plan: Plan, maker: Maker) -> list[Row]:
    """One row for each optimizer, in the plan's order."""
    left = dict(plan.tried)
    for rung in plan.rungs:
        cells = {name: [plan.short_cell(s, rung) for s in settings] for name, settings in left.items()}
        found = maker.records(plan, f"choosing rates, {rung.steps(plan.steps):,} steps", cells)
        left = {
            name: tuple(r.cell.setting for r in promising(found[name], rung.left(len(plan.tried[name]))))
            for name in cells
        }
    cells = {name: [plan.cell(s, 0) for s in settings] for name, settings in left.items()}
    found = maker.records(plan, "choosing rates", cells)
    finals = {name: _all_seeds(plan, choose(records)) for name, records in found.items()}
    made = maker.records(plan, "all seeds", finals)
    return [Row(name, plan.tried[name], tuple(made[name]), left[name]) for name in plan.tried]


class Planned(Protocol):
    """The runs on one task, of this study or another."""

    @property
    def task(self) -> Task | TextTask:
        """Where they run."""

    def training_steps(self) -> int:
        """How many there will be at most, if no run is there yet."""


@dataclass
class Maker:
    """Makes the records that are missing, with a progress bar over training steps."""

    workers: Pool
    out: Folder
    bar: Progress
    total: int  # steps of everything planned
    deadline: float | None = None
    fresh: bool = False
    lost: list[Cell] = field(default_factory=list)
    found: int = 0  # steps that did not have to be done
    made: dict[Cell, Record] = field(default_factory=dict)

    def records(self, plan: Planned, what: str, cells: dict[str, list[Cell]]) -> dict[str, list[Record]]:
        """The records of each name's cells; those whose memory ran out are left out and in `lost`."""
        folder = self.out / "records"
        wanted = dict.fromkeys(cell for cell in itertools.chain(*cells.values()) if cell not in self.made)
        self.made |= {} if self.fresh else kept(folder, list(wanted), self.say)
        todo = [cell for cell in wanted if cell not in self.made]
        self.found += sum(cell.steps for cell in wanted) - sum(cell.steps for cell in todo)
        shown = self.bar.task_ids[0]
        self.bar.update(shown, description=f"{plan.task.name}: {what}", total=self.total)

        def progress(steps: int) -> None:
            self.bar.update(shown, completed=min(self.found + steps, self.total))

        progress(self.workers.steps())
        self.lost += sweep(self.workers, self.out, todo, progress, self.say, self.deadline)
        self.made |= {cell: record for cell in todo if (record := find(folder, cell)) is not None}
        return {name: [self.made[c] for c in ours if c in self.made] for name, ours in cells.items()}

    def say(self, line: str) -> None:
        """One line above the progress bar."""
        self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def making(
    workers: Pool,
    out: Folder,
    plans: Sequence[Planned],
    console: Console,
    minutes: float | None = None,
    fresh: bool = False,
) -> Iterator[Maker]:
    """A Maker whose progress bar runs over all these plans."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    times = TimeElapsedColumn(), TextColumn("· left"), TimeRemainingColumn(elapsed_when_finished=False)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    with Progress(*columns, *times, console=console, transient=True) as bar:
        bar.add_task("", total=None)
        yield Maker(workers, out, bar, sum(plan.training_steps() for plan in plans), deadline, fresh)


def _all_seeds(plan: Plan, best: Record | None) -> list[Cell]:
    return [] if best is None else [plan.cell(best.cell.setting, seed) for seed in range(plan.seeds)]
