"""JSON files of an experiment: configuration, numbers, and where they come from. Whole files or none.

collect(path, keys, make)    the runs of these keys, those in the file not made again, saved after each
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rllc.lab import records
from rllc.lab.errors import Damaged
from rllc.lab.files import write_text

__all__ = ["collect", "provenance", "read", "write"]

Key = dict[str, Any]
Run = dict[str, Any]
PACKAGES = ("rllc", "jax", "optax", "numpy")


def provenance() -> dict[str, Any]:
    """When, with what and where: as in the records of `rllc run`."""
    return records.provenance(PACKAGES)


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, a line for each run; numbers to eight digits, null where they are not finite.

    Raises:
        Refused: the file cannot be written.
        Broken: the disk is full.
    """
    text = ",\n".join(f"{_json(name)}: {_lines(value)}" for name, value in content.items())
    write_text(path, f"{{\n{text}\n}}\n")


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote.

    Raises:
        Damaged: there is no such file, or it is truncated.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as reason:
        raise Damaged(f"record {path} is damaged ({reason}); delete it and run again") from reason


def collect(path: Path, keys: Iterable[Key], make: Callable[[Key], Run]) -> dict[str, Any]:
    """{"runs": [...]} with one run for each key, which begins with the key; the file is written after each.

    Raises:
        Damaged: the file is there but cannot be read.
    """
    found = read(path)["runs"] if path.exists() else []
    content: dict[str, Any] = {"runs": found}
    for key in keys:
        if not any(_has(run, key) for run in found):
            found.append(key | make(key) | provenance())
            write(path, content)
    return read(path)


def _has(run: Run, key: Key) -> bool:
    return all(run.get(name) == value for name, value in key.items())


def _lines(value: Any) -> str:
    """JSON, with a line for each mapping of a list."""
    if isinstance(value, list) and all(isinstance(x, Mapping) for x in value):
        return "[\n" + ",\n".join(map(_json, value)) + "\n]"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return value
