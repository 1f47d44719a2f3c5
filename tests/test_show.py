"""`rllc show`: the numbers it prints and the curves it draws."""

import re
import subprocess
import sys

import numpy as np
import pytest
import tyro

from rllc import FixedLaw, M, Propagator, laws, parse
from rllc.lab.show import Show, _figure, draw, main

TEXT = "M(0.9) + M_2(0.6) + CM(0.3+0.4i)"


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def printed(capsys, *words):
    main(tyro.cli(Show, args=words))
    return capsys.readouterr().out


def row(text, name):
    """The words after a name at the start of a line, up to the next two blanks."""
    return re.search(rf"^\s*{re.escape(name)}\s+(.*?)(?:\s\s|$)", text, re.MULTILINE).group(1)


def test_prints_the_numbers(capsys):
    out = printed(capsys, TEXT)
    assert out.startswith(f"{TEXT}: 5 memory units\n")
    assert re.search(r"B, old m_4 +0 +0 +0 +0.3 +0.4 *\n", out)
    assert re.search(r"B, old m_5 +0 +0 +0 +-0.4 +0.3 *\n", out)
    assert re.search(r"a, gradient +1 +1 +0 +1 +0 *\n", out)
    assert re.search(r"0.9 +1 +0.9 +6.58 +–", out)  # ln ½ / ln 0.9
    assert re.search(r"0.6 +2 +0.6 +1.36 +–", out)
    assert re.search(r"0.3 - 0.4i +1 +0.5 +1 +6.78", out)  # 2π / atan2(4, 3)
    # 1/(1-β) + (2-β... )/(1-β)^2 + Re and Im of 1/(1-γ)
    gain = 1 / 0.1 + 1 / 0.4 + 1 / 0.16 + (1 / (0.7 - 0.4j)).real + (1 / (0.7 - 0.4j)).imag
    assert float(row(out, "gain")) == pytest.approx(gain, rel=1e-5)
    assert row(out, "law L") == "1 1 1 1 1"
    assert row(out, "least memory") == "5 of 5 units"
    assert row(out, "normal form") == TEXT


def test_prints_what_a_law_makes_of_it(capsys):
    out = printed(capsys, "M(0.9) + M(0)", "--law", "0.09", "0.1")
    assert float(row(out, "gain")) == pytest.approx(1.0)
    assert row(out, "mean delay") == "8.1 steps"
    out = printed(capsys, "M_2(0)", "--law", "2", "-1")
    assert row(out, "mean delay") == "-1 steps" and "extrapolates" in out
    assert float(row(out, "Gramian")) == 1


def test_prints_repeated_units_and_cancelling_weights(capsys):
    out = printed(capsys, "M(0.9) + M(0.9)", "--law", "1", "-1")
    assert row(out, "gain") == "0" and row(out, "mean delay") == "none"
    assert row(out, "least memory") == "0 of 2 units"
    assert row(out, "Gramian") == "dependent"
    assert "M(0.9)  1 of the 2 units only repeat the others" in out


def test_prints_why_there_is_no_normal_form(capsys):
    out = printed(capsys, " + ".join(f"M(0.{i})" for i in range(82, 91)))
    assert "no normal form  M(0.82)" in out and "nearly dependent" in out
    assert "B is 9 × 9, too wide to print" in out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["M(1.0)"], "cannot read memory 'M"),
        (["M(0.9)", "--law", "1", "2"], "a law for 1 memory unit is as many finite real numbers"),
        (["M(0.9)", "--law", "nan"], "a law for 1 memory unit is as many finite real numbers"),
        (["M(0.9)", "--plot", "a.gif"], "a picture is a file ending in .png, .pdf, .svg; got 'a.gif'"),
        (["M(0.9)", "--plot", "/nowhere/a.png"], "no folder '/nowhere' to write a.png into"),
    ],
)
def test_refuses_before_it_prints(capsys, words, reason):
    with pytest.raises((ValueError, OSError), match=re.escape(reason)):
        printed(capsys, *words)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_draws_a_file(capsys, tmp_path, suffix):
    path = tmp_path / f"[bold]picture.{suffix}"
    out = printed(capsys, TEXT, "--plot", str(path))
    assert f"Drawn into {path}" in out
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(start)


def test_a_name_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError):
        draw(laws.sgd(0.1), tmp_path / "a.png")


def test_draws_the_rules_the_weights_and_the_eigenvalues():
    fixed = FixedLaw(parse(TEXT), [0.1, 0.2, 0.3, 0.4, -0.5])
    units, law, disk = (
        next(ax for ax in _figure(fixed).axes if ax.get_label() == name) for name in ("units", "law", "disk")
    )
    rules = fixed.propagator.abstract_rule(1000)
    lines = units.get_lines()[:5]
    for j, line in enumerate(lines):
        np.testing.assert_array_equal(line.get_ydata(), rules[: len(line.get_ydata()), j])
    n = len(lines[0].get_ydata())
    assert (abs(rules[n:]) <= 0.01 * abs(rules).max(axis=0)).all()
    np.testing.assert_allclose(law.get_lines()[0].get_ydata(), fixed.weights(n))
    assert f"mean delay {fixed.mean_delay:.4g}" in law.get_title(loc="left")
    spots = [line for line in disk.get_lines() if line.get_marker() == "o"]
    drawn = np.array([complex(*line.get_xydata()[0]) for line in spots])
    np.testing.assert_array_equal(drawn, [0.9, 0.6, 0.3 + 0.4j, 0.3 - 0.4j])
    assert "×2" in [text.get_text() for text in disk.texts]
    # One colour a block, in both panels.
    assert [line.get_color() for line in lines[1:4]] == [spots[i].get_color() for i in (1, 1, 2)]


def test_draws_units_of_different_size_over_their_largest():
    figure = _figure(FixedLaw(M(0.95, 4), np.ones(4)))
    units = figure.axes[0]
    assert "over its largest" in units.get_title(loc="left")
    assert [line.get_ydata().max() for line in units.get_lines()[:4]] == pytest.approx([1.0] * 4)


@pytest.mark.parametrize(
    "p", [Propagator([[0.5, 0.1], [0.2, 0.4]], [1, 2]), parse("+".join(["M(0.5)"] * 64))]
)
def test_draws_any_memory(tmp_path, p):
    draw(FixedLaw(p, np.ones(p.k)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_prints_without_matplotlib():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path; from rllc.lab.show import Show, main\n"
        "main(Show('M(0.9)'))\n"
        "try: main(Show('M(0.9)', plot=Path('a.png')))\n"
        "except ValueError as refusal: print('refused:', refusal)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert row(done.stdout, "normal form") == "M(0.9)"
    assert "refused: a picture needs matplotlib; install it with: pip install" in done.stdout


def test_a_picture_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*taken\.png"):
        main(Show("M(0.9)", plot=tmp_path / "taken.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]
