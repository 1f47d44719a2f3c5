"""What README shows is what there is: its examples run, its tables are those of results/."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=["torch", "optax", "algebra"])
def test_examples_run(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("file", sorted(ROOT.glob("results/compare-*.md")), ids=lambda file: file.stem)
def test_tables_are_those_of_the_results(file):
    table = [line for line in file.read_text().splitlines() if line.startswith("|")]
    assert len(table) > 3
    assert "\n".join(table) in README


def test_pictures_are_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
