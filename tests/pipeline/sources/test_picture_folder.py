"""Folders of pictures: layouts, the order of rows, what is refused, and equal datasets."""

import logging
import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.ingest import IngestResult, ingest
from pipeline.sources.formats import SourceOptions
from pipeline.sources.source import open_source
from pipeline.sources.splits import SplitSource
from storage.errors import BadDataError, ConflictError, UsageError
from storage.events import no_progress
from storage.idx import IdxReader
from tests.pipeline.sources.small_sets import images, labels, read, splits_of, write_set
from tests.storage.idx_files import write_idx


def draw(place: Path, value: int = 0, size: tuple[int, int] = (4, 3)) -> None:
    """Write a picture whose pixels all have one value."""
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size[::-1], value).save(place)


def layout(folder: Path, *names: str) -> None:
    """Draw pictures of values 0, 1, 2, ... under these names."""
    for value, name in enumerate(names):
        draw(folder / name, value)


def values(split: SplitSource, rows_per_part: int = 3) -> list[int]:
    """Return the value of each row's picture."""
    rows, _ = read(split, rows_per_part)
    return [int(value) for value in rows[:, 0, 0]]


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises((BadDataError, UsageError)) as caught:
        open_source(str(folder), SourceOptions(**options))
    return str(caught.value)


def test_splits_and_classes(tmp_path: Path) -> None:
    """SPLIT/CLASS/FILE: classes are numbered in natural order over all splits."""
    layout(tmp_path, "training/9/1.png", "training/10/2.JPEG", "val/9/a.bmp", "t10k/100/a.tiff")
    source = open_source(str(tmp_path))
    assert ("9", "10", "100") == source.class_names
    assert tmp_path.name == source.name
    splits = [(split.name, read(split)[1].tolist()) for split in source.splits]
    assert [("train", [0, 1]), ("validation", [0]), ("test", [2])] == splits


def test_natural_order(tmp_path: Path) -> None:
    """Rows are in the order of file names, numbers by value, whatever their class."""
    names = ["b/img2.png", "a/img10.png", "b/img010.png", "a/img11.png", "a/img2-1.png", "a/z.png"]
    layout(tmp_path, *names)
    (split,) = splits_of(tmp_path)
    assert [4, 0, 1, 2, 3, 5] == values(split)
    assert [0, 1, 0, 1, 0, 0] == read(split)[1].tolist()


def test_without_classes(tmp_path: Path) -> None:
    """Pictures directly in the folder, or in that of a split, have no labels."""
    layout(tmp_path / "flat", "2.png", "10.png")
    layout(tmp_path / "my-test", "1.png")
    layout(tmp_path / "kaggle", "train/a/1.png", "train/b/2.png", "test/1.png", "test/0.png")
    (flat,) = splits_of(tmp_path / "flat")
    assert (False, "train", [0, 1]) == (flat.has_labels, flat.name, values(flat))
    (test,) = splits_of(tmp_path / "my-test")
    assert ("test", False) == (test.name, test.has_labels)
    train, test = splits_of(tmp_path / "kaggle")
    assert (True, False, [3, 2]) == (train.has_labels, test.has_labels, values(test))


def test_a_class_named_train(tmp_path: Path) -> None:
    """A folder of pictures named like a split is a class beside folders of other classes."""
    layout(tmp_path, "train/1.png", "aeroplane/1.png")
    assert ("aeroplane", "train") == open_source(str(tmp_path)).class_names


def test_holdout(tmp_path: Path) -> None:
    """Pictures drawn by the seed move to a test split; the others keep their order."""
    layout(tmp_path, *(f"{number % 2}/{number}.png" for number in range(40)))
    train, test = splits_of(tmp_path, holdout=8)
    assert (sorted(values(train)), sorted(values(test))) == (values(train), values(test))
    assert list(range(40)) == sorted(values(train) + values(test))
    assert [2, 5, 11, 17, 19, 24, 26, 38] == values(test), "drawn otherwise on this machine"
    assert values(test) != values(splits_of(tmp_path, holdout=8, seed=1)[1])
    assert "leaves nothing to train on" in refusal(tmp_path, holdout=40)
    layout(tmp_path / "sets", "train/0/a.png", "train/1/a.png", "test/a.png")
    assert "has train and test. Leave it out" in refusal(tmp_path / "sets", holdout=1)


def test_shuffle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows that the names sort by class cause a warning; --shuffle draws their order."""
    layout(tmp_path, *(f"{word}/{word}{n}.png" for word in ("cat", "dog") for n in range(9)))
    splits_of(tmp_path)
    assert "sorted by class" in caplog.text
    caplog.clear()
    (split,) = splits_of(tmp_path, shuffle=True)
    assert not caplog.text
    shuffled = values(split)
    assert list(range(18)) == sorted(shuffled) != shuffled
    assert [value // 9 for value in shuffled] == read(split)[1].tolist()
    assert shuffled != values(splits_of(tmp_path, shuffle=True, seed=1)[0])
    assert shuffled[:4] == [16, 3, 5, 2], "drawn otherwise on this machine"


def test_channels_and_resize(tmp_path: Path) -> None:
    """Options set the shape; otherwise the first picture of another size is named."""
    layout(tmp_path, "1.png", "2.png")
    draw(tmp_path / "3.png", 2, (8, 6))
    (split,) = splits_of(tmp_path, channels="rgb", resize=(2, 5))
    assert (2, 5, 3) == split.image_shape == read(split)[0].shape[1:]
    (split,) = splits_of(tmp_path)
    with pytest.raises(BadDataError, match=r"3\.png has 8 x 6 pixels .* has 4 x 3\. Pass --resize"):
        read(split)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1.png", "a/2.png"], "pictures of a single class, 'a'"),
        (["1.png", "a/1.png"], "has pictures, such as 1.png, beside the folder a"),
        (["train/1.png", "train/a/1.png"], "train has pictures, such as 1.png, beside"),
        (["set/train/a/1.png", "set/train/b/1.png"], "set/train has pictures in a folder too deep"),
        (["train/a/x/1.png", "train/b/1.png"], "train/a/x has pictures in a folder too deep"),
        (["train/a/1.png", "train/b/1.png", "extra/1.png"], "the folder extra beside that of a"),
        (["train/a/1.png", "training/b/1.png"], "several folders of the train split: train"),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    """A message shows the folder and the expected layout."""
    layout(tmp_path, *names)
    assert message in refusal(tmp_path)
    if "deep" in message:
        assert "expected SPLIT/CLASS/FILE" in refusal(tmp_path)
    assert ("Give " + str(tmp_path / "set") in refusal(tmp_path)) == names[0].startswith("set")


def test_skipped_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files of systems are skipped silently, others with a warning, as are empty folders."""
    layout(tmp_path, "a/1.png", "b/2.png", "a/4.png")
    for name in ("a/.hidden.png", "__MACOSX/a/._1.png", ".git/x.png"):
        draw(tmp_path / name)
    (tmp_path / "b/Thumbs.db").touch()
    splits_of(tmp_path)
    assert not caplog.text
    (tmp_path / "b/notes.txt").touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "b/linked").symlink_to(tmp_path / "a")
    (tmp_path / "b/3.png").symlink_to(tmp_path / "a/1.png")
    (split,) = splits_of(tmp_path)
    assert [0, 1, 0, 2] == values(split)
    formats = "PNG, JPEG, BMP, TIFF and WebP"
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, message)
        for message in (
            f"Files other than {formats} pictures in {tmp_path} are skipped: 2, such as b/linked.",
            f"Folders without pictures in {tmp_path} are skipped: 1, such as c.",
        )
    ]
    (tmp_path / "b/5.png").symlink_to("nowhere")
    assert "5.png is a link to a missing file" in refusal(tmp_path)


def test_idx_files_win(tmp_path: Path) -> None:
    """Pictures beside IDX files accompany them."""
    write_set(tmp_path)
    draw(tmp_path / "examples/1.png")
    draw(tmp_path / "logo.png")
    assert "IDX files" in open_source(str(tmp_path)).description


def test_bad_pictures(tmp_path: Path) -> None:
    """A damaged first picture is refused at once, another while it is read, by its name."""
    layout(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "b/2.png").write_bytes(b"GIF89a")
    (split,) = splits_of(tmp_path)
    with pytest.raises(BadDataError, match=r"b/2\.png is not a PNG"):
        read(split)
    (tmp_path / "a/1.png").write_bytes(b"")
    assert "a/1.png is not a PNG" in refusal(tmp_path)
    assert "does not apply" in refusal(tmp_path, label="x")


def test_changes(tmp_path: Path) -> None:
    """A file that changes or disappears after it was hashed is named."""
    layout(tmp_path, "a/1.png", "b/2.png")
    (split,) = splits_of(tmp_path)
    split.fingerprint(no_progress)
    draw(tmp_path / "b/2.png", 9)
    with pytest.raises(BadDataError, match=r"b/2\.png changed while it was being read"):
        read(split)
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(BadDataError, match=r"a/1\.png is missing"):
        read(split)


def test_fingerprint(tmp_path: Path) -> None:
    """It is that of names, labels and content in order, and of options that change the rows."""
    names = [f"{number % 2}/{number}.png" for number in range(6)]
    layout(tmp_path / "one", *names)
    layout(tmp_path / "two", *names)

    def fingerprint(place: str = "one", **options: Any) -> str:
        return str(open_source(str(tmp_path / place), SourceOptions(**options)).fingerprint())

    assert fingerprint() == fingerprint("two")
    options: list[dict[str, Any]] = [
        {"channels": "rgb"},
        {"resize": (4, 4)},
        {"shuffle": True},
        {"shuffle": True, "seed": 1},
        {"holdout": 2},
        {"holdout": 2, "seed": 1},
    ]
    assert 1 + len(options) == len({fingerprint(), *(fingerprint(**other) for other in options)})
    os.rename(tmp_path / "two/0", tmp_path / "two/3")
    assert fingerprint() != fingerprint("two")


def test_many_stored_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that are much larger than their rows are decoded before they fill the memory."""
    monkeypatch.setattr("pipeline.sources.picture_split.LEAST_BYTES_HELD", 5_000)
    noise = np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)
    for number in range(7):
        Image.fromarray(np.roll(noise, number)).save(tmp_path / f"{number}.png")
    (split,) = splits_of(tmp_path, resize=(3, 3))
    (part,) = split.parts(10)
    stored = [len(picture) for picture in part.pictures if isinstance(picture, bytes)]  # type: ignore[attr-defined]
    assert len(stored) == 1
    expected = [read(split, 1)[0], read(split, 10)[0]]
    assert np.array_equal(*expected)


def write_pictures(
    folder: Path, pixels: NDArray[Any], classes: NDArray[Any], split: str, ending: str = ".png"
) -> None:
    """Write rows as pictures in folders of classes, named by their numbers."""
    for name in np.unique(classes):
        (folder / split / str(name)).mkdir(parents=True, exist_ok=True)
    for number, (image, name) in enumerate(zip(pixels, classes, strict=True)):
        Image.fromarray(image).save(folder / split / str(name) / f"{number}{ending}")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_same_dataset(tmp_path: Path, threads: int) -> None:
    """Pictures give the dataset of the IDX files with the same rows, on any number of threads."""
    (tmp_path / "idx").mkdir()
    write_set(tmp_path / "idx")
    expected = ingest(str(tmp_path / "idx"), tmp_path / "expected", rows_per_chunk=2).dataset
    write_pictures(tmp_path / "set", images(12), labels(12), "train", ".bmp")
    write_pictures(tmp_path / "set", images(5), labels(5), "test")
    make = partial(ingest, str(tmp_path / "set"), tmp_path / "made", rows_per_chunk=2)
    made = make(threads=threads)
    assert expected.digest == made.dataset.digest
    assert make().already_done
    with pytest.raises(ConflictError, match="train channels"):
        make(options=SourceOptions(channels="rgb"))


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    """Resizing ten times as many photos of a megabyte takes no more memory."""
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000), np.uint8)
    photo = tmp_path / "photo.png"
    Image.fromarray(noise).save(photo, compress_level=0)
    code = """
        import resource, sys
        from pipeline.ingest import ingest
        from pipeline.sources.formats import SourceOptions
        ingest(sys.argv[1], sys.argv[1] + "-made", options=SourceOptions(resize=(28, 28)))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peaks = []
    for count in (16, 160):
        for row in range(count):
            place = tmp_path / f"{count}-photos" / str(row % 2) / f"{row}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(photo, place)
        arguments = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / f"{count}-photos")]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 16_000


@pytest.mark.slow
def test_mnist(mnist_dir: Path, tmp_path: Path) -> None:
    """10,000 and 2,000 images of MNIST have one digest as IDX files and as PNG files."""
    (tmp_path / "idx").mkdir()
    for split, word, rows in (("train", "train", 10_000), ("test", "t10k", 2_000)):
        arrays = []
        for name in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            (path,) = mnist_dir.glob(f"{word}-{name}*")
            with IdxReader(path) as reader:
                arrays.append(reader.read_rows(rows))
            write_idx(tmp_path / "idx" / f"{word}-{name}", arrays[-1])
        write_pictures(tmp_path / "set", *arrays, split)

    def made(name: str) -> IngestResult:
        return ingest(str(tmp_path / name), tmp_path / f"{name}-made")

    assert made("idx").dataset.digest == made("set").dataset.digest
