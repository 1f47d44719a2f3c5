"""RLLC around any torch optimizer: the memory unit is its last step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from rllc.law import DiagonalRidge, LawStep, check_law_step
from rllc.torch import metrics, one_unit, selection, shards
from rllc.torch.averaging import Averaging
from rllc.torch.metrics import Metric
from rllc.torch.one_unit import OneUnit, Rule
from rllc.torch.parts import Part, params_of, real, wide_dtype
from rllc.torch.shards import Spread

__all__ = ["Around"]

Array = NDArray[np.float64]

LEAST_RATE = 1e-150  # 1 over its square is still a number
FASTEST = {"foreach": None, "fused": None, "capturable": None}


class Around(OneUnit):
    """RLLC with one memory unit, the last step of another optimizer (arXiv 2402.15262, section 3).

        L <- L + c2 |L|^q x,    d = what base.step() takes off θ,    θ <- θ - L d

    with c2 = `law_lr` and x the coefficient of the unit u = d / lr at the new gradient. With L = 1, as
    with law_lr = 0, the parameters are the base's to the bit. The base is called as it is: its groups, its
    schedulers (made for it or for this optimizer), its fused or foreach passes and its state stay its own.

    Which x, depends on what is known of the base:

    - Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adamax: x = uᵀg / uᵀP⁻¹u in the optimizer's own metric P⁻¹
      (`rllc.torch.metrics`), the best factor for u to stand for P g; free of the scale of the loss.
    - SGD: x = uᵀg / uᵀu. Around SGD it is RLLC with M(0), around SGD(momentum=0.9) with M(0.9), guard=False.
    - any other, Muon for instance: x = uᵀg / (|u| |g'|), g' the last gradient. A step of which no metric is
      known may have any length, so that only its direction can be compared; x is a pure number all the same.
    - `metric` given: x = uᵀg / uᵀP⁻¹u with that.

    In each the denominator is multiplied by 1 + eps. lr is that of the step that d was: an older one, for a
    parameter that sat steps out; where it is 0 nothing is learned. Weight decay is the base's own and part of
    its step: the law scales it too, and a decoupled one counts in u. Sums are over all groups; the gradients
    of a group that maximizes count with the opposite sign.

    A step with a gradient that is not finite is skipped whole and counted, without a call of the base. Where
    the base raises, or moves the parameters to what is not finite, they are put back and the unit is zero.
    What a base keeps of the parameters in its own state (ASGD's average, schedule-free methods) does not see
    the law. Parameters in shards (DTensor) are taken as `RLLC` takes them.

    The unit is one buffer of the parameters' size, `state[p]["unit"]`, in their dtype; law and counts are
    in `param_groups[0]`. Both are shared with the base, which initialises a parameter's state first: its
    `state_dict()` is this one's.

    Args:
        base: one optimizer. Several units come from memory rules in `RLLC`, not from several optimizers.
        law_lr: c2 >= 0, a number or a tensor of one entry; later `param_groups[0]["law_lr"]`.
        law: L_0, one number.
        eps: of the relaxed inverse DiagonalRidge(eps).
        law_step: how x moves the law; by default relative, with q = 1.5 and |x| <= 1, so that the law
            neither collapses nor jumps. LawStep() is the paper's.
        metric: (state, group, unit) -> P⁻¹ unit, linear in the unit and positive, from the base's state of a
            parameter and its group. Tensors come as at least float32, of this process, complex ones as real
            numbers (..., 2).
        average: the power of an average of the weights, None for none (`rllc.torch.averaging`).
        buffers: batch-norm statistics and the like, to be averaged along: the net, or tensors.

    Raises:
        ValueError: the base is none that can be called so, or a number makes no sense, named with the remedy.
        RuntimeError: a sparse gradient, a step that is not finite, or one in evaluation mode.
    """

    _units = ("unit",)
    _spread: Spread | None  # as it was in the last step

    def __init__(
        self,
        base: torch.optim.Optimizer,
        law_lr: float | Tensor,
        law: ArrayLike | Tensor = 1.0,
        *,
        eps: float = 1e-3,
        law_step: LawStep = LawStep(q=1.5, clip=1.0),  # noqa: B008  (frozen)
        metric: Metric | None = None,
        average: float | None = None,
        buffers: nn.Module | Iterable[Tensor] = (),
    ) -> None:
        _check_base(base)
        self.base = base
        self._metric = metric or metrics.KNOWN.get(type(base))
        self._rule = Rule(DiagonalRidge(eps).eps, check_law_step(law_step), measured=self._metric is None)
        self._spread = None
        books = one_unit.books(self._memory, law, law_lr)
        # What every optimizer has beside groups, state and defaults, which are the base's.
        self.__setstate__({})
        self.param_groups[0] |= books
        self._open_average(average, buffers)

    @property
    def _memory(self) -> str:  # type: ignore[override]
        return f"around {type(self.base).__name__}"

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        """The base's, with the unit beside it."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base's."""
        return self.base.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the base: their unit is zero, and they follow the one law."""
        self.base.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the base does it."""
        self.base.zero_grad(set_to_none)

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = self._evaluated(closure)
        keeper = self._keeper()
        gradient = {p: g for p in params_of(self.param_groups) if (g := p.grad) is not None}
        one_unit.check_ready(gradient.values())
        self._spread = shards.renewed(self._spread, self.param_groups)
        units = {p: self._unit(p) for p in gradient}
        sums, anyone = one_unit.everywhere(self._spread, self._sums(units), bool(units))
        if not anyone:
            return loss
        learned = one_unit.learn(self._rule, keeper, sums, self.param_groups)
        if learned is None:
            keeper["skipped"] += 1
            return loss
        self._follow(units, learned.law)
        one_unit.taken(keeper, learned)
        self._step_average()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The base's, with unit, law and average in it."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state of both, to the bit.

        Raises:
            ValueError: the state is of another optimizer, or its law is damaged; nothing has changed then.
        """
        self._take_over(self.base, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        own = ("base", "_metric", "_rule", "_net", "_kept")
        return {name: getattr(self, name) for name in own} | {"_spread": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The base saves and loads states: whoever hooks the one has hooked the other.
        for hooks in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
            setattr(self, f"_optimizer_{hooks}_hooks", getattr(self.base, f"_optimizer_{hooks}_hooks"))

    # --- The parts of a step ----------------------------------------------------------------------------

    def _keeper(self) -> dict[str, Any]:
        if "law" not in self.param_groups[0]:
            raise RuntimeError(
                f"{type(self.base).__name__} has taken over a state without a law; load it through the"
                " optimizer around it, or make a new one around it"
            )
        return super()._keeper()

    def _unit(self, p: Tensor) -> Tensor:
        """The last step of a parameter; zeros if there was none, which are not yet in the base's state."""
        found = self.state.get(p, {}).get("unit")
        return torch.zeros_like(p) if found is None else found

    def _unit_lr(self, p: Tensor, group: dict[str, Any]) -> float:
        """lr of the step that the unit of a parameter was; older states keep it for the whole group."""
        return self.state.get(p, {}).get("unit_lr", group.get("unit_lr", 0.0))

    def _sums(self, units: dict[Tensor, Tensor]) -> Array:
        """(3,) uᵀP⁻¹u, uᵀg and gᵀg over the parameters here, each over the number of its copies."""
        sums = np.zeros(3)
        for group, params, count, rate in self._shares(units):
            # Multiplied through, so that a rate of zero, or one whose square is, gives a unit of zero.
            per_lr = 1 / rate if rate > LEAST_RATE else 0.0
            sign = -1 if group.get("maximize") else 1
            factors = np.array([per_lr**2, sign * per_lr, 1.0])
            sums += factors * self._inner_products(group, params, units) / count
        return sums

    def _shares(
        self, units: dict[Tensor, Tensor]
    ) -> Iterator[tuple[dict[str, Any], list[Tensor], int, float]]:
        """The parameters with a gradient, by group, by how many processes have the same, and by unit's lr."""
        if self._spread is None:
            copies = dict.fromkeys(units, 1)
        else:
            copies = dict(zip(self._spread.params, self._spread.copies, strict=True))
        for group in self.param_groups:
            found: dict[tuple[int, float], list[Tensor]] = {}
            for p in group["params"]:
                if p in units:
                    found.setdefault((copies[p], self._unit_lr(p, group)), []).append(p)
            for (count, rate), params in sorted(found.items()):
                yield group, params, count, rate

    def _inner_products(
        self, group: dict[str, Any], params: Sequence[Tensor], units: dict[Tensor, Tensor]
    ) -> Array:
        """(3,) dᵀP⁻¹d, dᵀg and gᵀg."""
        last = [_plain(units[p]) for p in params]
        grads = [_plain(shards.gradient(p, p.grad)) for p in params]
        memory = [last, [self._dual(p, group, d) for p, d in zip(params, last, strict=True)]]
        part = Part([_plain(p) for p in params], grads, memory, [0] * len(params), [0] * len(params))
        passes = selection.chosen(FASTEST, params[0].device)
        work, _ = passes.prepare(part, None)
        found = passes.gram(work, np.eye(3)).cpu().numpy()
        return np.array([found[0, 1], found[0, 2], found[2, 2]])

    def _dual(self, p: Tensor, group: dict[str, Any], d: Tensor) -> Tensor:
        """P⁻¹ d; d itself where no metric is known, or no step was taken yet."""
        state = self.state.get(p, {})
        if self._metric is None or "unit" not in state:
            return d
        plain = {name: _plain(x) if isinstance(x, Tensor) else x for name, x in state.items()}
        found = self._metric(plain, group, d)
        return metrics.checked_dual(found, d, lambda: "metric must return a tensor").to(d)

    def _follow(self, units: dict[Tensor, Tensor], law: float) -> None:
        """The base's step, and L times it instead; the units are what it was."""
        params, last = list(map(shards.local, units)), list(map(shards.local, units.values()))
        rates = [float(group["lr"]) for group in self.param_groups]
        new = [p for p in units if "unit" not in self.state.get(p, {})]
        _copy(last, params)
        try:
            self.base.step()
            for name in {"unit", "average"} & {name for p in new for name in self.state.get(p, {})}:
                raise ValueError(f"{type(self.base).__name__} keeps a state {name!r}, as RLLC.around does")
            if not _finite(params):
                raise RuntimeError(
                    f"{type(self.base).__name__} has made a step that is not finite; the parameters are as"
                    " before, its state may be damaged: load a checkpoint, or lower its lr"
                )
        except BaseException:
            _copy(params, last)
            for d in last:
                d.zero_()
            raise
        for p in new:
            self._begin_average(p, self.state[p], before=units[p])
            self.state[p]["unit"] = units[p]
        for group, rate in zip(self.param_groups, rates, strict=True):
            for p in group["params"]:
                if p in units:
                    self.state[p]["unit_lr"] = rate
        if not params:
            return
        torch._foreach_sub_(last, params)
        if law != 1:
            torch._foreach_add_(params, last, alpha=1 - law)


def _check_base(base: Any) -> None:
    if not isinstance(base, torch.optim.Optimizer):
        raise ValueError(
            f"around takes one torch.optim.Optimizer, got {type(base).__name__}; several units are made by a"
            " union of memory rules in RLLC"
        )
    name = type(base).__name__
    if isinstance(base, Averaging):
        raise ValueError(f"{name} has a law of its own; give the optimizer within it")
    if name == "ZeroRedundancyOptimizer":
        raise ValueError(
            f"{name} steps only some of the parameters here, and each process would have a law of"
            " its own; take fully_shard (FSDP2), whose shards have one law"
        )
    if isinstance(base, torch.optim.SparseAdam):
        raise ValueError("SparseAdam takes sparse gradients, RLLC does not; use Adam and sparse=False")
    wanted = [
        x.name
        for x in inspect.signature(base.step).parameters.values()
        if x.default is x.empty and x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)
    ]
    if wanted == ["closure"]:
        raise ValueError(
            f"{name} calls its closure several times a step, so that there is no one gradient to learn from;"
            " take an optimizer whose step() needs none"
        )
    if wanted:
        raise ValueError(f"{name} wants {', '.join(wanted)} for a step; around calls base.step() without")
    ours = {*one_unit.books("", 1.0, 0.0), "average", "averaged"}
    taken = sorted({key for group in base.param_groups if "law" not in group for key in group if key in ours})
    if taken:
        raise ValueError(f"{name} has {taken[0]!r} in its parameter groups, as RLLC.around has")
    if not all("lr" in group for group in base.param_groups):
        raise ValueError(
            f"{name} has no lr in its parameter groups, so that its unit, step / lr, is not known"
        )


def _plain(tensor: Tensor) -> Tensor:
    """What of a tensor is here, as real numbers of at least float32; integers as they are."""
    here = real(shards.local(tensor).resolve_conj())
    return here.to(wide_dtype(here)) if here.is_floating_point() else here


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)


def _finite(tensors: list[Tensor]) -> bool:
    filled = [t for t in tensors if t.numel()]
    norms = torch._foreach_norm(filled, torch.inf) if filled else []
    return all(bool(norm.isfinite()) for norm in norms)
