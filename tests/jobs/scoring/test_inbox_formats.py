"""Files of formats other than IDX in an inbox: arrays, tables, pickles and folders of pictures."""

import csv
import gzip
import io
import os
import pickle
import shutil
import sys
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
    assert "not trained on: 12; the model has nought" in failure(result)
    assert 3 == result.error.exit_code


def test_numbers_of_classes_named_by_rank(tmp_path: Path, inbox: Path) -> None:
    """The names of labels 1, 2, ... keep their labels in a file that has only some of them."""
    images, labels = draw_digits(0, "train", 0, 300)
    np.savez(tmp_path / "ranks.npz", x_train=images, y_train=labels + 1)
    ingest(str(tmp_path / "ranks.npz"), tmp_path / "dataset", class_names=NAMES)
    train(small(epochs=1), dataset=tmp_path / "dataset", run=tmp_path / "run")
    images, labels = rows_of(1)
    few = labels < 3
    put_npz(inbox / "a.npz", images=images[few], labels=labels[few] + 1)
    (scored,) = score_inbox(tmp_path / "run", inbox).results
    counts = [entry["rows"] for entry in scored.metrics["quality"]["classes"]]
    assert np.bincount(labels[few], minlength=10).tolist() == counts
    put_npz(inbox / "a.npz", images=images, labels=labels)
    assert "not trained on: 0; the model has nought" in failure(
        score_inbox(tmp_path / "run", inbox)
    )


def put_parquet(path: Path, seed: int) -> Path:
    """Write pictures and labels as the Hugging Face Hub has them."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image_module = pytest.importorskip("PIL.Image")
    pictures = []
    images, labels = rows_of(seed)
    for image in images:
        buffer = io.BytesIO()
        image_module.fromarray(image).save(buffer, "PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    table = arrow.table({"image": pictures, "label": labels.astype(np.int64)})
    return put(path, lambda place: parquet.write_table(table, place))


def put_table(folder: Path, seed: int) -> Path:
    """Write pictures, and a table of their labels beside them."""
    put_pictures(folder, seed)
    lines = [f"{row:03}.png,{label}" for row, label in enumerate(rows_of(seed)[1])]
    put(folder / "labels.csv", lambda place: place.write_text("\n".join(["file,label", *lines])))
    return folder


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
    "sub/a.csv": lambda path: put_csv(path, 1),
    "test-00000-of-00001.parquet": lambda path: put_parquet(path, 1),
    "table": lambda path: put_table(path, 1),
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


@pytest.mark.slow
def test_bytes_that_were_divided(run: Path, inbox: Path) -> None:
    """In a pickle, k / 256 is the byte k, which a run trained on bytes scores like any other."""
    put_pickle(inbox / "mnist.pkl.gz", 1)
    for number, split in enumerate(("train", "validation", "test")):
        put_images(inbox / f"{split}-images-idx3-ubyte", 1 + number, labelled=True)
    result = score_inbox(run, inbox)
    digests = {str(one.file): one.scores.digest for one in result.results}
    assert 6 == len(digests)
    for split in ("train", "validation", "test"):
        assert digests[f"mnist.pkl.gz/{split}"] == digests[f"{split}-images-idx3-ubyte"]


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


@pytest.mark.parametrize("form", ["text", "folders", "numbers in a table"])
def test_labels_by_name(form: str, named_run: Path, inbox: Path) -> None:
    """Text labels are the model's class names in any order; numbers are positions."""
    if form == "text":
        put_csv(inbox / "a.csv", 1, NAMES)
    elif form == "folders":
        put_pictures(inbox / "a", 1, NAMES)
    else:
        put_table(inbox / "a", 1)
    put_images(inbox / "b-images-idx3-ubyte", 1, labelled=True)
    result = score_inbox(named_run, inbox)
    by_class = [
        {entry["name"]: entry["rows"] for entry in one.metrics["quality"]["classes"]}
        for one in result.results
    ]
    assert 2 == len(by_class)
    assert by_class[0] == by_class[1]


def test_unknown_label(named_run: Path, inbox: Path) -> None:
    """A text label that is not a class of the model is an error."""
    put_csv(inbox / "a.csv", 1, ("zero", *NAMES[1:]))
    assert "classes that the model was not trained on: zero" in failure(
        score_inbox(named_run, inbox)
    )


def test_late_picture(run: Path, inbox: Path) -> None:
    """A folder to which a picture was added is new content, and scored as a whole."""
    put_pictures(inbox / "monday", 1)
    (first,) = score_inbox(run, inbox).results
    shutil.copy2(inbox / "monday" / "000.png", inbox / "monday" / "late.png")
    (second,) = score_inbox(run, inbox).results
    assert (ROWS, ROWS + 1) == (first.metrics["rows"], second.metrics["rows"])
    assert [("scored", "monday")] * 2 == list(recorded(run))


@pytest.mark.parametrize("name", ["late.png", "late.png.part"])
def test_picture_that_arrives_during_the_pause(
    name: str, run: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is left while pictures arrive in it."""
    put_pictures(inbox / "monday", 1)
    os.utime(inbox / "monday" / "000.png")

    def put_late(seconds: float, stop: object) -> None:
        shutil.copy2(inbox / "monday" / "001.png", inbox / "monday" / name)

    monkeypatch.setattr("jobs.scoring.inbox.pause", put_late)
    result = score_inbox(run, inbox, settle=5.0)
    assert [{"file": "monday", "reason": "it is still being written"}] == result.left
    assert [] == result.results


def test_picture_that_changes_while_it_is_read(run: Path, inbox: Path) -> None:
    """A folder of which a picture changes during the scoring is left, not recorded as bad."""
    put_pictures(inbox / "monday", 1)

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        if stage.startswith("ingest"):
            shutil.copy(inbox / "monday" / "002.png", inbox / "monday" / "001.png")

    result = score_inbox(run, inbox, progress=progress)
    assert ([], []) == (result.results, result.failed)
    reason = "it changed or disappeared while it was being read"
    assert [{"file": "monday", "reason": reason}] == result.left


def test_values_in_another_range(run: Path, inbox: Path) -> None:
    """Black and white as bool is refused by a run that was trained on 0 to 255."""
    put_npz(inbox / "a.npz", images=rows_of(1)[0] > 127)
    result = score_inbox(run, inbox)
    assert (
        "a.npz has values from 0 to 1; the run was trained on values from 0 to 255. Convert them "
        "to that range." == failure(result)
    )


@pytest.mark.parametrize("form", ["npz", "csv", "pictures"])
def test_another_size(form: str, run: Path, inbox: Path) -> None:
    """Images of another size than the run's are refused; `pipeline ingest` has options for them."""
    images = np.zeros((3, 30, 30), np.uint8)
    if form == "npz":
        put_npz(inbox / "a.npz", images=images)
    elif form == "csv":
        header = ",".join(f"p{number}" for number in range(900))
        lines = [",".join(["0"] * 900)] * 3
        put(inbox / "a.csv", lambda place: place.write_text("\n".join([header, *lines])))
    else:
        image_module = pytest.importorskip("PIL.Image")
        put(inbox / "a" / "a.png", image_module.fromarray(images[0]).save)
    text = failure(score_inbox(run, inbox))
    assert "has images of 30 x 30; the run was trained on images of 28 x 28" in text
    assert ("`pipeline predict`" in text) == (form == "pictures")


def test_pictures_of_unequal_size(run: Path, inbox: Path) -> None:
    """Advice about options of `ingest` says that a dataset made with them can be scored."""
    image_module = pytest.importorskip("PIL.Image")
    put_pictures(inbox / "a", 1)
    put(inbox / "a" / "z.png", image_module.new("L", (30, 30)).save)
    text = failure(score_inbox(run, inbox))
    assert text.startswith("a/z.png has 30 x 30 pixels")
    assert "put a dataset that `pipeline ingest` made into the inbox" in text


def test_hostile_names(run: Path, inbox: Path) -> None:
    """Names with line breaks or dashes are shown on one line; invalid UTF-8 is an error."""
    put_pictures(inbox / "a\nb", 1)
    put_npz(inbox / "--label.npz", images=rows_of(2)[0])
    bad = os.fsdecode(b"caf\xe9.png")
    put_pictures(inbox / "c", 3)
    (inbox / "c" / "000.png").rename(inbox / "c" / bad)
    result = score_inbox(run, inbox)
    assert ["--label.npz", "a\\nb"] == files_of(result)
    assert "c: the name is not valid UTF-8. Rename the file." == failure(result)


def test_another_format_than_the_name_says(run: Path, inbox: Path) -> None:
    """A file whose name and content disagree is refused."""
    put_images(inbox / "images.parquet", 1)
    assert failure(score_inbox(run, inbox)).startswith("images.parquet is damaged, or is not")


def test_missing_library(run: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are left if no library can read them: they are not bad."""
    put_pictures(inbox / "monday", 1)
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = score_inbox(run, inbox)
    assert [] == result.failed
    assert "Reading pictures needs the library Pillow" in result.left[0]["reason"]
    assert 2 == result.error.exit_code


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "npy"])
def test_small_values_of_a_wide_type(form: str, inbox: Path, tmp_path: Path) -> None:
    """A file whose type is chosen by its values fits a run that was trained on larger ones."""
    images, labels = draw_digits(1, "inbox", 0, 300)
    put_npz(tmp_path / "train.npz", images=images.astype(np.int64) * 100, labels=labels)
    ingest(str(tmp_path / "train.npz"), tmp_path / "dataset")
    train(small(epochs=1), dataset=tmp_path / "dataset", run=tmp_path / "run")
    if form == "csv":
        put_csv(inbox / "a.csv", 1)
    else:
        put(inbox / "a.npy", lambda place: np.save(place, images[:ROWS].astype(np.int64)))
    write_idx(inbox / "b-images-idx3-ubyte", images[:ROWS].astype(np.int16))
    result = score_inbox(tmp_path / "run", inbox)
    assert ["a." + form, "b-images-idx3-ubyte"] == files_of(result)
    first, second = (one.scores.read_chunk(0)[0].tolist() for one in result.results)
    assert first == second


def test_floats_of_another_range(inbox: Path, tmp_path: Path) -> None:
    """The range of a run's floats is that of its training rows: a file may have another one."""
    images, labels = draw_digits(1, "inbox", 0, 150)
    put_npz(tmp_path / "train.npz", images=images / np.float32(8), labels=labels)
    ingest(str(tmp_path / "train.npz"), tmp_path / "dataset")
    train(small(epochs=1), dataset=tmp_path / "dataset", run=tmp_path / "run")
    lines = [",".join(map(str, image.ravel() / 16)) for image in images[:ROWS]]
    header = ",".join(f"pixel{number}" for number in range(784))
    put(inbox / "a.csv", lambda place: place.write_text("\n".join([header, *lines])))
    assert ["a.csv"] == files_of(score_inbox(tmp_path / "run", inbox))
