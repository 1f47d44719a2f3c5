"""Which of the rates tried to keep. Validation data alone decide; test data are never looked at here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rllc.lab.optimizers import Setting
from rllc.lab.records import Record
from rllc.lab.training import Point

__all__ = ["Row", "best_point", "choose", "finished"]


class Row(NamedTuple):
    """An optimizer in a comparison: its name, the settings tried, a record for each seed of the chosen one.

    There are no records where every setting diverged.
    """

    name: str
    tried: tuple[Setting, ...]
    records: tuple[Record, ...]


def choose(records: Sequence[Record]) -> Record | None:
    """The record with the best validation accuracy at any of its points; ties by validation loss, then order.

    A diverged run is never chosen: None if all have diverged.
    """
    return max(finished(records), key=lambda record: _merit(best_point(record)), default=None)


def best_point(record: Record) -> Point:
    """The point of best validation accuracy; ties by validation loss, then the earlier one."""
    return max(record.result.points, key=_merit)


def finished(records: Sequence[Record]) -> tuple[Record, ...]:
    """The records of runs that did not diverge."""
    return tuple(record for record in records if record.result.diverged_at is None)


def _merit(point: Point) -> tuple[float, float]:
    return point.valid_accuracy, -point.valid_loss
