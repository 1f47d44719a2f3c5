"""What to compare with and torch.optim lacks: hypergradient descent, Mechanic, a polynomial average."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

__all__ = ["HypergradientAdam", "HypergradientSGD", "MechanicAdam", "polynomial_average"]

Closure = Callable[[], float]


class HypergradientSGD(torch.optim.Optimizer):
    """SGD with heavy-ball momentum whose learning rate learns: SGDN-HD of Baydin et al. (arXiv 1703.04782).

    With u_t = momentum · u_{t-1} + g_t and θ_{t+1} = θ_t - lr_t u_t, the derivative of the loss at θ_t by
    lr_{t-1} is -g_t · u_{t-1}; hence lr_t = lr_{t-1} + hyper_lr · g_t · u_{t-1}. One group of dense
    parameters; the learning rate is `param_groups[0]["lr"]`, a number.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, hyper_lr: float, momentum: float = 0.9
    ) -> None:
        super().__init__(params, {"lr": lr, "hyper_lr": hyper_lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One step on the gradients that are there, or that the closure computes; returns its loss."""
        loss = _evaluated(closure)
        (group,) = self.param_groups
        params = [p for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p]["direction"] = torch.zeros_like(p)
        directions = [self.state[p]["direction"] for p in params]
        group["lr"] += group["hyper_lr"] * _dot(grads, directions).item()
        torch._foreach_mul_(directions, group["momentum"])
        torch._foreach_add_(directions, grads)
        torch._foreach_add_(params, directions, alpha=-group["lr"])
        return loss


class HypergradientAdam(torch.optim.Adam):
    """Adam whose learning rate learns: Adam-HD of Baydin et al. (arXiv 1703.04782).

    With d_t = m̂_t / (√v̂_t + eps) and θ_{t+1} = θ_t - lr_t d_t, the derivative of the loss at θ_t by lr_{t-1}
    is -g_t · d_{t-1}; hence lr_t = lr_{t-1} + hyper_lr · g_t · d_{t-1}. One group of dense parameters; the
    learning rate is `param_groups[0]["lr"]`, a number.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        hyper_lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps)
        self.param_groups[0]["hyper_lr"] = hyper_lr

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One step on the gradients that are there, or that the closure computes; returns its loss."""
        loss = _evaluated(closure)
        (group,) = self.param_groups
        moved = [p for p in group["params"] if p.grad is not None and self.state[p]]
        if moved:
            grads = [p.grad for p in moved if p.grad is not None]
            directions = [_direction(self.state[p], group["betas"], group["eps"]) for p in moved]
            group["lr"] += group["hyper_lr"] * _dot(grads, directions).item()
        super().step()
        return loss


class MechanicAdam(torch.optim.Adam):
    """Mechanic of Cutkosky, Defazio and Mehta (arXiv 2306.00144) around Adam: θ_t = θ_1 - s_t Δ_t.

    Δ_t is the sum of Adam's steps at the rate lr, and s_t = Σ s_i the sum of six scales, each tuned by a bet
    on the sign of h_t = Δ_t · (g_t + λ s_t |g_t| θ_t / |θ_t|) with a memory of its own. As
    optax.contrib.mechanize has it, which made the paper's experiments. One group of dense parameters.
    """

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One step on the gradients that are there, or that the closure computes; returns its loss."""
        loss = _evaluated(closure)
        (group,) = self.param_groups
        params = [p for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in params if p.grad is not None]
        before = [p.clone() for p in params]
        super().step()
        starts = [self.state[p].setdefault("start", x) for p, x in zip(params, before, strict=True)]
        bets = group.setdefault("bets", _first_bets())
        scale = bets[-1].sum().item()
        deltas = list(torch._foreach_sub(starts, before))
        torch._foreach_div_(deltas, scale + MECHANIC_EPS)
        pull = MECHANIC_DECAY * scale * _norm(grads) / (_norm(before) + MECHANIC_EPS)
        h = _dot(grads, deltas) + pull * _dot(before, deltas)
        torch._foreach_add_(deltas, before)
        torch._foreach_sub_(deltas, params)
        group["bets"] = _next_bets(bets, h.double().cpu())
        torch._foreach_copy_(params, starts)
        torch._foreach_add_(params, deltas, alpha=-group["bets"][-1].sum().item())
        return loss


MECHANIC_EPS, MECHANIC_DECAY, MECHANIC_START = 1e-8, 1e-2, 1e-6
MECHANIC_BETAS = torch.tensor([1 - 0.1**i for i in range(1, 7)], dtype=torch.float64)


def _first_bets() -> Tensor:
    """(4, 6) float64: rewards r, squares v, maxima m and scales s, a column for each memory."""
    bets = torch.zeros(4, len(MECHANIC_BETAS), dtype=torch.float64)
    bets[-1] = MECHANIC_START
    return bets


def _next_bets(bets: Tensor, h: Tensor) -> Tensor:
    """The bets after the outcome h, 0-d."""
    r, v, m, s = bets
    r = MECHANIC_BETAS * r + h.clamp(-m, m) * s
    v = MECHANIC_BETAS**2 * v + h**2
    m = torch.maximum(MECHANIC_BETAS * m, h.abs() + MECHANIC_EPS)
    wealth = MECHANIC_START / len(MECHANIC_BETAS) * m + r.clamp(min=0)
    return torch.stack([r, v, m, wealth / (v.sqrt() + MECHANIC_EPS)])


def _evaluated(closure: Closure | None) -> float | None:
    """The loss of a closure, which computes gradients, too."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _direction(state: dict[str, Tensor], betas: tuple[float, float], eps: float) -> Tensor:
    """m̂ / (√v̂ + eps) of the last step."""
    (beta1, beta2), steps = betas, state["step"].item()
    size = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt_().add_(eps)
    return (state["exp_avg"] / (1 - beta1**steps)).div_(size)


def _dot(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    return torch.stack([product.sum() for product in torch._foreach_mul(xs, ys)]).sum()


def _norm(xs: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(xs)).norm()


def polynomial_average(power: int) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """For torch.optim.swa_utils.AveragedModel: the mean of weights θ_1 ... θ_t with weights close to t^power.

    θ̄_t = θ̄_{t-1} + (power + 1) / (t + power) (θ_t - θ̄_{t-1}), Shamir and Zhang (arXiv 1212.1824): its window
    is a fixed part of the run so far, so that no horizon has to be known.
    """

    def update(averages: list[Tensor], current: list[Tensor], averaged: Tensor) -> None:
        if not averages[0].is_floating_point():  # counters of batch normalisation
            torch._foreach_copy_(averages, current)
            return
        torch._foreach_lerp_(averages, current, (power + 1) / (averaged.item() + 1 + power))

    return update
