"""Pictures of distances: against the step size, and over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from rllc.lab.evidence.drawing import FAINT, INK, dress, headed, title

if TYPE_CHECKING:
    from rllc.lab.memoryless.study import Measured

__all__ = ["COLOURS", "logarithmic", "study"]

# Okabe and Ito's colours: the optimizer, its counterpart without the correction, and with it.
COLOURS = {"memory": "#000000", "without": "#D55E00", "with": "#0072B2"}
NAMES = ("without correction", "with correction")
STYLES = ("-", "--", ":", "-.")


def study(heading: str, measured: Sequence[Measured]) -> Figure:
    """A panel for each task."""
    figure = Figure(figsize=(max(6.2, 4.3 * len(measured)), 4.2), layout="constrained")
    for axes, found in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
        (_over_time if found.distances.shape[1] > 1 else _against_size)(axes, found)
    return headed(figure, f"{heading}\ndistance to the memoryless counterpart", size=12.5)


def _against_size(axes: Axes, found: Measured) -> None:
    """Largest distances over step sizes, log-log, with the orders that are expected as faint lines."""
    h = found.sizes
    for j, (colour, name) in enumerate(zip(_colours(), NAMES, strict=True)):
        d = found.largest[:, j]
        if not d.any():
            continue
        axes.loglog(h, d, "o-", color=colour, markersize=4, linewidth=1.7, zorder=3)
        axes.loglog(h, d[-1] * (h / h[-1]) ** (j + 1), color=FAINT, linewidth=3.5, zorder=1)
        _say_order(axes, name, found.slopes[j], 0.95 - 0.08 * j, colour)
    axes.margins(y=0.12)
    _make_room(axes, found, 0.22)
    dress(axes, "step size h (grey: orders 1 and 2)")
    axes.set_ylabel("largest distance, n h ≤ T", fontsize=9, color=INK)
    title(axes, f"{found.task}, T = {found.steps * h[0]:.3g}")


def _over_time(axes: Axes, found: Measured) -> None:
    """The largest distance in each interval of time, a line style for each step size."""
    intervals = found.distances.shape[1]
    ends = found.steps * found.sizes[0] * np.arange(1, intervals + 1) / intervals
    for i, h in enumerate(found.sizes):
        for j, colour in enumerate(_colours()):
            axes.semilogy(
                ends, found.distances[i, :, j], STYLES[i % len(STYLES)], color=colour, linewidth=1.6
            )
            axes.annotate(
                f"h = {h:.2g}" if j == 0 else "",
                (ends[-1], found.distances[i, -1, j]),
                (4, 0),
                textcoords="offset points",
                fontsize=8,
                color=colour,
                va="center",
            )
    for j, (colour, name) in enumerate(zip(_colours(), NAMES, strict=True)):
        _say_order(axes, name, found.slopes[j], 0.97 - 0.075 * j, colour)
    _make_room(axes, found, 0.25)
    dress(axes, "time n h")
    axes.set_ylabel("largest distance in the interval", fontsize=9, color=INK)
    title(axes, f"{found.task}, {found.steps} steps of the largest h")


def _make_room(axes: Axes, found: Measured, share: float) -> None:
    """For the words above the curves; distances that are all zero, which no logarithm shows, are told."""
    if not found.distances.any():
        axes.annotate("both distances are zero", (0.5, 0.5), xycoords="axes fraction", ha="center", color=INK)
        axes.set(xticks=[], yticks=[])
        return
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** share)


def _say_order(axes: Axes, name: str, order: float, height: float, colour: str) -> None:
    said = name if np.isnan(order) else f"{name}: order {order:.2f}"
    axes.annotate(said, (0.04, height), xycoords="axes fraction", color=colour, fontsize=9.5, va="top")


def _colours() -> tuple[str, str]:
    return COLOURS["without"], COLOURS["with"]


def logarithmic(axes: Axes) -> None:
    """A logarithmic y axis over few decades, with plain numbers at 1, 2 and 5."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
