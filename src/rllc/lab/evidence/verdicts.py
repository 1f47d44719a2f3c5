"""How a claim is decided: comparisons task by task, the rules that turn them into a word, and the text.

Rules on accuracies are applied under each reading of a run. Such a claim holds, or does not, if all readings
say so; where they disagree it holds partly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rllc.lab.evidence.notes import READING_NAMES
from rllc.lab.evidence.outcomes import (
    OUTCOMES,
    Outcome,
    Rows,
    Sample,
    accuracies,
    benchmarks,
    best_on_validation,
    compare,
    error_of_difference,
    others,
    tasks_in,
)
from rllc.lab.selection import READINGS, Row, finished
from rllc.lab.texts import minus

__all__ = [
    "HOLDS",
    "NOT",
    "PARTLY",
    "UNTESTED",
    "WELCH",
    "Duel",
    "Match",
    "Verdict",
    "all_readings",
    "champions",
    "duels",
    "most",
    "not_below",
    "tally",
    "told",
]

HOLDS, PARTLY, NOT, UNTESTED = "holds", "holds partly", "does not hold", "not tested here"
WELCH = (
    "Above, below: test accuracies differ by Welch's two-sided test at 5 %; ahead, behind: by more than the"
    " standard error of the difference only, which is no proof; level: by less. In points, ± that error."
)


@dataclass(frozen=True)
class Verdict:
    """A claim, where the paper makes it, one of the four words above, the numbers, and the rule."""

    claim: str
    source: str
    verdict: str
    text: str
    rule: str


class Match(NamedTuple):
    """Two optimizers to compare on a task."""

    task: str
    ours: Row
    theirs: Row

    @property
    def is_fair(self) -> bool:
        """Whether both have two finished seeds or more."""
        return min(len(finished(self.ours.records)), len(finished(self.theirs.records))) > 1


class Duel(NamedTuple):
    """A match under one reading: the test accuracies of both, and where ours lie."""

    ours: Sample
    theirs: Sample
    outcome: Outcome


def champions(found: Rows) -> list[Match]:
    """On each task the memory and the benchmark of best validation accuracy."""
    pairs = [
        (task, best_on_validation(others(found, task)), best_on_validation(benchmarks(found, task)))
        for task in tasks_in(found)
    ]
    return [Match(task, ours, theirs) for task, ours, theirs in pairs if ours and theirs]


def duels(matches: Sequence[Match], which: str) -> list[Duel]:
    """The matches under a reading; those in which one side has less than two finished seeds fall out."""
    fought = (_duel(match, which) for match in matches)
    return [duel for duel in fought if duel is not None]


def most(fought: Sequence[Duel]) -> str:
    """HOLDS: above in more than half, below in none. NOT: above in none, ahead in no more than half."""
    above, below = _count(fought, "above"), _count(fought, "below")
    if not fought:
        return UNTESTED
    if 2 * above > len(fought) and not below:
        return HOLDS
    return PARTLY if above or 2 * _count(fought, "ahead") > len(fought) else NOT


def not_below(fought: Sequence[Duel]) -> str:
    """HOLDS: below in none, behind in no more than half. NOT: below in more than half. Otherwise PARTLY."""
    below, behind = _count(fought, "below"), _count(fought, "behind")
    if not fought:
        return UNTESTED
    if not below and 2 * behind <= len(fought):
        return HOLDS
    return NOT if 2 * below > len(fought) else PARTLY


def all_readings(matches: Sequence[Match], rule: Callable[[Sequence[Duel]], str]) -> tuple[str, str]:
    """The word of the rule if all readings agree on it, PARTLY if not; and the tally of each reading."""
    fought = {which: duels(matches, which) for which in READINGS}
    words = {rule(found) for found in fought.values()}
    if words == {UNTESTED}:
        return UNTESTED, "It takes two finished seeds or more on each side."
    tallies = "; ".join(f"{READING_NAMES[which]} {tally(found)}" for which, found in fought.items())
    text = f"Comparisons: {len(fought['last'])}; {tallies}."
    if len(words) == 1:
        return words.pop(), text
    return PARTLY, f"{text} Which evaluation of a run is reported decides."


def tally(fought: Sequence[Duel]) -> str:
    """How many there are of each outcome that occurs."""
    counts = {outcome: _count(fought, outcome) for outcome in OUTCOMES}
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)


def told(matches: Sequence[Match]) -> str:
    """The numbers of each match under each reading, as sentences."""
    return " ".join(filter(None, map(_told, matches)))


def _duel(match: Match, which: str) -> Duel | None:
    ours, theirs = accuracies(match.ours, which), accuracies(match.theirs, which)
    outcome = compare(ours, theirs)
    return None if outcome is None else Duel(ours, theirs, outcome)


def _count(fought: Sequence[Duel], outcome: Outcome) -> int:
    return sum(duel.outcome == outcome for duel in fought)


def _told(match: Match) -> str:
    """The numbers of a match under each reading; empty if it cannot be fought."""
    fought = [(which, duel) for which in READINGS if (duel := _duel(match, which))]
    if not fought:
        return ""
    numbers = "; ".join(f"{READING_NAMES[which]} {_gain(duel)}" for which, duel in fought)
    return f"{match.task}, {match.ours.name} against {match.theirs.name}: {numbers}."


def _gain(duel: Duel) -> str:
    ours, theirs = 100 * duel.ours.mean, 100 * duel.theirs.mean
    error = 100 * (error_of_difference(duel.ours, duel.theirs) or 0.0)
    gain = minus(f"{ours - theirs:+.2f}")
    return f"{ours:.2f} to {theirs:.2f}, {gain} ± {error:.2f}, {duel.outcome}"
