"""Models in Python: predictions for plain arrays of images equal those of `score`."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.scoring.job import score
from jobs.training.job import train
from jobs.training.model import Model
from pipeline.ingest import ingest
from pipeline.sources.digits import draw_digits
from storage.dataset import open_dataset
from storage.errors import BadDataError, UsageError
from storage.places import open_location
from storage.scores import Scores
from tests.jobs.trainings import small
from tests.object_store.server import Store
from tests.storage.artefacts import stored_rows
from tests.storage.idx_files import write_idx

SETTINGS = {"network": "relu-8", "epochs": 2, "batch_size": 50, "threads": 1}


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, with both checkpoints."""
    place = tmp_path_factory.mktemp("predict") / "run"
    train(small(epochs=2), dataset=digits, run=place)
    return place


def images_of(dataset: Path, split: str = "test") -> NDArray[Any]:
    """The images of a split as the dataset stores them, without the bias column."""
    opened = open_dataset(open_location(dataset))
    rows = stored_rows(opened.split(split)).inputs[:, 1:]
    return rows.reshape(-1, *opened.image_shape)


def scored(scores: Scores) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The probabilities and classes that `score` writes."""
    chunks = [scores.read_chunk(number) for number in range(scores.schema.chunks)]
    return np.concatenate([one for one, _ in chunks]), np.concatenate([one for _, one in chunks])


@pytest.mark.parametrize("checkpoint", ["best", "latest", 1])
def test_predictions_are_those_of_a_scoring(checkpoint: str | int, run: Path, digits: Path) -> None:
    """Images as pictures or as rows, also as lists, get the classes that `score` gives them."""
    model, images = Model.load(run, checkpoint), images_of(digits)
    probabilities, classes = scored(
        score(run=run, dataset=digits, checkpoint=str(checkpoint)).scores
    )
    assert np.array_equal(classes, model.predict(images))
    assert np.int64 == model.predict(images).dtype
    np.testing.assert_allclose(model.predict_proba(images), probabilities, rtol=1e-5, atol=1e-7)
    assert np.array_equal(classes, model.predict(images.reshape(-1, 784)))
    assert np.array_equal(classes[:3], model.predict(np.asfortranarray(images[:3])))
    assert np.array_equal(classes[:3], model.predict(images[:3].tolist()))
    assert tuple("0123456789") == model.class_names
    assert (0, 10) == model.predict_proba(images[:0]).shape
    assert (0,) == model.predict(images[:0]).shape


@pytest.mark.parametrize("dtype", ["i2", "f4", "f8"])
def test_other_types_and_transposed_images(dtype: str, tmp_path: Path) -> None:
    """Values of any type are scaled as the training images were; images are upright."""
    (tmp_path / "set").mkdir()
    for split, prefix, rows in (("train", "train", 300), ("test", "t10k", 60)):
        images, labels = draw_digits(0, split, 0, rows)
        values = images.astype(dtype).swapaxes(1, 2) * 2 - 100
        write_idx(tmp_path / "set" / f"{prefix}-images-idx3", values[:, :, :20])
        write_idx(tmp_path / "set" / f"{prefix}-labels-idx1", labels)
    data, place = tmp_path / "data", tmp_path / "run"
    ingest(str(tmp_path / "set"), data, transpose=True)
    train(SETTINGS, dataset=data, run=place)
    model, upright = Model.load(place), images_of(data)
    assert (60, 20, 28) == upright.shape
    _, classes = scored(score(run=place, dataset=data).scores)
    assert len({*classes}) > 2
    assert np.array_equal(classes, model.predict(upright))
    assert np.array_equal(classes, model.predict(upright.astype(upright.dtype.newbyteorder())))
    with pytest.raises(BadDataError, match=r"\(60, 28, 20\); expected \(rows, 20, 28\)"):
        model.predict(upright.swapaxes(1, 2))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((3, 27, 28), "u1"), "(3, 27, 28); expected (rows, 28, 28) or (rows, 784)."),
        (np.zeros((28, 28), "u1"), "(28, 28); expected (rows, 28, 28) or (rows, 784)."),
        (np.zeros((3, 785), "u1"), "(3, 785); expected (rows, 28, 28)"),
        (np.zeros((3, 784, 1), "u1"), "(3, 784, 1); expected (rows, 28, 28)"),
        (7, "The array has shape (); expected (rows, 28, 28)"),
        (
            np.zeros((3, 28, 28)),
            "values of type float64; the run was trained on values of type uint8",
        ),
        (np.full((3, 28, 28), 256), "values of type int64; "),
        ([], "(0,); expected (rows, 28, 28)"),
    ],
)
def test_other_images(images: Any, words: str, run: Path) -> None:
    """Images of another shape or type are refused, with both named."""
    with pytest.raises(BadDataError, match=re.escape(words)):
        Model.load(run).predict(images)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    """A value that is not finite is refused; the message names its row."""
    (tmp_path / "set").mkdir()
    images, labels = draw_digits(0, "train", 0, 90)
    write_idx(tmp_path / "set" / "train-images-idx3", images.astype("f4"))
    write_idx(tmp_path / "set" / "train-labels-idx1", labels)
    ingest(str(tmp_path / "set"), tmp_path / "data")
    train(SETTINGS, dataset=tmp_path / "data", run=tmp_path / "run")
    bad = images[:5].astype("f4")
    bad[3, 2, 1] = np.nan
    with pytest.raises(BadDataError, match="The array: row 3 holds the value nan"):
        Model.load(tmp_path / "run").predict(bad)


def test_choices(run: Path, digits: Path, tmp_path: Path) -> None:
    """A checkpoint is chosen as by `--checkpoint`; a missing run is named."""
    latest = Model.load(run, "latest")
    assert latest.digest == Model.load(run, latest.digest[:12]).digest == Model.load(run, 2).digest
    with pytest.raises(UsageError, match="expected best, latest"):
        Model.load(run, "newest")
    with pytest.raises(BadDataError, match=f"{digits}"):
        Model.load(digits)


def test_a_run_in_a_store(store: Store, run: Path, digits: Path) -> None:
    """A run in an object store is loaded by its URL."""
    location = store.new_place()
    for path in (path for path in run.rglob("*") if path.is_file() and path.name != ".lock"):
        location.put(str(path.relative_to(run)), path.read_bytes())
    images, here = images_of(digits), Model.load(run)
    there_too = Model.load(str(location), storage_options=store.options)
    assert here.digest == there_too.digest
    assert np.array_equal(here.predict_proba(images), there_too.predict_proba(images))


def test_repr(run: Path) -> None:
    """The repr shows the model and the images that it accepts in a few lines."""
    first, *lines = repr(Model.load(run)).splitlines()
    assert first.startswith("<Model ")
    assert [
        "  network: 784-relu-9-softmax-10, float32",
        "  images: 28 x 28 uint8, values from 0 to 255 mapped to [0, 1]",
        "  classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    ] == lines
