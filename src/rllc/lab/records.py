"""One Parquet file per finished run, of one row; its name is the digest of the run's configuration.

    save(folder, cell, result)      to a temporary name, flushed, then renamed: never half a record
    find(folder, cell)              the Record, None if there is none, or Damaged
    read_all(folder)                every Record of a folder's files, and what could not be read
    pack(records), unpack(content)  many records as the bytes of one Parquet file, and back
    sorted_out(content)             the same, but an error for each row that is no record

The columns (steps, losses, accuracies, law) are lists over the evaluation points, so that a query over
`folder/*.parquet` has one row for each run. Several writers may share a folder.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import io
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rllc.lab.cells import Cell, Point, Result, canonical, cell_of, digest, digest_of
from rllc.lab.demands import demands
from rllc.lab.errors import Damaged, first_line
from rllc.lab.files import Folder

__all__ = [
    "ENDING",
    "Damaged",
    "Foreign",
    "Other",
    "Record",
    "find",
    "name_in",
    "pack",
    "provenance",
    "read",
    "read_all",
    "save",
    "sorted_out",
    "unpack",
    "write",
]

PACKAGES = ("rllc", "torch", "numpy")
ENDING = ".parquet"
UNREADABLE = OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError

OURS = "digest", "configuration"  # columns that no other file has
SCHEMA = pa.schema(
    [
        ("digest", pa.string()),
        ("task", pa.string()),
        ("optimizer", pa.string()),
        ("seed", pa.int64()),
        ("steps", pa.int64()),
        ("configuration", pa.string()),  # JSON
        ("diverged_at", pa.int64()),  # null for a run that did not
        ("step", pa.list_(pa.int64())),
        ("train_loss", pa.list_(pa.float64())),
        ("valid_loss", pa.list_(pa.float64())),
        ("valid_accuracy", pa.list_(pa.float64())),
        ("test_loss", pa.list_(pa.float64())),
        ("test_accuracy", pa.list_(pa.float64())),
        ("law", pa.list_(pa.list_(pa.float64()))),
        ("ms_per_step", pa.float64()),
        ("seconds", pa.float64()),
        ("made", pa.string()),  # UTC
        ("versions", pa.string()),  # JSON
        ("commit", pa.string()),  # null outside a git checkout
        ("hardware", pa.string()),
    ]
)

# Half the size: for one row, what Parquet keeps to search many is larger than the row.
SMALL = {
    "compression": "zstd",
    "use_dictionary": False,
    "write_statistics": False,
    "store_schema": False,
    "write_page_checksum": True,
}


class Foreign(Damaged):
    """A record that is whole but of another version of the engine."""


class Other(Damaged):
    """A Parquet file that holds something else than runs."""


@dataclass(frozen=True)
class Record:
    """A finished run: its cell, what came of it, when (UTC, ISO 8601) and where it was made."""

    cell: Cell
    result: Result
    versions: dict[str, str]
    commit: str | None
    hardware: str
    made: str = ""

    @property
    def diverged(self) -> bool:
        """Whether its loss was no longer finite at some step."""
        return self.result.diverged_at is not None


def name_in(folder: Folder, cell: Cell) -> str:
    """The path of the cell's record, there or not."""
    return folder.path(_file(cell))


def save(folder: Folder, cell: Cell, result: Result) -> None:
    """Write the record of a finished run; replaces one of the same cell.

    Raises:
        OSError: the folder cannot be written or is full; no record is left then.
    """
    write(folder, Record(cell, result, **provenance()))


def write(folder: Folder, record: Record) -> None:
    """Write a record as it is; replaces one of the same cell.

    Raises:
        OSError: as `save`.
    """
    folder.write(_file(record.cell), pack([record]))


def find(folder: Folder, cell: Cell) -> Record | None:
    """The record of a cell, or None if it has not been run.

    Raises:
        Damaged: there is a file, but it is truncated, altered or of another configuration.
    """
    return read(folder, cell) if folder.exists(_file(cell)) else None


def read(folder: Folder, cell: Cell) -> Record:
    """The record of a cell.

    Raises:
        Damaged: there is no such file, or it is truncated, altered or of another configuration.
    """
    held = unpack(_content(folder, _file(cell)), name_in(folder, cell))
    if [record.cell for record in held] != [cell]:
        raise Damaged(f"record {name_in(folder, cell)} is damaged (it holds another configuration)")
    return held[0]


def read_all(folder: Folder) -> tuple[list[Record], list[Damaged]]:
    """Every record in the folder's Parquet files, and an error for each file or row that cannot be read.

    Files that hold something else than runs are passed over.
    """
    found: list[Record] = []
    damaged: list[Damaged] = []
    for name in folder.names(ENDING):
        try:
            whole, odd = sorted_out(_content(folder, name), folder.path(name))
        except Other:
            continue
        except Damaged as reason:
            damaged.append(reason)
        else:
            found, damaged = found + whole, damaged + odd
    return found, damaged


def pack(records: Sequence[Record]) -> bytes:
    """A Parquet file with a row for each record."""
    file = io.BytesIO()
    table = pa.Table.from_pylist([_row(record) for record in records], schema=SCHEMA)
    pq.write_table(table, file, **SMALL)
    return file.getvalue()


def unpack(content: bytes, path: str) -> list[Record]:
    """The records in the bytes of a Parquet file; its path is for messages.

    Raises:
        Foreign: it is whole, but a record is of another version of the engine.
        Damaged: it is truncated or altered, or a row is no record.
    """
    found, damaged = sorted_out(content, path)
    if damaged:
        raise damaged[0]
    return found


def sorted_out(content: bytes, path: str) -> tuple[list[Record], list[Damaged]]:
    """As `unpack`, but one odd row does not cost the others: an error for each that is no record.

    Raises:
        Other: the file holds something else than runs.
        Damaged: it is truncated or altered.
    """
    try:
        if not set(OURS).intersection(pq.read_schema(pa.BufferReader(content)).names):
            raise Other(f"{path} holds something else than runs")
        file = pa.BufferReader(content)
        rows = pq.read_table(file, schema=SCHEMA, page_checksum_verification=True).to_pylist()
    except (*UNREADABLE, pa.ArrowException) as reason:
        raise _damaged(path, reason) from reason
    found: list[Record] = []
    damaged: list[Damaged] = []
    for number, row in enumerate(rows, 1):
        place = path if len(rows) == 1 else f"{path}, row {number},"
        try:
            found.append(_record(_cell(row, place), row))
        except Damaged as reason:
            damaged.append(reason)
        except UNREADABLE as reason:
            damaged.append(_damaged(place, reason))
    return found, damaged


def _file(cell: Cell) -> str:
    return digest(cell) + ENDING


def _content(folder: Folder, name: str) -> bytes:
    """Of one file; raises Damaged."""
    try:
        return folder.read(name)
    except OSError as reason:
        raise _damaged(folder.path(name), reason) from reason


def _damaged(path: str, reason: Exception) -> Damaged:
    return Damaged(f"record {path} is damaged ({first_line(reason)})")


def _cell(row: dict[str, Any], path: str) -> Cell:
    try:
        return cell_of(row["configuration"])
    except ValueError as reason:
        if digest_of(row["configuration"]) != row["digest"]:
            raise
        raise Foreign(f"record {path} is of another version of rllc") from reason


def _record(cell: Cell, row: dict[str, Any]) -> Record:
    record = Record(
        cell, _result(row), json.loads(row["versions"]), row["commit"], row["hardware"], row["made"]
    )
    for right, wrong in demands(record):
        if not right:
            raise ValueError(wrong)
    return record


def _row(record: Record) -> dict[str, Any]:
    cell, result = record.cell, record.result
    columns = zip(*result.points, strict=True)
    return {
        "digest": digest(cell),
        "task": cell.task.name,
        "optimizer": cell.setting.name,
        "seed": cell.seed,
        "steps": cell.steps,
        "configuration": canonical(cell),
        "diverged_at": result.diverged_at,
        **{name: list(column) for name, column in zip(Point._fields, columns, strict=True)},
        "ms_per_step": result.ms_per_step,
        "seconds": result.seconds,
        "made": record.made,
        "versions": json.dumps(record.versions),
        "commit": record.commit,
        "hardware": record.hardware,
    }


def _result(row: dict[str, Any]) -> Result:
    columns = [row[name] for name in Point._fields]
    points = (Point._make((*values[:-1], tuple(values[-1]))) for values in zip(*columns, strict=True))
    return Result(tuple(points), row["diverged_at"], row["ms_per_step"], row["seconds"])


def provenance(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """When, with which versions, at which commit and where, as it is now."""
    return {"made": _now(), "versions": _versions(packages), "commit": _commit(), "hardware": _hardware()}


def _now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions(packages: Sequence[str]) -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version()} | versions


@functools.cache
def _commit() -> str | None:
    """The git commit of this source tree, with "+" where files differ from it; None outside a checkout."""
    try:
        here = Path(__file__).parents[1]  # all of rllc makes the numbers of a run
        return _git(here, "rev-parse", "HEAD") + ("+" if _git(here, "status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *command: str) -> str:
    # Without locks: a run that is killed just then would leave one in the user's repository.
    asked = ["git", "--no-optional-locks", "-C", str(folder), *command]
    return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


@functools.cache
def _hardware() -> str:
    """The processor, its cores, and the GPU if there is one."""
    parts = [_processor(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
