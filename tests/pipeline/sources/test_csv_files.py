"""CSV files: which columns are labels and values, and what is refused, with line and column."""

import gzip
import io
import logging
import lzma
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from numpy.typing import NDArray

from pipeline.ingest import ingest
from pipeline.sources import csv_rows
from pipeline.sources.formats import SourceOptions
from pipeline.sources.source import open_source
from pipeline.sources.splits import SplitSource
from storage.errors import BadDataError, ConflictError, MissingExtraError, PipelineError, UsageError
from storage.events import no_progress
from storage.preparation import ValueRange
from tests.pipeline.sources.test_source import MNIST_NAMES, read, splits_of
from tests.pipeline.sources.test_source import write_set as write_idx_set
from tests.storage.idx_files import write_set

ROWS, SIDE = 23, 4
IMAGES = np.random.default_rng(0).integers(0, 256, (ROWS, SIDE, SIDE), np.uint8)
LABELS = np.arange(ROWS) % 7
HEADER = ",".join(["label", *(f"pixel{number}" for number in range(SIDE * SIDE))])
SMALL = "label,a,b,c,d\n3,1,2,3,4\n5,6,7,8,9\n"
"""Two rows of 2 x 2 pixels."""


def lines_of(images: NDArray[Any] = IMAGES, labels: Any = LABELS) -> list[str]:
    """The rows without a header, the label first."""
    values = images.reshape(len(images), -1).tolist()
    return [",".join(map(str, [label, *row])) for label, row in zip(labels, values, strict=True)]


def text_of(header: str = HEADER, lines: list[str] | None = None) -> str:
    return "\n".join([*([header] if header else []), *(lines or lines_of())]) + "\n"


def zipped(content: bytes, *names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names or ("../train.csv",):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, 1, mtime=0),
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
    ".zip": zipped,
}


def put(directory: Path, text: str | bytes, name: str = "train.csv") -> Path:
    path = directory / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def opened(directory: Path, text: str | bytes, **options: Any) -> SplitSource:
    (split,) = splits_of(put(directory, text), **options)
    return split


def refusal(path: Path, error: type[PipelineError] = BadDataError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        open_source(str(path), SourceOptions(**options))
    return str(caught.value)


def assert_rows(split: SplitSource, rows_per_part: int = 5) -> None:
    """Assert that a split has the images and the labels of this module."""
    images, labels = read(split, rows_per_part)
    assert (np.uint8, (SIDE, SIDE)) == (images.dtype, split.image_shape)
    np.testing.assert_array_equal(IMAGES, images)
    np.testing.assert_array_equal(LABELS, labels)
    assert sorted(set(LABELS.tolist())) == split.label_values(no_progress)


@pytest.mark.parametrize("ending", PACK)
def test_kaggle(tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture) -> None:
    """A directory as Kaggle has it, compressed or not; the example of a submission is named."""
    put(tmp_path, PACK[ending](text_of().encode()), f"train.csv{ending}")
    unlabelled = text_of(HEADER[6:], [line.partition(",")[2] for line in lines_of()[:9]])
    put(tmp_path, PACK[ending](unlabelled.encode()), f"test.csv{ending}")
    put(tmp_path, "ImageId,Label\n1,0\n", "sample_submission.csv")
    train, test = splits_of(tmp_path)
    assert "CSV files that are not used: sample_submission.csv. Used: " in caplog.text
    assert [("train", True), ("test", False)] == [(s.name, s.has_labels) for s in (train, test)]
    assert_rows(train)
    images, labels = read(test)
    np.testing.assert_array_equal(IMAGES[:9], images)
    assert labels is None
    assert [f"train.csv{ending}"] == [
        path.name for path in tmp_path.iterdir() if "train" in path.name
    ]


VARIANTS = {
    "no header": text_of(""),
    "byte order mark": "\ufeff" + text_of(),
    "Windows lines": text_of().replace("\n", "\r\n"),
    "no last line end": text_of().removesuffix("\n"),
    "blank lines": "\n" + text_of().replace("\n", "\n\n"),
    "semicolons": text_of().replace(",", ";"),
    "tabs": text_of().replace(",", "\t"),
    "spaces": text_of().replace(",", " , "),
    "quotes": '"' + text_of().strip().replace(",", '","').replace("\n", '"\n"') + '"\n',
    "fractions": text_of("", [line.replace(",", ".0,") + ".0" for line in lines_of()]),
    "exponents": "\n".join(
        ",".join(f"{float(field):.18e}" for field in line.split(",")) for line in lines_of()
    ),
    "row numbers": text_of(f",{HEADER}", [f"{n},{x}" for n, x in enumerate(lines_of())]),
    "last column": text_of(f"{HEADER},Unnamed: 0", [f"{line},9" for line in lines_of()]),
    "label last": text_of(
        HEADER[6:] + ",Class", [",".join([*x.split(",")[1:], x.split(",")[0]]) for x in lines_of()]
    ),
    "trailing delimiters": text_of(HEADER + ",", [f"{line}," for line in lines_of()]),
}


@pytest.mark.parametrize("text", VARIANTS.values(), ids=VARIANTS)
def test_variants(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delimiters, quotes, line ends and columns as other programs write them, in any block."""
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 1100)
    for rows_per_part in (1, 5, ROWS, 100):
        assert_rows(opened(tmp_path, text), rows_per_part)


@pytest.mark.parametrize("label", ["16", "0"])
def test_label_by_number(tmp_path: Path, label: str) -> None:
    """Without a header, --label is the number of a column."""
    lines = [",".join([*x.split(",")[1:], x.split(",")[0]]) for x in lines_of()]
    text = text_of("", lines_of() if label == "0" else lines)
    assert_rows(opened(tmp_path, text, label=label))


def test_header_of_numbers(tmp_path: Path) -> None:
    """A first line 0, 1, 2, ... as pandas writes it consists of names."""
    text = text_of(",".join(map(str, range(17))))
    assert_rows(opened(tmp_path, text, label="0"))
    assert "Pass --label COLUMN, such as '0' or '16'" in refusal(put(tmp_path, text))


@pytest.mark.parametrize(("shape", "columns"), [((2, 8), 16), ((2, 2, 4), 16), ((16,), 16)])
def test_shape(tmp_path: Path, shape: tuple[int, ...], columns: int) -> None:
    """--shape gives height, width and channels."""
    images, _ = read(opened(tmp_path, text_of(), shape=shape))
    np.testing.assert_array_equal(IMAGES.reshape(-1, *shape), images)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ("255", "uint8"),
        ("-1", "int16"),
        ("256", "int16"),
        ("-40000", "int32"),
        ("3000000000", "float64"),
        ("0.1", "float32"),
        ("1e3", "int16"),
    ],
)
def test_element_types(
    tmp_path: Path, value: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest type that holds the values of all splits, wherever the largest one is."""
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 1100)
    put(tmp_path, text_of())
    lines = lines_of()
    lines[-1] = lines[-1].rpartition(",")[0] + f",{value}"
    put(tmp_path, text_of("", lines), "mnist_test.csv")
    source = open_source(str(tmp_path))
    assert [dtype] * 2 == [str(split.dtype) for split in source.splits]
    test = read(source.splits[1])[0]
    assert np.dtype(dtype).type(float(value)) == test[-1, -1, -1]
    np.testing.assert_array_equal(IMAGES[:-1], test[:-1])
    ends = ValueRange(float(IMAGES.min()), float(IMAGES.max()))
    assert (None if dtype == "uint8" else ends) == source.scaling


def test_small_negative_numbers(tmp_path: Path) -> None:
    """Values from -128 to 127 are int8."""
    assert "int8" == str(opened(tmp_path, text_of("", lines_of(IMAGES.view(np.int8)))).dtype)


def test_class_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Texts as labels are names of classes in natural order, the same in all splits."""
    labels = [f"class {n % 3 * 5}" for n in range(ROWS)]
    put(tmp_path, text_of(HEADER, lines_of(labels=labels)))
    assert ("class 0", "class 5", "class 10") == open_source(str(tmp_path)).class_names
    names = ["dog", "cat", " é t"]
    put(tmp_path, text_of(HEADER, lines_of(labels=[names[n % 3] for n in range(ROWS)])))
    put(tmp_path, text_of(HEADER, lines_of(labels=["dog"] * ROWS)), "test.csv")
    source = open_source(str(tmp_path))
    assert ("cat", "dog", "é t") == source.class_names
    assert [n % 3 for n in (1, 0, 2)] * 2 == read(source.splits[0])[1][:6].tolist()  # type: ignore[index]
    assert {1} == set(read(source.splits[1])[1].tolist())  # type: ignore[union-attr]
    put(tmp_path, text_of(HEADER, lines_of(labels=["7"] * ROWS)), "test.csv")
    assert ("7", "cat", "dog", "é t") == open_source(str(tmp_path)).class_names
    assert "labels that are numbers and others that are not: cat, dog" in caplog.text


@pytest.mark.parametrize(
    "name", ["mnist_train.csv", "MNIST-Train.CSV", "mnist.csv", "mnist.tsv.gz"]
)
def test_name(tmp_path: Path, name: str) -> None:
    """The dataset has the name before the split; a file without a split is for training."""
    source = open_source(str(put(tmp_path, text_of(), name)))
    assert ("mnist", "train") == (source.name.lower(), source.splits[0].name)


def test_recognised_by_content(tmp_path: Path) -> None:
    """Rows of numbers are recognised in a file of another name, and in any ZIP archive."""
    assert_rows(
        splits_of(put(tmp_path, text_of("", lines_of() * 9)[: len(text_of(""))], "mnist.data"))[0]
    )
    assert_rows(splits_of(put(tmp_path, zipped(text_of().encode()), "archive.zip"))[0])


def test_idx_files_are_preferred(tmp_path: Path) -> None:
    """A directory with an IDX set beside CSV files is read as IDX."""
    write_idx_set(tmp_path)
    put(tmp_path, text_of())
    assert (4, 3) == splits_of(tmp_path)[0].image_shape
    assert MNIST_NAMES[0] in splits_of(tmp_path)[0].origin


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("5,6,", "5,abc,"), "line 3, column 'a' holds 'abc'; expected a number"),
        (("5,6,", "5,6%,"), "line 3, column 'a' holds '6%'"),
        (("5,6,", "5,,"), "line 3, column 'a' is empty; expected a number"),
        (("5,6,", "5,NaN,"), "line 3, column 'a' holds 'NaN'"),
        (("5,6,", "5,NAN,"), "line 3, column 'a' holds 'NAN'"),
        (("5,6,", "5,-inf,"), "line 3, column 'a' holds '-inf'"),
        (("5,6,", "5,1e400,"), "line 3, column 'a' holds '1e400'"),
        (("5,6,", "5,2e18,"), "line 3, column 'a' holds '2e18'"),
        (("5,6,", "5,\xff,"), "line 3, column 'a' holds 'ÿ'"),
        (("8,9", "8"), "line 3 has 4 fields; expected 5"),
        (("8,9", "8,9,"), "line 3 has 6 fields; expected 5"),
        (("\n5,", "\n   \n5,"), "line 3 has 1 field; expected 5"),
        (("\n5,", "\n,"), "line 3, column 'label' is empty; expected the label"),
        (("\n5,", "\n-5,"), "line 3, column 'label' holds '-5'; expected a label"),
        (("\n5,", "\n5.5,"), "line 3, column 'label' holds '5.5'"),
        (("\n5,", "\n1e99,"), "line 3, column 'label' holds '1e99'"),
        (("\n5,", '\n"5\n5",'), "line 3 has a line break or an unclosed quote in a field"),
        (("\n5,", '\n"5,'), "line 3 has a line break or an unclosed quote in a field"),
        (("8,9\n", "8,9\r5,6,7,8\n"), "line 3 has a line break"),
        (("\n3,", "\n\n\n3,x"), "line 4, column 'a' holds 'x1'"),
        (("\n5,", "\r\n5,x"), "line 3, column 'a' holds 'x6'"),
        (("a,b", "a,a"), "the header names column 'a' twice"),
        (("label", "name"), "none is named label or labels or class. Pass --label COLUMN"),
        (("d\n", "\r\n"), "has 3 columns of values and one of labels"),
        (("1,2,3,4\n5,6,7,8,9\n", ""), "line 2 has 2 fields"),
        (("3,1,2,3,4\n5,6,7,8,9\n", "\n\n"), "has no rows of data"),
        (("label", "\rlabel"), "contains a carriage return"),
    ],
)
def test_damaged_lines(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    """What cannot be read is named by file, line and column."""
    path = put(tmp_path, SMALL.replace(*change))
    text = refusal(path)
    assert text.startswith((f"{path}: ", f"{path} ")), text
    assert message in text


def test_line_numbers_in_later_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are counted over blocks, blank lines and line ends of Windows."""
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 256)
    lines = lines_of() * 20
    lines[400] += "x"
    text = text_of("", lines).replace("\n", "\r\n").replace("\r\n", "\r\n\r\n", 5)
    assert "line 406, column 16 holds" in refusal(put(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected one image a line"),
        (b"\n \n", "is empty; expected one image a line"),
        (SMALL.encode("utf-16"), "is UTF-16 text"),
        (SMALL.encode().replace(b"label", b"\xe9tat"), "line 1 is not UTF-8 text"),
        (SMALL.encode().replace(b"\n5,", b"\n\xe9,"), "line 3 is not UTF-8 text"),
        (b"1," * 3_000_000, "line 1 has more than 4,194,304 bytes"),
        (PACK[".gz"](SMALL.encode())[:-9], "is damaged or cut off"),
        (PACK[".gz"](SMALL.encode())[:-12] + bytes(12), "data is damaged"),
        (PACK[".zst"](SMALL.encode())[:-9], "is damaged or cut off"),
        (zipped(SMALL.encode())[:-9], "is damaged or cut off (File is not a zip file)"),
        (zipped(SMALL.encode(), "a.csv", "b.csv"), "has 2 files (a.csv, b.csv); expected one CSV"),
        (PACK[".gz"](text_of().encode())[:-40], "is damaged or cut off"),
        (zipped(b"", "a/"), "has 0 files (none); expected one CSV"),
        (zipped(b"1," * 3_000_000), "line 1 has more than 4,194,304 bytes"),
    ],
    ids=[
        "empty",
        "blank",
        "utf-16",
        "latin-1",
        "latin-1-later",
        "long",
        "gzip-cut",
        "gzip-flip",
        "zstd-cut",
        "zip-cut",
        "zip-two",
        "gzip-cut-in-line",
        "zip-none",
        "zip-long",
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    """Damaged, empty and foreign content is refused, whatever the name says."""
    assert message in refusal(put(tmp_path, content))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"label": "lable"},
            UsageError,
            "no column 'lable', which --label names. Did you mean 'la",
        ),
        ({"shape": (2, 3)}, UsageError, "--shape 2x3 needs 6 of values"),
        ({"label": "a"}, None, ""),
        ({"resize": (2, 2)}, UsageError, "--resize does not apply to"),
    ],
)
def test_options(
    tmp_path: Path, options: dict[str, Any], error: type[PipelineError] | None, message: str
) -> None:
    """Options that do not fit the file are refused."""
    path = put(tmp_path, SMALL)
    if error is None:
        assert [1, 6] == splits_of(path, **options)[0].label_values(no_progress)
    else:
        assert message in refusal(path, error, **options)


@pytest.mark.parametrize("label", ["label", "17", "-1"])
def test_label_of_headerless_file(tmp_path: Path, label: str) -> None:
    """Without a header, --label must be the number of a column."""
    path = put(tmp_path, text_of(""))
    message = refusal(path, UsageError, label=label)
    assert "has no header; expected the number of a column, from 0 to 16" in message


def test_guessed_labels_that_never_change(tmp_path: Path) -> None:
    """A constant first column is not taken for the labels, unless --label names it."""
    path = put(tmp_path, text_of("", lines_of(labels=[0] * ROWS)))
    assert "first column is always 0" in refusal(path)
    assert [0] == splits_of(path, label="0")[0].label_values(no_progress)


def test_guessed_labels_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Taking the first column of a file without a header for the labels is logged."""
    caplog.set_level(logging.INFO)
    opened(tmp_path, text_of())
    assert not caplog.text
    opened(tmp_path, text_of(""))
    assert "its first column is taken for the labels: 7 distinct values." in caplog.text


def test_too_many_labels(tmp_path: Path) -> None:
    """More than 1000 distinct labels are no classes."""
    lines = [f"{n},1,2,3,4" for n in range(1001)]
    assert "column 0 has more than 1,000 distinct" in refusal(put(tmp_path, text_of("", lines)))


def test_no_square(tmp_path: Path) -> None:
    """Columns that are no square are refused with --shape as the remedy."""
    path = put(tmp_path, SMALL.replace("d", "d,e").replace("4\n", "4,4\n").replace("9\n", "9,9\n"))
    assert "has 5 columns of values and one of labels; expected those of a square" in refusal(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train.csv", "mnist-train.csv.gz"), "has several train files"),
        (("a.csv", "b.csv"), "expected names such as train.csv and test.csv"),
    ],
)
def test_ambiguous_directories(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    """Several files for one split, or for none, are refused."""
    for name in names:
        put(tmp_path, text_of(), name)
    assert message in refusal(tmp_path)


def test_splits_that_differ(tmp_path: Path) -> None:
    """Images of two shapes are refused."""
    put(tmp_path, text_of())
    put(tmp_path, SMALL, "test.csv")
    assert "The splits' images differ" in refusal(tmp_path)


def test_file_that_changes_in_use(tmp_path: Path) -> None:
    """A file that is written to after opening is refused."""
    for text in (text_of() + text_of(""), text_of().replace("\n6,", "\n9,"), text_of()[:-30]):
        split = opened(tmp_path, text_of())
        split.fingerprint(no_progress)
        put(tmp_path, text)
        with pytest.raises(BadDataError, match=r"changed while it was being read|has \d+ fields"):
            list(split.parts(5))


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow, the error names the extra to install."""
    monkeypatch.setitem(sys.modules, "pyarrow.csv", None)
    assert "the extra 'parquet'" in refusal(put(tmp_path, text_of()), MissingExtraError)


def test_same_dataset_as_idx(tmp_path: Path) -> None:
    """The same rows as IDX and as CSV give the same dataset digest."""
    labels = LABELS.repeat(4).astype(np.uint8)
    write_set(tmp_path / "idx", IMAGES.repeat(4, axis=0), labels)
    lines = lines_of(IMAGES.repeat(4, axis=0), labels)
    (tmp_path / "csv").mkdir()
    put(tmp_path / "csv", text_of(HEADER, lines[:-50]))
    put(tmp_path / "csv", text_of("", lines[-50:]), "test.csv")
    digests = {
        ingest(str(tmp_path / form), tmp_path / f"data-{form}").dataset.digest
        for form in ("idx", "csv")
    }
    assert 1 == len(digests)


@pytest.mark.parametrize("ending", PACK)
def test_fuzz(tmp_path: Path, ending: str) -> None:
    """A file with any bytes changed is read, or refused by an error for people."""
    content, chance = PACK[ending](text_of().encode()), random.Random(7)
    for _ in range(120):
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 1, 3, 20])):
            place = chance.randrange(len(damaged))
            damaged[place : place + chance.choice([0, 1, 1, 9])] = chance.choice(
                [bytes([chance.randrange(256)]), b'"', b",", b"\n", b"\r", b"", b"-", b"\0\xff"]
            )
        path = put(tmp_path, bytes(damaged), f"train.csv{ending}")
        try:
            (split,) = splits_of(path)
            images, _ = read(split)
        except PipelineError as error:
            assert str(path) in str(error)
        else:
            assert split.rows == len(images)


PEAK = """
import sys
from pipeline.sources.source import open_source
from storage.events import no_progress
(split,) = open_source(sys.argv[1]).splits
split.fingerprint(no_progress)
print(sum(part.stop - part.start for part in split.parts(2000)))
status = open("/proc/self/status").read().split()
print(int(status[status.index("VmHWM:") + 1]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_memory(tmp_path: Path, ending: str) -> None:
    """Eight times the rows, 80 MB of text, take at most 40 MB more memory."""
    peaks = []
    for times in (1, 8):
        pixels = np.random.default_rng(1).integers(0, 256, (4000, 784), np.uint8).tolist()
        lines = "".join(",".join(map(str, [n % 10, *row])) + "\n" for n, row in enumerate(pixels))
        path = put(tmp_path, PACK[ending](lines.encode() * times), f"train.csv{ending}")
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(path)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[3],
        )
        rows, peak = map(int, done.stdout.split())
        assert 4000 * times == rows
        peaks.append(peak)
    assert 40e6 > peaks[1] - peaks[0], peaks


@pytest.mark.slow
def test_mnist(mnist_dir: Path, tmp_path: Path) -> None:
    """MNIST as CSV files gives the dataset digest of its IDX files."""
    digests = []
    for split in open_source(str(mnist_dir)).splits:
        images, labels = read(split, 10_000)
        lines = lines_of(images, (labels if labels is not None else images).tolist())
        put(tmp_path, text_of("", lines), f"mnist_{split.name}.csv")
    digests = [
        ingest(str(place), tmp_path / f"data-{n}").dataset.digest
        for n, place in enumerate((mnist_dir, tmp_path))
    ]
    assert ["7100e1c181d5e2237a395f73b876d817e908c7186226448302d3e72a9c7d60dd"] * 2 == digests


def test_another_column_of_labels(tmp_path: Path) -> None:
    """Labels of another column are not taken for the dataset made before."""
    lines = [f"{row},{row},{row},{row},{row % 2},{row // 2 % 2}\n" for row in range(12)]
    (tmp_path / "set.csv").write_text("a,b,c,d,e,f\n" + "".join(lines))
    e, f = (SourceOptions(label=label, shape=(1, 5)) for label in "ef")
    ingest(str(tmp_path / "set.csv"), tmp_path / "data", options=e)
    with pytest.raises(ConflictError, match=r"these differ: train label\. "):
        ingest(str(tmp_path / "set.csv"), tmp_path / "data", options=f)
