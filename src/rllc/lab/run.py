"""`rllc run`: the records of a study, made where they are missing."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from rich.console import Console

from rllc.lab import checks, data, sweep
from rllc.lab.errors import Broken, OutOfTime, Refused, unknown
from rllc.lab.files import Folder
from rllc.lab.optimizers import named
from rllc.lab.options import Run
from rllc.lab.search import SHORT, Plan, making, search
from rllc.lab.studies import STUDIES, Study
from rllc.lab.tasks import TASKS

__all__ = ["main", "plans"]


def main(options: Run, console: Console) -> None:
    """Do what `rllc run` was asked.

    Raises:
        Refused: an option makes no sense, data are missing or altered, the output cannot be written.
        Broken: a worker was killed, memory ran out, or the disk is full.
    """
    asked, out = plans(options), Folder(options.out)
    for plan in asked:
        data.load(plan.task.data)  # before anything starts: it may be missing, or have to be decoded
    checks.make_writable(out / "records")
    workers, started = options.workers or sweep.cores(), time.monotonic()
    with _pool(options, workers) as pool, making(pool, out, asked, console, options.time_limit) as maker:
        try:
            for plan in asked:
                search(plan, maker)
            ended = "everything has its record"
        except OutOfTime:
            ended = "stopped at the time limit; the same command goes on from there"
        seconds, steps = time.monotonic() - started, pool.steps()
    speed = (
        f" {steps:,} steps in {seconds / 60:.1f} minutes, {steps / seconds:,.0f} a second." if steps else ""
    )
    after = f" Next: rllc table 1 {options.out}"
    console.print(f"{ended}.{speed}{after}", highlight=False, soft_wrap=True)
    if maker.lost:
        raise Broken(f"{len(maker.lost)} runs ran out of memory and are missing; try fewer --workers")


def plans(options: Run) -> list[Plan]:
    """One plan for each task, the options checked.

    Raises:
        Refused: one of them makes no sense.
    """
    study = _study(options.study)
    checks.counts({"--seeds": options.seeds, "--steps": options.steps, "--workers": options.workers})
    if options.time_limit is not None and not options.time_limit > 0:
        raise Refused(f"--time-limit must be more than 0 minutes, got {options.time_limit:g}")
    checks.folder(options.out)
    device = checks.device(options.device)
    tasks = [checks.task(name) for name in options.tasks] or [TASKS[name] for name in study.tasks]
    names = dict.fromkeys(map(named, options.optimizers or study.optimizers))
    tried = {name: study.trials(name) for name in names}
    rungs = SHORT if options.grid == "short" else ()
    return [
        Plan(task, tried, options.seeds, options.steps or study.steps or task.steps, device, rungs)
        for task in dict.fromkeys(tasks)
    ]


def _study(name: str) -> Study:
    if name in STUDIES:
        return STUDIES[name]
    raise Refused(unknown("study", name, STUDIES) + ", ".join(STUDIES))


def _pool(options: Run, workers: int) -> AbstractContextManager[sweep.Pool]:
    if options.cluster is None:
        return sweep.pool(workers)
    from rllc.lab import cluster

    return cluster.pool(options.cluster, workers)
