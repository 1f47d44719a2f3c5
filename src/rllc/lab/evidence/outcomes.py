"""What seeds say: means and standard deviations of a row, and whether two differ by more than seeds do.

    accuracies(row, "last")      a Sample: a number from each seed that did not diverge
    compare(a, b)                "above", "ahead", "level", "behind" or "below"
    best_on_validation(rows)     the row to compare, chosen without a look at test data

Rows are those of `studies.rows`, by task and optimizer.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import scipy.stats

from rllc.lab.evidence import paper
from rllc.lab.optimizers import PAPER
from rllc.lab.records import Record
from rllc.lab.selection import Row, best_point, finished, reading
from rllc.lab.studies import steps_of

__all__ = [
    "BENCHMARKS",
    "OUTCOMES",
    "Beside",
    "Outcome",
    "Rows",
    "Sample",
    "accuracies",
    "benchmarks",
    "beside_paper",
    "best_on_validation",
    "compare",
    "error_of_difference",
    "is_full_length",
    "losses",
    "of_full_length",
    "others",
    "quickest",
    "steps_on",
    "tasks_in",
]

Rows = Mapping[tuple[str, str], Row]  # by task and optimizer, of one study

BENCHMARKS = PAPER[:3]
SIGNIFICANCE = 0.05
Outcome = Literal["above", "ahead", "level", "behind", "below"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Sample:
    """One number from each seed; possibly none, and then it has no mean."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.mean(self.values)

    @property
    def std(self) -> float | None:
        """The standard deviation with n - 1; None below two seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


class Beside(NamedTuple):
    """A row of two finished seeds or more, and what the paper prints for it."""

    task: str
    row: Row
    printed: paper.Published


def beside_paper(found: Rows) -> list[Beside]:
    """The rows that have both."""
    return [
        Beside(task, row, printed)
        for (task, name), row in found.items()
        if len(finished(row.records)) > 1
        if (printed := paper.published(task, name))
    ]


def tasks_in(found: Rows) -> tuple[str, ...]:
    """The tasks of which there are rows, in order."""
    return tuple(dict.fromkeys(task for task, _ in found))


def steps_on(found: Rows, task: str) -> int:
    """How long the task's runs are, which is the same for all its rows; 0 if every one diverged."""
    return steps_of([record for (on, _), row in found.items() if on == task for record in row.records])


def is_full_length(found: Rows, task: str) -> bool:
    """Whether the task's runs have as many steps as the paper's: shorter ones say nothing of its numbers."""
    return steps_on(found, task) >= paper.STEPS


def of_full_length(found: Rows) -> Rows:
    """The rows of the tasks whose runs are as long as the paper's."""
    return {key: row for key, row in found.items() if is_full_length(found, key[0])}


def benchmarks(found: Rows, task: str) -> list[Row]:
    """The rows of SGD, momentum SGD and Adam on a task."""
    return [found[task, name] for name in BENCHMARKS if (task, name) in found]


def others(found: Rows, task: str) -> list[Row]:
    """The rows of the other optimizers on a task."""
    return [row for (where, name), row in found.items() if where == task and name not in BENCHMARKS]


def losses(row: Row, which: str) -> Sample:
    """The test loss in nats of each finished seed under one of READINGS."""
    return Sample(tuple(reading(record, which)[0] for record in finished(row.records)))


def accuracies(row: Row, which: str) -> Sample:
    """The test accuracy in [0, 1] of each finished seed under one of READINGS."""
    return Sample(tuple(reading(record, which)[1] for record in finished(row.records)))


def quickest(records: Sequence[Record]) -> dict[tuple[str, str], float]:
    """ms/step by task and optimizer: the least of its finished runs, for other runs beside it slow a run.

    Of each task only the runs on the machine and device count on which most were made.
    """
    found: dict[tuple[str, str], float] = {}
    for task in dict.fromkeys(record.cell.task.name for record in records):
        here = [record for record in finished(records) if record.cell.task.name == task]
        machine = statistics.mode(_machine(record) for record in here) if here else None
        for record in here:
            key = task, record.cell.setting.name
            if _machine(record) == machine:
                found[key] = min(found.get(key, math.inf), record.result.ms_per_step)
    return found


def _machine(record: Record) -> tuple[str, str]:
    return record.hardware, record.cell.device


def compare(a: Sample, b: Sample) -> Outcome | None:
    """Where a's mean lies against b's.

    "above" or "below" if Welch's two-sided test tells them apart at 5 %, else "ahead" or "behind" if they
    differ by more than the standard error of the difference, else "level". None where a or b has less than
    two seeds.
    """
    error = error_of_difference(a, b)
    if error is None:
        return None
    apart = a.mean - b.mean
    if abs(apart) <= error:
        return "level"
    sure = error == 0 or _welch(a, b, apart / error) < SIGNIFICANCE
    if apart > 0:
        return "above" if sure else "ahead"
    return "below" if sure else "behind"


def _welch(a: Sample, b: Sample, t: float) -> float:
    """The two-sided p value of Welch's test, with the degrees of freedom of Welch and Satterthwaite."""
    parts = [((s.std or 0.0) ** 2 / len(s.values), len(s.values) - 1) for s in (a, b)]
    freedom = sum(part for part, _ in parts) ** 2 / sum(part**2 / n for part, n in parts)
    return 2 * float(scipy.stats.t.sf(abs(t), freedom))


def error_of_difference(a: Sample, b: Sample) -> float | None:
    """The standard error of a.mean - b.mean, Welch's; None where a or b has less than two seeds."""
    if a.std is None or b.std is None:
        return None
    return math.sqrt(a.std**2 / len(a.values) + b.std**2 / len(b.values))


def best_on_validation(rows: Sequence[Row]) -> Row | None:
    """The row of best validation accuracy, a mean over seeds of each run's best; the first of equal ones.

    None if no row has a run that finished.
    """
    able = [row for row in rows if finished(row.records)]
    return max(able, key=_merit, default=None)


def _merit(row: Row) -> float:
    return statistics.mean(best_point(record).valid_accuracy for record in finished(row.records))
