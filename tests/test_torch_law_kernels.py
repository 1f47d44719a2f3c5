"""The kernels of the k x k law, for a CPU and for a GPU, beside the same in NumPy and in torch."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

import rllc
import rllc.torch
from rllc.law import SEEKING, Cutoff, GramianRidge, LawStep, Ridge
from rllc.torch import learning, saved, stepping
from rllc.torch.parts import Part
from rllc.torch.passes import Passes
from rllc.torch.stepping import Share


@pytest.fixture(scope="module")
def triton():
    """The kernel for a GPU, which is interpreted where there is none (tests/conftest.py)."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton's interpreter is not on")
    from rllc.torch import fused_law_cuda

    return fused_law_cuda.learn


@pytest.fixture(scope="module")
def numba():
    """The kernel for a CPU."""
    pytest.importorskip("numba")
    from rllc.torch import fused_law_cpu

    return fused_law_cpu.learn


class Books:
    """Groups that share one law, a share of each, and what the second pass is told."""

    def __init__(self, memory, inverse, guard, step, rates, seed=None):
        self.solver = learning.solver(rllc.as_propagator(memory), inverse, guard, step)
        self.k, self.told = len(self.solver.a), []
        law = np.linspace(0.5, 1.5, self.k)
        passes = Passes(lambda part, plan: (None, None), None, lambda work, step: self.told.append(step))
        names = "lr", "law_lr", "weight_decay", "maximize"
        self.groups = [
            dict(zip(names, own, strict=True)) | {"params": [torch.zeros(1)], "memory": memory}
            for own in rates
        ]
        self.groups[0] |= saved.books(saved.fresh(law, ()), seed)
        one = Part([torch.zeros(1)], [torch.zeros(1)], [[]] * self.k, [0], [0])
        self.shares = [Share(group, one, passes, None, None, 0) for group in self.groups]
        self.there = learning.on(torch.device("cpu"), self.solver.host)

    def schedule(self, step, rates):
        """Learning rates that rise, fall and are zero."""
        for group, (lr, *_) in zip(self.groups, rates, strict=True):
            group["lr"] = lr * (1.0, 1.0, 3.0, 0.0, 0.5, 5.0)[step % 6]

    def by_torch(self, found):
        taking = [True] * len(self.groups)
        return stepping.on_device(
            self.solver, self.there, self.shares[0].group, self.shares, found, taking, None
        )

    def by_triton(self, learn, found):
        rounding = stepping._rounding(self.solver, self.shares)
        taken, self.told[len(self.told) :] = learn(self.solver, self.there, self.groups, found, rounding)
        return taken

    def on_host(self, found, learn=None):
        passes = self.shares[0].passes._replace(learn=learn)
        shares = [share._replace(passes=passes) for share in self.shares]
        return stepping.on_host(self.solver, shares[0].group, shares, found, [True] * len(shares), None)


def sums_of(k_and_one, shares, seed):
    """Inner products of as many random vectors, their lengths over four orders."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(shares, 40, k_and_one)) * 10 ** random.uniform(-2, 2, size=k_and_one)
    return torch.from_numpy(np.einsum("sni,snj->sij", vectors, vectors))


def same_books(mine, theirs, rtol=1e-9):
    for name in ("law", "faded", "last", "progress", "skipped", "draws"):
        torch.testing.assert_close(mine.groups[0][name], theirs.groups[0][name], rtol=rtol, atol=1e-12)
    assert len(mine.told) == len(theirs.told)
    for got, want in zip(mine.told, theirs.told, strict=True):
        for x, y in zip(got[:4], want[:4], strict=True):
            x, y = (torch.as_tensor(z, dtype=torch.float64) for z in (x, y))
            torch.testing.assert_close(x, y, rtol=rtol, atol=1e-12)
        assert got.structure == want.structure
        if got.row is not None:
            parts = [torch.as_tensor(x, dtype=torch.float64).reshape(-1) for x in (got.B, got.a, got.weights)]
            assert torch.equal(got.row, torch.cat([*parts, got.keep.reshape(1)]))
            assert bool(got.ok) == bool(want.ok)


TWO_GROUPS = ((0.1, 0.01, 0.3, False), (0.2, 0.02, 0.0, True))


ONE_GROUP = TWO_GROUPS[:1]
SOON = replace(SEEKING, smoothing=0.5)  # finds its size within the test


CASES = pytest.mark.parametrize(
    ("memory", "law_step", "inverse", "rates"),
    [
        ("M(0.9)", SOON, GramianRidge(), ONE_GROUP),
        ("M(0.9) + M(0.0)", LawStep(), GramianRidge(), ONE_GROUP),
        ("M(0.9) + M(0.0)", SOON, GramianRidge(), TWO_GROUPS),
        ("M_2(0.5)", LawStep(q=1.5, decay=0.5, clip=0.1), Ridge(1e-3), TWO_GROUPS),
        ("M(0.9) + M(0.8) + CM(-0.2+0.5j)", LawStep(), GramianRidge(), TWO_GROUPS),
        ("M(0.9) + M(0.8) + CM(-0.2+0.5j)", LawStep(decay=0.5), Ridge(1e-3), ONE_GROUP),
    ],
)


def drawn(size, shares, steps):
    """Sums of one step after the other: empty memory, steps that were too short and too long, silences."""
    for step in range(steps):
        found = sums_of(size, shares, step)
        if step > 3:
            found[:, -1, :-1] = found[:, :-1, -1] = -found[:, :-1, -1].abs()
        if step % 5 > 2:
            found[:, -1, :] = found[:, :, -1] = 0
        if step == 0:
            found[:, :-1, :] = found[:, :, :-1] = 0
        yield found


@CASES
def test_the_law_by_triton(triton, memory, law_step, inverse, rates):
    mine, theirs = (Books(memory, inverse, True, law_step, rates, seed=7) for _ in range(2))
    for step, found in enumerate(drawn(len(mine.solver.rows[0]), len(rates), 12)):
        mine.schedule(step, rates), theirs.schedule(step, rates)
        assert mine.by_triton(triton, found) and theirs.by_torch(found)
    same_books(mine, theirs)
    assert memory != "M(0.9)" or mine.groups[0]["progress"][2] > 0  # so that both its parts are seen


@CASES
@pytest.mark.parametrize("guard", [True, False])
def test_the_law_by_numba(numba, memory, law_step, inverse, rates, guard):
    mine, theirs = (Books(memory, inverse, guard, law_step, rates, seed=7) for _ in range(2))
    for step, found in enumerate(drawn(len(mine.solver.rows[0]), len(rates), 40)):
        mine.schedule(step, rates), theirs.schedule(step, rates)
        assert mine.on_host(found, numba) and theirs.on_host(found)
    same_books(mine, theirs)
    assert memory != "M(0.9)" or mine.groups[0]["progress"][2] > 0


BAD = pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e80], ids=str)


def with_bad(value):
    found = sums_of(3, 1, 0)
    found[0, 2, 2] *= value
    return found


@BAD
def test_triton_skips_what_is_to_be_skipped(triton, bad):
    mine, theirs = (Books("M_2(0.5)", GramianRidge(), True, LawStep(), ONE_GROUP) for _ in range(2))
    for value in (1.0, bad, 1.0):
        found = with_bad(value)
        assert bool(mine.by_triton(triton, found)) == bool(theirs.by_torch(found)) == (value == 1)
    assert mine.groups[0]["skipped"] == 1
    same_books(mine, theirs)


@BAD
def test_numba_skips_what_is_to_be_skipped(numba, bad):
    """Of 1e80 the entries decide, which are small here."""
    mine, theirs = (Books("M_2(0.5)", GramianRidge(), True, LawStep(), ONE_GROUP) for _ in range(2))
    for books in (mine, theirs):
        part = books.shares[0].part
        books.shares[0] = books.shares[0]._replace(part=part._replace(memory=[part.gradient] * 2))
    for value in (1.0, bad, 1.0):
        found = with_bad(value)
        done = mine.on_host(found, numba)
        assert done == theirs.on_host(found) == (value in (1.0, 1e80))
    assert mine.groups[0]["skipped"] == (bad != 1e80)
    same_books(mine, theirs)


def test_which_laws_have_a_kernel():
    books = Books("M(0.9)", Cutoff(), True, LawStep(), ONE_GROUP)
    assert not learning.has_kernel(books.solver, books.groups[0]["law"])
    books = Books("M(0.9)", GramianRidge(), False, LawStep(), ONE_GROUP)
    assert learning.has_kernel(books.solver, books.groups[0]["law"])
    assert not learning.has_kernel(books.solver, torch.ones(2, 1))


def test_the_law_has_its_kernel_where_the_passes_have():
    pytest.importorskip("numba")
    from rllc.torch import fused_law_cpu

    p = torch.nn.Parameter(torch.ones(3))
    for how, learn in (({}, fused_law_cpu.learn), ({"foreach": True}, None), ({"foreach": False}, None)):
        optimizer = rllc.torch.RLLC([p], "M(0.9)", 0.1, 0.01, **how)
        assert optimizer._passes(optimizer.param_groups[0]).learn is learn
