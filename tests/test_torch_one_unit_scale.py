"""RLLCAdamW and RLLC.around with parameters in shards on two processes, against one; their checkpoints."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn, optim
from torch.distributed.checkpoint import state_dict as dsd
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

import processes
from rllc.torch import RLLC, RLLCAdamW
from rllc.torch.around import Around
from same import same

STEPS = 30
# (shape, placement): 5 rows are shards of 3 and 2, the single row is on one process only.
PLACED = (((5, 3), Shard(0)), ((1, 4), Shard(0)), ((2, 2), Replicate()), ((3,), None))
OPTIMIZERS = {
    "kernels": lambda params: RLLCAdamW(params, lr=0.02, law_lr=0.05, weight_decay=0.1),
    "foreach": lambda params: RLLCAdamW(params, lr=0.02, law_lr=0.05, foreach=True),
    "around Adam": lambda params: Around(optim.Adam(params, 0.02), 0.05, average=9.0),
    "around SGD": lambda params: Around(optim.SGD(params, 0.02, 0.9), 0.05, average=9.0),
    "around Adadelta": lambda params: Around(optim.Adadelta(params, 1.0), 0.05),
}


def made(mesh):
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape, placement in PLACED:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        if mesh and placement:
            tensor = distribute_tensor(tensor, mesh, [placement])
        params.append(nn.Parameter(tensor))
    return params


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def trained(make, mesh=None):
    """The law after each step and what is left in the end; a NaN in one entry of one shard at step 7."""
    params = made(mesh)
    opt, laws = make(params), []
    for t in range(STEPS):
        for p in params:
            p.grad = None if t == 4 and p is params[1] else torch.cos(p.detach() * (t + 1)) + p.detach()
        if t == 7 and (mesh is None or dist.get_rank() == 1):
            here = params[0].grad
            (here.to_local() if mesh else here)[-1, 0] = torch.nan
        opt.step()
        laws.append(opt.law)
    found = {"laws": torch.cat(laws), "skipped": opt.skipped, "end": [whole(p.detach()) for p in params]}
    if "average" in opt.param_groups[0]:
        with opt.averaged():
            found["average"] = [whole(p.detach()) for p in params]
    return found


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def learn(net, opt, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 4, generator=generator)
        opt.zero_grad()
        net(x).square().mean().backward()
        opt.step()


def plain(state):
    """A state with whole tensors."""
    if isinstance(state, torch.Tensor):
        return whole(state.detach())
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return [plain(value) for value in state] if isinstance(state, list | tuple) else state


def resumed(mesh, folder, name, evaluating):
    """The states of an optimizer that went on and of one that was resumed from what it saved."""

    def fresh():
        net = fully_shard(network(), mesh=mesh)
        make = {
            "adamw": lambda: RLLCAdamW(net.parameters(), lr=0.02, law_lr=0.05, buffers=net.buffers()),
            "around": lambda: Around(
                optim.Adam(net.parameters(), 0.02), 0.05, average=9.0, buffers=net.buffers()
            ),
        }[name]
        return net, make()

    net, opt = fresh()
    learn(net, opt, 6, 1)
    if evaluating:
        opt.eval()
    state = {"net": dsd.get_model_state_dict(net), "opt": dsd.get_optimizer_state_dict(net, opt)}
    where = f"{folder}/{name}{evaluating}"
    dcp.save(state, checkpoint_id=where)
    again, other = fresh()
    if evaluating:  # whose state has the places for the training weights
        learn(again, other, 1, 3)
        other.eval()
    state = {"net": dsd.get_model_state_dict(again), "opt": dsd.get_optimizer_state_dict(again, other)}
    dcp.load(state, checkpoint_id=where)
    dsd.set_model_state_dict(again, state["net"])
    dsd.set_optimizer_state_dict(again, other, state["opt"])
    for n, o in ((net, opt), (again, other)):
        o.train()
        learn(n, o, 4, 2)
    return [plain((n.state_dict(), o.state_dict())) for n, o in ((net, opt), (again, other))]


def evaluated(mesh=None):
    """Losses of the net and at its averages, with a pass without gradient at these after every step."""
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    if mesh:
        fully_shard(net, mesh=mesh)
    opt = RLLCAdamW(net.parameters(), lr=0.1, law=1.0, buffers=net)
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(10):
        opt.zero_grad()
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        opt.step()
        with torch.no_grad(), opt.averaged():
            at_the_average = (net(x) - x.sum(1, keepdim=True)).square().mean()
        losses += [loss.item(), at_the_average.item()]
    return losses


def said_by(error, function):
    """What is said by the error of this type that it raises."""
    with pytest.raises(error) as caught:
        function()
    return str(caught.value)


def refusals(mesh):
    """What is said of evaluation without the net, and what of what is refused."""

    def fresh():
        net = fully_shard(nn.Linear(4, 4), mesh=mesh)
        return net, RLLCAdamW(net.parameters())

    net, opt = fresh()
    learn(net, opt, 1, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.eval()
    options = dsd.StateDictOptions(full_state_dict=True)
    state = dsd.get_optimizer_state_dict(net, opt, options=options)
    old = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"), use_orig_params=True)
    zero = ZeroRedundancyOptimizer(nn.Linear(4, 4).parameters(), optim.SGD, lr=0.1)
    return [str(w.message) for w in caught], [
        said_by(ValueError, lambda: dsd.set_optimizer_state_dict(*fresh(), state, options=options)),
        said_by(RuntimeError, lambda: learn(old, RLLCAdamW(old.parameters()), 1, 0)),
        said_by(ValueError, lambda: RLLC.around(zero, law_lr=0.01)),
    ]


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(f"{folder}/store", 2),
        rank=rank,
        world_size=2,
        timeout=processes.TIMEOUT,
    )
    mesh = init_device_mesh("cpu", (2,))
    found = {name: trained(make, mesh) for name, make in OPTIMIZERS.items()}
    for name in ("adamw", "around"):
        for evaluating in (False, True):
            found[name, evaluating] = resumed(mesh, folder, name, evaluating)
    found["evaluated"], found["refusals"] = evaluated(mesh), refusals(mesh)
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    processes.run(process, 2, str(folder))
    return [torch.load(folder / str(rank)) for rank in range(2)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shards_are_one_optimizer(done, name):
    first, second = (found[name] for found in done)
    same(first, second)
    alone = trained(OPTIMIZERS[name])
    assert first["skipped"] == alone["skipped"] == 1
    for key in set(alone) - {"skipped"}:
        torch.testing.assert_close(first[key], alone[key], rtol=1e-10, atol=1e-12)
    assert abs(float(alone["laws"][-1]) - 1) > 1e-3


@pytest.mark.parametrize("name", ["adamw", "around"])
@pytest.mark.parametrize("evaluating", [False, True])
def test_a_distributed_checkpoint_goes_on_to_the_bit(done, name, evaluating):
    for found in done:
        went_on, resumed = found[name, evaluating]
        same(resumed, went_on)


def test_averages_are_what_a_sharded_net_is_evaluated_at(done):
    """FSDP2 keeps whole copies after a pass without gradient: it had trained on at the averages."""
    for found in done:
        torch.testing.assert_close(found["evaluated"], evaluated(), rtol=1e-5, atol=1e-7)


def test_what_cannot_be_seen_to_is_said(done):
    for found in done:
        warned, (refused, first_fsdp, zero) = found["refusals"]
        assert any("buffers=net" in message and "net.reshard()" in message for message in warned)
        assert refused.startswith("the saved state has memory placed as whole")
        assert refused.endswith("save it after opt.train()")
        assert "FullyShardedDataParallel" in first_fsdp and "ZeroRedundancyOptimizer" in zero
        assert "fully_shard" in first_fsdp and "fully_shard" in zero
