"""Does the loss between the iterate and its average say how long a step should be?

    .venv/bin/python benchmarks/loss_gap.py [--tasks TASK ...] [--seeds N] [--workers N]
    .venv/bin/python benchmarks/loss_gap.py --steps 200 --out /tmp/gap      a first look, in a minute

RLLC-AdamW's x is the projection of one gradient on the last direction. Here its search finds a step size, and
then another statistic moves it: on the batch of the step, before it, gap = f(θ) - f(θ̄). While θ travels the
average lags behind and the gap is negative; where noise keeps θ away from a minimum it is positive. So

    L <- L exp(-c/√t gap/rms(gap)), the quotient clipped to [-1, 1], at most the size that the search found

which costs one forward pass a step. The first two laws are RLLC-AdamW as it is and its search alone. All runs
of a seed have the same weights at the start and the same batches. Accuracies are at the average.

Only what has no row in results/loss-gap.parquet is run; each finished run is saved. Then loss-gap.md is
written beside it. All of them with three seeds take ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from rllc.lab import networks, sweep, texts
from rllc.lab.files import write_rows, write_text
from rllc.lab.settings import NOTHING
from rllc.lab.tasks import TASKS, Examples, tensors
from rllc.torch import RLLCAdamW

OUT = Path(__file__).parents[1] / "results"
MARKS = (0.1, 0.3, 1.0)  # of the steps
SMOOTHING = 0.95  # of the mean of gap²
# The law's name -> c; None where x moves it or nothing does.
LAWS = {"default": None, "search alone": None, "gap, c = 0.005": 0.005, "gap, c = 0.02": 0.02}
# Written down before the runs: the better of both c over the default, in points, at the end.
PREDICTED = {"fashion-mlp": 0.15, "cifar10-mlp": 0.5}


class Job(NamedTuple):
    """A run."""

    task: str
    law: str
    seed: int
    steps: int


class Mark(NamedTuple):
    """A row of loss-gap.parquet: a run after some of its steps.

    `positive` is the share of gaps above zero since the mark before, once the search has ended; NaN before.
    """

    task: str
    law: str
    seed: int
    steps: int
    step: int
    valid: float  # accuracies in %
    test: float
    size: float  # c1 L
    positive: float


def run(job: Job) -> list[Mark]:
    """Train one network."""
    torch.set_num_threads(1)
    task, splits = TASKS[job.task], tensors(TASKS[job.task], "cpu")
    net = networks.build(task.network, tuple(splits.train.images.shape[1:]), job.seed)
    opt = RLLCAdamW(net.parameters(), **({} if job.law == "default" else {"law_lr": NOTHING}))
    books, c = opt.param_groups[0], LAWS[job.law]
    marks, found, seen, square = {math.ceil(part * job.steps) for part in MARKS}, [], [], 0.0
    for t, batch in enumerate(itertools.islice(_batches(splits.train, task.batch, job.seed), job.steps), 1):
        opt.zero_grad()
        loss = _loss(net, batch)
        loss.backward()
        size_found = books["progress"][2]  # 0 while the search goes on
        if c is not None and size_found:
            with opt.averaged(), torch.no_grad():
                gap = float(loss - _loss(net, batch))
            seen.append(gap > 0)
            square = gap**2 if not square else SMOOTHING * square + (1 - SMOOTHING) * gap**2
            quotient = gap / math.sqrt(square) if square else 0.0
            books["law"].mul_(math.exp(-c / math.sqrt(t) * max(-1.0, min(1.0, quotient))))
        opt.step()
        if t in marks:
            with opt.averaged():
                accuracies = [_accuracy(net, part) for part in (splits.valid, splits.test)]
            share = statistics.mean(seen) if seen else math.nan
            size = books["lr"] * float(books["law"])
            found.append(Mark(*job, t, *accuracies, size, share))
            seen = []
    return found


def _batches(examples: Examples, size: int, seed: int) -> Iterator[Examples]:
    """Epoch after epoch in another order, whole batches only."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(examples.labels), generator=generator)
        for index in order[: len(order) // size * size].split(size):
            yield Examples(examples.images[index], examples.labels[index])


def _loss(net: nn.Module, batch: Examples) -> Tensor:
    return F.cross_entropy(net(batch.images), batch.labels)


@torch.no_grad()
def _accuracy(net: nn.Module, examples: Examples) -> float:
    found = [net(images).argmax(1) for images in examples.images.split(2048)]
    return 100 * float((torch.cat(found) == examples.labels).double().mean())


# --- Records ------------------------------------------------------------------------------------------


def read(path: Path) -> list[Mark]:
    """The marks of a file that `write_rows` wrote; none if there is no file."""
    return [Mark(**row) for row in pq.read_table(path).to_pylist()] if path.exists() else []


# --- The page -----------------------------------------------------------------------------------------


def markdown(marks: Sequence[Mark]) -> str:
    """loss-gap.md."""
    text = (
        "# The loss gap between the iterate and its average as what the law looks at\n\n"
        "RLLC-AdamW's search finds a step size; then instead of x the law follows f(θ) - f(θ̄) on the batch of"
        " the step, L <- L exp(-c/√t gap/rms(gap)), the quotient clipped to ±1, L to what the search found."
        " That is a forward pass a step. Means over seeds of the test accuracy in % at the average, of c1 L"
        " and of the share of gaps above zero since the last mark. Made by `benchmarks/loss_gap.py`."
    )
    lengths = sorted({(m.task, m.steps) for m in marks})
    return "\n\n".join([text, *(_section(task, steps, marks) for task, steps in lengths)]) + "\n"


def _section(task: str, steps: int, marks: Sequence[Mark]) -> str:
    here = [m for m in marks if (m.task, m.steps) == (task, steps)]
    at = sorted({m.step for m in here})
    seeds = len({m.seed for m in here})
    head = ["law", *(f"{t:,}" for t in at), *(f"c1 L at {t:,}" for t in at), "gaps > 0"]
    by_law = {law: [m for m in here if m.law == law] for law in LAWS}
    rows = [_row(law, ours, at) for law, ours in by_law.items() if ours]
    title = f"## {task}, {seeds} seed{'' if seeds == 1 else 's'}"
    return "\n".join([title, "", texts.table(head, rows), verdict(task, here)])


def _row(law: str, ours: Sequence[Mark], at: Sequence[int]) -> list[str]:
    by_step = [[m for m in ours if m.step == t] for t in at]
    accuracies = [f"{statistics.mean(m.test for m in ms):.2f}" for ms in by_step]
    sizes = [f"{statistics.mean(m.size for m in ms):.2g}" for ms in by_step]
    share = statistics.mean(m.positive for m in by_step[-1])
    return [law, *accuracies, *sizes, "–" if math.isnan(share) else f"{100 * share:.0f} %"]


def verdict(task: str, marks: Sequence[Mark]) -> str:
    """Whether the better c gains no more than was predicted; the c is chosen on validation data."""
    if task not in PREDICTED:
        return "No prediction."
    ends = [m for m in marks if m.step == m.steps]
    seeds = set.intersection(*({m.seed for m in ends if m.law == law} for law in LAWS))
    if not seeds:
        return "Open: not all laws have been run."

    def mean(law: str, what: str) -> float:
        return statistics.mean(getattr(m, what) for m in ends if m.law == law and m.seed in seeds)

    best = max((law for law, c in LAWS.items() if c is not None), key=lambda law: mean(law, "valid"))
    gain, most = mean(best, "test") - mean("default", "test"), PREDICTED[task]
    said = "as predicted" if gain <= most else "not as predicted"
    return (
        f"Gain of {best}, the better on validation data, over the default: {gain:+.2f} points,"
        f" predicted at most {most:g}: {said}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(PREDICTED), choices=[*TASKS], metavar="TASK")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=sweep.cores())
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    records = asked.out / "loss-gap.parquet"
    marks = read(records)
    jobs = [Job(t, law, s, asked.steps) for s in range(asked.seeds) for t in asked.tasks for law in LAWS]
    missing = [job for job in jobs if job not in {Job(*mark[:4]) for mark in marks}]
    asked.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(asked.workers, get_context("spawn")) as pool:
        for done in track(as_completed([pool.submit(run, job) for job in missing]), "runs", len(missing)):
            marks = sorted([*marks, *done.result()])
            write_rows(records, (mark._asdict() for mark in marks))
    write_text(asked.out / "loss-gap.md", markdown(marks))
    print(markdown(marks))


if __name__ == "__main__":
    main()
