"""`rllc compare`: rates chosen on validation data, several seeds of the chosen, a table and a picture.

plan(options)     what will be done, everything checked
outcome(plan)     one Row for each optimizer, from records, which are made where they are missing
table(rows)       the numbers as text
"""

from __future__ import annotations

import difflib
import importlib.metadata
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rllc.lab import data, figures
from rllc.lab.errors import Refused
from rllc.lab.files import replacing
from rllc.lab.optimizers import DEFAULTS, Rates, Rllc, Setting, named, trials
from rllc.lab.options import Compare
from rllc.lab.records import Record, read
from rllc.lab.selection import Row, best_point, choose, finished
from rllc.lab.sweep import Pool, cores, missing, pool, sweep
from rllc.lab.tasks import TASKS, Task
from rllc.lab.training import Cell, points_for

__all__ = ["Plan", "main", "notes", "outcome", "plan", "table"]

COLUMNS = ("optimizer", "lr", "law lr", "last valid", "last test", "best valid", "test there", "ms/step")


@dataclass(frozen=True)
class Plan:
    """What a comparison does; every entry is checked and resolved."""

    task: Task
    optimizers: tuple[str, ...]
    rates: Rates
    seeds: int
    steps: int
    device: str
    workers: int
    out: Path
    fresh: bool

    @property
    def records(self) -> Path:
        """The folder of the records."""
        return self.out / "records"

    def cell(self, setting: Setting, seed: int) -> Cell:
        """The run of one setting with one seed."""
        return Cell(self.task, setting, seed, self.steps, self.device, points_for(self.steps))


def main(options: Compare, console: Console) -> None:
    """Do what `rllc compare` was asked.

    Raises:
        Refused: an option makes no sense, data are missing or altered, the output cannot be written.
        Broken: a worker was killed, or the disk is full.
    """
    plan_ = plan(options)
    data.load(plan_.task.data)  # before anything starts: it may be missing, or have to be decoded
    _make_writable(plan_.records)
    rows = outcome(plan_, console)
    console.print(_rich_table(plan_, rows))
    console.print(notes(plan_, rows))
    console.print(
        f"picture  {_write_picture(plan_, rows)}\ntable    {_write_markdown(plan_, rows)}", style="bold"
    )


def plan(options: Compare) -> Plan:
    """The options checked.

    Raises:
        Refused: one of them makes no sense.
    """
    task = _task(options.task)
    for name, value in (
        ("--seeds", options.seeds),
        ("--steps", options.steps),
        ("--workers", options.workers),
    ):
        if value is not None and value < 1:
            raise Refused(f"{name} must be 1 or more, got {value}")
    for name, rates in (("--lr", options.lr), ("--law-lr", options.law_lr)):
        _check_rates(name, rates)
    if not os.access(_nearest_existing(options.out), os.W_OK) or not _nearest_existing(options.out).is_dir():
        raise Refused(f"cannot write to {options.out}; choose another folder with --out")
    return Plan(
        task,
        tuple(dict.fromkeys(map(named, options.optimizers or DEFAULTS))),
        Rates(tuple(dict.fromkeys(options.lr)), tuple(dict.fromkeys(options.law_lr))),
        options.seeds,
        options.steps or task.steps,
        _device(options.device),
        options.workers or cores(),
        options.out,
        options.fresh,
    )


def outcome(plan: Plan, console: Console) -> list[Row]:
    """One row for each optimizer, in the plan's order; runs what has no record yet."""
    tried = {
        name: [plan.cell(setting, 0) for setting in trials(name, plan.rates)] for name in plan.optimizers
    }
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    times = TimeElapsedColumn(), TextColumn("· left"), TimeRemainingColumn(elapsed_when_finished=False)
    with pool(plan.workers) as workers, Progress(*columns, *times, console=console, transient=True) as bar:
        made = _Maker(plan, workers, bar)
        later = (plan.seeds - 1) * len(tried)
        found = made.records("choosing rates", [cell for cells in tried.values() for cell in cells], later)
        chosen = {name: choose([found[cell] for cell in cells]) for name, cells in tried.items()}
        finals = {name: _all_seeds(plan, best) for name, best in chosen.items()}
        further = [cell for cells in finals.values() for cell in cells if cell not in found]
        found |= made.records("all seeds", further, 0)
    return [
        Row(name, tuple(c.setting for c in tried[name]), tuple(found[cell] for cell in finals[name]))
        for name in plan.optimizers
    ]


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The text of each row, for COLUMNS; accuracies in %, mean ± standard deviation over seeds."""
    return [_texts(row) for row in rows]


def notes(plan: Plan, rows: Sequence[Row]) -> str:
    """What the table's numbers are, in sentences."""
    said = [
        f"{plan.task.name}: {plan.steps:,} steps of {plan.task.batch} images. Accuracies in %,"
        f" {_over_seeds(plan.seeds)}; 'best valid' is the evaluation with the best validation accuracy,"
        " 'test there' the test accuracy at it.",
        _choice(rows),
    ]
    if any(_at_edge(row) for row in rows):
        said.append("* is the largest or smallest rate tried: a wider grid may do better.")
    said.append(f"ms/step is one training step without evaluation, with {plan.workers} runs at a time.")
    return " ".join(filter(None, said))


def _over_seeds(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"


def _choice(rows: Sequence[Row]) -> str:
    counts = sorted({len(row.tried) for row in rows})
    if counts == [1]:
        return ""
    tried = " or ".join(map(str, counts))
    return f"Rates were chosen on seed 0 by best validation accuracy, from {tried} trials for each optimizer."


class _Maker:
    """Makes the records a plan lacks, with a progress bar over training steps."""

    def __init__(self, plan: Plan, workers: Pool, bar: Progress) -> None:
        self.plan = plan
        self.workers = workers
        self.bar = bar
        self.shown = bar.add_task("", total=None)

    def records(self, what: str, cells: list[Cell], later: int) -> dict[Cell, Record]:
        """The records of these cells; about `later` more runs are expected after them."""
        todo = cells if self.plan.fresh else missing(self.plan.records, cells, self.say)
        total = self.workers.steps.value + self.plan.steps * (len(todo) + later)
        self.bar.update(self.shown, description=f"{self.plan.task.name}: {what}", total=total)

        def progress(steps: int) -> None:
            self.bar.update(self.shown, completed=steps)

        sweep(self.workers, self.plan.records, todo, progress)
        return {cell: read(self.plan.records, cell) for cell in cells}

    def say(self, line: str) -> None:
        """One line above the progress bar."""
        self.bar.console.print(line, markup=False, highlight=False)


def _all_seeds(plan: Plan, best: Record | None) -> list[Cell]:
    return [] if best is None else [plan.cell(best.cell.setting, seed) for seed in range(plan.seeds)]


def _texts(row: Row) -> tuple[str, ...]:
    if not row.records:
        return (row.name, "all", "", "diverged", "", "", "", "")
    setting, ended = row.records[0].cell.setting, finished(row.records)
    last, best = [r.result.points[-1] for r in ended], [best_point(r) for r in ended]
    lost = len(row.records) - len(ended)
    return (
        row.name + (f" ({lost} of {len(row.records)} seeds diverged)" if lost else ""),
        f"{setting.lr:g}" + ("*" if _at_edge(row) else ""),
        f"{setting.law_lr:g}" if isinstance(setting, Rllc) else "",
        _percent([p.valid_accuracy for p in last]),
        _percent([p.test_accuracy for p in last]),
        _percent([p.valid_accuracy for p in best]),
        _percent([p.test_accuracy for p in best]),
        f"{statistics.mean(r.result.ms_per_step for r in ended):.2f}",
    )


def _percent(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def _at_edge(row: Row) -> bool:
    """Whether the chosen learning rate is the smallest or the largest of several tried."""
    tried = {setting.lr for setting in row.tried}
    return bool(row.records) and len(tried) > 1 and row.records[0].cell.setting.lr in (min(tried), max(tried))


def _rich_table(plan: Plan, rows: Sequence[Row]) -> Table:
    shown = Table(title=f"{plan.task.name} · {plan.steps:,} steps · {plan.seeds} seeds")
    for i, name in enumerate(COLUMNS):
        shown.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for texts in table(rows):
        shown.add_row(*texts)
    return shown


def _write_markdown(plan: Plan, rows: Sequence[Row]) -> Path:
    path = plan.out / f"compare-{plan.task.name}.md"
    lines = [COLUMNS, ("---",) + ("---:",) * (len(COLUMNS) - 1), *table(rows)]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    made_with = f"rllc {importlib.metadata.version('rllc')}, torch {torch.__version__}, {plan.device}."
    text = f"{body}\n\n{notes(plan, rows)} Made with {made_with}\n\n![curves](compare-{plan.task.name}.png)\n"
    with replacing(path) as file:
        file.write(text.encode())
    return path


def _write_picture(plan: Plan, rows: Sequence[Row]) -> Path:
    path = plan.out / f"compare-{plan.task.name}.png"
    seeds = "1 seed" if plan.seeds == 1 else f"{plan.seeds} seeds"
    title = f"{plan.task.name}: {plan.steps:,} steps, {seeds}"
    with replacing(path) as file:
        figures.comparison(rows, title).savefig(file, format="png", dpi=160)
    return path


def _task(name: str) -> Task:
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise Refused(f"unknown task {name!r}; {meant}known are {', '.join(TASKS)}")


def _check_rates(name: str, rates: Sequence[float]) -> None:
    for rate in rates:
        if not (rate >= 0 and math.isfinite(rate)):
            raise Refused(f"{name} must be a finite number, 0 or more, got {rate:g}")


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise Refused("PyTorch sees no GPU here; use --device cpu")
    return name


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "probe"):
            pass
        (folder / "probe").unlink()
    except OSError as reason:
        raise Refused(f"cannot write to {folder} ({reason.strerror}); choose another --out") from reason
