"""Pictures made from records, in colours that the colour-blind can tell apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.isotonic import isotonic_regression

from rllc.lab.selection import Row, finished
from rllc.notation import parse

__all__ = ["colours", "comparison", "unit_names"]

Array = NDArray[np.float64]

# Okabe and Ito's colours. Baselines are always these; memories take the others in order.
BASELINES = {"SGD": "#8A8A8A", "momentum SGD": "#56B4E9", "Adam": "#000000"}
MEMORIES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#6A4C93", "#7F5539")
UNITS = ("-", "--", ":", "-.")
INK, FAINT = "#222222", "#DDDDDD"
PANELS = 3  # law panels side by side
TITLE = 38  # characters that fit above one
LEADER = {"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
LABEL_ROOM = 0.042  # least distance of two labels, as a part of the height


def comparison(rows: Sequence[Row], title: str) -> Figure:
    """Validation accuracy of all rows, and below it the law's path of each row that has a law.

    Lines are means over seeds, bands go from the smallest to the largest; runs that diverged are left out.
    """
    colour = colours([row.name for row in rows])
    shown = [row for row in (row._replace(records=finished(row.records)) for row in rows) if row.records]
    laws = [row for row in shown if row.records[0].result.points[0].law]
    levels = -(-len(laws) // PANELS)
    figure = Figure(figsize=(10, 5.2 + 2.8 * levels), layout="constrained")
    grid = figure.add_gridspec(1 + levels, 1, height_ratios=[5.2] + [2.8] * levels)
    _accuracies(figure.add_subplot(grid[0]), shown, colour)
    for level in range(levels):
        panels = laws[level * PANELS : (level + 1) * PANELS]
        cells = grid[1 + level].subgridspec(1, PANELS if levels > 1 else len(panels))
        for place, row in enumerate(panels):
            _law(figure.add_subplot(cells[place]), row, colour[row.name])
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", color=INK)
    return figure


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each optimizer, baselines always the same."""
    rest = itertools.cycle(MEMORIES)
    return {name: BASELINES.get(name) or next(rest) for name in names}


def unit_names(memory: str) -> list[str]:
    """A name for each unit of a memory in canonical notation: its block, and which of the block's units."""
    return [name for block in memory.split(" + ") for name in _names_in(block)]


def spread(places: Sequence[float], room: float) -> list[float]:
    """The ascending places moved apart to be at least `room` from each other, as little as that takes."""
    least = room * np.arange(len(places))
    return (isotonic_regression(np.asarray(places) - least) + least).tolist()


def _names_in(block: str) -> list[str]:
    k = parse(block).k
    return [block] if k == 1 else [f"{block}  $m_{{{j}}}$" for j in range(1, k + 1)]


def _accuracies(axes: Axes, rows: Sequence[Row], colour: dict[str, str]) -> None:
    curves = {row.name: 100 * _values(row, "valid_accuracy") for row in rows}
    for row in rows:
        _line(axes, _values(row, "step")[0], curves[row.name], colour[row.name])
    _plain(axes)
    axes.set_title(
        "validation accuracy in %: mean, and smallest to largest over seeds",
        loc="left",
        fontsize=10,
        color=INK,
    )
    if curves:
        axes.set_ylim(*_window(list(curves.values())))
        _label_ends(axes, {name: values.mean(0)[-1] for name, values in curves.items()}, colour)


def _law(axes: Axes, row: Row, colour: str) -> None:
    paths = _values(row, "law")  # (seeds, points, k)
    for j, (unit, style) in enumerate(zip(unit_names(row.name), itertools.cycle(UNITS), strict=False)):
        _line(axes, _values(row, "step")[0], paths[:, :, j], colour, style, unit)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    name = row.name if len(row.name) <= TITLE else row.name[: TITLE - 3] + "..."
    axes.set_title(f"law of {name}", loc="left", fontsize=10, color=colour)
    if paths.shape[2] > 1:
        axes.legend(frameon=False, fontsize=8, handlelength=2.4)
    _plain(axes)


def _values(row: Row, name: str) -> Array:
    """One column of the points: (seeds, points), or (seeds, points, k) for the law."""
    return np.array([[getattr(point, name) for point in record.result.points] for record in row.records])


def _line(axes: Axes, steps: Array, values: Array, colour: str, style: str = "-", label: str = "") -> None:
    axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
    axes.plot(steps, values.mean(0), style, color=colour, linewidth=1.7, label=label)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0)
    axes.set_xlabel("steps", fontsize=9, color=INK)
    axes.tick_params(labelsize=9, colors=INK)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _window(curves: Sequence[Array]) -> tuple[float, float]:
    """Where curves differ: from what half of them reach in a fifth of the run, with the ends in view.

    An end far below the others is left out of view, or all that is above it would look the same.
    """
    early = np.median([values.mean(0)[max(1, values.shape[1] // 5)] for values in curves])
    ends = [values[:, -1].min() for values in curves]
    high = max(values.max() for values in curves)
    far = np.median(ends) - 5 * (high - np.median(ends) + 0.5)
    low = max(min(early, *ends), far)
    room = 0.04 * max(high - low, 0.5)
    return low - room, high + room


def _label_ends(axes: Axes, ends: dict[str, float], colour: dict[str, str]) -> None:
    """Names at the right ends of their curves, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    names = sorted(ends, key=lambda name: ends[name])
    at = [max(0.0, (ends[name] - low) / (high - low)) for name in names]
    for name, end, place in zip(names, at, spread(at, LABEL_ROOM), strict=True):
        axes.annotate(
            f"{name}  {ends[name]:.1f}",
            (1, end),
            (1.03, place),
            xycoords="axes fraction",
            va="center",
            fontsize=9.5,
            color=colour[name],
            arrowprops=LEADER | {"color": colour[name]},
        )
