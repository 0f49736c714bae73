"""Training on distorted images: the rows that the network sees, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.nn.architecture import parse_network
from jobs.nn.initialise import initialise
from jobs.nn.network import Network
from jobs.training.gradients import GradientRule, Gradients, gradient_rule
from jobs.training.job import train
from pipeline.distortions import Distorter, Distortions
from pipeline.ingest import ingest
from pipeline.rows import Batch
from storage.dataset import open_dataset
from storage.errors import ConflictError, UsageError
from storage.places import open_location
from tests.jobs.trainings import outcome, small
from tests.storage.artefacts import stored_rows
from tests.storage.idx_files import write_set

DISTORTED = small(rotate=15.0, scale=0.1, elastic=1.0, distort_until=0.5, epochs=4)
STRENGTHS = Distortions(rotate=15.0, scale=0.1, elastic=1.0)


@pytest.mark.parametrize(("epoch", "strengths"), [(1, STRENGTHS), (2, STRENGTHS.halved())])
def test_what_the_network_sees(epoch: int, strengths: Distortions, digits: Path) -> None:
    """The gradient is that of the rows distorted by hand, from half of the epochs on less so."""
    layers = parse_network(DISTORTED.network)
    network, dataset = Network(layers), open_dataset(open_location(digits))
    rows = np.array([900, 3, 17, 4])
    stored = stored_rows(dataset.split("train"))
    assert stored.targets is not None
    inputs, targets = stored.inputs[rows], stored.targets[rows]
    parameters = initialise("scaled", layers, 0)
    by_hand = Distorter(strengths, (28, 28), DISTORTED.seed)(inputs, epoch, rows)
    assert not np.array_equal(by_hand, inputs)

    def gradient(rule: GradientRule, batch: Batch) -> bytes:
        out = np.empty_like(parameters)
        Gradients(rule).of_subtree(parameters, [batch], 4, out)
        return out.tobytes()

    plain = gradient(GradientRule(network), Batch(by_hand, targets, rows))
    rule = gradient_rule(DISTORTED, network, dataset)
    assert plain == gradient(rule, Batch(inputs, targets, rows, epoch))


def test_threads_and_micro_batches(digits: Path, tmp_path: Path) -> None:
    """One and two processes see the same distorted rows; another seed sees others."""
    results = {
        (threads, seed): train(
            replace(DISTORTED, threads=threads, seed=seed),
            dataset=digits,
            run=tmp_path / f"{threads}-{seed}",
        )
        for threads, seed in [(1, 0), (2, 0), (1, 1)]
    }
    assert outcome(results[1, 0]) == outcome(results[2, 0])
    assert results[1, 0].parameters_digest != results[1, 1].parameters_digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotate": 10.0}, "rotate: 15.0 recorded, 10.0 given"),
        ({"elastic_sigma": 6.0}, "elastic_sigma: 5.0 recorded, 6.0 given"),
        ({"distort_until": 1.0}, "distort_until: 0.5 recorded, 1.0 given"),
    ],
)
def test_resumed_with_other_distortions(
    changes: dict[str, Any], message: str, digits: Path, tmp_path: Path
) -> None:
    """Other distortions are another training: each one that differs is named."""
    train(replace(DISTORTED, epochs=1), dataset=digits, run=tmp_path / "run")
    with pytest.raises(ConflictError) as caught:
        train(
            replace(DISTORTED, epochs=1, **changes),
            dataset=digits,
            run=tmp_path / "run",
            resume=True,
        )
    assert message in str(caught.value)


def test_extended(digits: Path, tmp_path: Path) -> None:
    """With halved distortions the number of epochs is fixed, whatever the schedule."""
    config = replace(DISTORTED, epochs=1, schedule="constant")
    train(config, dataset=digits, run=tmp_path / "run")
    with pytest.raises(
        ConflictError,
        match=r"--distort-until 0\.5 is a share of exactly that .* --distort-until 1 ",
    ):
        train({"epochs": 2}, run=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotate": 181.0}, "--rotate is 181.0; expected 0 to 180."),
        ({"scale": -0.1}, "--scale is -0.1; expected 0 to 0.9."),
        ({"elastic_sigma": 0.5}, "--elastic-sigma is 0.5; expected 1 to 1,000."),
        ({"distort_until": 1.5}, "--distort-until is 1.5; expected 0 to 1."),
        ({"shift": float("nan")}, "--shift is nan; expected 0 to 1,000."),
    ],
)
def test_strengths_out_of_range(settings: dict[str, float], message: str) -> None:
    """A strength out of range is refused with its range."""
    with pytest.raises(UsageError, match=message):
        small(**settings)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((150, 9), np.uint8), "two-dimensional images can be .* Pass --distort none"),
        (
            np.zeros((150, 3, 3), np.int16),
            "int16 values; only images of bytes.*Write the files as bytes.*or pass --distort none",
        ),
    ],
    ids=["vectors", "int16"],
)
def test_rows_that_cannot_be_distorted(images: NDArray[Any], message: str, tmp_path: Path) -> None:
    """Vectors and other element types are refused before the run exists."""
    images[0] = 1
    labels = (np.arange(150) % 2).astype(np.uint8)
    ingest(str(write_set(tmp_path / "set", images, labels)), tmp_path / "data")
    settings = {"network": "relu-5", "batch_size": 10, "rotate": 5.0}
    with pytest.raises(UsageError, match=message):
        train(settings, dataset=tmp_path / "data", run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
