"""Options of commands, checked before anything is written."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import torch
from rich.console import Console

from rllc.lab import data
from rllc.lab.cells import MOST_SEEDS
from rllc.lab.errors import Refused, unknown
from rllc.lab.files import Folder
from rllc.lab.records import ENDING
from rllc.lab.tasks import TASKS, Task, TextTask

__all__ = ["counts", "device", "folder", "folder_here", "make_writable", "task", "with_data"]


def task(name: str) -> Task | TextTask:
    """The task of that name; raises Refused if there is none."""
    if name in TASKS:
        return TASKS[name]
    raise Refused(unknown("task", name, TASKS))


def with_data(task: Task | TextTask, console: Console) -> Task | TextTask:
    """The task with the data that are here, decoded if they were not; says so if its images are others.

    Raises:
        Refused: they are missing or altered.
    """
    found = dataclasses.replace(task, data=data.as_found(task.data))  # type: ignore[arg-type]
    if found != task:
        console.print(
            f"{task.data.repository} has other images here than the committed records were made with (JPEG),"
            " under the same labels: runs on them have records of their own",
            highlight=False,
            soft_wrap=True,
        )
    return found


def counts(options: dict[str, int | None]) -> None:
    """Raises Refused for a number below 1, and for more seeds than memory has room for."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise Refused(f"{name} must be 1 or more, got {value}")
        if name == "--seeds" and value is not None and value > MOST_SEEDS:
            raise Refused(f"{name} must be {MOST_SEEDS:,} or less, got {value:,}")


def device(name: str) -> str:
    """ "cpu" or "cuda"; raises Refused for a GPU that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise Refused("PyTorch sees no GPU here; use --device cpu")
    return name


def folder(out: str) -> None:
    """Raises Refused where nothing can be written, and writes nothing; a URL is taken on trust."""
    if not out:
        raise Refused("--out has no name; choose a folder")
    if out.endswith(ENDING):
        raise Refused(f"{out} is what a file of records is called; choose a folder with --out")
    if "memory://" in out:
        raise Refused(f"what workers write to {out} ends with them; choose another --out")
    if "://" in out:
        return
    path = Path(out).absolute()
    nearest = next(part for part in (path, *path.parents) if os.path.exists(part))
    if not os.access(nearest, os.W_OK) or not nearest.is_dir():
        raise Refused(f"cannot write to {out}; choose another folder with --out")


def folder_here(out: Path) -> Path:
    """With the user's home for "~"; raises Refused as `folder`, and for a URL: pictures need a file."""
    if re.match(r"\w{2,}:/", str(out)):
        raise Refused(f"pictures need a folder of this machine, not {out}; choose another --out")
    folder(str(out.expanduser()))
    return out.expanduser()


def make_writable(place: Folder) -> None:
    """Make the folder, and try it; raises Refused if that fails."""
    try:
        place.write("probe", b"")
        place.remove("probe")
    except OSError as reason:
        raise Refused(
            f"cannot write to {place.url} ({reason.strerror or reason}); choose another --out"
        ) from reason
