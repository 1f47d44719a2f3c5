"""One Parquet file per finished run, of one row; its name is the digest of the run's configuration.

    save(folder, cell, result)      to a temporary name, flushed, then renamed: never half a record
    find(folder, cell)              the Record, None if there is none, or Damaged

The columns (steps, losses, accuracies, law) are lists over the evaluation points, so that a query over
`folder/*.parquet` has one row for each run. Several writers may share a folder.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rllc.lab.errors import Broken
from rllc.lab.files import replacing
from rllc.lab.optimizers import name_of
from rllc.lab.training import Cell, Point, Result, canonical, digest

__all__ = ["Damaged", "Record", "find", "path_of", "read", "save"]

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


class Damaged(Broken):
    """A record that cannot be read; the message is one line that names the file."""


@dataclass(frozen=True)
class Record:
    """A finished run: its cell, what came of it, and where it was made."""

    cell: Cell
    result: Result
    versions: dict[str, str]
    commit: str | None
    hardware: str


def path_of(folder: Path, cell: Cell) -> Path:
    """The file that holds, or will hold, the cell's record."""
    return folder / f"{digest(cell)}.parquet"


def save(folder: Path, cell: Cell, result: Result) -> Path:
    """Write the record of a finished run; replaces one of the same cell.

    Raises:
        OSError: the folder cannot be written or is full; no record is left then.
    """
    table = pa.Table.from_pylist([_row(cell, result)], schema=SCHEMA)
    path = path_of(folder, cell)
    with replacing(path) as file:
        pq.write_table(table, file, **SMALL)
    return path


def find(folder: Path, cell: Cell) -> Record | None:
    """The record of a cell, or None if it has not been run.

    Raises:
        Damaged: there is a file, but it is truncated, altered or of another configuration.
    """
    return read(folder, cell) if path_of(folder, cell).exists() else None


def read(folder: Path, cell: Cell) -> Record:
    """The record of a cell.

    Raises:
        Damaged: there is no such file, or it is truncated, altered or of another configuration.
    """
    path = path_of(folder, cell)
    try:
        row = pq.read_table(path, schema=SCHEMA, page_checksum_verification=True).to_pylist()[0]
        if row["configuration"] != canonical(cell):
            raise ValueError("it holds another configuration")
        return Record(cell, _result(row), json.loads(row["versions"]), row["commit"], row["hardware"])
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as reason:
        said = (str(reason).splitlines() or [type(reason).__name__])[0][:120]
        raise Damaged(f"record {path} is damaged ({said})") from reason


def _row(cell: Cell, result: Result) -> dict[str, Any]:
    columns = zip(*result.points, strict=True)
    return {
        "digest": digest(cell),
        "task": cell.task.name,
        "optimizer": name_of(cell.setting),
        "seed": cell.seed,
        "steps": cell.steps,
        "configuration": canonical(cell),
        "diverged_at": result.diverged_at,
        **{name: list(column) for name, column in zip(Point._fields, columns, strict=True)},
        "ms_per_step": result.ms_per_step,
        "seconds": result.seconds,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": json.dumps(_versions()),
        "commit": _commit(),
        "hardware": _hardware(),
    }


def _result(row: dict[str, Any]) -> Result:
    columns = [row[name] for name in Point._fields]
    points = (Point._make((*values[:-1], tuple(values[-1]))) for values in zip(*columns, strict=True))
    return Result(tuple(points), row["diverged_at"], row["ms_per_step"], row["seconds"])


@functools.cache
def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("rllc", "torch", "numpy")}
    return {"python": platform.python_version()} | packages


@functools.cache
def _commit() -> str | None:
    """The git commit of this source tree, with "+" where files differ from it; None outside a checkout."""
    try:
        here = Path(__file__).parent
        return _git(here, "rev-parse", "HEAD") + ("+" if _git(here, "status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


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
