"""The picture of the study `adaptive`: what each contender reaches at the end, by its learning rate."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rllc.lab.adaptive import CONTENDERS, CONTROL, Contender, Reached
from rllc.lab.evidence.adaptive import Result, Results, value
from rllc.lab.evidence.drawing import colours, dress, title
from rllc.lab.settings import RLLC_ADAMW

__all__ = ["figure"]

# What differs from none of these but in its name is left out.
LEFT_OUT = {CONTROL, "Adam 0.003"}
SHOWN = tuple(contender for contender in CONTENDERS if contender.name not in LEFT_OUT)
NAMES = [contender.name for contender in SHOWN]
COLOURS = colours(NAMES)
# There are fewer colours than contenders: the second of one colour is dashed.
STYLES = {
    name: "--" if COLOURS[name] in [COLOURS[n] for n in NAMES[:place]] else "-"
    for place, name in enumerate(NAMES)
}
VIEW = {1: 16.0, -1: 1.0}  # points of accuracy, nats: what is further from the best is out of view
PANEL = 5.0, 3.4  # inches


def figure(results: Results) -> Figure:
    """A panel for each task, a line for each contender; rates are relative to the middle one of its own."""
    rows, columns = math.ceil(len(results) / 2), min(len(results), 2)
    spare = rows * columns > len(results)  # a place for the names
    height = PANEL[1] * rows + (0 if spare else 2.4 / columns)
    drawn = Figure(figsize=(PANEL[0] * columns, height), layout="constrained")
    grid = drawn.subplots(rows, columns, squeeze=False).flatten()
    for axes, (task, result) in zip(grid, results.items(), strict=False):
        _panel(axes, task, result)
    handles, names = grid[0].get_legend_handles_labels()
    if spare:
        grid[-1].set_axis_off()
        grid[-1].legend(handles, names, loc="center", ncols=2, frameon=False, fontsize=10)
    else:
        ncols = 2 * columns
        drawn.legend(handles, names, loc="outside lower center", ncols=ncols, frameon=False, fontsize=8.5)
    return drawn


def _panel(axes: Axes, task: str, result: Result) -> None:
    stop = result.plan.stops[-1]
    title(axes, f"{task}, {'%' if result.sign > 0 else 'nats'} after {stop:,} steps")
    dress(axes, "learning rate over the usual one")
    axes.set_xscale("log")
    drawn = {c.name: _line(c, result.found.get((c.name, stop)), stop) for c in SHOWN}
    for name, (rates, values) in drawn.items():
        ours = name == RLLC_ADAMW
        axes.plot(
            rates,
            values,
            STYLES[name],
            marker="o",
            markersize=5 if ours else 3,
            linewidth=2.6 if ours else 1.2,
            color=COLOURS[name],
            label=name,
            zorder=3 if ours else 2,
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
