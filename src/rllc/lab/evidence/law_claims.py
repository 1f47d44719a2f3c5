"""Claims of arXiv 2402.15262 on the path of the law (section 6, Figure 2, A.2 and A.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllc.lab.evidence.law_paths import crossings, missed, rewriting
from rllc.lab.evidence.outcomes import Rows, tasks_in
from rllc.lab.evidence.verdicts import HOLDS, NOT, PARTLY, UNTESTED, Verdict
from rllc.lab.records import Record
from rllc.lab.selection import finished
from rllc.lab.texts import minus
from rllc.notation import parse

__all__ = ["BETA", "LIMIT", "THREE", "TWO", "coupling", "transition"]

TWO, BETA = "M(0.9) + M(0.0)", 0.9
THREE, LIMIT = "M(0.9) + M(0.8) + M(0.7)", "M(0.9) + M_2(0.75)"
GAIN = (
    "A unit M(0.9) is ten times as large as the gradient it sums: it leads the step for longer than the law."
)
NO_RUNS = "It takes a finished run."
COUPLED = -0.5  # correlation of increments below which two coefficients move against each other


def _law_of(record: Record) -> NDArray[np.float64]:
    """The law at each evaluation: (points, k)."""
    return np.array([point.law for point in record.result.points])


def transition(found: Rows) -> Verdict:
    """M(0.9) + M(0) begins with momentum and ends with the gradient, passing NAG."""
    runs = _runs(found, TWO)
    shown = {task: [_passage(record) for record in records] for task, records in runs.items()}
    all_ = [passage for passages in shown.values() for passage in passages]
    ended = [passage.ended for passage in all_]
    complete = [passage.led and passage.nag is not None and passage.ended for passage in all_]
    return Verdict(
        "The law of M(0.9) + M(0) moves from momentum to the gradient and passes NAG on the way.",
        "section 6, Figure 2a",
        _word(complete, ended),
        " ".join([*(_told(task, runs[task], passages) for task, passages in shown.items()), GAIN])
        if runs
        else NO_RUNS,
        "In a run: the coefficient of M(0.9) is the larger one at some evaluation after the first, the path"
        " crosses the NAG line (0.9 c, c), and at the end the coefficient of M(0) is the larger one. Holds:"
        " all three in every run; does not: the last in none.",
    )


def coupling(found: Rows) -> Verdict:
    """The coefficients of M(0.8) and M(0.7) move against each other."""
    runs = _runs(found, THREE)
    coupled = [_is_coupled(record) for records in runs.values() for record in records]
    return Verdict(
        "The coefficients of M(0.8) and M(0.7) are coupled with opposite signs.",
        "section 6, Figure 2b, A.3",
        _word(coupled, coupled),
        " ".join(_coupling_told(task, records) for task, records in runs.items()) if runs else NO_RUNS,
        "In a run: the changes of both from evaluation to evaluation have a correlation below −0.5, and their"
        " signs at the end differ. Holds: in every run; does not: in none.",
    )


class _Passage(NamedTuple):
    """Whether M(0.9) led after the start, the steps at which NAG and SGD were first passed, who led last."""

    led: bool
    nag: float | None
    sgd: float | None
    ended: bool


def _passage(record: Record) -> _Passage:
    law = _law_of(record)
    path = [(point.step, point.law) for point in record.result.points]
    passed = dict(reversed(crossings(path, BETA)))  # the first of each line stays
    led = bool((law[1:, 0] > law[1:, 1]).any())
    return _Passage(led, passed.get("NAG"), passed.get("SGD"), bool(law[-1, 1] > abs(law[-1, 0])))


def _told(task: str, records: Sequence[Record], passages: Sequence[_Passage]) -> str:
    first, last = (np.mean([_law_of(record)[i] for record in records], axis=0) for i in (0, -1))
    return (
        f"{task}: from ({_law(first)}) to ({_law(last)}) in the mean of {len(records)} runs;"
        f" M(0.9) is the larger coefficient after the start in {sum(p.led for p in passages)} of them,"
        f" NAG is passed {_when([p.nag for p in passages])}, SGD {_when([p.sgd for p in passages])}."
    )


def _when(steps: Sequence[float | None]) -> str:
    known = sorted(step for step in steps if step is not None)
    if not known:
        return "never"
    runs = "" if len(known) == len(steps) else f" (in {len(known)} of {len(steps)} runs)"
    low, high = (f"{step:,.0f}" for step in (known[0], known[-1]))
    return f"at step {low}{runs}" if low == high else f"at steps {low} to {high}{runs}"


def _is_coupled(record: Record) -> bool:
    law = _law_of(record)
    return _correlation(record) < COUPLED and law[-1, 1] * law[-1, 2] < 0


def _correlation(record: Record) -> float:
    """Of the changes of the last two coefficients between evaluations; 0 where one does not change."""
    changes = np.diff(_law_of(record), axis=0)[:, 1:]
    return float(np.corrcoef(*changes.T).item(0, 1)) if changes.std(axis=0).all() else 0.0


def _coupling_told(task: str, records: Sequence[Record]) -> str:
    p, q = parse(THREE), parse(LIMIT)
    laws = np.concatenate([_law_of(record) for record in records])
    rewritten = laws @ rewriting(p, q).T
    lost = max(missed(p, q, law) for law in laws)
    correlations = ", ".join(minus(f"{_correlation(record):.3f}") for record in records)
    return (
        f"{task}: correlations {correlations}; M(0.8) between {_range(laws[:, 1])}, M(0.7) between"
        f" {_range(laws[:, 2])}. In the units of {LIMIT} the same steps, to {100 * lost:.1f} % under white"
        f" noise, need coefficients of at most {abs(rewritten).max():.1f} instead of {abs(laws).max():.1f}."
    )


def _runs(found: Rows, name: str) -> dict[str, tuple[Record, ...]]:
    """The finished runs of an optimizer by task."""
    rows = {task: found[task, name] for task in tasks_in(found) if (task, name) in found}
    return {task: ended for task, row in rows.items() if (ended := finished(row.records))}


def _word(all_of: Sequence[bool], none_of: Sequence[bool]) -> str:
    """HOLDS if all of the first, NOT if none of the second, PARTLY between."""
    if not all_of:
        return UNTESTED
    return HOLDS if all(all_of) else PARTLY if any(none_of) else NOT


def _law(law: NDArray[np.float64]) -> str:
    return ", ".join(minus(f"{value:.2f}") for value in law)


def _range(values: NDArray[np.float64]) -> str:
    return " and ".join(minus(f"{value:.1f}") for value in (values.min(), values.max()))
