"""Tables made from records.

    table(1, records, "validation")              Table 1 of the paper: test loss and accuracy
    table(2, records, "all", "paper")            Table 2: accuracy ± std, three readings, the paper's beside
    table("controls" | "units" | "precision" | "shakespeare", records, "last")
    render(table(...), "markdown")               or "latex", or "html", as text

`reading` is one of selection.READINGS, or "all" of them, one below the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from rllc.lab.errors import Refused
from rllc.lab.evidence.markup import MISSING, Entry, Group, Line, Mark, Table, render
from rllc.lab.evidence.notes import READING_NAMES, left_out, notes, order_note, reading_note
from rllc.lab.evidence.outcomes import (
    BENCHMARKS,
    Rows,
    Sample,
    accuracies,
    best_on_validation,
    is_full_length,
    losses,
    others,
    quickest,
    steps_on,
    tasks_in,
)
from rllc.lab.evidence.paper import published
from rllc.lab.optimizers import CONTROLS, PAPER
from rllc.lab.records import Record
from rllc.lab.selection import READINGS, Row
from rllc.lab.studies import STUDIES, rows
from rllc.lab.texts import minus
from rllc.notation import parse

__all__ = ["difference", "percent_and_std", "ranked", "render", "table"]

TABLES = (1, 2, "controls", "units", "precision", "shakespeare")
CHOSEN = "RLLC, the best on validation"
BYTES = 4  # of a float32
ADAM_UNITS = 2
MS = "ms/step: a training step (batch, gradient, optimizer) of the quickest run, with other runs beside it."
NATS = "Losses in nats per character, accuracies in %."
AGAINST = (
    "paper: as printed in arXiv 2402.15262, means over 3 seeds after 10,000 steps. (+1.0σ): ours − paper in"
    " units of √(s² + s²), the two standard deviations over seeds; a difference of two means of 3 seeds has a"
    " standard error of 0.58 of that unit. (+0.10): in points, where ours is one seed or neither has any"
    " spread, and nothing where our runs are shorter. The paper prints no standard deviation of losses."
)

Times = Mapping[tuple[str, str], float]  # ms/step by task and optimizer


class Quantity(NamedTuple):
    """What is shown: its name, what it is of a row, whether larger is better (1, else -1), its text."""

    name: str
    of: Callable[[Row, str], Sample]
    sign: Literal[1, -1]
    text: Callable[[Sample], str]


def _loss(sample: Sample) -> str:
    return f"{sample.mean:.4f}"


def _percent(sample: Sample) -> str:
    return f"{100 * sample.mean:.2f}"


def percent_and_std(sample: Sample) -> str:
    """A mean in %, ± the standard deviation if there is one."""
    return _percent(sample) + ("" if sample.std is None else f" ± {100 * sample.std:.2f}")


LOSS = Quantity("loss", losses, -1, _loss)
ACCURACY = Quantity("accuracy", accuracies, 1, _percent)
ACCURACY_AND_STD = Quantity("accuracy", accuracies, 1, percent_and_std)


def table(which: int | str, records: Sequence[Record], reading: str, against: str | None = None) -> Table:
    """One of TABLES, from the records of its study, beside the numbers of the "paper" if `against` is that.

    Raises:
        Refused: there is no such table or reading, the paper has none like it, or there are no records.
    """
    if which not in TABLES:
        raise Refused(f"there is no table {which}; there are {', '.join(map(str, TABLES))}")
    if reading not in (*READINGS, "all"):
        raise Refused(f"unknown reading {reading!r}; known are {', '.join(READINGS)}, all")
    if against not in (None, "paper"):
        raise Refused(f"unknown {against!r} to compare with; known is paper")
    if against and which not in (1, 2):
        raise Refused(f"the paper has no table of {which}: only tables 1 and 2 go beside it")
    study = STUDIES[which if isinstance(which, str) else "table1"]
    found = rows(study, records)
    if not found:
        raise Refused(f"there are no runs of {study.name} here; make some: rllc run {study.name}")
    readings = READINGS if reading == "all" else (reading,)
    made = _table(which, found, records, readings, against is not None)
    return replace(made, notes=tuple(filter(None, (*made.notes, left_out(study, found, records)))))


def _table(
    which: int | str, found: Rows, records: Sequence[Record], readings: Sequence[str], against: bool
) -> Table:
    match which:
        case "controls":
            return _controls(found, rows(STUDIES["table1"], records), readings)
        case "units":
            return _units(found, quickest(records), readings)
        case "precision":
            return _precision(found, readings)
        case "shakespeare":
            return _shakespeare(found, quickest(records), readings)
    return _paper(which, found, readings, against)


def difference(ours: Sample, mean: float, std: float) -> str:
    """How far our mean accuracy is above another, in units of √(s² + s²): "+1.3σ".

    In points, "+0.51", where ours is one seed or neither has any spread.
    """
    apart, unit = ours.mean - mean, 0.0 if ours.std is None else math.hypot(ours.std, std)
    text = f"{apart / unit:+.1f}σ" if unit else f"{100 * apart:+.2f}"
    return minus(text)


def ranked(samples: Mapping[str, Sample], sign: Literal[1, -1]) -> dict[str, tuple[Mark, bool]]:
    """Each one's mark and whether it is the best of all, by means; sign is -1 where less is better."""
    merit = {name: sign * sample.mean for name, sample in samples.items()}
    best = max(merit.values(), default=math.inf)
    bar = max((merit[name] for name in BENCHMARKS if name in merit), default=math.inf)
    return {name: (_mark(name, merit[name], bar), merit[name] == best) for name in merit}


def _mark(name: str, merit: float, bar: float) -> Mark:
    if name in BENCHMARKS:
        return "benchmark" if merit == bar else ""
    return "above" if merit > bar else ""


def _paper(number: int | str, found: Rows, readings: Sequence[str], against: bool) -> Table:
    quantities = (LOSS, ACCURACY) if number == 1 else (ACCURACY_AND_STD,)
    what = "loss and accuracy (%)" if number == 1 else "accuracy (%) and its standard deviation"
    shortened = {key: row for key, row in found.items() if not is_full_length(found, key[0])}
    beside = [AGAINST, *filter(None, [order_note(shortened)])] if against else []
    said = [reading_note(readings), *notes(STUDIES["table1"], found), *beside]
    groups = _groups(PAPER, found, quantities, readings, against)
    return Table(f"Table {number}. Test {what}{_at(readings)}", tasks_in(found), groups, tuple(said))


def _controls(found: Rows, paper_rows: Rows, readings: Sequence[str]) -> Table:
    """The study's optimizers, the benchmarks and the best memory of Table 1 on the same tasks."""
    tasks = tasks_in(found)
    steps = {task: steps_on(found, task) for task in tasks}
    beside = {
        key: row for key, row in paper_rows.items() if steps_on(paper_rows, key[0]) == steps.get(key[0])
    }
    chosen = {task: best_on_validation(others(beside, task)) for task in tasks}
    everything = {**found, **{(task, CHOSEN): row for task, row in chosen.items() if row}}
    everything |= {key: row for key, row in beside.items() if key[1] in BENCHMARKS}
    which = ", ".join(f"{row.name} on {task}" for task, row in chosen.items() if row)
    said = [reading_note(readings), *([f"{CHOSEN}: {which}."] if which else [])]
    said += notes(STUDIES["controls"], everything)
    groups = _groups((*BENCHMARKS, *CONTROLS, CHOSEN), everything, (ACCURACY_AND_STD,), readings, False)
    title = f"Controls beside the benchmarks. Test accuracy (%) and its standard deviation{_at(readings)}"
    return Table(title, tasks, groups, tuple(said))


def _at(readings: Sequence[str]) -> str:
    """The reading, for a title; nothing where there are several, for then lines say it."""
    return f", {READING_NAMES[readings[0]]}" if len(readings) == 1 else ""


def _units(found: Rows, times: Times, readings: Sequence[str]) -> Table:
    study, (task, *_) = STUDIES["units"], tasks_in(found)
    names = [name for name in study.optimizers if (task, name) in found]
    k = {name: parse(name).k for name in names}
    ms = {name: times.get((task, name), math.nan) for name in names}
    one = next((ms[name] for name in names if k[name] == 1), math.nan)
    columns = {
        "units": {name: Entry(str(k[name])) for name in names},
        **_measured(names, found, task, (ACCURACY_AND_STD,), readings),
        "ms/step": {name: _decimal(ms[name]) for name in names},
        "× one unit": {name: _decimal(ms[name] / one) for name in names},
        "bytes/parameter": {name: Entry(str(BYTES * k[name])) for name in names},
        "× Adam": {name: Entry(f"{k[name] / ADAM_UNITS:g}") for name in names},
    }
    state = "bytes/parameter: what the optimizer keeps in float32, beside weight and gradient."
    said = (reading_note(readings), *notes(study, found), MS, state)
    return Table(f"{study.title}: {task}, accuracy (%)", tuple(columns), _by_name(names, columns), said)


def _precision(found: Rows, readings: Sequence[str]) -> Table:
    study = STUDIES["precision"]
    said = (reading_note(readings), *notes(study, found))
    groups = _groups(study.optimizers, found, (ACCURACY_AND_STD,), readings, False)
    return Table(f"{study.title}: accuracy (%){_at(readings)}", tasks_in(found), groups, said)


def _shakespeare(found: Rows, times: Times, readings: Sequence[str]) -> Table:
    study, (task, *_) = STUDIES["shakespeare"], tasks_in(found)
    names = study.optimizers
    columns = {
        **{
            f"{rate} rate": _rates(names, found, task, place)
            for place, rate in enumerate(("learning", "law"))
        },
        **_measured(names, found, task, (LOSS, ACCURACY_AND_STD), readings),
        "ms/step": {name: _decimal(times.get((task, name), math.nan)) for name in names},
    }
    said = (reading_note(readings), *notes(study, found), MS, NATS)
    return Table(study.title, tuple(columns), _by_name(names, columns), said)


def _groups(
    names: Sequence[str],
    found: Rows,
    quantities: Sequence[Quantity],
    readings: Sequence[str],
    against: bool,
) -> tuple[Group, ...]:
    """A group for each name; its lines are quantities by readings, its columns tasks."""
    tasks = tasks_in(found)
    lines: dict[str, list[Line]] = {name: [] for name in names}
    for quantity in quantities:
        for which in readings:
            columns = [
                _entries(names, found, task, quantity, which, against and is_full_length(found, task))
                for task in tasks
            ]
            label = _label(quantity, which, readings, quantities, against)
            for name in names:
                lines[name].append(Line(label, tuple(column[name] for column in columns)))
        for name in names if against else ():
            lines[name].append(Line("paper", tuple(_published(task, name, quantity) for task in tasks)))
    return tuple(Group(name, tuple(lines[name])) for name in names)


def _label(
    quantity: Quantity, which: str, readings: Sequence[str], quantities: Sequence[Quantity], against: bool
) -> str:
    """What tells a line from the others of its group."""
    parts = [quantity.name] if len(quantities) > 1 or (against and len(readings) == 1) else []
    return ", ".join(parts + ([READING_NAMES[which]] if len(readings) > 1 else []))


def _measured(
    names: Sequence[str], found: Rows, task: str, quantities: Sequence[Quantity], readings: Sequence[str]
) -> dict[str, dict[str, Entry]]:
    """A column for each quantity and reading."""
    return {
        f"{quantity.name}, {READING_NAMES[which]}": _entries(names, found, task, quantity, which, False)
        for quantity in quantities
        for which in readings
    }


def _entries(
    names: Sequence[str], found: Rows, task: str, quantity: Quantity, which: str, against: bool
) -> dict[str, Entry]:
    """One column: an entry for each name, ranked among themselves."""
    here = {name: found[task, name] for name in names if (task, name) in found}
    samples = {name: sample for name, row in here.items() if (sample := quantity.of(row, which)).values}
    ranks = ranked(samples, quantity.sign)

    def entry(name: str) -> Entry:
        if name not in samples:
            return Entry("diverged") if name in here else MISSING
        lost = "†" if len(samples[name].values) < len(here[name].records) else ""
        aside = _beside(task, name, samples[name]) if against and quantity is not LOSS else ""
        return Entry(quantity.text(samples[name]) + lost, *ranks[name], aside)

    return {name: entry(name) for name in names}


def _beside(task: str, name: str, sample: Sample) -> str:
    cell = published(task, name)
    return f"({difference(sample, cell.accuracy, cell.std)})" if cell else ""


def _published(task: str, name: str, quantity: Quantity) -> Entry:
    cell = published(task, name)
    if cell is None:
        return MISSING
    if quantity is LOSS:
        return Entry(f"{cell.loss:.4f}")
    std = f" ± {100 * cell.std:.2f}" if quantity is ACCURACY_AND_STD else ""
    return Entry(f"{100 * cell.accuracy:.2f}{std}")


def _by_name(names: Iterable[str], columns: Mapping[str, Mapping[str, Entry]]) -> tuple[Group, ...]:
    """Groups of one line, from columns that say an entry for each name."""
    return tuple(
        Group(name, (Line("", tuple(column.get(name, MISSING) for column in columns.values())),))
        for name in names
    )


def _rates(names: Sequence[str], found: Rows, task: str, place: int) -> dict[str, Entry]:
    """The learning rates chosen, or with place 1 the law's, where there is one."""
    chosen = {name: row for name in names if (row := found.get((task, name))) and row.records}
    rates = {name: row.records[0].cell.setting.rates[place] for name, row in chosen.items()}
    return {name: Entry("" if rate is None else f"{rate:g}") for name, rate in rates.items()}


def _decimal(value: float) -> Entry:
    return MISSING if math.isnan(value) else Entry(f"{value:.2f}")
