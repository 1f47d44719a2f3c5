"""What a step costs, in text and as Figure 3 of arXiv 2402.15262.

figure(folder)       Figure 3, from the folder's cost.parquet, which benchmarks/cost.py makes
verdicts(costs)      what the measurements say about the paper's claims (A.4.2)
tables(costs)        a table for each network
markdown(costs)      both, and how they were made
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rllc.lab.evidence import claims, cost_claims
from rllc.lab.evidence.drawing import FAINT, INK, headed
from rllc.lab.evidence.markup import MISSING, Entry, Group, Line, Table, render
from rllc.lab.evidence.timings import Cost, Network, networks, read
from rllc.lab.evidence.verdicts import Verdict
from rllc.lab.files import Folder

__all__ = ["drawn", "figure", "markdown", "tables", "verdicts"]

COLUMNS = (
    *("step, ms", "× Adam", "alone in PyTorch, ms", "× Adam", "alone in JAX, ms", "× Adam"),
    *("FLOPs a parameter", "% of the network's"),
)


def verdicts(costs: Sequence[Cost]) -> list[Verdict]:
    """The claims on clock time, on FLOPs, and on optimizers with as many memory units."""
    found = networks(costs)
    return [cost_claims.clock_time(found), cost_claims.flops(found), cost_claims.as_many_units(found)]


def tables(costs: Sequence[Cost]) -> list[Table]:
    """A table for each network, a line for each optimizer."""
    return [_table(on) for on in networks(costs)]


def markdown(costs: Sequence[Cost]) -> str:
    """The verdicts, the tables and how they were measured."""
    written = [render(table, "markdown") for table in tables(costs)]
    return "\n".join(["# What a step costs\n", claims.markdown(verdicts(costs)), *written, _made(costs), ""])


def _table(on: Network) -> Table:
    adam = on.step["Adam"]
    title = f"{adam.parameters:,} parameters, {on.flops / 1e6:,.0f} MFLOPs for a batch of {adam.batch}"
    groups = tuple(Group(name, (Line("", _entries(on, name)),)) for name in on.step)
    return Table(f"{on.task}: {title}", COLUMNS, groups, ())


def _entries(on: Network, name: str) -> tuple[Entry, ...]:
    times = [entry for by in (on.step, on.torch, on.jax) for entry in _times(by.get(name))]
    if name not in on.jax:
        return (*times, MISSING, MISSING)
    flops = on.update_flops(name)
    each = Entry(f"{flops / on.jax[name].parameters:.0f}")
    return (*times, each, Entry(f"{100 * flops / on.flops:.2g}"))


def _times(cost: Cost | None) -> tuple[Entry, Entry]:
    if cost is None:
        return MISSING, MISSING
    low, median, high = cost.ratio
    return Entry(_three_digits(cost.ms.median)), Entry(f"{median:.2f}", aside=f"({low:.2f}–{high:.2f})")


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _made(costs: Sequence[Cost]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in costs[0].versions.items())
    return (
        "Medians over rounds. In a round every optimizer does a few steps, in an order that changes, in one"
        " process and one thread; × Adam is the ratio within a round, in brackets its quartiles. A step is"
        " gradient and optimizer, on one batch of made-up images. Alone is the optimizer with the gradient"
        " given: step() in PyTorch; in JAX update and apply_updates under jit, of rllc.optax and of optax's"
        f" own SGD, momentum and Adam. {_rounds(costs)} {_compiling(costs)} FLOPs of the update are XLA's"
        " count, a square root counted as one, the k × k equations not counted; those of the network are"
        " PyTorch's count of matrix products and convolutions, forward and backward."
        f" Made {costs[0].made} on {costs[0].hardware}; {versions}."
    )


def _rounds(costs: Sequence[Cost]) -> str:
    pairs = ((on.task, on.step["Adam"], on.torch["Adam"]) for on in networks(costs))
    said = (
        f"{task}: {step.rounds} rounds of {step.steps} training steps, {alone.rounds} of {alone.steps} alone"
        for task, step, alone in pairs
    )
    return f"{'; '.join(said)}."


def _compiling(costs: Sequence[Cost]) -> str:
    """JAX compiles an update once."""
    seconds = {(c.task, c.optimizer): c.compile_seconds for c in costs if c.compile_seconds is not None}
    (task, name), most = max(seconds.items(), key=lambda item: item[1])
    adam = seconds[task, "Adam"]
    return f"Compiling is left out: up to {most:.0f} s ({name} on {task}; Adam there {adam:.1f} s)."


# --- Figure 3 -------------------------------------------------------------------------------------

DARK = {True: "#D55E00", False: "#555555"}  # RLLC, and the benchmarks
PALE = {True: "#F7D3BC", False: "#D0D0D0"}


def figure(folder: str | Path) -> Figure:
    """Figure 3, from the measurements in a folder.

    Raises:
        Refused: there are none.
        Damaged: they cannot be read.
    """
    return drawn(read(Folder(str(folder))))


def drawn(costs: Sequence[Cost]) -> Figure:
    """Seconds for 1,000 training steps, and below it the optimizer alone beside Adam; a column a network."""
    found = networks(costs)
    picture = Figure(figsize=(2.4 + 4 * len(found), 8.6), layout="constrained")
    panels = picture.subplots(2, len(found), sharey="row", squeeze=False)
    for (above, below), on in zip(panels.T, found, strict=True):
        _bars(above, on)
        _dots(below, on)
    for axes in panels.flat:
        _plain(axes)
    for left in panels[:, 0]:
        _name(left, found[0])
    return headed(picture, "What a step costs, on one thread of a CPU", size=14)


def _bars(axes: Axes, on: Network) -> None:
    """The whole step, its dark end the optimizer alone; ms a step are seconds for 1,000."""
    for row, (name, cost) in enumerate(on.step.items()):
        total, alone, ours = cost.ms.median, on.torch[name].ms.median, name in on.memories
        axes.barh(row, total, color=PALE[ours], height=0.7)
        axes.barh(row, alone, left=total - alone, color=DARK[ours], height=0.7)
        text = f" {_three_digits(total)} s  × {cost.ratio.median:.2f}"
        axes.text(total, row, text, va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 1.5 * max(cost.ms.median for cost in on.step.values()))
    axes.set_title(on.task, loc="left", fontsize=12, color=INK)
    axes.set_xlabel("s for 1,000 training steps, × Adam; dark: optimizer alone", fontsize=9, color=INK)


def _dots(axes: Axes, on: Network) -> None:
    """The optimizer alone: filled in PyTorch, hollow in JAX, with the quartiles."""
    for row, name in enumerate(on.step):
        colour = DARK[name in on.memories]
        for by, face in ((on.torch, colour), (on.jax, "white")):
            if name in by:
                low, median, high = by[name].ratio
                axes.plot([low, high], [row, row], color=colour, linewidth=1.5, zorder=2)
                axes.plot(median, row, "o", color=colour, markerfacecolor=face, markersize=7, zorder=3)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color=INK, linewidth=0.8, zorder=1)
    axes.set_xlabel("the optimizer alone, × Adam: ● PyTorch, ○ JAX", fontsize=9, color=INK)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9, colors=INK)


def _name(axes: Axes, on: Network) -> None:
    axes.set_yticks(range(len(on.step)), list(on.step), fontsize=9.5)
    axes.set_ylim(len(on.step) - 0.4, -0.6)
    for label in axes.get_yticklabels():
        label.set_color(DARK[label.get_text() in on.memories])
