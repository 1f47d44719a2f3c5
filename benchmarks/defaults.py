"""Why the defaults are what they are: eps of GramianRidge, and the first law L_0, on real tasks.

    .venv/bin/python benchmarks/defaults.py [--out results/defaults] [--workers N]

Every variant gets the same grid of rates; its score on a task is the best validation accuracy that any of
them reaches. Writes defaults.md beside the records, and runs only what has no record.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from rllc import FixedLaw, parse
from rllc.lab import sweep, texts
from rllc.lab.cells import Cell, points_for
from rllc.lab.files import replacing
from rllc.lab.records import read
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


def table(folder: Path) -> str:
    """Markdown: a row for each variant."""
    names = list(variants(MEMORIES[0]))
    head = ["variant", *STEPS, "worst memory", "mean of last", "diverged"]
    return texts.table(head, [_row(folder, name) for name in names])


def _row(folder: Path, variant: str) -> Sequence[str]:
    best: dict[str, list[float]] = {task: [] for task in STEPS}
    last, diverged = [], 0
    for task, memory in itertools.product(STEPS, MEMORIES):
        records = [read(folder, cell) for cell in cells(task, memory, variant)]
        chosen = choose(records)
        best[task].append(100 * best_point(chosen).valid_accuracy if chosen else 0.0)
        last += [100 * record.result.points[-1].valid_accuracy for record in finished(records)]
        diverged += len(records) - len(finished(records))
    means = [f"{statistics.mean(scores):.2f}" for scores in best.values()]
    worst = min(score for scores in best.values() for score in scores)
    return [variant, *means, f"{worst:.2f}", f"{statistics.mean(last):.2f}", str(diverged)]


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/defaults"), help="folder of the records")
    parser.add_argument("--workers", type=int, default=sweep.cores(), help="runs at a time")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = list(variants(MEMORIES[0]))
    everything = [cell for v in itertools.product(STEPS, MEMORIES, names) for cell in cells(*v)]
    todo = sweep.missing(options.out, everything, print)
    with sweep.pool(options.workers) as workers, Progress() as bar:
        shown = bar.add_task("defaults", total=sum(cell.steps for cell in todo))
        sweep.sweep(workers, options.out, todo, lambda steps: bar.update(shown, completed=steps))
    rates = f"{len(RATES)} pairs of rates, {len(MEMORIES)} memories ({', '.join(MEMORIES)})"
    steps = ", ".join(f"{task} {steps} steps" for task, steps in STEPS.items())
    note = (
        f"Best validation accuracy in % over {rates}, mean over the memories; seed 0; {steps}."
        " 'mean of last' is over all runs that did not diverge."
    )
    text = f"{table(options.out)}\n{note}\n"
    with replacing(options.out / "defaults.md") as file:
        file.write(text.encode())
    print(text, end="")


if __name__ == "__main__":
    main()
