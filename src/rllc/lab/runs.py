"""`rllc runs list|show|merge|prune`: keeping house in a folder of records.

    gather("runs")     its records, each run once, and what could not be read

Records lie in FOLDER/records, or in FOLDER itself, or FOLDER is one Parquet file of many.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rllc.lab import checkpoints, checks, one_run, records
from rllc.lab.cells import Cell, digest
from rllc.lab.errors import Broken, Damaged, Refused
from rllc.lab.files import Folder, split
from rllc.lab.one_run import say
from rllc.lab.options import Merge, Prune, RunsList, RunsShow
from rllc.lab.records import Foreign, Record
from rllc.lab.selection import best_point, choose, finished

__all__ = ["gather", "list_runs", "merge", "prune", "show_run"]

WIDE = 200
SHOWN_DIGITS = 8
UNKNOWN = ImportError, ValueError  # what fsspec raises for a protocol it does not know
RECORD = re.compile(r"[0-9a-f]{32}\.parquet")  # what is named otherwise is not ours to delete


def gather(folder: str) -> tuple[list[Record], list[Damaged]]:
    """The records of a folder or file, each run once: of two, the one made first. And those not readable.

    Raises:
        Refused: there is nothing to read, or nothing that can be read.
    """
    found, damaged = _all(folder)
    if not found:
        raise Refused(_nothing(folder, damaged))
    return list(_once(found).values()), damaged


def list_runs(options: RunsList, console: Console) -> None:
    """Print a line for each task, optimizer and number of steps, and one for each record not readable.

    Raises:
        Refused: there are no records.
    """
    found, damaged = gather(options.folder)
    shown = Table(box=box.SIMPLE_HEAD)
    for i, title in enumerate(LIST_COLUMNS):
        shown.add_column(title, justify="left" if i < 2 else "right", overflow="fold")
    for (task, optimizer, steps, device), group in itertools.groupby(sorted(found, key=_kind), _kind):
        shown.add_row(task, optimizer, f"{steps:,}", device, *_summary(list(group)))
    _roomy(console).print(shown)
    _tell(console, damaged)
    hours = sum(record.result.seconds for record in found) / 3600
    say(console, f"{len(found):,} runs, {hours:.1f} hours of training, {len(damaged)} records not readable")


def show_run(options: RunsShow, console: Console) -> None:
    """Print everything about the run whose digest begins with these digits.

    Raises:
        Refused: there is no such run, or more than one.
    """
    found, _ = gather(options.folder)
    one_run.show(_only(options, {digest(record.cell): record for record in found}), console)


def merge(options: Merge, console: Console) -> None:
    """Write the union of the records, of two of one run the one made first; the target's own stay.

    With a folder as target the checkpoints of unfinished runs come along.

    Raises:
        Refused: there are no records, or the target cannot be written.
        Broken: the disk is full; what was in the target is still there.
    """
    if not options.folders:
        raise Refused("no folder given; name those to merge: rllc runs merge FOLDER ... --out FOLDER")
    gathered = [_source(folder) for folder in options.folders]
    here = _target(options.out, console)
    _tell(console, [damaged for _, lost in gathered for damaged in lost])
    arriving = [record for found, _ in gathered for record in found]
    kept = _once([*here, *arriving])
    for line in _differences(kept, [*here, *arriving]):
        say(console, line)
    try:
        if options.out.endswith(records.ENDING):
            _write_file(options.out, kept)
        else:
            _write_folder(options, kept, _once(here))
    except OSError as reason:
        raise Broken(f"cannot write to {options.out} ({reason.strerror or reason})") from reason
    say(console, f"{options.out}: {len(kept):,} runs, {len(kept) - len(_once(here)):,} of them new")


def prune(options: Prune, console: Console) -> None:
    """Delete damaged records, checkpoints of finished runs and abandoned partial files, or only name them.

    Records of another version of rllc are whole, and stay.

    Raises:
        Refused: there is no such folder.
        Broken: a file cannot be read or deleted.
    """
    try:
        useless = list(_useless(_readable_folder(options.folder)))
        for folder, name, why in useless:
            say(console, f"{folder.path(name)}: {why}")
            if options.yes:
                folder.remove(name)
    except OSError as reason:
        raise Broken(f"cannot tidy up {options.folder} ({reason.strerror or reason})") from reason
    done = "deleted" if options.yes else "can be deleted; --yes deletes them"
    say(console, f"{len(useless)} files {done}" if useless else "there is nothing to delete")


# Reading


def _all(folder: str) -> tuple[list[Record], list[Damaged]]:
    """Everything that is there, perhaps twice."""
    try:
        if folder.endswith(records.ENDING):
            return _of_file(*split(folder))
        (inner, lost), (outer, lost_too) = map(records.read_all, _places(folder))
    except (OSError, *UNKNOWN) as reason:
        raise Refused(f"cannot read {folder} ({reason})") from reason
    return inner + outer, lost + lost_too


def _places(folder: str) -> tuple[Folder, Folder]:
    return Folder(folder) / "records", Folder(folder)


def _of_file(folder: Folder, name: str) -> tuple[list[Record], list[Damaged]]:
    try:
        return (records.unpack(folder.read(name), folder.path(name)) if folder.exists(name) else []), []
    except Damaged as reason:
        return [], [reason]


def _once(found: Iterable[Record]) -> dict[Cell, Record]:
    """Each cell's record; of several the one made first, and of those the first."""
    return {record.cell: record for record in reversed(sorted(found, key=lambda record: record.made))}


def _nothing(folder: str, damaged: Sequence[Damaged]) -> str:
    remedy = "name another folder, or make some: rllc run table1 --out RUNS"
    if damaged:
        return f"none of the {len(damaged)} records in {folder} can be read: {damaged[0]}; {remedy}"
    return f"there are no records in {folder}; {remedy}"


# Listing

LIST_COLUMNS = (
    *("task", "optimizer", "steps", "device", "runs", "settings", "seeds", "diverged"),
    *("best valid", "test there", "ms/step", "hours", "best run"),
)


def _kind(record: Record) -> tuple[str, str, int, str]:
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


# Showing


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


# Merging


def _source(folder: str) -> tuple[list[Record], list[Damaged]]:
    """As `gather`, but a folder of which no run has ended yet will do."""
    found, damaged = _all(folder)
    if not found and not checkpoints.names(Folder(folder) / "checkpoints"):
        raise Refused(_nothing(folder, damaged))
    return found, damaged


def _target(out: str, console: Console) -> list[Record]:
    """What the target holds already; a damaged record of a folder is only told, a damaged file refused."""
    found, damaged = _all(out)
    if damaged and out.endswith(records.ENDING):
        raise Refused(f"{damaged[0]}; move it away, or choose another --out")
    _tell(console, damaged)
    return found


def _differences(kept: dict[Cell, Record], found: Sequence[Record]) -> Iterator[str]:
    """A line for each two origins whose records of the same runs have other numbers."""
    origins: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in found:
        first = kept[record.cell]
        if _numbers(first) != _numbers(record):
            origins[_place(first), _place(record)].append(digest(record.cell))
    for (here, there), names in origins.items():
        yield (
            f"made twice, with other numbers: {len(names)} ({names[0][:SHOWN_DIGITS]} for one); kept what was"
            f" made first, with {here}, not what was made with {there}"
        )


def _numbers(record: Record) -> str:
    return repr((record.result.points, record.result.diverged_at))  # a text, because NaN is not equal to NaN


def _place(record: Record) -> str:
    return f"{one_run.versions(record)} on {record.hardware}"


def _write_file(out: str, kept: dict[Cell, Record]) -> None:
    folder, name = split(out)
    folder.write(name, records.pack(sorted(kept.values(), key=_order)))


def _order(record: Record) -> tuple[Any, ...]:
    return (*_kind(record), record.cell.seed, digest(record.cell))


def _write_folder(options: Merge, kept: dict[Cell, Record], here: dict[Cell, Record]) -> None:
    out = Folder(options.out)
    checks.make_writable(out / "records")
    for cell, record in kept.items():
        if here.get(cell) is not record:
            records.write(out / "records", record)
    done = {digest(cell) for cell in kept}
    for folder in options.folders:
        _carry_checkpoints(Folder(folder) / "checkpoints", out / "checkpoints", done)


def _carry_checkpoints(source: Folder, out: Folder, done: set[str]) -> None:
    """Copy those of unfinished runs that are further than the target's."""
    for name in checkpoints.names(source):
        if name not in done and _step(source, name) > _step(out, name):
            state = checkpoints.load(source, name)
            assert state is not None
            checkpoints.save(out, name, state)


def _step(folder: Folder, name: str) -> int:
    try:
        state = checkpoints.load(folder, name)
    except Damaged:
        return -1
    return -1 if state is None else state["step"]


# Pruning


def _readable_folder(folder: str) -> str:
    try:
        there = Folder(folder).is_there()
    except UNKNOWN as reason:
        raise Refused(f"cannot read {folder} ({reason})") from reason
    if not there:
        raise Refused(f"there is no folder {folder}; name one that `rllc run` wrote to")
    return folder


def _useless(folder: str) -> Iterator[tuple[Folder, str, str]]:
    """Files that are of no more use: where, name, why."""
    done = set()
    for place in _places(folder):
        for name in filter(RECORD.fullmatch, place.names(records.ENDING)):
            if _is_damaged(place, name):
                yield place, name, "damaged record"
            else:
                done.add(name.removesuffix(records.ENDING))
    kept = Folder(folder) / "checkpoints"
    for name in sorted(done.intersection(checkpoints.names(kept))):
        yield kept, name + checkpoints.ENDING, "checkpoint of a finished run"
    for place in (*_places(folder), kept):
        for name in place.abandoned():
            yield place, name, "abandoned partial file"


def _is_damaged(folder: Folder, name: str) -> bool:
    content = folder.read(name)  # an OSError says nothing about the record: the network may be down
    try:
        held = records.unpack(content, folder.path(name))
    except Foreign:
        return False
    except Damaged:
        return True
    return [digest(record.cell) + records.ENDING for record in held] != [name]


# Talking


def _roomy(console: Console) -> Console:
    """Where it is a pipe, one with room for long lines."""
    return console if console.is_terminal else Console(file=console.file, width=WIDE)


def _tell(console: Console, damaged: Sequence[Damaged]) -> None:
    for reason in damaged:
        say(console, str(reason))
