"""The command line refuses in one line with exit code 2, before anything is written."""

import io
import os
import subprocess
import sys

import pytest
from made import TWO_UNITS, record

from rllc.lab import cli, records
from rllc.lab.cells import digest
from rllc.lab.files import Folder


@pytest.mark.parametrize(
    "line, said",
    [
        ("compare digits-mpl", "unknown task 'digits-mpl'; did you mean digits-mlp?"),
        ("compare nothing", "known are digits-mlp, mnist-mlp"),
        ("compare digits-mlp --optimizers adma", "did you mean adam?"),
        ("compare digits-mlp --optimizers M(0.9", "expected ')'"),
        ("compare digits-mlp --optimizers M(1.0)", "inside the unit circle"),
        ("compare digits-mlp --optimizers M(.9),torch.bfloat16", "'torch.bfloat16'; did you mean bfloat16?"),
        ("compare digits-mlp --out c.parquet", "c.parquet is what a file of records is called"),
        ("run table1 --out c.parquet", "c.parquet is what a file of records is called"),
        ("memoryless adam --out file:///tmp/here", "pictures need a folder of this machine"),
        ("bench --out .", "--out . is a folder; name a file in it"),
        ("compare digits-mlp --lr -1", "--lr must be a finite number, 0 or more, got -1"),
        ("compare digits-mlp --lr 0.1 nan", "--lr must be a finite number, 0 or more, got nan"),
        ("compare digits-mlp --law-lr inf", "--law-lr must be a finite number, 0 or more, got inf"),
        ("compare digits-mlp --lr fast", "--lr"),
        ("compare digits-mlp --seeds 0", "--seeds must be 1 or more, got 0"),
        ("compare digits-mlp --seeds 1.5", "--seeds"),
        ("compare digits-mlp --seeds 1001", "--seeds must be 1,000 or less, got 1,001"),
        ("run adaptive --seeds 1000000000", "--seeds must be 1,000 or less, got 1,000,000,000"),
        ("runs list zip::all.zip", "cannot read zip::all.zip (chains of URLs are not supported"),
        ("runs prune zip::all.zip", "cannot read zip::all.zip (chains of URLs are not supported"),
        ("figure 3 zip::all.zip", "cannot read zip::all.zip (chains of URLs are not supported"),
        ("figure 3 no-protocol://x", "cannot read no-protocol://x (Protocol not known: no-protocol)"),
        (f"run table1 --out {'a' * 300}", "(File name too long); choose another --out"),
        ("compare digits-mlp --steps -3", "--steps must be 1 or more, got -3"),
        ("compare digits-mlp --workers 0", "--workers must be 1 or more, got 0"),
        ("compare digits-mlp --bogus", "--bogus"),
        ("compare digits-mlp --device tpu", "--device"),
        ("compare", "TASK"),
        ("frobnicate", "frobnicate"),
        ("", "compare"),
        ("show M(2)", "inside the unit circle"),
    ],
)
def test_refusals(line, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("rllc: ") and captured.err.count("\n") == 1
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_missing_data_folder_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLLC_DATA_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("RLLC_CACHE_DIR", str(tmp_path / "cache"))
    assert cli.main(["compare", "mnist-mlp", "--out", str(tmp_path / "out")]) == 2
    assert "there is no folder" in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_unwritable_output_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    for out in ("file", "file/below"):
        assert cli.main(["compare", "digits-mlp", "--out", str(tmp_path / out)]) == 2
        assert "cannot write to" in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"
    (tmp_path / "records").write_text("a file where a folder must be")
    assert cli.main(["compare", "digits-mlp", "--out", str(tmp_path)]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_a_terminal_without_the_signs_of_a_table_gets_others_for_them(tmp_path, monkeypatch):
    made = record([0.1, 0.5], setting=TWO_UNITS, law=(1.0, -1.0))
    records.write(Folder(str(tmp_path)), made)
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", out)
    assert cli.main(["runs", "show", str(tmp_path), digest(made.cell)]) == 0
    out.flush()
    assert "valid accuracy  ??" in out.buffer.getvalue().decode("latin-1")


@pytest.mark.parametrize("command", [["--help"], ["compare", "--help"], ["show", "--help"]])
def test_help_teaches_and_ends_well(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(command)
    assert end.value.code in (0, None)
    out = capsys.readouterr().out
    assert "rllc compare digits-mlp" in out or "show" in command
    if "compare" in command:
        assert all(
            f"--{name}" in out for name in ("optimizers", "seeds", "steps", "lr", "law-lr", "out", "fresh")
        )


def test_show_is_wired_up(capsys):
    assert cli.main(["show", "M(0.9) + M(0)"]) == 0
    assert "M(0.9) + M(0.0)" in capsys.readouterr().out


def test_a_reader_that_has_gone_is_no_error(tmp_path):
    Folder(f"{tmp_path}/records").write("all.parquet", records.pack([record([0.1, 0.5])]))
    read, write = os.pipe()
    os.close(read)
    ask = [sys.executable, "-m", "rllc.lab.cli", "runs", "list", str(tmp_path)]
    with os.fdopen(write, "w") as gone:
        done = subprocess.run(ask, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_output_that_is_closed_is_no_error():
    code = "import sys; from rllc.lab.cli import main; sys.exit(main(['show', 'M(0.9)']))"
    ask = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", code]
    done = subprocess.run(ask, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("ask", [["--help"], ["show", "M(0.9)"], ["runs", "list", "{runs}"]])
def test_a_full_disk_is_one_line(tmp_path, ask):
    Folder(f"{tmp_path}/records").write("all.parquet", records.pack([record([0.1, 0.5])]))
    ask = [part.format(runs=tmp_path) for part in ask]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rllc.lab.cli", *ask], stdout=full, stderr=subprocess.PIPE, text=True
        )
    said = "cannot write the output (No space left on device); make room, or print to another place"
    assert (done.returncode, done.stderr) == (1, f"rllc: {said}\n")


def test_missing_dependencies_are_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)  # what Python does for a module that may not be imported
    assert cli.main(["compare", "digits-mlp"]) == 2
    assert capsys.readouterr().err == "rllc: tyro not installed; pip install 'rllc[lab]'\n"


def test_help_does_not_wait_for_torch():
    code = "import sys; sys.argv = ['rllc', '--help']\nfrom rllc.lab.cli import main\n"
    code += "try: main()\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
