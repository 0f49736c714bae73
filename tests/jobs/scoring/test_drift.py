"""Drift: distances corrected for chance, references, and what a scoring records."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from jobs.scoring.drift import (
    LEAST_ROWS,
    SIGMAS,
    chi_squared_bound,
    grouped_psi,
    hidden_distance,
    stability_index,
)
from jobs.scoring.job import score
from jobs.training.config import TrainConfig
from jobs.training.job import train
from jobs.training.reference import Observation, Reference
from pipeline.ingest import ingest
from pipeline.statistics import BINS, ImageStatistics
from storage.dataset import open_dataset
from storage.documents import seal
from storage.local import LocalLocation
from storage.verify import verify_run
from tests.jobs.inboxes import Events, ledger
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


def observed(hidden: np.ndarray) -> Observation:
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
    assert "made again" in " ".join(event["text"] for event in events.events)


def test_without_the_training_dataset(
    run: Path, digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model without a reference, whose dataset is not available, scores without drift."""
    caplog.set_level(logging.INFO)
    shutil.rmtree(run / "references")
    record = json.loads((run / "run.json").read_text())
    record["dataset"]["place"] = str(tmp_path / "missing")
    (run / "run.json").write_text(json.dumps(seal(record)))
    result = score(run=run, dataset=digits)
    assert result.drift is None
    assert "Drift is not recorded" in caplog.text
    assert ledger(run)[-1]["drift"] is None


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


def test_record(digits: Path, tmp_path: Path, events: Events) -> None:
    """Inverted images are far from training, which ledger, events and metrics record."""
    config = TrainConfig(network="784-relu-20-softmax-10", epochs=2, batch_size=50)
    ingest("synthetic:1500,300", tmp_path / "set")
    train(config, dataset=tmp_path / "set", run=tmp_path / "run")
    near = score(run=tmp_path / "run").drift
    assert near is not None
    assert (near["score"] < 1, near["text"]) == (True, None)

    test = stored_rows(open_dataset(LocalLocation(tmp_path / "set")).split("test"))
    np.savez(tmp_path / "inverted.npz", x_test=255 - test.inputs[:, 1:].reshape(-1, 28, 28))
    ingest(str(tmp_path / "inverted.npz"), tmp_path / "inverted")
    result = score(run=tmp_path / "run", dataset=tmp_path / "inverted")
    far = result.drift
    assert far is not None
    assert far["score"] > 3
    assert far["score"] == max(*far["psi"].values(), far["hidden"])
    assert "from training" in far["text"]
    line = ledger(tmp_path / "run")[-1]
    assert (line["drift"], line["drift_text"]) == (far["score"], far["text"])
    facts = events.named("scored")[-1]
    assert (facts["drift"], facts["drift_text"]) == (far["score"], far["text"])
