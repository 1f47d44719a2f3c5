"""`rllc runs prune`: what a folder of records can do without."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.console import Console

from rllc.lab import checkpoints, records
from rllc.lab.cells import digest
from rllc.lab.errors import Broken, Damaged, Refused
from rllc.lab.files import Folder
from rllc.lab.options import Prune
from rllc.lab.records import Foreign
from rllc.lab.runs import places
from rllc.lab.texts import say

__all__ = ["prune"]

RECORD = re.compile(r"[0-9a-f]{32}\.parquet")  # what is named otherwise is not ours to delete


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


def _readable_folder(folder: str) -> str:
    try:
        there = Folder(folder).is_there()
    except OSError as reason:
        raise Refused(f"cannot read {folder} ({reason})") from reason
    if not there:
        raise Refused(f"there is no folder {folder}; name one that `rllc run` wrote to")
    return folder


def _useless(folder: str) -> Iterator[tuple[Folder, str, str]]:
    """Files that are of no more use: where, name, why."""
    done = set()
    for place in places(folder):
        for name in filter(RECORD.fullmatch, place.names(records.ENDING)):
            if _is_damaged(place, name):
                yield place, name, "damaged record"
            else:
                done.add(name.removesuffix(records.ENDING))
    kept = Folder(folder) / "checkpoints"
    for name in sorted(done.intersection(checkpoints.names(kept))):
        yield kept, name + checkpoints.ENDING, "checkpoint of a finished run"
    for place in (*places(folder), kept):
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
