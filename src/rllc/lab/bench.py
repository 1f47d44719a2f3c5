"""`rllc bench`: what a step of RLLC costs beside torch's own optimizers, in time and in memory."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from rllc.lab.texts import counted

if TYPE_CHECKING:
    from rllc.lab.contenders import Timing

__all__ = ["Bench", "main"]

MEMORIES = ("M(0.9)", "M(0.9) + M(0)", "M(0.9) + M_2(0.6)", "M(0.9) + M(0) + M_2(0.6)")


@dataclass(frozen=True)
class Bench:
    """Time a step of RLLC and RLLCAdamW beside torch's AdamW and SGD with momentum, fused and foreach.

    Every optimizer does a few steps in each round, in an order that changes, one before them untimed: in the
    caches is what another has left there. Ratios are to fused AdamW within a round, so that a busy machine
    slows both. Beside them in the round large arrays are copied and added: the floor is the time in which
    these move as many numbers as the step must read and write, 3k + 4 a parameter for k memory units, AdamW
    7, RLLCAdamW 12 with its average and 10 without. A step at 100 % of it cannot be faster, unless its list
    fits into a cache.

    Lists: mlp (430,000 parameters in 8 tensors), resnet20 (270,000 in 59), gpt2 (124 million in 148), flat
    (10 million in one). Of the networks, whole training steps are timed as well: of the first two on batches
    of 128 images.

    For instance:
      rllc bench --quick                              # a few seconds: does it run, and about how fast
      rllc bench --lists resnet20 --threads 1         # two minutes
      rllc bench --lists gpt2 --alone                 # the same; with training steps half an hour
      rllc bench --device cuda --out h200.json        # everything, on a GPU
    """

    lists: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="LIST ...", help_behavior_hint="(default: all; with --quick mlp)"),
    ] = ()
    """mlp, resnet20, gpt2 or flat."""

    memories: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="MEMORY ...", help_behavior_hint="(default: four of one to four units)"),
    ] = ()
    """Memories in the paper's notation, such as "M(0.9) + M_2(0.6)"."""

    rounds: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 25, or 7 where steps are long)")
    ] = None
    """Rounds of each race."""

    threads: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: as PyTorch has it)")
    ] = None
    """Threads of PyTorch on the CPU. Where something else is running, 1: threads wait for one another."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure; auto takes a GPU if PyTorch sees one."""

    memory_dtype: Literal["float32", "bfloat16", "float8_e4m3fn"] = "float32"
    """Of the memory units; parameters are float32."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("bench.json")
    """Everything measured, with versions and hardware, as JSON."""

    alone: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")] = False
    """No training steps, only the optimizers alone."""

    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")] = False
    """Three rounds, short lists (one block of gpt2, a hundredth of flat), a small copy: nothing to quote."""


def main(bench: Bench, console: Console) -> None:
    """Measure, print a table for each list, save.

    Raises:
        Refused: a list, memory or number that is none, no GPU, or nowhere to write to.
        Broken: the file could not be written.
    """
    import torch

    from rllc.lab.contenders import LISTS, Setting, measure

    lists, memories, device = _checked(bench, LISTS)
    if bench.threads is not None:
        torch.set_num_threads(bench.threads)
    rounds = bench.rounds or (3 if bench.quick else None)
    setting = Setting(device, rounds, bench.quick, getattr(torch, bench.memory_dtype), console)
    timings: list[Timing] = []
    for name in lists:
        found = measure(name, memories, setting, alone=bench.alone)
        timings += found
        for table in tables(found):
            console.print(table)
        _save(bench, device, timings)  # after every list, so that an interruption costs one
    console.print(_notes(bench, device, torch.get_num_threads()), markup=False, highlight=False)


def _checked(bench: Bench, known: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Lists, memories in the paper's notation and device; raises Refused."""
    from rllc.lab import checks
    from rllc.lab.errors import Refused, unknown
    from rllc.notation import parse

    lists = bench.lists or (("mlp",) if bench.quick else tuple(known))
    for name in lists:
        if name not in known:
            raise Refused(unknown("list", name, known))
    checks.counts({"--rounds": bench.rounds, "--threads": bench.threads})
    checks.folder(str(bench.out.absolute().parent))
    if bench.out.is_dir():
        raise Refused(f"--out {bench.out} is a folder; name a file in it")
    if not bench.out.absolute().parent.is_dir():
        raise Refused(f"no folder {bench.out.parent} to write {bench.out.name} into; make it first")
    try:
        memories = tuple(repr(parse(memory)) for memory in bench.memories or MEMORIES)
    except ValueError as reason:
        raise Refused(str(reason)) from reason
    return lists, memories, checks.device(bench.device)


def tables(timings: Sequence[Timing]) -> list[Table]:
    """A table of each list alone and in training, a line for each optimizer."""
    places = dict.fromkeys((t.list, t.what) for t in timings)
    return [_table([t for t in timings if (t.list, t.what) == place]) for place in places]


def _table(timings: Sequence[Timing]) -> Table:
    first = timings[0]
    title = f"{first.list}, {first.what}: {first.parameters:,} parameters in {first.tensors} tensors"
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("optimizer", min_width=14)  # and so 80 columns hold it all
    table.add_column("passes", no_wrap=True)
    for heading in ("ms", "×\nAdamW", "quartiles", "words", "% of\nfloor", "state\nB", "extra\nB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for t in timings:
        low, median, high = t.ratio
        table.add_row(
            t.optimizer,
            t.implementation,
            f"{t.ms.median:.3g}",
            _digits(median),
            f"{_digits(low)}–{_digits(high)}",
            str(t.words),
            f"{100 * t.floor.median:.0f}",
            f"{t.state_bytes:.1f}",
            f"{t.extra_bytes:.1f}",
        )
    return table


def _digits(ratio: float) -> str:
    return f"{ratio:#.3g}".rstrip(".")


def _notes(bench: Bench, device: str, threads: int) -> str:
    where = counted(threads, "thread") if device == "cpu" else device
    return (
        "Medians over rounds; × AdamW is the ratio to fused AdamW within a round. For each parameter: words"
        " that a step must read and write, bytes of state, and extra bytes, the most that a step allocates at"
        f" once. % of floor is the share of the step that merely moving the words takes. On {where}."
        f" Saved in {bench.out}."
    )


def _save(bench: Bench, device: str, timings: Sequence[Timing]) -> None:
    from rllc.lab.files import write_text

    write_text(bench.out, json.dumps(_record(bench, device, timings), indent=1, ensure_ascii=False))


def _record(bench: Bench, device: str, timings: Sequence[Timing]) -> dict[str, Any]:
    """Everything measured and with what, as JSON has it."""
    import torch

    from rllc.lab.records import provenance

    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return provenance() | {
        "device": device,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "quick": bench.quick,
        "memory_dtype": bench.memory_dtype,
        "timings": [_row(timing) for timing in timings],
    }


def _row(timing: Timing) -> dict[str, Any]:
    quartiles = {name: getattr(timing, name)._asdict() for name in ("ms", "ratio", "floor")}
    return timing._asdict() | quartiles
