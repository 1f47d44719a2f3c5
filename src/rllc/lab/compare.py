"""`rllc compare`: rates chosen on validation data, several seeds of the chosen, a table and a picture.

plan(options)     what will be done, everything checked
table(rows)       the numbers as text
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import math
import statistics
from collections.abc import Sequence

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rllc.lab import checks, texts
from rllc.lab.errors import Broken, Refused
from rllc.lab.evidence import figures
from rllc.lab.evidence.drawing import write_picture
from rllc.lab.files import Folder, write_text
from rllc.lab.making import making
from rllc.lab.optimizers import DEFAULTS, Rates, named, trials
from rllc.lab.options import Compare
from rllc.lab.search import Plan, search
from rllc.lab.selection import Row, at_edge, best_point, finished, reading
from rllc.lab.settings import RLLC_ADAMW, RllcAdamW
from rllc.lab.sweep import cores, pool
from rllc.lab.tasks import TextTask

__all__ = ["COLUMNS", "main", "notes", "plan", "table"]

COLUMNS = ("optimizer", "lr", "law lr", "last valid", "last test", "best valid", "test there", "ms/step")
WIDE = 108  # columns that a table needs with a row in a line


def main(options: Compare, console: Console) -> None:
    """Do what `rllc compare` was asked.

    Raises:
        Refused: an option makes no sense, data are missing or altered, the output cannot be written.
        Broken: a worker was killed, memory ran out, or the disk is full.
    """
    options = dataclasses.replace(options, out=checks.folder_here(options.out))
    asked, workers = plan(options), options.workers or cores()
    # Before anything starts: data may be missing, or have to be decoded.
    asked = dataclasses.replace(asked, task=checks.with_data(asked.task, console))
    out = Folder(str(options.out))
    checks.make_writable(out / "records")
    with pool(workers) as processes, making(processes, out, [asked], console, None, options.fresh) as maker:
        rows = search(asked, functools.partial(maker.records, asked))
    console.print(_rich_table(asked, rows, console.width))
    console.print(notes(asked, rows, workers))
    picture, text = (options.out / f"compare-{asked.task.name}{ending}" for ending in (".png", ".md"))
    write_picture(picture, figures.comparison(rows, _title(asked)))
    write_text(text, _markdown(asked, rows, workers, picture.name))
    console.print(f"picture  {picture}\ntable    {text}", style="bold")
    if maker.lost:
        raise Broken(f"{len(maker.lost)} runs ran out of memory and are missing; try fewer --workers")


def plan(options: Compare) -> Plan:
    """The options checked.

    Raises:
        Refused: one of them makes no sense.
    """
    task = checks.task(options.task)
    checks.counts({"--seeds": options.seeds, "--steps": options.steps, "--workers": options.workers})
    for name, given in (("--lr", options.lr), ("--law-lr", options.law_lr)):
        _check_rates(name, given)
    checks.folder_here(options.out)
    rates = Rates(tuple(dict.fromkeys(options.lr)), tuple(dict.fromkeys(options.law_lr)))
    names = tuple(dict.fromkeys(map(named, options.optimizers or DEFAULTS)))
    default = Rates(rates.lr or (RllcAdamW.lr,))  # of what is there to do without a choice
    tried = {name: trials(name, default if name == RLLC_ADAMW else rates) for name in names}
    return Plan(task, tried, options.seeds, options.steps or task.steps, checks.device(options.device))


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The text of each row, for COLUMNS; accuracies in %, mean ± standard deviation over seeds."""
    return [_texts(row) for row in rows]


def notes(plan: Plan, rows: Sequence[Row], workers: int) -> str:
    """What the table's numbers are, in sentences."""
    said = [
        f"{plan.task.name}: {plan.steps:,} steps of {plan.task.batch} {_examples(plan)}. Accuracies in %,"
        f" {_over_seeds(plan.seeds)}; 'best valid' is the evaluation with the best validation accuracy,"
        " 'test there' the test accuracy at it.",
        _choice(rows),
    ]
    if any(any(at_edge(row)) for row in rows if row.records):
        said.append("* is the largest or smallest rate tried: a wider grid may do better.")
    said.append(
        f"ms/step is one training step without evaluation, with {texts.counted(workers, 'run')} at a time; of"
        " runs that were there before, as it was then."
    )
    return " ".join(filter(None, said))


def _examples(plan: Plan) -> str:
    task = plan.task
    return f"texts of {task.context} characters" if isinstance(task, TextTask) else "images"


def _over_seeds(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"


def _choice(rows: Sequence[Row]) -> str:
    several = sorted({len(row.tried) for row in rows} - {1})
    if not several:
        return ""
    tried = " or ".join(map(str, several))
    fixed = " and ".join(row.name for row in rows if len(row.tried) == 1)
    each = f"each optimizer but {fixed}, which had no choice" if fixed else "each optimizer"
    return f"Rates were chosen on seed 0 by best validation accuracy, from {tried} trials for {each}."


def _texts(row: Row) -> tuple[str, ...]:
    if not row.records:
        return (row.name, "all", "", "diverged", "", "", "", "")
    (lr, second), ended = row.records[0].cell.setting.rates, finished(row.records)
    last, best = [r.result.points[-1] for r in ended], [best_point(r) for r in ended]
    lost = len(row.records) - len(ended)
    first_star, second_star = ("*" * edge for edge in at_edge(row))
    return (
        row.name + (f" ({lost} of {len(row.records)} seeds diverged)" if lost else ""),
        f"{lr:g}{first_star}",
        "" if second is None else f"{second:g}{second_star}",
        _percent([p.valid_accuracy for p in last]),
        _percent([reading(r, "last")[1] for r in ended]),
        _percent([p.valid_accuracy for p in best]),
        _percent([reading(r, "validation")[1] for r in ended]),
        f"{statistics.mean(r.result.ms_per_step for r in ended):.2f}",
    )


def _percent(values: Sequence[float]) -> str:
    return texts.over_seeds([100 * value for value in values])


def _rich_table(plan: Plan, rows: Sequence[Row], width: int) -> Table:
    """For a terminal of so many columns; in a narrow one deviations have a line of their own."""
    title = f"{plan.task.name} · {plan.steps:,} steps · {texts.counted(plan.seeds, 'seed')}"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    narrow = width < WIDE
    shown.add_column(COLUMNS[0], min_width=15)
    for name in COLUMNS[1:]:
        shown.add_column(name.replace(" ", "\n") if narrow else name, justify="right", no_wrap=True)
    for name, *numbers in table(rows):
        shown.add_row(name, *(text.replace(" ±", "\n±") if narrow else text for text in numbers))
    return shown


def _markdown(plan: Plan, rows: Sequence[Row], workers: int, picture: str) -> str:
    body = texts.table(COLUMNS, table(rows))
    made_with = f"rllc {importlib.metadata.version('rllc')}, torch {torch.__version__}, {plan.device}."
    return f"{body}\n{notes(plan, rows, workers)} Made with {made_with}\n\n![curves]({picture})\n"


def _title(plan: Plan) -> str:
    return f"{plan.task.name}: {plan.steps:,} steps, {texts.counted(plan.seeds, 'seed')}"


def _check_rates(name: str, rates: Sequence[float]) -> None:
    for rate in rates:
        if not (rate >= 0 and math.isfinite(rate)):
            raise Refused(f"{name} must be a finite number, 0 or more, got {rate:g}")
