"""Images and a text as uint8, from the Hugging Face hub or a folder: decoded once, checked at every load.

    load(MNIST)   Arrays(train_images (60000, 1, 28, 28), train_labels (60000,), test_images, test_labels)
    load(SHAKESPEARE)   Characters(alphabet (65,), text (1115394,))

RLLC_DATA_DIR names a folder that holds the Parquet files of the hub's repositories under their names, for
example ylecun/mnist, or a text as one file input.txt; without it they come from the hub. RLLC_CACHE_DIR
names the folder of decoded arrays, by default `rllc` in XDG_CACHE_HOME or ~/.cache. What does not have the
pinned digest is refused, not used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from rllc.lab.errors import Refused, first_line
from rllc.lab.files import replacing

__all__ = [
    "CIFAR10",
    "DIGITS",
    "FASHION",
    "MNIST",
    "SHAKESPEARE",
    "Arrays",
    "Characters",
    "OtherImages",
    "Source",
    "Text",
    "as_found",
    "digest",
    "load",
]

Bytes = NDArray[np.uint8]
WHOLE_TEXT = "input.txt"


class Arrays(NamedTuple):
    """A data set in memory: images (n, channels, height, width) and labels (n,), all uint8."""

    train_images: Bytes
    train_labels: Bytes
    test_images: Bytes
    test_labels: Bytes


class Characters(NamedTuple):
    """A text in memory, uint8: its k different characters in order (k,), and the number of each one (n,)."""

    alphabet: Bytes
    text: Bytes


Decoded = Arrays | Characters


@dataclass(frozen=True)
class Source:
    """Where images come from: a hub repository, its image column, the sha256 of the decoded arrays."""

    repository: str
    image_column: str
    digest: str


@dataclass(frozen=True)
class Text:
    """Where a text comes from: a hub repository with a column `text`, the sha256 of the decoded arrays."""

    repository: str
    digest: str


MNIST = Source("ylecun/mnist", "image", "ff7b7759284de66b079702efa2b94acc5d89e262156cf05284b2bb125f48de3a")
FASHION = Source(
    "zalando-datasets/fashion_mnist",
    "image",
    "0d36105b32f8015f9834065f204ec20f9cf47c7f822c53b1d68ac85c5a5cb5cb",
)
CIFAR10 = Source("uoft-cs/cifar10", "img", "f54ee5fb822f9fb45230bb4da64140a7ac8e413a529532fee68b8560dae9f50f")
DIGITS = Source(
    "scikit-learn/digits", "images", "c0f975bd0e4b8c7c437b4c38bfb14528dfaf8d1118e9f40482947f9c28dec81a"
)
SHAKESPEARE = Text(
    "karpathy/tiny_shakespeare", "39d0244d17d068967f5b2e26bdb0e07246c727f1b3ef2b0369860d732dd6e6a0"
)

# Of photographs there are several copies: the hub's are as they were made, those whose digest is pinned above
# and with which the committed records were made are JPEG of quality 75. These labels they have in common, as
# the sha256 of those for training and then those for testing.
LABELS = {CIFAR10.repository: "136f906f37e2b992738dfa63e94314d44a81cab3d2c8875be4223e9d86a67ef8"}


class OtherImages(Refused):
    """The images of a source are not the pinned ones, but have its labels; `digest` is theirs."""

    def __init__(self, origin: str, digest: str) -> None:
        super().__init__(f"{origin} has other images than those of the pinned digest, under the same labels")
        self.digest = digest


def as_found(source: Source | Text) -> Source | Text:
    """The source with the digest of the images that are here: records of other images are found apart.

    Raises:
        Refused: as `load` does, but for other images under the known labels.
    """
    try:
        load(source)
    except OtherImages as found:
        assert isinstance(source, Source)
        return replace(source, digest=found.digest)
    return source


@overload
def load(source: Source) -> Arrays: ...
@overload
def load(source: Text) -> Characters: ...
def load(source: Source | Text) -> Decoded:
    """The arrays of a data set, from the cache or decoded into it.

    Raises:
        Refused: the folder or hub cannot be read, or a file is truncated or altered; the message names it.
        OtherImages: its images are others, under the labels that are known for it.
    """
    if source == DIGITS:
        return _checked(_digits(), source, "the digits of scikit-learn", "reinstall scikit-learn")
    folder = _data_folder(source)
    cached = _cache_folder() / f"{source.repository.replace('/', '--')}.npz"
    if cached.exists():
        kind = Characters if isinstance(source, Text) else Arrays
        return _checked(_read(cached, kind), source, str(cached), "delete it and run again")
    arrays = _characters(source, folder) if isinstance(source, Text) else _arrays(source, folder)
    origin = f"https://huggingface.co/datasets/{source.repository}" if folder is None else str(folder)
    try:
        _checked(arrays, source, origin, "download it again")
    except OtherImages:
        _write(cached, arrays)
        raise
    _write(cached, arrays)
    return arrays


def digest(arrays: Decoded) -> str:
    """sha256 of names, dtypes, shapes and bytes, in hexadecimal."""
    total = hashlib.sha256()
    for name, array in arrays._asdict().items():
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _checked(arrays: Decoded, source: Source | Text, origin: str, remedy: str) -> Decoded:
    found = digest(arrays)
    if found != source.digest:
        if isinstance(arrays, Arrays) and _digest_of_labels(arrays) == LABELS.get(source.repository):
            raise OtherImages(origin, found)
        raise Refused(f"{origin} is truncated or altered: it does not have the known digest; {remedy}")
    return arrays


def _digest_of_labels(arrays: Arrays) -> str:
    return hashlib.sha256(arrays.train_labels.tobytes() + arrays.test_labels.tobytes()).hexdigest()


def _data_folder(source: Source | Text) -> Path | None:
    """The folder of a repository under RLLC_DATA_DIR; None where the hub is to be used."""
    root = os.environ.get("RLLC_DATA_DIR")
    if not root:
        return None
    folder = Path(root) / source.repository
    if not folder.is_dir():
        raise Refused(
            f"there is no folder {folder}; RLLC_DATA_DIR must name a folder that holds {source.repository},"
            " or be unset to read from the Hugging Face hub"
        )
    return folder


def _cache_folder() -> Path:
    named = os.environ.get("RLLC_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rllc"


def _digits() -> Arrays:
    """Every third image is for testing; of the others, those for validation come last: 599 of each.

    A period of three, because the digits come in runs of 0 1 2 ... 9, with which it shares no divisor.
    """
    rows = np.loadtxt(_digits_file(), dtype=np.uint8, delimiter=",")
    images, labels = rows[:, :-1].reshape(-1, 1, 8, 8), rows[:, -1]  # grey levels 0..16
    train = np.r_[0 : len(labels) : 3, 1 : len(labels) : 3]
    return Arrays(images[train], labels[train], images[2::3], labels[2::3])


def _digits_file() -> Path:
    """What sklearn.datasets.load_digits reads, without importing scikit-learn, which takes seconds."""
    found = importlib.util.find_spec("sklearn")
    (place,) = (found and found.submodule_search_locations) or [""]
    file = Path(place, "datasets", "data", "digits.csv.gz")
    if not file.exists():
        raise Refused("scikit-learn has no digits; reinstall scikit-learn")
    return file


def _arrays(source: Source, folder: Path | None) -> Arrays:
    return Arrays(*_split(source, "train", folder), *_split(source, "test", folder))


def _split(source: Source, split: str, folder: Path | None) -> tuple[Bytes, Bytes]:
    """Images (n, channels, height, width) and labels (n,) of one split, decoded from its pictures."""
    images: list[Bytes] = []
    labels: list[int] = []
    for row in _rows(source, split, folder):
        images.append(np.asarray(row[source.image_column]))
        labels.append(row["label"])
    stacked = np.stack(images)
    stacked = stacked[:, None] if stacked.ndim == 3 else np.moveaxis(stacked, -1, 1)
    return np.ascontiguousarray(stacked), np.array(labels, dtype=np.uint8)


def _characters(source: Text, folder: Path | None) -> Characters:
    alphabet, text = np.unique(np.frombuffer(_text(source, folder), np.uint8), return_inverse=True)
    return Characters(alphabet, text.astype(np.uint8))


def _text(source: Text, folder: Path | None) -> bytes:
    """One file, as the author gave it away, or the hub's three splits of it, one after the other."""
    if folder is not None and (whole := folder / WHOLE_TEXT).exists():
        try:
            return whole.read_bytes()
        except OSError as reason:
            raise Refused(f"cannot read {whole} ({reason.strerror}); download it again") from reason
    splits = (_rows(source, split, folder) for split in ("train", "validation", "test"))
    return "".join(row["text"] for rows in splits for row in rows).encode()


def _rows(source: Source | Text, split: str, folder: Path | None) -> Iterator[dict]:
    return _hub_rows(source, split) if folder is None else _folder_rows(source, split, folder)


def _hub_rows(source: Source | Text, split: str) -> Iterator[dict]:
    from datasets import load_dataset

    try:
        yield from load_dataset(source.repository, split=split, streaming=True)
    except Exception as reason:  # the hub's client raises errors of four libraries
        raise Refused(
            f"cannot read {source.repository} from the Hugging Face hub ({first_line(reason)}); try again, or"
            f" put its Parquet files in FOLDER/{source.repository} and set RLLC_DATA_DIR=FOLDER"
        ) from reason


def _folder_rows(source: Source | Text, split: str, folder: Path) -> Iterator[dict]:
    files = sorted(folder.rglob(f"{split}-*.parquet"))
    if not files:
        raise Refused(f"there is no {split}-*.parquet in {folder}; download the Parquet files again")
    for file in files:
        yield from _file_rows(file, None if isinstance(source, Text) else source.image_column)


def _file_rows(file: Path, image: str | None) -> Iterator[dict]:
    # Not load_dataset, which reports every use to the hub and waits for it where there is no network.
    import pyarrow.parquet as pq
    from datasets import Image

    columns = [image, "label"] if image else ["text"]
    try:
        for batch in pq.ParquetFile(file).iter_batches(1024, columns=columns):
            for row in batch.to_pylist():
                yield row | {image: Image().decode_example(row[image])} if image else row
    except Exception as reason:  # Arrow and Pillow each have their own for a damaged file
        raise Refused(
            f"{file} is truncated or altered ({first_line(reason)}); download the Parquet files again"
        ) from reason


def _read(path: Path, kind: type[Decoded]) -> Decoded:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return kind(*(stored[name] for name in kind._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as reason:
        raise Refused(
            f"{path} is truncated or altered ({first_line(reason)}); delete it and run again"
        ) from reason


def _write(path: Path, arrays: Decoded) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, **arrays._asdict())
    except OSError as reason:
        raise Refused(
            f"cannot write the decoded data to {path} ({reason.strerror}); set RLLC_CACHE_DIR to a folder"
            " that can be written"
        ) from reason
