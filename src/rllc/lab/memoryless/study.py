"""`rllc memoryless NAME`: distances, orders, the verdict, a picture and a record.

plan(options)      everything checked
measure(plan)      a Study
"""

from __future__ import annotations

import math
import re
import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from rllc.lab import checks, tasks
from rllc.lab.errors import Refused, unknown
from rllc.lab.evidence.drawing import write_picture
from rllc.lab.files import Folder
from rllc.lab.memoryless import drawing, records
from rllc.lab.memoryless.command import Memoryless
from rllc.lab.memoryless.images import examples, initialise, mean_loss
from rllc.lab.memoryless.names import Chosen, Given, named
from rllc.lab.memoryless.orders import LAST, ROUNDING, errors, halvings, slope
from rllc.lab.memoryless.problems import PROBLEMS, Problem
from rllc.lab.texts import minus, say
from rllc.memoryless import ClosedForm, Effect, LongMemoryWarning, decay, memory_effect
from rllc.memoryless.effect import Form

__all__ = ["Measured", "Plan", "Study", "main", "measure", "order_text", "plan", "verdict"]

DIGITS = "digits-mlp"
TASKS = (*PROBLEMS, DIGITS)
HIDDEN = (140, 140)
FIRST_STEP = 0.02  # of the stationary direction on digits, in gradients
DIGITS_STEPS, INTERVALS = 250, 25
EXPECTED, NEAR = (1.0, 2.0), 0.1


@dataclass(frozen=True)
class Plan:
    """What will be done: None of `h`, `halvings` and `time` is the task's own."""

    chosen: Chosen
    tasks: tuple[str, ...]
    h: float | None
    halvings: int | None
    time: float | None


class Measured(NamedTuple):
    """One task: step sizes, steps of the largest, distances (step sizes, intervals, 2) without and with."""

    task: str
    sizes: NDArray[np.float64]
    steps: int
    distances: NDArray[np.float64]

    @property
    def largest(self) -> NDArray[np.float64]:
        """Over all steps, (step sizes, 2)."""
        return self.distances.max(1)

    @property
    def slopes(self) -> tuple[float, float]:
        """Without and with the correction."""
        return slope(self.sizes, self.largest[:, 0]), slope(self.sizes, self.largest[:, 1])


class Study(NamedTuple):
    """What was found; `decay` is the slowest measured, `warning` what is to be said of it."""

    measured: tuple[Measured, ...]
    effect: Effect
    decay: float
    warning: str
    seconds: float


def main(options: Memoryless, console: Console) -> None:
    """Do what `rllc memoryless` was asked.

    Raises:
        Refused: an option makes no sense, the step size is too large, the output cannot be written.
        Broken: the disk is full.
    """
    out = checks.folder_here(options.out)
    planned = plan(options)
    checks.make_writable(Folder(str(out)))
    found = measure(planned)
    chosen = planned.chosen
    say(console, chosen.title)
    for line in verdict(found):
        say(console, line)
    for table in _tables(found):
        console.print(table)
    console.print(
        f"Largest distance, over all n with n h <= T, between the optimizer and its memoryless counterpart;"
        f" order: over the last {LAST} halvings, or as many as there are, none where a distance is below"
        f" {ROUNDING:g}; * not within {NEAR} of 1 and 2: a smaller --h shows whether the step sizes are too"
        " large for the theory.",
        style="dim",
    )
    stem = out / f"memoryless-{_slug(chosen.name)}"
    write_picture(stem.with_name(stem.name + ".png"), drawing.study(chosen.title, found.measured))
    records.write(stem.with_name(stem.name + ".json"), record(planned, found))
    say(console, f"picture  {stem}.png")
    say(console, f"record   {stem}.json")


def plan(options: Memoryless) -> Plan:
    """The options checked.

    Raises:
        Refused: one of them makes no sense.
    """
    for task in options.task:
        if task not in TASKS:
            raise Refused(unknown("task", task, TASKS))
    if not options.task:
        raise Refused(f"--task names no task; known are {', '.join(TASKS)}")
    for name, value in (("--h", options.h), ("--time", options.time)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise Refused(f"{name} must be a positive finite number, got {value:g}")
    checks.counts({"--halvings": options.halvings})
    checks.folder(str(options.out))
    given = Given(options.beta, options.beta2, options.eps, options.weight_decay)
    chosen = named(options.name, given, options.law)
    return Plan(chosen, tuple(dict.fromkeys(options.task)), options.h, options.halvings, options.time)


def measure(plan: Plan) -> Study:
    """Run everything, in float64.

    Raises:
        Refused: the iterates do not stay finite, or the largest step is longer than the time.
    """
    started = time.perf_counter()
    with jax.enable_x64(True):
        problems = {task: _problem(task) for task in plan.tasks}
        fading, warning = _fading(plan.chosen.form, list(problems.values()))
        measured = tuple(_measured(plan, task, problem) for task, problem in problems.items())
    return Study(measured, memory_effect(plan.chosen.form), fading, warning, time.perf_counter() - started)


def _problem(task: str) -> Problem:
    if task in PROBLEMS:
        return PROBLEMS[task]()
    source = tasks.TASKS[task]
    assert isinstance(source, tasks.Task)
    train = examples(source).train
    start = initialise((train.inputs.shape[1], *HIDDEN, 10), 0)
    return Problem(lambda params: mean_loss(params, train, jnp.tanh), start)


def _fading(form: Form, problems: list[Problem]) -> tuple[float, str]:
    """The slowest decay of memory on these problems, and the warning if there is one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LongMemoryWarning)
        fading = max(decay(form.method(jax.grad(problem.loss)), problem.start) for problem in problems)
    said = [str(w.message) for w in caught if issubclass(w.category, LongMemoryWarning)]
    return fading, said[0] if said else ""


def _measured(plan: Plan, task: str, problem: Problem) -> Measured:
    small = task in PROBLEMS
    h = plan.h or (plan.chosen.largest if small else _first_step(plan.chosen.form, problem))
    intervals = 1 if small else INTERVALS
    wanted = plan.time / h if plan.time else (1 / h if small else DIGITS_STEPS)
    length = int(wanted / intervals + 1e-9)
    if length < 1:
        raise Refused(
            f"{intervals} steps of h = {h:g} exceed T = {wanted * h:g}; give a smaller --h or more --time"
        )
    sizes = halvings(h, plan.halvings or (7 if small else 2))
    found = errors(plan.chosen.form, problem, sizes, length, intervals)
    if not np.isfinite(found).all():
        raise Refused(f"on {task} the iterates do not stay finite with h = {h:g}; give a smaller --h")
    return Measured(task, sizes, length * intervals, found)


def _first_step(form: ClosedForm, problem: Problem) -> float:
    """h such that a step of the memoryless counterpart is FIRST_STEP gradients long."""
    grad = jax.grad(problem.loss)
    direction = form.terms(grad, form.stationary(), problem.start).direction
    length = float(optax.tree.norm(direction))
    if length == 0:
        raise Refused("this law has gain zero, and no step size of its own; give --h")
    return FIRST_STEP * float(optax.tree.norm(grad(problem.start))) / length


def verdict(found: Study) -> list[str]:
    """What memory does, in lines."""
    effect = found.effect
    varies = abs(effect.delay_at_zero - effect.delay) > 1e-3
    lines = [_effect_text(effect) + (", where gradients are large" if varies else "")]
    if varies:
        changes = effect.changes_at
        lines.append(
            f"Where gradients are small against sqrt(ε) τ is {_signed(effect.delay_at_zero)}"
            + (f"; it changes its sign at |g| = {changes:.3g}" if changes is not None else "")
        )
    fades = f"old gradients fade by a factor of {found.decay:.4f} a step, as measured"
    lines.append(f"Warning: {found.warning}" if found.warning else f"Memory decays: {fades}")
    return lines


def _effect_text(effect: Effect) -> str:
    if effect.verdict == "none":
        return "The weights of this law cancel: there is no mean delay, and no effect to this order"
    if effect.verdict == "neutral":
        return f"Memory is neutral to this order: τ = {_signed(effect.delay)}"
    return f"Memory {effect.verdict} {effect.norm}: mean delay τ = {_signed(effect.delay)} steps"


def _signed(value: float) -> str:
    return minus(f"{0.0 if abs(value) < 1e-6 else value:.4g}")


def _tables(found: Study) -> list[Table]:
    """One of the problems with equal step sizes; digits have one of their own."""
    small = [m for m in found.measured if m.task != DIGITS]
    groups = [small, [m for m in found.measured if m.task == DIGITS]]
    return [_table(group) for group in groups if group]


def _table(group: list[Measured]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("h", justify="right", no_wrap=True)
    for m in group:
        for what in ("without", "with"):
            table.add_column(f"{m.task}\n{what}", justify="right", no_wrap=True)
    for i, h in enumerate(group[0].sizes):
        table.add_row(f"{h:.3g}", *(f"{d:.2e}" for m in group for d in m.largest[i]))
    table.add_section()
    table.add_row("order", *(order_text(m, j) for m in group for j in (0, 1)), style="bold")
    return table


def order_text(measured: Measured, j: int) -> str:
    """The order without (0) or with (1) the correction, starred where it is not what is expected.

    "none" where a distance is rounding, and no order can be told.
    """
    found = measured.slopes[j]
    if math.isnan(found):
        return "none"
    return f"{found:.2f}" + ("*" if abs(found - EXPECTED[j]) > NEAR else "")


def record(plan: Plan, found: Study) -> dict[str, Any]:
    """The JSON record."""
    configuration = {
        "name": plan.chosen.name,
        "parameters": plan.chosen.parameters,
        "optimizer": repr(plan.chosen.form),
        "dtype": "float64",
    }
    result = {
        "effect": asdict(found.effect),
        "decay": found.decay,
        "tasks": [_of_task(m) for m in found.measured],
        "seconds": found.seconds,
    }
    return configuration | result | records.provenance()


def _of_task(measured: Measured) -> dict[str, Any]:
    without, with_ = measured.largest.T.tolist()
    found = {
        "task": measured.task,
        "h": measured.sizes.tolist(),
        "time": measured.steps * float(measured.sizes[0]),
        "without": without,
        "with": with_,
        "order_without": measured.slopes[0],
        "order_with": measured.slopes[1],
    }
    if measured.distances.shape[1] > 1:
        found["over_time"] = measured.distances.tolist()
    return found


def _slug(name: str) -> str:
    """A file's name: M(-0.5) is M-minus-0.5, because M(0.5) is M-0.5."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", re.sub(r"-(?=[0-9])", " minus ", name)).strip("-")
