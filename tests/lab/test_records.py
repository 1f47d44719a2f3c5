"""A record comes back as it was written, or is refused by name."""

import dataclasses
import datetime
import io
import itertools
import json
import math
import os
import shutil
import time

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from made import TWO_UNITS, cell, record

from rllc.lab import cells, checks, files, records, runs
from rllc.lab.cells import Cell, Point, canonical, digest
from rllc.lab.errors import Refused
from rllc.lab.files import Folder
from rllc.lab.records import Damaged, Foreign, find, name_in, pack, read, read_all, save, unpack
from rllc.lab.settings import SGD, Averaged, Polynomial, RllcAdamW, Rules, Stored
from rllc.lab.tasks import TASKS
from rllc.lab.training import train

NOBODY = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")


@pytest.fixture(scope="module")
def finished():
    made = cell(TWO_UNITS)
    return made, train(made)


def saved(tmp_path, made, result):
    """The path of its record, written."""
    save(Folder(str(tmp_path)), made, result)
    return tmp_path / f"{digest(made)}.parquet"


@pytest.mark.parametrize("where", ["{tmp_path}", "memory://{tmp_path}/r"])
def test_round_trip(tmp_path, finished, where):
    made, result = finished
    folder = Folder(where.format(tmp_path=tmp_path))
    assert find(folder, made) is None
    save(folder, made, result)
    found = find(folder, made)
    assert (found.cell, found.result) == (made, result)
    assert name_in(folder, made) == f"{folder.url}/{digest(made)}.parquet"
    assert folder.names("") == [f"{digest(made)}.parquet"] and not list(tmp_path.glob(".*"))


def test_a_cell_of_a_text_comes_back_too(finished):
    text = Cell(TASKS["shakespeare-gpt"], TWO_UNITS, seed=0, steps=12, points=3)
    made = records.Record(text, finished[1], {}, None, "")
    assert unpack(pack([made]), "here") == [made]


def test_a_run_without_test_data_comes_back_too(tmp_path):
    made = dataclasses.replace(cell(SGD(0.1)), tested=False)
    result = train(made)
    save(Folder(str(tmp_path)), made, result)
    assert read(Folder(str(tmp_path)), made).result == result
    assert {point.test_accuracy for point in result.points} == {None}


def test_a_diverged_run_and_one_without_law_come_back_too(tmp_path):
    made = cell(SGD(1e6), steps=40)
    result = train(made)
    save(Folder(str(tmp_path)), made, result)
    assert read(Folder(str(tmp_path)), made).result == result
    assert result.diverged_at is not None


def test_a_record_says_where_it_comes_from(tmp_path, finished):
    made, result = finished
    row = pq.read_table(saved(tmp_path, made, result)).to_pylist()[0]
    assert json.loads(row["configuration"]) == json.loads(canonical(made))
    assert json.loads(row["versions"])["torch"] == torch.__version__
    assert (row["task"], row["optimizer"], row["seed"]) == ("digits-mlp", "M(0.9) + M(0.0)", 0)
    assert row["commit"] is None or len(row["commit"].rstrip("+")) == 40
    assert row["hardware"] and row["made"]
    assert row["law"] == [list(point.law) for point in result.points]


def test_each_record_says_when_it_was_made(monkeypatch):
    minutes = itertools.count()

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 1, 0, next(minutes), tzinfo=tz)

    monkeypatch.setattr(records.datetime, "datetime", Clock)
    first, second = records.provenance(), records.provenance()
    assert [first["made"], second["made"]] == [f"2026-01-01T00:0{i}:00+00:00" for i in range(2)]
    first["versions"].clear()
    assert records.provenance()["versions"] == second["versions"] != {}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_is_asked_without_a_lock_that_a_kill_would_leave(tmp_path):
    records._git(tmp_path, "init")
    (tmp_path / "file").write_text("as it was")
    records._git(tmp_path, "add", "file")
    os.utime(tmp_path / "file", (0, 0))  # git would like to note that it is the same
    index = (tmp_path / ".git" / "index").read_bytes()
    assert records._git(tmp_path, "status", "--porcelain", ".") == "A  file"
    assert (tmp_path / ".git" / "index").read_bytes() == index


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_commit_has_a_plus_where_any_file_of_rllc_was_changed(tmp_path, monkeypatch):
    (tmp_path / "rllc" / "lab").mkdir(parents=True)
    for name in ("rllc/law.py", "rllc/lab/records.py", "README.md"):
        (tmp_path / name).write_text("as it was")
    for command in (["init"], ["add", "."], [*NOBODY, "commit", "--message", "first"]):
        records._git(tmp_path, *command)
    monkeypatch.setattr(records, "__file__", str(tmp_path / "rllc" / "lab" / "records.py"))
    head = records._git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "README.md").write_text("changed")
    assert records._commit.__wrapped__() == head
    (tmp_path / "rllc" / "law.py").write_text("changed")
    assert records._commit.__wrapped__() == head + "+"


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_record_is_refused_by_name(tmp_path, finished, keep):
    path = saved(tmp_path, *finished)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(Damaged) as reason:
        find(Folder(str(tmp_path)), finished[0])
    assert str(path) in str(reason.value) and "\n" not in str(reason.value)


def test_flipped_bits_never_change_a_number_unseen(tmp_path, finished):
    made, result = finished
    path = saved(tmp_path, made, result)
    whole, refused = path.read_bytes(), 0
    for place in range(4, len(whole), len(whole) // 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert read(Folder(str(tmp_path)), made).result == result  # a byte that means nothing
        except Damaged:
            refused += 1
    assert refused > 30


def test_a_record_under_anothers_name_is_refused(tmp_path, finished):
    made, result = finished
    other = cell(TWO_UNITS, seed=1)
    path = saved(tmp_path, made, result)
    path.rename(path.with_stem(digest(other)))
    with pytest.raises(Damaged, match="another configuration"):
        find(Folder(str(tmp_path)), other)
    path.with_stem(digest(other)).write_bytes(pack([]))
    with pytest.raises(Damaged, match="another configuration"):
        find(Folder(str(tmp_path)), other)


def test_a_file_of_many_comes_back_and_damage_does_not_hide_the_others(tmp_path, finished):
    many = [
        records.Record(cell(TWO_UNITS, seed), finished[1], {"a": "1"}, "c", "h", "m") for seed in range(3)
    ]
    assert unpack(pack(many), "here") == many
    (tmp_path / "many.parquet").write_bytes(pack(many[:2]))
    (tmp_path / "one.parquet").write_bytes(pack(many[2:]))
    (tmp_path / "torn.parquet").write_bytes(pack(many)[:-9])
    found, (damaged,) = read_all(Folder(str(tmp_path)))
    assert found == many and "torn.parquet is damaged" in str(damaged)


def changed(**columns):
    """A whole record but for some columns of its row."""
    table = pa.Table.from_pylist([records._row(record([0.1, 0.5, 0.6])) | columns], schema=records.SCHEMA)
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def configured(**fields):
    """Columns of another configuration, with its digest."""
    text = json.dumps(json.loads(canonical(record([0.1, 0.5, 0.6]).cell)) | fields, sort_keys=True)
    return {"configuration": text, "digest": cells.digest_of(text)}


def of_setting(**fields):
    """The same with another optimizer: its fields changed."""
    made = json.loads(canonical(record([0.1, 0.5, 0.6]).cell))
    return configured(setting=made["setting"] | fields)


def of_task(**fields):
    """The same with another task."""
    made = json.loads(canonical(record([0.1, 0.5, 0.6]).cell))
    return configured(task=made["task"] | fields)


def lawful(*law):
    """A record of two units with this law at every point."""
    made = record([0.1, 0.5, 0.6], setting=TWO_UNITS)
    text = canonical(made.cell)
    return {"configuration": text, "digest": digest(made.cell), "law": [list(law)] * 3}


NESTED = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize(
    "columns, said",
    [
        (configured(task="abc"), "it has no task"),
        (configured(setting="abc"), "it has no optimizer"),
        (configured(steps=None), "its seed or steps are no numbers"),
        (configured(seed="0"), "its seed or steps are no numbers"),
        (configured(seed=True), "its seed or steps are no numbers"),
        (configured(seed=10**9), "its seed is not from 0 to 999"),
        (configured(points=10**9), "too many evaluations"),
        (configured(steps=0), "it has no steps"),
        (configured(steps=10**400, points=3), "too large for a float"),
        (configured(points=1), "its evaluations are not where"),
        (configured(device="tpu"), "its device is none of cpu, cuda"),
        (configured(device=None), "of another type"),
        (configured(tested="yes"), "of another type"),
        (of_setting(lr="0.1"), "of another type"),
        (of_setting(momentum=None), "of another type"),
        (of_task(mean=[0.3, "x"]), "of another type"),
        (of_task(data=None), "of another type"),
        (of_task(batch=0), "its task has nothing to learn from"),
        ({"configuration": NESTED}, "maximum recursion depth"),
        ({"made": None}, "it does not say when"),
        ({"hardware": None}, "it does not say when or on what"),
        ({"versions": "[]"}, "its versions"),
        ({"versions": '{"torch": null}'}, "its versions"),
        ({"ms_per_step": None}, "its times"),
        ({"seconds": math.nan}, "its times"),
        ({name: [] for name in Point._fields}, "its evaluations"),
        ({"step": [0, 20, 10]}, "its evaluations"),
        ({"step": [0, 10, None]}, "is damaged"),
        ({name: records._row(record([0.1, 0.5]))[name] for name in Point._fields}, "ends at step 10, not 20"),
        ({"law": [[], [1.0], [1.0]]}, "its law"),
        ({"law": [[1.0]] * 3}, "its law has not a number for each unit"),
        (lawful(), "its law has not a number for each unit"),
        (lawful(1.0, 1.0, 1.0), "its law has not a number for each unit"),
        (lawful(1.0, None), "its law is no number"),
        (lawful(1.0, math.inf), "its law is no number"),
        (configured(tested=False), "it was not to be tested"),
        ({"test_loss": [None] * 3, "test_accuracy": [None] * 3}, "a loss is no number"),
        ({"valid_loss": [1.0, math.inf, 1.0]}, "a loss is no number"),
        ({"valid_accuracy": [0.1, math.nan, 0.6]}, "an accuracy is no number from 0 to 1"),
        ({"valid_accuracy": [0.1, None, 0.6]}, "an accuracy is no number from 0 to 1"),
        ({"test_accuracy": [0.1, 5.0, 0.6]}, "an accuracy is no number from 0 to 1"),
    ],
)
def test_an_odd_record_is_refused_by_name_and_does_not_hide_the_others(tmp_path, columns, said):
    (tmp_path / "odd.parquet").write_bytes(changed(**columns))
    (tmp_path / "whole.parquet").write_bytes(changed())
    found, (damaged,) = read_all(Folder(str(tmp_path)))
    assert found == [record([0.1, 0.5, 0.6])] and not isinstance(damaged, Foreign)
    assert "odd.parquet is damaged (" in str(damaged) and said in str(damaged)


def test_laws_of_every_kind_come_back(tmp_path):
    rules = Rules(("Adam", "M(0.9)"), 0.1, 0.01, (1.0, 1.0))
    settings = {
        TWO_UNITS: 2,
        Stored(TWO_UNITS, "bfloat16"): 2,
        RllcAdamW(): 1,
        rules: 2,
        dataclasses.replace(rules, scope="tensor"): 8,
        Averaged(SGD(0.1), Polynomial()): 0,
    }
    made = [record([0.1, 0.5], setting=setting, law=(1.0,) * size) for setting, size in settings.items()]
    lost = record([0.1, 0.5], setting=RllcAdamW(2.0), law=(math.inf,), diverged_at=10)
    assert unpack(pack([*made, lost]), "here") == [*made, lost]


def test_a_file_of_something_else_is_no_damage(tmp_path):
    pq.write_table(pa.table({"step": [1, 2], "law": [0.1, 0.2]}), tmp_path / "marks.parquet")
    (tmp_path / "whole.parquet").write_bytes(changed())
    assert read_all(Folder(str(tmp_path))) == ([record([0.1, 0.5, 0.6])], [])
    with pytest.raises(Refused, match=r"marks\.parquet holds something else than runs; name another file$"):
        runs.gather(f"{tmp_path}/marks.parquet")


def test_an_odd_row_costs_the_others_nothing(tmp_path):
    good = record([0.1, 0.5, 0.6])
    tables = [pq.read_table(io.BytesIO(changed(**columns))) for columns in ({}, {"ms_per_step": -1.0})]
    pq.write_table(pa.concat_tables([tables[1], tables[0]]), tmp_path / "all.parquet")
    found, (damaged,) = read_all(Folder(str(tmp_path)))
    assert found == [good] and str(damaged).startswith(f"record {tmp_path}/all.parquet, row 1, is damaged (")
    with pytest.raises(Damaged, match="row 1"):
        unpack((tmp_path / "all.parquet").read_bytes(), "here")
    assert runs.gather(f"{tmp_path}/all.parquet")[0] == [good]


def test_a_record_of_another_engine_is_whole_but_foreign(finished, monkeypatch):
    monkeypatch.setattr(cells, "FORMAT", 0)
    content = pack([records.Record(*finished, {}, None, "")])
    monkeypatch.undo()
    with pytest.raises(Foreign, match="here is of another version of rllc"):
        unpack(content, "here")


def test_a_failed_write_leaves_the_old_record_and_nothing_else(tmp_path, finished, monkeypatch):
    made, result = finished
    path = saved(tmp_path, made, result)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(Folder(str(tmp_path)), made, result)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a"
    with files.replacing(path) as file:
        file.write(b"part")
        file.flush()
        assert not path.exists()
        file.write(b" and rest")
    assert path.read_bytes() == b"part and rest"


def test_what_a_writer_left_behind_is_no_file_of_the_folder(tmp_path, finished):
    folder = Folder(str(tmp_path))
    old, new = (f".{name}.parquet.{'0f' * 16}.tmp" for name in ("old", "new"))
    for name, age in ((old, 7200), (new, 60)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert folder.names("") == [] and read_all(folder) == ([], [])
    assert folder.abandoned() == [old]


def test_a_folder_here_is_the_same_from_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Folder("runs").absolute() == Folder(f"{tmp_path}/runs")
    assert Folder("memory://runs").absolute() == Folder("memory://runs")


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_file_is_split_into_its_folder_and_its_name(tmp_path, monkeypatch, scheme):
    monkeypatch.chdir(tmp_path)
    for url in ("a/b.parquet", "b.parquet", f"{tmp_path}/c/b.parquet"):
        folder, name = files.split(scheme + url)
        folder.write(name, b"here")
        assert Folder(f"{scheme}{url.removesuffix('b.parquet')}" or ".").read("b.parquet") == b"here"
    assert files.split("/b.parquet")[0] == Folder("/")


class ReadOnly(MemoryFileSystem):
    """A filesystem with an error of its own."""

    protocol = "readonly"

    def pipe_file(self, path, value, **more):
        raise RuntimeError("this place is for reading\nonly")


def test_errors_of_all_filesystems_are_oserrors(tmp_path):
    fsspec.register_implementation("readonly", ReadOnly, clobber=True)
    with pytest.raises(OSError, match=r"^this place is for reading$"):
        Folder("readonly://here").write("name", b"")
    with pytest.raises(Refused, match=r"cannot write to readonly://here \(this place is for reading\)"):
        checks.make_writable(Folder("readonly://here"))
    for url in (f"zip::{tmp_path}/all.zip", f"zip://records::{tmp_path}/all.zip", "no-protocol://here"):
        with pytest.raises(OSError, match=r"chains of URLs are not supported|Protocol not known"):
            Folder(url).names("")
        with pytest.raises(OSError, match=r"chains of URLs are not supported|Protocol not known"):
            files.split(f"{url}.parquet")


@pytest.mark.parametrize("where", ["{tmp_path}/a[1]*", "memory://{tmp_path}/a[1]*"])
def test_signs_of_patterns_are_letters_like_others(tmp_path, where):
    folder = Folder(where.format(tmp_path=tmp_path))
    for content in (b"first", b"second"):
        folder.write("b[2]?", content)
        assert folder.names("") == ["b[2]?"] and folder.read("b[2]?") == content
    folder.remove("b[2]?")
    assert folder.names("") == []


def test_folders_are_no_files(tmp_path):
    folder = Folder(str(tmp_path))
    (tmp_path / "like.parquet").mkdir()
    assert folder.names(".parquet") == [] and read_all(folder) == ([], [])
    with pytest.raises(IsADirectoryError, match=r"like\.parquet is a folder"):
        folder.write("like.parquet", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["like.parquet"]
