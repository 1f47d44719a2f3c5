"""What README and docs show is what there is: examples run, numbers are those of the records."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from rllc.lab import cli, runs, training
from rllc.lab.cells import digest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import results  # noqa: E402

EXAMPLES = {
    path.name: re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL) for path in results.TEXTS
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, tmp_path, monkeypatch, capsys):
    """Here, where torch and JAX have been imported; nothing of one is there in the next."""
    monkeypatch.chdir(tmp_path)
    for code in EXAMPLES[name]:
        exec(code, {"__name__": "__main__"})
        assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", results.TEXTS, ids=lambda path: path.name)
def test_numbers_are_those_of_the_records(path):
    text = path.read_text()
    assert results.BLOCK.findall(text)
    assert results.filled(text) == text


def test_a_block_is_made_again_whatever_stands_in_it():
    text = "before\n<!-- made: accuracies -->\nwrong\n<!-- end -->\nafter"
    made = results.filled(text)
    assert "wrong" not in made and "| Adam " in made
    assert made.startswith("before\n") and made.endswith("\nafter") and results.filled(made) == made
    with pytest.raises(KeyError):
        results.filled(text.replace("accuracies", "unknown"))


@pytest.mark.parametrize("path", results.TEXTS, ids=lambda path: path.name)
def test_pictures_are_there(path):
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", path.read_text())
    assert pictures or path.name == "speed.md"
    assert all((path.parent / picture).is_file() for picture in pictures)


def test_no_accuracy_is_quoted_by_hand():
    """In % with two decimals, outside the blocks."""
    for path in results.TEXTS:
        assert not re.findall(r"\b[5-9]\d\.\d\d\b", results.BLOCK.sub("", path.read_text()))


@pytest.mark.parametrize("task", ["digits-mlp"])
def test_the_table_of_compare_comes_out_of_its_records(task, tmp_path, monkeypatch):
    kept = runs.gather(str(ROOT / "results" / "records"))[0]
    made = {digest(record.cell) for record in kept if record.cell.task.name == task}
    shutil.copytree(ROOT / "results" / "records", tmp_path / "records")
    monkeypatch.setattr(training, "train", None)  # nothing is to be trained, in this process or a worker's
    assert cli.main(["compare", task, "--out", str(tmp_path)]) == 0
    assert {path.stem for path in (tmp_path / "records").iterdir()} >= made
    table, committed = (folder / f"compare-{task}.md" for folder in (tmp_path, ROOT / "results"))
    assert rows_of(table) == rows_of(committed)


def rows_of(file):
    return [line for line in file.read_text().splitlines() if line.startswith("|")]
