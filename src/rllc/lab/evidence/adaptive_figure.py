"""The picture of the study `adaptive`: what each contender reaches at the end, by its learning rate."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rllc.lab.adaptive import CONTENDERS, CONTROL, COSINE, Contender, Reached
from rllc.lab.evidence.adaptive import Result, Results, value
from rllc.lab.evidence.drawing import INK, colours, dress, title
from rllc.lab.settings import RLLC_ADAMW

__all__ = ["figure"]

# What differs from none of these but in its name is left out.
LEFT_OUT = {CONTROL, "Adam 0.003"}
SHOWN = tuple(contender for contender in CONTENDERS if contender.name not in LEFT_OUT)
# Those that are told apart, with a marker each for who does not see colours; the others are grey.
MARKERS = {
    RLLC_ADAMW: "o",
    "Adam": "s",
    COSINE: "D",
    "Adam, polynomial average": "^",
    "schedule-free AdamW": "v",
    "Muon": "X",
}
COLOURS = colours(list(MARKERS))
OTHERS, OTHER = "others", "#C8C8C8"
VIEW = {1: 16.0, -1: 1.0}  # points of accuracy, nats: what is further from the best is out of view
PANEL = 4.2, 3.0  # inches


def figure(results: Results) -> Figure:
    """A panel for each task, a line for each contender; rates are relative to the middle one of its own."""
    columns = 2 if len(results) in (2, 4) else min(len(results), 3)
    rows = math.ceil(len(results) / columns)
    spare = rows * columns > len(results)  # a place for the names
    height = PANEL[1] * rows + (0 if spare else 0.6)
    drawn = Figure(figsize=(PANEL[0] * columns, height), layout="constrained")
    grid = drawn.subplots(rows, columns, squeeze=False).flatten()
    for axes, (task, result) in zip(grid, results.items(), strict=False):
        _panel(axes, task, result)
    handles, names = grid[0].get_legend_handles_labels()
    legend = dict(sorted(zip(names, handles, strict=True), key=lambda pair: pair[0] == OTHERS))
    if spare:
        grid[-1].set_axis_off()
        grid[-1].legend(legend.values(), legend, loc="center", frameon=False, fontsize=10)
    else:
        drawn.legend(legend.values(), legend, loc="outside upper center", ncols=7, frameon=False, fontsize=10)
    return drawn


def _panel(axes: Axes, task: str, result: Result) -> None:
    stop = result.plan.stops[-1]
    title(axes, f"{task}, {stop:,} steps")
    dress(axes, "learning rate ÷ its default")
    axes.set_ylabel("test accuracy, %" if result.sign > 0 else "validation loss, nats", fontsize=9, color=INK)
    axes.set_xscale("log")
    drawn = {c.name: _line(c, result.found.get((c.name, stop)), stop) for c in SHOWN}
    for name, (rates, values) in drawn.items():
        ours, told = name == RLLC_ADAMW, name in MARKERS
        axes.plot(
            rates,
            values,
            marker=MARKERS.get(name),
            markersize=6 if ours else 4.5,
            linewidth=2.6 if ours else 1.3,
            color=COLOURS.get(name, OTHER),
            label=name if told else OTHERS,
            zorder=4 if ours else 3 if told else 2,
        )
    every = [number for _, values in drawn.values() for number in values]
    if every:
        _focus(axes, max(every) if result.sign > 0 else min(every), result.sign)


def _line(contender: Contender, reached: Reached | None, stop: int) -> tuple[list[float], list[float]]:
    """Rates over the usual one and what they reach; those that had diverged are left out."""
    usual = contender.rates[len(contender.rates) // 2]
    tried = reached.tried if reached else {}
    found = {rate: value(tried[rate], stop) for rate in contender.wide if rate in tried}
    points = [(rate / usual, number) for rate, number in found.items() if number is not None]
    return [rate for rate, _ in points], [number for _, number in points]


def _focus(axes: Axes, best: float, sign: int) -> None:
    """Show what is not far from the best."""
    room = 0.06 * VIEW[sign]
    axes.set_ylim(*sorted((best - sign * VIEW[sign], best + sign * room)))
