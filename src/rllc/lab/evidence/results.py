"""`rllc table`, `rllc figure`, `rllc report`: what records say, printed, drawn and written."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from rllc.lab import runs
from rllc.lab.evidence import cost, figures, report, tables
from rllc.lab.evidence.drawing import write_picture
from rllc.lab.options import Figure, Report, Table

__all__ = ["draw_figure", "print_table", "write_report"]

COST = 3  # the figure that is made from timings, not from runs


def print_table(options: Table, console: Console) -> None:
    """Print a table of the paper, or of another study, for a file or a terminal of any width.

    Raises:
        Refused: there are no records, or none of that study.
    """
    which = options.number if options.study == "table1" else options.study
    against = "paper" if options.against == "paper" else None
    made = tables.table(which, runs.readable(options.folder), options.reading, against)
    sys.stdout.write(tables.render(made, options.format))


def draw_figure(options: Figure, console: Console) -> None:
    """Draw a figure of the paper.

    Raises:
        Refused: there are no records for it, or the picture cannot be written.
        Broken: the disk is full.
    """
    if options.number == COST:
        drawing = cost.figure(Path(options.folder))
    else:
        drawing = figures.figure(options.number, runs.readable(options.folder))
    path = options.out or Path(f"figure{options.number}.png")
    write_picture(path, drawing)
    console.print(f"picture  {path}", style="bold")


def write_report(options: Report, console: Console) -> None:
    """Write the page.

    Raises:
        Refused: there are no records, or the page cannot be written.
        Broken: the disk is full.
    """
    found, damaged = runs.gather(options.folder)
    report.write(options.out, found, damaged)
    console.print(f"page  {options.out}: {len(found):,} runs", style="bold")
