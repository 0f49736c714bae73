"""CSV files: which columns are labels and values, and the rows that are read."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.ingest import ingest
from pipeline.sources import csv_rows
from pipeline.sources.formats import SourceOptions
from pipeline.sources.source import open_source
from storage.errors import ConflictError
from storage.preparation import ValueRange
from tests.pipeline.sources.csv_texts import (
    HEADER,
    IMAGES,
    LABELS,
    PACK,
    ROWS,
    assert_rows,
    lines_of,
    opened,
    put,
    text_of,
    zipped,
)
from tests.pipeline.sources.small_sets import read, refusal, splits_of
from tests.pipeline.sources.small_sets import write_set as write_idx_set
from tests.storage.idx_files import MNIST_NAMES, write_set


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


def test_guessed_labels_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Taking the first column of a file without a header for the labels is logged."""
    caplog.set_level(logging.INFO)
    opened(tmp_path, text_of())
    assert not caplog.text
    opened(tmp_path, text_of(""))
    assert "its first column is taken for the labels: 7 distinct values." in caplog.text


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
