"""Data come from Parquet files once, then from the cache, and never in another form than the pinned one."""

import io
import os
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from rllc.lab import checks, data
from rllc.lab.data import Arrays, Characters, OtherImages, Source, Text, as_found, digest, load
from rllc.lab.errors import Refused
from rllc.lab.networks import CHARACTERS
from rllc.lab.tasks import TASKS


def images_and_labels(seed, n, shape):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), rng.integers(0, 10, n).astype(np.uint8)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)).save(file, "PNG")
    return file.getvalue()


def write_parquet(path, images, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"image": {"bytes": png(image), "path": "a.png"}, "label": int(label)}
        for image, label in zip(images, labels, strict=True)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.Table.from_pylist(rows, schema=pa.schema([("image", kind), ("label", pa.int64())]))
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    table = table.replace_schema_metadata(features.arrow_schema.metadata)
    pq.write_table(table, path)


@pytest.fixture(params=[(1, 5, 4), (3, 4, 4)], ids=["grey", "colour"])
def tiny(request, tmp_path, monkeypatch):
    """(source, arrays) of a data set of 7 + 3 images in two training files and one for testing."""
    arrays = Arrays(*images_and_labels(1, 7, request.param), *images_and_labels(2, 3, request.param))
    folder = tmp_path / "hub" / "someone" / "tiny" / "plain"
    write_parquet(folder / "train-00000-of-00002.parquet", arrays.train_images[:4], arrays.train_labels[:4])
    write_parquet(folder / "train-00001-of-00002.parquet", arrays.train_images[4:], arrays.train_labels[4:])
    write_parquet(folder / "test-00000-of-00001.parquet", arrays.test_images, arrays.test_labels)
    monkeypatch.setenv("RLLC_DATA_DIR", str(tmp_path / "hub"))
    monkeypatch.setenv("RLLC_CACHE_DIR", str(tmp_path / "cache"))
    return Source("someone/tiny", "image", digest(arrays)), arrays


def same(a, b):
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def cached(tmp_path):
    return tmp_path / "cache" / "someone--tiny.npz"


def test_decodes_what_was_encoded_then_needs_the_source_no_more(tiny, tmp_path, monkeypatch):
    source, arrays = tiny
    assert same(load(source), arrays)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["someone--tiny.npz"]
    monkeypatch.delenv("RLLC_DATA_DIR")
    monkeypatch.setattr(data, "_split", None)  # not to be called again
    assert same(load(source), arrays)


def test_truncated_source_is_refused_by_name(tiny, tmp_path):
    source, _ = tiny
    file = next((tmp_path / "hub").rglob("train-00001*.parquet"))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(Refused, match=r"truncated or altered.*download") as refusal:
        load(source)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not cached(tmp_path).exists()


def test_altered_source_is_refused_by_name(tiny, tmp_path):
    source, arrays = tiny
    altered = arrays.test_images.copy()
    altered[0, 0, 0, 0] ^= 1
    write_parquet(next((tmp_path / "hub").rglob("test-*.parquet")), altered, arrays.test_labels)
    with pytest.raises(Refused, match="someone/tiny is truncated or altered"):
        load(source)
    assert not cached(tmp_path).exists()


def test_other_images_under_the_known_labels_are_found_apart(tiny, tmp_path, monkeypatch):
    """As the hub's own photographs beside a JPEG copy: with a digest, and so records, of their own."""
    source, arrays = tiny
    monkeypatch.setitem(data.LABELS, source.repository, data._digest_of_labels(arrays))
    assert as_found(source) == source
    cached(tmp_path).unlink()
    other = arrays._replace(test_images=arrays.test_images ^ 1)
    write_parquet(next((tmp_path / "hub").rglob("test-*.parquet")), other.test_images, other.test_labels)
    for _ in range(2):  # decoded, and from the cache
        with pytest.raises(OtherImages, match=r"someone.*tiny.*other images"):
            load(source)
        assert as_found(source) == replace(source, digest=digest(other))
    assert same(load(as_found(source)), other)
    labels = other.test_labels.copy()
    labels[0] += 1
    np.savez(cached(tmp_path), **other._replace(test_labels=labels)._asdict())
    with pytest.raises(Refused, match="truncated or altered"):
        as_found(source)


def test_a_command_says_that_images_are_others(tiny, monkeypatch):
    source, arrays = tiny
    monkeypatch.setitem(data.LABELS, source.repository, data._digest_of_labels(arrays))
    task, console = replace(TASKS["cifar10-mlp"], data=source), Console(record=True, width=300)
    assert checks.with_data(task, console) == task and not console.export_text()
    strange = replace(task, data=replace(source, digest="0" * 64))
    assert checks.with_data(strange, console) == task
    assert "someone/tiny has other images here" in console.export_text()


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b"", lambda b: b[:200] + b"x" + b[201:]])
def test_damaged_cache_is_refused_by_name(tiny, tmp_path, damage):
    source, _ = tiny
    load(source)
    cached(tmp_path).write_bytes(damage(cached(tmp_path).read_bytes()))
    with pytest.raises(Refused, match=r"truncated or altered.*delete it") as refusal:
        load(source)
    assert str(cached(tmp_path)) in str(refusal.value)


def test_cache_of_other_images_is_refused(tiny, tmp_path):
    source, arrays = tiny
    load(source)
    labels = arrays.train_labels.copy()
    labels[0] += 1
    np.savez(cached(tmp_path), **arrays._replace(train_labels=labels)._asdict())
    with pytest.raises(Refused, match="known digest; delete it"):
        load(source)


def test_pickles_are_never_loaded(tiny, tmp_path):
    source, arrays = tiny
    cached(tmp_path).parent.mkdir()
    objects = np.array([{"any": "object"}], dtype=object)
    np.savez(cached(tmp_path), **(arrays._asdict() | {"train_labels": objects}))
    with pytest.raises(Refused, match="allow_pickle"):
        load(source)


def test_missing_folder_and_missing_split(tiny, tmp_path, monkeypatch):
    source, _ = tiny
    next((tmp_path / "hub").rglob("test-*.parquet")).unlink()
    with pytest.raises(Refused, match=r"no test-.*parquet"):
        load(source)
    monkeypatch.setenv("RLLC_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(Refused, match=r"no folder .*nowhere.*RLLC_DATA_DIR"):
        load(source)


def test_unwritable_cache_is_refused(tiny, tmp_path, monkeypatch):
    source, _ = tiny
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLLC_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(Refused, match="RLLC_CACHE_DIR"):
        load(source)


def test_the_hub_is_asked_by_repository_name(tiny, tmp_path, monkeypatch):
    source, arrays = tiny
    folder = tmp_path / "hub" / "someone" / "tiny"
    real = datasets.load_dataset

    def hub(name, split, streaming):
        assert (name, streaming) == ("someone/tiny", True)
        files = sorted(map(str, folder.rglob(f"{split}-*.parquet")))
        return real("parquet", data_files=files, split="train", streaming=True)

    monkeypatch.delenv("RLLC_DATA_DIR")
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert same(load(source), arrays)


def test_unreachable_hub_is_one_line_with_the_way_out(tiny, monkeypatch):
    source, _ = tiny

    def hub(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.delenv("RLLC_DATA_DIR")
    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(Refused, match=r"\(no route\).*RLLC_DATA_DIR=FOLDER") as refusal:
        load(source)
    assert "\n" not in str(refusal.value)


def test_digest_sees_values_shapes_and_types():
    arrays = Arrays(*images_and_labels(1, 4, (1, 2, 2)), *images_and_labels(2, 4, (1, 2, 2)))
    others = [
        arrays._replace(train_labels=arrays.train_labels[::-1].copy()),
        arrays._replace(train_images=arrays.train_images.reshape(4, 1, 4, 1)),
        arrays._replace(train_labels=arrays.train_labels.astype(np.int8)),
    ]
    assert len({digest(other) for other in [arrays, *others]}) == 4
    assert digest(arrays) == digest(Arrays(*(np.copy(array) for array in arrays)))


def test_another_scikit_learn_would_be_noticed(monkeypatch):
    monkeypatch.setattr(data, "DIGITS", replace(data.DIGITS, digest="0" * 64))
    with pytest.raises(Refused, match="digits of scikit-learn"):
        load(data.DIGITS)


VERSE = "Now is the winter of our discontent\nMade glorious summer by this sun of York;\n"
LETTERS = sorted(set(VERSE))


def write_file(folder, text):
    (folder / "input.txt").write_text(text)


def write_splits(folder, text):
    """As the hub has it: one row of text in each of three splits."""
    for split, part in (("train", text[:60]), ("validation", text[60:66]), ("test", text[66:])):
        pq.write_table(pa.table({"text": [part]}), folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture(params=[write_file, write_splits])
def verse(request, tmp_path, monkeypatch):
    """(source, how to write another text in its place) of a text of two lines."""
    characters = Characters(
        np.array([ord(letter) for letter in LETTERS], np.uint8),
        np.array([LETTERS.index(letter) for letter in VERSE], np.uint8),
    )
    folder = tmp_path / "hub" / "someone" / "verse"
    folder.mkdir(parents=True)
    request.param(folder, VERSE)
    monkeypatch.setenv("RLLC_DATA_DIR", str(tmp_path / "hub"))
    monkeypatch.setenv("RLLC_CACHE_DIR", str(tmp_path / "cache"))
    return Text("someone/verse", digest(characters)), lambda text: request.param(folder, text)


def test_a_text_is_numbers_in_its_sorted_alphabet(verse, monkeypatch):
    source, _ = verse
    decoded = load(source)
    assert bytes(decoded.alphabet).decode() == "".join(LETTERS)
    assert "".join(LETTERS[number] for number in decoded.text) == VERSE
    monkeypatch.delenv("RLLC_DATA_DIR")  # now from the cache
    assert same(load(source), decoded)


def test_the_hub_is_asked_for_three_splits_of_a_text(verse, monkeypatch):
    source, _ = verse
    parts = {"train": VERSE[:60], "validation": VERSE[60:66], "test": VERSE[66:]}
    monkeypatch.delenv("RLLC_DATA_DIR")
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split, streaming: iter([{"text": parts[split]}])
    )
    assert digest(load(source)) == source.digest


@pytest.mark.parametrize("text", [VERSE[:-1], VERSE.replace("sun", "son"), VERSE.replace("N", "n")])
def test_a_truncated_or_altered_text_is_refused_by_name(verse, tmp_path, text):
    source, write = verse
    write(text)
    with pytest.raises(Refused, match=r"someone/verse is truncated or altered.*download it again"):
        load(source)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_of_a_text_is_refused_by_name(verse, tmp_path):
    source, _ = verse
    load(source)
    cached = tmp_path / "cache" / "someone--verse.npz"
    cached.write_bytes(cached.read_bytes()[:-100])
    with pytest.raises(Refused, match=r"someone--verse.npz is truncated or altered.*delete it"):
        load(source)


def test_an_unreadable_text_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "someone" / "verse" / "input.txt").mkdir(parents=True)
    monkeypatch.setenv("RLLC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("RLLC_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(Refused, match=r"cannot read .*input.txt .*download it again"):
        load(Text("someone/verse", "0"))


@pytest.mark.skipif(not os.environ.get("RLLC_DATA_DIR"), reason="RLLC_DATA_DIR is not set")
def test_the_real_tiny_shakespeare_has_the_pinned_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("RLLC_CACHE_DIR", str(tmp_path))
    decoded = load(data.SHAKESPEARE)
    assert bytes(decoded.alphabet[decoded.text[:14]]) == b"First Citizen:"
    assert (len(decoded.alphabet), len(decoded.text)) == (CHARACTERS, 1_115_394)


@pytest.mark.skipif(not os.environ.get("RLLC_DATA_DIR"), reason="RLLC_DATA_DIR is not set")
def test_the_real_fashion_mnist_has_the_pinned_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("RLLC_CACHE_DIR", str(tmp_path))
    arrays = load(data.FASHION)
    assert [array.shape for array in arrays] == [(60000, 1, 28, 28), (60000,), (10000, 1, 28, 28), (10000,)]
    assert abs(arrays.train_images.mean() / 255 - 0.286) < 0.001  # the data set's published mean
    assert (np.bincount(arrays.train_labels) == 6000).all()
