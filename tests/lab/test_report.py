"""The page holds the records' numbers, loads nothing, runs nothing that stands in a record, and draws."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from made import record
from made_up import CIFAR, FASHION, run, rung, seeds
from test_adaptive import studied

from rllc.lab.errors import Damaged, Refused
from rllc.lab.evidence import report
from rllc.lab.evidence.drawing import MEMORIES
from rllc.lab.optimizers import paper_trials
from rllc.lab.selection import READINGS
from rllc.lab.settings import SGD, Rllc, RllcAdamW

TWO = "M(0.9) + M(0.0)"
LAWS = [[(1.0, 1.0), (0.7, 1.2), (0.1, 1.3)], [(1.0, 1.0), (0.5, 1.4), (-0.1, 1.7)]]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&{{ 7 * 7 }}"
VOID = {"meta", "link", "input", "br", "img"}


def records():
    """Two tasks of Table 1: SGD with a seed that diverged, Adam, and a memory whose law moves."""
    setting = paper_trials(TWO)[0]
    curves = [[0.1, 0.84, 0.88], [0.1, 0.82, 0.89]]
    moved = [run(setting, curve, i, law=LAWS[i]) for i, curve in enumerate(curves)]
    sgd = seeds("SGD", [[0.1, 0.8, 0.86], [0.1, 0.82, 0.87]])
    lost = run(paper_trials("SGD")[0], [0.1, 0.99], seed=2, diverged_at=7000)
    dropped = [rung("SGD", 3, [0.1, 0.5]), rung("SGD", 14, [0.1], diverged_at=300)]
    return [*sgd, lost, *dropped, *seeds("Adam", [0.85, 0.9]), *moved, *seeds("SGD", [0.5], task=CIFAR)]


@pytest.fixture(scope="module")
def page():
    return report.html(records(), [Damaged("record x is damaged (short)")])


class Reader(HTMLParser):
    """Reads a page strictly: tags must be closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts, self.scripts = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, text):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += text
        elif self.open[-1:] != ["style"]:
            self.texts.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self):
        return json.loads(self.scripts[0])


def drawn(data, task, name):
    """The line of an optimizer in the panel of that number."""
    place = [optimizer["name"] for optimizer in data["optimizers"]].index(name)
    (line,) = (line for line in data["panels"][task]["rows"] if line["optimizer"] == place)
    return line


def test_curves_are_mean_smallest_and_largest_of_the_records(page):
    line = drawn(Reader(page).data, 0, "SGD")  # as if the third seed, which diverged, were not there
    assert line["step"] == [0, 5000, 10_000]
    assert line["test_accuracy"] == {"mean": [10, 81, 86.5], "low": [10, 80, 86], "high": [10, 82, 87]}
    assert line["valid_accuracy"]["mean"] == [11, 82, 87.5]
    assert line["train_loss"]["mean"] == [None, None, None]
    assert line["law"] == []


def test_one_seed_is_a_line_without_a_band(page):
    assert drawn(Reader(page).data, 1, "SGD")["test_accuracy"] == {"mean": [10, 50]}


def test_laws_are_drawn_unit_by_unit(page):
    first, second = drawn(Reader(page).data, 0, TWO)["law"]
    assert (first["unit"], second["unit"]) == ("M(0.9)", "M(0.0)")
    assert first["mean"] == [1, 0.6, 0] and second["high"] == [1, 1.4, 1.7]


def test_numbers_keep_five_digits_and_what_is_not_finite_is_null():
    assert report.band(np.array([[1 / 3, 1e-7 / 3, np.nan]])) == {"mean": [0.33333, 3.3333e-8, None]}


def test_panels_say_how_much_of_a_study_is_there(page):
    first, second = report.panels(records())
    assert (first.task, first.steps, first.studies) == (
        FASHION.name,
        10_000,
        {"Tables 1 and 2 of the paper": 3},
    )
    assert second.studies == {"Tables 1 and 2 of the paper": 1}
    assert "Tables 1 and 2 of the paper fashion-mlp 3 of 11 cifar10-mlp 1 of 11" in Reader(page).text


def test_every_setting_tried_is_there_by_its_longest_run(page):
    panel = report.panels(records())[0]
    (row, tried), *_ = report.trials(panel, records())
    assert row.name == "SGD" and [r.cell.steps for r in tried] == [10_000, 1000, 1000]
    text = Reader(page).text
    assert "SGD 1e-07 3 1 1 87.00 2 2.00" in text  # chosen of three, one in full, one diverged, two seeds
    assert "SGD 3e-06 1,000 51.00 1,000" in text
    assert "SGD 1 1,000 diverged 300" in text


def test_claims_tables_under_each_reading_and_sources_are_there(page):
    reader = Reader(page)
    shown = [attributes["data-reading"] for _, attributes in reader.tags if "data-reading" in attributes]
    assert shown == list(READINGS)
    for said in (
        "holds partly",
        "Table 1. Test loss",
        "10, of which 2 diverged",
        "torch 2.0",
        "record x is damaged",
    ):
        assert said in reader.text, said


def test_the_page_is_well_formed_and_loads_nothing(page):
    reader = Reader(page)
    assert reader.open == []
    loaded = [a[name] for _, a in reader.tags for name in ("src", "href", "action", "data") if a.get(name)]
    assert all(address.startswith(("#", "data:")) for address in loaded)
    assert {a["href"][1:] for _, a in reader.tags if a.get("href", "").startswith("#")} <= {
        a.get("id") for _, a in reader.tags
    }
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for tag, a in reader.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none';") and "http" not in policy


def test_texts_from_records_stay_texts():
    memory = Rllc(HOSTILE, 0.1, 0.01, (1.0, 1.0))
    made = record([0.1, 0.5], setting=memory, law=(1.0, 1.0))
    made = replace(made, versions={HOSTILE: HOSTILE}, commit=HOSTILE, hardware=HOSTILE, made=HOSTILE)
    made = replace(made, cell=replace(made.cell, task=replace(made.cell.task, name=HOSTILE)))
    reader = Reader(report.html([made], [Damaged(HOSTILE)]))
    assert reader.open == []
    assert len(reader.scripts) == 3 and "img" not in {tag for tag, _ in reader.tags}
    assert not any("alert" in name for _, attributes in reader.tags for name in attributes)
    assert reader.data["optimizers"][0]["name"] == HOSTILE
    assert [unit["unit"] for unit in drawn(reader.data, 0, HOSTILE)["law"]] == ["unit 1", "unit 2"]
    assert reader.text.count(HOSTILE) > 5


def test_runs_outside_the_studies_are_shown_too():
    good, better = record([0.1, 0.5], setting=SGD(0.1)), record([0.1, 0.6], setting=SGD(0.2))
    seed = record([0.1, 0.8], setting=SGD(0.2), seed=1)
    (panel,) = report.panels([good, better, seed])
    assert panel.studies == {report.OUTSIDE: 1}
    assert panel.rows[0].records == (better, seed) and panel.rows[0].tried == (SGD(0.1), SGD(0.2))


def test_a_task_without_a_run_in_full_is_no_chart_yet():
    text = Reader(report.html([rung("SGD", 3, [0.1, 0.5])], [])).text
    assert "No study has a run in full yet." in text and "1, of which 0 diverged" in text


def test_rungs_of_a_task_of_no_study_are_no_chart_yet_either():
    whole = record([0.1, 0.6])
    points = tuple(p._replace(test_loss=None, test_accuracy=None) for p in whole.result.points)
    dropped = replace(
        whole,
        cell=replace(whole.cell, setting=SGD(0.2), tested=False),
        result=whole.result._replace(points=points),
    )
    assert report.panels([dropped]) == [] and "1, of which 0 diverged" in report.html([dropped], [])
    (panel,) = report.panels([dropped, dropped, whole])
    assert [row.records for row in panel.rows] == [(whole,)]


def test_an_optimizer_all_of_whose_runs_diverged_is_named():
    text = Reader(report.html([record([0.1], diverged_at=10)], [])).text
    assert "SGD 1 1 1 – 0 –" in text


def test_the_study_adaptive_is_there_where_its_runs_are(page):
    assert "Who lost" not in page and 'href="#adaptive"' not in page
    reader = Reader(report.html([*records(), *studied()], []))
    assert reader.open == [] and ("section", {"id": "adaptive"}) in reader.tags
    for said in (
        "Against Adam + cosine, of 1 pairs",
        "After 1,000 steps: test accuracy in %",
        "RLLC-AdamW 80.20 ± 0.20 (0.001)",
        "Who lost",
    ):
        assert said in reader.text, said
    default = [made for made in studied() if made.cell.setting == RllcAdamW()]
    assert len(default) == 3 and "Who lost" not in report.html(default, [])


def test_colours_differ_and_are_seen_on_dark_and_light():
    memories = [f"M(0.{i:02})" for i in range(2 * len(MEMORIES))]
    shades = report._shades(["SGD", "momentum SGD", "Adam", *memories])
    assert shades["Adam"] | {"name": ""} == {
        "name": "",
        "light": "#000000",
        "dark": "#ffffff",
        "dash": "solid",
    }
    for mode in ("light", "dark"):
        assert len({(shade[mode], shade["dash"]) for shade in shades.values()}) == len(shades)
    first, again = shades[memories[0]], shades[memories[len(MEMORIES)]]
    assert first["light"] == again["light"] and (first["dash"], again["dash"]) == ("solid", "dash")
    for shade in shades.values():
        rgb = np.array([int(shade["dark"][i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert report._luminance(rgb) >= report.VISIBLE


def test_the_file_is_the_page(tmp_path):
    report.write(tmp_path / "page.html", records(), [])
    assert (tmp_path / "page.html").read_text("utf-8") == report.html(records(), [])
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_no_records_are_refused():
    with pytest.raises(Refused, match="rllc run table1"):
        report.html([], [])


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# What a reader does, said to the console, which must hear nothing else.
VISIT = """
addEventListener("load", async () => {
  const drawn = (chart) => chart.data !== undefined && chart.querySelector(".main-svg") !== null;
  while (!charts.every(drawn)) await new Promise((done) => setTimeout(done, 20));
  const shown = () => charts[0].data.map((trace) => trace.visible);
  const said = {charts: charts.length, bands: charts[0].data.map((trace) => trace.fill === "toself")};
  said.before = shown();
  said.mean = charts[0].data.at(-1).y;
  document.querySelector('[data-optimizer="2"]').click();
  said.after = shown();
  said.laws = [...document.querySelectorAll("figure[data-optimizer]")].map((figure) => figure.hidden);
  document.querySelector("input[value=valid_accuracy]").click();
  said.valid = charts[0].data.at(-1).y;
  document.querySelector("input[value=best]").click();
  said.readings = [...document.querySelectorAll(".reading")].map((table) => table.checkVisibility());
  said.wider = document.documentElement.scrollWidth > innerWidth;
  console.log(JSON.stringify(said));
});
"""


def visit(command, log, patience=100):
    """What the console hears until the visit is over, in real time (a virtual clock outruns the drawing)."""
    with log.open("w") as file, subprocess.Popen(command, stderr=file, start_new_session=True) as browser:
        try:
            for _ in range(10 * patience):
                heard = re.findall(r'CONSOLE.*?\] "(.*)", source:', log.read_text("utf-8"))
                if heard[-1:] and heard[-1].startswith('{"charts"'):
                    return heard
                assert browser.poll() is None, log.read_text("utf-8")
                time.sleep(0.1)
            raise AssertionError(log.read_text("utf-8"))
        finally:
            os.killpg(browser.pid, signal.SIGKILL)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
def test_a_browser_draws_the_page_and_finds_no_fault(page, tmp_path):
    (tmp_path / "page.html").write_text(page.replace("</body>", f"<script>{VISIT}</script></body>"), "utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user"]
    flags += ["--enable-logging=stderr", "--v=0"]
    flags += ["--window-size=500,9000"]  # no window is narrower; as high as the page
    heard = visit([BROWSER, *flags, (tmp_path / "page.html").as_uri()], tmp_path / "log")
    assert len(heard) == 1, heard
    said = json.loads(heard[0])
    assert said["charts"] == 3 and said["wider"] is False
    assert said["bands"] == [True] * 3 + [False] * 3  # of SGD, Adam and the memory
    assert said["before"] == [True] * 6 and said["after"] == [True, True, False] * 2
    assert said["laws"] == [True]
    assert said["mean"] == [10, 83, 88.5] and said["valid"] == [11, 84, 89.5]
    assert said["readings"] == [False, False, True]
