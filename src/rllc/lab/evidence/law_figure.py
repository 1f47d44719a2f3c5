"""Figure 2 of arXiv 2402.15262 and its companion: the path of the law, and what it passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from rllc.lab.errors import Refused
from rllc.lab.evidence.drawing import FAINT, INK, headed, label_ends, line, plain, title, unit_names, values
from rllc.lab.evidence.law_claims import BETA, LIMIT, THREE, TWO
from rllc.lab.evidence.law_paths import crossings, lines, missed, rewriting
from rllc.lab.evidence.outcomes import Rows, is_full_length, tasks_in
from rllc.lab.selection import Row, finished
from rllc.notation import parse

__all__ = ["paths"]

Array = NDArray[np.float64]
UNITS = ("#D55E00", "#0072B2", "#009E73")
IN_TIME: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "fontsize": 9}
SMALL: dict[str, Any] = {"fontsize": 8.5, "color": INK, "zorder": 5}
OFFSET: dict[str, Any] = {"textcoords": "offset points", "fontsize": 10}
BESIDE = {
    "momentum": OFFSET | {"xytext": (0, 5), "ha": "center"},
    "NAG": OFFSET | {"xytext": (8, -6), "ha": "left"},
    "SGD": OFFSET | {"xytext": (6, 0), "ha": "left"},
}
NAME_AT = 0.35  # of a line's length: off the path, which begins beside NAG
LINES = {"momentum": "#D55E00", "NAG": "#9A4D8E", "SGD": "#0072B2"}


def paths(found: Rows) -> Figure:
    """Figure 2, on the task with most seeds, first of those not shortened; of equal ones the last in Table 1.

    Raises:
        Refused: no task has finished runs of both optimizers.
    """
    tasks = [task for task in tasks_in(found) if _seeds(found, task)]
    if not tasks:
        raise Refused(
            f'figure 2 needs {TWO} and {THREE} on one task: rllc run table1 --optimizers "{TWO}" "{THREE}"'
        )
    task = max(reversed(tasks), key=lambda task: (is_full_length(found, task), _seeds(found, task)))
    two, three = (found[task, name].without_diverged() for name in (TWO, THREE))
    figure = Figure(figsize=(12, 9), layout="constrained")
    grid = figure.add_gridspec(2, 2, wspace=0.06, hspace=0.08)
    _two_in_time(figure.add_subplot(grid[0, 0]), two)
    _plane(figure.add_subplot(grid[0, 1]), two)
    _three_in_time(figure.add_subplot(grid[1, 0]), three)
    _limit_in_time(figure.add_subplot(grid[1, 1]), three)
    seeds = "one seed" if len(two.records) == 1 else f"{len(two.records)} seeds"
    return headed(figure, f"The path of the law on {task}, {seeds}")


def _seeds(found: Rows, task: str) -> int:
    """The least number of finished seeds of the two optimizers."""
    rows = [found.get((task, name)) for name in (TWO, THREE)]
    return min(len(finished(row.records)) if row else 0 for row in rows)


def _two_in_time(axes: Axes, row: Row) -> None:
    _coefficients(axes, row, values(row, "law"), unit_names(TWO, 2))
    title(axes, f"a   law of {TWO}")
    for name, step in _first_crossings(row).items():
        axes.axvline(step, color=LINES[name], linewidth=1, linestyle=":")
        axes.annotate(f" {name}, step {step:,.0f}", (step, 0.99), va="top", color=LINES[name], **IN_TIME)


def _first_crossings(row: Row) -> dict[str, float]:
    """Where the mean path crosses each line first."""
    path = list(zip(values(row, "step")[0], values(row, "law").mean(0), strict=True))
    return dict(reversed(crossings(path, BETA)))


def _plane(axes: Axes, row: Row) -> None:
    """The mean path, those of the seeds faintly, and the laws of known optimizers as lines from 0."""
    laws, steps = values(row, "law"), values(row, "step")[0]
    reach = 1.15 * laws.max()
    low = np.minimum(laws.min((0, 1)), 0) - (0.3 * reach, 0.06 * reach)
    plain(axes, "coefficient of M(0.9)")
    axes.set_ylabel("coefficient of M(0.0)", fontsize=9, color=INK)
    axes.set(xlim=(low[0], reach), ylim=(low[1], reach))
    axes.xaxis.set_major_formatter("{x:g}")
    title(axes, "b   the same law in the plane, and those of known optimizers")
    for name, (x, y) in lines(BETA).items():
        end = reach / max(x, y)
        axes.plot((0, end * x), (0, end * y), color=LINES[name], linewidth=1.4, linestyle="--", zorder=1)
        near = NAME_AT * end
        axes.annotate(name, (near * x, near * y), color=LINES[name], **BESIDE[name])
    for path in laws:
        axes.plot(path[:, 0], path[:, 1], color=FAINT, linewidth=1.2, zorder=2)
    mean = laws.mean(0)
    axes.plot(mean[:, 0], mean[:, 1], color=INK, linewidth=1.8, zorder=3)
    for name, step in _first_crossings(row).items():
        at = [np.interp(step, steps, mean[:, j]) for j in (0, 1)]
        axes.plot(*at, "o", color=LINES[name], markersize=9, fillstyle="none", markeredgewidth=1.6, zorder=5)
    for i in range(0, len(steps), max(1, (len(steps) - 1) // 5)):
        _dot(axes, (mean[i, 0], mean[i, 1]), f"{steps[i]:,.0f}", left=mean[i, 0] < 0.2 * reach)


def _dot(axes: Axes, at: tuple[float, float], text: str, left: bool) -> None:
    axes.plot(*at, "o", color=INK, markersize=4.5, zorder=4)
    place: dict[str, Any] = {"xytext": (-6, 7), "ha": "right"} if left else {"xytext": (5, 6), "ha": "left"}
    halo = [withStroke(linewidth=3, foreground="white")]
    axes.annotate(text, at, textcoords="offset points", va="center", path_effects=halo, **SMALL, **place)


def _three_in_time(axes: Axes, row: Row) -> None:
    _coefficients(axes, row, values(row, "law"), unit_names(THREE, 3))
    title(axes, f"c   law of {THREE}")


def _limit_in_time(axes: Axes, row: Row) -> None:
    """The same steps in the units of the limit of appendix A.3, by least squares under white noise."""
    p, q, laws = parse(THREE), parse(LIMIT), values(row, "law")
    lost = max(missed(p, q, law) for path in laws for law in path)
    _coefficients(axes, row, laws @ rewriting(p, q).T, unit_names(LIMIT, 3))
    title(axes, f"d   the same steps, to {100 * lost:.1f} %, in units of {LIMIT}")


def _coefficients(axes: Axes, row: Row, laws: Array, names: Sequence[str]) -> None:
    """Each coefficient of laws (seeds, points, k) over steps, with its name at its end."""
    colour = dict(zip(names, UNITS, strict=False))
    for j, name in enumerate(names):
        line(axes, values(row, "step")[0], laws[:, :, j], colour[name], band=0.2)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    plain(axes)
    label_ends(axes, dict(zip(names, laws[:, -1].mean(0), strict=True)), colour, digits=2, room=0.055)
