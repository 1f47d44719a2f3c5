"""RLLC as a torch.optim.Optimizer: the class keeps the books, the modules beside it do the arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from rllc import law as _law
from rllc.checks import is_whole
from rllc.law import Cutoff, LawStep, RelaxedInverse
from rllc.memory import MemoryRule, check_units
from rllc.notation import as_propagator
from rllc.propagator import Propagator
from rllc.torch import early, float8, learning, rules, saved, selection, shards, stepping
from rllc.torch.around import Around
from rllc.torch.averaging import Averaging
from rllc.torch.early import EarlySums
from rllc.torch.learning import Constants, Learned
from rllc.torch.parts import Part, Unit, cut, params_of, real
from rllc.torch.passes import Passes
from rllc.torch.shards import Spread
from rllc.torch.stepping import Share

__all__ = ["RLLC"]

MEMORY_DTYPES = (None, torch.float32, torch.bfloat16, float8.DTYPE)
ROUNDED = (torch.bfloat16, float8.DTYPE)  # stochastically
SCOPES = ("all", "group", "tensor")
SPREADING = 0x9E3779B1  # odd: 32-bit multiples of it differ


class RLLC(Averaging):
    """RLLC with linear memory, or any other (arXiv 2402.15262, Algorithm 1).

        L <- L + c2 M⁺g,    M <- M B + g aᵀ,    θ <- θ - c1 (M L + w θ)

    with c1 = `lr`, c2 = `law_lr`, w = `weight_decay`. With `law_lr=0` it is the fixed optimizer of that
    memory and law: "M(0.9)" is SGD with momentum 0.9, "M(0.9) + M(0)" with law (0.9, 1) Nesterov's.

    One law spans the whole optimizer, all groups together, as in the paper, unless `scope` says otherwise.
    lr, law_lr, weight_decay and maximize may differ between groups: M⁺g is then taken of the gradient
    weighted by each group's law_lr, so that a group with law_lr = 0 follows the law without teaching it.

    Memory may be any rule, M, H <- U(M, H, g, θ) (`rllc.memory`). It is asked for one parameter at a time, in
    real tensors of at least float32. M⁺g is taken in the rule's metric if it has one, and as pure numbers
    (`rllc.law.in_scale`). A unit or hidden array that is not finite, of a finite gradient, is an error. There
    are no fused kernels of rules; `RLLCAdamW` is the fast one around Adam's direction.

    Parameters may be in shards (DTensor: FSDP2, tensor parallelism): the law is the one of the whole
    parameters, the same on every process to the bit (`rllc.torch.shards`). Every process must make every
    step, also one that has no gradient. A parameter that is whole beside them counts once. A memory rule
    sees the shards alone: it must be elementwise there, as all of `rllc.memory` are but AdaptiveMomentum.

    A parameter whose `.grad` is None sits the step out, as in torch.optim: it is not moved, its memory
    does not change, and it is no part of the sums. A step with a gradient that is not finite anywhere,
    or so large that linear memory would overflow, is skipped whole: nothing changes but `skipped`. A gradient
    is never modified.

    Memory is k tensors a parameter (`state[p]["m1"]`, ...), in its dtype unless `memory_dtype` says
    otherwise; hidden arrays are beside them as the rule made them (`state[p]["h1"]`, ...). The law is
    float64, in `param_groups[0]["law"]`, and beside it what the guard must know. Half precision is computed
    in float32 and rounded once. Beside the memory a step needs at most one more buffer of the parameters'
    size (or 1 MB (k+1)); fused, none; with a memory rule, another copy of units and hidden arrays.

    Args:
        params: parameters or groups, as for every torch optimizer.
        memory: notation such as "M(0.9) + M_2(0.6)", or a Propagator (B, a); or a memory rule such as
            `rllc.memory.Adam()` or `union("M(0.9)", Adam())`; k units.
        lr: c1 >= 0, a number or a tensor of one entry. 0 leaves the parameters still while L learns.
        law_lr: c2 >= 0, likewise; 0 keeps the law fixed.
        law: L_0, k numbers; ones if None.
        eps: of the default relaxed inverse, a relative number >= 0: GramianRidge(eps) for linear memory,
            DiagonalRidge(eps) for a rule.
        inverse: another relaxed inverse instead: GramianRidge(eps), DiagonalRidge(eps), Ridge(eps) or
            Cutoff(rcond).
        weight_decay: w >= 0, decoupled and multiplied by the learning rate as in AdamW.
        law_step: how M⁺g moves the law (`rllc.law.LawStep`); the paper's L + c2 M⁺g as it stands. Where the
            law_lr of groups differ, M⁺g is clipped as the group of the largest sees it.
        scope: what one law is for: "all" of the optimizer, each "group" or each "tensor", which has then its
            own sums, guard and progress. A step is skipped for all or for none.
        average: of the weights, the t-th counting about as t^average; 9.0 is a good one, None takes none.
            `eval()` puts it into the parameters, `train()` takes it out (`rllc.torch.averaging`).
        buffers: such as those of batch norm, to be averaged along: the net that has them, or tensors.
        guard: keep a gradient that returns after a silence from throwing L away
            (`rllc.law.correction`); False is the paper's exact formula. None: for linear memory. For a rule
            there is none, but LawStep.clip.
        maximize: follow the gradient uphill.
        foreach, fused: who makes the passes over the parameters (`rllc.torch.passes`): foreach=True one
            call for all tensors of a unit, foreach=False one tensor at a time, fused=True kernels that read
            everything once; None: the fastest there is, fused where numba, or for a GPU Triton, is
            installed. A memory rule takes one tensor at a time.
        capturable: correct the law on the parameters' device without reading anything back, as CUDA
            graphs want it. None: on accelerators, unless `inverse` is a Cutoff. Under torch.compile always.
            Rates that change belong into tensors then, on that device. What a rule makes that is not finite
            skips the step there, since nobody can be told.
        memory_dtype: of the units: torch.bfloat16 rounds them stochastically, torch.float8_e4m3fn too, in
            blocks with a scale each (`rllc.torch.float8`: for β up to about 0.95, and slowly, as there are
            no fused kernels); torch.float32 keeps them whole beside parameters of half precision; None: as
            the parameters.
        seed: of the stochastic rounding.
        sums_in_backward: take each gradient's sums in the backward pass, while it is in cache. Not where
            gradients change afterwards: clipping, scaling, several processes; refused as far as seen.

    Raises:
        ValueError: a rate, eps, law, memory, combination of arguments or saved state that makes no sense,
            named with the remedy; a rule that returns other shapes than it began with.
        RuntimeError: a sparse gradient, a parameter in shards whose sums cannot be completed, a step inside
            the backward pass or in evaluation mode, a gradient that changed under `sums_in_backward`, or
            what a memory rule made that is not finite. Nothing has changed then.
    """

    around = Around  # RLLC.around(torch.optim.AdamW(...), law_lr=0.01): of any other optimizer

    _home: torch.device  # where the law is corrected,
    _constants: Constants  # with these
    _plans: list[Any]  # of each share's passes, from the last step
    _spread: Spread | None  # as it was in the last step

    def __init__(
        self,
        params: Iterable[Any],
        memory: str | Propagator | MemoryRule,
        lr: float | Tensor,
        law_lr: float | Tensor,
        law: ArrayLike | None = None,
        eps: float | None = None,
        inverse: RelaxedInverse | None = None,
        weight_decay: float | Tensor = 0.0,
        *,
        law_step: LawStep = LawStep(),  # noqa: B008  (frozen)
        scope: str = "all",
        average: float | None = None,
        buffers: nn.Module | Iterable[Tensor] = (),
        guard: bool | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool | None = None,
        memory_dtype: torch.dtype | None = None,
        seed: int = 0,
        sums_in_backward: bool = False,
    ) -> None:
        self.memory = check_units(memory) if isinstance(memory, MemoryRule) else as_propagator(memory)
        self.inverse = _law.chosen_inverse(eps, inverse, linear=self._rule is None)
        self.guard = _law.chosen_guard(guard, linear=self._rule is None)
        self.law_step, self.scope = law_step, scope
        self.memory_dtype = memory_dtype
        self.sums_in_backward = sums_in_backward
        _check_options(self, seed)
        self.first_law = _law.initial_law(law if law is None else saved.numpy(law), self.memory.k)
        self._prepare()
        defaults = {
            "lr": lr,
            "law_lr": law_lr,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            # These travel with every state, so that another memory's state can be told and refused.
            "memory": rules.named(self._rule) if self._rule else repr(self.memory),
            "scope": scope,
        }
        super().__init__(params, defaults)
        learned = saved.fresh(self.first_law, self._scopes())
        self.param_groups[0] |= saved.books(learned, seed if memory_dtype in ROUNDED else None)
        self._open_average(average, buffers)
        self._settle()

    @property
    def _rule(self) -> MemoryRule | None:
        return self.memory if isinstance(self.memory, MemoryRule) else None

    @property
    def propagator(self) -> Propagator | None:
        """(B, a) of linear memory; None for memory that is a rule."""
        return self.memory if isinstance(self.memory, Propagator) else None

    @property
    def law(self) -> Tensor:
        """L, (k,) float64 on the CPU, or (scopes, k) for a scope other than "all": a copy."""
        return self.param_groups[0]["law"].detach().cpu().clone()

    @property
    def skipped(self) -> int:
        """How many steps were skipped because a gradient was not finite."""
        return int(self.param_groups[0]["skipped"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, in mid-training too: they start with empty memory, and new scopes from L_0.

        Raises:
            ValueError: a rate of the group makes no sense, or it names another memory.
        """
        if "law" in next(iter(self.param_groups), {}):
            self._check_scopes()
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            selection.check(group, self.defaults, self._rule, self.memory_dtype)
        except Exception:
            self.param_groups.pop()
            raise
        if "law" in self.param_groups[0] and self.scope != "all":
            saved.add_scopes(self.param_groups[0], self.first_law, *self._scopes())
        if self._early:
            self._early.watch(group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure`, which recomputes the loss and its gradients, returned."""
        loss = self._evaluated(closure)
        self._check_scopes()
        compiling = torch.compiler.is_compiling()
        if not compiling:
            early.check_outside()
            self._spread = shards.renewed(self._spread, self.param_groups)
        shares = self._shares()
        taking = [bool(share.part.params) for share in shares]
        if not any(taking) and self._spread is None:
            return loss
        on_device = compiling or self._settle()
        if not compiling:
            self._plans = [share.plan for share in shares]
        alone = not on_device and self._spread is None and self._early is None
        if alone and stepping.in_one_call(self._solver, self.param_groups[0], shares):
            self._step_average()
            return loss
        own = [self._sums(share) for share in shares]
        sums = torch.stack(own) if len(own) > 1 else own[0][None]
        sound = stepping.sound(shares, sums)
        keeper = self.param_groups[0]
        seen: Sequence[bool] | Tensor = taking
        if self._spread is not None:
            sums, seen, sound = stepping.of_all(self._spread, sums, taking, sound)
        if on_device:
            ok = stepping.on_device(self._solver, self._constants, keeper, shares, sums, seen, sound)
            self._step_average(ok)
        elif stepping.on_host(self._solver, keeper, shares, sums, seen, sound):
            self._step_average()
        if self._early:
            self._early.forget()
            self._early.watch(params_of(self.param_groups))  # also those that were frozen until now
        return loss

    def _checked(self, state: dict[str, Any]) -> dict[str, Any]:
        seed = self.param_groups[0]["seed"]
        found = saved.checked(state["param_groups"][0], self.defaults, self._scopes(), self.memory.k, seed)
        for group in state["param_groups"]:
            saved.check_has(group, *selection.RATES, "maximize", "foreach")
            for name in selection.RATES:
                selection.check_rate(name, group[name])
        shards.check_whole(state, params_of(self.param_groups), self._names)
        if self._rule:
            rules.check_hidden(self._rule, state, self.param_groups)
        return found

    def _restore(self, state: dict[str, Any]) -> None:
        saved.restore(self, state, self._names, self.memory_dtype)
        for group in self.param_groups:
            group["capturable"] = self.defaults["capturable"]
            selection.fall_back(group)
        self._settle()
        if self._early:
            self._early.forget()

    def __getstate__(self) -> dict[str, Any]:
        # The base class keeps only what every optimizer has; deepcopy and pickle need the rest too.
        own = (
            *("memory", "inverse", "guard", "law_step", "scope", "first_law"),
            *("memory_dtype", "sums_in_backward"),
        )
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            # States of version 0.1 have none.
            group.setdefault("fused", None)
            group.setdefault("capturable", None)
            group.setdefault("scope", "all")
        if "memory" in state:  # a copy; torch also comes here to load a state
            self._prepare()
            self._settle()
            if self._early:
                self._early.watch(params_of(self.param_groups))

    def _prepare(self) -> None:
        """What follows from the arguments and is not saved."""
        self._solver = learning.solver(self.memory, self.inverse, self.guard, self.law_step)
        self._plans = []
        self._spread = None
        self._home = torch.device("cpu")
        self._constants = learning.on(self._home, self._solver.host)
        self._names = [f"m{j}" for j in range(1, self.memory.k + 1)]
        self._early = EarlySums(self._sums_of_one) if self.sums_in_backward else None

    def _settle(self) -> bool:
        """Whether the law is corrected on the parameters' device; it and what belongs to it go there."""
        device = selection.device_of(next((g for g in self.param_groups if g["params"]), {"params": ()}))
        on_device = self.defaults["capturable"]
        if on_device is None:
            on_device = device.type not in ("cpu", "meta") and not isinstance(self.inverse, Cutoff)
        home = device if on_device else torch.device("cpu")
        keeper = self.param_groups[0]
        if self._home != home:
            self._home, self._constants = home, learning.on(home, self._solver.host)
        if keeper["law"].device != home:
            for name in (*Learned._fields, "skipped", "draws"):
                keeper[name] = keeper[name].to(home)
        return on_device

    def _check_scopes(self) -> None:
        """Refuse laws of other groups or parameters than there are: they go by place."""
        shape, ours = tuple(self._keeper()["law"].shape), (*self._scopes(), self.memory.k)
        if len(shape) != len(ours) or shape[-1] != ours[-1]:
            raise RuntimeError(f"the law must stay of shape {ours}, got {shape}; copy_ sets its entries")
        if shape != ours:
            raise RuntimeError(
                f"there are laws for {shape[0]} {self.scope}s, and now {ours[0]} {self.scope}s; laws"
                " go by place: keep what was there, without gradients, or make a new optimizer"
            )

    def _scopes(self) -> tuple[int, ...]:
        """How many laws there are, (n,); () for the one of the whole optimizer."""
        if self.scope == "all":
            return ()
        return (len(self.param_groups if self.scope == "group" else params_of(self.param_groups)),)

    # --- The parts of a step ----------------------------------------------------------------------

    def _init_group(
        self,
        group: dict[str, Any],
        owners: list[Tensor],
        gradient: Unit,
        numbers: list[int],
        hidden: Unit,
        counts: list[int],
        *memory: Unit,
    ) -> None:
        """Fill in the parameters that have a gradient, with it, their places, hidden arrays and units.

        torch.compile knows the name and does not trace this method; hence flat lists.
        """
        found = [(i, p, g) for i, p in enumerate(group["params"]) if (g := p.grad) is not None]
        if not found:
            return
        taking, everyone, grads = zip(*found, strict=True)
        owners += everyone
        gradient += grads
        if {g.layout for g in gradient} - {torch.strided}:
            raise RuntimeError("RLLC does not take sparse gradients; use sparse=False in the embedding")
        states = [self.state[p] for p in owners]
        for p, state in zip(owners, states, strict=True):
            if not state:
                self._begin(p, state)
        for unit, name in zip(memory, self._names, strict=True):
            unit += [state[name] for state in states]
        for state in states if self._rule or self.memory_dtype == float8.DTYPE else ():
            names = saved.hidden_names(state)
            hidden += [state[name] for name in names]
            counts.append(len(names))
        numbers += taking if self.memory_dtype not in ROUNDED else self._places(group, taking)

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
        hidden = rules.begin(self._rule, p) if self._rule else {}
        if self.memory_dtype == float8.DTYPE:
            state.update(float8.begin(p, self._names))
        else:
            like = p if self.memory_dtype is None else real(p)
            for name in self._names:
                state[name] = torch.zeros_like(like, dtype=self.memory_dtype)
        state.update(hidden)
        self._begin_average(p, state)

    def _shares(self) -> list[Share]:
        """One for each group; in scope "tensor" for each parameter, in shards for each number of copies."""
        plans, shares, first = itertools.chain(self._plans, itertools.repeat(None)), [], 0
        for number, group in enumerate(self.param_groups):
            part, passes = self._part(group), self._passes(group)
            # Of float8 the entries cannot be looked at, but it holds what float32 does.
            by_norms = self._spread or self.memory_dtype == float8.DTYPE
            room = stepping.room(group, self.memory_dtype) if by_norms else None
            for law, copies, chosen in stepping.cuts(
                self.scope, number, group["params"], first, self._spread
            ):
                own = part if chosen is None else part.pick(chosen)
                shares.append(stepping.share(group, own, passes, next(plans), law, copies, room))
            first += len(group["params"])
        return shares

    def _part(self, group: dict[str, Any]) -> Part:
        owners: list[Tensor] = []
        gradient: Unit = []
        numbers: list[int] = []
        hidden: Unit = []
        counts: list[int] = []
        memory: list[Unit] = [[] for _ in self._names]
        self._init_group(group, owners, gradient, numbers, hidden, counts, *memory)
        params = owners
        if self._spread is not None:
            gradient = list(map(shards.gradient, owners, gradient))
            params, hidden, *memory = ([shards.local(t) for t in unit] for unit in (owners, hidden, *memory))
        if any(dtype.is_complex for dtype in {p.dtype for p in params}):
            gradient = [g.resolve_conj() for g in gradient]
            params, gradient, *memory = ([real(t) for t in unit] for unit in (params, gradient, *memory))
        return Part(params, gradient, memory, numbers, [0] * len(numbers), cut(hidden, counts), owners)

    def _passes(self, group: dict[str, Any]) -> Passes:
        return selection.chosen(group, selection.device_of(group), self._rule, self.memory_dtype)

    def _sums(self, share: Share) -> Tensor:
        if self._early is None or not share.part.params:
            return stepping.sums(self._solver, share, self._home)
        return self._early.total(share.part.owners)

    def _sums_of_one(self, p: Tensor) -> Tensor:
        """Of one parameter and its gradient, in the backward pass."""
        group = next((g for g in self.param_groups if any(p is q for q in g["params"])), None)
        if group is None:  # it has been removed, and its sums will not be asked for
            return torch.zeros(())
        passes = self._passes(group)
        share = stepping.share(group, self._part(group | {"params": [p]}), passes)
        return stepping.sums(self._solver, share, self._home)


def _check_options(opt: RLLC, seed: Any) -> None:
    if opt.memory_dtype not in MEMORY_DTYPES:
        raise ValueError(f"memory_dtype must be one of {MEMORY_DTYPES}, got {opt.memory_dtype}")
    if opt.scope not in SCOPES:
        raise ValueError(f"scope must be one of {SCOPES}, got {opt.scope!r}")
    _law.check_law_step(opt.law_step)
    if not is_whole(seed):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    if opt._rule and opt.memory_dtype == float8.DTYPE:
        raise ValueError(f"memory_dtype={float8.DTYPE} is for linear memory; give a memory rule bfloat16")
    if opt._rule and opt.sums_in_backward:
        raise ValueError("sums_in_backward=True: a memory rule needs the gradients later again; leave it out")
