"""What the study `adaptive` came to, in numbers; tables and sentences of them are in `adaptive_tables`.

    results = results_in(records)      task -> Result: what each contender reached at each stopping time
    regret_to(CONTROL, result, 1000)   what RLLC-AdamW is missing to another there

Numbers are test accuracies in %, of a text validation losses in nats. A regret is what is missing to another,
so that it is below 0 where one is better. What had diverged by a stopping time has no number there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rllc.lab.adaptive import (
    CONTENDERS,
    CONTROL,
    COSINE,
    STUDY,
    Adaptive,
    Found,
    Reached,
    at,
    plans_in,
    search,
)
from rllc.lab.errors import Refused
from rllc.lab.evidence.outcomes import Outcome, Sample, compare, error_of_difference
from rllc.lab.records import Record
from rllc.lab.search import among
from rllc.lab.settings import RLLC_ADAMW, RllcAdamW
from rllc.lab.tasks import TextTask

__all__ = [
    "BEST",
    "PEERS",
    "REFERENCES",
    "Regret",
    "Result",
    "Results",
    "best_peer",
    "regret",
    "regret_to",
    "results_in",
    "to_the_best",
    "value",
]

PEERS = tuple(contender for contender in CONTENDERS if contender.fixed is None)
NAMES = {contender.name for contender in PEERS}
BEST = "the best tuned peer"
REFERENCES = (BEST, COSINE, CONTROL)


class Result(NamedTuple):
    """One task: what was planned, and what was reached by (contender, stopping time).

    `left_out` are the runs of RLLC-AdamW on other images or devices, or of other lengths.
    """

    plan: Adaptive
    found: Found
    left_out: int = 0

    @property
    def sign(self) -> Literal[1, -1]:
        """1 where more is better."""
        return -1 if isinstance(self.plan.task, TextTask) else 1

    def samples(self, stop: int) -> dict[str, Sample]:
        """Of each contender that has a number there, one from each seed, in the contenders' order."""
        found = {c.name: self.found.get((c.name, stop)) for c in CONTENDERS}
        samples = {name: _sample(reached, stop) for name, reached in found.items() if reached is not None}
        return {name: values for name, values in samples.items() if values.values}


Results = Mapping[str, Result]


class Regret(NamedTuple):
    """What is missing to another, and whether seeds tell the two apart; no error below two seeds."""

    value: float
    error: float | None  # standard error
    outcome: Outcome | None  # where ours lies
    other: str  # its name


def results_in(records: Sequence[Record]) -> Results:
    """Everything of the study that is in the records, task by task.

    Raises:
        Refused: nothing is.
    """
    plans = plans_in(records)
    if not plans:
        raise Refused(f"there are no runs of {STUDY} here; make some: rllc run {STUDY}")
    return {
        plan.task.name: Result(plan, search(plan, among(records)), _left_out(plan, records)) for plan in plans
    }


def _left_out(plan: Adaptive, records: Sequence[Record]) -> int:
    ours = (record.cell for record in records if record.cell.setting == RllcAdamW())
    here = [cell for cell in ours if cell.task.name == plan.task.name]
    alike = plan.task, plan.device
    return sum((cell.task, cell.device) != alike or cell.steps > plan.steps for cell in here)


def _sample(reached: Reached, stop: int) -> Sample:
    """The number of each seed that had not diverged by then."""
    values = (value(record, stop) for record in reached.records)
    return Sample(tuple(value for value in values if value is not None))


def regret(ours: Sample, theirs: Sample, sign: Literal[1, -1], other: str = "") -> Regret:
    """What ours, on average, is missing to theirs; less is better if the sign is -1."""
    outcome = compare(ours, theirs) if sign > 0 else compare(theirs, ours)
    return Regret(sign * (theirs.mean - ours.mean), error_of_difference(ours, theirs), outcome, other)


def best_peer(result: Result, stop: int) -> str | None:
    """The tuned peer of best mean, on test data: it is chosen as nobody could, against us."""
    means = {name: values.mean for name, values in result.samples(stop).items() if name in NAMES}
    return max(means, key=lambda name: result.sign * means[name], default=None)


def value(record: Record, stop: int) -> float | None:
    """Test accuracy in %, or of a text the validation loss, at a stopping time; None if it had diverged."""
    point = at(record, stop)
    if point is None:
        return None
    return point.valid_loss if isinstance(record.cell.task, TextTask) else 100 * point.on_test_data()[1]


def regret_to(reference: str, result: Result, stop: int) -> Regret | None:
    """Of RLLC-AdamW; None where one of the two has no number."""
    samples, other = result.samples(stop), best_peer(result, stop) if reference == BEST else reference
    if other is None or not {RLLC_ADAMW, other} <= set(samples):
        return None
    return regret(samples[RLLC_ADAMW], samples[other], result.sign, other)


def to_the_best(results: Results) -> dict[str, dict[tuple[str, int], float]]:
    """By contender, on tasks of images: its regret to the best of all by (task, stopping time)."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    for task, result in results.items():
        for stop in result.plan.stops if result.sign > 0 else ():
            means = {name: values.mean for name, values in result.samples(stop).items()}
            for name, mean in means.items():
                found.setdefault(name, {})[task, stop] = max(means.values()) - mean
    return found
