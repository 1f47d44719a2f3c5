"""Whole files or none, on this machine or anywhere fsspec reaches."""

from __future__ import annotations

import datetime
import errno
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rllc.lab.errors import FULL, Broken, Refused, first_line

__all__ = ["Folder", "output", "replacing", "split", "write_rows", "write_text"]

PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
ABANDONED = datetime.timedelta(hours=1)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it takes the place of `path` once complete and on disk, and goes away on any error.

    Raises:
        OSError: the folder cannot be written, or is full.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{path} is a folder")
    partial = path.with_name(_partial(path.name))
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def output(path: Path) -> Iterator[BinaryIO]:
    """`replacing`, for a file that a command is asked for.

    Raises:
        Refused: the folder is not there, or cannot be written, or this is one.
        Broken: the disk is full.
    """
    try:
        with replacing(path) as file:
            yield file
    except OSError as reason:
        kind = Broken if reason.errno in FULL else Refused
        raise kind(f"cannot write {path} ({reason.strerror or reason}); choose another --out") from reason


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a Parquet file that a command is asked for, whole or not at all; raises as `output`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with output(path) as file:
        pq.write_table(pa.Table.from_pylist(list(rows)), file, compression="zstd")


def write_text(path: Path, text: str) -> None:
    """Write a text that a command is asked for, whole or not at all; raises as `output`."""
    with output(path) as file:
        file.write(text.encode())


@contextmanager
def _reaching() -> Iterator[None]:
    """Each filesystem has errors of its own, and fsspec some for those it does not know: OSErrors here."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as reason:
        raise OSError(first_line(reason)) from reason


@_reaching()
def _reached(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URL, and the path in it."""
    if "::" in url:
        raise OSError("chains of URLs are not supported; unpack or copy what it names")
    return fsspec.url_to_fs(url)


@dataclass(frozen=True)
class Folder:
    """A flat folder of small files: a path, or a URL that fsspec knows ("s3://bucket/runs").

    Several processes and machines may write to it: a file is seen whole or not at all. All methods raise
    OSError where the place cannot be reached.
    """

    url: str

    @cached_property
    def _place(self) -> tuple[fsspec.AbstractFileSystem, str]:
        return _reached(self.url)

    def __truediv__(self, name: str) -> Folder:
        """The folder of that name in this one."""
        separator = "" if self.url.endswith("/") else "/"
        return Folder(f"{self.url}{separator}{name}")

    def absolute(self) -> Folder:
        """The same folder, for a process whose working directory is another."""
        fs, root = self._place
        return Folder(root) if isinstance(fs, LocalFileSystem) else self

    def path(self, name: str) -> str:
        """Where a file is, for messages."""
        fs, root = self._place
        return f"{root}/{name}" if isinstance(fs, LocalFileSystem) else (self / name).url

    @_reaching()
    def is_there(self) -> bool:
        """Whether there is such a folder."""
        fs, root = self._place
        return fs.isdir(root)

    @_reaching()
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        fs, root = self._place
        return fs.exists(f"{root}/{name}")

    def names(self, ending: str) -> list[str]:
        """The names of the finished files with this ending, sorted; none if there is no such folder."""
        return [name for name in self._listed() if name.endswith(ending) and not name.startswith(".")]

    @_reaching()
    def read(self, name: str) -> bytes:
        """All of a file.

        Raises:
            OSError: there is no such file, or it cannot be read.
        """
        fs, root = self._place
        return fs.cat_file(f"{root}/{name}")

    @_reaching()
    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace one.

        Raises:
            OSError: the folder cannot be written, or is full; what was there before is still there.
        """
        fs, root = self._place
        if isinstance(fs, LocalFileSystem):
            Path(root).mkdir(parents=True, exist_ok=True)
            with replacing(Path(root) / name) as file:
                file.write(content)
            return
        partial = f"{root}/{_partial(name)}"
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(partial, content)
        if type(fs).mv is not fsspec.AbstractFileSystem.mv:
            fs.mv(partial, f"{root}/{name}")
        else:  # which would take brackets in a name for a pattern
            fs.cp_file(partial, f"{root}/{name}")
            fs.rm_file(partial)

    @_reaching()
    def remove(self, name: str) -> None:
        """Delete a file if it is there."""
        fs, root = self._place
        with suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{name}")

    def abandoned(self) -> list[str]:
        """The names of partial files that nobody has written to for an hour."""
        fs, root = self._place
        before = datetime.datetime.now(datetime.UTC) - ABANDONED
        partial = filter(PARTIAL.fullmatch, self._listed())
        return [name for name in partial if fs.modified(f"{root}/{name}") < before]

    @_reaching()
    def _listed(self) -> list[str]:
        """The names of all files, sorted; none if there is no such folder."""
        fs, root = self._place
        found = fs.ls(root, detail=True) if self.is_there() else []
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in found if entry["type"] != "directory")


def split(url: str) -> tuple[Folder, str]:
    """The folder of a file and its name in it; raises OSError for a filesystem that is not known."""
    fs, path = _reached(url)
    parent = fs._parent(path)
    folder = Folder(parent if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(parent))
    return folder, path.rsplit("/", 1)[-1]


def _partial(name: str) -> str:
    """A name that no other writer has, on any machine."""
    return f".{name}.{uuid.uuid4().hex}.tmp"
