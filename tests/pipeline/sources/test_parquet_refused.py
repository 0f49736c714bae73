"""Parquet files that are refused, with file, row and column."""

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage.errors import BadDataError, PipelineError, UsageError
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
    struct,
    write,
)
from tests.pipeline.sources.small_sets import images, read


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra that installs the library."""
    path = write(tmp_path / "train.parquet", hub_table())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install '.[parquet]'" in refusal(path, UsageError)


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


def test_integers_that_are_too_wide(tmp_path: Path) -> None:
    """Integers beyond 32 bits are refused before anything is written."""
    values = pa.array([[2**40, 0, 0, 0]], pa.list_(pa.int64()))
    assert "int64 values from 0 to 1,099,511," in refusal(
        write(tmp_path / "train.parquet", {"image": values})
    )


def replaced(values: Sequence[Any], row: int, value: Any) -> list[Any]:
    return [*values[:row], value, *values[row + 1 :]]


PICTURES = encoded(images(ROWS))


LISTS = images(ROWS).tolist()


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
from tests.pipeline.sources.test_parquet_refused import fuzz
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
