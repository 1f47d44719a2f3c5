"""What to compare with and torch.optim lacks: hypergradient descent and a polynomial average of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

__all__ = ["HypergradientSGD", "polynomial_average"]


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
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step on the gradients that are there."""
        (group,) = self.param_groups
        params = [p for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p]["direction"] = torch.zeros_like(p)
        directions = [self.state[p]["direction"] for p in params]
        products = torch._foreach_mul(grads, directions)
        group["lr"] += group["hyper_lr"] * torch.stack([product.sum() for product in products]).sum().item()
        torch._foreach_mul_(directions, group["momentum"])
        torch._foreach_add_(directions, grads)
        torch._foreach_add_(params, directions, alpha=-group["lr"])


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
