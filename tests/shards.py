"""What four processes do for test_torch_scale.py, and one process does for comparison.

A case is a function of a `Place`, which puts tensors where they belong: whole in one process, in shards in
several. Gradients are functions of single entries, so that they need no communication.
"""

import contextlib
import copy
import functools
import itertools
import warnings
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import state_dict as dsd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from processes import TIMEOUT
from rllc.memory import Adam, Deviation, MemoryRule, union
from rllc.torch import RLLC

MEMORY = "M(0.9) + M_2(0.6)"
STEPS = 10
MANY = 50  # of the plainest cases, which say how well processes agree
X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.sin(X[:, :1]) + X[:, 1:2] * X[:, 2:3]


class Place:
    """One process; the base of several."""

    rank, world = 0, 1

    def put(self, tensor, where):
        return nn.Parameter(tensor.clone())

    def rows(self, tensor):
        return tensor


class Meshes(Place):
    """Several processes: a mesh of one dimension and, of four processes, one of two."""

    def __init__(self):
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.meshes = {"line": init_device_mesh("cpu", (self.world,))}
        if self.world == 4:
            square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
            self.meshes |= {"square": square, "dp": square["dp"], "tp": square["tp"]}

    def put(self, tensor, where):
        if where is None:
            return nn.Parameter(tensor.clone())
        mesh, *placements = where
        return nn.Parameter(distribute_tensor(tensor.clone(), self.meshes[mesh], placements))

    def rows(self, tensor):
        return tensor[self.rank :: self.world]


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def ended(opt, params):
    """What can be compared: the law to the bit over processes, the rest as whole tensors."""
    params = [p.detach() for p in params]
    units = [kept for group in opt.param_groups for p in group["params"] if p in opt.state
             for name, kept in opt.state[p].items() if name[0] in "mh"]  # fmt: skip
    return {
        "law": opt.law,
        "faded": opt.param_groups[0]["faded"].clone(),
        "skipped": opt.skipped,
        "params": [whole(p).clone() for p in params],
        "units": [whole(u).clone() for u in units],
    }


# --- Cases ----------------------------------------------------------------------------------------


def made(place, wheres, dtype=torch.float64):
    """Parameters of shapes that no number of processes divides; one has fewer rows than processes."""
    generator = torch.Generator().manual_seed(0)
    shapes = (5, 6), (7,), (3, 4, 2), (1, 3)
    return [
        place.put(torch.randn(shapes[i % 4], generator=generator, dtype=torch.float64).to(dtype), where)
        for i, where in enumerate(wheres)
    ]


def pull(params, t):
    for i, p in enumerate(params):
        p.grad = torch.cos((1 + 0.1 * i) * p.detach() + 0.05 * t)


def steps(opt, params, count=STEPS, start=0):
    for t in range(start, start + count):
        pull(params, t)
        opt.step()
    return opt


def placed(wheres, count=STEPS, **options):
    """Steps of parameters placed like this, in two groups."""
    dtype = options.pop("dtype", torch.float64)

    def case(place):
        params = made(place, wheres, dtype)
        groups = [{"params": params[1:]}, {"params": params[:1], "law_lr": 0.02, "weight_decay": 0.1}]
        opt = RLLC(groups, **{"memory": MEMORY, "lr": 0.05, "law_lr": 0.01} | options)
        return ended(steps(opt, params, count), params)

    return case


def missing(place, **options):
    """Gradients that are missing on all processes: of one parameter, then of all."""
    params = made(place, LINE)
    opt = RLLC(params, **{"memory": MEMORY, "lr": 0.05, "law_lr": 0.01} | options)
    for t in range(STEPS):
        pull(params, t)
        if t % 3 == 1:
            params[t % 4].grad = None
        if t % 10 == 7:
            for p in params:
                p.grad = None
        opt.step()
    return ended(opt, params)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)


def learn(place, net, opt, count=STEPS):
    dtype = next(net.parameters()).dtype
    for _ in range(count):
        opt.zero_grad()
        ((net(place.rows(X.to(dtype))) - place.rows(Y.to(dtype))) ** 2).mean().backward()
        opt.step()


def fsdp_net(place, dtype=torch.float64):
    net = network(dtype)
    if place.world > 1:
        fully_shard(net, mesh=place.meshes["line"])
    return net


def data_parallel(place):
    net = network()
    if place.world > 1:
        net = nn.parallel.DistributedDataParallel(net)
    opt = RLLC(net.parameters(), MEMORY, 0.05, 0.02)
    learn(place, net, opt)
    return ended(opt, net.parameters())


def fsdp(place):
    net = fsdp_net(place)
    opt = RLLC(net.parameters(), MEMORY, 0.05, 0.02)
    learn(place, net, opt, MANY)
    return ended(opt, net.parameters())


def hsdp(place):
    net = network()
    if place.world > 1:
        fully_shard(net, mesh=place.meshes["square"])
    opt = RLLC(net.parameters(), MEMORY, 0.05, 0.02)
    learn(place, net, opt)
    return ended(opt, net.parameters())


class Norms(nn.Module):
    """Two matrices for tensor parallelism, a norm and a bias that stay whole."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.down(torch.tanh(self.up(self.norm(x))))


def tp_net(place, dp=True):
    torch.manual_seed(0)
    net = Norms().double()
    if place.world > 1:
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(net, place.meshes["tp" if dp else "line"], plan)
        if dp:
            fully_shard(net, mesh=place.meshes["dp"])
    return net


def tensor_parallel(place):
    """Beside it a norm of plain tensors; every process sees the whole batch."""
    net = tp_net(place, dp=False)
    opt = RLLC(net.parameters(), MEMORY, 0.05, 0.02)
    learn(Place(), net, opt)
    return ended(opt, net.parameters())


def fsdp_and_tensor_parallel(place):
    """The norm is on one dimension of the mesh, the matrices on both."""
    net = tp_net(place)
    opt = RLLC(net.parameters(), MEMORY, 0.05, 0.02)
    half = Place()
    if place.world > 1:
        half.rank, half.world = place.meshes["dp"].get_local_rank(), 2
        half.rows = lambda tensor: tensor[half.rank :: 2]
    learn(half, net, opt)
    return ended(opt, net.parameters())


LINE = [("line", Shard(0)), ("line", Shard(0)), ("line", Shard(1)), ("line", Shard(0))]
BESIDE = [("line", Shard(0)), ("line", Replicate()), None, ("line", Shard(1))]
SQUARE = [
    ("square", Shard(0), Shard(1)),
    ("square", Replicate(), Shard(0)),
    ("square", Shard(0), Shard(0)),
    ("square", Shard(1), Replicate()),
]
SEVERAL = [("square", Shard(0), Shard(1)), ("dp", Shard(0)), ("line", Shard(1)), None]
CROSSING = [("dp", Shard(0)), ("tp", Shard(0)), ("dp", Replicate()), None]

RULE = {"memory": union("M(0.9)", Adam(), Deviation()), "law": [0.1, 0.1, 0.0], "average": 9.0}

PLACEMENTS = {
    "all in shards": placed(LINE, MANY),
    "replicated and plain beside shards": placed(BESIDE),
    "DistributedDataParallel": data_parallel,
    "fully_shard": fsdp,
}
# Besides, two are asked for what is the same for any number, four for meshes of two dimensions.
CASES = {
    2: PLACEMENTS
    | {
        "on the device": placed(BESIDE, capturable=True),
        "float32": placed(BESIDE, dtype=torch.float32),
        "a law for each tensor, gradients missing": functools.partial(missing, scope="tensor"),
        "a memory rule": placed(BESIDE, **RULE),
        "tensor parallel": tensor_parallel,
        "one by one": placed(LINE, foreach=False),
        "foreach": placed(LINE, foreach=True),
        "all replicated": placed([("line", Replicate())] * 4),
        "maximize": placed(BESIDE, maximize=True, law_lr=torch.tensor(0.01)),
        "float32 units of bfloat16": placed(LINE, dtype=torch.bfloat16, memory_dtype=torch.float32),
        "gradients missing everywhere": missing,
        "a law for each tensor on the device, gradients missing": functools.partial(
            missing, scope="tensor", capturable=True
        ),
        "a law for each group": placed(BESIDE, scope="group"),
        "a memory rule on the device": placed(BESIDE, capturable=True, **RULE),
        "a memory rule, a law for each tensor": placed(LINE, scope="tensor", **RULE),
    },
    4: PLACEMENTS
    | {
        "two dimensions": placed(SQUARE),
        "two dimensions on the device": placed(SQUARE, capturable=True),
        "several meshes": placed(SEVERAL),
        "meshes that cross": placed(CROSSING),
        "a memory rule on several meshes": placed(SEVERAL, **RULE),
        "fully_shard with replicas": hsdp,
        "fully_shard and tensor parallel": fsdp_and_tensor_parallel,
    },
}

# --- What is asked of several processes only -------------------------------------------------------


@contextlib.contextmanager
def collectives():
    """A list that fills with the collectives made."""
    seen = []

    def counted(name):
        real = getattr(dist, name)
        return lambda *args, **kwargs: seen.append(name) or real(*args, **kwargs)

    names = ("all_gather", "all_reduce", "broadcast", "all_gather_into_tensor")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(dist, name, counted(name)))
        yield seen


def usual(params, **options):
    return RLLC(params, MEMORY, **{"lr": 0.05, "law_lr": 0.01} | options)


def how_many_collectives(place):
    def made_in_a_step(wheres):
        opt = steps(usual(params := made(place, wheres)), params, 1)
        pull(params, 1)
        with collectives() as seen:
            opt.step()
        return seen

    found = {
        "line": made_in_a_step(LINE),
        "beside": made_in_a_step(BESIDE),
        "plain": made_in_a_step([None] * 4),
    }
    if place.world == 4:
        found["square"] = made_in_a_step(SQUARE)
        found["dp"] = made_in_a_step([("dp", Shard(0)), None])
    return found


def units_are_placed_as_parameters(place):
    wheres = SQUARE if place.world == 4 else BESIDE
    found = {}
    for dtype in (None, torch.float32, torch.bfloat16):
        params = made(place, wheres, torch.float32)
        opt = steps(usual(params, memory_dtype=dtype), params, 1)
        found[str(dtype)] = all(
            (u.placements, u.device_mesh) == (p.placements, p.device_mesh)
            for p in params
            for u in opt.state[p].values()
            if isinstance(p, DTensor)
        )
    return found


def one_without_gradients(place):
    """The last process has a gradient of nothing in every other step, and an empty shard of one parameter."""
    params = made(place, LINE)
    opt = usual(params)
    for t in range(STEPS):
        pull(params, t)
        if t % 2 and place.rank == place.world - 1:
            for p in params:
                p.grad = None
        opt.step()
    return {"law": opt.law, "params": [p.detach().to_local() for p in params]}


def nobody_has_a_gradient(place):
    found = {}
    for capturable in (None, True):
        opt = steps(usual(params := made(place, BESIDE), capturable=capturable), params, 3)
        before = copy.deepcopy(ended(opt, params))
        for p in params:
            p.grad = None
        opt.step()
        found[str(capturable)] = before, ended(opt, params)
    return found


def faults(place):
    """A gradient that is not finite, or too large for memory, in one entry on one process."""
    values = {"nan": float("nan"), "inf": float("inf")}
    wheres = SEVERAL if place.world == 4 else BESIDE
    asked = [(which, name) for which in range(4) for name in values]
    found = {}
    for capturable in (None, True):
        params = made(place, wheres, torch.float32)
        opt = usual(params, capturable=capturable)
        for skipped, (which, name) in enumerate([*asked, (0, "too large")]):
            steps(opt, params, 1 if skipped else 3)
            assert opt.skipped == skipped
            mine = slice(0, int(place.rank == 0))
            if name == "too large":
                local(opt.state[params[which]]["m1"]).view(-1)[mine] = 3e38
            before = snapshot(opt, params)
            pull(params, 3)
            local(params[which].grad).view(-1)[mine] = values.get(name, 3e38)
            opt.step()
            found[capturable, which, name] = before, snapshot(opt, params)
    return found


class Sour(MemoryRule):
    """Not finite where a parameter is above 100."""

    def update(self, xp, g, units, hidden, param):
        return (xp.where(param > 100, xp.inf * g, g),), ()


def a_faulty_rule(place):
    """On one process a rule makes what is not finite: an error on all, before anything changes."""
    found = {}
    for capturable, place_of_it in itertools.product((None, True), range(4)):
        params = made(place, SEVERAL if place.world == 4 else BESIDE)
        opt = RLLC(params, Sour(), 0.05, 0.01, capturable=capturable)
        steps(opt, params, 2)
        with torch.no_grad():
            local(params[place_of_it]).view(-1)[: int(place.rank == 0)] = 1e3
        pull(params, 3)
        before = snapshot(opt, params)
        said = refusal(opt.step)
        found[capturable, place_of_it] = said, before, snapshot(opt, params)
    return found


def snapshot(opt, params):
    """All that a step changes, on this process."""
    kept = [opt.state[p] for p in params]
    units = [{name: local(unit).clone() for name, unit in units.items()} for units in kept]
    books = {"law": opt.law, "faded": opt.param_groups[0]["faded"].clone(), "skipped": opt.skipped}
    return books | {"params": [local(p).clone() for p in params], "units": units}


def local(tensor):
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor


def rounded(place):
    """Units in bfloat16 beside float32 parameters, all placed alike."""
    wheres = [("line", Shard(0)), ("line", Replicate()), None]
    if place.world == 4:
        wheres.append(("square", Replicate(), Shard(0)))
    shape = 8, 64
    params = [place.put(torch.zeros(shape), where) for where in wheres]
    opt = usual(params, memory_dtype=torch.bfloat16, seed=3)
    for _ in range(5):
        for p in params:
            p.grad = torch.full_like(p, 1.2345)
        opt.step()
    return {"law": opt.law, "units": [[local(u).clone() for u in opt.state[p].values()] for p in params]}


def refusal(attempt):
    try:
        attempt()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "accepted"


def empty(mesh, placements):
    return DTensor.from_local(torch.zeros(2, 2), mesh, placements, run_check=False)


def refusals(place):
    line = place.meshes["line"]
    found = {}

    partial = nn.Parameter(DTensor.from_local(torch.ones(3), line, [Partial()]))
    partial.grad = DTensor.from_local(torch.ones(3), line, [Partial()])
    found["partial"] = refusal(usual([partial]).step)

    params = made(place, LINE)
    state = steps(usual(params), params, 1).state_dict()
    whole_state = {"state": {i: {n: whole(u) for n, u in s.items()} for i, s in state["state"].items()},
                   "param_groups": state["param_groups"]}  # fmt: skip
    opt = usual(made(place, LINE))
    found["whole state"] = refusal(lambda: opt.load_state_dict(whole_state))
    found["nothing changed"] = str(opt.state_dict()["state"])

    if place.world == 2:
        compiled = usual(params := made(place, LINE), foreach=True)
        pull(params, 0)
        found["compiled"] = refusal(torch.compile(compiled.step, backend="eager"))
        early = usual(params := made(place, LINE), sums_in_backward=True)
        torch.stack([p.square().sum().full_tensor() for p in params]).sum().backward()
        found["early"] = refusal(early.step)
    else:
        half = DeviceMesh("cpu", [0, 1])
        apart = nn.Parameter(distribute_tensor(torch.ones(4), half, [Shard(0)]))
        apart.grad = torch.ones_like(apart)
        found["another mesh"] = refusal(usual([apart]).step) if place.rank > 1 else ""
        three = DeviceMesh("cpu", [0, 1, 2])
        square = place.meshes["square"]
        if place.rank < 3:
            wheres = (three, [Shard(0)]), (square, [Shard(0), Shard(1)])
            params = [nn.Parameter(empty(*where)) for where in wheres]
            found["overlapping"] = refusal(usual(params).step)
    return found


def partial_gradients(place):
    """What backward leaves as terms of a sum is added up before its sums are taken."""
    line = place.meshes["line"]
    p = nn.Parameter(distribute_tensor(torch.arange(6.0).double(), line, [Shard(0)]))
    q = nn.Parameter(torch.arange(6.0).double())
    opt, plain = usual([p]), usual([q])
    for t in range(5):
        terms = torch.cos(torch.arange(6.0).double() * (place.rank + 1) + t)
        p.grad = None
        p.grad = DTensor.from_local(terms, line, [Partial()])
        q.grad = sum(torch.cos(torch.arange(6.0).double() * (n + 1) + t) for n in range(place.world))
        before = p.grad.to_local().clone()
        opt.step(), plain.step()
        assert torch.equal(before, p.grad.to_local()) and p.grad.placements == (Partial(),)
    return {"law": opt.law, "want": plain.law, "params": p.detach().full_tensor(), "whole": q.detach()}


FACTS = {
    case.__name__: case
    for case in (
        how_many_collectives,
        units_are_placed_as_parameters,
        one_without_gradients,
        nobody_has_a_gradient,
        faults,
        a_faulty_rule,
        rounded,
        refusals,
        partial_gradients,
    )
}


# --- Checkpoints ----------------------------------------------------------------------------------


RESHARDED = {
    "nested": (False, {"memory": MEMORY}),
    "flattened, a memory rule": (True, RULE | {"scope": "tensor"}),
}


def resharded(place, folder, stage):
    """Ten steps from the last stage's checkpoint, then another one."""
    found = {}
    for name, (flat, memory) in RESHARDED.items():
        options = dsd.StateDictOptions(flatten_optimizer_state_dict=flat)
        net = fsdp_net(place)
        opt = RLLC(net.parameters(), lr=0.05, law_lr=0.02, memory_dtype=torch.float32, **memory)
        if stage:
            state = {"net": dsd.get_model_state_dict(net),
                     "opt": dsd.get_optimizer_state_dict(net, opt, options=options)}  # fmt: skip
            dcp.load(state, checkpoint_id=f"{folder}/{name}{stage - 1}")
            dsd.set_model_state_dict(net, state["net"])
            dsd.set_optimizer_state_dict(net, opt, state["opt"], options=options)
        else:
            opt.param_groups[0]["skipped"] += 3  # to be seen again
        learn(place, net, opt, 10)
        state = {"net": dsd.get_model_state_dict(net),
                 "opt": dsd.get_optimizer_state_dict(net, opt, options=options)}  # fmt: skip
        if place.world > 1:
            dcp.save(state, checkpoint_id=f"{folder}/{name}{stage}")
        found[name] = ended(opt, net.parameters()) | {"lr": opt.param_groups[0]["lr"]}
    return found


def whole_state(place):
    """A full state of the first process, through set_optimizer_state_dict, into other processes' shards."""
    net = fsdp_net(place, torch.float32)
    opt = RLLC(net.parameters(), MEMORY, 0.05, 0.02, memory_dtype=torch.bfloat16, seed=5)
    learn(place, net, opt, 5)
    options = dsd.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    nets, state = dsd.get_state_dict(net, opt, options=options)
    again = fsdp_net(place, torch.float32)
    other = RLLC(again.parameters(), MEMORY, 9.0, 9.0, memory_dtype=torch.bfloat16, seed=0)
    dsd.set_state_dict(again, other, model_state_dict=nets, optim_state_dict=state, options=options)
    learn(place, net, opt, 3), learn(place, again, other, 3)
    keep = "law", "faded", "skipped", "seed", "draws", "lr", "law_lr"
    return [ended(o, n.parameters()) | {name: o.param_groups[0][name] for name in keep}
            for o, n in ((opt, net), (other, again))]  # fmt: skip


def in_float8(place, folder, stage):
    """Units in float8: each stage takes over the last one's checkpoint, says what it got, and goes on."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(200, 37), nn.Linear(37, 3))  # rows that no number of processes divides
    mesh = place.meshes["line"]
    fully_shard(net, mesh=mesh)
    torch.manual_seed(0)
    across = nn.Parameter(distribute_tensor(torch.randn(64, 128), mesh, [Shard(1)]))
    opt = RLLC([*net.parameters(), across], "M(0.9) + M(0)", 0.01, 0.01, memory_dtype=torch.float8_e4m3fn)
    params = opt.param_groups[0]["params"]

    def go(steps):
        for _ in range(steps):
            for p in params:
                p.grad = torch.cos(p.detach() * 3)
            opt.step()

    def kept():
        units = {name: local(x).clone() for name, x in opt.state[params[0]].items()}
        return {"law": opt.law, "units": units, "across": opt.state[across]["m1"].dtype}

    go(1)
    if stage:
        state = {"opt": dict(enumerate(opt.state[p] for p in params))}
        dcp.load(state, checkpoint_id=f"{folder}/float8{stage - 1}")
        for p, own in zip(params, state["opt"].values(), strict=True):
            opt.state[p].update(own)
    found = {"got": kept()}
    go(3)
    dcp.save({"opt": dict(enumerate(opt.state[p] for p in params))}, checkpoint_id=f"{folder}/float8{stage}")
    return found | {"left": kept()}


# --- Processes ------------------------------------------------------------------------------------


def process(rank, folder):
    """Four processes, then two of them, then four again."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for phase, world in enumerate((4, 2, 4)):
        if rank < world:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/store{phase}",
                rank=rank,
                world_size=world,
                timeout=TIMEOUT,
            )
            torch.save(answers(phase, folder), f"{folder}/{phase}-{rank}.pt")
            dist.barrier()
            dist.destroy_process_group()


def answers(phase, folder):
    place = Meshes()
    stages = resharded, in_float8
    asked = {case.__name__: functools.partial(case, folder=folder, stage=phase) for case in stages}
    if phase < 2:
        asked |= CASES[place.world] | FACTS
    if place.world == 2:
        asked["whole_state"] = whole_state
    return {name: case(place) for name, case in asked.items()}
