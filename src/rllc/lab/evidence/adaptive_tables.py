"""What the study `adaptive` says: tables and sentences; its picture is in `adaptive_figure`.

tables(results)      accuracies, regrets, a ranking, the spread over rates, training losses
verdicts(results)    against the best peer, tuned cosine and the control: won, level, lost
text(records)        both in Markdown; in_short(records) one table
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from rllc.lab.adaptive import CONTENDERS, Contender, Reached, at
from rllc.lab.evidence.adaptive import (
    BEST,
    PEERS,
    REFERENCES,
    Regret,
    Result,
    Results,
    regret_to,
    results_in,
    to_the_best,
    value,
)
from rllc.lab.evidence.markup import MISSING, Entry, Group, Line, Table, render
from rllc.lab.evidence.outcomes import Sample
from rllc.lab.records import Record
from rllc.lab.settings import RLLC_ADAMW
from rllc.lab.texts import minus

__all__ = ["in_short", "tables", "text", "verdicts"]

FEW = 6  # losses that are named; more are counted


def tables(results: Results) -> list[Table]:
    """All of them, in the order in which they are read."""
    stops = sorted({stop for result in results.values() for stop in result.plan.stops})
    return [
        *(_reached(results, stop) for stop in stops),
        _regrets(results, stops),
        _ranking(results),
        _spread(results),
        _training(results),
    ]


def text(records: Sequence[Record]) -> str:
    """Tables and sentences in Markdown.

    Raises:
        Refused: there are no runs of the study.
    """
    results = results_in(records)
    said = "\n".join(f"- {sentence}" for sentence in verdicts(results))
    return "\n".join([*(render(table, "markdown") for table in tables(results)), said, ""])


def in_short(records: Sequence[Record]) -> str:
    """One table in Markdown: at the end of the runs, and in brackets the worst over four decades of rates.

    Raises:
        Refused: there are no runs of the study.
    """
    results = results_in(records)
    groups = [
        Group(c.name, (Line("", tuple(_beside_worst(result, c) for result in results.values())),))
        for c in CONTENDERS
    ]
    stops = ", ".join(f"{result.plan.stops[-1]:,} on {task}" for task, result in results.items())
    said = (
        f"Steps: {stops}. Means of the seeds ± their standard deviation. {RLLC_ADAMW}, its parts and Adam"
        " 0.003: always the same rate; the others: the best of five on validation data.",
        "In brackets the worst of seven rates over four decades around the usual one, one seed.",
    )
    table = Table(f"{_units(results)[0].upper()}{_units(results)[1:]}", tuple(results), tuple(groups), said)
    return render(table, "markdown")


def _beside_worst(result: Result, contender: Contender) -> Entry:
    stop = result.plan.stops[-1]
    entry = _column(result, stop).get(contender.name, MISSING)
    worst = _extreme(result, result.found.get((contender.name, stop)), contender.wide, -1)
    return entry._replace(aside=f"({worst.text})")


def verdicts(results: Results) -> list[str]:
    """A sentence for each reference: how often RLLC-AdamW is better, level and worse, and where it lost."""
    return [_verdict(reference, results) for reference in REFERENCES]


# Tables


def _reached(results: Results, stop: int) -> Table:
    """Every contender on every task at one stopping time."""
    here = {task: result for task, result in results.items() if stop in result.plan.stops}
    columns = [_column(result, stop) for result in here.values()]
    groups = tuple(
        Group(c.name, (Line("", tuple(column.get(c.name, MISSING) for column in columns)),))
        for c in CONTENDERS
        if any(c.name in column for column in columns)
    )
    said = (
        "Bold: the best of all. In brackets the rate: of RLLC-AdamW and its parts, and of what has 0.003"
        " in its name, always the same; else the best of five on validation data at this step, with seed 0.",
        _seeds(here, stop),
        *_edges(here, stop),
        *_left_out(here),
    )
    return Table(f"After {stop:,} steps: {_units(here)}", tuple(here), groups, said)


def _column(result: Result, stop: int) -> dict[str, Entry]:
    samples = result.samples(stop)
    best = max((result.sign * values.mean for values in samples.values()), default=0.0)
    found = {c.name: result.found.get((c.name, stop)) for c in CONTENDERS}
    return {
        name: _entry(reached, samples.get(name), result.sign, best)
        for name, reached in found.items()
        if reached is not None
    }


def _entry(reached: Reached, values: Sample | None, sign: Literal[1, -1], best: float) -> Entry:
    if values is None:
        return Entry("diverged")
    lost = "†" if len(values.values) < len(reached.records) else ""
    std = "" if values.std is None else f" ± {_number(values.std, sign)}"
    text = f"{_number(values.mean, sign)}{std}{lost}"
    return Entry(text, best=sign * values.mean == best, aside=f"({reached.rate:g})")


def _regrets(results: Results, stops: Sequence[int]) -> Table:
    """Of RLLC-AdamW to each reference, by task and stopping time."""

    def entry(result: Result, reference: str, stop: int) -> Entry:
        found = regret_to(reference, result, stop) if stop in result.plan.stops else None
        return (
            MISSING if found is None else Entry(_signed(found, result.sign), aside=_whose(found, reference))
        )

    groups = tuple(
        Group(
            f"after {stop:,} steps",
            tuple(
                Line(f"to {reference}", tuple(entry(result, reference, stop) for result in results.values()))
                for reference in REFERENCES
            ),
        )
        for stop in stops
    )
    said = (
        f"Below 0 {RLLC_ADAMW} is better. ±: the standard error of the difference of the two means.",
        "The best tuned peer: of all tuned for this task and step the one of best mean, in brackets. It is"
        " picked by the numbers shown here, which favours it.",
    )
    return Table(f"Regret of {RLLC_ADAMW}: {_units(results)}", tuple(results), groups, said)


def _ranking(results: Results) -> Table:
    """All contenders, the one of least mean regret first."""
    found = to_the_best(results)
    order = sorted(found, key=lambda name: statistics.mean(found[name].values()))
    groups = tuple(Group(name, (Line("", _ranked(found[name])),)) for name in order)
    said = (
        "Regret to the best of all at each task of images and stopping time, in points; none if diverged.",
    )
    return Table("Who lost", ("mean regret", "largest", "where", "of how many"), groups, said)


def _ranked(regrets: Mapping[tuple[str, int], float]) -> tuple[Entry, ...]:
    worst = max(regrets, key=lambda where: regrets[where])
    texts = f"{statistics.mean(regrets.values()):.2f}", f"{regrets[worst]:.2f}", f"{worst[0]} {worst[1]:,}"
    return tuple(map(Entry, (*texts, str(len(regrets)))))


def _spread(results: Results) -> Table:
    """At the last stopping time: the best rate, and the worst within one and two decades, with seed 0."""
    groups = []
    for c in CONTENDERS:
        found = {task: result.found.get((c.name, result.plan.stops[-1])) for task, result in results.items()}
        if any(reached is not None for reached in found.values()):
            lines = [
                Line(label, tuple(_extreme(results[task], found[task], rates, last) for task in results))
                for label, rates, last in (
                    ("best", c.wide, 0),
                    ("worst of two decades", c.rates, -1),
                    ("worst of four decades", c.wide, -1),
                )
            ]
            groups.append(Group(c.name, tuple(lines)))
    said = ("One run, with seed 0, for each of seven rates: five over two decades and one a decade beyond.",)
    return Table(
        f"What a wrong rate costs, at the end: {_units(results)}", tuple(results), tuple(groups), said
    )


def _training(results: Results) -> Table:
    """What was minimised, at the end: it tells optimising from overfitting."""

    def entry(result: Result, name: str) -> Entry:
        stop = result.plan.stops[-1]
        reached = result.found.get((name, stop))
        points = [at(record, stop) for record in reached.records] if reached else []
        losses = [p.train_loss for p in points if p is not None and p.train_loss is not None]
        return Entry(f"{statistics.mean(losses):.3g}") if losses else MISSING

    groups = [
        Group(c.name, (Line("", tuple(entry(result, c.name) for result in results.values())),))
        for c in CONTENDERS
    ]
    said = (
        "The mean since the evaluation before the last, at the rates of the accuracies: of the weights as"
        " they are, also where their average is measured.",
    )
    return Table("Training loss at the end", tuple(results), tuple(groups), said)


def _extreme(result: Result, reached: Reached | None, rates: Iterable[float], place: int) -> Entry:
    """Of these rates, ordered from the best, the one at that place; one that diverged is the worst."""
    tried = [reached.tried[rate] for rate in rates if rate in reached.tried] if reached else []
    if not tried:
        return MISSING
    values = [value(record, result.plan.stops[-1]) for record in tried]
    left = sorted((number for number in values if number is not None), reverse=result.sign > 0)
    if not left or (place == -1 and None in values):
        return Entry("diverged")
    return Entry(_number(left[place], result.sign))


# Texts


def _verdict(reference: str, results: Results) -> str:
    regrets = {
        (task, stop): found
        for task, result in results.items()
        for stop in result.plan.stops
        if (found := regret_to(reference, result, stop)) is not None and found.outcome is not None
    }
    better = sum(found.outcome in ("above", "ahead") for found in regrets.values())
    level = sum(found.outcome == "level" for found in regrets.values())
    worse = {key: found for key, found in regrets.items() if found.outcome in ("below", "behind")}
    lost = [
        f"{task} at {stop:,} by {_signed(found, results[task].sign).lstrip('+')}"
        f" {_whose(found, reference)}".rstrip()
        for (task, stop), found in sorted(worse.items(), key=lambda item: -item[1].value)
    ]
    more = f" and {len(lost) - FEW} more" if len(lost) > FEW else ""
    where = f": {', '.join(lost[:FEW])}{more}" if lost else ""
    return (
        f"Against {reference}, of {len(regrets)} pairs of task and stopping time {RLLC_ADAMW} is better by"
        f" more than a standard error in {better}, within it in {level}, worse in {len(worse)}{where}."
    )


def _seeds(results: Results, stop: int) -> str:
    counts = sorted({result.plan.seeds for result in results.values()})
    fewer = [
        f"{name} on {task} ({len(reached.records)})"
        for task, result in results.items()
        for (name, when), reached in result.found.items()
        if when == stop and reached.rate is not None and len(reached.records) < result.plan.seeds
    ]
    lacking = f", fewer for {', '.join(fewer)}" if fewer else ""
    most = " or ".join(map(str, counts))
    return f"Means over {most} seeds{lacking}; ± their standard deviation; † some had diverged by then."


def _edges(results: Results, stop: int) -> list[str]:
    """A note where the best rate is the smallest or largest of the five."""
    chosen = [
        (f"{c.name} on {task}", reached.rate in (c.rates[0], c.rates[-1]))
        for task, result in results.items()
        for c in PEERS
        if (reached := result.found.get((c.name, stop))) is not None and reached.rate is not None
    ]
    at_edge = [name for name, is_at_edge in chosen if is_at_edge]
    if not at_edge:
        return []
    where = "; ".join(at_edge)
    return [f"In {len(at_edge)} of {len(chosen)} cells the best rate is at the edge of the five: {where}."]


def _left_out(results: Results) -> list[str]:
    apart = ", ".join(f"{result.left_out} on {task}" for task, result in results.items() if result.left_out)
    if not apart:
        return []
    return [f"Left out: runs of {RLLC_ADAMW} on other images or devices, or of other lengths ({apart})."]


def _units(results: Results) -> str:
    of_texts = any(result.sign < 0 for result in results.values())
    return "test accuracy in %" + (", of a text validation loss in nats" if of_texts else "")


def _signed(found: Regret, sign: Literal[1, -1]) -> str:
    number = minus(f"{found.value:+.{_digits(sign)}f}")
    return number if found.error is None else f"{number} ± {_number(found.error, sign)}"


def _whose(found: Regret, reference: str) -> str:
    return f"({found.other})" if reference == BEST else ""


def _number(number: float, sign: Literal[1, -1]) -> str:
    return f"{number:.{_digits(sign)}f}"


def _digits(sign: Literal[1, -1]) -> int:
    """Of accuracies in % two, of losses in nats four."""
    return 2 if sign > 0 else 4
