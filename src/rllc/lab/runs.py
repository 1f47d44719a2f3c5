"""`rllc runs list|show`, and how all commands read a folder of records.

    gather("runs")        its records, each run once, and what could not be read
    everything("runs")    the same with all that is there, perhaps twice or nothing

Records lie in FOLDER/records, or in FOLDER itself, or FOLDER is one Parquet file of many.
"""

from __future__ import annotations

import itertools
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from rllc.lab import checkpoints, one_run, records
from rllc.lab.cells import Cell, digest
from rllc.lab.errors import Damaged, Refused
from rllc.lab.files import Folder, split
from rllc.lab.options import RunsList, RunsShow
from rllc.lab.records import Record
from rllc.lab.selection import best_point, choose, finished
from rllc.lab.texts import say

__all__ = [
    "SHOWN_DIGITS",
    "everything",
    "gather",
    "kind",
    "list_runs",
    "nothing",
    "once",
    "places",
    "readable",
    "show_run",
    "tell",
]

WIDE = 200
SHOWN_DIGITS = 8


def gather(folder: str) -> tuple[list[Record], list[Damaged]]:
    """The records of a folder or file, each run once: of two, the one made first. And those not readable.

    Raises:
        Refused: there is nothing to read, or nothing that can be read.
    """
    found, damaged = everything(folder)
    if not found:
        raise Refused(nothing(folder, damaged))
    return list(once(found).values()), damaged


def readable(folder: str) -> list[Record]:
    """As `gather`; what cannot be read is told on stderr.

    Raises:
        Refused: as `gather`.
    """
    found, damaged = gather(folder)
    for reason in damaged:
        print(f"rllc: {reason}; left out", file=sys.stderr)
    return found


def everything(folder: str) -> tuple[list[Record], list[Damaged]]:
    """Everything that is there, perhaps twice, and what cannot be read.

    Raises:
        Refused: the place cannot be read, or is a file of something else.
    """
    try:
        if folder.endswith(records.ENDING):
            return _of_file(*split(folder))
        (inner, lost), (outer, lost_too) = map(records.read_all, places(folder))
    except OSError as reason:
        raise Refused(f"cannot read {folder} ({reason})") from reason
    return inner + outer, lost + lost_too


def places(folder: str) -> tuple[Folder, Folder]:
    """Where the records of a folder may lie."""
    return Folder(folder) / "records", Folder(folder)


def _of_file(folder: Folder, name: str) -> tuple[list[Record], list[Damaged]]:
    try:
        return records.sorted_out(folder.read(name), folder.path(name)) if folder.exists(name) else ([], [])
    except records.Other as reason:
        raise Refused(f"{reason}; name another file") from reason
    except Damaged as reason:
        return [], [reason]


def once(found: Iterable[Record]) -> dict[Cell, Record]:
    """Each cell's record; of several the one made first, and of those the first."""
    return {record.cell: record for record in reversed(sorted(found, key=lambda record: record.made))}


def nothing(folder: str, damaged: Sequence[Damaged]) -> str:
    """What to say of a folder without records, or without readable ones."""
    remedy = f"name another folder, or make some: rllc run table1 --out {shlex.quote(folder)}"
    if damaged:
        return f"none of the {len(damaged)} records in {folder} can be read: {damaged[0]}; {remedy}"
    if begun := len(checkpoints.names(Folder(folder) / "checkpoints")):
        return f"no run has ended in {folder} yet; {begun} are on their way: repeat the `rllc run` command"
    return f"there are no records in {folder}; {remedy}"


def list_runs(options: RunsList, console: Console) -> None:
    """Print a line for each task, optimizer and number of steps, and one for each record not readable.

    Raises:
        Refused: there are no records.
    """
    found, damaged = gather(options.folder)
    shown, roomy = Table(box=box.SIMPLE_HEAD), _roomy(console)
    columns = LIST_COLUMNS if roomy.width >= ALL_COLUMNS else NARROW_COLUMNS
    for title in columns:
        shown.add_column(title, justify="left" if title in LIST_COLUMNS[:2] else "right", overflow="fold")
    for (task, optimizer, steps, device), group in itertools.groupby(sorted(found, key=kind), kind):
        row = task, optimizer, f"{steps:,}", device, *_summary(list(group))
        named = dict(zip(LIST_COLUMNS, row, strict=True))
        shown.add_row(*(named[title] for title in columns))
    roomy.print(shown)
    tell(console, damaged)
    hours = sum(record.result.seconds for record in found) / 3600
    say(console, f"{len(found):,} runs, {hours:.1f} hours of training, {len(damaged)} records not readable")


def show_run(options: RunsShow, console: Console) -> None:
    """Print everything about the run whose digest begins with these digits.

    Raises:
        Refused: there is no such run, or more than one.
    """
    found, _ = gather(options.folder)
    one_run.show(_only(options, {digest(record.cell): record for record in found}), console)


LIST_COLUMNS = (
    *("task", "optimizer", "steps", "device", "runs", "settings", "seeds", "diverged"),
    *("best valid", "test there", "ms/step", "hours", "best run"),
)
NARROW_COLUMNS = ("task", "optimizer", "steps", "runs", "best valid", "best run")  # all that 80 columns take
ALL_COLUMNS = 140


def kind(record: Record) -> tuple[str, str, int, str]:
    """Task, optimizer, steps, device: what runs in one line of the list have in common."""
    cell = record.cell
    return cell.task.name, cell.setting.name, cell.steps, cell.device


def _summary(group: Sequence[Record]) -> tuple[str, ...]:
    """The text of LIST_COLUMNS from "runs" on; accuracies in %, ms/step a median."""
    best, ended = choose(group), finished(group)
    counts = (
        len(group),
        len({record.cell.setting for record in group}),
        len({record.cell.seed for record in group}),
        len(group) - len(ended),
    )
    hours = f"{sum(record.result.seconds for record in group) / 3600:.2f}"
    if best is None:
        return (*map(str, counts), "", "", "", hours, digest(group[0].cell)[:SHOWN_DIGITS])
    point = best_point(best)
    return (
        *map(str, counts),
        f"{100 * point.valid_accuracy:.2f}",
        "" if point.test_accuracy is None else f"{100 * point.test_accuracy:.2f}",
        f"{statistics.median(record.result.ms_per_step for record in ended):.2f}",
        hours,
        digest(best.cell)[:SHOWN_DIGITS],
    )


def _only(options: RunsShow, named: dict[str, Record]) -> Record:
    digits = options.digest.lower()
    fitting = sorted(name for name in named if name.startswith(digits))
    if not fitting:
        raise Refused(
            f"no run in {options.folder} has a digest that begins with {options.digest!r}; see rllc runs list"
        )
    if len(fitting) > 1:
        some = ", ".join(name[: len(digits) + SHOWN_DIGITS] for name in fitting[:3])
        raise Refused(f"{len(fitting)} runs have a digest that begins with {options.digest!r}: {some}, ...")
    return named[fitting[0]]


def _roomy(console: Console) -> Console:
    """Where it is a pipe, one with room for long lines."""
    return console if console.is_terminal else Console(file=console.file, width=WIDE, markup=False)


def tell(console: Console, damaged: Sequence[Damaged]) -> None:
    """A line for each record that cannot be read."""
    for reason in damaged:
        say(console, str(reason))
