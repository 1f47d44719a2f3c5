"""How the law of RLLC-AdamW should learn: variants of it, and what was predicted of them beforehand.

    .venv/bin/python benchmarks/law_study.py [--seeds N] [--tasks TASK ...] [--only NAME ...]
    .venv/bin/python benchmarks/law_study.py --draw       texts and picture from the records alone

Only what has no record in results/law-study.parquet is run. Runs on their way are under --runs, where what
was stopped goes on; finished ones go into the file, whatever stops the others. Then law-study.md and laws.png
are written beside it. A run takes half a minute to three minutes on one core; all variants with one seed take
two hours.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import law_predictions
from law_variants import (
    DRAWN,
    DRAWN_TASK,
    MARKS,
    MOST_SEEDS,
    READINGS,
    TEXT,
    VARIANTS,
    Pick,
    Study,
    by_seed,
    cells,
    drawn_cells,
    path,
    readings,
    scores,
    size_at,
    training_loss,
)
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich.progress import Progress

from rllc.lab import records, sweep, texts
from rllc.lab.cells import Cell, digest
from rllc.lab.errors import Broken, Refused
from rllc.lab.evidence.drawing import FAINT, INK, MEMORIES, dress, title, write_picture
from rllc.lab.files import Folder, replacing, write_text

OUT = Path(__file__).parents[1] / "results" / "law-study.parquet"

# --- Texts and picture --------------------------------------------------------------------------------

INTRODUCTION = f"""# How the law should learn

RLLC-AdamW's law was sought among the variants below with a prototype, one seed, and predictions written
down before the runs; `benchmarks/law_study.py` repeats them through the library. Directions of Adam have its
usual betas, nothing has weight decay, and all but cosine and two units have an average of power 9. Entries
are at that average, in parentheses at the weights as they are; means over the seeds for which there are
records. Training loss is the mean over the last tenth of the steps. c1 |L| is the effective learning rate,
the mean where there are several laws.

{{legend}}

{{tables}}

![c1 |L| over the steps](laws.png)

c1 |L| on {DRAWN_TASK}, seed 0. Wherever it begins, the default's law grows to about the same size, and then
anneals; begun at 1e-3 it goes too far, as it grows for at least 20 steps. An additive law with a large c2
loses all but a thirtieth within 1,000 steps and wanders on towards zero. × is where a loss diverged.
"""


def markdown(study: Study) -> str:
    """law-study.md."""
    tables = "\n\n".join(table(study, task) for task in MARKS)
    legend = "\n".join(f"- {name}: {variant.about}" for name, variant in VARIANTS.items())
    return "\n".join([INTRODUCTION.format(tables=tables, legend=legend), law_predictions.markdown(study)])


def table(study: Study, task: str) -> str:
    """Markdown: a row for each variant that has been run on a task."""
    marks = MARKS[task]
    seeds = max((len(by_seed(study, task, Pick(n, r))) for n in VARIANTS for r in readings(n)), default=0)
    what = "test loss in nats" if task == TEXT else "test accuracy in %"
    head = ["variant", *(f"{step:,}" for step in marks), "training loss"]
    head += [f"c1 &#124;L&#124; at {step:,}" for step in marks]
    rows = [row for name in VARIANTS if (row := _row(study, task, name))]
    if not rows:
        return f"## {task}: {what}\n\nNot run yet."
    said = f"## {task}: {what}, {seeds} seed{'' if seeds == 1 else 's'}\n\n"
    return said + texts.table(head, rows).rstrip()


def _row(study: Study, task: str, name: str) -> list[str] | None:
    runs = list((by_seed(study, task, Pick(name)) or by_seed(study, task, Pick(name, "last"))).values())
    if not runs:
        return None
    found = [_entry(study, task, name, step) for step in MARKS[task]]
    laws = [_mean([size_at(run, step) for run in runs], ".2g") for step in MARKS[task]]
    losses = [training_loss(run) for run in runs]
    return [name, *found, _mean(losses, ".3f" if statistics.mean(losses) < 1000 else ".1e"), *laws]


def _entry(study: Study, task: str, name: str, step: int) -> str:
    found = {r: scores(study, task, Pick(name, r), step).values() for r in READINGS}
    if any(map(math.isnan, (*found["average"], *found["last"]))):
        return "diverged"
    digits = ".4f" if task == TEXT else ".2f"
    return f"{_mean(found['average'], digits)} ({_mean(found['last'], digits)})"


def _mean(values: Iterable[float], digits: str) -> str:
    values = list(values)
    mean = statistics.mean(values) if values else math.nan
    return f"{mean:{digits}}" if math.isfinite(mean) else "–"


def figure(study: Study) -> Figure:
    """laws.png: c1 |L| over the steps."""
    drawing = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = drawing.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    for (name, label), colour in zip(DRAWN.items(), MEMORIES, strict=False):
        if not (points := path(study, name)):
            continue
        steps, sizes = zip(*points, strict=True)
        end = "x" if any(study[c].diverged for c in drawn_cells(study, name)) else ""
        (line,) = axes.plot(steps, sizes, color=colour, linewidth=1.9, label=label)
        line.set(marker=end, markevery=[-1], markersize=9, markeredgewidth=2)
    dress(axes, "steps")
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if axes.get_lines():
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    title(axes, f"effective learning rate c1 |L| on {DRAWN_TASK}")
    return drawing


# --- Records ------------------------------------------------------------------------------------------


def load(out: Path) -> Study:
    """The records in a Parquet file, none if there is none; raises Damaged."""
    found = records.unpack(out.read_bytes(), str(out)) if out.exists() else []
    return {record.cell: record for record in found}


def save(out: Path, study: Study) -> None:
    """Write them, the same bytes for the same records."""
    ordered = sorted(study.values(), key=lambda record: (record.cell.task.name, digest(record.cell)))
    with replacing(out) as file:
        file.write(records.pack(ordered))


def collect(out: Path, runs: Folder) -> Study:
    """What is in the file, and what is new in the folder of runs: written into the file."""
    fresh, _ = records.read_all(runs / "records")
    known = load(out)
    study = {record.cell: record for record in fresh} | known
    if len(study) > len(known):
        save(out, study)
    return study


def run(out: Path, runs: Folder, wanted: Sequence[Cell], workers: int) -> None:
    """Make the records that are missing; what is finished is kept whatever happens."""
    study = collect(out, runs)
    todo = [c for c in dict.fromkeys(wanted) if c not in study]
    print(f"{len(todo)} of {len(wanted)} runs are missing")
    if not todo:
        return
    try:
        with sweep.pool(workers) as pool, Progress() as bar:
            shown = bar.add_task("law study", total=sum(c.steps for c in todo))
            sweep.sweep(pool, runs, todo, lambda steps: bar.update(shown, completed=steps), print)
    finally:
        collect(out, runs)


def draw(out: Path) -> None:
    """law-study.md and laws.png beside the records."""
    study = load(out)
    write_text(out.with_suffix(".md"), markdown(study))
    write_picture(out.with_name("laws.png"), figure(study))
    print(f"{out.with_suffix('.md')}, {out.with_name('laws.png')}: {len(study)} runs")


def main() -> None:
    """Run what is missing, then write table, predictions and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=MARKS, default=list(MARKS), metavar="TASK")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1, help=f"1 to {MOST_SEEDS}")
    parser.add_argument("--readings", nargs="+", choices=READINGS, default=list(READINGS))
    parser.add_argument("--workers", type=int, default=sweep.cores(), help="runs at a time")
    parser.add_argument("--out", type=Path, default=OUT, help="Parquet file of the records")
    parser.add_argument("--runs", default="runs/law-study", help="folder of runs on their way")
    parser.add_argument("--draw", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not 1 <= options.seeds <= MOST_SEEDS:
        parser.error(f"--seeds must be 1 to {MOST_SEEDS}, got {options.seeds}")
    if not options.draw:
        wanted = cells(options.tasks, options.only, options.seeds, options.readings)
        try:
            run(options.out, Folder(options.runs).absolute(), wanted, options.workers)
        except (Broken, Refused) as reason:
            sys.exit(f"law_study: {reason}")
    draw(options.out)


if __name__ == "__main__":
    main()
