"""The state of an unfinished run on disk: tensors, numbers and lists in torch's format under a sha256."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rllc.lab.errors import Damaged, first_line, is_out_of_memory
from rllc.lab.files import Folder

__all__ = ["fitting", "load", "names", "remove", "save"]

SHA256_BYTES = 32
ENDING = ".checkpoint"
MISFITS = LookupError, TypeError, ValueError, AttributeError


def save(folder: Folder, name: str, state: dict[str, Any]) -> None:
    """Write, or replace, the checkpoint of a run.

    Raises:
        OSError: the folder cannot be written, or is full; the checkpoint before is still there.
    """
    body = io.BytesIO()
    torch.save(state, body)
    content = body.getvalue()
    folder.write(_file(name), hashlib.sha256(content).digest() + content)


def load(folder: Folder, name: str) -> dict[str, Any] | None:
    """The state of a run, its tensors on the CPU, or None if there is no checkpoint of it.

    Raises:
        Damaged: the file is truncated or altered, or holds something else.
    """
    try:
        content = folder.read(_file(name))
    except FileNotFoundError:
        return None
    known, body = content[:SHA256_BYTES], content[SHA256_BYTES:]
    if hashlib.sha256(body).digest() != known:
        raise Damaged(f"checkpoint {folder.path(_file(name))} is truncated or altered")
    try:
        return torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
    except Exception as reason:  # of what a body can be, torch has an error of another type for each
        if is_out_of_memory(reason):
            raise
        raise Damaged(
            f"checkpoint {folder.path(_file(name))} cannot be loaded ({first_line(reason)})"
        ) from reason


@contextmanager
def fitting(folder: Folder, name: str) -> Iterator[None]:
    """While a state is put where it belongs: one that does not fit was written by another version.

    Raises:
        Damaged: it does not fit.
    """
    try:
        yield
    except (*MISFITS, RuntimeError) as reason:
        if isinstance(reason, RuntimeError) and "state_dict" not in str(reason):
            raise  # no room in memory, for one, says nothing about the file
        raise Damaged(
            f"checkpoint {folder.path(_file(name))} does not fit ({first_line(reason)})"
        ) from reason


def names(folder: Folder) -> list[str]:
    """The names of the runs that have a checkpoint."""
    return [file.removesuffix(ENDING) for file in folder.names(ENDING)]


def remove(folder: Folder, name: str) -> None:
    """Delete the checkpoint of a run, if there is one."""
    folder.remove(_file(name))


def _file(name: str) -> str:
    return name + ENDING
