"""Time and FLOPs of each optimizer against torch's and optax's own (arXiv 2402.15262, A.4.2 and Figure 3).

    .venv/bin/python benchmarks/cost.py [--out results/cost] [--tasks cifar10-mlp ...] [--rounds N]

Needs no data, a quiet machine and about five minutes. Timings are paired: in each round every optimizer does
a few steps, in an order that changes, in one process and one thread. Writes cost.parquet after each network,
and cost.md from it at the end.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import torch
from rich.progress import track
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from rllc.lab import networks
from rllc.lab.checks import make_writable
from rllc.lab.errors import Refused
from rllc.lab.evidence import cost, timings
from rllc.lab.evidence.cost_claims import FUSED
from rllc.lab.evidence.timings import Cost
from rllc.lab.files import Folder
from rllc.lab.optimizers import PAPER, Rates, trials
from rllc.lab.records import provenance
from rllc.lab.rounds import ALONE, STEP, Contender, Effort, quartiles, race
from rllc.lab.tasks import TASKS, Examples, Task
from rllc.optax import rllc

OPTIMIZERS = (*PAPER[:3], FUSED, *PAPER[3:])
IMAGE = (3, 32, 32)
# Small: one batch is seen again and again, and should neither diverge nor be learned by heart.
LR, LAW_LR = 1e-5, 0.003
PACKAGES = ("rllc", "torch", "jax", "optax", "numpy")


EFFORTS = {
    "cifar10-mlp": {STEP: Effort(40, 10), ALONE: Effort(40, 20)},
    "cifar10-conv": {STEP: Effort(15, 1), ALONE: Effort(40, 40)},
    "cifar10-resnet20": {STEP: Effort(9, 1), ALONE: Effort(40, 10)},
}

Shapes = tuple[tuple[int, ...], ...]


def measure(task: Task, efforts: dict[str, Effort], optimizers: Sequence[str] = OPTIMIZERS) -> list[Cost]:
    """A Cost for each optimizer as a whole training step, alone in torch, and alone in JAX if it is there."""
    shapes = tuple(tuple(p.shape) for p in network(task).parameters())
    in_jax = [name for name in optimizers if name != FUSED]
    in_torch = {name: training(task, name) for name in optimizers}
    races = {
        (STEP, "torch"): {name: whole for name, (whole, _) in in_torch.items()},
        (ALONE, "torch"): {name: alone for name, (_, alone) in in_torch.items()},
        (ALONE, "jax"): {name: updating(name, shapes) for name in track(in_jax, f"{task.name}: compiling")},
    }
    fixed = sum(map(math.prod, shapes)), task.batch
    made = provenance(PACKAGES)
    costs = []
    for (what, framework), contenders in races.items():
        times = race(contenders, efforts[what], f"{task.name}: {what}, {framework}")
        for name, contender in contenders.items():
            counted = contender.flops, contender.compile_seconds
            paired = quartiles(times[name]), quartiles(times[name] / times["Adam"])
            costs.append(
                Cost(what, task.name, name, framework, *fixed, *efforts[what], *paired, *counted, **made)
            )
    return costs


# --- PyTorch --------------------------------------------------------------------------------------


def training(task: Task, name: str) -> tuple[Contender, Contender]:
    """Whole steps of training; steps of the optimizer alone, with the gradient that the former left."""
    net, examples = network(task), batch(task)
    optimizer = torch_optimizer(name, net)

    def whole(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            differentiate(net, examples)
            optimizer.step()

    def alone(steps: int) -> None:
        for _ in range(steps):
            optimizer.step()

    return Contender(whole, network_flops(task)), Contender(alone)


def differentiate(net: nn.Module, examples: Examples) -> None:
    """Forward and backward."""
    F.cross_entropy(net(examples.images), examples.labels).backward()


def network(task: Task) -> nn.Module:
    """The task's network, laid out in memory as the lab's runs have it."""
    return networks.build(task.network, IMAGE, seed=0).to(memory_format=networks.layout(task.network))


def batch(task: Task) -> Examples:
    """Made-up images, normalised as real ones are."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(task.batch, *IMAGE, generator=generator)
    images = images.contiguous(memory_format=networks.layout(task.network))
    return Examples(images, torch.randint(networks.CLASSES, (task.batch,), generator=generator))


def torch_optimizer(name: str, net: nn.Module) -> torch.optim.Optimizer:
    """As in the lab's runs."""
    if name == FUSED:
        return torch.optim.Adam(net.parameters(), lr=LR, fused=True)
    return trials(name, Rates((LR,), (LAW_LR,)))[0].build(net, steps=0)


@functools.cache
def network_flops(task: Task) -> float:
    """Of matrix products and convolutions, forward and backward, for one batch."""
    with FlopCounterMode(display=False) as counter:
        differentiate(network(task), batch(task))
    return float(counter.get_total_flops())


# --- JAX ------------------------------------------------------------------------------------------


def updating(name: str, shapes: Shapes) -> Contender:
    """Updates of parameters of these shapes with a made-up gradient."""
    tx, keys = transformation(name), jax.random.split(jax.random.key(0), len(shapes))
    gradient = [0.01 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    params = [jnp.zeros(shape) for shape in shapes]
    state = tx.init(params)
    started = time.perf_counter()
    update = compiled(tx, gradient, state, params)
    seconds, counted = time.perf_counter() - started, update.cost_analysis()

    def run(steps: int) -> None:
        nonlocal params, state
        for _ in range(steps):
            params, state = update(gradient, state, params)
        jax.block_until_ready(params)

    return Contender(run, counted["flops"] + counted.get("transcendentals", 0.0), seconds)


def compiled(
    tx: optax.GradientTransformation, gradient: list, state: optax.OptState, params: list
) -> jax.stages.Compiled:
    """(gradient, state, params) -> (params, state) for one thread; state and params are overwritten."""

    def update(g: list, state: optax.OptState, params: list) -> tuple[list, optax.OptState]:
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(update, donate_argnums=(1, 2)).lower(gradient, state, params)
    return lowered.compile({"xla_cpu_multi_thread_eigen": False})


def transformation(name: str) -> optax.GradientTransformation:
    """optax's own of that name, or RLLC with that memory."""
    baselines = {"SGD": optax.sgd(LR), "momentum SGD": optax.sgd(LR, momentum=0.9), "Adam": optax.adam(LR)}
    return baselines.get(name) or rllc(name, LR, LAW_LR)


# --- the command ----------------------------------------------------------------------------------


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/cost"), help="folder of the results")
    parser.add_argument("--tasks", nargs="+", choices=EFFORTS, default=EFFORTS, help="only these networks")
    parser.add_argument("--rounds", type=int, help="of each measurement, instead of as many as suit it")
    options = parser.parse_args()
    folder = Folder(str(options.out))
    try:
        make_writable(folder)
    except Refused as reason:
        parser.error(str(reason))
    torch.set_num_threads(1)
    jax.config.update("jax_platforms", "cpu")
    costs: list[Cost] = []
    for task in options.tasks:
        efforts = {what: Effort(options.rounds or e.rounds, e.steps) for what, e in EFFORTS[task].items()}
        costs += measure(TASKS[task], efforts)
        timings.save(folder, costs)
    text = cost.markdown(costs)
    folder.write("cost.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
