"""RLLC as a torch.optim.Optimizer: the class keeps the books, the modules beside it do the arithmetic."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rllc import law as _law
from rllc.law import Cutoff, RelaxedInverse
from rllc.notation import as_propagator
from rllc.propagator import Propagator
from rllc.torch import learning, saved, selection, shards, stepping
from rllc.torch.early import EarlySums
from rllc.torch.learning import Constants
from rllc.torch.parts import Part, Unit, real
from rllc.torch.shards import Spread
from rllc.torch.stepping import Share

__all__ = ["RLLC"]

MEMORY_DTYPES = (None, torch.float32, torch.bfloat16)
SPREADING = 0x9E3779B1  # odd: 32-bit multiples of it differ


class RLLC(torch.optim.Optimizer):
    """RLLC with linear memory (arXiv 2402.15262, Algorithm 1).

        L <- L + c2 M⁺g,    M <- M B + g aᵀ,    θ <- θ - c1 (M L + w θ)

    with c1 = `lr`, c2 = `law_lr`, w = `weight_decay`. With `law_lr=0` it is the fixed optimizer of that
    memory and law: "M(0.9)" is SGD with momentum 0.9, "M(0.9) + M(0)" with law (0.9, 1) Nesterov's.

    One law spans the whole optimizer, all groups together, as in the paper. lr, law_lr, weight_decay and
    maximize may differ between groups: M⁺g is then taken of the gradient weighted by each group's
    law_lr, so that a group with law_lr = 0 follows the law without teaching it.

    Parameters may be in shards (DTensor: FSDP2, tensor parallelism): the law is the one of the whole
    parameters, the same on every process to the bit (`rllc.torch.shards`). Every process must make every
    step, also one that has no gradient. A parameter that is whole beside them counts once.

    A parameter whose `.grad` is None sits the step out, as in torch.optim: it is not moved, its memory
    does not change, and it is no part of the sums. A step with a gradient that is not finite anywhere,
    or so large that memory would overflow, is skipped whole: nothing changes but `skipped`. A gradient is
    never modified.

    Memory is k tensors a parameter (`state[p]["m1"]`, ...), in its dtype unless `memory_dtype` says
    otherwise. The law is float64, in `param_groups[0]["law"]`, and beside it what the guard must know. Half
    precision is computed in float32 and rounded once. Beside the memory a step needs at most one more buffer
    of the parameters' size (or 2 MB); fused, none.

    Args:
        params: parameters or groups, as for every torch optimizer.
        memory: notation such as "M(0.9) + M_2(0.6)", or a Propagator (B, a); k units.
        lr: c1 >= 0, a number or a tensor of one entry. 0 leaves the parameters still while L learns.
        law_lr: c2 >= 0, likewise; 0 keeps the law fixed.
        law: L_0, k numbers; ones if None.
        eps: of the default relaxed inverse GramianRidge(eps), a relative number >= 0.
        inverse: another relaxed inverse instead: GramianRidge(eps), Ridge(eps) or Cutoff(rcond).
        weight_decay: w >= 0, decoupled and multiplied by the learning rate as in AdamW.
        guard: keep a gradient that returns after a silence from throwing L away
            (`rllc.law.correction`); False is the paper's exact formula.
        maximize: follow the gradient uphill.
        foreach, fused: who makes the passes over the parameters (`rllc.torch.passes`): foreach=True one
            call for all tensors of a unit, foreach=False one tensor at a time, fused=True kernels that read
            everything once; None: the fastest there is.
        capturable: correct the law on the parameters' device without reading anything back, as CUDA
            graphs want it. None: on accelerators, unless `inverse` is a Cutoff. Under torch.compile always.
            Rates that change belong into tensors then, on that device.
        memory_dtype: of the units: torch.bfloat16 rounds them stochastically, torch.float32 keeps them
            whole beside parameters of half precision; None: as the parameters.
        seed: of the stochastic rounding.
        sums_in_backward: take each gradient's sums in the backward pass, while it is in cache. Not where
            gradients change afterwards: clipping, scaling, several processes; refused as far as seen.

    Raises:
        ValueError: a rate, eps, law, memory, combination of arguments or saved state that makes no sense,
            named with the remedy.
        RuntimeError: a sparse gradient, a parameter in shards whose sums cannot be completed, a step inside
            the backward pass, or a gradient that changed under `sums_in_backward`.
    """

    _home: torch.device  # where the law is corrected,
    _constants: Constants  # with these
    _plans: list[Any]  # of each share's passes, from the last step
    _spread: Spread | None  # as it was in the last step

    def __init__(
        self,
        params: Iterable[Any],
        memory: str | Propagator,
        lr: float | Tensor,
        law_lr: float | Tensor,
        law: ArrayLike | None = None,
        eps: float | None = None,
        inverse: RelaxedInverse | None = None,
        weight_decay: float | Tensor = 0.0,
        *,
        guard: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool | None = None,
        memory_dtype: torch.dtype | None = None,
        seed: int = 0,
        sums_in_backward: bool = False,
    ) -> None:
        self.propagator = as_propagator(memory)
        self.inverse = _law.chosen_inverse(eps, inverse)
        self.guard = guard
        if memory_dtype not in MEMORY_DTYPES:
            raise ValueError(f"memory_dtype must be one of {MEMORY_DTYPES}, got {memory_dtype}")
        self.memory_dtype = memory_dtype
        self.sums_in_backward = sums_in_backward
        self._prepare()
        first_law = _law.initial_law(law if law is None else saved.numpy(law), self.propagator.k)
        defaults = {
            "lr": lr,
            "law_lr": law_lr,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            # Travels with every state, so that another memory's state can be told and refused.
            "memory": repr(self.propagator),
        }
        super().__init__(params, defaults)
        self.param_groups[0] |= saved.books(
            first_law, np.eye(self.propagator.k), seed if memory_dtype is torch.bfloat16 else None
        )
        self._settle()

    @property
    def law(self) -> Tensor:
        """L, (k,) float64 on the CPU: a copy."""
        return self.param_groups[0]["law"].detach().cpu().clone()

    @property
    def skipped(self) -> int:
        """How many steps were skipped because a gradient was not finite."""
        return int(self.param_groups[0]["skipped"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, in mid-training too: they start with empty memory and follow the one law.

        Raises:
            ValueError: a rate of the group makes no sense, or it names another memory.
        """
        for name in ("lr", "law_lr", "weight_decay"):
            _check_rate(name, param_group.get(name, self.defaults[name]))
        if param_group.get("memory", self.defaults["memory"]) != self.defaults["memory"]:
            raise ValueError(
                f"group asks for memory {param_group['memory']!r}, but one optimizer has one memory,"
                f" {self.defaults['memory']}; make a second optimizer"
            )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        device = group["params"][0].device
        try:
            selection.check(group, device)
        except ValueError:
            self.param_groups.pop()
            raise
        if self._early:
            self._early.watch(group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure`, which recomputes the loss and its gradients, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        compiling = torch.compiler.is_compiling()
        if not compiling:
            _check_not_in_backward()
            self._spread = self._find_spread()
        shares = self._shares()
        taking = any(share.part.params for share in shares)
        if not taking and self._spread is None:
            return loss
        on_device = compiling or self._settle()
        if not compiling:
            self._plans = [share.plan for share in shares]
        sums = torch.stack([self._sums(share) for share in shares])
        anyone = None
        if self._spread is not None:
            sums, anyone = shards.total(self._spread, sums, taking)
        if on_device:
            stepping.on_device(self._solver, self._constants, shares, sums, anyone)
        elif anyone is None or anyone:
            stepping.on_host(self._solver, shares, sums)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, to the bit; the law keeps its float64, units their `memory_dtype`.

        Raises:
            ValueError: the state is of another memory or another optimizer, or its law is damaged;
                nothing has changed then.
        """
        seed = self.param_groups[0]["seed"]
        taken: list[dict[str, Any]] = []

        def check(_: Any, state: dict[str, Any]) -> None:
            self._books(state["param_groups"][0], seed)
            shards.check_whole(state, _all_params(self), self._names)
            taken.append(state)

        # The last of all hooks: it sees the state as the others left it, and nothing here has changed yet.
        handle = self.register_load_state_dict_pre_hook(check)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        self.param_groups[0] |= self._books(self.param_groups[0], seed)
        if self.memory_dtype is not None:
            saved.restore_units(self, taken[0], self._names, self.memory_dtype)
        self._settle()
        if self._early:
            self._early.forget()

    def __getstate__(self) -> dict[str, Any]:
        # The base class keeps only what every optimizer has; deepcopy and pickle need the rest too.
        own = ("propagator", "inverse", "guard", "memory_dtype", "sums_in_backward")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            # States of version 0.1 have none.
            group.setdefault("fused", None)
            group.setdefault("capturable", None)
        if "propagator" in state:  # a copy; torch also comes here to load a state
            self._prepare()
            self._settle()
            if self._early:
                self._early.watch(p for group in self.param_groups for p in group["params"])

    def _prepare(self) -> None:
        """What follows from the arguments and is not saved."""
        self._solver = learning.solver(self.propagator, self.inverse, self.guard)
        self._plans = []
        self._spread = None
        self._home = torch.device("cpu")
        self._constants = learning.on(self._home, self._solver.host)
        self._names = [f"m{j}" for j in range(1, self.propagator.k + 1)]
        self._early = EarlySums(self._sums_of_one) if self.sums_in_backward else None

    def _settle(self) -> bool:
        """Whether the law is corrected on the parameters' device; it and what belongs to it go there."""
        device = next(p.device for group in self.param_groups for p in group["params"])
        on_device = self.defaults["capturable"]
        if on_device is None:
            on_device = device.type != "cpu" and not isinstance(self.inverse, Cutoff)
        home = device if on_device else torch.device("cpu")
        keeper = self.param_groups[0]
        if self._home != home:
            self._home, self._constants = home, learning.on(home, self._solver.host)
        if keeper["law"].device != home:
            for name in ("law", "faded", "skipped", "draws"):
                keeper[name] = keeper[name].to(home)
        return on_device

    def _books(self, group: dict[str, Any], seed: int | None) -> dict[str, Any]:
        return saved.checked(group, self.defaults["memory"], self.propagator.k, seed)

    # --- The parts of a step ----------------------------------------------------------------------

    def _init_group(
        self, group: dict[str, Any], params: list, gradient: list, numbers: list, *memory: list
    ) -> None:
        """Fill in the parameters that have a gradient, with it, their places and their units.

        torch.compile knows the name and does not trace this method.
        """
        found = [(i, p, g) for i, p in enumerate(group["params"]) if (g := p.grad) is not None]
        if not found:
            return
        taking, everyone, grads = zip(*found, strict=True)
        params += everyone
        gradient += grads
        if any(layout is not torch.strided for layout in {g.layout for g in gradient}):
            raise RuntimeError("RLLC does not take sparse gradients; use sparse=False in the embedding")
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                self._begin(p, state)
        for unit, name in zip(memory, self._names, strict=True):
            unit += [state[name] for state in states]
        numbers += taking if self.memory_dtype is not torch.bfloat16 else self._places(group, taking)
        if self._spread is not None:
            gradient[:] = map(shards.gradient, params, gradient)
            for tensors in (params, *memory):
                tensors[:] = map(shards.local, tensors)

    def _places(self, group: dict[str, Any], taking: Iterable[int]) -> list[int]:
        """Places in a group as places in the whole optimizer, which stochastic rounding goes by."""
        earlier = itertools.takewhile(lambda other: other is not group, self.param_groups)
        first = sum(len(other["params"]) for other in earlier)
        # Shards of one parameter must not be rounded alike, but copies of one shard must.
        return [first + i + shards.offset(group["params"][i]) * SPREADING for i in taking]

    def _begin(self, p: Tensor, state: dict[str, Tensor]) -> None:
        """Empty memory."""
        if self._spread is None and shards.in_shards(p):
            raise RuntimeError(
                "RLLC does not take parameters in shards (DTensor) under torch.compile; leave"
                " opt.step() out of what is compiled"
            )
        like = p if self.memory_dtype is None else real(p)
        for name in self._names:
            state[name] = torch.zeros_like(like, dtype=self.memory_dtype)

    def _find_spread(self) -> Spread | None:
        if not shards.several():
            return None
        params = _all_params(self)
        if self._spread is None or not all(map(operator.is_, params, self._spread.params)):
            return shards.spread(params)
        return self._spread

    def _shares(self) -> list[Share]:
        """One for each group; over several processes one for each number of copies in each group."""
        plans = itertools.chain(self._plans, itertools.repeat(None))
        if self._spread is None:
            groups = zip(self.param_groups, plans, strict=False)
            return [stepping.share(group, self._part(group), plan) for group, plan in groups]
        copies, shares = iter(self._spread.copies), []
        for group in self.param_groups:
            part, room = self._part(group), self._room(group)
            counts = list(itertools.islice(copies, len(group["params"])))
            taking = [n for n, p in zip(counts, group["params"], strict=True) if p.grad is not None]
            for count in sorted(set(counts)):
                own = part.pick([i for i, n in enumerate(taking) if n == count])
                share = stepping.share(group, own, next(plans))
                shares.append(share._replace(copies=count, room=room))
        return shares

    def _room(self, group: dict[str, Any]) -> float:
        """The largest number that every unit of the group can hold."""
        return min(torch.finfo(self.memory_dtype or p.dtype).max for p in group["params"])

    def _part(self, group: dict[str, Any]) -> Part:
        params: Unit = []
        gradient: Unit = []
        numbers: list[int] = []
        memory: list[Unit] = [[] for _ in self._names]
        self._init_group(group, params, gradient, numbers, *memory)
        if any(dtype.is_complex for dtype in {p.dtype for p in params}):
            params, gradient, *memory = ([real(t) for t in unit] for unit in (params, gradient, *memory))
        return Part(params, gradient, memory, numbers, [0] * len(numbers))

    def _sums(self, share: Share) -> Tensor:
        if self._early is None or not share.part.params:
            return stepping.sums(self._solver, share, self._home)
        return self._early.total(p for p in share.group["params"] if p.grad is not None)

    def _sums_of_one(self, p: Tensor) -> Tensor:
        """Of one parameter and its gradient, in the backward pass."""
        [group] = [group for group in self.param_groups if any(p is q for q in group["params"])]
        share = stepping.share(group, self._part(group | {"params": [p]}))
        return stepping.sums(self._solver, share, self._home)


def _all_params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _check_not_in_backward() -> None:
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "step() was called inside the backward pass (optimizer-in-backward): the other gradients are not"
            " there yet, and the law needs all of them at once; call it after loss.backward()"
        )


def _check_rate(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must have one entry, got a tensor of shape {tuple(value.shape)}")
        value = value.item()
    _law.check_nonnegative(name, value)
