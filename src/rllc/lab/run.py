"""`rllc run`: the records of a study, made where they are missing."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from rich.console import Console

from rllc.lab import adaptive, checks, sweep
from rllc.lab.adaptive import Adaptive
from rllc.lab.errors import Broken, OutOfTime, Refused, unknown
from rllc.lab.files import Folder
from rllc.lab.making import Maker, making
from rllc.lab.optimizers import named
from rllc.lab.options import Run
from rllc.lab.search import GRIDS, Plan, search
from rllc.lab.settings import RLLC_ADAMW
from rllc.lab.studies import STUDIES
from rllc.lab.tasks import TASKS, Task, TextTask
from rllc.lab.texts import say

__all__ = ["main", "plans"]


def main(options: Run, console: Console) -> None:
    """Do what `rllc run` was asked.

    Raises:
        Refused: an option makes no sense, data are missing or altered, the output cannot be written.
        Broken: a worker was killed, memory ran out, or the disk is full.
    """
    # Before anything starts: data may be missing, or have to be decoded.
    asked = [dataclasses.replace(plan, task=checks.with_data(plan.task, console)) for plan in plans(options)]
    out = Folder(options.out)
    checks.make_writable(out / "records")
    if outside := _outside(options.study, asked):
        say(console, f"not in {options.study}: {outside}; see `rllc runs list` and `rllc report`")
    workers, started = options.workers or sweep.cores(), time.monotonic()
    with _pool(options, workers) as pool, making(pool, out, asked, console, options.time_limit) as maker:
        try:
            for plan in asked:
                _make(plan, maker)
            ended, after = "everything has its record", f" Next: {_next(options, asked)}"
        except OutOfTime:
            ended, after = "stopped at the time limit; the same command goes on from there", ""
        seconds, steps = time.monotonic() - started, pool.steps()
    speed = (
        f" {steps:,} steps in {seconds / 60:.1f} minutes, {steps / seconds:,.0f} a second." if steps else ""
    )
    say(console, f"{ended}.{speed}{after}")
    if maker.lost:
        raise Broken(f"{len(maker.lost)} runs ran out of memory and are missing; try fewer --workers")


def plans(options: Run) -> Sequence[Plan | Adaptive]:
    """One plan for each task, the options checked.

    Raises:
        Refused: one of them makes no sense.
    """
    if options.study not in (*STUDIES, adaptive.STUDY):
        names = *STUDIES, adaptive.STUDY
        raise Refused(unknown("study", options.study, names))
    checks.counts({"--seeds": options.seeds, "--steps": options.steps, "--workers": options.workers})
    if options.time_limit is not None and not options.time_limit > 0:
        raise Refused(f"--time-limit must be more than 0 minutes, got {options.time_limit:g}")
    checks.folder(options.out)
    device = checks.device(options.device)
    tasks = list(dict.fromkeys(map(checks.task, options.tasks)))
    names = tuple(dict.fromkeys(map(named, options.optimizers)))
    if options.study == adaptive.STUDY:
        return _adaptive_plans(options, tasks, names, device)
    study = STUDIES[options.study]
    tried = {name: study.trials(name) for name in names or study.optimizers}
    rungs = GRIDS[options.grid]
    return [
        Plan(task, tried, options.seeds, options.steps or study.steps or task.steps, device, rungs)
        for task in tasks or [TASKS[name] for name in study.tasks]
    ]


def _outside(name: str, plans: Sequence[Plan | Adaptive]) -> str:
    """The names of tasks and optimizers that no table of the study shows; those of adaptive have all."""
    asked = (part for plan in plans if isinstance(plan, Plan) for part in (plan.task.name, *plan.tried))
    return ", ".join(
        part for part in dict.fromkeys(asked) if part not in (*STUDIES[name].tasks, *STUDIES[name].optimizers)
    )


def _next(options: Run, plans: Sequence[Plan | Adaptive]) -> str:
    """The command that shows what has been made: the study's table if any of it is in that."""
    shown = any(_is_in_table(options.study, plan) for plan in plans)
    which = "" if options.study == "table1" else f" --study {options.study}"
    out = shlex.quote(options.out)
    return f"rllc table 1 {out}{which}" if shown else f"rllc report {out}"


def _is_in_table(study: str, plan: Plan | Adaptive) -> bool:
    if isinstance(plan, Adaptive):
        return any(contender.name == RLLC_ADAMW for contender in plan.contenders)
    return plan.task.name in STUDIES[study].tasks and bool({*plan.tried} & {*STUDIES[study].optimizers})


def _adaptive_plans(
    options: Run, tasks: Sequence[Task | TextTask], names: Sequence[str], device: str
) -> list[Adaptive]:
    if options.grid != "full":
        raise Refused(
            f"{adaptive.STUDY} needs every rate at every stopping time; leave out --grid {options.grid}"
        )
    known = dict.fromkeys(contender.optimizer for contender in adaptive.CONTENDERS)
    strange = [name for name in names if name not in known]
    if strange:
        raise Refused(f"{strange[0]} has no part in {adaptive.STUDY}; those that have: {'; '.join(known)}")
    contenders = tuple(c for c in adaptive.CONTENDERS if not names or c.optimizer in names)
    steps = options.steps or adaptive.STOPS[-1]
    return [
        Adaptive(task, contenders, steps, options.seeds, device)
        for task in tasks or [TASKS[name] for name in adaptive.ADAPTIVE_TASKS]
    ]


def _make(plan: Plan | Adaptive, maker: Maker) -> None:
    records_of = functools.partial(maker.records, plan)
    if isinstance(plan, Adaptive):
        adaptive.search(plan, records_of)
    else:
        search(plan, records_of)


def _pool(options: Run, workers: int) -> AbstractContextManager[sweep.Pool]:
    if options.cluster is None:
        return sweep.pool(workers)
    from rllc.lab import cluster

    return cluster.pool(options.cluster, workers)
