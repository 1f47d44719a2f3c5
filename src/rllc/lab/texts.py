"""Small texts: Markdown tables, numbers, names, a line on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["counted", "is_memory", "minus", "over_seeds", "say", "signed", "table"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Markdown, padded; the first `left` columns to the left, the others to the right. Ends in a newline."""
    head, *rows = ([cell.replace("|", "\\|") for cell in cells] for cells in (head, *rows))
    widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(map(line, [head, rule, *rows])) + "\n"


def counted(n: int, what: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{n} {what}{'s' * (n > 1)}"


def is_memory(name: str) -> bool:
    """Whether this is a memory in the paper's notation: of optimizers in tables only these have brackets."""
    return "(" in name


def minus(text: str) -> str:
    """With the sign for minus, and none before zero."""
    shown = text.replace("-", "−")
    return shown.replace("−", "") if not shown.strip("−0.()") else shown


def over_seeds(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation (n - 1)."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return minus(f"{mean:.{digits}f}")
    deviation = (sum((x - mean) ** 2 for x in values) / (len(values) - 1)) ** 0.5
    return minus(f"{mean:.{digits}f}") + f" ± {deviation:.{digits}f}"


def signed(text: str) -> str:
    """With a plus where there is no minus."""
    return text if text.startswith("−") else f"+{text}"


def say(console: Console, line: str) -> None:
    """One line of plain text, however long."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
