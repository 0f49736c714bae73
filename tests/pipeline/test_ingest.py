"""Ingest publishes a complete dataset from IDX files or generated digits, or nothing."""

import gzip
import hashlib
import json
import lzma
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.convert import convert_part
from pipeline.ingest import ingest
from pipeline.sources.digits import draw_digits
from pipeline.sources.formats import SourceOptions
from pipeline.sources.idx_directory import open_directory
from storage.dataset import Dataset, open_dataset
from storage.dataset_writer import dataset_lock
from storage.errors import (
    BadDataError,
    ConflictError,
    PipelineError,
)
from storage.idx import IdxReader
from storage.places import open_location
from storage.preparation import Preparation, ValueRange
from tests.storage.artefacts import stored_rows
from tests.storage.idx_files import write_idx

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def images(rows: int, *row_shape: int, dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    """Integers that every element type can hold."""
    random = np.random.default_rng([rows, seed])
    return random.integers(0, 120, (rows, *(row_shape or (4, 3)))).astype(dtype)


def labels(rows: int, values: tuple[int, ...] = (0, 1, 2)) -> NDArray[Any]:
    dtype = np.uint8 if max(values) < 256 else np.int32
    return np.random.default_rng(rows).choice(values, rows).astype(dtype)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with 37 training and 11 test images of three classes."""
    directory = tmp_path / "source"
    directory.mkdir()
    write_idx(directory / TRAIN_IMAGES, images(37))
    write_idx(directory / TRAIN_LABELS, labels(37))
    write_idx(directory / TEST_IMAGES, images(11))
    write_idx(directory / TEST_LABELS, labels(11))
    return directory


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A place for the dataset, in a directory that does not exist yet."""
    return tmp_path / "data" / "set"


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, except locks."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def refusal(error: type[PipelineError], *arguments: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        ingest(*arguments, **options)
    return str(caught.value)


def assert_all_rows(dataset: Dataset, rows: dict[str, int]) -> None:
    """Assert that the dataset has the rows of `source`: images with the bias first, and labels."""
    assert list(rows) == list(dataset.splits)
    for split, count in rows.items():
        stored = stored_rows(dataset.split(split))
        assert images(count).reshape(count, -1).tolist() == stored.inputs[:, 1:].tolist()
        assert {255} == set(stored.inputs[:, 0].tolist())
        assert stored.targets is not None
        assert np.eye(3, dtype=int)[labels(count)].tolist() == stored.targets.tolist()


@pytest.mark.parametrize("rows_per_chunk", [None, 1, 8, 37, 1000])
def test_a_directory(source: Path, out: Path, rows_per_chunk: int | None) -> None:
    """All rows are stored unchanged, in chunks of any size."""
    result = ingest(str(source), out, rows_per_chunk=rows_per_chunk)
    assert not result.already_done
    assert f"IDX files in {source}" == result.source
    dataset = open_dataset(open_location(out))
    assert_all_rows(dataset, {"train": 37, "test": 11})
    assert min(rows_per_chunk or 37, 37) == dataset.split("train").schema.chunk_rows
    assert min(rows_per_chunk or 11, 11) == dataset.split("test").schema.chunk_rows


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_files(source: Path, out: Path, ending: str, compress: Any) -> None:
    """Compressed files give the rows and the dataset digest of the raw ones."""
    raw = ingest(str(source), out.with_name("raw"), rows_per_chunk=8).dataset
    for path in list(source.iterdir()):
        path.with_name(path.name + ending).write_bytes(compress(path.read_bytes()))
        path.unlink()
    dataset = ingest(str(source), out, rows_per_chunk=8).dataset
    assert_all_rows(dataset, {"train": 37, "test": 11})
    assert raw.digest == dataset.digest


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("row_shape", [(2, 5), (7,), (2, 3, 2)])
def test_element_types_and_shapes(
    tmp_path: Path, out: Path, dtype: str, row_shape: tuple[int, ...]
) -> None:
    """Images keep any IDX type and shape; their range of values is mapped to [0, 1]."""
    write_idx(tmp_path / TRAIN_IMAGES, images(9, *row_shape, dtype=dtype))
    write_idx(tmp_path / TRAIN_LABELS, labels(9))
    dataset = ingest(str(tmp_path), out, rows_per_chunk=4).dataset
    inputs = stored_rows(dataset.split("train")).inputs
    assert np.dtype(dtype) == inputs.dtype
    assert images(9, *row_shape).reshape(9, -1).tolist() == inputs[:, 1:].tolist()
    values = inputs[:, 1:]
    low, high = (0, 255) if dtype == "uint8" else (int(values.min()), int(values.max()))
    assert {high} == set(inputs[:, 0].tolist())
    assert row_shape == dataset.image_shape
    assert Preparation(ValueRange(low, high)) == dataset.preparation
    attributes = json.loads(dataset.tree.get("train/inputs/zarr.json"))["attributes"]
    assert pytest.approx(1) == high * attributes["scale_factor"] + attributes["add_offset"]


@pytest.mark.parametrize("values", [(1, 26, 5), (7, 0, 300_000), (200,)])
def test_labels(tmp_path: Path, out: Path, values: tuple[int, ...]) -> None:
    """The classes are the distinct labels in ascending order, however large."""
    classes = labels(40, values)
    write_idx(tmp_path / TRAIN_IMAGES, images(40))
    write_idx(tmp_path / TRAIN_LABELS, classes)
    dataset = ingest(str(tmp_path), out, rows_per_chunk=7).dataset
    assert [str(value) for value in sorted(values)] == list(dataset.class_names)
    targets = stored_rows(dataset.split("train")).targets
    assert targets is not None
    assert classes.tolist() == np.array(sorted(values))[targets.argmax(axis=1)].tolist()
    counts = [int((classes == value).sum()) for value in sorted(values)]
    assert counts == list(dataset.split("train").record.class_counts)


def test_classes_of_both_splits(tmp_path: Path, out: Path) -> None:
    """A class of only one split has a column in the other split's targets too."""
    for name, values in [("train", [1, 2, 1]), ("test", [3, 1, 1])]:
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", images(3))
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", np.array(values, np.uint8))
    dataset = ingest(str(tmp_path), out).dataset
    assert ("1", "2", "3") == dataset.class_names
    recorded = [(file["split"], file["kind"]) for file in dataset.sources]
    assert [("train", "images"), ("train", "labels")] == recorded[:2]
    assert (2, 1, 0) == dataset.split("train").record.class_counts
    assert (2, 0, 1) == dataset.split("test").record.class_counts


def test_an_unlabelled_training_split(
    source: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says that such a dataset cannot be trained on."""
    (source / TRAIN_LABELS).unlink()
    ingest(str(source), out)
    (message,) = caplog.messages
    assert "The train split has no labels" in message


def test_an_unlabelled_split(source: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A test split without labels is stored without targets, next to a labelled one."""
    (source / TEST_LABELS).unlink()
    dataset = ingest(str(source), out, rows_per_chunk=4).dataset
    assert "one-hot" in dataset.transforms
    stored = stored_rows(dataset.split("test"))
    assert images(11).reshape(11, -1).tolist() == stored.inputs[:, 1:].tolist()
    assert stored.targets is None
    assert 3 == dataset.split("train").schema.classes
    assert [] == caplog.messages


def test_already_done(source: Path, out: Path) -> None:
    """Ingesting the same source again writes nothing, even if its files have moved."""
    first = ingest(str(source), out, rows_per_chunk=8)
    before = content(out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    moved = source.rename(source.with_name("moved"))
    again = ingest(str(moved), out, rows_per_chunk=8)
    assert (False, True) == (first.already_done, again.already_done)
    assert first.dataset.digest == again.dataset.digest
    assert (
        repr(again) == f"<IngestResult: 37 train, 11 test rows of source in {out}, already there>"
    )
    assert before == content(out)
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_another_source_or_other_chunks_are_a_conflict(source: Path, out: Path) -> None:
    """Default chunks accept any existing size; another size, or one other pixel, is a conflict."""
    ingest(str(source), out, rows_per_chunk=8)
    before = content(out)
    assert ingest(str(source), out).already_done
    message = refusal(ConflictError, str(source), out, rows_per_chunk=9)
    assert "with 8 rows per chunk; --rows-per-chunk asks for 9." in message
    changed = images(37)
    changed[30, 1, 1] ^= 1
    write_idx(source / TRAIN_IMAGES, changed)
    message = refusal(ConflictError, str(source), out)
    assert "these differ: train images. Pass --overwrite to replace it, or choose" in message
    assert before == content(out)


def test_overwrite(source: Path, out: Path) -> None:
    """With `overwrite`, an ingest replaces the dataset completely."""
    old = ingest(str(source), out, rows_per_chunk=2)
    write_idx(source / TRAIN_IMAGES, images(37, seed=1))
    new = ingest(str(source), out, rows_per_chunk=8, overwrite=True)
    assert not new.already_done
    assert old.dataset.digest != new.dataset.digest
    inputs = stored_rows(open_dataset(open_location(out)).split("train")).inputs
    assert images(37, seed=1).reshape(37, -1).tolist() == inputs[:, 1:].tolist()
    assert ["set"] == [path.name for path in out.parent.iterdir() if path.suffix != ".lock"]
    fresh = ingest(str(source), out.with_name("fresh"), rows_per_chunk=8)
    assert content(fresh.dataset.location.path) == content(out)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_threads_make_no_difference(source: Path, out: Path, seed: int) -> None:
    """Any number of threads writes the same files, byte for byte."""
    spec = str(source) if seed else "synthetic:50,9"
    datasets = [
        ingest(
            spec,
            out / str(threads),
            rows_per_chunk=3,
            options=SourceOptions(seed=seed),
            threads=threads,
        ).dataset
        for threads in (1, 2, 5)
    ]
    assert 1 == len({dataset.digest for dataset in datasets})
    first, *others = [content(dataset.location.path) for dataset in datasets]
    assert [first, first] == others


def truncate_gz(path: Path) -> None:
    packed = gzip.compress(path.read_bytes(), compresslevel=0, mtime=0)
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(packed[: len(packed) - 60])


@pytest.mark.parametrize("threads", [1, 4])
def test_a_failure_in_the_middle(source: Path, out: Path, threads: int) -> None:
    """A source that proves damaged after rows were written leaves nothing behind."""
    truncate_gz(source / TEST_IMAGES)
    message = refusal(BadDataError, str(source), out, rows_per_chunk=1, threads=threads)
    assert TEST_IMAGES in message
    assert {} == content(out.parent)
    assert not out.exists()


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_failure_leaves_the_old_dataset(source: Path, out: Path, overwrite: bool) -> None:
    """A failing ingest leaves an existing dataset intact, with or without `overwrite`."""
    old = ingest(str(source), out, rows_per_chunk=2)
    before = content(out.parent)
    truncate_gz(source / TEST_IMAGES)
    with pytest.raises(PipelineError):
        ingest(str(source), out, rows_per_chunk=2, overwrite=overwrite)
    assert before == content(out.parent)
    assert old.dataset.digest == open_dataset(open_location(out)).digest


def test_a_failing_progress_report(source: Path, out: Path) -> None:
    """An ingest that is interrupted in the middle, as by Ctrl-C, leaves nothing behind."""

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "ingest test" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(str(source), out, rows_per_chunk=2, progress=interrupt)
    assert {} == content(out.parent)
    assert not ingest(str(source), out, rows_per_chunk=2).already_done


def test_progress(source: Path, out: Path) -> None:
    """Progress counts each split's rows from 0 to all."""
    reports: list[tuple[str, int, int]] = []
    ingest(str(source), out, rows_per_chunk=20, progress=lambda *progress: reports.append(progress))
    expected = [("ingest train", done, 37) for done in (0, 20, 37)]
    expected += [("ingest test", done, 11) for done in (0, 11)]
    assert expected == reports[-5:]
    assert {0} == {done for _, done, _ in reports[:-5]}  # while files are hashed and labels read


def test_a_damaged_dataset_is_not_taken_for_done(source: Path, out: Path) -> None:
    """A dataset with damaged metadata is reported, and replaced only on request."""
    ingest(str(source), out)
    (out / "train" / "inputs" / "zarr.json").write_text("{}")
    assert "pipeline ingest --overwrite" in refusal(BadDataError, str(source), out)
    assert not ingest(str(source), out, overwrite=True).already_done


def test_one_writer_at_a_time(source: Path, out: Path) -> None:
    """While another ingest writes to the same place, this one is refused and names it."""
    with dataset_lock(open_location(out)):
        message = refusal(ConflictError, str(source), out)
    assert f"{out} is being written by process {os.getpid()}" in message
    assert not ingest(str(source), out).already_done


def test_an_interrupted_replacement_is_undone(source: Path, out: Path) -> None:
    """After a kill between the two renames, the next ingest restores the old dataset."""
    ingest(str(source), out)
    out.rename(out.with_name(".set.replaced"))
    assert ingest(str(source), out).already_done


def test_a_file_that_changes_under_way(source: Path, out: Path) -> None:
    """A label that appears after the classes were counted is refused with its row."""
    opened = open_directory(source)

    def change(stage: str, done: int, total: int, note: str = "") -> None:
        if (stage, done) == ("ingest train", 37):
            with IdxReader(source / TEST_LABELS) as reader:
                labels = reader.read_rows(11).copy()
            labels[8:] = 9
            write_idx(source / TEST_LABELS, labels)

    message = refusal(BadDataError, opened, out, rows_per_chunk=3, progress=change)
    assert "Row 8 has label 9, which is not one of the classes" in message
    assert not out.exists()


def test_synthetic(out: Path) -> None:
    """Generated digits are stored as drawn, and depend on the seed."""
    dataset = ingest("synthetic:23,6", out, rows_per_chunk=5, options=SourceOptions(seed=3)).dataset
    drawn, classes = draw_digits(3, "train", 0, 23)
    stored = stored_rows(dataset.split("train"))
    assert drawn.reshape(23, -1).tolist() == stored.inputs[:, 1:].tolist()
    assert stored.targets is not None
    assert classes.tolist() == stored.targets.argmax(axis=1).tolist()
    assert tuple("0123456789") == dataset.class_names
    assert ingest(
        "synthetic:23,6", out, rows_per_chunk=5, options=SourceOptions(seed=3)
    ).already_done
    refusal(ConflictError, "synthetic:23,6", out, rows_per_chunk=5, options=SourceOptions(seed=4))


@pytest.mark.slow
def test_mnist(mnist_dir: Path, tmp_path: Path, out: Path) -> None:
    """MNIST: its class counts, every row as in its files, and its permanent digest."""
    dataset = ingest(str(mnist_dir), out).dataset
    counts = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    assert counts == dataset.split("train").record.class_counts
    counts = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    assert counts == dataset.split("test").record.class_counts
    assert (30, 5) == tuple(dataset.split(name).schema.chunks for name in ("train", "test"))
    # The rows, written to IDX files again, equal the decompressed files byte for byte.
    expected = {
        TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
    for split, names in [
        ("train", (TRAIN_IMAGES, TRAIN_LABELS)),
        ("test", (TEST_IMAGES, TEST_LABELS)),
    ]:
        stored = stored_rows(dataset.split(split))
        assert stored.targets is not None
        write_idx(tmp_path / names[0], stored.inputs[:, 1:].reshape(-1, 28, 28))
        write_idx(tmp_path / names[1], stored.targets.argmax(axis=1).astype(np.uint8))
    digests = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in expected
    }
    assert expected == digests
    assert "7100e1c181d5e2237a395f73b876d817e908c7186226448302d3e72a9c7d60dd" == dataset.digest


def test_a_part_for_each_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of an ingest convert one part each at the same time, however large parts are."""
    both = threading.Barrier(2, timeout=60)

    def together(*arguments: Any) -> Any:
        both.wait()
        return convert_part(*arguments)

    monkeypatch.setattr("pipeline.ingest.convert_part", together)
    monkeypatch.setattr("pipeline.ingest.BYTES_IN_FLIGHT", 1)
    made = ingest("synthetic:40,20", tmp_path / "set", rows_per_chunk=10, threads=2)
    assert 4 == made.dataset.split("train").schema.chunks
