"""`rllc show "M(0.9) + M_2(0.6)"`: a memory and a law in numbers and, with --plot, in one picture.

Printed are the matrices B and a, eigenvalues, gain and mean delay of the law, how nearly dependent the units
are, and the normal form. Drawn are what each unit and the law keep of past gradients, and the eigenvalues.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rllc.lab.files import replacing
from rllc.laws import FixedLaw, gain_and_delay
from rllc.notation import parse
from rllc.propagator import Array, Propagator, jordan_blocks, union_of_blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Show", "draw", "main"]

# A wider matrix does not fit on a screen.
WIDEST_MATRIX = 8
MOST_NAMED = 15
PICTURES = (".png", ".pdf", ".svg")
# Okabe and Ito's colours, told apart by colour-blind readers, without their yellow, too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLES = ("-", "--", ":", "-.")
INK, FAINT, PALE = "#222222", "#8a8a8a", "#f4f6f8"
HALF_LIVES = (1, 3, 10)


@dataclass(frozen=True)
class Show:
    """Print a memory's matrices, eigenvalues and normal form, and what a law makes of it."""

    memory: Annotated[str, tyro.conf.Positional]
    """Memory in the paper's notation, for example "M(0.9) + M_2(0.6) + CM(0.3+0.2i)"."""
    law: tuple[float, ...] = ()
    """The law L, one number per memory unit. Without it, ones."""
    plot: Path | None = None
    """Also draw impulse responses and eigenvalues into this file (.png, .pdf or .svg)."""


def main(show: Show, console: Console | None = None) -> None:
    """Print, and with `plot` draw, what `show` asks for.

    Raises:
        ValueError: the memory, the law or the name of the picture cannot be read.
        OSError: the picture cannot be written.
    """
    memory = parse(show.memory)
    fixed = FixedLaw(memory, show.law or np.ones(memory.k))
    if show.plot is not None:  # first, so that nothing is printed if this fails
        draw(fixed, show.plot)
    console = console or Console()
    console.print(summary(fixed))
    if show.plot is not None:
        console.print(f"Drawn into {show.plot}", highlight=False, markup=False, soft_wrap=True)


def summary(fixed: FixedLaw) -> RenderableType:
    """All that is printed about a memory and its law."""
    p = fixed.propagator
    parts = [_matrices(p), _eigenvalues(p), _facts(fixed), _normal_form(p)]
    spaced = itertools.chain.from_iterable((Text(), part) for part in parts)
    return Group(Text(f"{p!r}: {p.k} memory unit{'s' * (p.k > 1)}", style="bold"), *spaced)


def _matrices(p: Propagator) -> RenderableType:
    if p.k > WIDEST_MATRIX:
        return Text(f"B is {p.k} × {p.k}, too wide to print: rllc.parse(...).B has it", style="dim")
    table = _table("", *(f"m_{j + 1}" for j in range(p.k)))
    for i, row in enumerate(p.B):
        table.add_row(f"B, old m_{i + 1}", *map(_number, row))
    table.add_row("a, gradient", *map(_number, p.a))
    return Group("Update M B + g aᵀ: column j is what the new m_j is made of", table)


def _eigenvalues(p: Propagator) -> RenderableType:
    table = _table("eigenvalue", "times", "modulus", "half-life", "one turn")
    for z, equal in itertools.groupby(p.eigenvalues):
        turn = abs(float(np.angle(z))) / (2 * math.pi)
        half_life = f"{math.log(0.5) / math.log(abs(z)) if z else 0:.3g}"
        times = str(len(list(equal)))
        table.add_row(_complex(z), times, _number(abs(z)), half_life, f"{1 / turn:.3g}" if turn else "–")
    return Group("Eigenvalues of B, and the steps in which a gradient halves and turns", table)


def _facts(fixed: FixedLaw) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_column(style="dim", ratio=1)
    for row in (_law(fixed), _gain(fixed), _delay(fixed), _least(fixed), _gramian(fixed)):
        table.add_row(*row)
    return table


def _law(fixed: FixedLaw) -> tuple[str, str, str]:
    shown = " ".join(map(_number, fixed.law[:WIDEST_MATRIX]))
    return "law L", shown + (" ..." if fixed.law.size > WIDEST_MATRIX else ""), "the step is M L"


def _gain(fixed: FixedLaw) -> tuple[str, str, str]:
    return "gain", _number(fixed.gain), "step for a gradient of 1 that stays 1"


def _delay(fixed: FixedLaw) -> tuple[str, str, str]:
    if math.isnan(tau := _mean_delay(fixed)):
        return "mean delay", "none", "the weights of past gradients cancel"
    sign = " (negative: extrapolates)" if tau < 0 else ""
    return "mean delay", f"{_number(tau)} steps", f"age of the gradients in a step{sign}"


def _mean_delay(fixed: FixedLaw) -> float:
    """The mean delay of the law, NaN where its weights cancel."""
    return float(gain_and_delay(fixed.propagator, fixed.law).delay)


def _least(fixed: FixedLaw) -> tuple[str, str, str]:
    value = f"{fixed.minimal_memory} of {fixed.propagator.k} units"
    return "least memory", value, "for this law, while it is fixed"


def _gramian(fixed: FixedLaw) -> tuple[str, str, str]:
    p = fixed.propagator
    values = np.linalg.eigvalsh(p.gramian())
    dependent = p.reachable()[1].k < p.k  # an eigenvalue of zero comes out as one of rounding's size
    value = "dependent" if dependent else f"{values[-1] / values[0]:.3g}"
    return "Gramian", value, "condition under white noise (1: orthonormal)"


def _normal_form(p: Propagator) -> RenderableType:
    try:
        form = p.normal_form()
    except ValueError as reason:
        return Text.assemble(("no normal form  ", "bold"), str(reason))
    text = Text.assemble(("normal form  ", "bold"), repr(form.propagator))
    dropped = p.k - form.propagator.k
    return text.append(f"  {dropped} of the {p.k} units only repeat the others" * (dropped > 0), style="dim")


def _table(*headings: str) -> Table:
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _number(x: float) -> str:
    return f"{x + 0.0:.6g}"  # no -0


def _complex(z: complex) -> str:
    sign = "-" if z.imag < 0 else "+"
    return _number(z.real) if z.imag == 0 else f"{_number(z.real)} {sign} {abs(z.imag):.6g}i"


def draw(fixed: FixedLaw, path: Path) -> None:
    """Draw the impulse responses of units and law, and the eigenvalues in the unit disk, into a file.

    Raises:
        ValueError: the file's name does not end in .png, .pdf or .svg, or matplotlib is not installed.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in PICTURES:
        raise ValueError(f"a picture is a file ending in {', '.join(PICTURES)}; got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(path.parent)!r} to write {path.name} into; make it first")
    try:
        figure = _figure(fixed)
    except ImportError:
        raise ValueError("a picture needs matplotlib; install it with: pip install 'rllc[lab]'") from None
    try:
        with replacing(path) as file:
            figure.savefig(file, format=path.suffix[1:].lower(), dpi=160)
    except OSError as reason:
        raise OSError(f"cannot write {path} ({reason.strerror}); choose another file") from reason


def _figure(fixed: FixedLaw) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # printing does without matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(11, 6), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["units", "disk"], ["law", "disk"]], width_ratios=(1.15, 1))
    figure.suptitle(_shortened(repr(fixed.propagator)), fontsize=14, fontweight="bold", color=INK)
    _draw_units(axes["units"], fixed.propagator)
    _draw_law(axes["law"], fixed)
    axes["law"].sharex(axes["units"])
    _draw_disk(axes["disk"], fixed.propagator)
    if fixed.propagator.k <= MOST_NAMED:
        figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=10, labelcolor=INK)
    return figure


def _draw_units(ax: Axes, p: Propagator) -> None:
    """What each unit keeps of the gradient i steps back, over its largest if they differ much in size."""
    rules = p.abstract_rule(_lags(p))
    largest = abs(rules).max(axis=0)
    scaled = largest.max() > 20 * largest.min()
    for j, (name, colour, style) in enumerate(_units(p)):
        _draw_response(ax, rules[:, j] / (largest[j] if scaled and largest[j] else 1), colour, style, name)
    _dress(ax, "Each unit: weight of the gradient i steps back" + (", over its largest" if scaled else ""))
    ax.tick_params(labelbottom=False)


def _draw_law(ax: Axes, fixed: FixedLaw) -> None:
    """What the law's step keeps of each past gradient, with the mean delay."""
    weights = fixed.weights(_lags(fixed.propagator))
    _draw_response(ax, weights, INK, "-", "")
    ax.fill_between(np.arange(weights.size), weights, color=INK, alpha=0.08, linewidth=0)
    tau = _mean_delay(fixed)
    delay = "no mean delay" if math.isnan(tau) else f"mean delay {tau:.4g} steps (dashed)"
    _dress(ax, f"The law's step: gain {fixed.gain:.4g}, {delay}")
    ax.set_xlabel("i, steps back")
    if not math.isnan(tau):
        ax.axvline(tau, color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)))


def _draw_response(ax: Axes, weights: Array, colour: str, style: str, name: str) -> None:
    marker = "o" if weights.size <= 40 else ""  # few enough to see that time has steps
    ax.plot(weights, style, color=colour, marker=marker, markersize=3.5, linewidth=1.6, label=name or None)


def _draw_disk(ax: Axes, p: Propagator) -> None:
    """Eigenvalues in the unit disk; circles mark half-lives, a number an eigenvalue's multiplicity."""
    from matplotlib.patches import Circle

    ax.add_patch(Circle((0, 0), 1, facecolor=PALE, edgecolor=INK, linewidth=1.2))
    for steps in HALF_LIVES:
        _draw_half_life(ax, steps)
    ax.plot([-1, 1, np.nan, 0, 0], [0, 0, np.nan, -1, 1], color=FAINT, linewidth=0.6)
    for z, m, colour in _spots(p):
        ax.plot(z.real, z.imag, "o", color=colour, markersize=10, markeredgecolor="white", clip_on=False)
        if m > 1:
            side = -1 if z.real > 0 else 1  # towards the middle
            ax.annotate(
                f"×{m}",
                (z.real, z.imag),
                (8 * side, 7),
                textcoords="offset points",
                ha="right" if side < 0 else "left",
                color=colour,
            )
    ax.set(aspect="equal", xlim=(-1.06, 1.06), ylim=(-1.06, 1.06), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, colors=FAINT)
    ax.set_title(
        "Eigenvalues in the unit disk (dotted: half-life in steps)", fontsize=11, color=INK, loc="left"
    )


def _draw_half_life(ax: Axes, steps: int) -> None:
    """The circle of the eigenvalues that halve a gradient in so many steps."""
    from matplotlib.patches import Circle

    radius = 0.5 ** (1 / steps)
    ax.add_patch(Circle((0, 0), radius, fill=False, edgecolor=FAINT, linewidth=0.7, linestyle=":"))
    place = radius * np.exp(1.25j * math.pi)
    halo = {"facecolor": PALE, "edgecolor": "none", "pad": 1.5}
    ax.text(place.real, place.imag, str(steps), color=FAINT, fontsize=9, ha="center", va="center", bbox=halo)


def _dress(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=11, color=INK, loc="left")
    ax.axhline(0, color=FAINT, linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.02)


def _lags(p: Propagator) -> int:
    """Steps until every unit has faded to 1% of its largest weight, from 8 to 1,000."""
    rules = abs(p.abstract_rule(1000))
    alive = (rules > 0.01 * rules.max(axis=0)).any(axis=1)
    return int(np.clip(np.flatnonzero(alive).max(initial=0) + 2, 8, 1000))


def _blocks(p: Propagator) -> list[tuple[str, complex, int]]:
    """(text, eigenvalue, order) of each block; none if p is not written in blocks."""
    blocks = jordan_blocks(p) or []
    return [(repr(union_of_blocks([(z, m)])), z, m) for z, m in blocks]


def _units(p: Propagator) -> Iterator[tuple[str, str, str]]:
    """(name, colour, line style) of each unit: a block has one colour, its units different lines."""
    names = [(text, 2 * m if isinstance(z, complex) else m) for text, z, m in _blocks(p)] or [("", 1)] * p.k
    number = itertools.count(1)
    for colour, (text, size) in zip(itertools.cycle(COLOURS), names, strict=False):
        for style in itertools.islice(itertools.cycle(STYLES), size):
            yield f"$m_{{{next(number)}}}$  {text}", colour, style


def _spots(p: Propagator) -> Iterator[tuple[complex, int, str]]:
    """(eigenvalue, multiplicity, colour) of each spot in the disk, coloured as the block's units."""
    blocks = _blocks(p)
    if not blocks:
        yield from ((complex(z), 1, INK) for z in p.eigenvalues)
    for colour, (_, z, m) in zip(itertools.cycle(COLOURS), blocks, strict=False):
        yield complex(z), m, colour
        if isinstance(z, complex):
            yield z.conjugate(), m, colour


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
