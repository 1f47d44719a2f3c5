"""A small network of torch, how it is trained, and what of it and its optimizer can be compared."""

import torch
from torch import nn

from rllc.torch import RLLC
from same import same

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
Y = torch.sin(X[:, :1]) + X[:, 1:2] * X[:, 2:3]


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def train(net, opt, steps=10, scheduler=None):
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        opt.zero_grad()
        loss = ((net(X.to(dtype)) - Y.to(dtype)) ** 2).mean()
        loss.backward()
        opt.step()
        if scheduler:
            scheduler.step()
    return loss.item()


def snapshot(net, opt):
    state = [v.clone() for p in net.parameters() for v in opt.state[p].values()]
    return [p.detach().clone() for p in net.parameters()], state, opt.law


WAYS = {"foreach": {"foreach": True}, "one by one": {"foreach": False}, "fused": {"fused": True}}


def rllc(net, memory="M(0.9) + M(0)", **options):
    return RLLC(net.parameters(), memory, **{"lr": 0.05, "law_lr": 0.02} | options)


def assert_skips_whole(net, opt, value):
    """A gradient of that value changes nothing but the count, and the next step is an ordinary one."""
    train(net, opt, 3)
    before = snapshot(net, opt)
    net[2].bias.grad.fill_(value)
    opt.step()
    same(snapshot(net, opt), before)
    assert opt.skipped == 1
    train(net, opt, 1)
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert opt.skipped == 1
