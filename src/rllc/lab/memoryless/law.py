"""Gain and mean delay of recorded laws over training: does RLLC move toward regularising or away from it?

    paths(records)      a Path for each task and memory, of the runs in Table 1 of the paper
    markdown(paths)     a table; figure(paths), curves

What the theory has to say (docs/memoryless.md, section 6): with smooth gradients and the exact inverse the
law moves along the extrapolating law, of gain 1 and delay -1; where noise dominates along the averaging law.
Both are statements on the drift, and both have a gain that grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rllc.lab.evidence.drawing import INK, colours, headed, line, plain, title, values
from rllc.lab.evidence.outcomes import of_full_length
from rllc.lab.records import Record
from rllc.lab.studies import STUDIES, rows
from rllc.lab.texts import is_memory, minus, table
from rllc.memoryless import averaging_law, gain_and_delay
from rllc.notation import parse

__all__ = ["Path", "figure", "markdown", "paths"]

Array = NDArray[np.float64]

SHOWN = 0.05  # of the first gain: below it a delay is a quotient of two numbers near zero
HALF = 0.5
CLOSE = 0.25  # relative distance at which two delays are said to be alike
LIMITS = (-12.0, 26.0)
SIDE_BY_SIDE = 3  # tasks in the figure


class Path(NamedTuple):
    """Over (seeds, points): gain c0(L_t) and first moment m1(L_t) = c0 τ, at the steps (points,).

    `averaging` is the delay of the averaging law.
    """

    task: str
    memory: str
    steps: Array
    gain: Array
    moment: Array
    averaging: float

    @property
    def delay(self) -> Array:
        """τ, (seeds, points)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.moment / self.gain


def paths(records: Sequence[Record]) -> list[Path]:
    """Of the memories of Table 1 on tasks of the paper's length, at the rates that validation data chose."""
    found = of_full_length(rows(STUDIES["table1"], records))
    kept = {key: row.without_diverged() for key, row in found.items()}
    return [
        _path(task, name, values(row, "step")[0], values(row, "law"))
        for (task, name), row in kept.items()
        if is_memory(name) and row.records
    ]


def _path(task: str, name: str, steps: Array, laws: Array) -> Path:
    memory = parse(name)
    found = gain_and_delay(memory, laws)
    averaging = gain_and_delay(memory, averaging_law(memory)).delay
    moment = np.where(np.isnan(found.delay), 0.0, found.gain * found.delay)
    return Path(task, name, steps, found.gain, moment, float(averaging))


def half_way(path: Path) -> tuple[int, float] | None:
    """The first step at which the mean gain is below half of its first, and the mean law's delay just before;
    None if it never is."""
    gain = path.gain.mean(0)
    (below,) = np.nonzero(gain < HALF * gain[0])
    if not below.size:
        return None
    i = int(below[0])
    return int(path.steps[i]), float(path.moment.mean(0)[i - 1] / gain[i - 1])


def direction(path: Path) -> str:
    """Where the delay goes while the gain is above half of its first, or to the end."""
    first = float(path.delay[:, 0].mean())
    found = half_way(path)
    last = found[1] if found else float(path.moment[:, -1].mean() / path.gain[:, -1].mean())
    if abs(last - first) < 0.02 * abs(first):
        return "stays"
    return "rises" if last > first else "falls"


def end(path: Path) -> str:
    """What memory does at the end, by the sign of gain times moment; what the delay is near to."""
    gain, moment = path.gain[:, -1], path.moment[:, -1]
    if (abs(gain) < SHOWN * path.gain[:, 0]).all():
        return "gain gone"
    signs = {bool(x > 0) for x in moment * gain}
    if len(signs) > 1:
        return "seeds differ"
    return "regularises" if signs == {True} else "anti-regularises"


def alike(path: Path) -> str:
    """The regime whose delay that of every seed has at the end."""
    delay = path.delay[:, -1]
    if parse(path.memory).k == 1:
        return "one unit: fixed"
    if (abs(delay - path.averaging) < CLOSE * abs(path.averaging)).all():
        return "averaging"
    if (abs(delay + 1) < CLOSE).all():
        return "extrapolating"
    return "neither"


def markdown(found: Sequence[Path]) -> str:
    """The table and what it says."""
    head = ["task", "memory", "gain c0: start", "largest", "end", "τ: start", "to half the gain", "at step"]
    head += ["direction", "τ at the end, each seed", "at the end memory", "τ of averaging", "like"]
    body = [_line(path) for path in found]
    return table(head, body, left=2) + "\n" + "\n".join(f"- {note}" for note in _notes(found)) + "\n"


def _line(path: Path) -> list[str]:
    gain = path.gain.mean(0)
    half = half_way(path)
    return [
        path.task,
        path.memory,
        minus(f"{gain[0]:.2f}"),
        minus(f"{gain.max():.2f}"),
        minus(f"{gain[-1]:.2f}"),
        minus(f"{path.delay[:, 0].mean():.2f}"),
        "–" if half is None else minus(f"{half[1]:.2f}"),
        "never" if half is None else f"{half[0]:,}",
        direction(path),
        ", ".join(_delays(path)),
        end(path),
        minus(f"{path.averaging:.2f}"),
        alike(path),
    ]


def _delays(path: Path) -> list[str]:
    """Of each seed at the end, in brackets where the gain is next to nothing."""
    small = abs(path.gain[:, -1]) < SHOWN * path.gain[:, 0]
    return [
        minus(f"({tau:.0f})" if few else f"{tau:.1f}")
        for tau, few in zip(path.delay[:, -1], small, strict=True)
    ]


def _notes(found: Sequence[Path]) -> list[str]:
    several = [path for path in found if parse(path.memory).k > 1]
    count = len(several)
    moves = [direction(path) for path in several]
    ends = [end(path) for path in several]
    grown = sum(path.gain.mean(0).max() > 1.05 * path.gain.mean(0)[0] for path in found)
    ended = [path for path in found if path.gain.mean(0)[-1] < path.gain.mean(0)[0]]
    alikes = [alike(path) for path in several]
    return [
        f"Of {count} cells with two units or more, while the gain is above half of its first value the delay"
        f" falls in {moves.count('falls')}, rises in {moves.count('rises')} and stays in"
        f" {moves.count('stays')}: falling is toward anti-regularising, as with smooth gradients, rising as"
        " with noise.",
        f"At the end memory regularises in {ends.count('regularises')}, anti-regularises in"
        f" {ends.count('anti-regularises')}, seeds differ in {ends.count('seeds differ')}, and in"
        f" {ends.count('gain gone')} the gain is below {SHOWN:.0%} of its first with every seed, so that"
        " nothing is left to have an effect.",
        f"At the end the delay of every seed is within {CLOSE:.0%} of the averaging law's in"
        f" {alikes.count('averaging')} of {count}, of the extrapolating law's -1 in"
        f" {alikes.count('extrapolating')}.".replace("-1", "−1"),
        f"Against the theory: in both regimes the gain grows. Recorded gains end below their start in"
        f" {len(ended)} of {len(found)} cells, and exceed it by 5 % at any evaluation in {grown}; these runs"
        " are at rates that validation data chose, where steps are as long as they can be.",
        f"τ in brackets: the gain is below {SHOWN:.0%} of its first and τ a quotient of two small numbers."
        " Gains and delays of means over seeds, but for the last τ.",
    ]


def figure(found: Sequence[Path]) -> Figure:
    """Of each task the gain above and the delay below, three tasks side by side."""
    tasks = list(dict.fromkeys(path.task for path in found))
    memories = list(dict.fromkeys(path.memory for path in found))
    colour = colours(memories)
    columns = min(SIDE_BY_SIDE, len(tasks))
    bands = math.ceil(len(tasks) / columns)
    drawn = Figure(figsize=(4.6 * columns, 6.4 * bands + 0.8), layout="constrained")
    grid = drawn.subplots(2 * bands, columns, sharex=True, sharey="row", squeeze=False)
    pairs = [pair for band in range(bands) for pair in grid[2 * band : 2 * band + 2].T]
    for axes in (axes for pair in pairs[len(tasks) :] for axes in pair):
        axes.remove()
    for task, (above, below) in zip(tasks, pairs, strict=False):
        _draw(above, below, [path for path in found if path.task == task], colour)
        if above in grid[:, 0]:
            above.set_ylabel("gain c0(L)", fontsize=10, color=INK)
            below.set_ylabel("mean delay τ(L) in steps", fontsize=10, color=INK)
        title(above, task)
    grid[1, 0].annotate(
        " regularises ↑", (0.01, 0.6), xycoords=("axes fraction", "data"), fontsize=8, color=INK, va="bottom"
    )
    grid[1, 0].annotate(
        " anti-regularises ↓",
        (0.01, -1.4),
        xycoords=("axes fraction", "data"),
        fontsize=8,
        color=INK,
        va="top",
    )
    handles, labels = grid[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    seeds = max(path.gain.shape[0] for path in found)
    return headed(
        drawn,
        f"The law as a modified loss, means over {seeds} seeds; τ while the gain is above"
        f" {SHOWN:.0%} of its first;\ndotted: τ = −1 of smooth gradients; marks at the right: τ of averaging",
        size=12.5,
    )


def _draw(above: Axes, below: Axes, found: Sequence[Path], colour: Mapping[str, str]) -> None:
    """The gains and delays of one task."""
    for path in found:
        line(above, path.steps, path.gain, colour[path.memory], label=path.memory)
        below.plot(path.steps, _shown(path), color=colour[path.memory], linewidth=1.7)
        below.plot(
            [1.0, 1.03],
            [path.averaging] * 2,
            transform=below.get_yaxis_transform(),
            color=colour[path.memory],
            linewidth=2.5,
            clip_on=False,
        )
    for axes in (above, below):
        plain(axes, "")
        axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    below.axhline(-1, color=INK, linewidth=1, linestyle=":", zorder=1)
    below.set_xlabel("steps", fontsize=9, color=INK)
    below.set_ylim(*LIMITS)


def _shown(path: Path) -> Array:
    """τ of the mean law, NaN where there is next to no gain."""
    gain = path.gain.mean(0)
    return np.where(gain > SHOWN * gain[0], path.moment.mean(0) / np.where(gain == 0, 1.0, gain), np.nan)
