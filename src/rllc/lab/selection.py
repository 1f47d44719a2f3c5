"""Which of the rates tried to keep, and what a run is then said to have reached.

Validation data alone decide. Three readings of a run: its last iterate, the evaluation of best validation
accuracy, and, as the paper's numbers look, the best of all evaluations on the test data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rllc.lab.cells import Point
from rllc.lab.records import Record
from rllc.lab.settings import Setting
from rllc.lab.tasks import TASKS

__all__ = [
    "READINGS",
    "Row",
    "at_edge",
    "best_point",
    "choose",
    "finished",
    "full_length",
    "on_same_data",
    "promising",
    "reading",
    "usual_device",
]

READINGS = ("last", "validation", "best")


class Row(NamedTuple):
    """An optimizer on a task: its name, the settings tried, a record for each seed of the chosen one.

    There are no records where every setting diverged. `in_full` are the settings tried that ran all steps;
    the others were dropped after fewer, by successive halving.
    """

    name: str
    tried: tuple[Setting, ...]
    records: tuple[Record, ...]
    in_full: tuple[Setting, ...]

    def without_diverged(self) -> Row:
        """The same row of the runs that did not diverge."""
        return self._replace(records=finished(self.records))


def choose(records: Sequence[Record]) -> Record | None:
    """The record with the best validation accuracy at any of its points; ties by validation loss, then order.

    A diverged run is never chosen: None if all have diverged.
    """
    return next(iter(promising(records, 1)), None)


def promising(records: Sequence[Record], count: int) -> list[Record]:
    """The records of best validation accuracy, at most `count`, the best first, none that diverged."""
    # Sorting is stable, in reverse too: of equal ones the first stays first.
    ranked = sorted(finished(records), key=lambda record: _merit(best_point(record)), reverse=True)
    return ranked[:count]


def best_point(record: Record) -> Point:
    """The point of best validation accuracy; ties by validation loss, then the earlier one."""
    return max(record.result.points, key=_merit)


def reading(record: Record, which: str) -> tuple[float, float]:
    """Test loss and test accuracy of a run that did not diverge, under one of READINGS.

    "last": the last iterate. "validation": the evaluation of best validation accuracy. "best": the least
    loss and the largest accuracy of all evaluations, each its own, which looks at test data to choose.

    Raises:
        ValueError: the reading is unknown, or the run was not tested.
    """
    points = record.result.points
    match which:
        case "last":
            return points[-1].on_test_data()
        case "validation":
            return best_point(record).on_test_data()
        case "best":
            losses, accuracies = zip(*(point.on_test_data() for point in points), strict=True)
            return min(losses), max(accuracies)
    raise ValueError(f"unknown reading {which!r}; known are {', '.join(READINGS)}")


def at_edge(row: Row) -> list[bool]:
    """Of either rate whether the smallest or the largest of several values tried was chosen."""
    chosen, tried = row.records[0].cell.setting.rates, (setting.rates for setting in row.tried)
    columns = (sorted({rate for rate in column if rate is not None}) for column in zip(*tried, strict=True))
    return [len(c) > 1 and rate in (c[0], c[-1]) for rate, c in zip(chosen, columns, strict=True)]


def on_same_data(records: Sequence[Record]) -> list[Record]:
    """The records of each task on one data set: that of most of them, of equally many the pinned one.

    CIFAR-10 is there with several images: no mean is over two of them, no seed counts twice.
    """
    counts = Counter(record.cell.task for record in records)
    ranked = sorted(counts, key=lambda task: (counts[task], task == TASKS.get(task.name)))
    taken = {task.name: task for task in ranked}  # the last one
    return [record for record in records if record.cell.task == taken[record.cell.task.name]]


def full_length(steps: Iterable[int], usual: int) -> int:
    """How long runs in full are: the usual number of steps where there are such runs, else as most of them.

    Of equally many the longest; 0 if there are none. One longer run does not push the others out.
    """
    counts = Counter(steps)
    return usual if usual in counts else max(counts, key=lambda n: (counts[n], n), default=0)


def usual_device(devices: Iterable[str]) -> str:
    """That of most runs, of equally many the first by name: runs elsewhere neither hide nor double them."""
    counts = Counter(devices)
    return max(sorted(counts), key=counts.__getitem__)


def finished(records: Sequence[Record]) -> tuple[Record, ...]:
    """The records of runs that did not diverge."""
    return tuple(record for record in records if not record.diverged)


def _merit(point: Point) -> tuple[float, float]:
    return point.valid_accuracy, -point.valid_loss
