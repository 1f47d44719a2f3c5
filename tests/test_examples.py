"""The examples run as they stand, and a run that is killed at any moment goes on to the bit."""

import importlib.util
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {
    "ddp": "torch",
    "with_accelerate": "accelerate",
    "with_flax": "flax",
    "with_lightning": "lightning",
    "with_trainer": "transformers",
}


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*NEEDS, "resume"}


def command(name, *arguments):
    """Run like a user, but for threads: on a busy machine they wait for one another."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {
        "args": [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)],
        "env": environment,
        "text": True,
        "stdout": subprocess.PIPE,
    }


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_runs_and_learns(name, tmp_path):
    if importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed; make examples installs it")
    done = subprocess.run(**command(name), cwd=tmp_path, stderr=subprocess.PIPE, timeout=300)
    assert done.returncode == 0, done.stderr
    first, last, law = re.search(r"loss ([\d.]+) -> ([\d.]+), law \[(.+)\]", done.stdout).groups()
    assert float(last) < 0.8 * float(first)
    weights = [float(weight) for weight in law.split(",")]
    begun = [0.01] if name == "with_trainer" else [1.0, 1.0]
    assert all(0 < weight != start for weight, start in zip(weights, begun, strict=True))
    assert not list(tmp_path.iterdir())  # nothing is left behind


def same(one, other):
    """Whether two saved states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# Runs an example for each line it is told, in a fork of a process that has imported what that would.
AGAIN = """
import os, runpy, sys
import torch._dynamo, rllc.torch.fused_cpu
sys.argv = sys.argv[1:]
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        runpy.run_path(sys.argv[0], run_name="__main__")
        os._exit(0)
    print("ended", os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_between_or_in_its_steps_goes_on_to_the_bit(tmp_path):
    steps, whole, killed = 60, tmp_path / "whole.pt", tmp_path / "killed.pt"
    runpy.run_path(str(EXAMPLES / "resume.py"))["main"](whole, steps)
    ask = command("resume", killed, steps)
    ask["args"][1:1] = ["-c", AGAIN]
    with subprocess.Popen(**ask, stdin=subprocess.PIPE) as process:
        for last_words in ("step 7,", "step 20,"):
            print(file=process.stdin, flush=True)
            pid = int(next(process.stdout))
            next(line for line in process.stdout if line.startswith(last_words))
            os.kill(pid, signal.SIGKILL)
            assert f"ended {signal.SIGKILL:d}\n" in process.stdout
            killed.with_suffix(".partial").write_bytes(b"half a file")  # what a death while writing leaves
        said, _ = process.communicate("\n")
    resumed = int(re.search(r"resumed after step (\d+)", said)[1])
    assert 20 <= resumed < steps and said.endswith("ended 0\n")
    one, other = (torch.load(path, weights_only=True) for path in (whole, killed))
    assert one["done"] == steps and len(one["opt"]["state"]) == 4
    assert same(one, other)
