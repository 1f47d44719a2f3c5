"""Many runs at once: only those without a record, each in one of a few worker processes.

Small networks keep one core busy with overhead, so several runs side by side are the way to use a machine.
A worker writes a record as soon as its run is finished, and a checkpoint of a long run every minute: whatever
stops a sweep, finished runs stay and unfinished ones go on. For more machines see `cluster`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import NamedTuple, Protocol

from rllc.lab import checkpoints, records, training
from rllc.lab.cells import Cell, Result, digest
from rllc.lab.errors import Broken, Damaged, OutOfTime, is_out_of_memory
from rllc.lab.files import Folder
from rllc.lab.records import Record

__all__ = ["Outcome", "Pool", "cores", "finish", "kept", "out_of_memory", "pool", "sweep"]

POLL_SECONDS = 0.2


class Outcome(NamedTuple):
    """What became of a run: whether it has a record now, and a line if there is something to say."""

    finished: bool
    said: str = ""


class Pool(Protocol):
    """Workers on this machine or on several."""

    def submit(self, out: Folder, cell: Cell) -> Future[Outcome]:
        """Have a worker `finish` this cell."""

    def steps(self) -> int:
        """How many training steps the workers have done together."""

    def stop(self) -> None:
        """Let every run end at its next evaluation, with a checkpoint."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kept(records_folder: Folder, cells: Sequence[Cell], warn: Callable[[str], None]) -> dict[Cell, Record]:
    """The readable records of these cells that the folder has; damaged ones are told to `warn`."""
    found = ((cell, _readable(records_folder, cell, warn)) for cell in dict.fromkeys(cells))
    return {cell: record for cell, record in found if record is not None}


def sweep(
    workers: Pool,
    out: Folder,
    cells: Sequence[Cell],
    progress: Callable[[int], None] = lambda steps: None,
    say: Callable[[str], None] = lambda line: None,
    deadline: float | None = None,
) -> list[Cell]:
    """Run these cells and write their records under `out`; returns those that have none, as memory ran out.

    `progress` hears how many steps the workers have done so far, `say` what befell single runs in one line
    each. `deadline` is a time of `time.monotonic()`.

    Raises:
        OutOfTime: the deadline has passed; runs on their way have a checkpoint.
        Broken: a worker was killed, or a record could not be written; other records are safe.
    """
    lost, stopping = [], False
    try:
        with _interrupts_between() as interrupt:
            running = {workers.submit(out, cell): cell for cell in cells}
            futures = set(running)
            while futures:
                done, futures = wait(futures, POLL_SECONDS, FIRST_COMPLETED)
                interrupt()
                for cell, (finished, said) in _outcomes(done, running):
                    if said:
                        say(said)
                    if not finished and not stopping:
                        lost.append(cell)
                progress(workers.steps())
                if deadline is not None and time.monotonic() > deadline and not stopping:
                    stopping = True
                    _stop(workers, futures)
            interrupt()
    except BrokenProcessPool:
        raise Broken(
            "a worker process was killed (out of memory?); finished runs are kept: run the same command"
            " again, with fewer --workers if memory is short"
        ) from None
    if stopping:
        raise OutOfTime
    return lost


def _outcomes(
    done: Iterable[Future[Outcome]], running: Mapping[Future[Outcome], Cell]
) -> Iterator[tuple[Cell, Outcome]]:
    """What became of the runs that were begun."""
    return ((running[future], future.result()) for future in done if not future.cancelled())


def _stop(workers: Pool, futures: Iterable[Future[Outcome]]) -> None:
    """Let runs that were begun end with a checkpoint, and begin no other."""
    workers.stop()
    for future in futures:
        future.cancel()


@contextmanager
def _interrupts_between() -> Iterator[Callable[[], None]]:
    """Ctrl-C is noted, and raised by what this yields.

    Raised where it arrives, within `wait` or `submit`, it can leave the lock of a future held for ever, and
    whoever then shuts the pool down waits as long.
    """
    if not _ctrl_c_is_raised_here():
        yield lambda: None
        return
    noted: list[int] = []

    def interrupt() -> None:
        if noted:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _ctrl_c_is_raised_here() -> bool:
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return ours and threading.current_thread() is threading.main_thread()


def finish(out: Folder, cell: Cell, report: Callable[[int], None], stop: Callable[[], bool]) -> Outcome:
    """Train a cell from its checkpoint or from the start, and write its record, under `out`.

    Raises:
        Broken: the disk is full, or the folder cannot be written.
    """
    keep = out / "checkpoints"
    try:
        result, said = _trained(keep, cell, report, stop)
        if result is None:
            return Outcome(False, said)
        report(cell.steps - (result.diverged_at or cell.steps))  # what a diverged run will not do
        records.save(out / "records", cell, result)
        checkpoints.remove(keep, digest(cell))
    except (MemoryError, RuntimeError) as reason:
        if not is_out_of_memory(reason):
            raise
        return out_of_memory(cell)
    except OSError as reason:
        why = (reason.strerror or str(reason)) + (f": {reason.filename}" if reason.filename else "")
        raise Broken(f"cannot write to {out.url} ({why}); finished runs are kept") from None
    return Outcome(True, said)


def out_of_memory(cell: Cell) -> Outcome:
    """What became of a run that the machine has no room for."""
    return Outcome(False, f"{_text(cell)} ran out of memory and has no record; try fewer --workers")


def _trained(
    keep: Folder, cell: Cell, report: Callable[[int], None], stop: Callable[[], bool]
) -> tuple[Result | None, str]:
    """What training gives; where the checkpoint cannot be read, from the start, and a line that says so."""
    try:
        return training.train(cell, report, keep, stop), ""
    except Damaged as reason:
        checkpoints.remove(keep, digest(cell))
        return training.train(cell, report, keep, stop), f"{reason}; its run starts again"


@contextmanager
def pool(workers: int) -> Iterator[Pool]:
    """Start processes on demand; on any error, Ctrl-C too, they are ended at once."""
    context = _context()
    steps, stopping = context.Value("q", 0), context.Event()
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, context, _prepare, (steps, stopping, dict(os.environ)))
    try:
        yield _Processes(executor, steps, stopping)
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _context() -> BaseContext:
    """Workers are forked, where that is safe, from a process that has imported what they need and no more.

    Fork and torch's threads do not go together, so it cannot be this one.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    # An optimizer's first step imports the second, which takes as long as all of torch.
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    if _ctrl_c_is_raised_here():  # and is not for that process, which takes seconds until it says so itself
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        forkserver.ensure_running()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return context


class _Processes:
    def __init__(self, executor: ProcessPoolExecutor, steps: Synchronized[int], stopping: Event) -> None:
        self._executor = executor
        self._steps = steps
        self._stopping = stopping

    def submit(self, out: Folder, cell: Cell) -> Future[Outcome]:
        return self._executor.submit(_finish, out, cell)

    def steps(self) -> int:
        return self._steps.value

    def stop(self) -> None:
        self._stopping.set()


def _readable(folder: Folder, cell: Cell, warn: Callable[[str], None]) -> Record | None:
    try:
        return records.find(folder, cell)
    except Damaged as reason:
        warn(f"{reason}; it is made again")
        return None


def _text(cell: Cell) -> str:
    lr, second = cell.setting.rates
    rates = f"lr {lr:g}" + (f", {second:g}" if second is not None else "")
    return f"{cell.setting.name} ({rates}) on {cell.task.name}, seed {cell.seed},"


# What runs in a worker process.

_steps: Synchronized[int]
_stopping: Event


def _prepare(steps: Synchronized[int], stopping: Event, environment: dict[str, str]) -> None:
    global _steps, _stopping
    _steps, _stopping = steps, stopping
    os.environ.update(environment)  # the one it was forked from has that of the first pool
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave when the parent is gone, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _count(steps: int) -> None:
    with _steps.get_lock():
        _steps.value += steps


def _finish(out: Folder, cell: Cell) -> Outcome:
    return finish(out, cell, _count, _stopping.is_set)
