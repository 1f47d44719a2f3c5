"""What is true of every record that we write, asked of each that is read: others may have written it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from rllc.lab.cells import DEVICES, MOST_SEEDS, evaluation_steps
from rllc.lab.settings import Rllc, RllcAdamW, Rules, Setting, Stored
from rllc.lab.tasks import Task, TextTask

if TYPE_CHECKING:
    from rllc.lab.records import Record

__all__ = ["demands"]

MOST_POINTS = 10_000  # evaluations of a run, far more than any has


def demands(record: Record) -> Iterator[tuple[bool, str]]:
    """What is true of every record that we write, and what to say if it is not; each relies on those before.

    A record that somebody else has written must not be what makes a table of all others fail.
    """
    cell, result, versions = record.cell, record.result, record.versions
    points, tested = result.points, [(point.test_loss, point.test_accuracy) for point in result.points]
    yield isinstance(cell.task, Task | TextTask) and isinstance(cell.task.name, str), "it has no task"
    yield isinstance(cell.setting, Setting), "it has no optimizer"
    yield {type(n) for n in (cell.seed, cell.steps, cell.points)} == {int}, "its seed or steps are no numbers"
    yield _is_typed(cell), "a part of its configuration is of another type"
    yield 0 <= cell.seed < MOST_SEEDS, f"its seed is not from 0 to {MOST_SEEDS - 1}"
    yield 0 < cell.points <= min(cell.steps, MOST_POINTS), "it has no steps, or too many evaluations"
    yield cell.device in DEVICES, f"its device is none of {', '.join(DEVICES)}"
    yield all(n > 0 for n in vars(cell.task).values() if type(n) is int), "its task has nothing to learn from"
    yield isinstance(versions, dict) and _are_texts(*versions.values()), "its versions are no texts"
    yield _are_texts(record.made, record.hardware), "it does not say when or on what it was made"
    yield _are_in(0, math.inf, result.ms_per_step, result.seconds), "its times are no numbers"
    steps = [point.step for point in points]
    yield steps != [] and steps == sorted(set(steps)), "its evaluations are not in order"
    asked = evaluation_steps(cell.steps, cell.points)
    yield steps == asked[: len(steps)], "its evaluations are not where its configuration has them"
    yield record.diverged or steps[-1] == cell.steps, f"it ends at step {steps[-1]}, not {cell.steps}"
    sizes, law = {len(point.law) for point in points}, [part for point in points for part in point.law]
    yield len(sizes) == 1, "its law changes its length"
    yield _has_law_of(cell.setting, sizes.pop()), "its law has not a number for each unit"
    yield None not in law and (record.diverged or _are_in(-math.inf, math.inf, *law)), "its law is no number"
    yield cell.tested or set(tested) == {(None, None)}, "it was not to be tested"
    measured = [(p.valid_loss, p.valid_accuracy) for p in points] + (tested if cell.tested else [])
    losses, accuracies = zip(*measured, strict=True)
    yield _are_in(-math.inf, math.inf, *losses), "a loss is no number"
    yield _are_in(0, 1, *accuracies), "an accuracy is no number from 0 to 1"


def _is_typed(value: Any) -> bool:
    """Whether each field of a dataclass, and of those within it, has the type it is declared with."""
    hints = _hints(value.__class__)
    return all(_fits(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value))


_hints = functools.cache(get_type_hints)


def _fits(value: Any, hint: Any) -> bool:
    parts = get_args(hint)
    if get_origin(hint) is tuple:
        kinds = parts[:1] * len(value) if parts[-1] is ... and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(kinds) == len(value) and all(map(_fits, value, kinds))
    if parts:  # a union
        return any(_fits(value, part) for part in parts)
    if dataclasses.is_dataclass(hint):
        return type(value) is hint and _is_typed(value)
    return type(value) in ((int, float) if hint is float else (hint,))


def _has_law_of(setting: Setting, size: int) -> bool:
    """Whether its law has so many numbers; of laws for several scopes there may be any number."""
    match setting:
        case Rllc(law=law) | Stored(base=Rllc(law=law)) | Rules(law=law, scope="all"):
            return size == len(law)
        case Rules(law=law):
            return size > 0 and size % len(law) == 0
        case RllcAdamW():
            return size == 1
    return size == 0


def _are_texts(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def _are_in(low: float, high: float, *values: float | None) -> bool:
    """Whether all are finite numbers in this interval."""
    return all(x is not None and math.isfinite(x) and low <= x <= high for x in values)
