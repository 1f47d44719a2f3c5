"""Convex problems in float64: steps until the loss has come down to a millionth of its excess.

    .venv/bin/python benchmarks/convex.py [--out results]

Quadratics of given condition number and l2-regularised logistic regression on the digits, full gradients,
so that nothing is random. Every method has 42 settings. Writes convex.parquet (every trial), convex.md and
convex.png; about six minutes on one core. --redraw makes the last two from the first.
"""

from __future__ import annotations

import argparse
import itertools
import math
import operator
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import scipy.optimize
import torch
from matplotlib.figure import Figure
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor

from rllc.lab import texts
from rllc.lab.evidence.drawing import plain, title, write_picture
from rllc.lab.files import write_rows, write_text
from rllc.torch import RLLC

TARGET = 1e-6  # of the loss's excess over its minimum at the start
LIMIT = 10_000  # steps
DIVERGED = 1e6  # times the excess at the start

CONDITIONS = (10, 100, 1000, 10_000)
UNKNOWNS = 100
L2 = 1e-3


class Problem(NamedTuple):
    """A smooth convex loss and its minimum; `largest` is the largest eigenvalue of the Hessian there."""

    name: str
    start: Tensor
    loss_and_gradient: Callable[[Tensor], tuple[float, Tensor]]
    minimum: float
    largest: float


def quadratic(condition: float) -> Problem:
    """½ Σ λᵢ xᵢ², λ from 1 down to 1/condition in equal ratios; at the start all terms are equal.

    Diagonal, which is no restriction: all methods here commute with rotations.
    """
    eigenvalues = torch.logspace(0, -math.log10(condition), UNKNOWNS, dtype=torch.float64)

    def loss_and_gradient(x: Tensor) -> tuple[float, Tensor]:
        gradient = eigenvalues * x
        return 0.5 * float(x @ gradient), gradient

    return Problem(f"quadratic {condition:,}", eigenvalues.rsqrt(), loss_and_gradient, 0.0, 1.0)


def logistic() -> Problem:
    """Mean cross-entropy of 599 digits in ten classes plus ½ L2 |W|², from W = 0; one input is constant."""
    images, digits = (part[::3] for part in load_digits(return_X_y=True))  # as many as digits-mlp trains on
    inputs = torch.from_numpy(np.column_stack([images / 16, np.ones(len(images))]))
    classes = torch.eye(10, dtype=torch.float64)[:, torch.from_numpy(digits)]  # (10, n), as p is
    start = torch.zeros(10, inputs.shape[1], dtype=torch.float64)

    def loss_and_gradient(weights: Tensor) -> tuple[float, Tensor]:
        p = (weights @ inputs.T).softmax(0)
        loss = 0.5 * L2 * weights.square().sum() - (p * classes).sum(0).log().mean()
        return float(loss), (p - classes) @ inputs / len(inputs) + L2 * weights

    best = _minimiser(loss_and_gradient, start)
    largest = float(_logistic_eigenvalues(inputs, best)[-1])
    return Problem("logistic", start, loss_and_gradient, loss_and_gradient(best)[0], largest)


def _logistic_eigenvalues(inputs: Tensor, weights: Tensor) -> Tensor:
    """Of the Hessian, ascending: the mean over inputs x of (diag p - ppᵀ) ⊗ xxᵀ, plus L2."""
    p = (inputs @ weights.T).softmax(1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    hessian = torch.einsum("nij,na,nb->iajb", curvature, inputs, inputs) / len(inputs)
    return torch.linalg.eigvalsh(hessian.reshape(weights.numel(), -1)) + L2


def _minimiser(loss_and_gradient: Callable[[Tensor], tuple[float, Tensor]], start: Tensor) -> Tensor:
    def flat(x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = loss_and_gradient(torch.from_numpy(x).view_as(start))
        return loss, gradient.numpy().ravel()

    precise = {"ftol": 0.0, "gtol": 1e-9, "maxiter": 10_000, "maxfun": 100_000}
    found = scipy.optimize.minimize(flat, start.numpy().ravel(), jac=True, method="L-BFGS-B", options=precise)
    return torch.from_numpy(found.x).view_as(start)


@dataclass(frozen=True)
class Setting:
    """`lr` is in units of 1 / (the largest eigenvalue of the Hessian)."""

    lr: float
    beta: float | None = None
    law_lr: float | None = None


TRIALS = 42  # settings of each method
BETAS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99)
LRS = (0.1, 0.3, 1.0, 1.7, 2.8, 4.5)  # above 4 every fixed law diverges on a quadratic
LAW_LRS = (0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0)
LAW_LR = 0.01  # of M(β), which has a β to choose instead
FINE_LRS = tuple(float(f"{lr:.3g}") for lr in np.geomspace(0.1, 4.5, TRIALS))


def grid(
    lrs: Iterable[float], betas: Iterable[float | None] = (None,), law_lrs: Iterable[float | None] = (None,)
) -> tuple[Setting, ...]:
    """All combinations."""
    return tuple(Setting(*values) for values in itertools.product(lrs, betas, law_lrs))


METHODS = {
    "SGD": grid(FINE_LRS),
    "heavy ball, β = 0.9": grid(FINE_LRS, [0.9]),
    "heavy ball": grid(LRS, BETAS),
    "Nesterov": grid(LRS, BETAS),
    "M(0.9)": grid(LRS, law_lrs=LAW_LRS),
    "M(β)": grid(LRS, BETAS, (LAW_LR,)),  # heavy ball's pairs
    "M(0.9) + M(0.0)": grid(LRS, law_lrs=LAW_LRS),
}


FIXED, LEARNED, HEAVY, TWO_UNITS = "heavy ball", "M(β)", "heavy ball, β = 0.9", "M(0.9) + M(0.0)"
FIXED_LAWS = ("SGD", HEAVY, FIXED, "Nesterov")
LEVEL = 0.05  # steps that differ by less are called level

COLOURS = dict(
    zip(METHODS, ("#8A8A8A", "#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7"), strict=True)
)
PAIRS: dict[str, Callable[[float, float], bool]] = {
    "M(β) needs fewer steps": operator.gt,
    "heavy ball needs fewer steps": operator.lt,
    "only M(β) reaches the target": lambda fixed, learned: math.isinf(fixed) > math.isinf(learned),
    "only heavy ball reaches the target": lambda fixed, learned: math.isinf(fixed) < math.isinf(learned),
}


def optimizer(method: str, setting: Setting, x: Tensor, largest: float) -> torch.optim.Optimizer:
    """The method for one tensor of parameters."""
    lr = setting.lr / largest
    if setting.law_lr is not None:
        return RLLC([x], method.replace("β", str(setting.beta)), lr, setting.law_lr, foreach=False)
    return torch.optim.SGD([x], lr, setting.beta or 0.0, nesterov=method == "Nesterov", foreach=False)


class Trial(NamedTuple):
    """A row of convex.parquet; steps is None where the target was not reached.

    `excess` is the last loss's over the minimum, in units of that at the start; it is not finite, or over
    DIVERGED, in a run that diverged. `law` is the last law, empty where there is none.
    """

    problem: str
    method: str
    lr: float
    beta: float | None
    law_lr: float | None
    steps: int | None
    excess: float
    law: tuple[float, ...]


def trial(problem: Problem, method: str, setting: Setting) -> Trial:
    """Run one setting until the target, LIMIT steps or divergence."""
    x = problem.start.clone().requires_grad_()
    rule = optimizer(method, setting, x, problem.largest)
    first = problem.loss_and_gradient(problem.start)[0] - problem.minimum
    steps = None
    for step in range(LIMIT + 1):
        loss, x.grad = problem.loss_and_gradient(x.detach())
        excess = (loss - problem.minimum) / first
        if excess <= TARGET:
            steps = step
        if not TARGET < excess <= DIVERGED:
            break
        rule.step()
    law = tuple(rule.law.tolist()) if isinstance(rule, RLLC) else ()
    return Trial(problem.name, method, setting.lr, setting.beta, setting.law_lr, steps, excess, law)


def everything() -> list[Trial]:
    """All trials of all problems."""
    torch.set_num_threads(1)
    problems = [*map(quadratic, CONDITIONS), logistic()]
    todo = [(p, method, s) for p in problems for method, settings in METHODS.items() for s in settings]
    return [trial(*arguments) for arguments in track(todo, "convex")]


def read(path: Path) -> list[Trial]:
    """The trials of a file that `write_rows` wrote."""
    return [Trial(**row)._replace(law=tuple(row["law"])) for row in pq.read_table(path).to_pylist()]


# What is made of the trials.


def of(trials: Sequence[Trial], problem: str, method: str) -> list[Trial]:
    """The trials of one method on one problem, in the order of its grid."""
    return [t for t in trials if (t.problem, t.method) == (problem, method)]


def fewest(trials: Sequence[Trial], problem: str, method: str) -> float:
    """Steps of the best setting; infinite where none reached the target."""
    return min(_steps(t) for t in of(trials, problem, method))


def reached(trials: Sequence[Trial], problem: str, method: str) -> int:
    """How many settings reached the target."""
    return sum(t.steps is not None for t in of(trials, problem, method))


def steps_table(trials: Sequence[Trial]) -> str:
    """Markdown: the fewest steps of each method on each problem."""
    least = {p: min(fewest(trials, p, method) for method in METHODS) for p in _problems(trials)}

    def cell(problem: str, method: str) -> str:
        steps = fewest(trials, problem, method)
        return f"**{steps:,}**" if steps == least[problem] < math.inf else _count(steps)

    return _table(trials, cell, METHODS)


def settings_table(trials: Sequence[Trial]) -> str:
    """Markdown: the best setting, * at an edge of the grid, and how many settings reached the target."""

    def cell(problem: str, method: str) -> str:
        steps, count = fewest(trials, problem, method), reached(trials, problem, method)
        found = [t for t in of(trials, problem, method) if t.steps == steps]
        return f"{_setting_text(found[0])} ({count})" if found else f"none ({count})"

    return _table(trials, cell, METHODS)


def pairs_table(trials: Sequence[Trial]) -> str:
    """Markdown: heavy ball and M(β) at the same rate and β, counted over all pairs of these."""

    def cell(problem: str, what: str) -> str:
        fixed, learned = of(trials, problem, FIXED), of(trials, problem, LEARNED)
        return str(sum(PAIRS[what](_steps(a), _steps(b)) for a, b in zip(fixed, learned, strict=True)))

    return _table(trials, cell, PAIRS)


def notes(trials: Sequence[Trial]) -> list[str]:
    """What won and what lost, each with its numbers."""
    duels = {
        f"M(0.9) against {HEAVY}": ("M(0.9)", [HEAVY]),
        f"{LEARNED} against {FIXED}, β chosen in both": (LEARNED, [FIXED]),
        f"{TWO_UNITS} against {HEAVY}": (TWO_UNITS, [HEAVY]),
        f"{TWO_UNITS} against the best fixed law, β chosen": (TWO_UNITS, FIXED_LAWS),
    }
    return [f"- {what}: {_verdict(trials, *duel)}" for what, duel in duels.items()] + [_all_pairs(trials)]


def _all_pairs(trials: Sequence[Trial]) -> str:
    fixed, learned = ([t for t in trials if t.method == method] for method in (FIXED, LEARNED))
    pairs = [(_steps(a), _steps(b)) for a, b in zip(fixed, learned, strict=True)]
    return (
        f"- {LEARNED} against {FIXED} at the same rate and β: of {len(pairs)} pairs on all problems,"
        f" fewer steps with the learned law at {sum(a > b for a, b in pairs)}, with the fixed one at"
        f" {sum(a < b for a, b in pairs)}."
    )


def _verdict(trials: Sequence[Trial], ours: str, theirs: Sequence[str]) -> str:
    """Where the one is ahead, level or behind, with the steps of both at their best settings."""
    said: dict[str, list[str]] = {"ahead": [], "level": [], "behind": []}
    for problem in _problems(trials):
        mine = fewest(trials, problem, ours)
        other = min(fewest(trials, problem, method) for method in theirs)
        level = mine == other or abs(mine - other) < LEVEL * other
        word = "level" if level else "ahead" if mine < other else "behind"
        said[word].append(f"{problem} ({_count(mine)} against {_count(other)} steps)")
    return "; ".join(f"{word} on {', '.join(where)}" for word, where in said.items() if where) + "."


def _problems(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(t.problem for t in trials))


def _steps(found: Trial) -> float:
    return math.inf if found.steps is None else found.steps


def _count(steps: float) -> str:
    return "never" if math.isinf(steps) else f"{steps:,}"


def _setting_text(found: Trial) -> str:
    names = [name for name in ("lr", "beta", "law_lr") if getattr(found, name) is not None]
    return ", ".join(f"{getattr(found, name):g}{_edge(found, name)}" for name in names)


def _edge(found: Trial, name: str) -> str:
    tried = {getattr(setting, name) for setting in METHODS[found.method]}
    return "*" if len(tried) > 1 and getattr(found, name) in (min(tried), max(tried)) else ""


def _table(trials: Sequence[Trial], cell: Callable[[str, str], str], names: Iterable[str]) -> str:
    problems = _problems(trials)
    rows = [[name, *(cell(problem, name) for problem in problems)] for name in names]
    return texts.table(["", *problems], rows)


def report(trials: Sequence[Trial]) -> str:
    """convex.md."""
    parts = [
        textwrap.fill(WHAT, 110),
        steps_table(trials).rstrip(),
        textwrap.fill(IN_SHORT, 110),
        "\n".join(notes(trials)),
        textwrap.fill(SAME_PAIRS, 110),
        pairs_table(trials).rstrip(),
        textwrap.fill(BEST_SETTINGS, 110),
        settings_table(trials).rstrip(),
        "![steps against condition number](convex.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


WHAT = (
    f"Steps until f - min f is a millionth of what it was, at the best of {TRIALS} settings of each method;"
    f" bold is the fewest, *never* means that no setting got there in {LIMIT:,} steps. Full gradients in"
    f' float64, nothing is random. "quadratic c" has condition number c: {UNKNOWNS} eigenvalues in equal'
    f' ratios, each term an equal share of the loss at the start. "logistic" is regression on 599 digits of'
    f" scikit-learn, l2-regularised ({L2:g}); the eigenvalues of its Hessian at the minimum go from {L2:g} to"
    " 0.43."
    " Heavy ball, Nesterov and M(β) choose β, too; memories choose the law rate, M(β) does not."
)
IN_SHORT = (
    "A learned law mends a rate chosen badly; one unit whose rate and β are chosen well gains nothing by it."
    f" Steps that differ by less than {LEVEL:.0%} are level:"
)
SAME_PAIRS = (
    f"Heavy ball and M(β) have the same {TRIALS} pairs of rate and β; the law of M(β) learns at a rate of"
    f" {LAW_LR:g}. At how many of the pairs (the last two rows are part of the first two):"
)
BEST_SETTINGS = (
    "The best settings: rate times largest eigenvalue, then β, then law rate, as far as a method has them;"
    f" * is the largest or smallest tried. In parentheses, how many of the {TRIALS} settings reached the"
    f" target. That depends on the grid, which is finer where less is chosen: {TRIALS} rates from"
    f" {min(FINE_LRS):g} to {max(FINE_LRS):g}, or the rates {_listed(LRS)} with β among {_listed(BETAS)}"
    f" or with law rates among {_listed(LAW_LRS)}."
)


def picture(trials: Sequence[Trial]) -> Figure:
    """Steps of the best setting against the condition number of the quadratic; fixed laws solid."""
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.add_subplot()
    for method, colour in COLOURS.items():
        steps = [fewest(trials, quadratic(c).name, method) for c in CONDITIONS]
        style = "o-" if method in FIXED_LAWS else "o--"
        axes.plot(CONDITIONS, steps, style, color=colour, linewidth=1.7, markersize=4, label=method)
    plain(axes, "condition number")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.03)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    title(axes, f"steps to a millionth of the excess, quadratics: best of {TRIALS} settings")
    axes.legend(frameon=False, fontsize=9)
    return figure


def main() -> None:
    """Run all trials, or take them from the file, and write what is made of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the three files")
    parser.add_argument("--redraw", action="store_true", help="table and picture from the trials there")
    options = parser.parse_args()
    trials = read(options.out / "convex.parquet") if options.redraw else everything()
    write_rows(options.out / "convex.parquet", (trial._asdict() for trial in trials))
    write_text(options.out / "convex.md", report(trials))
    write_picture(options.out / "convex.png", picture(trials))
    print(report(trials))


if __name__ == "__main__":
    main()
