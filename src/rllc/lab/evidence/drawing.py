"""What pictures share: colours the colour-blind can tell apart, lines with bands, labels at ends, files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from rllc.lab.errors import Refused
from rllc.lab.files import output
from rllc.lab.selection import Row
from rllc.lab.settings import RLLC_ADAMW
from rllc.notation import parse

__all__ = [
    "FAINT",
    "INK",
    "UNITS",
    "colours",
    "dress",
    "headed",
    "label_ends",
    "line",
    "plain",
    "spread",
    "title",
    "unit_names",
    "values",
    "write_picture",
]

Array = NDArray[np.float64]

# Okabe and Ito's colours and three more: as many as the paper has optimizers. Some always have the same;
# memories take the others in order.
ALWAYS = {"SGD": "#8A8A8A", "momentum SGD": "#56B4E9", "Adam": "#000000", RLLC_ADAMW: "#882255"}
MEMORIES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#6A4C93", "#7F5539", "#882255")
UNITS = ("-", "--", ":", "-.")
INK, FAINT = "#222222", "#DDDDDD"
LEADER = {"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each optimizer, baselines and RLLC-AdamW always the same."""
    own = {name: ALWAYS[name] for name in names if name in ALWAYS}
    rest = itertools.cycle(colour for colour in MEMORIES if colour not in own.values())
    return {name: own.get(name) or next(rest) for name in names}


def unit_names(memory: str, k: int) -> list[str]:
    """A name for each of k units: its block, and which of that; numbers where memory is not linear."""
    try:
        names = [name for block in memory.split(" + ") for name in _names_in(block)]
    except ValueError:
        names = []
    return names if len(names) == k else [f"unit {j + 1}" for j in range(k)]


def _names_in(block: str) -> list[str]:
    k = parse(block).k
    return [block] if k == 1 else [f"{block}  $m_{{{j}}}$" for j in range(1, k + 1)]


def spread(places: Sequence[float], room: float) -> list[float]:
    """The ascending places moved apart to be at least `room` from each other, as little as that takes."""
    least = room * np.arange(len(places))
    return (isotonic_regression(np.asarray(places) - least).x + least).tolist()


def values(row: Row, name: str) -> Array:
    """One column of the points: (seeds, points), or (seeds, points, k) for the law."""
    return np.array([[getattr(point, name) for point in record.result.points] for record in row.records])


def line(
    axes: Axes,
    steps: Array,
    values: Array,
    colour: str,
    style: str = "-",
    label: str = "",
    band: float = 0.12,
) -> None:
    """The mean of values (seeds, points), and a band of that opacity from the smallest to the largest."""
    axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=band, linewidth=0)
    axes.plot(steps, values.mean(0), style, color=colour, linewidth=1.7, label=label)


def title(axes: Axes, text: str, colour: str = INK) -> None:
    """A small title at the left."""
    axes.set_title(text, loc="left", fontsize=10, color=colour)


def headed(figure: Figure, text: str, size: float = 13) -> Figure:
    """The figure with a heading at the left, above all panels."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=size, fontweight="bold", color=INK)
    return figure


def dress(axes: Axes, x: str) -> None:
    """Two spines, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.tick_params(labelsize=9, colors=INK)


def plain(axes: Axes, x: str = "steps") -> None:
    """The same over steps, with commas in thousands."""
    dress(axes, x)
    axes.margins(x=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def window(curves: Sequence[Array]) -> tuple[float, float]:
    """Where curves (seeds, points) differ: from what half of them reach in a fifth of the run, ends in view.

    An end far below the others is left out of view, or all that is above it would look the same.
    """
    early = np.median([values.mean(0)[max(1, values.shape[1] // 5)] for values in curves])
    ends = [values[:, -1].min() for values in curves]
    high = max(values.max() for values in curves)
    far = np.median(ends) - 5 * (high - np.median(ends) + 0.5)
    low = max(min(early, *ends), far)
    room = 0.04 * max(high - low, 0.5)
    return low - room, high + room


def label_ends(
    axes: Axes,
    ends: Mapping[str, float],
    colour: Mapping[str, str],
    digits: int = 1,
    size: float = 9.5,
    room: float = 0.042,
) -> None:
    """Names and values at the right ends of curves, at least `room` of the height from each other."""
    low, high = axes.get_ylim()
    names = sorted(ends, key=lambda name: ends[name])
    at = [max(0.0, (ends[name] - low) / (high - low)) for name in names]
    for name, end, place in zip(names, at, spread(at, room), strict=True):
        axes.annotate(
            f"{name}  {f'{ends[name]:.{digits}f}'.replace('-', '−')}",
            (1, end),
            (1.03, place),
            xycoords="axes fraction",
            va="center",
            fontsize=size,
            color=colour[name],
            arrowprops=LEADER | {"color": colour[name]},
        )


def write_picture(path: Path, figure: Figure) -> None:
    """Write a figure whole or not at all, in the format of its ending.

    Raises:
        Refused: the ending is no format, or the file cannot be written.
        Broken: the disk is full.
    """
    kind = path.suffix.lstrip(".").lower()
    known = FigureCanvasBase.get_supported_filetypes()
    if kind not in known:
        raise Refused(f"{path} does not end in a format of pictures; known are {', '.join(sorted(known))}")
    with output(path) as file:
        figure.savefig(file, format=kind, dpi=160)
