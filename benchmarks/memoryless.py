"""What memory does to the loss: the tables and pictures of docs/memoryless.md and the records behind them.

    .venv/bin/python benchmarks/memoryless.py slopes      orders of the distances, every optimizer (2 minutes)
    .venv/bin/python benchmarks/memoryless.py claim       the paper's claim on real data (20 minutes)
    .venv/bin/python benchmarks/memoryless.py explicit    the correction as a term of one's own (20 minutes)
    .venv/bin/python benchmarks/memoryless.py law         recorded laws as modified losses (seconds)
    .venv/bin/python benchmarks/memoryless.py cost        what a correction costs (2 minutes; a quiet machine)
    .venv/bin/python benchmarks/memoryless.py optax       the memory of optax's optimizers, measured (seconds)
    .venv/bin/python benchmarks/memoryless.py redraw      all texts and pictures from the records

Each writes results/memoryless/NAME.json run by run, so that the same command goes on where it was stopped,
and then NAME.md and NAME.png from it. On a shared machine set XLA_FLAGS=--xla_cpu_multi_thread_eigen=false.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from rllc.lab import runs
from rllc.lab.evidence.drawing import write_picture
from rllc.lab.files import write_text
from rllc.lab.memoryless import (
    claim,
    claim_report,
    cost,
    effects,
    explicit,
    explicit_report,
    law,
    records,
    slopes,
)

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "results" / "paper.parquet"
OUT = ROOT / "results" / "memoryless"


class Report(NamedTuple):
    """What is made of a file of runs: a text, and a picture if there is one."""

    text: Callable[[dict[str, Any]], str]
    picture: Callable[[dict[str, Any]], Figure] | None = None


REPORTS = {
    "slopes": Report(slopes.markdown),
    "claim": Report(claim_report.markdown, claim_report.figure),
    "explicit": Report(explicit_report.markdown, explicit_report.figure),
    "cost": Report(cost.markdown),
}
RECORDLESS = ("law", "optax")  # made of other records, or of none
EXPERIMENTS = {"slopes": slopes.experiment, "claim": claim.experiment, "explicit": explicit.experiment}


def text_of(name: str, folder: Path = OUT) -> str:
    """NAME.md as it is made from the records."""
    if name == "law":
        return law.markdown(_law_paths())
    if name == "optax":
        return effects.measured_table()
    return REPORTS[name].text(records.read(folder / f"{name}.json"))


def redraw(name: str, folder: Path = OUT) -> None:
    """NAME.md and NAME.png."""
    write_text(folder / f"{name}.md", text_of(name, folder))
    if name == "law":
        write_picture(folder / "law.png", law.figure(_law_paths()))
    elif name in REPORTS and (picture := REPORTS[name].picture):
        write_picture(folder / f"{name}.png", picture(records.read(folder / f"{name}.json")))


def _law_paths() -> list[law.Path]:
    found, _ = runs.gather(str(RECORDS))
    return law.paths(found)


def main() -> None:
    """Run one experiment and write what it says, or write everything again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=[*REPORTS, *RECORDLESS, "redraw"])
    what = parser.parse_args().what
    if what in EXPERIMENTS:
        EXPERIMENTS[what](OUT / f"{what}.json")
    elif what == "cost":
        records.write(OUT / "cost.json", {"costs": cost.measure()} | records.provenance())
    for name in [*REPORTS, *RECORDLESS] if what == "redraw" else [what]:
        redraw(name)
        print(OUT / f"{name}.md")


if __name__ == "__main__":
    main()
