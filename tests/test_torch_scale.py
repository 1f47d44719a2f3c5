"""Parameters in shards on two and on four processes against the same in one; their checkpoints."""

import pytest
import torch

import processes
import shards
from rllc.torch import RLLC
from rllc.torch import shards as rllc_shards
from same import same
from shards import CASES, MEMORY, Place

WORLDS = {4: 0, 2: 1}  # and the phase of `shards.process` that has so many


@pytest.fixture(scope="module")
def alone():
    """What one process makes of each case."""
    return {name: case(Place()) for cases in CASES.values() for name, case in cases.items()}


@pytest.fixture(scope="module")
def answers(alone, tmp_path_factory):
    """answers(phase, name): what each process answered.

    They find their kernels compiled: those of all cases, and of units in bfloat16.
    """
    shards.rounded(Place())
    folder = tmp_path_factory.mktemp("processes")
    processes.run(shards.process, 4, str(folder))
    found = [
        [torch.load(folder / f"{phase}-{rank}.pt", weights_only=False) for rank in range(world)]
        for phase, world in enumerate((4, 2, 4))
    ]

    return lambda phase, name: [answer[name] for answer in found[phase]]


@pytest.fixture(params=WORLDS, ids=lambda world: f"{world} processes")
def world(request):
    return request.param


def assert_equals_one_process(got, want, single):
    """float64 to rounding; what is computed in float32 to a few units in the last place."""
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if single else {"rtol": 1e-11, "atol": 1e-11}
    assert got["skipped"] == want["skipped"] == 0
    torch.testing.assert_close(got["law"], want["law"], **tolerance)
    torch.testing.assert_close(
        [*got["params"], *got["units"]], [*want["params"], *want["units"]], **tolerance
    )
    same(got["faded"], want["faded"])


@pytest.mark.parametrize(("world", "name"), [(n, name) for n in WORLDS for name in CASES[n]])
def test_equals_one_process(alone, answers, world, name):
    given, want = answers(WORLDS[world], name), alone[name]
    for answer in given[1:]:
        same(answer, given[0])  # the law, too, to the bit
    assert (want["law"] - 1).abs().max() > 0.05
    assert_equals_one_process(given[0], want, "float32" in name)


def test_one_communication_a_step(answers, world):
    for made in answers(WORLDS[world], "how_many_collectives"):
        assert made.pop("plain") == []  # DistributedDataParallel has nothing to add
        assert len(made) == (4 if world == 4 else 2)
        assert all(len(names) == 1 for names in made.values())


def test_units_inherit_the_placement_of_their_parameter(answers, world):
    for placed in answers(WORLDS[world], "units_are_placed_as_parameters"):
        assert placed == {"None": True, "torch.float32": True, "torch.bfloat16": True}


def test_a_process_without_gradients_joins_in(answers, world):
    """In one process: each shard a parameter of its own, those of the last process without gradients."""
    given = answers(WORLDS[world], "one_without_gradients")
    start = [p.detach() for p in shards.made(Place(), shards.LINE)]
    cuts = [p.chunk(world, dim) for p, dim in zip(start, (0, 0, 1, 0), strict=True)]
    parts = [[torch.nn.Parameter(t.clone()) for t in cut] for cut in cuts]
    opt = RLLC([t for cut in parts for t in cut], MEMORY, 0.05, 0.01)
    for t in range(shards.STEPS):
        for rank in range(world):
            own = [cut[rank] if rank < len(cut) else torch.nn.Parameter(torch.zeros(0)) for cut in parts]
            shards.pull(own, t)
            if t % 2 and rank == world - 1:
                for q in own:
                    q.grad = None
        opt.step()
    for rank, answer in enumerate(given):
        torch.testing.assert_close(answer["law"], opt.law, rtol=1e-11, atol=0)
        same(answer["law"], given[0]["law"])
        for cut, got in zip(parts, answer["params"], strict=True):
            if rank < len(cut):
                torch.testing.assert_close(got, cut[rank].detach(), rtol=1e-11, atol=1e-12)
            else:
                assert got.numel() == 0


def test_without_a_gradient_anywhere_it_is_no_step(answers, world):
    for answer in answers(WORLDS[world], "nobody_has_a_gradient"):
        for before, after in answer.values():
            same(after, before)


def test_a_fault_on_one_process_skips_the_step_on_all(answers, world):
    for answer in answers(WORLDS[world], "faults"):
        assert len(answer) == 2 * 9
        for before, after in answer.values():
            assert after.pop("skipped") == before.pop("skipped") + 1
            same(after, before)


def test_what_a_rule_makes_on_one_process_is_an_error_on_all(answers, world):
    for rank, answer in enumerate(answers(WORLDS[world], "a_faulty_rule")):
        for (capturable, _), (said, before, after) in answer.items():
            if capturable:
                assert (said, before.pop("skipped"), after.pop("skipped")) == ("accepted", 0, 1)
            else:
                assert ("Sour made unit 1 of parameter" in said) or (rank and "another process" in said)
            same(after, before)


def test_stochastic_rounding_is_alike_on_copies_and_not_on_shards(answers, world):
    given = answers(WORLDS[world], "rounded")
    shard, replica, plain, *square = zip(*(answer["units"] for answer in given), strict=True)
    same([answer["law"] for answer in given], [given[0]["law"]] * world)
    for copies in (replica, plain):
        same(copies, copies[:1] * world)
    for other in shard[1:]:
        assert not torch.equal(shard[0][0], other[0])
        means = [units[0].float().mean().item() for units in (shard[0], other)]
        assert means[0] == pytest.approx(means[1], rel=1e-3)
    for units in square:  # Replicate, then Shard: processes 0 and 2 have the same
        same((units[0], units[1]), (units[2], units[3]))
        assert not torch.equal(units[0][0], units[1][0])


def test_gradients_that_are_terms_of_a_sum_are_added_up(answers, world):
    for answer in answers(WORLDS[world], "partial_gradients"):
        torch.testing.assert_close(answer["law"], answer["want"], rtol=1e-12, atol=0)
        torch.testing.assert_close(answer["params"], answer["whole"], rtol=1e-12, atol=0)


def test_refusals(answers, world):
    for rank, said in enumerate(answers(WORLDS[world], "refusals")):
        assert "(Partial(sum),)" in said["partial"] and "redistribute it" in said["partial"]
        assert "memory placed as whole for a parameter placed as (DeviceMesh" in said["whole state"]
        assert said["nothing changed"] == "{}"
        if world == 2:
            assert "RLLC does not take parameters in shards (DTensor) under torch.compile" in said["compiled"]
            assert "gradients are averaged over processes" in said["early"]
        else:
            assert f"of which process {rank} is no part" in said["another mesh"] or rank < 2
            assert "parameters are on meshes that overlap" in said.get("overlapping", "") or rank == 3


# --- Checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shards.RESHARDED)
def test_a_checkpoint_goes_from_four_processes_to_two_and_back(answers, name):
    """Ten steps in four processes, ten in two, ten in four: thirty in one, skipped steps and rates kept."""
    net = shards.fsdp_net(Place())
    _, memory = shards.RESHARDED[name]
    opt = RLLC(net.parameters(), lr=0.05, law_lr=0.02, memory_dtype=torch.float32, **memory)
    for phase in range(3):
        shards.learn(Place(), net, opt, 10)
        want = shards.ended(opt, net.parameters())
        for answer in answers(phase, "resharded"):
            got = answer[name]
            assert (got["skipped"], got["lr"]) == (3, 0.05)
            torch.testing.assert_close(got["law"], want["law"], rtol=1e-6, atol=0)
            torch.testing.assert_close(got["params"], want["params"], rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(got["units"], want["units"], rtol=1e-5, atol=1e-6)


def test_units_in_float8_go_over_shards_and_to_other_numbers_of_processes(answers):
    for phase, world in enumerate((4, 2, 4)):
        given = answers(phase, "in_float8")
        assert {answer["left"]["across"] for answer in given} == {torch.float32}  # its rows are cut
        same([answer["left"]["law"] for answer in given], [given[0]["left"]["law"]] * world)
        units = given[0]["left"]["units"]
        assert {name: x.dtype for name, x in units.items()} == {
            "m1": torch.float8_e4m3fn,
            "m2": torch.float8_e4m3fn,
            "h1": torch.float32,
            "h2": torch.float32,
        }
        for name in units if phase else ():
            got, left = (
                torch.cat([answer[when]["units"][name].float() for answer in answers(at, "in_float8")])
                for when, at in (("got", phase), ("left", phase - 1))
            )
            assert got.shape[0] == 37
            same(got, left)


def test_a_full_state_is_taken_over_to_the_bit(answers):
    """From the first process, into an optimizer with other rates and another seed: all books, and on."""
    for first, second in answers(WORLDS[2], "whole_state"):
        assert first["seed"] == 5 and first["draws"] >= 8
        assert (second["lr"], second["law_lr"]) == (0.05, 0.02)
        same(second, first)


def test_parameters_added_later_are_looked_for_anew(monkeypatch):
    first, second = torch.zeros(2), torch.zeros(3)
    groups = [{"params": [first]}]
    monkeypatch.setattr(rllc_shards, "several", lambda: True)
    monkeypatch.setattr(rllc_shards, "spread", lambda params: rllc_shards.Spread(params, [], [], "cpu"))
    before = rllc_shards.renewed(None, groups)
    assert rllc_shards.renewed(before, groups) is before
    groups.append({"params": [second]})
    assert [*map(len, rllc_shards.renewed(before, groups).params)] == [2, 3]
    assert [*map(len, rllc_shards.renewed(before, groups[1:]).params)] == [3]
