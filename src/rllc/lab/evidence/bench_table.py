"""What `rllc bench` measured on a CPU, as the table of docs/speed.md.

table(folder)        of the folder's JSON files, for each number of threads one or, of other lists, several
in_short(folder)     a sentence on each list
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rllc.lab.contenders import LISTS
from rllc.lab.evidence.markup import MISSING, Entry, Group, Line, Table
from rllc.lab.rounds import ALONE, STEP
from rllc.lab.texts import counted, is_memory

__all__ = ["in_short", "table"]

FASTEST = ("fused", "fastest")  # how an optimizer is called that was asked for its fastest implementation
REFERENCE = ("AdamW", "fused")
DEFAULT = "default"  # as torch has it where nothing is asked for
IN_SHORT = {
    ("mlp", STEP): "A training step of the small MLP",
    ("resnet20", STEP): "A training step of ResNet-20",
    ("gpt2", ALONE): "The optimizer alone, on the 124 million parameters of GPT-2 small",
}

Found = dict[tuple[str, str, str, str], dict[str, Any]]  # by list, what, optimizer and implementation


def table(folder: Path) -> Table:
    """Milliseconds of fused AdamW, ratios to it of the others: a line for each number of threads.

    Raises:
        ValueError: there is no file, or two are of the same list and number of threads.
    """
    saved = _saved(folder)
    found = _by_threads(folder, saved)
    every = [key for timings in found.values() for key in timings]
    places = sorted(
        dict.fromkeys(key[:2] for key in every),
        key=lambda place: ((ALONE, STEP).index(place[1]), [*LISTS].index(place[0])),
    )
    kinds = [kind for kind in dict.fromkeys(key[2:] for key in every) if _is_shown(*kind)]
    groups = tuple(
        Group(_name(*kind), tuple(_line(count, timings, places, kind) for count, timings in found.items()))
        for kind in kinds
    )
    return Table(
        "A step, in fused AdamW's", tuple(f"{list_}, {what}" for list_, what in places), groups, _notes(saved)
    )


def in_short(folder: Path) -> tuple[str, ...]:
    """How long a step takes in fused AdamW's, with each number of threads; of RLLC and of AdamW's default.

    Raises:
        ValueError: as `table`.
    """
    found = _by_threads(folder, _saved(folder))
    threads = " and ".join(map(str, found))
    sentences = []
    for place, title in IN_SHORT.items():
        kinds = [kind for kind in _kinds(found, place) if kind == ("AdamW", DEFAULT) or _is_ours(*kind)]
        ratios = (
            f"{_name(*kind)} "
            + " and ".join(
                f"{timings[(*place, *kind)]['ratio']['median']:.2f}"
                for timings in found.values()
                if (*place, *kind) in timings
            )
            for kind in kinds
        )
        if kinds:
            sentences.append(f"{title}: {', '.join(ratios)} (with {threads} threads).")
    return tuple(sentences)


def _kinds(found: dict[int, Found], place: tuple[str, str]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(key[2:] for timings in found.values() for key in timings if key[:2] == place))


def _is_ours(optimizer: str, implementation: str) -> bool:
    is_fastest = implementation in FASTEST and _is_shown(optimizer, implementation)
    return is_fastest and (optimizer == "RLLCAdamW" or is_memory(optimizer))


def _saved(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def _by_threads(folder: Path, saved: Sequence[dict[str, Any]]) -> dict[int, Found]:
    found: dict[int, Found] = {}
    for record in sorted(saved, key=lambda r: r["threads"]):
        known, new = found.setdefault(record["threads"], {}), _found(record)
        if twice := sorted({key[0] for key in known} & {key[0] for key in new}):
            raise ValueError(
                f"{folder} holds two records of rllc bench of {', '.join(twice)} with"
                f" {counted(record['threads'], 'thread')}; delete one"
            )
        known |= new
    if not found:
        raise ValueError(f"{folder} holds no record of rllc bench (*.json)")
    return found


def _found(record: dict[str, Any]) -> Found:
    return {(t["list"], t["what"], t["optimizer"], t["implementation"]): t for t in record["timings"]}


def _is_shown(optimizer: str, implementation: str) -> bool:
    return not (optimizer.startswith("RLLC") and implementation == "fused")  # torch's own AdamW within


def _name(optimizer: str, implementation: str) -> str:
    if implementation == DEFAULT:
        return f"{optimizer}, as it comes"
    return optimizer if implementation in FASTEST else f"{optimizer}, {implementation}"


def _line(threads: int, timings: Found, places: Sequence[tuple[str, str]], kind: tuple[str, str]) -> Line:
    label = counted(threads, "thread")
    return Line(label, tuple(_entry(timings.get((*place, *kind)), kind) for place in places))


def _entry(timing: dict[str, Any] | None, kind: tuple[str, str]) -> Entry:
    if timing is None:
        return MISSING
    if kind == REFERENCE:
        return Entry(f"{timing['ms']['median']:.3g} ms")
    low, median, high = (timing["ratio"][name] for name in ("low", "median", "high"))
    return Entry(f"{median:.2f}", aside=f"({low:.2f}, {high:.2f})")


def _notes(saved: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    rounds = [timing["rounds"] for record in saved for timing in record["timings"]]
    versions = dict.fromkeys(f"torch {record['versions']['torch']}" for record in saved)
    hardware = dict.fromkeys(record["hardware"] for record in saved)
    return (
        f"Medians (quartiles) of ratios within a round, over {min(rounds)} to {max(rounds)} rounds. A"
        " training step is on a batch of 128 images.",
        f"Measured with {', '.join(versions)} on {', '.join(hardware)}.",
    )
