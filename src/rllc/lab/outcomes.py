"""What seeds say: means and standard deviations of a row, and whether two differ by more than seeds do.

measured(row, "last")        (losses, accuracies), a Sample each, of the seeds that did not diverge
compare(a, b)                "above", "level" or "below" by Welch's test
best_on_validation(rows)     the row to compare: chosen without looking at test data
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import scipy.stats

from rllc.lab.optimizers import PAPER
from rllc.lab.selection import Row, best_point, finished, reading

__all__ = [
    "BENCHMARKS",
    "SIGNIFICANCE",
    "Sample",
    "best_on_validation",
    "compare",
    "error_of_difference",
    "measured",
]

BENCHMARKS = PAPER[:3]
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Sample:
    """One number from each seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.mean(self.values)

    @property
    def std(self) -> float | None:
        """The standard deviation with n - 1; None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def measured(row: Row, which: str) -> tuple[Sample, Sample] | None:
    """Test losses (nats) and test accuracies ([0, 1]) under one of READINGS; None if no seed finished."""
    ended = finished(row.records)
    if not ended:
        return None
    losses, accuracies = zip(*(reading(record, which) for record in ended), strict=True)
    return Sample(losses), Sample(accuracies)


def compare(a: Sample, b: Sample) -> Literal["above", "level", "below"] | None:
    """Where a's mean lies against b's: "level" unless Welch's two-sided test tells them apart at 5 %.

    None where a or b has a single seed.
    """
    error = error_of_difference(a, b)
    if error is None:
        return None
    if error == 0:
        apart = a.mean != b.mean
    else:
        apart = scipy.stats.ttest_ind(a.values, b.values, equal_var=False).pvalue < SIGNIFICANCE
    if not apart:
        return "level"
    return "above" if a.mean > b.mean else "below"


def error_of_difference(a: Sample, b: Sample) -> float | None:
    """The standard error of a.mean - b.mean, Welch's; None where a or b has a single seed."""
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
