"""`rllc runs merge`: one folder or file of several, each run once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from rllc.lab import checkpoints, checks, one_run, records
from rllc.lab.cells import Cell, digest
from rllc.lab.errors import Broken, Damaged, Refused
from rllc.lab.files import Folder, split
from rllc.lab.options import Merge
from rllc.lab.records import Record
from rllc.lab.runs import SHOWN_DIGITS, everything, kind, nothing, once, tell
from rllc.lab.texts import say

__all__ = ["merge"]


def merge(options: Merge, console: Console) -> None:
    """Write the union of the records, of two of one run the one made first; but the target's own stay.

    With a folder as target the checkpoints of unfinished runs come along.

    Raises:
        Refused: there are no records, or the target cannot be written.
        Broken: the disk is full; what was in the target is still there.
    """
    if not options.folders or not options.out:
        raise Refused("no folder given; name those to merge: rllc runs merge FOLDER ... --out FOLDER")
    gathered = [_source(folder) for folder in options.folders]
    here = _target(options.out, console)
    tell(console, [damaged for _, lost in gathered for damaged in lost])
    arriving = [record for found, _ in gathered for record in found]
    mine = once(here)
    kept = once(arriving) | mine
    for line in _differences(kept, [*here, *arriving]):
        say(console, line)
    try:
        if options.out.endswith(records.ENDING):
            _write_file(options.out, kept)
        else:
            _write_folder(options, kept, mine)
    except OSError as reason:
        raise Broken(f"cannot write to {options.out} ({reason.strerror or reason})") from reason
    say(console, f"{options.out}: {len(kept):,} runs, {len(kept) - len(mine):,} of them new")


def _source(folder: str) -> tuple[list[Record], list[Damaged]]:
    """As `gather`, but a folder of which no run has ended yet will do."""
    found, damaged = everything(folder)
    if not found and not checkpoints.names(Folder(folder) / "checkpoints"):
        raise Refused(nothing(folder, damaged))
    return found, damaged


def _target(out: str, console: Console) -> list[Record]:
    """What the target holds already; a damaged record of a folder is only told, a damaged file refused."""
    found, damaged = everything(out)
    if damaged and out.endswith(records.ENDING):
        raise Refused(f"{damaged[0]}; move it away, or choose another --out")
    tell(console, damaged)
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
            f" made with {here}, not what was made with {there}"
        )


def _numbers(record: Record) -> str:
    return repr((record.result.points, record.result.diverged_at))  # a text, because NaN is not equal to NaN


def _place(record: Record) -> str:
    return f"{one_run.versions(record)} on {record.hardware}"


def _write_file(out: str, kept: dict[Cell, Record]) -> None:
    folder, name = split(out)
    folder.write(name, records.pack(sorted(kept.values(), key=_order)))


def _order(record: Record) -> tuple[Any, ...]:
    return (*kind(record), record.cell.seed, digest(record.cell))


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
        with checkpoints.fitting(folder, name):
            return -1 if state is None else int(state["step"])
    except Damaged:
        return -1
