"""The claims of arXiv 2402.15262, each decided by a stated rule from the numbers in the records.

    verdicts(records)        a Verdict for each claim: holds, holds partly, does not hold, not tested here
    markdown(verdicts)       them as paragraphs

Here are the claims on accuracies; those on seeds and time are in `seed_claims`, on laws in `law_claims`.
Where the best of several optimizers is compared, validation data choose it: test data choose nothing.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from rllc.lab.evidence import law_claims, seed_claims
from rllc.lab.evidence.notes import READING_NAMES
from rllc.lab.evidence.outcomes import (
    BENCHMARKS,
    Rows,
    benchmarks,
    best_on_validation,
    of_full_length,
    others,
    tasks_in,
)
from rllc.lab.evidence.verdicts import (
    HOLDS,
    NOT,
    PARTLY,
    UNTESTED,
    WELCH,
    Duel,
    Match,
    Verdict,
    all_readings,
    champions,
    duels,
    most,
    not_below,
    tally,
    told,
)
from rllc.lab.records import Record
from rllc.lab.selection import READINGS, Row, finished
from rllc.lab.studies import STUDIES, rows
from rllc.lab.texts import minus
from rllc.notation import parse
from rllc.propagator import jordan_blocks

__all__ = ["Verdict", "markdown", "verdicts"]

MOST = (
    "Holds: above in more than half of the comparisons, below in none; does not: above in none, ahead in no"
    f" more than half. {WELCH}"
)
NEAR = 0.99  # of the best validation accuracy of the best benchmark: where arrivals are compared


def verdicts(records: Sequence[Record]) -> list[Verdict]:
    """A verdict on each claim, from the runs of Table 1 and of the controls that have the paper's length."""
    studies = STUDIES["table1"], STUDIES["controls"]
    found, controls = (of_full_length(rows(study, records)) for study in studies)
    return [
        seed_claims.numbers(found),
        _momentum(found),
        _generalisation(found),
        _convergence(found),
        _schedule(found, controls),
        seed_claims.reliability(found),
        _blocks(found),
        law_claims.transition(found),
        law_claims.coupling(found),
        seed_claims.consistency(found),
        seed_claims.time(found, records),
    ]


def markdown(decided: Sequence[Verdict]) -> str:
    """A paragraph for each: the claim as heading, the verdict in bold, the numbers, the rule in italics."""
    return "\n".join(
        f"### {v.claim}\n\n**{v.verdict[0].upper()}{v.verdict[1:]}** ({v.source}). {v.text}\n\n*{v.rule}*\n"
        for v in decided
    )


def _momentum(found: Rows) -> Verdict:
    matches = [
        Match(task, found[task, "M(0.9)"], found[task, "momentum SGD"])
        for task in tasks_in(found)
        if {(task, "M(0.9)"), (task, "momentum SGD")} <= found.keys()
    ]
    word, text = all_readings(matches, most)
    claim = "M(0.9), momentum whose rate is learned, outperforms momentum SGD."
    return Verdict(claim, "section 6, Table 1", word, f"{text} {told(matches)}".strip(), MOST)


def _generalisation(found: Rows) -> Verdict:
    matches = champions(found)
    word, text = all_readings(matches, most)
    return Verdict(
        "RLLC optimizers generalise better than SGD, momentum SGD and Adam on most tasks.",
        "abstract, Figures 1 and 4",
        word,
        text if word == UNTESTED else f"{text} {told(matches)} {_chance(found)}",
        f"On each task the memory and the benchmark of best validation accuracy. {MOST}",
    )


def _chance(found: Rows) -> str:
    """How much the choice of the best of many on test data would promise without any merit."""
    ours = max(len(others(found, task)) for task in tasks_in(found))
    lead = _expected_best(ours) - _expected_best(len(BENCHMARKS))
    return (
        f"To pick the best on test data instead would favour the memories: were all equally good, the best of"
        f" {ours} would look {lead:.1f} standard errors of a mean better than the best of {len(BENCHMARKS)}."
    )


@functools.cache
def _expected_best(n: int) -> float:
    """The mean of the largest of n standard normal numbers."""
    return float(scipy.stats.norm.expect(lambda x: n * x * scipy.stats.norm.cdf(x) ** (n - 1)))


def _convergence(found: Rows) -> Verdict:
    """Whether the memory chosen reaches what the best benchmark reaches before any benchmark does."""
    races = [_race(match, benchmarks(found, match.task)) for match in champions(found) if match.is_fair]
    faster, slower = (sum(sign * race.ours < sign * race.theirs for race in races) for sign in (1, -1))
    word = HOLDS if 2 * faster > len(races) and not slower else PARTLY if faster else NOT
    tallied = f"Faster on {faster}, slower on {slower} of {len(races)} tasks."
    return Verdict(
        "RLLC optimizers converge faster than the benchmarks.",
        "Figure 1",
        word if races else UNTESTED,
        " ".join([tallied, *(race.text for race in races)])
        if races
        else "It takes two finished seeds or more.",
        "The first evaluation at which the validation accuracy, a mean over seeds, reaches 99 % of the best"
        " of the best benchmark: by the memory of best validation accuracy, and by the fastest benchmark."
        " Holds: earlier on more than half of the tasks, later on none; does not: earlier on none.",
    )


class _Race(NamedTuple):
    """The steps at which ours and the fastest of theirs come near the best of theirs, infinity for never."""

    ours: float
    theirs: float
    text: str


def _race(match: Match, rivals: Sequence[Row]) -> _Race:
    target = NEAR * _curve(match.theirs)[:, 1].max()
    ours = _arrival(match.ours, target)
    theirs = {row.name: _arrival(row, target) for row in rivals if finished(row.records)}
    first = min(theirs, key=theirs.__getitem__)
    text = f"{match.task}: {match.ours.name} {_step(ours)}, {first} {_step(theirs[first])}."
    return _Race(ours, theirs[first], text)


def _arrival(row: Row, target: float) -> float:
    curve = _curve(row)
    return float(min(curve[curve[:, 1] >= target, 0], default=np.inf))


def _curve(row: Row) -> NDArray[np.float64]:
    """(points, 2): steps and validation accuracies, means over seeds."""
    curves = [[(p.step, p.valid_accuracy) for p in r.result.points] for r in finished(row.records)]
    return np.mean(curves, axis=0)


def _step(arrival: float) -> str:
    return "never" if np.isinf(arrival) else f"at step {arrival:,.0f}"


def _schedule(found: Rows, controls: Rows) -> Verdict:
    pairs = [
        (task, best_on_validation(others(found, task)), best_on_validation(others(controls, task)))
        for task in tasks_in(controls)
    ]
    matches = [Match(task, ours, theirs) for task, ours, theirs in pairs if ours and theirs]
    word, text = all_readings(matches, not_below)
    return Verdict(
        "RLLC needs no learning-rate schedule.",
        "A.5.2, which leaves schedules out",
        word,
        f"{text} {told(matches)}".strip() if matches else "The controls have not been run.",
        "On each task the memory and the control (cosine schedule, averaged weights, schedule-free,"
        " hypergradient) of best validation accuracy. Holds: below on none, behind on no more than half; does"
        f" not: below on more than half. {WELCH}",
    )


def _blocks(found: Rows) -> Verdict:
    """Jordan blocks of order 2 and more, and complex units."""
    matches = [
        Match(match.task, row, match.theirs)
        for match in champions(found)
        for row in others(found, match.task)
        if _has_large_block(row.name) and row.records
    ]
    word, text = all_readings(matches, most)
    names = dict.fromkeys(match.ours.name for match in matches)
    said = [_in_brief(name, [match for match in matches if match.ours.name == name]) for name in names]
    return Verdict(
        "Memories with blocks M_2, M_3 or CM surpass the benchmarks on many tasks.",
        "section 6",
        word,
        " ".join([text, *said]) if word != UNTESTED else text,
        f"Each of them on each task against the benchmark of best validation accuracy. {MOST}",
    )


def _in_brief(name: str, matches: Sequence[Match]) -> str:
    """The mean gain over tasks and the tally, under each reading."""
    fought = {which: duels(matches, which) for which in READINGS}
    said = (
        f"{READING_NAMES[which]} {_mean_gain(found)} ({tally(found)})"
        for which, found in fought.items()
        if found
    )
    return f"{name}: {'; '.join(said)}."


def _mean_gain(fought: Sequence[Duel]) -> str:
    gain = 100 * statistics.mean(duel.ours.mean - duel.theirs.mean for duel in fought)
    return minus(f"{gain:+.2f}")


def _has_large_block(memory: str) -> bool:
    blocks = jordan_blocks(parse(memory)) or []
    return any(order > 1 or isinstance(eigenvalue, complex) for eigenvalue, order in blocks)
