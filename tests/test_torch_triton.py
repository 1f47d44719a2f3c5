"""The Triton kernels in Triton's interpreter, on the CPU, against the plain text of the algorithm."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import rllc
from problems import DENSE, EIGHT
from rllc.law import SEEKING, GramianRidge, LawStep, Ridge
from rllc.torch import forloop, learning, saved, stepping
from rllc.torch.parts import Part
from rllc.torch.passes import Passes, Step
from rllc.torch.stepping import Share

pytest.importorskip("triton")

SIZES = ((5,), (3, 4), (4096,), (2, 4096 + 17), (0,), (1,))


@pytest.fixture(scope="module")
def fused():
    """The implementation; without a GPU its kernels are interpreted (tests/conftest.py)."""
    from rllc.torch import fused_cuda

    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton's interpreter is not on")
    return Prepared(fused_cuda)


class Prepared:
    """Both passes on a part as it is."""

    def __init__(self, passes):
        self.passes = passes

    def gram(self, part, basis):
        return self.passes.gram(self.passes.prepare(part, None)[0], basis)

    def advance(self, part, step):
        self.passes.advance(self.passes.prepare(part, None)[0], step)


def part(k, dtype=torch.float32, unit_dtype=None, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def unit(dtype):
        return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in SIZES]

    memory = [unit(unit_dtype or dtype) for _ in range(k)]
    return Part(unit(dtype), unit(dtype), memory, list(range(len(SIZES))), [0] * len(SIZES))


def copy(of):
    return Part(
        [t.clone() for t in of.params],
        [t.clone() for t in of.gradient],
        [[t.clone() for t in unit] for unit in of.memory],
        of.numbers,
        of.starts,
    )


def step(p, ok=None, draw=None, seed=0):
    """The numbers of a step, as tensors."""
    weights = -0.1 * np.random.default_rng(seed).normal(size=p.k)
    B, keep = (torch.tensor(x, dtype=torch.float64) for x in (p.B, 0.99))
    structure = (p.B != 0) | np.eye(p.k, dtype=bool) if ok is not None else p.B != 0
    return Step(B, p.a, keep, torch.from_numpy(weights), structure, ok, draw)


def close(got, want, rtol):
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol, equal_nan=True)


@pytest.mark.parametrize("memory", [*EIGHT, DENSE], ids=[*EIGHT, "dense"])
def test_both_passes(fused, memory):
    p = rllc.as_propagator(memory)
    mine, theirs = part(p.k), part(p.k)
    basis = np.eye(p.k + 1) + 0.1 * np.random.default_rng(1).normal(size=(p.k + 1, p.k + 1))
    found, want = fused.gram(mine, basis), forloop.gram(theirs, basis)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-10)
    fused.advance(mine, step(p))
    forloop.advance(theirs, step(p))
    for got, wanted in zip([*mine.memory, mine.params], [*theirs.memory, theirs.params], strict=True):
        close(got, wanted, 4e-7)


def test_the_gradient_is_left_alone_and_sums_are_the_same_to_the_bit(fused):
    mine = part(2)
    before = copy(mine)
    basis = np.eye(3)
    assert torch.equal(fused.gram(mine, basis), fused.gram(copy(mine), basis))
    fused.advance(mine, step(rllc.parse("M_2(0.5)")))
    assert all(map(torch.equal, mine.gradient, before.gradient))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(fused, dtype):
    p = rllc.parse("M(0.9) + M(0.0)")
    mine, theirs = part(2, dtype), part(2, dtype)
    torch.testing.assert_close(
        fused.gram(mine, np.eye(3)), forloop.gram(theirs, np.eye(3)), rtol=1e-12, atol=1e-9
    )
    fused.advance(mine, step(p))
    forloop.advance(theirs, step(p))
    for got, wanted in zip([*mine.memory, mine.params], [*theirs.memory, theirs.params], strict=True):
        close(got, wanted, 2 * torch.finfo(dtype).eps)


def test_units_in_bfloat16_are_rounded_by_the_same_dice(fused):
    p = rllc.parse("M(0.999)")
    mine, theirs = (part(1, unit_dtype=torch.bfloat16) for _ in range(2))
    for count in range(3):
        fused.advance(mine, step(p, draw=(7, count)))
        forloop.advance(theirs, step(p, draw=(7, count)))
    assert all(map(torch.equal, mine.memory[0], theirs.memory[0]))


def test_a_step_to_be_skipped_changes_nothing_even_by_nan(fused):
    p = rllc.parse("M_2(0.5)")
    mine = part(2)
    before = copy(mine)
    for g in mine.gradient:
        g.fill_(torch.nan)
    still = step(rllc.Propagator(0 * p.B, p.a), ok=torch.tensor(False))
    skipped = still._replace(B=torch.eye(2, dtype=torch.float64), keep=1.0, weights=torch.zeros(2))
    fused.advance(mine, skipped)
    for got, wanted in zip([*mine.memory, mine.params], [*before.memory, before.params], strict=True):
        assert all(map(torch.equal, got, wanted))


def test_what_is_not_finite_shows_in_the_sums(fused):
    mine = part(1)
    mine.gradient[3][1, 7] = torch.inf
    found = fused.gram(mine, np.eye(2))
    assert not torch.isfinite(found[1, 1])


def test_tensors_that_begin_anywhere_and_lie_in_any_order(fused):
    p = rllc.parse("M(0.9)")
    made = part(1)
    shifted = torch.empty(5000)[3 : 3 + 4096]
    made.params[2] = shifted.copy_(made.params[2])
    for unit in (made.params, made.gradient, made.memory[0]):
        unit[3] = unit[3].t().contiguous().t()  # column by column
    made.gradient[1] = made.gradient[1].t().contiguous().t()  # not as its parameter: another implementation's
    theirs = copy(made)
    fused.advance(made, step(p))
    forloop.advance(theirs, step(p))
    close([*made.params, *made.memory[0]], [*theirs.params, *theirs.memory[0]], 4e-7)
    torch.testing.assert_close(
        fused.gram(made, np.eye(2)), forloop.gram(theirs, np.eye(2)), rtol=1e-6, atol=1e-4
    )


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

    def by_torch(self, found):
        taking = [True] * len(self.groups)
        return stepping.on_device(self.solver, self.there, self.shares, found, taking, None)

    def by_kernel(self, found):
        from rllc.torch import fused_law

        rounding = stepping._rounding(self.solver, self.shares)
        taken, self.told[len(self.told) :] = fused_law.learn(
            self.solver, self.there, self.groups, found, rounding
        )
        return taken


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
        parts = [torch.as_tensor(x, dtype=torch.float64).reshape(-1) for x in (got.B, got.a, got.weights)]
        assert torch.equal(got.row, torch.cat([*parts, got.keep.reshape(1)]))
        assert got.structure == want.structure and bool(got.ok) == bool(want.ok)


TWO_GROUPS = ((0.1, 0.01, 0.3, False), (0.2, 0.02, 0.0, True))


ONE_GROUP = TWO_GROUPS[:1]
SOON = replace(SEEKING, smoothing=0.5)  # finds its size within the test


@pytest.mark.parametrize(
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
def test_the_law_by_one_kernel(fused, memory, law_step, inverse, rates):
    """A dozen corrections, zero gradients among them, beside the same in torch's operations."""
    mine, theirs = (Books(memory, inverse, True, law_step, rates, seed=7) for _ in range(2))
    size = len(mine.solver.rows[0])
    for step in range(12):
        found = sums_of(size, len(rates), step)
        if step > 3:  # steps have been too long
            found[:, -1, :-1] = found[:, :-1, -1] = -found[:, :-1, -1].abs()
        if step % 5 > 2:
            found[:, -1, :] = found[:, :, -1] = 0
        if step == 0:
            found[:, :-1, :] = found[:, :, :-1] = 0  # memory is empty
        assert mine.by_kernel(found) and theirs.by_torch(found)
    same_books(mine, theirs)
    assert memory != "M(0.9)" or mine.groups[0]["progress"][2] > 0  # so that both its parts are seen


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e80], ids=str)
def test_the_law_s_kernel_skips_what_is_to_be_skipped(fused, bad):
    mine, theirs = (Books("M_2(0.5)", GramianRidge(), True, LawStep(), ONE_GROUP) for _ in range(2))
    for value in (1.0, bad, 1.0):
        found = sums_of(3, 1, 0)
        found[0, 2, 2] *= value
        assert bool(mine.by_kernel(found)) == bool(theirs.by_torch(found)) == (value == 1)
    assert mine.groups[0]["skipped"] == 1
    same_books(mine, theirs)


def test_which_laws_have_a_kernel(fused):
    from rllc.torch import fused_law

    books = Books("M(0.9)", rllc.law.Cutoff(), True, LawStep(), TWO_GROUPS)
    assert not fused_law.takes(books.solver, books.groups[0]["law"], 2)
    books = Books("M(0.9)", GramianRidge(), False, LawStep(), TWO_GROUPS)
    assert fused_law.takes(books.solver, books.groups[0]["law"], 2)
    assert not fused_law.takes(books.solver, torch.ones(2, 1), 2)
    assert not fused_law.takes(books.solver, books.groups[0]["law"], 9)


def test_the_kernels_compile_for_a_gpu_and_move_vectors(tmp_path):
    """To PTX for compute capability 9.0, which needs no GPU."""
    code = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rllc.torch import kernels_cuda as kernels, kernels_law as law

types = dict.fromkeys(("table", "chunks", "dice", "names", "skipped", "draws"), "*i64")
types |= dict.fromkeys(("out", "numbers", "partials", "basis", "found", "rates", "fed", "law"), "*fp64")
types |= dict.fromkeys(("faded", "last", "progress", "metric", "growth_of_sums", "B"), "*fp64")
types |= dict(ok="*i1", taken="*i1", tensors="i32", count="i32", seed="i64")
given = dict(K=3, structure=0b100010001, needed=7, fed=7, stochastic=False, BLOCK=kernels.BLOCK)
given |= dict(N=4, R=4, SIZE=4, WIDTH=kernels.WIDTH, PARTIALS=kernels.PARTIALS, SHARES=1, relative=True)
given |= dict(eps=1e-3, guard=True, first=0.1, rounding=1e-6, most=3e38, weighed=True, drawn=True, q=1.5)
given |= dict(decay=0.5, clip=1.0, growth=0.1, smoothing=0.95)
given |= {name: tl.float32 for name in ("unit_dtype", "gradient_dtype", "theta_dtype", "compute")}

def ptx(kernel, **other):
    kinds = {p.name: "constexpr" if p.is_constexpr else types[p.name] for p in kernel.params}
    constants = {p.name: (given | other)[p.name] for p in kernel.params if p.is_constexpr}
    source = ASTSource(kernel, kinds, constants)
    return triton.compile(source, GPUTarget("cuda", 90, 32), dict(num_warps=8)).asm["ptx"]

per_row = kernels.BLOCK // (8 * 32 * 4)
for kernel, loads, stores in ((kernels.gram_chunks, 4, 0), (kernels.advance_chunks, 5, 4)):
    text = ptx(kernel)
    print(text.count("ld.global.v4") == loads * per_row, text.count("st.global.v4") == stores * per_row)
print(all(map(len, (ptx(kernels.sum_partials), ptx(law.learn, R=3)))))
"""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=env
    )
    assert done.stdout.split() == ["True"] * 5, done.stdout + done.stderr
