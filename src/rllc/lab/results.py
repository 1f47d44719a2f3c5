"""`rllc table`, `rllc figure`, `rllc report`: what records say, printed, drawn and written."""

from __future__ import annotations

from rich.console import Console

from rllc.lab.options import Figure, Report, Table

__all__ = ["draw_figure", "print_table", "write_report"]


def print_table(options: Table, console: Console) -> None:
    raise NotImplementedError


def draw_figure(options: Figure, console: Console) -> None:
    raise NotImplementedError


def write_report(options: Report, console: Console) -> None:
    raise NotImplementedError
