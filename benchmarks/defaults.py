"""Why the defaults are what they are: eps of GramianRidge, and the first law L_0, on real tasks.

    .venv/bin/python benchmarks/defaults.py [--out results/defaults] [--workers N]

Every variant gets the same grid of rates; its score on a task is the best validation accuracy that any of
them reaches. Writes defaults.md beside the folder of records, and runs only what has no record.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.progress import Progress

from rllc import FixedLaw, parse
from rllc.lab import sweep, texts
from rllc.lab.cells import Cell, points_for
from rllc.lab.checks import make_writable
from rllc.lab.errors import Broken, Refused
from rllc.lab.files import Folder
from rllc.lab.records import Record
from rllc.lab.selection import best_point, choose, finished
from rllc.lab.settings import Rllc
from rllc.lab.tasks import TASKS
from rllc.law import GramianRidge

STEPS = {"digits-mlp": 600, "fashion-mlp": 2000}
MEMORIES = ("M(0.9) + M(0.0)", "M_2(0.6)", "M(0.9) + M(0.8) + M(0.7)")
RATES = tuple(itertools.product((0.01, 0.03, 0.1), (0.003, 0.01)))
EPS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def first_laws(memory: str) -> dict[str, tuple[float, ...]]:
    """The candidates for L_0."""
    k = parse(memory).k
    gains = [FixedLaw(parse(memory), [float(i == j) for j in range(k)]).gain for i in range(k)]
    return {
        "ones": (1.0,) * k,
        "first unit only": (1.0,) + (0.0,) * (k - 1),
        "each unit of gain 1": tuple(1 / gain for gain in gains),
    }


def variants(memory: str) -> dict[str, tuple[float, tuple[float, ...]]]:
    """Name -> (eps, L_0)."""
    laws, default = first_laws(memory), GramianRidge().eps
    by_eps = {f"eps = {eps:g}, L_0 = ones": (eps, laws["ones"]) for eps in EPS}
    return by_eps | {f"eps = {default:g}, L_0 = {name}": (default, law) for name, law in laws.items()}


def cells(task: str, memory: str, variant: str) -> list[Cell]:
    """One run for each pair of rates."""
    eps, law = variants(memory)[variant]
    steps = STEPS[task]
    settings = [Rllc(memory, lr, c2, law, GramianRidge(eps)) for lr, c2 in RATES]
    return [
        Cell(TASKS[task], setting, 0, steps, points=points_for(TASKS[task], steps)) for setting in settings
    ]


def every_cell() -> list[Cell]:
    """Each run once: variants meet where one law, or one eps, is another's."""
    asked = itertools.product(STEPS, MEMORIES, variants(MEMORIES[0]))
    return list(dict.fromkeys(cell for what in asked for cell in cells(*what)))


def table(found: Mapping[Cell, Record]) -> str:
    """Markdown: a row for each variant."""
    head = ["variant", *STEPS, "worst memory", "mean of last", "diverged"]
    return texts.table(head, [_row(found, name) for name in variants(MEMORIES[0])])


def _row(found: Mapping[Cell, Record], variant: str) -> Sequence[str]:
    best: dict[str, list[float]] = {task: [] for task in STEPS}
    last, diverged = [], 0
    for task, memory in itertools.product(STEPS, MEMORIES):
        records = [found[cell] for cell in cells(task, memory, variant)]
        chosen = choose(records)
        best[task].append(100 * best_point(chosen).valid_accuracy if chosen else 0.0)
        last += [100 * record.result.points[-1].valid_accuracy for record in finished(records)]
        diverged += len(records) - len(finished(records))
    means = [f"{statistics.mean(scores):.2f}" for scores in best.values()]
    worst = min(score for scores in best.values() for score in scores)
    return [variant, *means, f"{worst:.2f}", f"{statistics.mean(last):.2f}", str(diverged)]


def note() -> str:
    """What the table's numbers are."""
    rates = f"{len(RATES)} pairs of rates, {len(MEMORIES)} memories ({', '.join(MEMORIES)})"
    steps = ", ".join(f"{task} {steps} steps" for task, steps in STEPS.items())
    return (
        f"Best validation accuracy in % over {rates}, mean over the memories; seed 0; {steps}."
        " 'mean of last' is over all runs that did not diverge."
    )


def made(out: Folder, wanted: Sequence[Cell], workers: int) -> dict[Cell, Record]:
    """The record of every cell; those that are missing are made.

    Raises:
        Refused: the folder cannot be written.
        Broken: a worker was killed, memory ran out, or the disk is full; finished runs are kept.
    """
    make_writable(out / "records")
    there = sweep.kept(out / "records", wanted, print)
    todo = [cell for cell in wanted if cell not in there]
    with sweep.pool(workers) as pool, Progress() as bar:
        shown = bar.add_task("defaults", total=sum(cell.steps for cell in todo))
        lost = sweep.sweep(pool, out, todo, lambda steps: bar.update(shown, completed=steps), print)
    if lost:
        raise Broken(f"{len(lost)} runs ran out of memory and are missing; try fewer --workers")
    return there | sweep.kept(out / "records", todo, print)


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/defaults"), help="folder of the records")
    parser.add_argument("--workers", type=int, default=sweep.cores(), help="runs at a time")
    options = parser.parse_args()
    out = Folder(str(options.out)).absolute()
    try:
        found = made(out, every_cell(), options.workers)
    except (Broken, Refused) as reason:
        sys.exit(f"defaults: {reason}")
    text = f"{table(found)}\n{note()}\n"
    out.write("defaults.md", text.encode())
    print(text, end="")


if __name__ == "__main__":
    main()
