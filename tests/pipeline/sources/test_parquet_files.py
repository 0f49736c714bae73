"""Parquet files: pictures as the Hugging Face Hub has them, values, labels, and what is refused."""

import io
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet as pq

from pipeline.ingest import ingest
from pipeline.sources import parquet_split
from pipeline.sources.formats import Source, SourceOptions
from pipeline.sources.source import open_source
from pipeline.sources.splits import SplitSource
from storage.errors import BadDataError, PipelineError, UsageError
from storage.events import no_progress
from tests.storage.idx_files import write_idx

Image = pytest.importorskip("PIL.Image")

ROWS = 30
NAMES = [str(digit) for digit in range(10)]


def images(rows: int = ROWS, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(rows).integers(0, 256, (rows, *(shape or (4, 3))), np.uint8)


def labels(rows: int = ROWS, dtype: type = np.int64) -> NDArray[Any]:
    return (np.arange(rows) % 10).astype(dtype)


def encoded(values: NDArray[np.uint8], form: str = "PNG") -> list[bytes]:
    pictures = []
    for value in values:
        buffer = io.BytesIO()
        Image.fromarray(value).save(buffer, form)
        pictures.append(buffer.getvalue())
    return pictures


def struct(pictures: Sequence[bytes | None]) -> pa.StructArray:
    """Return a column as the library datasets writes it."""
    paths = pa.array([f"{number}.png" for number in range(len(pictures))])
    return pa.StructArray.from_arrays([pa.array(pictures, pa.binary()), paths], ["bytes", "path"])


def hub_table(rows: int = ROWS, names: list[str] | None = None, **columns: Any) -> pa.Table:
    """Return a table as on the Hub; `columns` replace `image` or `label`, or add others."""
    label = {"_type": "ClassLabel", "names": NAMES if names is None else names}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    table = {"image": struct(encoded(images(rows))), "label": pa.array(labels(rows))} | columns
    return pa.table(table).replace_schema_metadata({"huggingface": json.dumps(info)})


def write(path: Path, table: pa.Table | dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, **options)
    return path


def opened(path: Path, **options: Any) -> Source:
    return open_source(str(path), SourceOptions(**options))


def read(split: SplitSource, rows: int = 7) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return all rows of a split, loaded from each part in two halves."""
    blocks = []
    for part in split.parts(rows):
        middle = (part.start + part.stop) // 2
        blocks += [part.load(part.start, middle), part.load(middle, part.stop)]
    classes = [block for _, block in blocks if block is not None]
    together = np.concatenate(classes) if classes else None
    return np.concatenate([block for block, _ in blocks]), together


def rows_of(path: Path, **options: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
    return read(opened(path, **options).splits[0])


def refusal(path: Path, error: type[PipelineError] = BadDataError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        for split in opened(path, **options).splits:
            read(split)
    return str(caught.value)


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
    np.testing.assert_array_equal(images(), got)
    np.testing.assert_array_equal(labels(), classes)


def test_large_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that take more bytes than their pixels are held decoded, in the same order."""
    path = write(tmp_path / "train.parquet", hub_table())
    monkeypatch.setattr("pipeline.sources.picture_split.LEAST_BYTES_HELD", 300)
    monkeypatch.setattr(parquet_split, "MOST_AT_ONCE", 3)
    split = opened(path).splits[0]
    pictures: list[Any] = [picture for part in split.parts(20) for picture in part.pictures]
    assert {bytes, np.ndarray} == set(map(type, pictures))
    np.testing.assert_array_equal(images(), read(split, 20)[0])


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra that installs the library."""
    path = write(tmp_path / "train.parquet", hub_table())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install '.[parquet]'" in refusal(path, UsageError)


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


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["balanced/train-0", "letters/train-0"], "files of several sets (balanced, letters)"),
        (["emnist-digits-train", "emnist-letters-train"], "(emnist-digits, emnist-letters)"),
        (["train-0", "more"], "more.parquet has no split in its name, but other files have"),
        (["train-00000-of-00002"], "train-00001-of-00002.parquet is missing, one of 2 files"),
    ],
)
def test_sets_that_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    """Files of several sets are not joined, and a missing shard is noticed."""
    for name in names:
        write(tmp_path / f"{name}.parquet", hub_table())
    assert message in refusal(tmp_path)


def test_idx_files_win(tmp_path: Path) -> None:
    """A directory of IDX files stays one, whatever accompanies them."""
    write_idx(tmp_path / "train-images-idx3-ubyte", images())
    write(tmp_path / "train.parquet", hub_table())
    assert opened(tmp_path).description.startswith("IDX files")


COLUMNS: dict[str, Any] = {
    "binary": pa.array(encoded(images()), pa.binary()),
    "large_binary": pa.array(encoded(images()), pa.large_binary()),
    "nested": pa.array(images().tolist(), pa.list_(pa.list_(pa.uint8()))),
    "fixed": pa.array(images().tolist(), pa.list_(pa.list_(pa.uint8(), 3), 4)),
    "wide": pa.array(images().tolist(), pa.large_list(pa.list_(pa.int64()))),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(images()),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_images(tmp_path: Path, name: str) -> None:
    """Pictures without a path, and lists of numbers, are images too; int64 is stored as bytes."""
    path = write(tmp_path / "train.parquet", {"image": COLUMNS[name], "label": labels()})
    split = opened(path).splits[0]
    got, classes = read(split)
    assert np.uint8 == split.dtype == got.dtype
    np.testing.assert_array_equal(images(), got)
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


def test_integers_that_are_too_wide(tmp_path: Path) -> None:
    """Integers beyond 32 bits are refused before anything is written."""
    values = pa.array([[2**40, 0, 0, 0]], pa.list_(pa.int64()))
    assert "int64 values from 0 to 1,099,511," in refusal(
        write(tmp_path / "train.parquet", {"image": values})
    )


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


def replaced(values: Sequence[Any], row: int, value: Any) -> list[Any]:
    return [*values[:row], value, *values[row + 1 :]]


PICTURES = encoded(images())
LISTS = images().tolist()
BAD_TABLES: list[tuple[dict[str, Any], str]] = [
    ({"image": struct(replaced(PICTURES, 17, None))}, "row 17, column 'image.bytes', has no value"),
    ({"image": struct(replaced(PICTURES, 17, b"x"))}, "train.parquet: row 17 is not a PNG, JPEG"),
    (
        {"image": struct(replaced(PICTURES, 17, encoded(images(1, 5, 3))[0]))},
        "row 17 has 5 x 3 pixels (height x width), but the first picture has 4 x 3",
    ),
    ({"image": pa.array(replaced(LISTS, 17, None))}, "row 17, column 'image', has no value"),
    ({"image": pa.array(replaced(LISTS, 17, [[1]] * 4))}, "row 17, column 'image', has a list of"),
    ({"image": pa.array(replaced(LISTS, 17, [[None] * 3] * 4))}, "row 17, column 'image', has no"),
    ({"image": pa.array([[]] * ROWS, pa.list_(pa.uint8()))}, "row 0, column 'image', has a list"),
    ({"image": pa.array(["1.png"] * ROWS)}, "paths of pictures are not followed"),
    ({"other": struct(PICTURES), "image": pa.array([1] * ROWS)}, ""),
    ({"a": struct(PICTURES), "image": pa.array([1] * ROWS), "b": COLUMNS["binary"]}, "several co"),
    ({"label": replaced(labels().tolist(), 17, None)}, "row 17, column 'label', has no label"),
    ({"label": replaced(labels().tolist(), 17, -1)}, "row 17, column 'label', has no label"),
    ({"label": replaced(labels().tolist(), 17, -7)}, "row 17, column 'label', has label -7"),
    ({"label": replaced(labels().tolist(), 17, 10)}, "label 10, but the file names 10 classes"),
    ({"label": replaced(labels().tolist(), 17, 0.5)}, "row 17, column 'label', has label 0.5"),
    ({"label": replaced(["a"] * ROWS, 17, " ")}, "row 17, column 'label', has label ' '"),
    ({"label": [[1]] * ROWS}, "column 'label' has the type list<"),
]


@pytest.mark.parametrize(("columns", "message"), BAD_TABLES)
def test_tables_that_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    """The message names the file, the row and the column."""
    table = hub_table(**columns)
    if "a" in columns or "other" in columns:
        table = table.drop_columns(["image"])
    path = write(tmp_path / "train.parquet", table, row_group_size=11)
    if message:
        assert message in refusal(path)
        assert str(path) in refusal(path)
    else:
        assert ROWS == len(rows_of(path)[0])


def test_files_that_are_refused(tmp_path: Path) -> None:
    """Empty, damaged and encrypted files, and shards that differ, are refused with their names."""
    path = write(tmp_path / "train.parquet", hub_table())
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    assert f"{path} is damaged, or is not a Parquet file: " in refusal(path)
    path.write_bytes(b"PARE" + content[4:-4] + b"PARE")
    assert "is encrypted; expected plain Parquet" in refusal(path)
    write(path, hub_table().slice(0, 0))
    assert "has no rows; expected an image in each row" in refusal(path)
    write(tmp_path / "two/train-0.parquet", hub_table())
    write(tmp_path / "two/train-1.parquet", hub_table(label=pa.array(["a"] * ROWS)))
    write(tmp_path / "two/train-1.parquet", {"image": COLUMNS["nested"], "label": labels()})
    assert "train-1.parquet has images in image (list<" in refusal(tmp_path / "two")


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


def test_changed_file(tmp_path: Path) -> None:
    """A file that is replaced after its digest was taken is refused."""
    path = write(tmp_path / "train.parquet", hub_table())
    split = opened(path).splits[0]
    split.fingerprint(no_progress)
    write(path, hub_table(label=pa.array(labels()[::-1])))
    with pytest.raises(BadDataError, match="changed while it was being read"):
        read(split)


FUZZ = """
import random, sys
from pathlib import Path
from tests.pipeline.sources.test_parquet_files import fuzz
fuzz(Path(sys.argv[1]), int(sys.argv[2]))
"""


def fuzz(directory: Path, seed: int) -> None:
    """Damage files at random; each must be refused, or give rows."""
    random_ = random.Random(seed)
    tables = [
        hub_table(),
        pa.table({"image": COLUMNS["nested"], "label": labels()}),
        pa.table(
            {f"p{n}": labels() for n in range(9)} | {"label": [f"c{n % 5}" for n in labels()]}
        ),
    ]
    path = directory / "train.parquet"
    for number in range(200):
        table = tables[number % len(tables)]
        codec = random_.choice(["none", "snappy", "zstd"])
        write(path, table, compression=codec, row_group_size=11, write_page_checksum=number % 2 > 0)
        content = bytearray(path.read_bytes())
        for _ in range(random_.choice([1, 1, 3, 20])):
            footer = random_.random() < 0.5
            place = random_.randrange(max(0, len(content) - 900) if footer else 0, len(content))
            content[place] = random_.choice([0, 1, 0x7F, 0xFF, random_.randrange(256)])
        path.write_bytes(content[: random_.choice([len(content)] * 9 + [random_.randrange(2000)])])
        try:
            for split in opened(path).splits:
                got, _ = read(split)
                assert split.rows == len(got)
        except PipelineError as error:
            assert len(str(error)) < 2000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_fuzz(tmp_path: Path, seed: int) -> None:
    """A damaged file ends in a message: no other exception, no crash, and no absurd memory."""
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, (6 << 30,) * 2)\n{FUZZ}"
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path), str(seed)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert 0 == done.returncode, done.stderr[-3000:]


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
