"""One run in full, for a terminal: where it comes from, its settings, its curve, its law."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rllc.lab.cells import Cell, Point, canonical, digest
from rllc.lab.records import Record
from rllc.lab.selection import best_point, reading
from rllc.lab.texts import say

__all__ = ["show", "versions"]

SHOWN_POINTS = 11
BARS = "▁▂▃▄▅▆▇█"


def show(record: Record, console: Console) -> None:
    """Print everything there is to know about a run."""
    cell, points = record.cell, record.result.points
    accuracies = [point.valid_accuracy for point in points]
    say(console, f"{_title(cell)}, {cell.steps:,} steps on {cell.device}: {_outcome(record)}\n")
    console.print(_pairs(_origin(record)), _pairs(_flat(json.loads(canonical(cell)))), _curve(points))
    say(console, f"valid accuracy  {_sparkline(accuracies)}  {_span(accuracies)}")
    if points[0].law:
        say(console, f"law  {_law(points[0])} -> {_law(points[-1])}")


def versions(record: Record) -> str:
    """With what it was made."""
    return ", ".join(f"{name} {version}" for name, version in record.versions.items())


def _title(cell: Cell) -> str:
    return f"{cell.setting.name} on {cell.task.name}, seed {cell.seed}"


def _outcome(record: Record) -> str:
    if record.diverged:
        return f"diverged by step {record.result.diverged_at:,}"
    best = best_point(record)
    if not record.cell.tested:
        return f"{100 * best.valid_accuracy:.2f} % on validation data at step {best.step:,}; not tested"
    at_end, there = (f"{100 * reading(record, which)[1]:.2f} %" for which in ("last", "validation"))
    return f"{at_end} on test data at the end, {there} at step {best.step:,}, where validation is best"


def _origin(record: Record) -> Iterator[tuple[str, str]]:
    result = record.result
    yield "digest", digest(record.cell)
    yield "made", f"{record.made} in {result.seconds:.1f} s, {result.ms_per_step:.2f} ms a step"
    yield "hardware", record.hardware
    yield "versions", versions(record)
    yield "commit", record.commit or "none: not made in a git checkout"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """A JSON object as pairs of dotted names and texts."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else key)
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _pairs(pairs: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, text in pairs:
        grid.add_row(name, text)
    grid.add_row("", "")
    return grid


def _curve(points: Sequence[Point]) -> Table:
    last = len(points) - 1
    places = sorted({round(i * last / (SHOWN_POINTS - 1)) for i in range(SHOWN_POINTS)})
    shown = Table(box=box.SIMPLE_HEAD)
    for title in ("step", "train loss", "valid loss", "valid %", "test loss", "test %", "law"):
        shown.add_column(title, justify="right")
    for step, train, valid_loss, valid, test_loss, test, law in (points[place] for place in places):
        losses = ("" if loss is None else f"{loss:.4f}" for loss in (train, valid_loss, test_loss))
        first, second, third = losses
        tested = "" if test is None else f"{100 * test:.2f}"
        texts = f"{step:,}", first, second, f"{100 * valid:.2f}", third, tested
        shown.add_row(*texts, " ".join(f"{weight:.4f}" for weight in law))
    return shown


def _sparkline(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low or 1)
    return "".join(BARS[round((value - low) * scale)] for value in values)


def _span(accuracies: Sequence[float]) -> str:
    return f"{100 * min(accuracies):.2f} to {100 * max(accuracies):.2f} %"


def _law(point: Point) -> str:
    return f"({', '.join(f'{weight:.4g}' for weight in point.law)})"
