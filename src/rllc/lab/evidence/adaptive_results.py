"""`rllc table 1 FOLDER --study adaptive` and `rllc figure 6 FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from rllc.lab import runs
from rllc.lab.errors import Refused
from rllc.lab.evidence import adaptive, adaptive_figure, adaptive_tables
from rllc.lab.evidence.drawing import write_picture
from rllc.lab.evidence.markup import render
from rllc.lab.options import Figure, Table

__all__ = ["draw_figure", "print_tables"]


def print_tables(options: Table, console: Console) -> None:
    """Print all tables of the study, in Markdown with the sentences that sum them up.

    Raises:
        Refused: there are no records of the study, or there is nothing to print beside them.
    """
    if options.against != "nothing":
        raise Refused(f"the paper has no table of {options.study}: leave out --against {options.against}")
    if options.reading != "all":
        raise Refused(
            f"{options.study} reads its runs at stopping times: leave out --reading {options.reading}"
        )
    found = runs.readable(options.folder)
    if options.format == "markdown":
        sys.stdout.write(adaptive_tables.text(found))
        return
    tables = adaptive_tables.tables(adaptive.results_in(found))
    sys.stdout.write("\n".join(render(table, options.format) for table in tables))


def draw_figure(options: Figure, console: Console) -> None:
    """Draw what each optimizer reaches by its learning rate.

    Raises:
        Refused: there are no records of the study, or the picture cannot be written.
        Broken: the disk is full.
    """
    path = options.out or Path(f"figure{options.number}.png")
    write_picture(path, adaptive_figure.figure(adaptive.results_in(runs.readable(options.folder))))
    console.print(f"picture  {path}", style="bold")
