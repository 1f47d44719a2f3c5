"""Figures 1, 4 and 5 of arXiv 2402.15262: test accuracy over training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rllc.lab.errors import Refused
from rllc.lab.evidence.drawing import (
    FAINT,
    INK,
    colours,
    headed,
    label_ends,
    line,
    plain,
    title,
    values,
    window,
)
from rllc.lab.evidence.outcomes import BENCHMARKS, Rows, is_full_length, steps_on, tasks_in
from rllc.lab.selection import Row

__all__ = ["others", "resnet", "seeds"]

RESNET = "cifar10-resnet20"
# Chosen beforehand, not for what they reach: each kind of memory that section 6 speaks of.
MEMORIES = ("M(0.9)", "M(0.9) + M(0.0)", "M(0.9) + M(0.8) + M(0.7)", "M(0.9) + M(0.0) + M_2(0.6)")
COLOURS = colours((*BENCHMARKS, *MEMORIES))


def resnet(found: Rows) -> Figure:
    """Figure 1: memories and benchmarks on ResNet-20.

    Raises:
        Refused: it has not been run.
    """
    rows = _shown(found, RESNET, (*BENCHMARKS, *MEMORIES), 1)
    if not rows:
        raise Refused(f"figure 1 is {RESNET}, which has not been run: rllc run table1 --tasks {RESNET}")
    figure = Figure(figsize=(9, 5), layout="constrained")
    _panel(figure.add_subplot(), rows, _length(found, RESNET), room=0.045)
    return headed(figure, f"Test accuracy in %, {_over_seeds(rows)}")


def others(found: Rows) -> Figure:
    """Figure 4: the same on every other task that has been run.

    Raises:
        Refused: none has.
    """
    shown = {task: _shown(found, task, (*BENCHMARKS, *MEMORIES), 1) for task in tasks_in(found)}
    panels = {task: rows for task, rows in shown.items() if rows and task != RESNET}
    if not panels:
        raise Refused(
            "figure 4 needs a task of Table 1 that has been run: rllc run table1 --tasks fashion-mlp"
        )
    every = [row for rows in panels.values() for row in rows]
    return headed(_grid(found, panels), f"Test accuracy in %, {_over_seeds(every)}")


def seeds(found: Rows) -> Figure:
    """Figure 5: memories with bands from the smallest to the largest of the seeds.

    Raises:
        Refused: no task has two seeds of one of them.
    """
    shown = {task: _shown(found, task, MEMORIES, 2) for task in tasks_in(found)}
    levels = {task: rows for task, rows in shown.items() if rows}
    if not levels:
        raise Refused("figure 5 shows how seeds differ and needs two of them: rllc run table1 --seeds 3")
    figure = Figure(figsize=(12.5, 0.7 + 2.6 * len(levels)), layout="constrained")
    grid = figure.subplots(len(levels), len(MEMORIES), sharex="row", sharey="row", squeeze=False)
    for (task, rows), panels in zip(levels.items(), grid, strict=True):
        _level(dict(zip(MEMORIES, panels, strict=True)), rows, _length(found, task))
    every = [row for rows in levels.values() for row in rows]
    return headed(figure, f"Test accuracy in %: {_over_seeds(every)}, and from the smallest to the largest")


def _level(panels: dict[str, Axes], rows: Sequence[Row], heading: str) -> None:
    """One task: a panel for each memory with its band, the means of the others faintly behind it."""
    curves = {row.name: 100 * values(row, "test_accuracy") for row in rows}
    for name, axes in panels.items():
        plain(axes)
        title(axes, name, COLOURS[name])
        for row in rows:
            if row.name != name:
                axes.plot(
                    values(row, "step")[0], curves[row.name].mean(0), color=FAINT, linewidth=1.2, zorder=1
                )
        for row in rows:
            if row.name == name:
                line(axes, values(row, "step")[0], curves[name], COLOURS[name], band=0.3)
                axes.set_xlabel(f"steps; at the end {_ends(curves[name])}", fontsize=9, color=INK)
                axes.set_xticks([0, row.records[0].cell.steps // 2, row.records[0].cell.steps])
    first = panels[MEMORIES[0]]
    first.set_ylim(*window(list(curves.values())))
    first.set_ylabel(heading.replace(", ", ",\n"), fontsize=10, fontweight="bold", color=INK)


def _ends(curve: NDArray[np.float64]) -> str:
    low, high = curve[:, -1].min(), curve[:, -1].max()
    return f"{low:.2f} to {high:.2f}"


def _shown(found: Rows, task: str, names: Sequence[str], least: int) -> list[Row]:
    """The task's rows of these names that have so many finished seeds, without those that diverged."""
    rows = [found[task, name] for name in names if (task, name) in found]
    ended = (row.without_diverged() for row in rows)
    return [row for row in ended if len(row.records) >= least]


def _grid(found: Rows, panels: dict[str, list[Row]]) -> Figure:
    """Panels side by side in two columns."""
    columns = min(2, len(panels))
    levels = -(-len(panels) // columns)
    figure = Figure(figsize=(6.7 * columns, 0.5 + 3.3 * levels), layout="constrained")
    grid = figure.add_gridspec(levels, columns, wspace=0.04, hspace=0.06)
    for place, (task, rows) in enumerate(panels.items()):
        _panel(figure.add_subplot(grid[place]), rows, _length(found, task), room=0.068)
    return figure


def _panel(axes: Axes, rows: Sequence[Row], heading: str, room: float) -> None:
    curves = {row.name: 100 * values(row, "test_accuracy") for row in rows}
    for row in rows:
        line(axes, values(row, "step")[0], curves[row.name], COLOURS[row.name], band=0.0)
    plain(axes)
    title(axes, heading)
    axes.set_ylim(*window(list(curves.values())))
    ends = {name: curve.mean(0)[-1] for name, curve in curves.items()}
    label_ends(axes, ends, COLOURS, digits=2, size=8.5, room=room)


def _length(found: Rows, task: str) -> str:
    return task if is_full_length(found, task) else f"{task}, shortened to {steps_on(found, task):,} steps"


def _over_seeds(rows: Sequence[Row]) -> str:
    counts = sorted({len(row.records) for row in rows})
    if counts == [1]:
        return "one seed"
    return f"mean over {' or '.join(map(str, counts))} seeds"
