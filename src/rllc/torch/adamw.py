"""AdamW with a law on its step, the weights averaged: a rate need not be tuned, a horizon not known."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from rllc.checks import check_positive, check_share
from rllc.law import SEEKING, LawStep, check_law_step
from rllc.torch import adamw_passes, one_unit, saved, selection, shards
from rllc.torch.adamw_passes import Share
from rllc.torch.one_unit import OneUnit, Rule
from rllc.torch.parts import Part, Unit, moved, real, wide_dtype
from rllc.torch.shards import Spread

__all__ = ["RLLCAdamW"]

Array = NDArray[np.float64]
Taking = list[tuple[int, Tensor, Tensor]]  # how many processes have the same, a parameter and its gradient

STATE = ["step", "exp_avg", "exp_avg_sq"]
OPTIONS = ("lr", "betas", "eps", "weight_decay", "foreach", "fused", "maximize")  # of a group
EPS = 1e-3  # of the relaxed inverse
WITHOUT_EPS = ": without it an entry whose gradients are all zero becomes NaN"


class RLLCAdamW(OneUnit):
    """RLLC around AdamW, one law on its direction (arXiv 2402.15262 with arXiv 1711.05101).

        u = m̂ / (√v̂ + eps),    x = uᵀg / ((1 + 1e-3) uᵀm̂)                  with m, v before this gradient g
        L <- e^0.1 L until x is no more positive on average (but not where |g| is a hundredth of its mean so
        far: there all is learned, and x says nothing), and then, with s the L it has come to,
        L <- min(s, L + c2 t^-½ s (L/s)^1.5 x)                   (`rllc.law.LawStep`, the default `law_step`)
        m, v, u anew with g,    θ <- θ - c1 (L u + w θ)
        θ̄ <- θ̄ + 10/(t+9) (θ - θ̄)

    with c1 = `lr`, c2 = `law_lr`, w = `weight_decay`. x is the law's correction in AdamW's own metric, the
    best factor for u to stand for the preconditioned gradient: it does not see the scale of the loss. One
    law spans all groups; lr, betas, eps, weight_decay and maximize may differ between them.

    The average θ̄ is what to evaluate: `opt.eval()` puts it into the parameters, `opt.train()` takes it out
    again, `with opt.averaged():` does both (`rllc.torch.averaging`). With law_lr = 0 and law = 1 it is
    torch.optim.AdamW, to the bit if fused or foreach says which.

    A parameter whose `.grad` is None sits the step out, as in torch.optim. A step with a gradient that is not
    finite anywhere, or whose square would overflow, is skipped whole and counted. Parameters may be in shards
    (DTensor), as in `RLLC`.

    State is AdamW's own, `step`, `exp_avg` and `exp_avg_sq`, and "average" in at least float32; the unit
    is not kept. Law (float64) and counts are in `param_groups[0]`. A step reads m, v and g once more than
    AdamW, and for the average θ and θ̄.

    Args:
        params: parameters or groups, as for every torch optimizer.
        lr: c1 >= 0, a number or a tensor of one entry: the unit of the law. It sets the first step, lr * law,
            and the decay, hardly the rate that is found. A schedule may stay: where lr rises after the search
            steps become no longer, where it falls they become shorter. Groups with lr = 0 are not heard.
        betas, eps: AdamW's; eps > 0.
        weight_decay: w >= 0, decoupled: multiplied by lr, not by the law (0; of torch's AdamW 0.01).
        law_lr: c2 >= 0, as lr, of the whole optimizer; later `param_groups[0]["law_lr"]`.
        law: L_0, one number. Small, as the law grows by itself: the first step is c1 L_0 e^0.1 long, 1.1e-5.
        law_step: how x moves the law; by default it grows until steps are long enough, then anneals.
        average: the power of the average of the weights, None for none.
        buffers: batch-norm statistics, to be averaged along: the net that has them, or tensors, which it must
            not exchange for others later, as `net.to()` does.
        foreach, fused: torch's own AdamW so implemented; None for both takes the fastest there is: kernels
            that make the average too on a CPU with numba (`pip install "rllc[fast]"`) and on a GPU with
            Triton, where nothing is read back then; else torch's fused.
        maximize: follow the gradient uphill.

    Raises:
        ValueError: a number, combination of arguments or saved state that makes no sense, with the remedy.
        RuntimeError: a sparse gradient, a step in evaluation mode, or one inside the backward pass.
    """

    _memory = "RLLCAdamW"
    _units = STATE[1:]
    _spread: Spread | None  # as it was in the last step
    _plans: list[Any]  # of each share's sums, from the last step
    _judged: list[Any]  # betas and eps of each group, as they were in the last step

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 0.0,
        *,
        law_lr: float | Tensor = 0.04,
        law: ArrayLike | Tensor = 0.01,
        law_step: LawStep = SEEKING,
        average: float | None = 9.0,
        buffers: nn.Module | Iterable[Tensor] = (),
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
    ) -> None:
        self._rule = Rule(EPS, check_law_step(law_step))
        self._forget()
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "fused": fused,
            "maximize": maximize,
        }
        books = one_unit.books(self._memory, law, law_lr)
        super().__init__(params, defaults)
        self.param_groups[0] |= books
        self._open_average(average, buffers)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, in mid-training too: they start as in AdamW and follow the one law.

        Raises:
            ValueError: a number of the group makes no sense.
        """
        if "law_lr" in param_group:
            raise ValueError("one law has one law_lr; give it to the optimizer, not to a group")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            group |= _numbers(group, group["params"])
        except Exception:
            self.param_groups.pop()
            raise
        if _is_unsaid(group):
            self._choose(group)

    def _choose(self, group: dict[str, Any]) -> None:
        """Fused on a GPU, and with it where the counts of steps are: that must be known from the start."""
        group["fused"] = all(p.device.type == "cuda" for p in group["params"]) or None
        for p in group["params"]:
            if "step" in (state := self.state.get(p, {})):
                state["step"] = state["step"].to(p.device if group["fused"] else "cpu")

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = self._evaluated(closure)
        keeper = self._keeper()
        self._renew_numbers()
        self._spread = shards.renewed(self._spread, self.param_groups)
        taking = self._taking()
        one_unit.check_ready(g for _, _, g in itertools.chain(*taking))
        shares = self._shares(taking)
        if shares and (kernels := adamw_passes.on_gpu(shares)):
            self._step_on_gpu(kernels, shares)
            return loss
        one_unit.home(keeper)
        if self._in_one_call(keeper, shares):
            return loss
        shares = [adamw_passes.by_torch(share) for share in shares]
        sums, anyone = one_unit.everywhere(self._spread, self._sums(shares), bool(shares))
        if not anyone:
            return loss
        alone = self._spread is None
        learned = one_unit.learn(self._rule, keeper, sums[:3], self.param_groups)
        if learned is None or not adamw_passes.fits(shares, self.param_groups, sums[3], alone):
            keeper["skipped"] += 1
            return loss
        weight = self._weight()
        done = [share for share in shares if adamw_passes.advance(share, learned.law, weight)]
        one_unit.taken(keeper, learned)
        self._average(weight, _seen_to(done))
        return loss

    def _in_one_call(self, keeper: dict[str, Any], shares: Sequence[Share]) -> bool:
        """The rest of a step of the one group there is; False if it is not so simple: nothing has changed."""
        if self._spread is not None or len(self.param_groups) > 1 or not shares:
            return False
        weight = self._weight()
        learned = adamw_passes.whole(shares[0], keeper, self._rule, weight)
        if learned is None:
            return False
        keeper |= {"progress": learned.progress, "last_size": learned.last_size}
        self._average(weight, _seen_to(shares))
        return True

    def _step_on_gpu(self, kernels: ModuleType, shares: Sequence[Share]) -> None:
        """The rest of a step, with nothing read back."""
        found = torch.stack([kernels.sums(share.on_gpu, share.group) for share in shares])
        groups = [share.group for share in shares]
        taken, steps = kernels.learn(self._rule, self.param_groups[0], groups, found)
        weight = self._next_weight_on_device(taken)
        for share, step in zip(shares, steps, strict=True):
            kernels.advance(share.on_gpu, share.group, step, weight)
        done = _seen_to(shares)
        if weight is not None:
            self._mix(weight, done)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_rule": self._rule, "_plans": [], "_spread": None, "_judged": []}

    def _checked(self, state: dict[str, Any]) -> dict[str, Any]:
        found = super()._checked(state)
        for theirs, ours in zip(state["param_groups"], self.param_groups, strict=True):
            saved.check_has(theirs, *OPTIONS)
            _numbers(theirs, ours["params"])
        return found

    def _restore(self, state: dict[str, Any]) -> None:
        self._forget()
        for group in self.param_groups:  # which may have been saved on another device
            if _is_unsaid(self.defaults) and group["foreach"] is None:
                self._choose(group)

    def _forget(self) -> None:
        self._plans, self._spread, self._judged = [], None, []

    def _renew_numbers(self) -> None:
        """Judge what betas and eps have been set to since the last step."""
        given = [x for group in self.param_groups for x in (group["betas"], group["eps"])]
        if len(given) == len(self._judged) and all(map(operator.is_, given, self._judged)):
            return
        numbers = [_numbers(group, group["params"]) for group in self.param_groups]
        for group, own in zip(self.param_groups, numbers, strict=True):
            group |= own
        self._judged = [x for group in self.param_groups for x in (group["betas"], group["eps"])]

    # --- The parts of a step ----------------------------------------------------------------------------

    def _taking(self) -> list[Taking]:
        """What of each group has a gradient."""
        copies = iter(self._spread.copies) if self._spread else itertools.repeat(1)
        return [
            [(own, p, g) for p, own in zip(group["params"], copies) if (g := p.grad) is not None]  # noqa: B905
            for group in self.param_groups
        ]

    def _shares(self, taking: Sequence[Taking]) -> list[Share]:
        """What of each group has a gradient; over several processes by how many have the same."""
        plans = itertools.chain(self._plans, itertools.repeat(None))
        shares = []
        for group, found in zip(self.param_groups, taking, strict=True):
            for count in sorted({own for own, _, _ in found}):
                params, gradient = zip(*[(p, g) for own, p, g in found if own == count], strict=True)
                shares.append(self._share(group, list(params), list(gradient), count, next(plans)))
        self._plans = [share.plan for share in shares]
        return shares

    def _sums(self, shares: Sequence[Share]) -> Array:
        """(4,) uᵀm̂, uᵀg and gᵀg over the parameters here that move, unless none does; and gᵀg over all.

        Of what stays, lr = 0, the gradient agrees with the unit for ever: no step it asks for is ever made.
        """
        anyone_moves = any(group["lr"] > 0 for group in self.param_groups)
        total = np.zeros(4)
        for share in shares:
            own = adamw_passes.sums(share)
            total[3] += own[2]
            if anyone_moves and not share.group["lr"] > 0:
                own[np.isfinite(own)] = 0.0  # what is not finite is heard: the step is skipped
            total[:3] += own
        return total

    def _share(self, group: dict[str, Any], params: Unit, gradient: Unit, copies: int, plan: Any) -> Share:
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if "step" not in state:
                state |= _nothing_yet(p, group)
                self._begin_average(p, state)
        names = [*STATE, "average"] if "average" in states[0] else STATE
        steps, *memory = map(list, zip(*map(operator.itemgetter(*names), states), strict=True))
        owners = params
        if self._spread is not None:
            gradient = list(map(shards.gradient, params, gradient))
            params, *memory = (list(map(shards.local, unit)) for unit in (params, *memory))
        if any(dtype.is_complex for dtype in {p.dtype for p in params}):
            gradient = list(map(Tensor.resolve_conj, gradient))
            params, gradient, *memory = (list(map(real, unit)) for unit in (params, gradient, *memory))
        numbers = list(range(len(params)))
        part = Part(params, gradient, memory, numbers, [0] * len(numbers), owners=owners)
        unsaid = self._spread is None and _is_unsaid(self.defaults)
        return adamw_passes.share(group, part, steps, copies, plan, unsaid)


def _is_unsaid(group: dict[str, Any]) -> bool:
    """Whether nobody has asked for an implementation."""
    return group["fused"] is None and group["foreach"] is None


def _seen_to(shares: Sequence[Share]) -> set[int]:
    """The parameters, by their id, that kernels have moved and averaged; autograd is told."""
    owners = [p for share in shares for p in share.part.owners]
    moved(owners)
    return set(map(id, owners))


def _nothing_yet(p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    """The state of AdamW before the first step, where torch's fused step wants it."""
    where = p.device if group["fused"] else "cpu"
    step = torch.zeros((), dtype=torch.float32, device=where)
    return dict(zip(STATE, (step, torch.zeros_like(p), torch.zeros_like(p)), strict=True))


def _numbers(group: dict[str, Any], params: Iterable[Tensor]) -> dict[str, Any]:
    """betas and eps of a group as numbers: torch's AdamW takes tensors in one form and not in another.

    Raises:
        ValueError: a number of the group makes no sense, or eps is zero where it is added to what belongs to
            these parameters: corrected for bias, or by torch's foreach as it is.
    """
    for name in ("lr", "weight_decay"):
        selection.check_rate(name, group[name])
    betas, eps = _plain(group["betas"]), _plain(group["eps"])
    if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
    for i, beta in enumerate(betas):
        check_share(f"betas[{i}]", beta)
    check_positive("eps", eps, WITHOUT_EPS)
    if group["foreach"] and group["fused"]:
        raise ValueError("foreach=True and fused=True are both given; give one of them")
    by_foreach = group["foreach"] or (group["foreach"] is False and not group["fused"])
    least = eps * (1.0 if by_foreach else math.sqrt(1 - betas[1]))
    for dtype in {real(p).dtype if by_foreach else wide_dtype(p) for p in params}:
        if not torch.tensor(least, dtype=dtype, device="cpu"):
            raise ValueError(f"eps = {eps:g} is too small for {dtype}{WITHOUT_EPS}")
    return {"betas": betas, "eps": eps}


def _plain(value: Any) -> Any:
    """Numbers for tensors and arrays."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.item() if np.prod(value.shape) == 1 else value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
