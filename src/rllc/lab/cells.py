"""What a run is asked and what it answers: a cell, and the result of training it.

    cell = Cell(TASKS["digits-mlp"], Adam(1e-3), seed=0, steps=1000)
    canonical(cell)       the cell as JSON, from which cell_of makes it again
    digest(cell)          the name of its record

Everything that changes the numbers of a run is in its cell and nothing else is: equal digests, equal runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rllc.lab.data import Source, Text
from rllc.lab.peers import AdamHD, AdEMAMix, DAdaptation, Mechanic, Muon, Prodigy
from rllc.lab.settings import (
    SGD,
    Adam,
    Averaged,
    Cosine,
    Exponential,
    Hypergradient,
    Polynomial,
    Rllc,
    RllcAdamW,
    Rules,
    ScheduleFree,
    Setting,
    Stored,
)
from rllc.lab.tasks import Task, TextTask
from rllc.law import Cutoff, GramianRidge, Ridge

__all__ = [
    "DEVICES",
    "MOST_SEEDS",
    "Cell",
    "Point",
    "Result",
    "canonical",
    "cell_of",
    "digest",
    "digest_of",
    "evaluation_steps",
    "points_for",
]

UNSAID = "not in the JSON at its default"  # of a field added later: older cells keep their digests
DEVICES = "cpu", "cuda"
MOST_SEEDS = 1000  # of a setting: 0, 1, ..., 999
FORMAT = 1  # raise it when the engine changes a run beyond rounding: old records are then no longer found


@dataclass(frozen=True)
class Cell:
    """Everything that determines the numbers of one run. `device` is one of DEVICES.

    With `tested` false only validation data are measured, which is all that choosing a rate needs.
    """

    task: Task | TextTask
    setting: Setting
    seed: int
    steps: int
    device: str = "cpu"
    points: int = 50
    tested: bool = field(default=True, metadata={UNSAID: True})


class Point(NamedTuple):
    """What is measured after `step` steps: mean losses in nats, accuracies in [0, 1], the law L (k numbers).

    train_loss is the mean over the steps since the point before, None at step 0; test_loss and
    test_accuracy are None where the cell is not tested; law is empty where the optimizer has none.
    """

    step: int
    train_loss: float | None
    valid_loss: float
    valid_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    law: tuple[float, ...]

    def on_test_data(self) -> tuple[float, float]:
        """Test loss and test accuracy.

        Raises:
            ValueError: they were not measured.
        """
        if self.test_loss is None or self.test_accuracy is None:
            raise ValueError(f"test data were not measured at step {self.step}: the cell is not `tested`")
        return self.test_loss, self.test_accuracy


class Result(NamedTuple):
    """A run's points, the step by which its loss was no longer finite (or None), and its times.

    ms_per_step is the median over chunks of the time of one training step (batch, gradient, optimizer)
    without evaluation; seconds is all of it.
    """

    points: tuple[Point, ...]
    diverged_at: int | None
    ms_per_step: float
    seconds: float


def points_for(task: Task | TextTask, steps: int) -> int:
    """How many evaluations suit a run: 50, fewer in short runs, which they would otherwise dominate."""
    affordable = max(2, steps // task.evaluation_cost)
    return min(50, max(10, steps // 10), affordable, steps)


def evaluation_steps(steps: int, points: int) -> list[int]:
    """0 and about `points` further steps, evenly spread, the last one `steps`."""
    return sorted({0} | {max(1, round(steps * i / points)) for i in range(1, points + 1)})


def canonical(cell: Cell) -> str:
    """The cell as JSON: the same text for the same cell, another for any other."""
    return json.dumps({"format": FORMAT} | _plain(cell), sort_keys=True, allow_nan=False)


def digest(cell: Cell) -> str:
    """32 hexadecimal digits that name the cell."""
    return digest_of(canonical(cell))


def digest_of(text: str) -> str:
    """The digest of the cell of which this is the canonical text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cell_of(text: str) -> Cell:
    """The cell of which this is the canonical text.

    Raises:
        ValueError: it is none, or of another version of the engine.
    """
    try:
        fields = json.loads(text)
        cell = Cell(
            **{name: _typed(value) for name, value in fields.items() if name not in ("format", "type")}
        )
        same = canonical(cell) == text
    except (KeyError, TypeError, AttributeError) as reason:
        raise ValueError(f"not a configuration ({reason})") from reason
    if not same:
        raise ValueError("a configuration of another version")
    return cell


# By name, for reading configurations: nothing else is ever made from a text.
_TYPES: dict[str, Callable[..., Any]] = {
    kind.__name__: kind
    for kind in (
        *(Task, Source, TextTask, Text),
        *(SGD, Adam, Rllc, Stored, RllcAdamW, Rules, Hypergradient, ScheduleFree),
        *(Prodigy, DAdaptation, Mechanic, AdEMAMix, Muon, AdamHD),
        *(Cosine, Averaged, Exponential, Polynomial),
        *(GramianRidge, Ridge, Cutoff),
    )
}


def _typed(value: Any) -> Any:
    """The inverse of `_plain`, of what JSON made of it."""
    if isinstance(value, dict):
        fields = {name: _typed(part) for name, part in value.items() if name != "type"}
        return _TYPES[value["type"]](**fields)
    return tuple(map(_typed, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries that name their type; other values as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        said = (f for f in dataclasses.fields(value) if not _is_unsaid(f, getattr(value, f.name)))
        return {"type": type(value).__name__} | {f.name: _plain(getattr(value, f.name)) for f in said}
    return value


def _is_unsaid(of: dataclasses.Field[Any], value: Any) -> bool:
    return UNSAID in of.metadata and value == of.default
