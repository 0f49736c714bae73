"""Tables that name pictures: their columns, where the pictures are, and bad rows."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.ingest import ingest
from pipeline.sources.formats import SourceOptions
from pipeline.sources.source import open_source
from storage.errors import PipelineError, UsageError
from tests.pipeline.sources.small_sets import images, labels, read, refusal, splits_of, write_set
from tests.pipeline.sources.test_picture_folder import draw, layout, values, write_pictures


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "lines",
    [
        ("file_name,label", "img/2.png,cat", "img/10.png,dog", "img/1.png,cat"),
        ("Class;Image Path", "cat;img/2.png", "dog;img/10.png", "cat;img/1.png"),
        ("id\tcategory", "2\tcat", "10\tdog", "1\tcat"),
        ("\ufeffx,filename,target", "7,2.png,cat", "", '7,10.png," dog"', "8,1.png,cat"),
        ("img/2.png,cat", "img/10.png,dog", "img/1.png,cat"),
    ],
)
def test_columns(tmp_path: Path, lines: tuple[str, ...]) -> None:
    """The usual names of columns are known, with or without ending and folder; rows keep order."""
    layout(tmp_path, "img/1.png", "img/2.png", "img/10.png")
    for path in (write(tmp_path / "labels.csv", *lines), tmp_path):
        source = open_source(str(path))
        (split,) = source.splits
        assert ("cat", "dog") == source.class_names
        assert ("train", [1, 2, 0]) == (split.name, values(split))
        assert [0, 1, 0] == read(split)[1].tolist()
        assert tmp_path.name == source.name


def test_kaggle(tmp_path: Path) -> None:
    """A folder with train.csv, test.csv and a folder for each: ids are found in their own one."""
    layout(tmp_path, "train/1.png", "train/2.png", "test/1.png", "test/2.png")
    write(tmp_path / "train.csv", "id,label", "2,b", "1,a")
    write(tmp_path / "test.csv", "id", "1", "2")
    write(tmp_path / "sample_submission.csv", "id,label", "1,a", "2,a")
    train, test = splits_of(tmp_path)
    assert ([1, 0], [2, 3]) == (values(train), values(test))
    assert (True, False) == (train.has_labels, test.has_labels)
    (test,) = splits_of(tmp_path / "test.csv")
    assert "test" == test.name


def test_splits(tmp_path: Path) -> None:
    """Splits come from a table in each folder, a column, or the first folder of each path."""
    names = ["train/1.png", "train/2.png", "test/1.png"]
    layout(tmp_path / "folders", *names)
    write(tmp_path / "folders/train/metadata.csv", "file_name,label", "1.png,7", "2.png,11")
    assert "test has pictures, but no table" in refusal(tmp_path / "folders")
    write(tmp_path / "folders/test/metadata.csv", "file_name,label", "1.png,11")
    layout(tmp_path / "paths", *names)
    rows = [f"{name},{label}" for name, label in zip(names, (7, 11, 11), strict=True)]
    write(tmp_path / "paths/metadata.csv", "file_name,label", *rows)
    layout(tmp_path / "column", *(name.replace("/", "-") for name in names))
    rows = [f"{row.replace('/', '-')},{row[:5].strip('/')}" for row in rows]
    write(tmp_path / "column/data.csv", "file_name,label,split", *rows)
    for name in ("folders", "paths", "column"):
        source = open_source(str(tmp_path / name))
        assert ("7", "11") == source.class_names
        assert [("train", [0, 1]), ("test", [2])] == [(s.name, values(s)) for s in source.splits]
        assert [0, 1] == read(source.splits[0])[1].tolist()
        assert [1] == read(source.splits[1])[1].tolist()


def test_options(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """--label names a column, --holdout and --shuffle draw; without labels a warning says so."""
    layout(tmp_path, *(f"{number}.png" for number in range(9)))
    rows = (f"{number}.png,{number % 3},{number // 5}" for number in range(9))
    path = write(tmp_path / "a.csv", "file,colour,size", *rows)
    assert not splits_of(path)[0].has_labels
    assert "its columns are file, colour, size. Pass --label COLUMN" in caplog.text
    train, test = splits_of(path, label="Size", holdout=4, shuffle=True)
    for split in (train, test):
        assert [value // 5 for value in values(split)] == read(split)[1].tolist()
    assert list(range(9)) == sorted(values(train) + values(test)) != values(train) + values(test)
    message = refusal(path, UsageError, label="siez")
    assert "has the columns file, colour, size. Did you mean 'size'?" in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("missing.png,a", "line 4 names {}/missing.png, which is missing"),
        ("1.png", "line 4 has 1 column; expected 2"),
        ("1.png,a,b", "line 4 has 3 columns; expected 2"),
        ("1.png, ", "line 4 has the label ''"),
        ('1.png,"a\nb"', "line 5 has the label 'a\\nb'"),
        (",a", "line 4 names the picture ''"),
        ("/etc/x.png,a", "line 4 names the picture '/etc/x.png'; expected a path that stays"),
        ("../{}/1.png,a", "1.png'; expected a path that stays within"),
        ("sub\\1.png,a", "line 4 names the picture 'sub\\\\1.png'; expected a path that stays"),
        ("link.png,a", "line 4 names {}/link.png, a link that leads outside"),
        ("linked/1.png,a", "line 4 names {}/linked/1.png, a link that leads outside"),
        ('1.png,"a', "is not a valid CSV table"),
        ("1.png," + 70_000 * "a", "line 4 has more than 65,536 bytes"),
        ("1.png,\x00", "line 4 has the label '\\x00'"),
        ("1.png,\udcff", "line 4 is not UTF-8 text"),
        ("sub,a", "line 4 names {}/sub, which is missing"),
    ],
)
def test_bad_rows(tmp_path: Path, line: str, message: str) -> None:
    """The line is named, and no picture outside the folder is read."""
    home = tmp_path / "home"
    layout(home, "1.png", "2.png")
    (home / "sub").mkdir()
    draw(tmp_path / "other/1.png")
    (home / "link.png").symlink_to(tmp_path / "other/1.png")
    (home / "linked").symlink_to(tmp_path / "other")
    (home / "within.png").symlink_to("1.png")
    lines = ["file,label", "1.png,a", "within.png,b"]
    assert len(values(splits_of(write(home / "good.csv", *lines))[0])) == 2
    text = "\n".join([*lines, line.replace("{}", "home")]) + "\n"
    (home / "bad.csv").write_bytes(text.encode(errors="surrogateescape"))
    assert message.replace("{}", str(home)) in refusal(home / "bad.csv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xc4.png,a", "line 2 is not UTF-8 text"),
        (b"1.png,a,b", "line 2 has 3 columns; expected 2"),
    ],
)
def test_bad_first_row(tmp_path: Path, line: bytes, message: str) -> None:
    """A table whose first row is bad is refused; the pictures are not read without it."""
    layout(tmp_path, "img/1.png", "more/2.png")
    (tmp_path / "labels.csv").write_bytes(b"File Name,label\n" + line + b"\n1.png,a\n")
    assert message in refusal(tmp_path)


def test_endings_in_capitals(tmp_path: Path) -> None:
    """Names without endings may be of files with endings in capitals."""
    layout(tmp_path, "img/1.png", "img/2.png")
    for path in (tmp_path / "img").iterdir():
        path.rename(path.with_suffix(".PNG"))
    assert [0, 1] == values(splits_of(write(tmp_path / "a.csv", "id,label", "1,x", "2,y"))[0])


def test_ambiguous(tmp_path: Path) -> None:
    """Two tables of a split, and two folders with the first picture, are refused."""
    layout(tmp_path, "a/1.png", "b/1.png")
    path = write(tmp_path / "x.csv", "file,label", "1.png,u")
    assert "which may be a/1.png and b/1.png" in refusal(path)
    write(path, "file,label", "a/1.png,u")
    write(tmp_path / "train.csv", "file,label", "a/1.png,u")
    assert "are tables of the same split" in refusal(tmp_path)


def test_other_tables(tmp_path: Path) -> None:
    """A table of numbers, a table beside IDX files, and one without pictures are other formats."""
    layout(tmp_path, "img/1.png", "img/2.png")
    write(tmp_path / "numbers.csv", "label,pixel0,pixel1", "3,0,255")
    write(tmp_path / "ids.csv", "id,pixel0", "77,0")
    assert "pictures in" in open_source(str(tmp_path / "img")).description
    for name in ("numbers.csv", "ids.csv"):
        with pytest.raises(PipelineError) as caught:
            open_source(str(tmp_path / name), SourceOptions(resize=(2, 2)))
        assert "picture" not in str(caught.value)
    write(tmp_path / "labels.csv", "file,label", "img/1.png,a")
    write_set(tmp_path)
    assert "IDX files" in open_source(str(tmp_path)).description


def test_same_dataset(tmp_path: Path) -> None:
    """A table gives the dataset of the folder of classes with the same pictures."""
    write_pictures(tmp_path / "folders", images(12), labels(12), "train")
    expected = ingest(str(tmp_path / "folders"), tmp_path / "expected").dataset
    rows = (f"train/{label}/{row}.png,{label}" for row, label in enumerate(labels(12)))
    write(tmp_path / "folders/labels.csv", "file,label", *rows)
    made = ingest(str(tmp_path / "folders"), tmp_path / "made").dataset
    assert expected.digest == made.digest


@pytest.mark.slow
def test_damaged_tables(tmp_path: Path) -> None:
    """A mutated table gives rows that exist, or an error for users."""
    layout(tmp_path, *(f"img/{number}.png" for number in range(9)))
    rows = [f"img/{number}.png,{number % 3},x" for number in range(9)]
    data = write(tmp_path / "t.csv", "file,label,note", *rows).read_bytes()
    random = np.random.default_rng(17)
    refused = 0
    for _ in range(600):
        damaged = bytearray(data)
        for _ in range(random.integers(1, 4)):
            choices = [random.integers(256), *b'",;\t\n/.\0\r', data[random.integers(len(data))]]
            damaged[random.integers(len(data))] = random.choice(choices)
        (tmp_path / "t.csv").write_bytes(damaged)
        try:
            rows_read = [values(split) for split in open_source(str(tmp_path / "t.csv")).splits]
        except PipelineError:
            refused += 1
        else:
            assert all(value in range(9) for row in rows_read for value in row)
    assert 100 < refused < 600
    assert os.path.exists(tmp_path / "img")
