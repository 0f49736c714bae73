"""Files of formats other than IDX in an inbox: arrays, tables, pickles and folders of pictures."""

import csv
import gzip
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.scoring.result import ScoringResult
from jobs.training.job import train
from pipeline.ingest import ingest
from pipeline.sources.digits import draw_digits
from tests.jobs.inboxes import Events, put_images, recorded, score_inbox, settle
from tests.jobs.trainings import small
from tests.storage.idx_files import write_idx

ROWS = 20
NAMES = ("nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def rows_of(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The images and labels that `put_images` writes with this seed."""
    return draw_digits(seed, "inbox", 0, ROWS)


def put(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a settled file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    return settle(path)


def put_npz(path: Path, **arrays: NDArray[Any]) -> Path:
    return put(path, lambda place: np.savez(place, **arrays))


def put_csv(path: Path, seed: int, names: tuple[str, ...] | None = None) -> Path:
    """Write a table with a column `label`: numbers, or their names."""
    images, labels = rows_of(seed)

    def write(place: Path) -> None:
        with open(place, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", *(f"pixel{number}" for number in range(784))])
            for image, label in zip(images.reshape(ROWS, -1), labels, strict=True):
                writer.writerow([label if names is None else names[label], *image])

    return put(path, write)


def put_pictures(
    folder: Path, seed: int, classes: tuple[str, ...] | None = None, ending: str = ".png"
) -> Path:
    """Write a picture for each row, in a folder for each class if there are `classes`."""
    image_module = pytest.importorskip("PIL.Image")
    for row, (image, label) in enumerate(zip(*rows_of(seed), strict=True)):
        place = folder if classes is None else folder / classes[label]
        put(place / f"{row:03}{ending}", image_module.fromarray(image).save)
    return folder


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose classes have names other than numbers."""
    place = tmp_path_factory.mktemp("named")
    ingest("synthetic:300,50", place / "dataset", class_names=NAMES)
    train(small(epochs=1), dataset=place / "dataset", run=place / "run")
    return place / "run"


@pytest.fixture
def named_run(named: Path, tmp_path: Path) -> Path:
    """A copy of `named`, without scores."""
    return shutil.copytree(named, tmp_path / "run")


def files_of(result: ScoringResult) -> list[str]:
    """Return the names of what was scored."""
    return [str(one.file) for one in result.results]


def failure(result: ScoringResult) -> str:
    """Return the error of the only file that failed."""
    (failed,) = result.failed
    return str(failed["error"])


def test_numbers_of_named_classes(named_run: Path, inbox: Path) -> None:
    """In a file, number k is the k-th class of a model whose classes have names."""
    put_images(inbox / "a-images-idx3-ubyte", 1, labelled=True)
    (scored,) = score_inbox(named_run, inbox).results
    quality = scored.metrics["quality"]
    counts = {entry["name"]: entry["rows"] for entry in quality["classes"]}
    expected = np.bincount(rows_of(1)[1], minlength=10).tolist()
    assert dict(zip(NAMES, expected, strict=True)) == counts


def test_number_without_a_class(named_run: Path, inbox: Path) -> None:
    """A label beyond the model's classes is an error that names the file."""
    write_idx(inbox / "a-images-idx3-ubyte", rows_of(1)[0])
    write_idx(inbox / "a-labels-idx1-ubyte", np.array([12] + [3] * (ROWS - 1), np.uint8))
    result = score_inbox(named_run, inbox)
    assert "10 class names for labels from 3 to 12" in failure(result)
    assert 3 == result.error.exit_code


def put_pickle(path: Path, seed: int) -> Path:
    """Write three pairs as in `mnist.pkl.gz`: floats k / 256, whose rows are those of the seeds."""
    pairs = []
    for number in range(3):
        images, labels = rows_of(seed + number)
        pairs.append((images.reshape(ROWS, -1) / np.float32(256), labels.astype(np.int64)))
    return put(path, lambda place: place.write_bytes(gzip.compress(pickle.dumps(tuple(pairs)))))


def put_arrays(path: Path, seed: int) -> Path:
    images, labels = rows_of(seed)
    return put_npz(path, images=images, labels=labels)


def put_pair(path: Path, seed: int) -> Path:
    """Write an array of images, and one of labels beside it."""
    images, labels = rows_of(seed)
    put(path.with_name(path.name.replace("x", "y", 1)), lambda place: np.save(place, labels))
    return put(path, lambda place: np.save(place, images))


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.npz": lambda path: put_arrays(path, 1),
    "a.npy": lambda path: put(path, lambda place: np.save(place, rows_of(1)[0])),
    "sub/x_test.npy": lambda path: put_pair(path, 1),
    "monday": lambda path: put_pictures(path, 1),
    "tuesday": lambda path: put_pictures(path, 1, tuple(map(str, range(10)))),
}


@pytest.mark.parametrize("name", WRITERS)
def test_once(name: str, run: Path, inbox: Path) -> None:
    """Each format is scored like IDX files of the same rows, once under any name."""
    WRITERS[name](inbox / name)
    first = score_inbox(run, inbox)
    assert ([name], None, []) == (files_of(first), first.error, first.left)
    put_images(inbox / "a-images-idx3-ubyte", 1, labelled=first.results[0].accuracy is not None)
    (inbox / Path(name).parts[0]).rename(inbox / f"b{'' if '/' in name else Path(name).suffix}")
    again = score_inbox(run, inbox)
    assert [True, True] == [one.already_done for one in again.results]
    assert 1 == len({one.scores.schema.home for one in [*first.results, *again.results]})


def test_several_splits(run: Path, inbox: Path) -> None:
    """Each split of a file is scored; another file with one of the splits has the same scores."""
    images, labels = rows_of(1)
    others, other_labels = rows_of(2)
    arrays = {"x_train": images, "y_train": labels, "x_test": others, "y_test": other_labels}
    put_npz(inbox / "mnist.npz", **arrays)
    for already_done in (False, True):
        result = score_inbox(run, inbox)
        assert ["mnist.npz/train", "mnist.npz/test"] == files_of(result)
        assert [already_done] * 2 == [one.already_done for one in result.results]
    put_images(inbox / "other-images-idx3-ubyte", 2, labelled=True)
    result = score_inbox(run, inbox)
    assert result.results[1].scores.digest == result.results[2].scores.digest


def test_one_bad_split(run: Path, inbox: Path) -> None:
    """An error in one split does not prevent the scoring of another."""
    images, labels = rows_of(1)
    arrays = {"x_train": images, "y_train": labels + 5, "x_test": images, "y_test": labels}
    put_npz(inbox / "mnist.npz", **arrays)
    result = score_inbox(run, inbox)
    assert ["mnist.npz/test"] == files_of(result)
    assert "mnist.npz/train" == result.failed[0]["file"]
    assert "classes that the model was not trained on: 1" in failure(result)


@pytest.mark.parametrize("name", WRITERS)
def test_damaged(name: str, run: Path, inbox: Path, events: Events) -> None:
    """A damaged file fails once, with a message that names it, and never a temporary path."""
    WRITERS[name](inbox / name)
    files = [path for path in sorted(inbox.rglob("*")) if path.is_file()]
    files[0].write_bytes(files[0].read_bytes()[:60])
    settle(files[0])
    for _ in range(2):
        result = score_inbox(run, inbox)
        assert [name] == [one["file"] for one in result.failed]
        assert str(files[0].relative_to(inbox)) in failure(result)
        assert not [line for line in events.events if tempfile.gettempdir() + "/tmp" in str(line)]
    assert [("failed", name)] == list(recorded(run))
