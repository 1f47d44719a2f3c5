"""RLLC under DistributedDataParallel: two processes on this machine, each with half of every batch.

    python examples/ddp.py

On several machines start it with torchrun instead and take rank and world size from the environment, as for
any other optimizer. Gradients are averaged before the step, so every process learns the same law.
"""

import tempfile

import torch
from torch import distributed, multiprocessing, nn

from rllc.torch import RLLC

WORLD = 2


def train(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    net = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)))
    opt = RLLC(net.parameters(), "M(0.9) + M(0)", lr=0.03, law_lr=0.01)
    x = torch.randn(256, 8)
    y = torch.sin(x.sum(1, keepdim=True) / 3)

    losses = []
    for _ in range(40):
        opt.zero_grad()
        loss = (net(x[rank::WORLD]) - y[rank::WORLD]).square().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())

    laws = [torch.empty_like(opt.law) for _ in range(WORLD)]
    distributed.all_gather(laws, opt.law)
    assert all(torch.equal(law, opt.law) for law in laws)
    if rank == 0:
        print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, law {opt.law.tolist()}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(train, (folder,), nprocs=WORLD)
