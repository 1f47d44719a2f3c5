"""Records made where they are missing: workers, a folder, a progress bar over training steps.

with making(workers, out, plans, console) as maker:
    search(plan, functools.partial(maker.records, plan))
"""

from __future__ import annotations

import itertools
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

from rllc.lab.cells import Cell
from rllc.lab.errors import Broken
from rllc.lab.files import Folder
from rllc.lab.records import Record, find
from rllc.lab.search import Batch
from rllc.lab.sweep import Pool, kept, sweep
from rllc.lab.tasks import Task, TextTask
from rllc.lab.texts import say

__all__ = ["Maker", "Planned", "making"]


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

    def records(self, plan: Planned, what: str, cells: Batch) -> dict[str, list[Record]]:
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
        lost = sweep(self.workers, self.out, todo, progress, self.say, self.deadline)
        self.lost += lost
        self.made |= {cell: record for cell in todo if (record := find(folder, cell)) is not None}
        if nowhere := {cell for cell in todo if cell not in self.made}.difference(lost):
            raise Broken(
                f"{len(nowhere)} runs have ended, but {folder.url} has no record of them; choose an --out"
                " that every worker can write to"
            )
        return {name: [self.made[c] for c in ours if c in self.made] for name, ours in cells.items()}

    def say(self, line: str) -> None:
        """One line above the progress bar."""
        say(self.bar.console, line)


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
