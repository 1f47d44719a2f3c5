"""RLLC in an Accelerate loop: prepared like any other optimizer, with gradient accumulation.

python examples/with_accelerate.py        or: accelerate launch examples/with_accelerate.py
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rllc.torch import RLLC


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    data = TensorDataset(x, torch.sin(x.sum(1, keepdim=True)))
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    rllc = RLLC(net.parameters(), "M(0.9) + M(0)", lr=0.03, law_lr=0.01)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net, opt, batches = accelerator.prepare(net, rllc, DataLoader(data, batch_size=32))

    losses = []
    for _ in range(10):
        for inputs, targets in batches:
            with accelerator.accumulate(net):
                loss = (net(inputs) - targets).square().mean()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(net.parameters(), 1.0)
                opt.step()
                opt.zero_grad()
            losses.append(loss.item())
    accelerator.print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, law {rllc.law.tolist()}")


if __name__ == "__main__":
    main()
