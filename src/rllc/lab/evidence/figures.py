"""Pictures made from records.

    comparison(rows, title)        validation accuracies, and the law's path of each row that has one
    figure(2, records)             one of FIGURES of the paper

Figure 3, of times, is not made from runs: see `cost`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rllc.lab.errors import Refused
from rllc.lab.evidence import curve_figures, law_figure
from rllc.lab.evidence.drawing import (
    INK,
    UNITS,
    colours,
    headed,
    label_ends,
    line,
    plain,
    title,
    unit_names,
    values,
    window,
)
from rllc.lab.records import Record
from rllc.lab.selection import Row
from rllc.lab.studies import STUDIES, rows

__all__ = ["comparison", "figure"]

FIGURES = {
    1: curve_figures.resnet,
    2: law_figure.paths,
    4: curve_figures.others,
    5: curve_figures.seeds,
}
PANELS = 3  # law panels side by side, at most
TITLE = 38  # characters that fit above one


def figure(number: int, records: Sequence[Record]) -> Figure:
    """One of FIGURES of the paper, from the records of Table 1.

    Raises:
        Refused: there is no such figure, or the records it needs are missing; the message has the remedy.
    """
    if number not in FIGURES:
        raise Refused(f"there is no figure {number} from runs; there are {', '.join(map(str, FIGURES))}")
    return FIGURES[number](rows(STUDIES["table1"], records))


def comparison(rows: Sequence[Row], title: str) -> Figure:
    """Validation accuracy of all rows, and below it the law's path of each row that has a law.

    Lines are means over seeds, bands go from the smallest to the largest; runs that diverged are left out.
    """
    colour = colours([row.name for row in rows])
    shown = [row for row in (row.without_diverged() for row in rows) if row.records]
    laws = [row for row in shown if row.records[0].result.points[0].law]
    levels = -(-len(laws) // PANELS)
    wide = -(-len(laws) // max(levels, 1))  # of four panels two and two
    figure = Figure(figsize=(10, 5.2 + 2.8 * levels), layout="constrained")
    grid = figure.add_gridspec(1 + levels, 1, height_ratios=[5.2] + [2.8] * levels)
    _accuracies(figure.add_subplot(grid[0]), shown, colour)
    for level in range(levels):
        panels = laws[level * wide : (level + 1) * wide]
        cells = grid[1 + level].subgridspec(1, wide)
        for place, row in enumerate(panels):
            _law(figure.add_subplot(cells[place]), row, colour[row.name])
    return headed(figure, title, size=14)


def _accuracies(axes: Axes, rows: Sequence[Row], colour: dict[str, str]) -> None:
    curves = {row.name: 100 * values(row, "valid_accuracy") for row in rows}
    for row in rows:
        line(axes, values(row, "step")[0], curves[row.name], colour[row.name])
    plain(axes)
    title(axes, "validation accuracy in %: mean, and smallest to largest over seeds")
    if curves:
        axes.set_ylim(*window(list(curves.values())))
        label_ends(axes, {name: accuracies.mean(0)[-1] for name, accuracies in curves.items()}, colour)


def _law(axes: Axes, row: Row, colour: str) -> None:
    paths = values(row, "law")  # (seeds, points, k)
    names = unit_names(row.name, paths.shape[2])
    for j, (unit, style) in enumerate(zip(names, itertools.cycle(UNITS), strict=False)):
        line(axes, values(row, "step")[0], paths[:, :, j], colour, style, unit)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    name = row.name if len(row.name) <= TITLE else row.name[: TITLE - 3] + "..."
    title(axes, f"law of {name}", colour)
    if paths.shape[2] > 1:
        axes.legend(frameon=False, fontsize=8, handlelength=2.4)
    plain(axes)
