"""rllc.torch.openmp: kernels of numba on PyTorch's threads."""

import os
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from rllc.torch import fused_cpu, openmp

TASKS = Path("/proc/self/task")
gnu = pytest.mark.skipif(not openmp.HERE, reason="needs GNU's interface to OpenMP")


@numba.njit
def _note(lo, hi, data):
    """Note who did what: each of `data`'s rows is one of a thread's calls."""
    done, ends = data
    for i in range(lo, hi):
        done[i] += 1
    if hi > lo:
        ends[lo] = hi


def spreading():
    """A kernel that does nothing but spread, compiled with what `openmp.HERE` now is."""

    @numba.njit(nogil=True)
    def run(threads, done, ends):
        openmp.spread(_note, threads, (done, ends), done.size)

    return run


def shares(run, threads, count):
    """How often each item is done, and the sizes of the shares."""
    done, ends = np.zeros(count), np.zeros(count)
    run(threads, done, ends)
    starts = np.flatnonzero(ends)
    return done, ends[starts] - starts


@gnu
def test_every_item_is_done_once_and_shares_are_even():
    run = spreading()
    for threads in (1, 2, 3, 5):
        for count in (0, 1, 4, 7, 50):
            done, sizes = shares(run, threads, count)
            assert (done == 1).all()
            if count >= threads:
                assert len(sizes) == threads
                assert sizes.max() - sizes.min() <= 1


def test_without_openmp_the_calling_thread_does_everything(monkeypatch):
    monkeypatch.setattr(openmp, "HERE", False)
    done, sizes = shares(spreading(), 3, 50)
    assert (done == 1).all()
    assert sizes.tolist() == [50]


@gnu
@pytest.mark.skipif(not TASKS.is_dir(), reason="counts threads as Linux lists them")
def test_the_threads_are_those_of_pytorch():
    run, threads = spreading(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.ones(1_000_000).exp_()
        before = len(os.listdir(TASKS))
        shares(run, 3, 50)
        assert len(os.listdir(TASKS)) == before > 2
    finally:
        torch.set_num_threads(threads)


@numba.njit
def _fails(lo, hi, data):
    if lo <= data[0] < hi:
        raise MemoryError


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("where", [0, 9])
def test_a_share_without_memory_fails_the_whole(threads, where):
    @numba.njit
    def run(threads, where):
        openmp.spread(_fails, threads, (where,), 10)

    with pytest.raises(MemoryError, match="in a kernel of rllc"):
        run(threads, where)
    run(threads, 10)


def test_short_lists_are_left_to_one_thread():
    def asked(entries):
        p = torch.zeros(entries)
        part = fused_cpu.Part([p], [p.clone()], [[p.clone()]], [0], [0])
        [batch], _ = fused_cpu.prepare(part, None)
        return fused_cpu.threads(batch)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        least = fused_cpu.SHARE * fused_cpu.CHUNK
        assert [asked(n) for n in (1, least, 2 * least - fused_cpu.CHUNK, 2 * least)] == [1, 1, 1, 2]
    finally:
        torch.set_num_threads(threads)
