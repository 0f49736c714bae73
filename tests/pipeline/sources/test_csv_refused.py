"""CSV files that are refused, with line and column."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.sources import csv_rows
from storage.errors import BadDataError, MissingExtraError, PipelineError, UsageError
from storage.events import no_progress
from tests.pipeline.sources.csv_texts import (
    PACK,
    ROWS,
    SMALL,
    lines_of,
    opened,
    put,
    text_of,
    zipped,
)
from tests.pipeline.sources.small_sets import read, refusal, splits_of


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


@pytest.mark.slow
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
