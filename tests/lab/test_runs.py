"""Records are found wherever they lie, told apart, merged without loss, and only rubbish is deleted."""

import io
import os
import re
import time
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import TWO_UNITS, record
from rich.console import Console

from rllc.lab import cells, checkpoints, merging, pruning, records, runs
from rllc.lab.cells import digest
from rllc.lab.errors import Refused
from rllc.lab.files import Folder
from rllc.lab.options import Merge, Prune, RunsList, RunsShow
from rllc.lab.settings import SGD

GOOD = record([0.1, 0.6, 0.5], test=[0.1, 0.55, 0.52], setting=SGD(0.1))
BETTER = record([0.1, 0.5, 0.7], test=[0.1, 0.4, 0.65], setting=SGD(0.2))
OTHER_SEED = record([0.1, 0.4, 0.6], setting=SGD(0.2), seed=1)
LOST = record([0.1, 0.1, 0.1], setting=SGD(3.0), diverged_at=30)
LAWFUL = record([0.1, 0.2], setting=TWO_UNITS, law=(0.25, -1.5))
FIVE = [GOOD, BETTER, OTHER_SEED, LOST, LAWFUL]


def made(record, when, **changes):
    return replace(record, made=f"2026-01-01T00:00:{when:02}+00:00", **changes)


def put(folder, *held):
    """Write records as `rllc run` does."""
    for one in held:
        records.write(Folder(str(folder)) / "records", one)
    return str(folder)


def said(command, options):
    """The lines a command prints into a pipe."""
    out = io.StringIO()
    command(options, Console(file=out, width=120))
    return out.getvalue().splitlines()


def cells_of(found):
    return {record.cell for record in found}


def damage(folder, record):
    path = Folder(folder) / "records"
    name = digest(record.cell) + ".parquet"
    path.write(name, path.read(name)[:-40])
    return name


def test_records_are_found_in_all_three_places(tmp_path):
    put(tmp_path / "a", *FIVE)
    for one in FIVE:
        records.write(Folder(str(tmp_path / "b")), one)
    (tmp_path / "c.parquet").write_bytes(records.pack(FIVE))
    for place in ("a", "b", "c.parquet"):
        found, damaged = runs.gather(str(tmp_path / place))
        assert cells_of(found) == cells_of(FIVE) and len(found) == 5 and damaged == []


def test_a_run_found_twice_is_the_one_made_first(tmp_path):
    first, later = made(GOOD, 1, hardware="this"), made(GOOD, 2, hardware="that")
    put(tmp_path, later)
    (tmp_path / "packed.parquet").write_bytes(records.pack([first, BETTER]))
    found, _ = runs.gather(str(tmp_path))
    assert len(found) == 2 and first in found and later not in found


def test_records_on_another_filesystem():
    where = f"memory://{time.monotonic_ns()}"
    put(where, GOOD)
    said(merging.merge, Merge((where,), f"{where}/all.parquet"))
    assert runs.gather(f"{where}/all.parquet") == ([GOOD], [])
    assert cells_of(runs.gather(where)[0]) == {GOOD.cell}


@pytest.mark.parametrize("name", ["nothing", "nothing.parquet", "no-protocol://nothing", "empty"])
def test_where_there_is_nothing_it_says_so(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match=r"nothing|empty") as reason:
        runs.gather(name if "://" in name else str(tmp_path / name))
    assert "\n" not in str(reason.value)


def test_where_no_run_has_ended_yet_it_says_how_many_have_begun(tmp_path):
    checkpoints.save(Folder(f"{tmp_path}/checkpoints"), "ab" * 16, {"step": 100})
    with pytest.raises(Refused, match=f"no run has ended in {tmp_path} yet; 1 are on their way: repeat the"):
        runs.gather(str(tmp_path))


def test_what_cannot_be_read_is_told_and_the_rest_is_read(tmp_path):
    folder = put(tmp_path, GOOD, BETTER)
    name = damage(folder, BETTER)
    found, damaged = runs.gather(folder)
    assert found == [GOOD] and len(damaged) == 1 and name in str(damaged[0])
    damage(folder, GOOD)
    with pytest.raises(Refused, match="none of the 2 records"):
        runs.gather(folder)


def test_a_list_counts_and_reads_through_a_pipe(tmp_path):
    folder = put(tmp_path, *FIVE)
    name = damage(folder, LAWFUL)
    _, titles, _, *lines = said(runs.list_runs, RunsList(folder))
    columns = re.split(r"\s{2,}", titles.strip())
    assert dict(zip(columns, re.split(r"\s{2,}", lines[0].strip()), strict=True)) == {
        **{"task": "digits-mlp", "optimizer": "SGD", "steps": "20", "device": "cpu"},
        **{"runs": "4", "settings": "3", "seeds": "2", "diverged": "1", "best valid": "70.00"},
        **{"test there": "65.00", "ms/step": "1.50", "hours": "0.00", "best run": digest(BETTER.cell)[:8]},
    }
    assert name in lines[-2]
    assert lines[-1] == "4 runs, 0.0 hours of training, 1 records not readable"


def test_a_run_is_shown_with_its_settings_its_curve_and_its_law(tmp_path):
    folder = put(tmp_path, *(replace(one, versions={"torch": "9.9"}, commit="c0ffee") for one in FIVE))
    text = "\n".join(said(runs.show_run, RunsShow(folder, digest(LAWFUL.cell)[:12].upper())))
    assert "M(0.9) + M(0.0) on digits-mlp, seed 0, 10 steps on cpu" in text
    for part in (
        digest(LAWFUL.cell),
        "torch 9.9",
        "c0ffee",
        "(0.25, -1.5) -> (0.25, -1.5)",
        "10.00 to 20.00 %",
    ):
        assert part in text
    assert re.search(rf"setting\.law_lr +{TWO_UNITS.law_lr}\b", text)
    assert re.search(r"^ +10 +0\.5000 +0\.8000 +20\.00 +0\.8000 +20\.00 +0\.2500 -1\.5000", text, re.M)
    assert "diverged by step 30" in "\n".join(said(runs.show_run, RunsShow(folder, digest(LOST.cell))))


def test_a_run_without_test_data_is_listed_and_shown(tmp_path):
    whole = record([0.1, 0.75])
    points = tuple(p._replace(test_loss=None, test_accuracy=None) for p in whole.result.points)
    short = replace(
        whole, cell=replace(whole.cell, tested=False), result=whole.result._replace(points=points)
    )
    folder = put(tmp_path, short)
    text = "\n".join(said(runs.show_run, RunsShow(folder, digest(short.cell))))
    assert "75.00 % on validation data at step 10; not tested" in text
    assert re.search(r"^ +10 +0\.5000 +0\.2500 +75\.00 *$", text, re.M)
    assert " 75.00 " in "\n".join(said(runs.list_runs, RunsList(folder)))


def test_a_long_curve_is_shown_at_eleven_points(tmp_path):
    long = record([i / 100 for i in range(51)])
    text = said(runs.show_run, RunsShow(put(tmp_path, long), digest(long.cell)))
    steps = [int(found[1]) for line in text if (found := re.match(r" +(\d+) .*\d\.\d{4}", line))]
    assert steps == list(range(0, 501, 50))
    assert any("▁▁▁▁▂" in line and "▇████" in line for line in text)


def test_digits_that_name_no_run_or_several_are_refused(tmp_path):
    folder = put(tmp_path, *FIVE)
    with pytest.raises(Refused, match=r"no run in .* begins with 'xyz'"):
        runs.show_run(RunsShow(folder, "xyz"), Console())
    with pytest.raises(Refused, match="5 runs have a digest that begins with ''"):
        runs.show_run(RunsShow(folder, ""), Console())


def test_a_merge_has_every_run_once_in_a_folder_or_a_file(tmp_path):
    a, b = put(tmp_path / "a", GOOD, BETTER), put(tmp_path / "b", BETTER, OTHER_SEED, LOST, LAWFUL)
    for out in ("c", "c.parquet"):
        (line,) = said(merging.merge, Merge((a, b), str(tmp_path / out)))
        assert line == f"{tmp_path / out}: 5 runs, 5 of them new"
        found, damaged = runs.gather(str(tmp_path / out))
        assert sorted(map(repr, found)) == sorted(map(repr, FIVE)) and not damaged
    again = said(merging.merge, Merge((a,), str(tmp_path / "c.parquet")))
    assert again == [f"{tmp_path}/c.parquet: 5 runs, 0 of them new"]
    assert cells_of(runs.gather(str(tmp_path / "c.parquet"))[0]) == cells_of(FIVE)


def test_of_two_with_other_numbers_the_targets_stays_else_what_was_made_first(tmp_path):
    first = made(GOOD, 1, hardware="an abacus", versions={"torch": "1"})
    later = made(BETTER, 2, hardware="a slide rule", versions={"torch": "2"})
    later = replace(later, cell=GOOD.cell)
    one, two = put(tmp_path / "1", first), put(tmp_path / "2", later)
    early, late = "torch 1 on an abacus", "torch 2 on a slide rule"
    third = str(tmp_path / "3.parquet")
    for sources, target, kept, here, there in (
        ((one,), two, later, late, early),
        ((two,), one, first, early, late),
        ((two, one), third, first, early, late),
        ((two,), third, first, early, late),
    ):
        line, total = said(merging.merge, Merge(sources, target))
        assert line == (
            f"made twice, with other numbers: 1 ({digest(GOOD.cell)[:8]} for one); kept what was made"
            f" with {here}, not what was made with {there}"
        )
        assert total.startswith(f"{target}: 1 runs, ") and runs.gather(target)[0] == [kept]


def test_the_same_numbers_made_twice_are_nothing_to_talk_about(tmp_path):
    slower = made(GOOD, 2)
    slower = replace(slower, result=slower.result._replace(ms_per_step=9.0))
    one, two = put(tmp_path / "1", made(GOOD, 1)), put(tmp_path / "2", slower)
    assert len(said(merging.merge, Merge((one, two), str(tmp_path / "3")))) == 1
    assert runs.gather(str(tmp_path / "3"))[0] == [made(GOOD, 1)]


def test_a_merge_keeps_what_the_target_has_and_heals_what_is_damaged(tmp_path):
    target, source = put(tmp_path / "t", OTHER_SEED, LAWFUL), put(tmp_path / "s", GOOD, OTHER_SEED, BETTER)
    healed, lost = damage(target, OTHER_SEED), damage(source, BETTER)
    lines = said(merging.merge, Merge((source,), target))
    assert healed in lines[0] and lost in lines[1]
    found, damaged = runs.gather(target)
    assert cells_of(found) == cells_of([OTHER_SEED, LAWFUL, GOOD]) and not damaged


def test_a_damaged_file_is_not_merged_over(tmp_path):
    path = tmp_path / "all.parquet"
    path.write_bytes(records.pack(FIVE)[:-100])
    before = path.read_bytes()
    with pytest.raises(Refused, match=r"all\.parquet is damaged .*move it away"):
        merging.merge(Merge((put(tmp_path / "a", GOOD),), str(path)), Console())
    assert path.read_bytes() == before


def test_a_file_with_an_odd_row_is_not_merged_over_either(tmp_path, monkeypatch):
    path = tmp_path / "all.parquet"
    with monkeypatch.context() as other:
        other.setattr(cells, "FORMAT", 0)
        foreign = pq.read_table(io.BytesIO(records.pack([GOOD])))
    mine = pq.read_table(io.BytesIO(records.pack([BETTER])))
    pq.write_table(pa.concat_tables([foreign, mine]), path)
    before = path.read_bytes()
    with pytest.raises(Refused, match=r"all\.parquet, row 1, is of another version .*move it away"):
        merging.merge(Merge((put(tmp_path / "a", GOOD),), str(path)), Console())
    assert path.read_bytes() == before


def test_checkpoints_of_unfinished_runs_come_along_the_further_one(tmp_path):
    one, two, out = (Folder(put(tmp_path / name, GOOD)) for name in ("1", "2", "out"))
    for folder, step in ((one, 100), (two, 300), (out, 200)):
        checkpoints.save(folder / "checkpoints", "ab" * 16, {"step": step})
        checkpoints.save(folder / "checkpoints", digest(GOOD.cell), {"step": step})
    checkpoints.save(one / "checkpoints", "cd" * 16, {"step": 5})
    checkpoints.save(two / "checkpoints", "cd" * 16, {"of": "another version"})
    said(merging.merge, Merge((one.url, two.url), out.url))
    assert checkpoints.load(out / "checkpoints", "ab" * 16) == {"step": 300}
    assert checkpoints.load(out / "checkpoints", "cd" * 16) == {"step": 5}
    assert checkpoints.load(out / "checkpoints", digest(GOOD.cell)) == {"step": 200}  # has its record


def test_a_folder_of_which_no_run_has_ended_yet_is_merged_too(tmp_path):
    slice1, out = Folder(f"{tmp_path}/1"), Folder(f"{tmp_path}/out")
    checkpoints.save(slice1 / "checkpoints", "ab" * 16, {"step": 100})
    assert said(merging.merge, Merge((slice1.url,), out.url)) == [f"{out.url}: 0 runs, 0 of them new"]
    assert checkpoints.load(out / "checkpoints", "ab" * 16) == {"step": 100}
    with pytest.raises(Refused, match="there are no records in"):
        merging.merge(Merge((f"{tmp_path}/2",), out.url), Console())


def rubbish(tmp_path, monkeypatch):
    """A folder with everything in it; the files that ought to go, and all those that ought to stay."""
    folder = put(tmp_path, GOOD, BETTER)
    go = {f"records/{damage(folder, BETTER)}"}
    for name in (digest(GOOD.cell), digest(OTHER_SEED.cell)):
        checkpoints.save(Folder(folder) / "checkpoints", name, {"step": 1})
    go |= {f"checkpoints/{digest(GOOD.cell)}.checkpoint"}
    for place, age in (("records", 7200), ("checkpoints", 7200), ("records", 60)):
        partial = tmp_path / place / f".{age}{place}.{'0f' * 16}.tmp"
        partial.write_bytes(b"half")
        os.utime(partial, (time.time() - age,) * 2)
        go |= {f"{place}/{partial.name}"} if age > 3600 else set()
    (tmp_path / "mine.parquet").write_bytes(b"PAR1 not a record")
    (tmp_path / "records" / "notes.txt").write_text("mine too")
    monkeypatch.setattr(cells, "FORMAT", 0)  # an engine of another version
    put(tmp_path, OTHER_SEED)
    monkeypatch.undo()
    everything = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    return folder, go, everything - go


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_prune_tells_first_and_deletes_rubbish_only(tmp_path, monkeypatch):
    folder, go, stay = rubbish(tmp_path, monkeypatch)
    assert len(go) == 4 and len(stay) == 6
    lines = said(pruning.prune, Prune(folder))
    assert {line.split(": ")[0].removeprefix(f"{tmp_path}/") for line in lines[:-1]} == go
    assert lines[-1] == "4 files can be deleted; --yes deletes them"
    assert files_of(tmp_path) == go | stay
    assert said(pruning.prune, Prune(folder, yes=True))[:-1] == lines[:-1]
    assert files_of(tmp_path) == stay
    assert said(pruning.prune, Prune(folder, yes=True)) == ["there is nothing to delete"]


def test_prune_leaves_a_folder_that_is_named_like_a_record(tmp_path):
    folder = put(tmp_path, GOOD)
    (tmp_path / "records" / f"{'a' * 32}.parquet").mkdir()
    (tmp_path / "checkpoints" / f"{digest(GOOD.cell)}.checkpoint").mkdir(parents=True)
    assert said(pruning.prune, Prune(folder, yes=True)) == ["there is nothing to delete"]
    assert runs.gather(folder) == ([GOOD], [])
    assert said(merging.merge, Merge((folder,), f"{tmp_path}/out"))[-1].endswith(": 1 runs, 1 of them new")


def test_a_command_that_is_named_can_be_pasted(tmp_path):
    with pytest.raises(Refused, match=r"rllc run table1 --out '.*/two words'$"):
        runs.gather(f"{tmp_path}/two words")


def test_a_file_of_something_else_is_not_merged_over(tmp_path):
    path = tmp_path / "marks.parquet"
    pq.write_table(pa.table({"step": [1]}), path)
    before = path.read_bytes()
    with pytest.raises(Refused, match=r"marks\.parquet holds something else than runs"):
        merging.merge(Merge((put(tmp_path / "a", GOOD),), str(path)), Console())
    assert path.read_bytes() == before


def test_a_record_of_another_version_is_named_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "FORMAT", 0)
    put(tmp_path, OTHER_SEED)
    monkeypatch.undo()
    found, (damaged,) = runs.gather(put(tmp_path, GOOD))
    assert found == [GOOD] and "of another version of rllc" in str(damaged)


def test_a_record_under_anothers_name_is_rubbish(tmp_path):
    folder = put(tmp_path, GOOD)
    (path,) = (tmp_path / "records").iterdir()
    path.rename(path.with_name(f"{'a' * 32}.parquet"))
    assert "damaged record" in said(pruning.prune, Prune(folder))[0]


def test_prune_wants_a_folder(tmp_path):
    with pytest.raises(Refused, match="there is no folder"):
        pruning.prune(Prune(str(tmp_path / "nothing")), Console())
    with pytest.raises(Refused, match="cannot read no-protocol://x"):
        pruning.prune(Prune("no-protocol://x"), Console())
