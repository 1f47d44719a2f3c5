"""Many runs at once: only those without a record, each in one of a few worker processes.

Small networks keep one core busy with overhead, so several runs side by side are the way to use a machine.
A worker writes a record as soon as its run is finished: whatever stops a sweep, finished runs stay.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from rllc.lab import records, training
from rllc.lab.errors import Broken
from rllc.lab.records import Damaged, Record
from rllc.lab.training import Cell

__all__ = ["Pool", "cores", "missing", "pool", "sweep"]

POLL_SECONDS = 0.2


class Pool:
    """Worker processes and the count of training steps they have done together."""

    def __init__(self, executor: ProcessPoolExecutor, steps: Synchronized[int]) -> None:
        self.executor = executor
        self.steps = steps


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pool(workers: int) -> Iterator[Pool]:
    """Start workers on demand; on any error, Ctrl-C too, they are ended at once."""
    context = multiprocessing.get_context("spawn")  # fork and torch's threads do not go together
    steps = context.Value("q", 0)
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, context, _prepare, (steps,))
    try:
        yield Pool(executor, steps)
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def missing(folder: Path, cells: Sequence[Cell], warn: Callable[[str], None]) -> list[Cell]:
    """The cells, each once, that have no readable record in the folder; damaged ones are told to `warn`."""
    return [cell for cell in dict.fromkeys(cells) if _readable(folder, cell, warn) is None]


def sweep(
    workers: Pool, folder: Path, cells: Sequence[Cell], progress: Callable[[int], None] = lambda steps: None
) -> None:
    """Run these cells and write their records; `progress` hears how many steps the pool has done so far.

    Raises:
        Broken: a worker was killed, or a record could not be written; other records are safe.
    """
    futures: set[Future[None]] = {workers.executor.submit(_run, folder, cell) for cell in cells}
    try:
        while futures:
            done, futures = wait(futures, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                future.result()
            progress(workers.steps.value)
    except BrokenProcessPool:
        raise Broken(
            "a worker process was killed (out of memory?); finished runs are kept: run the same command"
            " again, with fewer --workers if memory is short"
        ) from None


def _readable(folder: Path, cell: Cell, warn: Callable[[str], None]) -> Record | None:
    try:
        return records.find(folder, cell)
    except Damaged as reason:
        warn(f"{reason}; it is made again")
        return None


# What runs in a worker.

_steps: Synchronized[int]


def _prepare(steps: Synchronized[int]) -> None:
    global _steps
    _steps = steps
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


def _run(folder: Path, cell: Cell) -> None:
    result = training.train(cell, _count)
    _count(cell.steps - (result.diverged_at or cell.steps))  # what a diverged run will not do
    try:
        records.save(folder, cell, result)
    except OSError as reason:
        raise Broken(
            f"cannot write a record to {folder} ({reason.strerror}); finished runs are kept"
        ) from None
