"""Dropout: masks by definition, their statistics, and the same model however it is computed."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.nn.architecture import parse_network
from jobs.nn.initialise import initialise
from jobs.nn.network import Network, Workspace
from jobs.training.dropout import Dropout
from jobs.training.gradients import Gradients, gradient_rule, network_inputs
from jobs.training.job import train
from pipeline.rows import Batch
from storage.dataset import open_dataset
from storage.errors import ConflictError
from storage.places import open_location
from tests.jobs.trainings import Log, outcome, small, warnings_in
from tests.storage.artefacts import stored_rows

NETWORK = Network(parse_network("5-relu-7-tanh-9-softmax-3"))
WIDE = Network(parse_network("5-relu-400-relu-200-softmax-3"))


def mix(word: int) -> int:
    """SplitMix64's finaliser, on integers."""
    word %= 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


def kept_by_definition(seed: int, epoch: int, row: int, share: float) -> list[list[bool]]:
    """Return which units of NETWORK a row keeps: 7 units in 2 words, then 9 units in 3."""
    digest = hashlib.sha256(f"mnist-stream dropout 1|{seed}|{epoch}".encode()).digest()
    first, second = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8))
    start = mix(first + row * 0x9E3779B97F4A7C15)
    words = [mix(start + second + number * 0xD1B54A32D192ED03) for number in range(5)]
    draws = [word >> 16 * place & 0xFFFF for word in words for place in range(4)]
    return [[draw >= share * 2**16 for draw in layer] for layer in (draws[:7], draws[8:17])]


def masks(
    share: float, epoch: int, rows: "list[int] | NDArray[np.int64]", network: Network = NETWORK
) -> list[NDArray[np.floating]]:
    """Return copies of the masks with seed 3."""
    drawn = Dropout(share, seed=3).masks(network, epoch, np.asarray(rows), Workspace())
    return [mask.copy() for mask in drawn]


def test_masks_by_definition() -> None:
    """Masks are those of the documented definition, for rows of any number."""
    rows = [0, 5, 59_999, 2**40]
    drawn = masks(0.25, 7, rows)
    for place, row in enumerate(rows):
        kept = kept_by_definition(3, 7, row, 0.25)
        assert kept == [(mask[place] > 0).tolist() for mask in drawn]
    for mask in drawn:
        assert {0.0, np.float32(4 / 3)} == set(mask.flat)


def test_a_row_has_its_own_masks() -> None:
    """A row's masks do not depend on the rows beside it, but on the epoch."""
    rows = np.arange(100, 140)
    for whole, part in zip(masks(0.5, 0, rows), masks(0.5, 0, rows[17:23]), strict=True):
        np.testing.assert_array_equal(whole[17:23], part)
    for one, other in zip(masks(0.5, 0, rows), masks(0.5, 1, rows), strict=True):
        assert 0.4 < (one == other).mean() < 0.6


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_statistics(share: float) -> None:
    """The share of units left out is as stated, in each layer; rows and units are independent."""
    count = 2000
    for mask in masks(share, 4, np.arange(count), WIDE):
        dropped = mask == 0
        deviation = (share * (1 - share)) ** 0.5
        assert abs(dropped.mean() - share) < 4 * deviation / dropped.size**0.5
        assert abs(mask.mean() - 1) < 4 * (share / (1 - share) / mask.size) ** 0.5
        for axis, size in ((0, count), (1, mask.shape[1])):
            spread = dropped.mean(axis=axis).std() / (deviation / size**0.5)
            assert 0.85 < spread < 1.15
        correlation = np.corrcoef(dropped[:, :50].T) - np.eye(50)
        assert np.abs(correlation).max() < 5 / count**0.5


def test_what_the_network_leaves_out(digits: Path) -> None:
    """The gradient is that of the masks of the batch's epoch and rows, and of smoothed labels."""
    config = small(dropout=0.4, label_smoothing=0.2, seed=3)
    network, dataset = Network(parse_network(config.network)), open_dataset(open_location(digits))
    rows = np.array([900, 3, 17, 4])
    stored = stored_rows(dataset.split("train"))
    assert stored.targets is not None
    inputs, targets = stored.inputs[rows], stored.targets[rows]
    parameters = initialise("scaled", network.layers, 0)
    out = np.empty_like(parameters)
    rule = gradient_rule(config, network, dataset)
    Gradients(rule).of_subtree(parameters, [Batch(inputs, targets, rows, epoch=1)], 4, out)
    scaled, columns = network_inputs(inputs, network.dtype, rule.scaling)
    by_hand = network.gradient_sum(
        parameters,
        scaled,
        targets,
        columns,
        weight=1 / 4,
        smoothing=0.2,
        masks=masks(0.4, 1, rows, network),
    )
    assert by_hand.gradient.tobytes() == out.tobytes()


@pytest.mark.slow
def test_any_number_of_threads(digits: Path, tmp_path: Path) -> None:
    """One and two processes leave out the same units; each share is another training."""
    digests = set()
    for share, smoothing in ((0.0, 0.0), (0.2, 0.0), (0.0, 0.1)):
        config = small(epochs=2, dropout=share, label_smoothing=smoothing)
        one, two = (
            train(
                replace(config, threads=threads),
                dataset=digits,
                run=tmp_path / f"{share}-{smoothing}-{threads}",
            )
            for threads in (1, 2)
        )
        assert outcome(one) == outcome(two)
        digests.add(one.parameters_digest)
    assert 3 == len(digests)


def test_evaluation_is_plain(digits: Path, tmp_path: Path) -> None:
    """Smoothed labels and dropout are in the training loss alone, which stays above the floor.

    With smoothing 0.5 and ten classes the loss is at least the entropy of the smoothed label.
    """
    config = small(epochs=4, dropout=0.1, label_smoothing=0.5)
    result = train(config, dataset=digits, run=tmp_path / "run")
    *_, last = result.metrics
    target = np.array([0.55, *[0.05] * 9])
    assert last["loss"] > -(target * np.log(target)).sum() > 1.6
    assert last["evaluation"]["test"]["cross_entropy"] < last["loss"]


@pytest.mark.parametrize("network", ["softmax", "784-softmax-10", "tanh-3"])
def test_without_hidden_layers(network: str, digits: Path, tmp_path: Path, log: Log) -> None:
    """Dropout has no effect on a network without hidden layers, which a warning says."""
    given = {"network": network, "epochs": 1, "threads": 1}
    plain, dropped = (
        train(given | {"dropout": share}, dataset=digits, run=tmp_path / str(share))
        for share in (0.0, 0.5)
    )
    deep = "tanh" in network
    assert deep == (outcome(plain) != outcome(dropped))
    warning = "--dropout has no effect with --network 784-softmax-10."
    assert ([] if deep else [warning] * 2) == warnings_in(log)


def test_other_shares_on_resume(digits: Path, tmp_path: Path) -> None:
    """Another share of either is another training; the run records dropout's version."""
    config = small(epochs=1, dropout=0.2)
    result = train(config, dataset=digits, run=tmp_path / "run")
    assert {"order": 1, "step": 4, "dropout": 1} == result.run.versions
    other = replace(config, dropout=0.0, label_smoothing=0.1)
    with pytest.raises(ConflictError) as caught:
        train(other, dataset=digits, run=tmp_path / "run", resume=True)
    for message in (
        "dropout: 0.2 recorded, 0.0 given",
        "label_smoothing: 0.0 recorded, 0.1 given",
    ):
        assert message in str(caught.value)
