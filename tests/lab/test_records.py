"""A record comes back as it was written, or is refused by name."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from made import TWO_UNITS, cell

from rllc.lab import files, records
from rllc.lab.optimizers import SGD
from rllc.lab.records import Damaged, find, path_of, read, save
from rllc.lab.training import canonical, digest, train


@pytest.fixture(scope="module")
def finished():
    made = cell(TWO_UNITS)
    return made, train(made)


def test_round_trip(tmp_path, finished):
    made, result = finished
    assert find(tmp_path, made) is None
    path = save(tmp_path, made, result)
    found = find(tmp_path, made)
    assert (found.cell, found.result) == (made, result)
    assert path == path_of(tmp_path, made) and path.stem == digest(made)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # no temporary file stays


def test_a_diverged_run_and_one_without_law_come_back_too(tmp_path):
    made = cell(SGD(1e6), steps=40)
    result = train(made)
    save(tmp_path, made, result)
    assert read(tmp_path, made).result == result
    assert result.diverged_at is not None


def test_a_record_says_where_it_comes_from(tmp_path, finished):
    made, result = finished
    row = pq.read_table(save(tmp_path, made, result)).to_pylist()[0]
    assert json.loads(row["configuration"]) == json.loads(canonical(made))
    assert json.loads(row["versions"])["torch"] == torch.__version__
    assert (row["task"], row["optimizer"], row["seed"]) == ("digits-mlp", "M(0.9) + M(0.0)", 0)
    assert row["commit"] is None or len(row["commit"].rstrip("+")) == 40
    assert row["hardware"] and row["made"]
    assert row["law"] == [list(point.law) for point in result.points]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_record_is_refused_by_name(tmp_path, finished, keep):
    path = save(tmp_path, *finished)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(Damaged) as reason:
        find(tmp_path, finished[0])
    assert str(path) in str(reason.value) and "\n" not in str(reason.value)


def test_flipped_bits_never_change_a_number_unseen(tmp_path, finished):
    made, result = finished
    path = save(tmp_path, made, result)
    whole, refused = path.read_bytes(), 0
    for place in range(4, len(whole), len(whole) // 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert read(tmp_path, made).result == result  # a byte that means nothing
        except Damaged:
            refused += 1
    assert refused > 30


def test_a_record_under_anothers_name_is_refused(tmp_path, finished):
    made, result = finished
    other = cell(TWO_UNITS, seed=1)
    save(tmp_path, made, result).rename(path_of(tmp_path, other))
    with pytest.raises(Damaged, match="another configuration"):
        find(tmp_path, other)


def test_a_failed_write_leaves_the_old_record_and_nothing_else(tmp_path, finished, monkeypatch):
    made, result = finished
    path = save(tmp_path, made, result)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, made, result)
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
