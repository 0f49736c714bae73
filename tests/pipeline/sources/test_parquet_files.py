"""Parquet files: pictures as the Hugging Face Hub has them, values, labels and splits."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from pipeline.ingest import ingest
from pipeline.sources import parquet_split
from storage.errors import UsageError
from storage.events import no_progress
from tests.pipeline.sources.parquet_tables import (
    COLUMNS,
    ROWS,
    encoded,
    hub_table,
    labels,
    opened,
    refusal,
    rows_of,
    write,
)
from tests.pipeline.sources.small_sets import images, read
from tests.storage.idx_files import write_idx


def test_the_same_dataset_as_from_idx(tmp_path: Path) -> None:
    """Pictures of the Hub make the dataset that IDX files of the same images make."""
    for split, rows in (("train", ROWS), ("test", 9)):
        write(tmp_path / f"hub/digits/{split}-00000-of-00001.parquet", hub_table(rows))
        (tmp_path / "idx/digits").mkdir(parents=True, exist_ok=True)
        write_idx(tmp_path / f"idx/digits/{split}-images-idx3-ubyte", images(rows))
        write_idx(tmp_path / f"idx/digits/{split}-labels-idx1-ubyte", labels(rows, np.uint8))
    hub, idx = (
        ingest(str(tmp_path / name / "digits"), tmp_path / "data" / name, rows_per_chunk=4).dataset
        for name in ("hub", "idx")
    )
    assert idx.digest == hub.digest


@pytest.mark.parametrize("row_group_size", [1, 4, ROWS])
@pytest.mark.parametrize("rows_per_part", [1, 7, ROWS, 1000])
def test_parts(tmp_path: Path, row_group_size: int, rows_per_part: int) -> None:
    """Row groups and parts of any sizes give all rows in order."""
    path = write(tmp_path / "train.parquet", hub_table(), row_group_size=row_group_size)
    split = opened(path).splits[0]
    parts = list(split.parts(rows_per_part))
    assert [part.start for part in parts] == list(range(0, ROWS, rows_per_part))
    got, classes = read(split, rows_per_part)
    np.testing.assert_array_equal(images(ROWS), got)
    np.testing.assert_array_equal(labels(), classes)


def test_large_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that take more bytes than their pixels are held decoded, in the same order."""
    path = write(tmp_path / "train.parquet", hub_table())
    monkeypatch.setattr("pipeline.sources.picture_split.LEAST_BYTES_HELD", 300)
    monkeypatch.setattr(parquet_split, "MOST_AT_ONCE", 3)
    split = opened(path).splits[0]
    pictures: list[Any] = [picture for part in split.parts(20) for picture in part.pictures]
    assert {bytes, np.ndarray} == set(map(type, pictures))
    np.testing.assert_array_equal(images(ROWS), read(split, 20)[0])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train-00000-of-00001", "test-00000-of-00001"], {"train": 1, "test": 1}),
        (["mnist/train/0000", "mnist/train/0001", "mnist/test/0000"], {"train": 2, "test": 1}),
        (["data/validation-0", "data/train-0"], {"train": 1, "validation": 1}),
        (["part-0", "part-1", "part-2"], {"train": 3}),
        (["digits_t10k"], {"test": 1}),
    ],
)
def test_splits(tmp_path: Path, names: list[str], expected: dict[str, int]) -> None:
    """The split is in the name of the file or of its directory."""
    for name in names:
        write(tmp_path / f"set/{name}.parquet", hub_table())
    (tmp_path / "set/README.md").write_text("Digits")
    source = opened(tmp_path / "set")
    assert "set" == source.name
    assert {split.name: split.rows // ROWS for split in source.splits} == expected


def test_shards_are_in_natural_order(tmp_path: Path) -> None:
    """Shard 10 follows shard 9, and a dataset's record has the files in this order."""
    table = hub_table(12)
    for number in range(12):
        write(tmp_path / f"train-{number}.parquet", table.slice(number, 1))
    split = opened(tmp_path).splits[0]
    split.fingerprint(no_progress)
    np.testing.assert_array_equal(images(12), read(split)[0])
    assert "train-10.parquet" == split.files()[10].name


def test_one_file(tmp_path: Path) -> None:
    """A file is the split that its name says, or its directory's, or train."""
    cases = {"a/test.parquet": "test", "b/dev/0000.parquet": "validation", "c/digits.pq": "train"}
    for name, split in cases.items():
        assert [split] == [s.name for s in opened(write(tmp_path / name, hub_table())).splits]
    assert "digits" == opened(tmp_path / "c/digits.pq").name


def test_idx_files_win(tmp_path: Path) -> None:
    """A directory of IDX files stays one, whatever accompanies them."""
    write_idx(tmp_path / "train-images-idx3-ubyte", images(ROWS))
    write(tmp_path / "train.parquet", hub_table())
    assert opened(tmp_path).description.startswith("IDX files")


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_images(tmp_path: Path, name: str) -> None:
    """Pictures without a path, and lists of numbers, are images too; int64 is stored as bytes."""
    path = write(tmp_path / "train.parquet", {"image": COLUMNS[name], "label": labels()})
    split = opened(path).splits[0]
    got, classes = read(split)
    assert np.uint8 == split.dtype == got.dtype
    np.testing.assert_array_equal(images(ROWS), got)
    np.testing.assert_array_equal(labels(), classes)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (pa.bool_(), "uint8"),
        (pa.int8(), "int8"),
        (pa.uint16(), "int32"),
        (pa.float16(), "float32"),
        (pa.float64(), "float64"),
        (pa.int64(), "uint8"),
    ],
)
def test_columns_of_values(tmp_path: Path, stored: pa.DataType, expected: str) -> None:
    """A column for each pixel, as pandas writes it, is an image; row numbers are not used."""
    values = images(ROWS, 9) % 2
    pixels = {f"pixel{n}": pa.array(values[:, n]).cast(pa.int8()).cast(stored) for n in range(9)}
    index = {"__index_level_0__": pa.array(range(ROWS))}
    path = write(tmp_path / "train.parquet", {"label": labels()} | pixels | index)
    source = opened(path)
    got, classes = read(source.splits[0])
    assert expected == source.splits[0].dtype == got.dtype
    np.testing.assert_array_equal(values.reshape(-1, 3, 3), got)
    np.testing.assert_array_equal(labels(), classes)
    assert (3, 3, 1) == opened(path, shape=(3, 3, 1)).splits[0].image_shape
    assert "--shape 2x4 does not fit" in refusal(path, UsageError, shape=(2, 4))


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (pa.array([f"c{n % 10 + 2}" for n in range(ROWS)]), [f"c{n + 2}" for n in range(10)]),
        (pa.array([str(n % 10) for n in range(ROWS)]).dictionary_encode(), None),
        (pa.array(labels().astype(float)), None),
        (pa.array(labels(), pa.uint8()), None),
    ],
)
def test_labels(tmp_path: Path, column: pa.Array, names: list[str] | None) -> None:
    """Labels are whole numbers, or texts; texts that are numbers stand for them."""
    source = opened(write(tmp_path / "train.parquet", {"image": COLUMNS["fixed"], "y": column}))
    np.testing.assert_array_equal(labels(), read(source.splits[0])[1])
    assert list(range(10)) == source.splits[0].label_values(no_progress)
    assert names == (source.class_names and list(source.class_names))


def test_texts_of_many_digits(tmp_path: Path) -> None:
    """Texts of more than 18 digits are names: they would not fit 64 bits."""
    column = pa.array(["9" * 30, "1"] * (ROWS // 2))
    source = opened(write(tmp_path / "train.parquet", hub_table(label=column, names=[])))
    assert ("1", "9" * 30) == source.class_names
    np.testing.assert_array_equal(1 - labels() % 2, read(source.splits[0])[1])


@pytest.mark.slow
def test_repeated_values(tmp_path: Path) -> None:
    """Values that repeat, of which a file stores few bytes, are not read all at once."""
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(12 * 2**20, "u1")), 2**20)
    (split,) = opened(write(tmp_path / "train.parquet", {"image": values})).splits
    assert isinstance(split, parquet_split.ParquetSplit)
    assert 4 == split._at_once
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2**26 + 1, "u1")), 2**26 + 1)
    message = refusal(write(tmp_path / "wide.parquet", {"image": wide}))
    assert "images of 67,108,865 bytes on average; expected at most 67,108,864" in message


def test_class_names(tmp_path: Path) -> None:
    """The names of classes are in the metadata of the file; damaged ones are left out."""
    names = [f"class {n}" for n in range(10)]
    path = write(tmp_path / "train.parquet", hub_table(names=names))
    assert tuple(names) == opened(path).class_names
    for damaged in (b"{", b"[" * 100_000, b'{"info": {"features": []}}', b"null"):
        table = hub_table().replace_schema_metadata({"huggingface": damaged})
        assert opened(write(path, table)).class_names is None


@pytest.mark.parametrize("column", [pa.array([-1] * ROWS), pa.nulls(ROWS, pa.int64())])
def test_split_without_labels(tmp_path: Path, column: pa.Array) -> None:
    """A split in which each label is -1, as the Hub marks it, or missing has no labels."""
    write(tmp_path / "train.parquet", hub_table())
    write(tmp_path / "test.parquet", hub_table(label=column))
    train, test = opened(tmp_path).splits
    assert (True, False) == (train.has_labels, test.has_labels)
    assert ([], None) == (test.label_values(no_progress), read(test)[1])


def test_label_column(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`--label` chooses a column; without a usual name there are no labels, with a warning."""
    table = {"image": COLUMNS["fixed"], "number": labels()}
    path = write(tmp_path / "train.parquet", table)
    assert rows_of(path)[1] is None
    assert "If one of 'number' has them, pass --label." in caplog.text
    np.testing.assert_array_equal(labels(), rows_of(path, label="number")[1])
    assert "Did you mean 'number'?" in refusal(path, UsageError, label="numbre")
    assert "column 'image' has the type" in refusal(path, label="image")


def test_options(tmp_path: Path) -> None:
    """Pictures take --resize and --channels, and values take --shape."""
    pictures = write(tmp_path / "train.parquet", hub_table())
    values = write(tmp_path / "test.parquet", {"image": COLUMNS["fixed"], "label": labels()})
    source = opened(pictures, resize=(8, 6), channels="rgb")
    assert (8, 6, 3) == source.splits[0].image_shape == read(source.splits[0])[0].shape[1:]
    assert opened(pictures).fingerprint() != source.fingerprint()
    assert "--shape applies to images that are stored" in refusal(pictures, UsageError, shape=(4,))
    assert "--resize applies to pictures" in refusal(values, UsageError, resize=(4, 3))
    assert "does not apply" in refusal(values, UsageError, holdout=3)


MEMORY = """
import resource, sys
from pathlib import Path
from pipeline.ingest import ingest
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ingest(sys.argv[1], sys.argv[2], threads=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("content", ["pictures", "values", "large pictures"])
def test_memory(tmp_path: Path, content: str) -> None:
    """Memory does not grow with the rows, although a file is one row group."""
    size = 300 if content == "large pictures" else 28
    batch = images(64, size, size)
    if content == "values":
        column: Any = pa.array(batch.reshape(64, -1).tolist(), pa.list_(pa.uint8()))
    else:
        column = pa.array(encoded(batch), pa.binary())
    peaks = []
    for times in (10, 20) if content == "large pictures" else (600, 1800):
        chunk = pa.table({"image": column, "label": labels(64)})
        table = pa.concat_tables([chunk] * times)
        path = write(
            tmp_path / f"{times}.parquet", table, row_group_size=10**6, use_dictionary=False
        )
        assert 1 == pq.ParquetFile(path).num_row_groups
        options = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / f"data-{times}")]
        done = subprocess.run(options, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) * 1024)
    assert peaks[1] < 1.1 * peaks[0] + 16 * 2**20, peaks
