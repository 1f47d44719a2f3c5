"""What has to be said below a table, read off its rows and records: how long, how many, chosen how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import scipy.stats

from rllc.lab.evidence import paper
from rllc.lab.evidence.outcomes import Rows, accuracies, beside_paper, steps_on, tasks_in
from rllc.lab.records import Record
from rllc.lab.selection import READINGS, at_edge, finished, on_same_data
from rllc.lab.studies import PAPER_TASKS, Study
from rllc.lab.texts import minus

__all__ = ["READING_NAMES", "left_out", "notes", "order_note", "reading_note"]

READING_NAMES = {"last": "last iterate", "validation": "best validation", "best": "best on test"}
MEANS = {
    "last": "last iterate: after the last step.",
    "validation": "best validation: at the evaluation of best validation accuracy.",
    "best": "best on test: the least loss and the largest accuracy of all evaluations on test data, each its"
    " own, which no user could have picked.",
}
FEW = 4  # exceptions that are named; more are counted


def notes(study: Study, found: Rows) -> list[str]:
    """Sentences on the rows of a study: steps, seeds, choice of rates, what diverged, what is missing."""
    said = _steps(found), _seeds(found), _rates(study, found), _edges(found), _diverged(found)
    return [note for note in (*said, _absent(study, found), _made(found)) if note]


def left_out(study: Study, found: Rows, records: Sequence[Record]) -> str:
    """A sentence on the runs of a study that no row is made of, on other images or longer; perhaps empty."""
    settings = {setting for name in study.optimizers for setting in study.trials(name)}

    def ours(records: Sequence[Record]) -> list[Record]:
        return [r for r in records if r.cell.task.name in study.tasks and r.cell.setting in settings]

    same = ours(on_same_data(records))
    apart = len(ours(records)) - len(same)
    # Where the study has its own number of steps, longer runs of its settings are another study's.
    longer = (r.cell for r in same if r.cell.tested and study.steps is None)
    lengths = Counter((cell.task.name, cell.steps) for cell in longer)
    said = [f"runs on other images ({apart:,})"] if apart else []
    said += [
        f"runs of {steps:,} steps on {task} ({n:,})"
        for (task, steps), n in lengths.items()
        if steps > steps_on(found, task) > 0
    ]
    return f"Left out: {', '.join(said)}." if said else ""


def reading_note(readings: Sequence[str]) -> str:
    """What the readings shown mean."""
    text = " ".join(MEANS[which] for which in readings)
    return text[0].upper() + text[1:]


def order_note(found: Rows) -> str:
    """How alike our order of the optimizers is to the paper's, Spearman's correlation for each reading.

    Of tasks with three optimizers or more that have two finished seeds; empty where there is none.
    """
    said = []
    cells = beside_paper(found)
    for task in tasks_in(found):
        known = [cell for cell in cells if cell.task == task]
        if len(known) < 3:
            continue
        theirs = [cell.printed.accuracy for cell in known]
        ours = {which: [accuracies(cell.row, which).mean for cell in known] for which in READINGS}
        numbers = [_rank_correlation(ours[which], theirs) for which in READINGS]
        said.append(f"{task} {minus(' / '.join(numbers))}")
    names = " / ".join(READING_NAMES[which] for which in READINGS)
    return f"Rank correlation of the optimizers with the paper, {names}: {', '.join(said)}." if said else ""


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> str:
    return "none" if len(set(a)) == 1 else f"{scipy.stats.spearmanr(a, b).statistic:.2f}"


def _steps(found: Rows) -> str:
    """How many steps each task's runs have; fewer than the paper's are called shortened."""
    tasks_of: dict[int, list[str]] = {}
    for task in tasks_in(found):
        tasks_of.setdefault(steps_on(found, task), []).append(task)
    return f"Steps: {'; '.join(_length(steps, tasks) for steps, tasks in tasks_of.items())}."


def _length(steps: int, tasks: Sequence[str]) -> str:
    short = steps < paper.STEPS and any(task in PAPER_TASKS for task in tasks)
    label = f" (shortened: the paper has {paper.STEPS:,})" if short else ""
    return f"{steps:,}{label} on {', '.join(tasks)}"


def _seeds(found: Rows) -> str:
    counts = {key: len(row.records) for key, row in found.items() if row.records}
    most = max(counts.values(), default=0)
    fewer: list[str] = []
    for task in tasks_in(found):
        here = {name: count for (on, name), count in counts.items() if on == task}
        if len(set(here.values())) == 1 < len(here):
            here = {"all": next(iter(here.values()))}
        fewer += [f"{name} on {task} ({count})" for name, count in here.items() if count < most]
    spread = f"Means over {most} seeds, ± their standard deviation (with n − 1)" if most > 1 else "One seed"
    return f"{spread}{f'; fewer for {_named(fewer)}' if fewer else ''}."


def _rates(study: Study, found: Rows) -> str:
    counts: dict[int, set[int]] = {}
    for row in found.values():
        counts.setdefault(len(row.tried), set()).add(len(row.in_full))
    text = "Rates: the one of best validation accuracy with seed 0"
    if any(min(full) < n for n, full in counts.items()):
        ran = " and ".join(f"{_range(full)} of {n}" for n, full in sorted(counts.items()))
        text += f", chosen by successive halving: {ran} ran all steps"
    else:
        text += f", of {' or '.join(map(str, sorted(counts)))} tried"
    partly = [
        f"{name} on {task} ({len(row.tried)} of {len(study.trials(name))})"
        for (task, name), row in found.items()
        if name in study.optimizers and len(row.tried) < len(study.trials(name))
    ]
    return f"{text}.{f' Only part of the grid has been tried for {_named(partly)}.' if partly else ''}"


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _edges(found: Rows) -> str:
    chosen = [row for row in found.values() if row.records]
    edge = sum(any(at_edge(row)) for row in chosen)
    more = "a wider grid may do better there"
    return (
        f"In {edge} of {len(chosen)} cells a chosen rate is at the edge of its grid: {more}." if edge else ""
    )


def _diverged(found: Rows) -> str:
    lost = [
        f"{name} on {task} ({gone} of {len(row.records)} seeds)"
        for (task, name), row in found.items()
        if row.records and (gone := len(row.records) - len(finished(row.records)))
    ]
    none = [f"{name} on {task}" for (task, name), row in found.items() if not row.records]
    said = [f"† diverged and left out of the mean: {_named(lost)}." if lost else ""]
    said += [f"Every rate that ran all steps diverged: {_named(none)}." if none else ""]
    return " ".join(filter(None, said))


def _absent(study: Study, found: Rows) -> str:
    tasks = tasks_in(found)
    gone = [task for task in study.tasks if task not in tasks]
    holes = [
        f"{name} on {t}"
        for t in study.tasks
        if t in tasks
        for name in study.optimizers
        if (t, name) not in found
    ]
    said = [
        f"– no run of all steps: {_named(holes)}." if holes else "",
        f"Tasks not run: {', '.join(gone)}." if gone else "",
    ]
    return " ".join(filter(None, said))


def _made(found: Rows) -> str:
    records = [record for row in found.values() for record in row.records]
    torch = sorted({record.versions.get("torch", "?") for record in records})
    devices = sorted({record.cell.device for record in records})
    return (
        f"From {len(records)} records made with torch {', '.join(torch)} on {', '.join(devices)}."
        if records
        else ""
    )


def _named(texts: Sequence[str]) -> str:
    return ", ".join(texts) if len(texts) <= FEW else f"{', '.join(texts[:FEW])} and {len(texts) - FEW} more"
