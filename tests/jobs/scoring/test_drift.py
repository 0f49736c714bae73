"""Drift: distances corrected for chance, references, and what a scoring records."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from jobs.scoring.distances import (
    SIGMAS,
    Distances,
    chi_squared_bound,
    grouped_psi,
    hidden_distance,
    stability_index,
)
from jobs.scoring.drift import drift_text
from jobs.scoring.gates import Gates
from jobs.scoring.job import score
from jobs.scoring.remedies import LEAST_ROWS
from jobs.training.job import train
from jobs.training.reference import Observation, Reference
from pipeline.ingest import ingest
from pipeline.statistics import BINS, ImageStatistics
from storage.dataset import open_dataset
from storage.documents import seal
from storage.errors import QualityGateError
from storage.local import LocalLocation
from storage.verify import verify_run
from tests.jobs.inboxes import Events, ledger, score_inbox
from tests.jobs.trainings import small
from tests.storage.artefacts import stored_rows


@pytest.mark.parametrize("degrees", [1, 3, 9, 80, 127])
def test_chi_squared_bound(degrees: int) -> None:
    """It is the quantile that SciPy computes, to 5 %; to 10 % for one degree of freedom."""
    expected = stats.chi2.isf(stats.norm.sf(SIGMAS), degrees)
    assert chi_squared_bound(degrees) == pytest.approx(expected, rel=0.1 if degrees == 1 else 0.05)


def test_stability_index() -> None:
    """The index of large counts is the sum of both relative entropies; of equal shares it is 0."""
    expected, observed = (
        np.array([500_000, 300_000, 200_000]),
        np.array([200_000, 300_000, 500_000]),
    )
    entropy = stats.entropy(expected, observed) + stats.entropy(observed, expected)
    assert stability_index(expected, observed) == pytest.approx(float(entropy), rel=1e-3)
    assert stability_index(expected, expected // 100) == 0


@pytest.mark.parametrize("rows", [30, 100, 500])
def test_chance_is_no_drift(rows: int) -> None:
    """Samples of the same distribution have distance 0, whatever their size."""
    rng = np.random.default_rng(0)
    shares = np.arange(BINS) ** 2 / (np.arange(BINS) ** 2).sum()
    expected = rng.multinomial(5000, shares)
    values = [grouped_psi(expected, rng.multinomial(rows, shares)) for _ in range(300)]
    assert np.count_nonzero(values) <= 1
    assert grouped_psi(expected, rng.multinomial(rows, shares[::-1])) > 0


def observed(hidden: NDArray[np.float64]) -> Observation:
    rows = len(hidden)
    counts = np.array([rows, 0]), np.array([rows, *[0] * (BINS - 1)])
    return Observation(ImageStatistics.empty(), *counts, hidden.sum(axis=0))


def test_hidden_distance() -> None:
    """It is 0 for the same distribution, and the Mahalanobis distance of means far apart."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    rows = rng.normal(size=(4000, 6)) @ mixing
    covariance = np.cov(rows.T)
    counts = np.array([4000, 0]), np.zeros(BINS, np.int64)
    reference = Reference("", "", "test", None, *counts, rows.mean(axis=0), covariance)
    for _ in range(100):
        same = observed(rng.normal(size=(100, 6)) @ mixing)
        assert hidden_distance(reference, same) == 0
    far = rng.normal(size=(4000, 6)) @ mixing + 5 * mixing[0]
    offset = far.mean(axis=0) - rows.mean(axis=0)
    expected = np.sqrt(offset @ np.linalg.solve(covariance, offset))
    assert hidden_distance(reference, observed(far)) == pytest.approx(expected, rel=0.02)


def test_training_makes_the_reference(run: Path, digits: Path, events: Events) -> None:
    """A scoring that has to make it gets the same document; a damaged one is made again."""
    (path,) = (run / "references").glob("*.json")
    content = path.read_bytes()
    first = score(run=run, dataset=digits).drift
    assert first is not None
    assert first["reference"] == f"references/{path.name}"
    for damaged in (None, content.replace(b"1", b"2", 1)):
        path.unlink()
        if damaged:
            path.write_bytes(damaged)
            errors = [str(error) for _, error in verify_run(LocalLocation(run)) if error]
            assert any("references" in error for error in errors)
        shutil.rmtree(run / "scores")
        assert score(run=run, dataset=digits).drift == first
        assert path.read_bytes() == content
    assert "It was made again" in " ".join(event["text"] for event in events.events)


def test_partial_references(run: Path, digits: Path) -> None:
    """A scoring removes what a killed one left of the reference, whether or not it is there."""
    (path,) = (run / "references").glob("*.json")
    partial = path.with_name(f".{path.name}.{'0' * 32}.tmp")
    for is_missing in (True, False):
        partial.touch()
        os.utime(partial, (0, 0))  # as after a while
        if is_missing:
            path.unlink()
        shutil.rmtree(run / "scores", ignore_errors=True)
        assert score(run=run, dataset=digits).drift is not None
        assert [path.name] == os.listdir(path.parent)


@pytest.mark.parametrize("place", ["/missing", "gs://bucket/set"])
def test_without_the_training_dataset(
    place: str, run: Path, digits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not needed if there is a reference; without both, rows are scored without drift."""
    caplog.set_level(logging.INFO)
    record = json.loads((run / "run.json").read_text())
    record["dataset"]["place"] = place
    (run / "run.json").write_text(json.dumps(seal(record)))
    assert score(run=run, dataset=digits).drift is not None
    (path,) = (run / "references").glob("*.json")
    for gates, level in ((Gates(), logging.INFO), (Gates(max_drift=3), logging.WARNING)):
        path.write_text("damaged")
        shutil.rmtree(run / "scores")
        assert score(run=run, dataset=digits, gates=gates).drift is None
        assert ledger(run)[-1]["drift"] is None
        noted = [record for record in caplog.records if "not recorded" in record.getMessage()]
        assert level == noted[-1].levelno  # --quiet hides notes, but not that no gate judges
    assert "made again" not in caplog.text


@pytest.mark.parametrize("network", ["784-softmax-10", "784-tanh-200-softmax-10"])
def test_networks(network: str, digits: Path, tmp_path: Path) -> None:
    """A network without hidden layers has no distance of one; of a wide one some units count."""
    train(small(network=network, epochs=1), dataset=digits, run=tmp_path / "run")
    result = score(run=tmp_path / "run", dataset=digits)
    assert result.drift is not None
    (path,) = (tmp_path / "run" / "references").glob("*.json")
    units = len(json.loads(path.read_text())["hidden_mean"])
    assert units == {"784-softmax-10": 0, "784-tanh-200-softmax-10": 100}[network]
    assert (result.drift["hidden"] is None) == (units == 0)


def test_few_and_equal_rows(run: Path, digits: Path, tmp_path: Path) -> None:
    """Few rows have no score; rows that are all equal are noticed."""
    images = np.zeros((LEAST_ROWS - 1, 28, 28), np.uint8)
    np.savez(tmp_path / "few.npz", x_test=images)
    few = ingest(str(tmp_path / "few.npz"), tmp_path / "few").dataset
    drift = score(run=run, dataset=few.location).drift
    assert drift is not None
    assert (drift["score"], drift["duplicates"]) == (None, LEAST_ROWS - 2)
    assert drift["text"] == f"All {LEAST_ROWS - 1} rows are equal."


Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a dataset `set` and a `run` that tells its digits apart."""
    place = tmp_path_factory.mktemp("known")
    ingest("synthetic:2000,400", place / "set")
    train(
        {"network": "784-relu-40-softmax-10", "epochs": 4}, dataset=place / "set", run=place / "run"
    )
    return place


def images_of(known: Path) -> Images:
    """Return the images of the test split, `(rows, 28, 28)`."""
    test = stored_rows(open_dataset(LocalLocation(known / "set")).split("test"))
    return test.inputs[:, 1:].reshape(-1, 28, 28)


DAMAGES: dict[str | None, Callable[[Images], Images]] = {
    None: lambda images: images,
    "inverted images": lambda images: 255 - images,
    "transposed images": lambda images: images.swapaxes(1, 2),
    "images turned clockwise by 90 degrees": lambda images: np.rot90(images, -1, (1, 2)),
    "images moved by 4 pixels": lambda images: np.roll(images, 4, axis=2),
    "blank images": np.zeros_like,
    "black-and-white images": lambda images: (255 * (images > 127)).astype(np.uint8),
    "noise": lambda images: np.random.default_rng(0).integers(0, 256, images.shape, np.uint8),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_images_look_like(name: str | None, known: Path, tmp_path: Path) -> None:
    """Damaged images are far from training, and what happened to them is named."""
    images = np.ascontiguousarray(DAMAGES[name](images_of(known)))
    np.savez(tmp_path / "images.npz", x_test=images)
    ingest(str(tmp_path / "images.npz"), tmp_path / "set")
    drift = score(run=known / "run", dataset=tmp_path / "set").drift
    assert drift is not None
    shutil.rmtree(known / "run" / "scores")
    assert (drift["looks_like"], drift["score"] > 3) == (name, name is not None)
    assert (drift["text"] is None) == (name is None)
    if name is not None:
        assert drift["text"].endswith((f": {name}?", f"{name}? All 400 rows are equal."))


def test_the_largest_distance_is_named() -> None:
    """The text has the score's own number, even if it is the hidden layer's, which comes last."""
    values = Distances({"brightness": 5.0, "predicted": 2.0, "confidence": 4.0}, 11.0)
    text = drift_text(values, np.array([7, 3]), ("0", "1"))
    assert text == "Brightness 5.0 and hidden layer 11.0 from training"


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_some_rows_are_inverted(share: float, known: Path, tmp_path: Path) -> None:
    """Drift at a file's end is explained by the rows that drifted, not by its first ones."""
    images = np.concatenate([images_of(known)] * 5)  # more than the rows that remedies try
    first = round((1 - share) * len(images))
    images[first:] = 255 - images[first:]
    np.savez(tmp_path / "images.npz", x_test=images)
    ingest(str(tmp_path / "images.npz"), tmp_path / "set")
    drift = score(run=known / "run", dataset=tmp_path / "set").drift
    shutil.rmtree(known / "run" / "scores")
    assert drift is not None
    assert drift["score"] > 3
    assert drift["looks_like"] == ("inverted images" if share > 0.5 else None)


def test_copies_of_a_row_are_not_transposed(tmp_path: Path) -> None:
    """A remedy that lowers a drift only a little, from 3.2 to 2.7 here, is not named."""
    train_set = ingest("synthetic:600,200", tmp_path / "set").dataset
    settings = {"network": "784-softmax-10", "epochs": 2}
    train(settings, dataset=train_set.location, run=tmp_path / "run")
    image = stored_rows(train_set.split("test")).inputs[0, 1:].reshape(28, 28)
    np.savez(tmp_path / "images.npz", x_test=np.stack([image] * 40))
    ingest(str(tmp_path / "images.npz"), tmp_path / "copies")
    drift = score(run=tmp_path / "run", dataset=tmp_path / "copies").drift
    assert drift is not None
    assert (drift["looks_like"], drift["score"] > 3) == (None, True)


def test_vectors_are_no_images(tmp_path: Path) -> None:
    """Vectors far from training are not said to look like images."""
    rng = np.random.default_rng(0)
    vectors = {"x_train": rng.normal(size=(200, 5)), "x_test": np.zeros((100, 5))}
    labels = {"y_train": rng.integers(0, 2, 200), "y_test": rng.integers(0, 2, 100)}
    np.savez(tmp_path / "vectors.npz", **vectors, **labels)
    ingest(str(tmp_path / "vectors.npz"), tmp_path / "set")
    train({"epochs": 1, "batch_size": 10}, dataset=tmp_path / "set", run=tmp_path / "run")
    drift = score(run=tmp_path / "run", dataset=tmp_path / "set").drift
    assert drift is not None
    assert (drift["score"] > 3, drift["looks_like"]) == (True, None)


def test_gate(known: Path, tmp_path: Path, events: Events) -> None:
    """A file without labels raises one alarm, not one per night; the ledger marks it."""
    run, inbox = shutil.copytree(known / "run", tmp_path / "run"), tmp_path / "inbox"
    inbox.mkdir()
    np.save(inbox / "good.npy", images_of(known))
    np.save(inbox / "bad.npy", 255 - images_of(known))
    np.save(inbox / "few.npy", images_of(known)[:5])
    gates = Gates(max_drift=3.0)
    result = score_inbox(run, inbox, gates=gates)
    assert isinstance(result.error, QualityGateError)
    assert "bad.npy scored by" in str(result.error)
    assert "inverted images?" in str(result.error)
    assert "good.npy" not in str(result.error)
    assert ["few.npy"] == result.unjudged
    lines = {line["file"]: line for line in ledger(run)}
    assert {"good.npy": 0, "bad.npy": 5, "few.npy": 0} == {
        name: line["exit"] for name, line in lines.items()
    }
    drift = result.results[0].drift
    assert drift is not None
    assert lines["bad.npy"]["drift"] == drift["score"]
    assert "inverted images?" in lines["bad.npy"]["drift_text"]
    assert "inverted images?" in events.named("scored")[0]["drift_text"]
    assert score_inbox(run, inbox, gates=gates).error is None
    assert score_inbox(run, inbox).error is None
