"""Claims of arXiv 2402.15262 on its numbers, their spread over seeds, and time (Tables 1 and 2, A.4)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from rllc.lab.evidence import paper
from rllc.lab.evidence.notes import READING_NAMES, order_note
from rllc.lab.evidence.outcomes import (
    BENCHMARKS,
    Beside,
    Rows,
    accuracies,
    beside_paper,
    losses,
    others,
    quickest,
    tasks_in,
)
from rllc.lab.evidence.verdicts import HOLDS, NOT, PARTLY, UNTESTED, Match, Verdict, champions
from rllc.lab.optimizers import PAPER
from rllc.lab.records import Record
from rllc.lab.selection import READINGS, Row, finished
from rllc.lab.studies import PAPER_TASKS
from rllc.lab.texts import minus
from rllc.notation import parse
from rllc.propagator import jordan_blocks

__all__ = ["consistency", "numbers", "reliability", "time"]

MOST_CELLS, HALF = 0.9, 0.5
UNITS_APART = 2.0
SIMILAR, DEARER = 1.1, 1.5  # ms/step over Adam's
TIMED = (
    "PyTorch on a CPU, with other runs beside it; on small networks it is mostly the overhead of calls. The"
    " optimizer alone, against torch's and optax's, is what benchmarks/cost.py times."
)
SIMPLEST = "M(0.9) + M(0.0)"


def numbers(found: Rows) -> Verdict:
    """Whether the paper's accuracies come out again, and under which reading."""
    cells = beside_paper(found)
    near = {which: _share(cells, which) for which in READINGS}
    best = max(near.values())
    word = HOLDS if best >= MOST_CELLS else PARTLY if best >= HALF else NOT
    return Verdict(
        "The accuracies of Tables 1 and 2 come out again.",
        "Tables 1 and 2, which do not say at which evaluation of a run they measure",
        word if cells else UNTESTED,
        f"{_nearness(cells, near)} {order_note(found)}".strip()
        if cells
        else "No task has run the paper's steps with two seeds.",
        "On tasks that ran the paper's 10,000 steps. Holds: under some reading nine tenths of its accuracies"
        " lie within two units √(s² + s²) of ours, s the two standard deviations over seeds (3.5 standard"
        " errors of the difference, which is lenient); does not: under none a half.",
    )


def _share(cells: Sequence[Beside], which: str) -> float:
    """The part of the paper's accuracies that lie near ours."""
    return sum(_is_near(cell, which) for cell in cells) / max(1, len(cells))


def _is_near(cell: Beside, which: str) -> bool:
    ours = accuracies(cell.row, which)
    unit = math.hypot(ours.std or 0.0, cell.printed.std)
    return abs(ours.mean - cell.printed.accuracy) <= UNITS_APART * unit


def _nearness(cells: Sequence[Beside], near: Mapping[str, float]) -> str:
    """Each reading's distance from the paper."""
    apart = {which: [_points_above(cell, which) for cell in cells] for which in READINGS}
    loss = {which: [losses(c.row, which).mean / c.printed.loss for c in cells] for which in READINGS}
    said = [
        f"{READING_NAMES[which]} {100 * near[which]:.0f} % within two units, ours {_beside(apart[which])}"
        f" the paper's in the median ({_sizes(apart[which])} in size), losses"
        f" {statistics.median(loss[which]):.2f} times the paper's"
        for which in READINGS
    ]
    by_accuracy = min(READINGS, key=lambda which: statistics.median(map(abs, apart[which])))
    by_loss = min(READINGS, key=lambda which: abs(math.log(statistics.median(loss[which]))))
    worst = max(cells, key=lambda cell: abs(_points_above(cell, by_accuracy)))
    return (
        f"{len(cells)} cells on {', '.join(dict.fromkeys(cell.task for cell in cells))}; {'; '.join(said)}."
        f" Nearest by accuracy: {READING_NAMES[by_accuracy]}; by loss: {READING_NAMES[by_loss]}. Furthest"
        f" off at {READING_NAMES[by_accuracy]}: {worst.row.name} on {worst.task},"
        f" {_signed([_points_above(worst, by_accuracy)])} points."
    )


def _points_above(cell: Beside, which: str) -> float:
    return 100 * (accuracies(cell.row, which).mean - cell.printed.accuracy)


def _signed(values: Sequence[float]) -> str:
    return minus(f"{statistics.median(values):+.2f}")


def _beside(points: Sequence[float]) -> str:
    """ "0.22 points below", of the median."""
    middle = statistics.median(points)
    return f"{abs(middle):.2f} points {'above' if middle >= 0 else 'below'}"


def _sizes(values: Sequence[float]) -> str:
    return f"{statistics.median(map(abs, values)):.2f}"


def reliability(found: Rows) -> Verdict:
    """M(0.9) + M(0) among the unions of real momenta."""
    names = [name for name in dict.fromkeys(name for _, name in found) if _is_multi_momentum(name)]
    tasks = [task for task in tasks_in(found) if all(_has_seeds(found, task, name) for name in names)]
    tested = SIMPLEST in names and len(names) > 1 and bool(tasks)
    measures = _measures(found, tasks, names) if tested else {}
    wins = [min(by, key=by.__getitem__) == SIMPLEST for by in measures.values()]
    numbers = (
        f"{what} {', '.join(f'{name} {100 * value:.2f}' for name, value in by.items())}"
        for what, by in measures.items()
    )
    return Verdict(
        "M(0.9) + M(0) is the most reliable of the multi-momentum optimizers.",
        "section 6",
        UNTESTED if not tested else HOLDS if all(wins) else PARTLY if any(wins) else NOT,
        f"In points, over {', '.join(tasks)}. {'; '.join(numbers)}. The paper speaks of M(0.9) + M(0.6) and"
        " M(0.9) + M(0.6) + M(0) as well and prints no numbers of them."
        if tested
        else "It takes two of them with two finished seeds or more.",
        "Reliable: a small standard deviation over seeds, in the mean over tasks, and a small shortfall, the"
        " largest distance on any task from the best memory there. Holds: it has the smallest of both under"
        " each reading; does not: of neither under any.",
    )


def _measures(found: Rows, tasks: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Standard deviation and shortfall of each of these memories under each reading."""
    measures = {}
    for which in READINGS:
        rows = {name: [found[task, name] for task in tasks] for name in names}
        label = READING_NAMES[which]
        measures[f"{label}, standard deviation:"] = {name: _mean_std(rows[name], which) for name in names}
        measures[f"{label}, shortfall:"] = {name: _shortfall(found, tasks, name, which) for name in names}
    return measures


def _is_multi_momentum(name: str) -> bool:
    if name in BENCHMARKS:
        return False
    blocks = jordan_blocks(parse(name)) or []
    return len(blocks) > 1 and all(order == 1 and isinstance(beta, float) for beta, order in blocks)


def _has_seeds(found: Rows, task: str, name: str) -> bool:
    return (task, name) in found and len(finished(found[task, name].records)) > 1


def _mean_std(rows: Sequence[Row], which: str) -> float:
    return statistics.mean(accuracies(row, which).std or 0.0 for row in rows)


def _shortfall(found: Rows, tasks: Sequence[str], name: str, which: str) -> float:
    """The largest distance on a task from the best memory there."""
    return max(
        max(accuracies(row, which).mean for row in others(found, task) if finished(row.records))
        - accuracies(found[task, name], which).mean
        for task in tasks
    )


def consistency(found: Rows) -> Verdict:
    """A.4.1: a spread over seeds that is small, and small beside the gains."""
    matches = [match for match in champions(found) if match.is_fair]
    spread = {which: _spreads(found, which) for which in READINGS}
    clear = {which: sum(_is_clear(match, which) for match in matches) for which in READINGS}
    small = [ours <= theirs for ours, theirs in spread.values() if ours is not None and theirs is not None]
    parts = [*small, *(2 * count > len(matches) for count in clear.values())]
    spreads = ", ".join(
        f"{READING_NAMES[which]} {100 * (ours or 0):.2f} and {100 * (theirs or 0):.2f}"
        for which, (ours, theirs) in spread.items()
    )
    gains = ", ".join(f"{READING_NAMES[which]} on {clear[which]}" for which in READINGS)
    return Verdict(
        "Results are consistent over seeds, with standard deviations far below the gains.",
        "A.4.1, Table 2, Figure 5",
        UNTESTED if not matches else HOLDS if all(parts) else PARTLY if any(parts) else NOT,
        f"Median standard deviation in points, memories and benchmarks: {spreads}. The gain is clear, of"
        f" {len(matches)} tasks: {gains}. In the paper's own Table 2 the gain of the best memory over the"
        f" best benchmark is clear on {_clear_in_paper()} of {len(PAPER_TASKS)} tasks."
        if matches
        else "It takes two finished seeds or more.",
        "A gain is that of the memory over the benchmark of best validation accuracy; it is clear if larger"
        " than twice the larger of their standard deviations. Holds: under each reading the memories' median"
        " standard deviation is no larger than the benchmarks', and the gain is clear on more than half of"
        " the tasks; does not: neither under any.",
    )


def _spreads(found: Rows, which: str) -> tuple[float | None, float | None]:
    """The median standard deviations of memories and of benchmarks over all tasks."""
    kinds: tuple[list[float], list[float]] = ([], [])
    for (_, name), row in found.items():
        std = accuracies(row, which).std
        if std is not None:
            kinds[name in BENCHMARKS].append(std)
    ours, theirs = (statistics.median(stds) if stds else None for stds in kinds)
    return ours, theirs


def _is_clear(match: Match, which: str) -> bool:
    ours, theirs = accuracies(match.ours, which), accuracies(match.theirs, which)
    return ours.mean - theirs.mean > UNITS_APART * max(ours.std or 0.0, theirs.std or 0.0)


def _clear_in_paper() -> int:
    return sum(_is_clear_in_paper(task) for task in PAPER_TASKS)


def _is_clear_in_paper(task: str) -> bool:
    cells = {name: cell for name in PAPER if (cell := paper.published(task, name))}
    ours = max((cells[name] for name in cells if name not in BENCHMARKS), key=lambda cell: cell.accuracy)
    theirs = max((cells[name] for name in BENCHMARKS), key=lambda cell: cell.accuracy)
    return ours.accuracy - theirs.accuracy > UNITS_APART * max(ours.std, theirs.std)


def time(found: Rows, records: Sequence[Record]) -> Verdict:
    """A.4.2: time of a training step beside Adam's."""
    # A GPU is shared by all runs beside: their number, not the optimizer, makes the time there. And which of
    # many short runs was the quickest is luck.
    ms = quickest([r for r in records if r.cell.device == "cpu" and r.cell.steps >= paper.STEPS])
    ratios = {task: by for task in tasks_in(found) if (by := _over_adam(found, ms, task))}
    median = statistics.median([ratio for by in ratios.values() for ratio in by.values()] or [math.nan])
    said = [
        f"{task}: {', '.join(f'{name} {ratio:.2f}' for name, ratio in by.items())}."
        for task, by in ratios.items()
    ]
    word = HOLDS if median <= SIMILAR else PARTLY if median <= DEARER else NOT
    return Verdict(
        "The compute time of RLLC optimizers is approximately that of the benchmarks.",
        "A.4.2, Figure 3",
        word if ratios else UNTESTED,
        " ".join([f"ms/step over Adam's, {median:.2f} in the median.", *said, TIMED])
        if ratios
        else "It takes Adam and a memory on one machine.",
        "A whole training step (batch, gradient, optimizer), the quickest of each optimizer's runs in full on"
        " a CPU, over Adam's on the same task and machine. Holds: the median of all ratios is at most 1.1;"
        " does not: it is above 1.5.",
    )


def _over_adam(found: Rows, ms: Mapping[tuple[str, str], float], task: str) -> dict[str, float]:
    """ms/step of each memory over Adam's."""
    names = [row.name for row in others(found, task) if (task, row.name) in ms]
    return {name: ms[task, name] / ms[task, "Adam"] for name in names if (task, "Adam") in ms}
