"""RLLC as an entry of torch's own catalogue of optimizers, under the checks torch makes of its entries.

The catalogue, torch.testing._internal.common_optimizers, comes with torch; the checks, test/test_optim.py, do
not, and are made anew here as far as test_torch.py does not make them already. They run on every kind of
device there is, with every implementation of every configuration.
"""

import copy
import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")

from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    TensorTracker,
    _get_optim_inputs_including_global_cliquey_kwargs,
    get_error_inputs_for_all_optims,
    optims,
)
from torch.testing._internal.common_utils import TestCase

from rllc.torch import RLLC, Ridge

# Importing torch's test utilities forbids the whole process to set flags such as cudnn.deterministic.
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

USUAL = {"memory": "M(0.9) + M(0)", "lr": 1e-3, "law_lr": 1e-3}
CONFIGURATIONS = {
    "default": {},
    "one unit": {"memory": "M(0.9)"},
    "a chain beside a unit": {"memory": "M(0.9) + M_2(0.6)"},
    "complex eigenvalues": {"memory": "CM(0.3+0.4i)"},
    "non-default lr": {"lr": 1e-2},
    "tensor rates": {"lr": torch.tensor(1e-3), "law_lr": torch.tensor(1e-3)},
    "fixed law": {"law_lr": 0.0, "law": (0.9, 1.0)},
    "non-zero weight_decay": {"weight_decay": 0.5},
    "maximize": {"weight_decay": 0.1, "maximize": True},
    "another inverse, no guard": {"inverse": Ridge(1e-3), "guard": False},
}


def inputs(device, dtype=None):
    return [OptimizerInput(None, USUAL | options, desc) for desc, options in CONFIGURATIONS.items()]


INFO = OptimizerInfo(
    RLLC,
    optim_inputs_func=inputs,
    optim_error_inputs_func=get_error_inputs_for_all_optims,
    scheduler_inputs=(
        [lambda opt: lr_scheduler.StepLR(opt, gamma=0.9, step_size=10)],
        [lambda opt: lr_scheduler.ReduceLROnPlateau(opt)],
        [lambda opt: lr_scheduler.LinearLR(opt), lambda opt: lr_scheduler.ExponentialLR(opt, 0.99)],
    ),
    supported_impls=("foreach", "fused"),
    supports_fused_on=("cpu", "cuda"),
    has_capturable_arg=True,
    # Arguments that states saved by version 0.1 do not have.
    not_og_supported_flags=("fused", "capturable"),
)


def every_input(device, dtype=None):
    """Each configuration with each implementation."""
    return _get_optim_inputs_including_global_cliquey_kwargs(device, dtype, INFO)


def weights(device, dtype=torch.float32, strided=False):
    """A matrix, a bias and an input for the loss (W x + b)²."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((10, 5, 2), (10, 2), (5,)) if strided else ((10, 5), (10,), (5,))
    W, b, x = (torch.randn(shape, generator=generator, dtype=dtype).to(device) for shape in shapes)
    W, b = (t[..., 0] if strided else t for t in (W, b))
    return nn.Parameter(W), nn.Parameter(b), x


def differentiate(opt, W, b, x):
    opt.zero_grad()
    loss = (W.mv(x) + b).square().sum()
    loss.backward()
    return loss


def train(opt, W, b, x, steps=5):
    for _ in range(steps):
        opt.step(lambda: differentiate(opt, W, b, x))
    return opt


def fresh(options):
    """A copy, because a tensor rate is changed in place by schedulers."""
    return copy.deepcopy(options)


def with_first_group(state, **changes):
    """A state dict whose first group says something else."""
    first, *rest = state["param_groups"]
    return state | {"param_groups": [first | changes, *rest]}


class TestRLLC(TestCase):
    """For each kind of device there is a class of these, as for torch's own optimizers."""

    @optims([INFO])
    def test_what_no_optimizer_takes_is_refused(self, device, dtype, optim_info):
        for error in optim_info.optim_error_inputs_func(device, dtype):
            assert error.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
            given = error.optimizer_error_input
            params = [nn.Parameter(torch.ones(1))] if given.params is None else given.params
            ours = {"Tensor lr must be 1-element": "lr must have one entry"}
            text = ours.get(error.error_regex, error.error_regex)
            check = self.assertWarnsRegex if issubclass(error.error_type, Warning) else self.assertRaisesRegex
            with check(error.error_type, text):
                RLLC(params, **USUAL | given.kwargs)

    @optims([INFO])
    def test_every_implementation_goes_the_right_direction(self, device, dtype, optim_info):
        """With strided parameters and contiguous ones, those under no scheduler and under several."""
        kinds = (True, ()), *((False, schedulers) for schedulers in ((), *optim_info.scheduler_inputs))
        for given, (strided, schedulers) in itertools.product(every_input(device), kinds):
            W, b, x = weights(device, dtype, strided)
            opt = RLLC([W, b], **fresh(given.kwargs))
            made = [make(opt) for make in schedulers]
            first = differentiate(opt, W, b, x).item()
            for _ in range(20):
                train(opt, W, b, x, 1)
                loss = differentiate(opt, W, b, x).item()
                for scheduler in made:
                    scheduler.step(*[loss] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
            assert (loss > first) if given.kwargs.get("maximize") else (loss < first), given.desc

    @optims([INFO])
    def test_groups_with_rates_of_their_own_go_the_right_direction(self, device, dtype, optim_info):
        for given in every_input(device):
            W, b, x = weights(device, dtype)
            opt = RLLC([{"params": [W]}, {"params": [b], "lr": 2e-3, "law_lr": 0.0}], **fresh(given.kwargs))
            scheduler = lr_scheduler.StepLR(opt, step_size=5, gamma=0.5)
            first = differentiate(opt, W, b, x).item()
            for _ in range(10):
                train(opt, W, b, x, 1)
                scheduler.step()
            rates = [float(group["lr"]) for group in opt.param_groups]
            assert rates == pytest.approx([float(given.kwargs["lr"]) / 4, 2e-3 / 4])
            last = differentiate(opt, W, b, x).item()
            assert (last > first) if given.kwargs.get("maximize") else (last < first), given.desc

    @optims([INFO], dtypes=[torch.float32, torch.float64, torch.bfloat16])
    def test_implementations_match_the_for_loop(self, device, dtype, optim_info):
        """Step by step, each from the for-loop's parameters and memory: what remains is rounding."""
        eps = torch.finfo(dtype).eps
        for given, name in itertools.product(inputs(device), optim_info.supported_impls):
            tracker = TensorTracker({"rtol": 10 * eps, "atol": 10 * eps})
            for implementation in (False, True):
                flags = {other: False for other in optim_info.supported_impls} | {name: implementation}
                self._steps_beside(tracker, given.kwargs | flags, implementation, device, dtype)
            assert tracker.all_popped()

    def _steps_beside(self, tracker, options, compare, device, dtype):
        """Steps with made-up gradients; note all tensors, or compare them with those noted before."""
        generator = torch.Generator().manual_seed(0)
        shapes = (10, 5), (10,), (), (0, 3), (3, 4, 2)
        params = [nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for s in shapes]
        without = nn.Parameter(torch.ones(3, device=device, dtype=dtype))
        opt = RLLC([*params, without], **fresh(options))
        for step in range(7):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(device, dtype)
            if step == 3:
                params[0].grad = None
            opt.step()
            for p in params:
                for tensor in (p.detach(), *self._memory_of(opt, p)):
                    if compare:
                        tracker.pop_check_set(tensor, self)
                    else:
                        tracker.add(tensor)
        assert torch.equal(without, torch.ones_like(without))

    def _memory_of(self, opt, p):
        return [opt.state[p][f"m{j + 1}"] for j in range(opt.propagator.k)]

    @optims([INFO])
    def test_a_step_of_zero_gradients_is_none(self, device, dtype, optim_info):
        for given in every_input(device):
            if given.kwargs.get("weight_decay"):
                continue
            W, b, x = weights(device, dtype)
            opt = RLLC([W, b], **fresh(given.kwargs))
            before = [p.detach().clone() for p in (W, b)]
            differentiate(opt, W, b, x)
            opt.zero_grad(set_to_none=False)
            for _ in range(3):
                opt.step()
            assert [torch.equal(p, q) for p, q in zip((W, b), before, strict=True)] == [True, True]

    @optims([INFO])
    def test_a_tensor_rate_of_any_one_element_shape_is_its_number(self, device, dtype, optim_info):
        for given, shape in itertools.product(every_input(device), ((), (1,))):
            given = {name: value for name, value in given.kwargs.items() if name not in ("lr", "law_lr")}
            results = []
            for rates in ((1e-3, 2e-3), (torch.full(shape, 1e-3), torch.full(shape, 2e-3))):
                W, b, x = weights(device, dtype)
                train(RLLC([W, b], lr=rates[0], law_lr=rates[1], **given), W, b, x)
                results.append((W.detach(), b.detach()))
            torch.testing.assert_close(*results)

    @optims([INFO])
    def test_older_states_load(self, device, dtype, optim_info):
        for given, flag in itertools.product(every_input(device), optim_info.not_og_supported_flags):
            W, b, x = weights(device, dtype)
            opt = train(RLLC([W, b], **fresh(given.kwargs)), W, b, x)
            state = copy.deepcopy(opt.state_dict())
            for group in state["param_groups"]:
                del group[flag]
            opt.load_state_dict(state)
            train(opt, W, b, x, 1)

    @optims([INFO])
    def test_states_with_and_without_names_load_into_each_other(self, device, dtype, optim_info):
        W, b, x = weights(device, dtype)
        kinds = [W, b], [("weight", W), ("bias", b)]
        for given, (one, other) in itertools.product(every_input(device), itertools.permutations(kinds)):
            saved = train(RLLC(one, **fresh(given.kwargs)), W, b, x).state_dict()
            opt = RLLC(other, **fresh(given.kwargs))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about names that are there on one side only
                opt.load_state_dict(copy.deepcopy(saved))
            self.assertEqual(opt.state_dict()["state"], saved["state"])
            train(opt, W, b, x, 1)

    @optims([INFO])
    def test_every_parameter_has_memory_of_its_own_kind_after_a_step(self, device, dtype, optim_info):
        for given in every_input(device):
            W, b, x = weights(device, dtype, strided=True)
            opt = train(RLLC([W, b], **fresh(given.kwargs)), W, b, x, 1)
            for p in (W, b):
                units = self._memory_of(opt, p)
                assert [(u.shape, u.dtype, u.device) for u in units] == [(p.shape, p.dtype, p.device)] * (
                    opt.propagator.k
                )

    @optims([INFO])
    def test_hooks_see_and_change_what_they_should(self, device, dtype, optim_info):
        W, b, x = weights(device, dtype)
        opt, seen = RLLC([W, b], **USUAL), []
        opt.register_step_pre_hook(lambda *_: seen.append("own before"))
        opt.register_step_post_hook(lambda *_: seen.append("own after"))
        handles = [
            register_optimizer_step_pre_hook(lambda *_: seen.append("all before")),
            register_optimizer_step_post_hook(lambda *_: seen.append("all after")),
        ]
        try:
            train(opt, W, b, x, 1)
        finally:
            for handle in handles:
                handle.remove()
        assert seen == ["all before", "own before", "own after", "all after"]
        opt.register_state_dict_post_hook(lambda _, state: state | {"note": 1})
        assert opt.state_dict()["note"] == 1

        opt.register_load_state_dict_pre_hook(lambda _, state: with_first_group(state, lr=0.5))
        opt.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
        opt.load_state_dict(opt.state_dict())
        assert (seen[-1], opt.param_groups[0]["lr"]) == ("loaded", 0.5)

    @optims([INFO])
    def test_the_default_dtype_does_not_matter(self, device, dtype, optim_info):
        for given in every_input(device):
            results = []
            for default in (torch.float32, torch.float64):
                W, b, x = weights(device, torch.float32)
                before = torch.get_default_dtype()
                torch.set_default_dtype(default)
                try:
                    opt = train(RLLC([W, b], **fresh(given.kwargs)), W, b, x)
                finally:
                    torch.set_default_dtype(before)
                results.append((W.detach(), b.detach(), opt.law))
            self.assertEqual(*results, rtol=0, atol=0)


instantiate_device_type_tests(TestRLLC, globals(), only_for=("cpu", "cuda"))


def test_a_hook_can_change_the_law_that_is_loaded():
    opt, law = RLLC([nn.Parameter(torch.ones(2))], **USUAL), torch.tensor([3.0, 4.0], dtype=torch.float64)
    opt.register_load_state_dict_pre_hook(lambda _, state: with_first_group(state, law=law))
    opt.load_state_dict(opt.state_dict())
    assert opt.law.tolist() == [3.0, 4.0]
