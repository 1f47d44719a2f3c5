"""Settings every test shares; set before JAX and torch are imported."""

import gc
import os
import shutil

# Eight host devices, so that sharding is tested without hardware. And most programs here are compiled for one
# short run: in half the time, like this.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # nobody reads where in Python it comes from
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tensors here are tiny: threads only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a GPU Triton's kernels run in its interpreter, which it decides when it is imported.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

from pathlib import Path

import pytest
from hypothesis import settings

# Modules that take long begin first, so that no process is left with one at the end; of those that start many
# processes the first beside others that start none.
LONG = (
    *("test_cluster", "test_optax", "test_agreement", "test_optax_rules", "test_optax_sharded"),
    *("test_torch_scale", "test_faults", "test_torch", "test_examples", "test_readme", "test_torch_faults"),
    "test_compare",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(name) if (name := Path(item.path).stem) in LONG else len(LONG))


def pytest_collection_finish():
    """What has been imported stays: not looked through for garbage again, a run takes 3 % less time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_sessionfinish():
    gc.unfreeze()  # or jaxlib would speak of leaks at exit


# Machines differ in speed, results must not: no deadline, the same examples every time.
settings.register_profile("rllc", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("rllc")


@pytest.fixture
def float32():
    """Asked for by tests that are about JAX in float32."""


@pytest.fixture
def float64(request):
    """Two ways to the same numbers are compared with JAX in float64: they must agree to many digits."""
    import jax

    with jax.enable_x64("float32" not in request.fixturenames):
        yield
