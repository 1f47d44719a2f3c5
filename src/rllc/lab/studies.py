"""The experiments of the paper and around it: which optimizers, on which tasks, with which rates.

STUDIES["table1"]              a Study
rows(study, records)           a Row for each task and optimizer of which there are runs in full
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rllc.lab.cells import points_for
from rllc.lab.optimizers import CONTROLS, PAPER, Rates, paper_trials, trials
from rllc.lab.records import Record
from rllc.lab.selection import Row, choose, full_length, on_same_data, usual_device
from rllc.lab.settings import Setting
from rllc.lab.tasks import TASKS

__all__ = ["PAPER_TASKS", "STUDIES", "Study", "row_of", "rows", "steps_of"]

PAPER_TASKS = (
    "mnist-mlp",
    "mnist-conv",
    "fashion-mlp",
    "fashion-conv",
    "cifar10-mlp",
    "cifar10-conv",
    "cifar10-resnet20",
)


@dataclass(frozen=True)
class Study:
    """Optimizers by tasks. Rates are the paper's grids, or `rates` if given; steps those of the task."""

    name: str
    title: str
    tasks: tuple[str, ...]
    optimizers: tuple[str, ...]
    rates: Rates | None = None
    steps: int | None = None

    def trials(self, optimizer: str) -> tuple[Setting, ...]:
        """The settings among which validation data choose."""
        return paper_trials(optimizer) if self.rates is None else trials(optimizer, self.rates)


_MOMENTA = tuple(f"M({0.9 - 0.1 * j:.1f})" for j in range(8))

STUDIES = {
    study.name: study
    for study in (
        Study("table1", "Tables 1 and 2 of the paper", PAPER_TASKS, PAPER),
        Study("controls", "What the paper lacks: schedules, averages, other learners", PAPER_TASKS, CONTROLS),
        Study(
            "units",
            "Accuracy and cost by the number of memory units",
            ("fashion-mlp",),
            tuple(" + ".join(_MOMENTA[:k]) for k in range(1, len(_MOMENTA) + 1)),
            Rates((0.01, 0.03, 0.1), (0.003, 0.01)),
            steps=3000,
        ),
        Study(
            "precision",
            "Accuracy with memory units in fewer bytes",
            ("fashion-mlp", "cifar10-conv"),
            ("M(0.9) + M(0.0)", "M(0.9) + M(0.0), bfloat16", "M(0.9) + M(0.0), float8"),
            Rates((0.02, 0.05), (0.003, 0.01)),  # not the paper's: a record is of all studies that name it
            steps=3000,
        ),
        Study(
            "shakespeare",
            "A language model on tiny Shakespeare",
            ("shakespeare-gpt",),
            (
                *("SGD", "momentum SGD", "Adam", "Adam + cosine"),
                *("M(0.9)", "M(0.9) + M(0.0)", "M(0.9) + M(0.8) + M(0.7)", "M(0.99) + M(0.9) + M(0.0)"),
            ),
            Rates(),
            steps=1000,
        ),
    )
}


def rows(study: Study, records: Sequence[Record]) -> dict[tuple[str, str], Row]:
    """(task, optimizer) -> Row, from the records of the study's own settings.

    Runs in full have the study's number of steps, or else the task's, or, where there are none, as many as
    most runs of the task, and are on one data set. Of those with seed 0 validation data choose; all seeds of
    the chosen setting are in the row.
    """
    found, records = {}, on_same_data(records)
    for task in study.tasks:
        made = _by_setting(record for record in records if record.cell.task.name == task)
        tried = {optimizer: _tried(study.trials(optimizer), made) for optimizer in study.optimizers}
        lengths = [r.cell.steps for ours in tried.values() for r in ours if _is_in_full(r)]
        steps = full_length(lengths, study.steps or TASKS[task].steps)
        for optimizer, ours in tried.items():
            row = row_of(optimizer, ours, [r for r in ours if _is_in_full(r) and r.cell.steps == steps])
            if row.in_full:
                found[task, optimizer] = row
    return found


def steps_of(records: Sequence[Record]) -> int:
    """The number of steps of the longest runs; 0 if there are none."""
    return max((record.cell.steps for record in records), default=0)


def _by_setting(records: Iterable[Record]) -> dict[Setting, list[Record]]:
    """The records of each setting, by seed."""
    found: dict[Setting, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.cell.seed):
        found.setdefault(record.cell.setting, []).append(record)
    return found


def _tried(settings: tuple[Setting, ...], made: dict[Setting, list[Record]]) -> list[Record]:
    """The records of these settings, in the settings' order, then by seed."""
    return [record for setting in dict.fromkeys(settings) for record in made.get(setting, ())]


def _is_in_full(record: Record) -> bool:
    """Runs of a rung are measured less often, and not on test data."""
    return record.cell.tested and record.cell.points == points_for(record.cell.task, record.cell.steps)


def _all_seeds(best: Record, ended: Sequence[Record]) -> tuple[Record, ...]:
    """The best run with each of its seeds, on the device that has most of them: none counts twice."""
    same = [r for r in ended if replace(r.cell, seed=best.cell.seed, device=best.cell.device) == best.cell]
    device = usual_device(record.cell.device for record in same)
    return tuple(record for record in same if record.cell.device == device)


def row_of(optimizer: str, records: Sequence[Record], ended: Sequence[Record]) -> Row:
    """The row of an optimizer's records on one task, of which `ended` are those in full."""
    in_full = dict.fromkeys(record.cell.setting for record in ended if record.cell.seed == 0)
    best = choose([record for record in ended if record.cell.seed == 0])
    chosen = _all_seeds(best, ended) if best else ()
    tried = dict.fromkeys(record.cell.setting for record in records if record.cell.seed == 0)
    return Row(optimizer, tuple(tried), chosen, tuple(in_full))
