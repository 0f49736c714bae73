"""Ingest notices leaking, repeated, contradictory and constant images, and constant pixels."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.duplicates import MOST_ROWS, RECORDED_ROWS, ROW_MEMORY, DuplicateFinder
from pipeline.examine import BLOCK_WORDS, image_digests
from pipeline.findings import Findings
from pipeline.ingest import ingest
from storage import documents, trees
from storage.dataset import Dataset, open_dataset
from storage.errors import BadDataError, UnreachableError
from storage.idx import IdxReader
from storage.places import open_location
from tests.storage.idx_files import write_idx

ELEMENT_TYPES = ("uint8", "int8", "int16", "int32", "float32", "float64")


def write_source(
    directory: Path, splits: dict[str, tuple[NDArray[Any], NDArray[Any] | None]]
) -> Path:
    directory.mkdir()
    for name, (images, labels) in splits.items():
        write_idx(directory / f"{name}-images-idx3-ubyte", images)
        if labels is not None:
            write_idx(directory / f"{name}-labels-idx1-ubyte", labels)
    return directory


def few_images(rows: int, dtype: str, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images of 3 x 2 values of which many are equal, and a pixel that never changes."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 3, (rows, 3, 2)).astype(dtype)
    images[:, 1:, 1] = 1
    images[random.integers(0, rows, 2)] = 1
    return images, random.integers(0, 3, rows).astype(np.uint8)


def pairs(count: int, first: list[list[int]]) -> dict[str, Any]:
    return {"count": count, "first": sorted(first)[:RECORDED_ROWS]}


def expected_of(images: NDArray[Any], labels: NDArray[Any] | None) -> dict[str, Any]:
    """Compute a split's findings row by row."""
    rows = images.reshape(len(images), -1)
    places: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows):
        places.setdefault(row.tobytes(), []).append(number)
    of_classes: list[list[int]] = []
    for numbers in places.values() if labels is not None else ():
        firsts = sorted({int(labels[n]): n for n in reversed(numbers)}.values())
        of_classes += [firsts[:2]] if len(firsts) > 1 else []
    constant = [[n] for n, row in enumerate(rows) if len(set(row.tolist())) == 1]
    columns = [len(set(column.tolist())) == 1 for column in rows.T]
    repeats = [[again, numbers[0]] for numbers in places.values() for again in numbers[1:2]]
    return {
        "repeated_images": pairs(len(rows) - len(places), repeats),
        "contradictory_images": pairs(len(of_classes), of_classes),
        "constant_images": pairs(len(constant), constant),
        "constant_columns": sum(columns),
        "constant_bitmap": np.packbits(columns).tobytes().hex(),
    }


def expected_shared(first: NDArray[Any], second: NDArray[Any]) -> dict[str, Any]:
    of_first: dict[bytes, int] = {}
    for number, image in enumerate(first):
        of_first.setdefault(image.tobytes(), number)
    rows = [[n, of_first[i.tobytes()]] for n, i in enumerate(second) if i.tobytes() in of_first]
    earliest = {pair[1]: pair for pair in reversed(rows)}  # the first row of each image
    return pairs(len(rows), list(earliest.values()))


def findings_of(dataset: Dataset) -> dict[str, Any]:
    assert dataset.findings is not None
    return {name: value for name, value in dataset.findings.items() if name != "seal"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ELEMENT_TYPES)
def test_all_findings_are_right(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of a search row by row, for any chunks and threads, in memory and on disk."""
    train, test = few_images(83, dtype, 1), few_images(20, dtype, 2)
    validation = few_images(31, dtype, 3)[0]
    splits = {"train": train, "validation": (validation, None), "test": test}
    source = write_source(tmp_path / "source", splits)
    expected = {
        "splits": {name: expected_of(images, labels) for name, (images, labels) in splits.items()},
        "shared_images": [
            {"splits": list(names)} | expected_shared(splits[names[0]][0], splits[names[1]][0])
            for names in (("train", "validation"), ("train", "test"), ("validation", "test"))
        ],
    }
    assert expected["splits"]["train"]["contradictory_images"]["count"] > 1
    assert 2 <= expected["splits"]["train"]["constant_columns"] < 6
    ways = [(20, 2, 10), (100, 1, MOST_ROWS), (20, 3, MOST_ROWS), (100, 1, 1)]
    for number, (chunk_rows, threads, most_rows) in enumerate(
        ways if dtype == "uint8" else ways[:1]
    ):
        monkeypatch.setattr("pipeline.findings.MOST_ROWS", most_rows)
        place = tmp_path / str(number)
        made = ingest(str(source), place, rows_per_chunk=chunk_rows, threads=threads)
        assert expected == findings_of(made.dataset)


def test_transposed_images(tmp_path: Path) -> None:
    """The bitmap of constant columns is in the order of the stored columns."""
    images = few_images(40, "uint8", 1)[0]
    source = write_source(tmp_path / "source", {"train": (images, None)})
    upright = ingest(str(source), tmp_path / "set", transpose=True).dataset
    expected = expected_of(images.swapaxes(1, 2), None)
    assert expected == findings_of(upright)["splits"]["train"]
    assert expected["constant_bitmap"] != expected_of(images, None)["constant_bitmap"]


@pytest.mark.parametrize(
    "length", [1, 7, 8, 9, 784, 8 * BLOCK_WORDS, 8 * BLOCK_WORDS + 1, 5 * 8 * BLOCK_WORDS]
)
def test_digests_differ_in_every_bit(length: int) -> None:
    """Images that differ in one bit, the highest of a word too, have different digests."""
    rows = np.zeros((67, length), np.uint8)
    for row in range(66):
        rows[row, (row // 8) * (length // 9) % length] ^= 1 << row % 8
    distinct = {row.tobytes() for row in rows}
    digests = image_digests(rows)
    assert (67, 2) == digests.shape
    for half in digests.T:
        assert len(distinct) == len({int(digest) for digest in half})
    assert (digests == np.concatenate([image_digests(row[None]) for row in rows])).all()


@pytest.mark.slow
def test_mnist(tmp_path: Path) -> None:
    """MNIST has no images twice; in a part of it that has, NumPy counts the same."""
    if "MNIST_DIR" not in os.environ:
        pytest.skip("MNIST_DIR is not set")
    made = ingest("mnist", tmp_path / "set").dataset
    of_splits = findings_of(made)["splits"]
    splits = {}
    for name, prefix in (("train", "train"), ("test", "t10k")):
        [path] = Path(os.environ["MNIST_DIR"]).glob(f"{prefix}-images-idx3-ubyte*")
        with IdxReader(path) as reader:
            splits[name] = reader.read_rows(reader.rows).reshape(-1, 784)
        images = splits[name]
        mask = images.min(axis=0) == images.max(axis=0)
        assert np.packbits(mask).tobytes().hex() == of_splits[name]["constant_bitmap"]
        assert mask.sum() == of_splits[name]["constant_columns"]
        constant = (images.min(axis=1) == images.max(axis=1)).sum()
        assert constant == of_splits[name]["constant_images"]["count"]
        repeated = len(images) - len({image.tobytes() for image in images})
        assert repeated == of_splits[name]["repeated_images"]["count"]
    assert (67, 116) == tuple(of_splits[name]["constant_columns"] for name in splits)
    in_train = {image.tobytes() for image in splits["train"]}
    shared = sum(image.tobytes() in in_train for image in splits["test"])
    assert [shared] == [pair["count"] for pair in findings_of(made)["shared_images"]]
    assert [] == (Findings.of(made) or pytest.fail("no findings")).warnings()


def test_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Images of train in test, and different labels in train, are warnings; others are not."""
    images = np.arange(120, dtype=np.uint8).reshape(10, 4, 3)
    labels = np.arange(10, dtype=np.uint8) % 2
    clean = {"train": (images[:6], labels[:6]), "test": (images[6:], labels[6:])}
    ingest(str(write_source(tmp_path / "clean", clean)), tmp_path / "clean-set")
    assert "" == caplog.text
    train = np.concatenate([images[:6], images[1:2]]), np.append(labels[:6], 0).astype(np.uint8)
    test = np.concatenate([images[6:], images[2:4]]), np.append(labels[6:], [0, 1]).astype("uint8")
    source = write_source(tmp_path / "leaking", {"train": train, "test": test})
    made = ingest(str(source), tmp_path / "set").dataset
    texts = [record.getMessage() for record in caplog.records]
    leak, contradiction = texts
    assert leak == (
        "2 test images are also in train: rows 4 (train 2), 5 (train 3). Accuracy on test is too "
        "high if the network has learned them by heart: remove them from one of the splits."
    )
    assert contradiction == (
        "1 train image occurs with different labels: rows 1 and 6. At most one of an image's "
        "labels is right: correct them."
    )
    caplog.clear()
    ingest(str(source), tmp_path / "set")
    assert "" == caplog.text
    findings = Findings.of(made)
    assert findings is not None
    lines = findings.sentences(("cat", "dog", "cow"), {"train": (4, 3, 0), "test": (0, 6, 0)})
    assert [text.partition(". ")[0] for text in texts] == lines[:2]
    assert [
        "1 train image repeats an earlier one: row 6 (as 1)",
        "train has no images of class cow",
        "test has no images of the classes cat, cow",
    ] == lines[2:]


def test_one_unlabelled_split_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Repeated blank images without labels, as in an inbox, are noticed and not warned about."""
    images = np.zeros((5, 4, 3), np.uint8)
    source = write_source(tmp_path / "source", {"test": (images, None)})
    made = ingest(str(source), tmp_path / "set").dataset
    assert "" == caplog.text
    assert [
        "4 test images repeat an earlier one: rows 1 (as 0) and 3 more",
        "5 test images have one value everywhere: rows 0, 1, 2, 3, 4",
        "12 of 12 pixel values are the same in all test images",
    ] == (Findings.of(made) or pytest.fail("no findings")).sentences((), {"test": ()})


def test_findings_are_not_part_of_the_digest(tmp_path: Path) -> None:
    """A dataset without them, as of an early release, is the same, and is kept."""
    place = open_location(tmp_path / "set")
    made = ingest("synthetic:40,20", place).dataset
    document = json.loads(place.get("zarr.json"))
    own = document["attributes"]["own_seal"]
    del document["attributes"]["findings"]
    document = trees.seal_group(document)
    assert own == document["attributes"]["own_seal"]
    place.put("zarr.json", documents.document_bytes(document))
    again = ingest("synthetic:40,20", place)
    assert again.already_done
    assert made.digest == again.dataset.digest
    assert again.dataset.findings is None
    assert Findings.of(again.dataset) is None


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return JSON with the value at a path replaced; removed for `...`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if new is ... and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        ("splits",),
        ("splits", "train"),
        ("splits", "train", "repeated_images"),
        ("splits", "train", "repeated_images", "count"),
        ("splits", "train", "contradictory_images", "first"),
        ("splits", "train", "constant_columns"),
        ("shared_images", 0, "splits"),
        ("shared_images", 0, "first"),
    ],
)
def test_malformed_findings(path: tuple[Any, ...], tmp_path: Path) -> None:
    """Damaged findings are refused when the dataset is opened, sealed ones when they are used."""
    place = open_location(tmp_path / "set")
    ingest("synthetic:40,20", place)
    document = json.loads(place.get("zarr.json"))
    attributes = document["attributes"]
    whole = attributes["findings"]
    for new in (..., None, -1.5, "x", True, {}, [[1]], [["a", 1]], [{"a": 1}]):
        changed = replaced(whole, path, new)
        for findings in (changed, documents.seal(changed)):
            attributes["findings"] = findings
            place.put("zarr.json", documents.document_bytes(trees.seal_group(document)))
            with pytest.raises(BadDataError, match="attribute findings of"):
                Findings.of(open_dataset(place))


def test_findings_of_another_type(tmp_path: Path) -> None:
    """A value that is not an object is refused."""
    place = open_location(tmp_path / "set")
    ingest("synthetic:40,20", place)
    document = json.loads(place.get("zarr.json"))
    document["attributes"]["findings"] = [1]
    place.put("zarr.json", documents.document_bytes(trees.seal_group(document)))
    with pytest.raises(BadDataError):
        open_dataset(place)


def test_memory_does_not_grow_with_the_rows() -> None:
    """Digests on disk need the stated memory, whether all images differ or few do."""
    for distinct in (2**63, 50):
        random = np.random.default_rng(0)
        most_rows, chunk = 20_000, 1_000
        tracemalloc.start()
        with DuplicateFinder(1, 12 * most_rows, most_rows) as finder:
            for start in range(0, 12 * most_rows, chunk):
                digests = random.integers(0, distinct, (chunk, 2)).astype(np.uint64)
                digests[:, 1] = digests[:, 0]
                classes = random.integers(0, 10, chunk).astype(np.int32)
                finder.add(0, start, digests, classes)
            finder.find()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most_rows * ROW_MEMORY
        repeated = 0 if distinct > 50 else 12 * most_rows - 50
        assert repeated == finder.repeated[0].count


def test_a_full_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ingest of many rows that cannot write its temporary file publishes nothing."""
    monkeypatch.setattr("pipeline.findings.MOST_ROWS", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(UnreachableError, match=r"Cannot write a temporary file to .*missing"):
        ingest("synthetic:40,20", tmp_path / "set")
    assert not (tmp_path / "set").exists()
