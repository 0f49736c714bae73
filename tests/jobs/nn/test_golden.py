"""The results of the project's original notebook, recorded in golden.json."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from jobs.nn.architecture import parse_network
from jobs.nn.network import Network
from jobs.nn.optimizers import make_optimizer
from jobs.nn.parameters import Floats, views
from tests.jobs.nn.regularised import penalty, regularised

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())


def flat(matrices: list[list[list[float]]]) -> Floats:
    """The recorded matrices as one flat vector."""
    return np.concatenate([np.ravel(matrix) for matrix in matrices])


def tiny() -> tuple[Network, Floats, NDArray[np.uint8]]:
    """The tiny network with its inputs and targets."""
    recorded = GOLDEN["tiny"]
    return (
        Network(parse_network(recorded["layers"]), np.float64),
        np.array(recorded["inputs_with_bias"]),
        np.array(recorded["targets"], np.uint8),
    )


def test_tiny_network() -> None:
    """Outputs and mean gradients of the tiny network."""
    network, inputs, targets = tiny()
    parameters = flat(GOLDEN["tiny"]["weights"])
    gradient = network.gradient_sum(parameters, inputs, targets).gradient / len(inputs)
    expected = flat(GOLDEN["tiny"]["mean_gradients_shape_of_weights"])
    np.testing.assert_allclose(
        network.forward(parameters, inputs), GOLDEN["tiny"]["outputs"], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-12)


def test_regularised_network() -> None:
    """Cost and gradients with L2, which the notebook divides by the number of rows."""
    network, inputs, targets = tiny()
    recorded = GOLDEN["regularised"]
    parameters = flat(recorded["weights_bias_rows_zero"])
    l2 = recorded["l2"] / len(inputs)
    mean = network.gradient_sum(parameters, inputs, targets).gradient / len(inputs)
    gradient = regularised(network, parameters, mean, l2)
    expected = flat(recorded["mean_gradients_shape_of_weights"])
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-12)

    # The notebook reports the logistic cost, summed over the classes, of the same probabilities.
    probabilities = network.forward(parameters, inputs)
    logistic = -np.log(np.where(targets, probabilities, 1 - probabilities)).sum() / len(inputs)
    cost = logistic + penalty(network, parameters, l2)
    np.testing.assert_allclose(cost, recorded["logistic_cost"], rtol=0, atol=1e-12)


class Mnist:
    """A split of the real MNIST, decoded here to test the network alone."""

    def __init__(self, directory: Path, split: str) -> None:
        images = _idx_bytes(directory, f"{split}-images")[16:].reshape(-1, 784)
        labels = _idx_bytes(directory, f"{split}-labels")[8:]
        self.rows = len(labels)
        self.images = images
        self.targets = np.eye(10, dtype=np.uint8)[labels]

    def block(self, start: int, rows: int) -> tuple[Floats, NDArray[np.uint8]]:
        """Rows in file order: inputs in [0, 1], the bias column first, and targets."""
        images = self.images[start : start + rows]
        inputs = np.ones((len(images), 785))
        np.divide(images, 255, out=inputs[:, 1:])
        return inputs, self.targets[start : start + rows]

    def accuracy(self, network: Network, parameters: Floats) -> float:
        """The share of rows that the network classifies correctly."""
        blocks = (self.block(start, 2000) for start in range(0, self.rows, 2000))
        return sum(network.loss(parameters, *block).correct for block in blocks) / self.rows


def _idx_bytes(directory: Path, name: str) -> NDArray[np.uint8]:
    path = min(directory.glob(f"{name}*"))
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return np.frombuffer(content, np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epochs"), [("network_batch_1000", 1), ("network_batch_100", 3)])
def test_training_on_mnist(name: str, epochs: int, mnist_dir: Path) -> None:
    """Each epoch's accuracies and the final weights of the notebook's training in file order."""
    recorded = GOLDEN[name]
    network = Network(parse_network(recorded["layers"]), np.float64)
    generator = np.random.RandomState(0)
    parameters = np.concatenate(
        [generator.randn(*layer.shape).ravel() / 10 for layer in network.layers]
    )
    sgd, rate = make_optimizer("sgd"), recorded["learning_rate"]
    train, test = Mnist(mnist_dir, "train"), Mnist(mnist_dir, "t10k")
    batch_size = recorded["batch_size"]
    # More BLAS threads than free cores would make this many times slower.
    with threadpool_limits(2, "blas"):
        for epoch in recorded["epochs"][:epochs]:
            for start in range(0, train.rows, batch_size):
                batch = train.block(start, batch_size)
                gradient = network.gradient_sum(parameters, *batch).gradient / batch_size
                after = np.empty_like(parameters)
                sgd.step((parameters, {}), gradient, rate, 1, (after, {}))
                parameters = after
            accuracies = [split.accuracy(network, parameters) for split in (train, test)]
            expected = [epoch["train_accuracy"], epoch["test_accuracy"]]
            np.testing.assert_allclose(accuracies, expected, rtol=0, atol=2e-4)

    if epochs == len(recorded["epochs"]):
        matrices = views(parameters, network.layers)
        norms = [np.linalg.norm(matrix) for matrix in matrices]
        np.testing.assert_allclose(norms, recorded["final_weight_norms"], rtol=1e-6)
        sums = [matrix.sum() for matrix in matrices]
        np.testing.assert_allclose(sums, recorded["final_weight_sums"], rtol=1e-6)
