"""`rllc table`, `rllc figure`, `rllc report`: what records say, printed, drawn and written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rllc.lab import runs
from rllc.lab.errors import Refused
from rllc.lab.evidence import adaptive, adaptive_figure, adaptive_tables, cost, figures, report, tables
from rllc.lab.evidence.drawing import write_picture
from rllc.lab.options import Figure, Report, Table
from rllc.lab.records import Record

__all__ = ["draw_figure", "print_table", "write_report"]


def print_table(options: Table, console: Console) -> None:
    """Print a table of the paper, or of another study, for a file or a terminal of any width.

    Raises:
        Refused: there are no records, or none of that study, or nothing to print beside them.
    """
    found = runs.readable(options.folder)
    if options.study == "adaptive":
        sys.stdout.write(_of_adaptive(options, found))
        return
    which = options.number if options.study == "table1" else options.study
    against = "paper" if options.against == "paper" else None
    sys.stdout.write(tables.render(tables.table(which, found, options.reading, against), options.format))


def _of_adaptive(options: Table, found: Sequence[Record]) -> str:
    """All tables of that study, in Markdown with the sentences that sum them up."""
    if options.against != "nothing":
        raise Refused(f"the paper has no table of {options.study}: leave out --against {options.against}")
    if options.reading != "all":
        raise Refused(
            f"{options.study} reads its runs at stopping times: leave out --reading {options.reading}"
        )
    if options.format == "markdown":
        return adaptive_tables.text(found)
    made = adaptive_tables.tables(adaptive.results_in(found))
    return "\n".join(tables.render(table, options.format) for table in made)


def draw_figure(options: Figure, console: Console) -> None:
    """Draw a figure of the paper, or the study adaptive's.

    Raises:
        Refused: there are no records for it, or the picture cannot be written.
        Broken: the disk is full.
    """
    match options.number:
        case 3:  # made from timings, not from runs
            drawing = cost.figure(options.folder)
        case 6:
            drawing = adaptive_figure.figure(adaptive.results_in(runs.readable(options.folder)))
        case number:
            drawing = figures.figure(number, runs.readable(options.folder))
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
