"""A long run: does the law drift from the float64 process that is fed the same gradients, does memory grow?

    .venv/bin/python benchmarks/long_run.py [--steps 200000] [--out results]

A small MLP learns a noisy stream by RLLC in float32. Its gradients also go to a second RLLC whose units are
in bfloat16, stochastically rounded, and to Algorithm 1 word for word in float64 (`rllc.reference`). Prints a
verdict and writes long-run.md; about four minutes on one core.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rllc import reference
from rllc.lab import texts
from rllc.lab.files import write_text
from rllc.law import GUARD_FRACTION, GramianRidge
from rllc.torch import RLLC

MEMORY = "M(0.99) + M(0.9)"
LR, LAW_LR = 0.002, 1e-3
BATCH = 16
POINTS = 20
# What counts as drift: the largest difference of the law from the reference at any point, as a share of the
# way that the law has gone until then, Σ |c2 x| over all steps.
LIMITS = {"float32": 1e-5, "bfloat16 units": 2e-2}
GROWTH = 4 << 20  # bytes that memory may grow by after the first tenth


class Point(NamedTuple):
    """Where things are after some steps."""

    step: int
    law: list[float]  # of the reference
    way: float  # Σ |c2 x|
    apart: dict[str, float]  # |L - L_ref| of each optimizer
    resident: int  # bytes, the process's peak
    tensors: int  # bytes of all live tensors


def run(steps: int, points: int = POINTS) -> list[Point]:
    """Steps of all three processes; a point each time another share of them is done."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    params = list(net.parameters())
    fed = [nn.Parameter(p.detach().clone()) for p in params]
    optimizers = {
        "float32": RLLC(params, MEMORY, LR, LAW_LR),
        "bfloat16 units": RLLC(fed, MEMORY, LR, LAW_LR, memory_dtype=torch.bfloat16),
    }
    p = optimizers["float32"].propagator
    pinv = reference.guarded(reference.gramian_ridge(p, GramianRidge().eps), p, GUARD_FRACTION)
    start = np.zeros(sum(q.numel() for q in params))
    oracle = reference.algorithm_1(lambda _: flat(params), start, p, np.ones(p.k), LR, LAW_LR, pinv)
    stream = torch.Generator().manual_seed(1)
    found, law, way = [], np.ones(p.k), 0.0
    for step in range(1, steps + 1):
        x = torch.randn(BATCH, 4, generator=stream)
        noise = 0.3 * torch.randn(BATCH, generator=stream)
        net.zero_grad()
        (net(x)[:, 0] - torch.sin(x[:, 0]) - x[:, 1] * x[:, 2] - noise).square().mean().backward()
        for q, theirs in zip(params, fed, strict=True):
            theirs.grad = q.grad
        new = next(oracle).L
        law, way = new, way + float(np.linalg.norm(new - law))
        for opt in optimizers.values():
            opt.step()
        if step % (steps // points) == 0:
            apart = {n: float(np.linalg.norm(opt.law.numpy() - law)) for n, opt in optimizers.items()}
            found.append(Point(step, law.tolist(), way, apart, peak(), live()))
    assert all(opt.skipped == 0 for opt in optimizers.values())
    return found


def flat(params: list[nn.Parameter]) -> np.ndarray:
    """Their gradients as one row, float64."""
    return torch.cat([p.grad.reshape(-1) for p in params if p.grad is not None]).double().numpy()


def peak() -> int:
    """The most memory that this process has had, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def live() -> int:
    """Bytes of all tensors that Python holds."""
    gc.collect()
    return sum(t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter))


def drift(points: list[Point]) -> dict[str, float]:
    """The largest share of the law's way that an optimizer was ever off."""
    return {name: max(p.apart[name] / p.way for p in points) for name in LIMITS}


def growth(points: list[Point]) -> tuple[int, int]:
    """By how many bytes peak memory and live tensors grew after the first tenth."""
    first = points[len(points) // 10]
    return points[-1].resident - first.resident, points[-1].tensors - first.tensors


def verdict(points: list[Point]) -> list[str]:
    """What was found, and whether it is within limits."""
    lines = [
        f"{name}: the law is at most {share:.1g} of its way from the float64 process,"
        f" {'no drift' if share < LIMITS[name] else 'DRIFT'} (limit {LIMITS[name]:.0e})"
        for name, share in drift(points).items()
    ]
    resident, tensors = growth(points)
    flatness = "flat" if resident < GROWTH and tensors == 0 else "NOT FLAT"
    kilobytes = f"peak memory grew by {resident / 1024:,.0f} kB, live tensors by {tensors:,} bytes"
    return [*lines, f"memory: {kilobytes} after the first tenth, {flatness}"]


def written(points: list[Point], seconds: float) -> str:
    """The page, Markdown."""
    last = points[-1]
    head = (
        f"{last.step:,} steps of {MEMORY} (lr {LR}, law_lr {LAW_LR}) on a small MLP with a noisy stream of"
        f" examples, {seconds:.0f} s on one thread. The gradients of the float32 run also went to RLLC with"
        " units in bfloat16 and to Algorithm 1 in float64. *Way* is Σ|c2 x|, how far the law has gone in all;"
        " *apart* how far an optimizer's law is from the float64 one. Made by `benchmarks/long_run.py`."
    )
    names = list(LIMITS)
    columns = ["steps", "law (float64)", "way", *(f"apart, {n}" for n in names), "peak MB"]
    rows = [
        [
            f"{p.step:,}",
            ", ".join(f"{x:.4f}" for x in p.law),
            f"{p.way:.2f}",
            *(f"{p.apart[n]:.1e}" for n in names),
            f"{p.resident / 2**20:.0f}",
        ]
        for p in points
    ]
    said = [f"- {line}" for line in verdict(points)]
    return "\n".join([head, "", *said, "", texts.table(columns, rows, left=0)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--out", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    points = run(arguments.steps)
    print(*verdict(points), sep="\n")
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / "long-run.md", written(points, time.perf_counter() - began))


if __name__ == "__main__":
    main()
