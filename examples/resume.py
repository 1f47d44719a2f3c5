"""A training loop that may be killed at any moment and goes on to the bit where its last checkpoint is.

    python examples/resume.py FILE [STEPS]

The file has network, optimizer and the generator of the batches. It is written beside its place, flushed to
disk and renamed, so that there is always a whole one; the state loads with weights_only=True.
"""

import os
import sys
from pathlib import Path

import torch
from torch import nn

from rllc.torch import RLLC


def save(path: Path, state: dict) -> None:
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def main(path: Path, steps: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    opt = RLLC(net.parameters(), "M(0.9) + M_2(0.6)", lr=0.03, law_lr=0.01)
    batches, done = torch.Generator().manual_seed(1), 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        net.load_state_dict(saved["net"])
        opt.load_state_dict(saved["opt"])
        batches.set_state(saved["batches"])
        done = saved["done"]
        print(f"resumed after step {done}", flush=True)

    for step in range(done + 1, steps + 1):
        x = torch.randn(32, 8, generator=batches)
        opt.zero_grad()
        loss = (net(x) - torch.sin(x.sum(1, keepdim=True))).square().mean()
        loss.backward()
        opt.step()
        save(
            path,
            {"net": net.state_dict(), "opt": opt.state_dict(), "batches": batches.get_state(), "done": step},
        )
        print(f"step {step}, loss {loss:.4f}, law {opt.law.tolist()}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
