"""The Triton kernels in Triton's interpreter, on the CPU, against the plain text of the algorithm."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import rllc
import rllc.torch
from problems import DENSE, EIGHT
from rllc.law import SEEKING
from rllc.torch import forloop
from rllc.torch.parts import Part
from rllc.torch.passes import Step

pytest.importorskip("triton")

SOON = replace(SEEKING, smoothing=0.5)  # finds its size within the test
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


def test_the_kernels_compile_for_a_gpu_and_move_vectors(tmp_path):
    """To PTX for compute capability 9.0, which needs no GPU."""
    code = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rllc.torch import kernels_adamw_cuda as adamw, kernels_cuda as kernels, kernels_law_cuda as law

types = dict.fromkeys(("table", "chunks", "dice", "names", "skipped", "draws"), "*i64")
types |= dict.fromkeys(("out", "numbers", "partials", "basis", "found", "rates", "fed", "law"), "*fp64")
types |= dict.fromkeys(("weight", "faded", "last", "progress", "metric", "growth_of_sums", "B"), "*fp64")
types |= dict(ok="*i1", taken="*i1", tensors="i32", count="i32", seed="i64")
given = dict(K=3, structure=0b100010001, needed=7, fed=7, stochastic=False, BLOCK=kernels.BLOCK)
given |= dict(N=4, R=4, SIZE=4, WIDTH=kernels.WIDTH, PARTIALS=kernels.PARTIALS, SHARES=1, relative=True)
given |= dict(eps=1e-3, guard=True, first=0.1, rounding=1e-6, most=3e38, weighed=True, moving=True)
given |= dict(q=1.5, decay=0.5, clip=1.0, growth=0.1, smoothing=0.95, window=20.0)
given |= dict(drawn=True, dtype=tl.float32, averaged=True)
given |= dict(sign=1.0, b1=0.9, b2=0.999, log1=-0.1, log2=-0.001)
given |= {name: tl.float32 for name in ("unit_dtype", "gradient_dtype", "theta_dtype", "compute")}

def ptx(kernel, warps, **other):
    kinds = {p.name: "constexpr" if p.is_constexpr else types[p.name] for p in kernel.params}
    constants = {p.name: (given | other)[p.name] for p in kernel.params if p.is_constexpr}
    source = ASTSource(kernel, kinds, constants)
    return triton.compile(source, GPUTarget("cuda", 90, 32), dict(num_warps=warps)).asm["ptx"]

passes = (kernels.gram_chunks, 8, 4, 0), (kernels.advance_chunks, 4, 5, 4)
for kernel, warps, loads, stores in (*passes, (adamw.sum_chunks, 8, 3, 0), (adamw.advance_chunks, 4, 5, 4)):
    text, per_row = ptx(kernel, warps), kernels.BLOCK // (warps * 32 * 4)
    print(text.count("ld.global.v4") == loads * per_row, text.count("st.global.v4") == stores * per_row)
print(all(map(len, (ptx(kernels.sum_partials, 8), ptx(law.learn, 1, R=3)))))
"""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=env
    )
    assert done.stdout.split() == ["True"] * 9, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("dtype", "average", "b1"),
    [
        (torch.float32, 9.0, 0.9),
        (torch.float32, None, 0.3),
        (torch.bfloat16, 9.0, 0.9),
        (torch.bfloat16, None, 0.9),
    ],
    ids=str,
)
def test_rllc_adamw(monkeypatch, fused, dtype, average, b1):
    """Two groups, one uphill, rates that change, a step to be skipped: beside torch, from equal gradients."""
    from rllc.torch import adamw_passes, fused_adamw_cuda

    def on_gpu(group, part, steps, copies, plan, unsaid=False):
        work, plan = fused_adamw_cuda.prepare(part, steps, plan)
        assert unsaid and work is not None
        return adamw_passes.Share(group, part, steps, copies, None, None, plan, work)

    def made(**how):
        params = [torch.nn.Parameter(t) for t in part(1, dtype).params if t.numel()]
        groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.02, "maximize": True}]
        options = {"law": 0.5, "weight_decay": 0.1, "betas": (b1, 0.99), "average": average}
        return params, rllc.torch.RLLCAdamW(groups, lr=0.01, law_step=SOON, **options, **how)

    def trained(params, optimizer, first, last):
        for step in range(first, last):
            for p, g in zip(params, (t for t in part(1, dtype, seed=step).params if t.numel()), strict=True):
                p.grad = 0.3 * p.detach() + g
            if step == 3:
                params[0].grad[0] = torch.nan
            # Rates rise, and the second group stays for two steps, all for one.
            optimizer.param_groups[0]["lr"] = 0.0 if step == 5 else 0.002 * step
            optimizer.param_groups[1]["lr"] = 0.0 if step in (4, 5) else 0.02
            optimizer.step()

    theirs, other = made(fused=True)
    trained(theirs, other, 1, 9)
    mine, ours = made()
    with monkeypatch.context() as patch:
        patch.setattr(adamw_passes, "share", on_gpu)
        trained(mine, ours, 1, 6)
    ours._plans = []
    trained(mine, ours, 6, 9)  # and on the host from there
    eps = torch.finfo(dtype).eps
    close(mine, theirs, 8 * eps)
    torch.testing.assert_close(ours.law, other.law, rtol=1e-5, atol=0)
    assert ours.skipped == other.skipped == 1
    for p, q in zip(mine, theirs, strict=True):
        for name, want in other.state[q].items():
            torch.testing.assert_close(ours.state[p][name], want, rtol=20 * eps, atol=20 * eps)
    # Of states in half precision, whose last bits differ.
    progress = other.param_groups[0]["progress"]
    assert ours.param_groups[0]["progress"] == pytest.approx(progress, rel=max(1e-4, eps))
