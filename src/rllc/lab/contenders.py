"""What `rllc bench` times: optimizers on lists of parameters, alone and in training steps, and a floor.

LISTS["gpt2"](quick)                    the shapes of a list of parameters
measure("gpt2", memories, setting)      Timings of the list, alone and, where it is a network's, in training
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from rllc.lab import networks
from rllc.lab.graphs import Captured
from rllc.lab.rounds import ALONE, STEP, Contender, Effort, Quartiles, quartiles, race
from rllc.law import SEEKING
from rllc.notation import parse
from rllc.torch import RLLC, RLLCAdamW

__all__ = ["IMPLEMENTATIONS", "LISTS", "Setting", "Timing", "measure", "words"]

Shapes = tuple[tuple[int, ...], ...]

IMAGE, BATCH = (3, 32, 32), 128
# Small, so that neither the parameters nor the law get far while one gradient is seen again and again.
LR, LAW_LR = 1e-6, 1e-6
COPIED = {"cpu": 1 << 26, "cuda": 1 << 28}  # float32 numbers: far more than any cache holds
COPIES = {"cpu": 1, "cuda": 10}  # in a turn, which on a GPU would be as short as asking for it
AT_LEAST = 0.02  # seconds of a contender's turn in a round, where one step is shorter than that
LONG = 0.1  # seconds of a step above which fewer rounds must do
COPY, SUM = "copy", "sum in place"
# Words for each number. A copy on a CPU also reads what it overwrites, which is not counted: hence the sum.
MOVED = {COPY: 2, SUM: 3}

# Arguments of an optimizer that ask for one; "fastest" and "default" name none.
IMPLEMENTATIONS = ("foreach", "fused")
# On a GPU also captured in a CUDA graph: what a step takes without Python, which asks for it.
GRAPH, FASTEST_GRAPH = "fused, graph", "fastest, graph"


class Kind(NamedTuple):
    """An optimizer and how it is implemented."""

    optimizer: str  # "AdamW", "SGD, momentum", one of RLLCAdamW, or a memory
    implementation: str

    @property
    def captured(self) -> bool:
        """Whether a step is a CUDA graph."""
        return self.implementation in (GRAPH, FASTEST_GRAPH)

    def __str__(self) -> str:
        return f"{self.optimizer} {self.implementation}"


REFERENCE = Kind("AdamW", "fused")
BASELINES = (
    REFERENCE,
    Kind("AdamW", "foreach"),
    Kind("AdamW", "default"),
    Kind("SGD, momentum", "fused"),
    Kind("SGD, momentum", "foreach"),
    Kind("SGD, momentum", "default"),
)


AVERAGED, LAST = "RLLCAdamW", "RLLCAdamW, no average"
WITH_A_LAW = tuple(Kind(name, how) for name in (AVERAGED, LAST) for how in ("fastest", "fused", "foreach"))
CAPTURED = (Kind("AdamW", GRAPH), Kind("SGD, momentum", GRAPH))
CAPTURED_WITH_A_LAW = (Kind(AVERAGED, FASTEST_GRAPH), Kind(LAST, FASTEST_GRAPH))


class Setting(NamedTuple):
    """How to measure."""

    device: str
    rounds: int | None  # as many as suit the length of a step if None
    quick: bool
    memory_dtype: torch.dtype
    console: Console


class Timing(NamedTuple):
    """One measurement: an optimizer on a list of parameters, alone or in a whole training step.

    Ratios are to fused AdamW in the same round, of what is captured in a graph to that so captured. The floor
    is the time in which a large copy or sum in place, whichever is faster, moves as many words as the step
    must, in the same round; of a list that fits into a cache a step may beat it.
    """

    what: str  # ALONE or STEP
    list: str
    optimizer: str
    implementation: str
    parameters: int
    tensors: int
    rounds: int
    steps: int  # in a round
    ms: Quartiles  # of one step
    ratio: Quartiles  # to fused AdamW's
    words: int  # a parameter: numbers that a step must read and write
    floor: Quartiles  # share of the step's time that moving these words takes
    state_bytes: float  # a parameter
    extra_bytes: float  # a parameter: the most that a step has allocated at once


# --- lists of parameters --------------------------------------------------------------------------


def _of_network(name: str, quick: bool) -> Shapes:
    return tuple(tuple(p.shape) for p in networks.build(name, IMAGE, seed=0).parameters())


def _gpt2(quick: bool) -> Shapes:
    """GPT-2 small (124,439,808 parameters), the head tied to the embedding; with `quick` one block of it."""
    width, blocks = 768, 1 if quick else 12
    norm = (width,), (width,)
    attention = (width, 3 * width), (3 * width,), (width, width), (width,)
    feed_forward = (width, 4 * width), (4 * width,), (4 * width, width), (width,)
    embeddings = () if quick else ((50257, width), (1024, width))
    return (*embeddings, *(norm + attention + norm + feed_forward) * blocks, *norm)


def _flat(quick: bool) -> Shapes:
    return ((100_000 if quick else 10_000_000,),)


LISTS: dict[str, Callable[[bool], Shapes]] = {
    "mlp": functools.partial(_of_network, "mlp"),
    "resnet20": functools.partial(_of_network, "resnet20"),
    "gpt2": _gpt2,
    "flat": _flat,
}


# --- optimizers -----------------------------------------------------------------------------------


def build(kind: Kind, params: Iterable[Tensor], dtype: torch.dtype) -> torch.optim.Optimizer:
    """torch's own AdamW or SGD, RLLCAdamW, or RLLC with that memory, its units of this dtype."""
    asked = kind.implementation.partition(",")[0]
    flags: dict[str, Any] = {name: name == asked for name in IMPLEMENTATIONS if asked in IMPLEMENTATIONS}
    match kind.optimizer:
        case "AdamW":
            return torch.optim.AdamW(params, lr=LR, capturable=kind.captured, **flags)
        case "SGD, momentum":
            return torch.optim.SGD(params, lr=LR, momentum=0.9, **flags)
        case "RLLCAdamW" | "RLLCAdamW, no average":
            average = 9.0 if kind.optimizer == AVERAGED else None
            # Without the search, which would have learned the one batch before AdamW has begun.
            step = dataclasses.replace(SEEKING, growth=0.0)
            return RLLCAdamW(params, lr=LR, law_lr=LAW_LR, law=1.0, law_step=step, average=average, **flags)
        case memory:
            return RLLC(params, memory, lr=LR, law_lr=LAW_LR, memory_dtype=dtype, **flags)


def words(optimizer: str) -> int:
    """Numbers a parameter that a step reads and writes at least.

    RLLC reads M and g for the sums, then M, g and θ, and writes M and θ: 3k + 4. A unit that feeds nothing,
    M(0), is only the gradient next to be: the second pass need not read it. RLLCAdamW reads m, v and g for
    its sums, and in the second pass reads and writes the average θ̄ beside AdamW's.
    """
    known = {"AdamW": 7, "SGD, momentum": 5, AVERAGED: 12, LAST: 10}
    if optimizer in known:
        return known[optimizer]
    p = parse(optimizer)
    return 3 * p.k + 4 - int((p.B == 0).all(axis=1).sum())


def offered(memory: str, setting: Setting) -> Iterator[Kind]:
    """RLLC with this memory in each implementation that works here; says why one does not."""
    graphs = (GRAPH,) if setting.device == "cuda" else ()
    is_slow = setting.memory_dtype == torch.float8_e4m3fn
    for name in ("fastest",) if is_slow else (*IMPLEMENTATIONS, *graphs):
        p = nn.Parameter(torch.ones(8, device=setting.device))
        p.grad = torch.ones_like(p)
        try:
            build(Kind(memory, name), [p], setting.memory_dtype).step()
        except (ImportError, RuntimeError, ValueError) as reason:
            setting.console.print(f"{memory} {name} is left out: {reason}", markup=False, highlight=False)
        else:
            yield Kind(memory, name)


# --- races ----------------------------------------------------------------------------------------


def measure(name: str, memories: Sequence[str], setting: Setting, alone: bool = False) -> list[Timing]:
    """The list's Timings, with `alone` no training steps. Memories race one after another, each beside fused
    AdamW, to bound what is held."""
    captured, captured_law = (CAPTURED, CAPTURED_WITH_A_LAW) if setting.device == "cuda" else ((), ())
    references = (REFERENCE, *captured[:1])
    baselines = (*BASELINES, *captured)
    with_a_law = (*references, *WITH_A_LAW, *captured_law)
    teams = [baselines, with_a_law, *((*references, *offered(memory, setting)) for memory in memories)]
    places = (_alone, _training) if name in TRAINED and not alone else (_alone,)
    return [
        timing
        for place in places
        for team in teams
        for timing in place(name, team, setting)
        if team is baselines or timing.optimizer != REFERENCE.optimizer
    ]


def _alone(name: str, team: Sequence[Kind], setting: Setting) -> Iterator[Timing]:
    """Steps with a made-up gradient; all share the parameters, each has its own state."""
    generator = torch.Generator().manual_seed(0)
    params = [
        nn.Parameter(0.02 * torch.randn(s, generator=generator).to(setting.device))
        for s in LISTS[name](setting.quick)
    ]
    for p in params:
        p.grad = 0.01 * torch.randn(p.shape, generator=generator).to(setting.device)
    optimizers = {kind: build(kind, params, setting.memory_dtype) for kind in team}
    steps = {kind: optimizer.step for kind, optimizer in optimizers.items()}
    return _raced(ALONE, name, optimizers, steps, setting)


def _training(name: str, team: Sequence[Kind], setting: Setting) -> Iterator[Timing]:
    """Whole training steps on one made-up batch."""
    optimizers, steps = {}, {}
    for kind in team:
        net, inputs, labels = TRAINED[name](name, setting)
        optimizers[kind] = build(kind, net.parameters(), setting.memory_dtype)
        loss = functools.partial(_loss, name, setting.device, net, inputs, labels)
        steps[kind] = functools.partial(_train, loss, optimizers[kind])
    return _raced(STEP, name, optimizers, steps, setting)


def _train(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def _loss(name: str, device: str, net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """GPT-2's products are in bfloat16, its weights and their gradients in float32."""
    with torch.autocast(device, torch.bfloat16, enabled=name == "gpt2"):
        return F.cross_entropy(net(inputs), labels)


def _on_images(name: str, setting: Setting) -> tuple[nn.Module, Tensor, Tensor]:
    """The lab's network, a batch and its labels."""
    layout, generator = networks.layout(name), torch.Generator().manual_seed(0)
    net = networks.build(name, IMAGE, seed=0).to(setting.device)
    images = torch.randn(BATCH, *IMAGE, generator=generator).to(setting.device, memory_format=layout)
    labels = torch.randint(networks.CLASSES, (BATCH,), generator=generator).to(setting.device)
    return net.to(memory_format=layout), images, labels  # type: ignore[call-overload]


def _on_text(name: str, setting: Setting) -> tuple[nn.Module, Tensor, Tensor]:
    """GPT-2 small, a batch of symbols and the next ones; of a step on a CPU the optimizer is a large part."""
    shape = (8, 1024) if setting.device == "cuda" else (1, 128)
    symbols, blocks = (256, 1) if setting.quick else (50257, 12)
    text = torch.randint(symbols, (2, *shape), generator=torch.Generator().manual_seed(0))
    net = networks.gpt2((shape[1],), symbols, blocks).to(setting.device)
    return net, *text.to(setting.device)


TRAINED: dict[str, Callable[[str, Setting], tuple[nn.Module, Tensor, Tensor]]] = {
    "mlp": _on_images,
    "resnet20": _on_images,
    "gpt2": _on_text,
}


def _raced(
    what: str,
    name: str,
    optimizers: Mapping[Kind, torch.optim.Optimizer],
    steps: Mapping[Kind, Callable[[], Any]],
    setting: Setting,
) -> Iterator[Timing]:
    contenders = {
        str(kind): Contender(_repeated(Captured(step) if kind.captured else step, setting.device))
        for kind, step in steps.items()
    }
    effort = _effort(contenders[str(REFERENCE)], setting)
    copied = COPIED[setting.device] >> (6 if setting.quick else 0)
    contenders |= _floors(copied, setting.device)
    copied *= COPIES[setting.device]
    title = f"{name}, {what}: {list(steps)[-1].optimizer}"
    times = race(contenders, effort, title, setting.console)
    # They run once in a turn, not once for each step.
    words_a_ms = np.max([moved * copied / (times[which] * effort.steps) for which, moved in MOVED.items()], 0)
    for kind, optimizer in optimizers.items():
        params, ms = [p for group in optimizer.param_groups for p in group["params"]], times[str(kind)]
        n = sum(p.numel() for p in params)
        yield Timing(
            what=what,
            list=name,
            optimizer=kind.optimizer,
            implementation=kind.implementation,
            parameters=n,
            tensors=len(params),
            rounds=effort.rounds,
            steps=effort.steps,
            ms=quartiles(ms),
            ratio=quartiles(ms / times[str(_reference(kind))]),
            words=words(kind.optimizer),
            floor=quartiles(words(kind.optimizer) * n / words_a_ms / ms),
            state_bytes=_state_bytes(optimizer) / n,
            extra_bytes=_extra_bytes(optimizer.step, params[0].device) / n,
        )


def _reference(kind: Kind) -> Kind:
    """Fused AdamW, captured too if this one is."""
    return REFERENCE._replace(implementation=GRAPH) if kind.captured else REFERENCE


def _repeated(step: Callable[[], Any], device: str) -> Callable[[int], None]:
    def run(steps: int) -> None:
        for _ in range(steps):
            step()
        if device == "cuda":  # what a GPU has been asked for is not yet done
            torch.cuda.synchronize()

    return run


def _floors(size: int, device: str) -> dict[str, Contender]:
    """A copy and a sum in place of so many numbers, COPIES times, however many steps the others do."""
    source, target = (torch.ones(size, device=device) for _ in range(2))
    copy = _repeated(lambda: target.copy_(source), device)
    add = _repeated(lambda: target.add_(source), device)
    times = COPIES[device]
    return {
        COPY: Contender(lambda steps: copy(times), cached=False),
        SUM: Contender(lambda steps: add(times), cached=False),
    }


def _effort(reference: Contender, setting: Setting) -> Effort:
    """So many steps that a turn is long enough to be timed, so many rounds that all is done in minutes."""
    reference.run(1)
    started = time.perf_counter()
    reference.run(3)
    seconds = (time.perf_counter() - started) / 3
    turn = AT_LEAST / 10 if setting.quick else AT_LEAST
    return Effort(
        setting.rounds or (7 if seconds > LONG else 25), max(1, min(100, math.ceil(turn / seconds)))
    )


# --- memory ---------------------------------------------------------------------------------------


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    kept = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in kept)


def _extra_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """The most that torch's allocator has held at once during a step beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        step()
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return int(held.max(initial=0))
