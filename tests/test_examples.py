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
    assert len(weights) == 2 and all(0 < abs(weight - 1) < 1 for weight in weights)
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


def test_a_run_killed_between_or_in_its_steps_goes_on_to_the_bit(tmp_path):
    steps, whole, killed = 60, tmp_path / "whole.pt", tmp_path / "killed.pt"
    runpy.run_path(str(EXAMPLES / "resume.py"))["main"](whole, steps)
    for last_words in ("step 7,", "step 20,"):
        with subprocess.Popen(**command("resume", killed, steps)) as process:
            next(line for line in process.stdout if line.startswith(last_words))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        killed.with_suffix(".partial").write_bytes(b"half a file")  # what a death while writing leaves
    end = subprocess.run(**command("resume", killed, steps), check=True)
    resumed = int(re.match(r"resumed after step (\d+)", end.stdout)[1])
    assert 20 <= resumed < steps
    one, other = (torch.load(path, weights_only=True) for path in (whole, killed))
    assert one["done"] == steps and len(one["opt"]["state"]) == 4
    assert same(one, other)
