"""What successive halving costs: its choice of rates beside that of the full grid, from the same records.

choices(records)     a Choice for each task and optimizer of which every setting ran all steps
table(records)       them as a table
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from rllc.lab.errors import Refused
from rllc.lab.evidence.markup import MISSING, Entry, Group, Line, Table
from rllc.lab.evidence.outcomes import OUTCOMES, accuracies, compare
from rllc.lab.evidence.tables import percent_and_std
from rllc.lab.records import Record
from rllc.lab.search import GRIDS, Plan, among, search
from rllc.lab.selection import Row, finished
from rllc.lab.settings import Setting
from rllc.lab.studies import STUDIES, rows
from rllc.lab.texts import minus

__all__ = ["Choice", "choices", "table"]

STUDY = STUDIES["table1"]
READING = "validation"
MEANING = (
    "In brackets the rates; validation data choose in both. Above, below: by Welch's two-sided test at 5 %;"
    " ahead, behind: by more than the standard error of the difference; level: by less."
)
SIDES = ("full", "short")  # of a Choice


class Choice(NamedTuple):
    """One optimizer on one task: what is chosen when every setting runs all steps, and by halving."""

    task: str
    full: Row
    short: Row

    @property
    def is_same(self) -> bool:
        """Whether both choose the same rates."""
        return _setting(self.full) == _setting(self.short)


def choices(records: Sequence[Record]) -> list[Choice]:
    """Where both can be told: every setting has a run of all steps and of halving's rungs, both all seeds."""
    found, records_of = [], among(records)
    for (task, name), full in rows(STUDY, records).items():
        seeds = len(finished(full.records))
        if set(full.in_full) != set(STUDY.trials(name)) or seeds < 2:
            continue
        cell = full.records[0].cell
        plan = Plan(cell.task, {name: full.tried}, seeds, cell.steps, cell.device, GRIDS["short"])
        (short,) = search(plan, records_of)
        if len(finished(short.records)) == seeds:
            found.append(Choice(task, full, short))
    return found


def table(records: Sequence[Record]) -> Table:
    """Test accuracy (%) of both choices, where validation is best, and in brackets the rates.

    Raises:
        Refused: there is no optimizer of which both can be told.
    """
    found = {(choice.task, choice.full.name): choice for choice in choices(records)}
    if not found:
        raise Refused("no optimizer has run both grids here: rllc run table1 --grid short, and without it")
    tasks = tuple(dict.fromkeys(task for task, _ in found))
    groups = tuple(
        Group(name, tuple(_line(side, [found.get((task, name)) for task in tasks]) for side in SIDES))
        for name in STUDY.optimizers
        if any((task, name) in found for task in tasks)
    )
    title = "Rates from the full grid and by successive halving: test accuracy (%), best validation"
    return Table(title, tasks, groups, _notes(list(found.values())))


def _line(side: str, here: Sequence[Choice | None]) -> Line:
    return Line(side, tuple(MISSING if choice is None else _entry(getattr(choice, side)) for choice in here))


def _entry(row: Row) -> Entry:
    rates = ", ".join(f"{rate:g}" for rate in _setting(row).rates if rate is not None)
    return Entry(percent_and_std(accuracies(row, READING)), aside=f"({rates})")


def _notes(found: Sequence[Choice]) -> tuple[str, ...]:
    other = [choice for choice in found if not choice.is_same]
    said = f"Both choose the same rates for {len(found) - len(other)} of {len(found)}."
    if other:
        pairs = [(accuracies(choice.short, READING), accuracies(choice.full, READING)) for choice in other]
        outcomes = [compare(short, full) for short, full in pairs]
        counts = ", ".join(f"{outcomes.count(one)} {one}" for one in OUTCOMES if one in outcomes)
        gaps = [100 * (short.mean - full.mean) for short, full in pairs]
        said += minus(
            f" Of the others halving's are {counts} on test data: {statistics.mean(gaps):+.2f} points in the"
            f" mean, {min(gaps):+.2f} to {max(gaps):+.2f}."
        )
    return said, MEANING


def _setting(row: Row) -> Setting:
    return row.records[0].cell.setting
