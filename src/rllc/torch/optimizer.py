"""RLLC as a torch.optim.Optimizer: the class keeps the books, `rllc.torch.passes` does the arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rllc import law as _law
from rllc.law import RelaxedInverse, Sums
from rllc.notation import as_propagator
from rllc.propagator import Propagator
from rllc.torch import passes

__all__ = ["RLLC"]


class RLLC(torch.optim.Optimizer):
    """RLLC with linear memory (arXiv 2402.15262, Algorithm 1).

        L <- L + c2 M⁺g,    M <- M B + g aᵀ,    θ <- θ - c1 (M L + w θ)

    with c1 = `lr`, c2 = `law_lr`, w = `weight_decay`. With `law_lr=0` it is the fixed optimizer of that
    memory and law: "M(0.9)" is SGD with momentum 0.9, "M(0.9) + M(0)" with law (0.9, 1) Nesterov's.

    One law spans the whole optimizer, all groups together, as in the paper. lr, law_lr, weight_decay and
    maximize may differ between groups: M⁺g is then taken of the gradient weighted by each group's
    law_lr, so that a group with law_lr = 0 follows the law without teaching it.

    A parameter whose `.grad` is None sits the step out, as in torch.optim: it is not moved, its memory
    does not change, and it is no part of the sums. A step with a gradient that is not finite anywhere,
    or so large that memory would overflow, is skipped whole: nothing changes but `skipped`.

    Memory is k tensors a parameter, in its dtype (`state[p]["m1"]`, ...). The law is float64, in
    `param_groups[0]["law"]`, and beside it what the guard must know. Half precision is computed in
    float32 and rounded once.

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
        foreach: one call for all tensors of a unit (the default), or False for one tensor at a time.

    Raises:
        ValueError: a rate, eps, law, memory or saved state that makes no sense, named with the remedy.
        RuntimeError: a sparse gradient, or a sharded parameter (DTensor, FSDP2).
    """

    def __init__(
        self,
        params: Iterable[Any],
        memory: str | Propagator,
        lr: float | Tensor,
        law_lr: float | Tensor,
        law: ArrayLike | None = None,
        eps: float | None = None,
        inverse: RelaxedInverse | None = None,
        weight_decay: float = 0.0,
        *,
        guard: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        self.propagator = as_propagator(memory)
        self.inverse = _law.chosen_inverse(eps, inverse)
        self.guard = guard
        self._prepare()
        first_law = _law.initial_law(law if law is None else _numpy(law), self.propagator.k)
        defaults = {
            "lr": lr,
            "law_lr": law_lr,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            # Travels with every state, so that another memory's state can be told and refused.
            "memory": repr(self.propagator),
        }
        super().__init__(params, defaults)
        self.param_groups[0]["law"] = torch.tensor(first_law, dtype=torch.float64)
        self.param_groups[0]["faded"] = torch.eye(self.propagator.k, dtype=torch.float64)
        self.param_groups[0]["skipped"] = 0

    @property
    def law(self) -> Tensor:
        """L, (k,) float64 on the CPU: a copy."""
        return self.param_groups[0]["law"].clone()

    @property
    def skipped(self) -> int:
        """How many steps were skipped because a gradient was not finite."""
        return self.param_groups[0]["skipped"]

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

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure`, which recomputes the loss and its gradients, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts = [part for group in self.param_groups if (part := self._part(group)).params]
        if not parts:
            return loss
        law = self._correct_law(parts)
        if law is None:
            self.param_groups[0]["skipped"] += 1
            return loss
        for part in parts:
            self._advance(part, law)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, to the bit; the law keeps its float64.

        Raises:
            ValueError: the state is of another memory or another optimizer, or its law is damaged;
                nothing has changed then.
        """
        saved = state_dict["param_groups"][0]
        if saved.get("memory") != self.defaults["memory"]:
            raise ValueError(
                f"the saved state has memory {saved.get('memory')!r}, this optimizer"
                f" {self.defaults['memory']!r}; build the optimizer with the memory it was saved with"
            )
        k = self.propagator.k
        law, faded = _law.initial_law(_numpy(saved.get("law", ())), k), _numpy(saved.get("faded", ()))
        if faded.shape != (k, k) or not np.isfinite(faded).all():
            raise ValueError(f"the saved state is damaged: 'faded' is not a finite ({k}, {k}) matrix")
        super().load_state_dict(state_dict)
        # On the CPU again, wherever the file was mapped to.
        self.param_groups[0]["law"] = torch.tensor(law, dtype=torch.float64)
        self.param_groups[0]["faded"] = torch.tensor(faded, dtype=torch.float64)

    def __getstate__(self) -> dict[str, Any]:
        # The base class keeps only what every optimizer has; deepcopy and pickle need the rest too.
        own = ("propagator", "inverse", "guard")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    def _prepare(self) -> None:
        """Constants of the propagator and the inverse."""
        p = self.propagator
        self._frame = self.inverse.frame(p)
        # The sums are inner products of the vectors [M g] basis.
        self._basis = scipy.linalg.block_diag(self._frame.basis, 1.0)
        # How much the entries of [M g] can add to an entry of M B + g aᵀ, at most.
        self._growth = np.append(np.abs(p.B).sum(1), np.abs(p.a).max())
        self._growth_of_sums = np.abs(np.linalg.pinv(self._basis)) @ self._growth

    def _part(self, group: dict[str, Any]) -> _Part:
        """The parameters of a group that have a gradient, with it and their memory, as real tensors."""
        params = [p for p in group["params"] if p.grad is not None]
        if any(p.grad.layout != torch.strided for p in params):
            raise RuntimeError("RLLC does not take sparse gradients; use sparse=False in the embedding")
        if any(hasattr(p, "device_mesh") for p in params):
            raise RuntimeError(
                "RLLC does not take sharded parameters (DTensor) yet: its sums would be of one shard;"
                " keep the parameters whole, as DistributedDataParallel does"
            )
        for p in params:
            if not self.state[p]:
                for name in self._names:
                    self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        gradient = [-p.grad if group["maximize"] else p.grad for p in params]
        memory = [[_real(self.state[p][name]) for p in params] for name in self._names]
        return _Part(group, [_real(p) for p in params], [_real(g) for g in gradient], memory)

    @property
    def _names(self) -> list[str]:
        return [f"m{j}" for j in range(1, self.propagator.k + 1)]

    def _correct_law(self, parts: list[_Part]) -> np.ndarray | None:
        """L <- L + c2 M⁺g; the new law (k,) float64, or None and no change if the step must be skipped."""
        r = self._frame.basis.shape[1]
        grams = [passes.gram(part.memory, part.gradient, self._basis) for part in parts]
        total = np.sum(grams, axis=0)
        if not np.isfinite(total).all() or not all(map(self._memory_fits, parts, grams)):
            return None
        # Each group teaches with its own rate; with equal rates this is c2 Mᵀg.
        rates = [float(part.group["law_lr"]) for part in parts]
        v = np.sum([rate * gram[:r, r] for rate, gram in zip(rates, grams, strict=True)], axis=0)
        one = np.float64(1)
        sums = Sums(total[:r, :r], v, total[r, r], memory_scale=one, gradient_scale=one)
        error = _law.rounding_of(r, max(passes.machine_epsilon(part.gradient) for part in parts))
        keeper = self.param_groups[0]
        faded = keeper["faded"].numpy()
        guard = faded if self.guard else None
        x = _law.correction(np, sums, self._frame, self.inverse, faded=guard, rounding=error)
        law = keeper["law"].numpy() + x
        if not np.isfinite(law).all():
            return None
        keeper["law"] = torch.from_numpy(law)
        keeper["faded"] = torch.from_numpy(_law.fade(np, faded, self.propagator.B, sums))
        return law

    def _memory_fits(self, part: _Part, gram: np.ndarray) -> bool:
        """Whether no entry of M B + g aᵀ can overflow."""
        sizes = np.sqrt(np.diag(gram))
        if self._growth_of_sums @ sizes < min(
            torch.finfo(dtype).max for dtype in {t.dtype for t in part.params}
        ):
            return True

        # The norms do not settle it: look at every tensor's largest entries.
        def fits(theta: Tensor, *vectors: Tensor) -> bool:
            tops = [float(t.abs().max()) if t.numel() else 0.0 for t in vectors]
            return bool(self._growth @ tops < torch.finfo(theta.dtype).max)

        return all(map(fits, part.params, *part.memory, part.gradient))

    def _advance(self, part: _Part, law: np.ndarray) -> None:
        """Memory, then parameters, of one group."""
        lr, decay = float(part.group["lr"]), float(part.group["weight_decay"])
        advance = passes.advance_one if part.group["foreach"] is False else passes.advance_foreach
        step = passes.Step(keep=1 - lr * decay, weights=-lr * law)
        advance(self.propagator, part.memory, part.gradient, part.params, step)


class _Part(NamedTuple):
    """What of one parameter group takes part in a step."""

    group: dict[str, Any]
    params: list[Tensor]
    gradient: list[Tensor]
    memory: list[list[Tensor]]  # k units


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _numpy(law: ArrayLike | Tensor) -> np.ndarray:
    return law.detach().cpu().double().numpy() if isinstance(law, Tensor) else np.asarray(law)


def _check_rate(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must have one entry, got a tensor of shape {tuple(value.shape)}")
        value = value.item()
    _law.check_nonnegative(name, value)
