"""optax's own checks of the optimizers in optax.contrib, pointed at rllc.optax.

They come with the package, in optax/contrib/_common_test.py. A check is a method that takes an optimizer's
name and arguments; absl makes one test of it for each of optax's, and the method itself is behind these.
"""

import inspect

import jax.numpy as jnp
import pytest
from optax import ScalarOrSchedule, contrib
from optax.contrib import _common_test as common

from rllc.optax import rllc

MEMORIES = ("M(0.9)", "M(0.9) + M_2(0.6)")
TARGETS = (
    common._setup_parabola,
    common._setup_rosenbrock,
    common._setup_matrix_parabola,
    common._setup_mixed_tensor_target,
)
DTYPES = {
    "test_optimizers": ("float32",),
    "test_preserve_dtype": ("bfloat16", "float32"),
    "test_gradient_accumulation": ("bfloat16", "float32"),
    "test_state_shape_dtype_shard_stability": (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64),
}
CHECKS = {
    method.__wrapped__.__name__: method.__wrapped__
    for name, method in vars(common.ContribTest).items()
    if name.startswith("test")
}


def rllc_with_a_schedule(memory: str, learning_rate: ScalarOrSchedule, law_learning_rate: float):
    """rllc; one check runs only where the learning rate is annotated like this."""
    return rllc(memory, learning_rate, law_learning_rate)


def cases():
    """Every check with the dtypes and targets that it is made for; training to the end with every memory."""
    for name, check in CHECKS.items():
        others = {"target": TARGETS, "wrap": (False,)}
        wanted = [key for key in others if key in inspect.signature(check).parameters]
        for memory in MEMORIES if name == "test_optimizers" else MEMORIES[-1:]:
            for dtype in DTYPES.get(name, (None,)):
                for other in others[wanted[0]] if wanted else (None,):
                    arguments = {"dtype": dtype} if dtype else {}
                    arguments |= {wanted[0]: other} if wanted else {}
                    described = (
                        name,
                        memory,
                        getattr(dtype, "__name__", dtype),
                        getattr(other, "__name__", ""),
                    )
                    yield pytest.param(check, memory, arguments, id=" ".join(filter(None, described)))


@pytest.mark.parametrize(("check", "memory", "arguments"), list(cases()))
def test_optax_has_nothing_to_object(check, memory, arguments, monkeypatch):
    monkeypatch.setattr(contrib, "rllc", rllc_with_a_schedule, raising=False)
    # On Rosenbrock's function larger rates diverge with three units, as they do with a fixed law. And the law
    # of two parameters that learns faster grows at the optimum, where gradients are rounding, until a step
    # throws them out again: where they are after 30,000 is luck.
    rates = {"memory": memory, "learning_rate": 1e-4, "law_learning_rate": 1e-4}
    case = common.ContribTest(methodName="test_optimizers0")
    check(case, opt_name="rllc", opt_kwargs=rates, wrapper_name=None, wrapper_kwargs=None, **arguments)


def test_these_are_all_of_optaxs_checks():
    assert sorted(CHECKS) == [
        "test_gradient_accumulation",
        "test_optimizers",
        "test_optimizers_accept_extra_args",
        "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such",
        "test_optimizers_can_be_wrapped_in_inject_hyperparams",
        "test_preserve_dtype",
        "test_state_shape_dtype_shard_stability",
    ]
