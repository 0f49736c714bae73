"""The network: exact gradients, purity, dtypes, and errors for arrays that do not fit."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.nn.architecture import parse_network
from jobs.nn.initialise import initialise
from jobs.nn.network import GradientSum, Network
from jobs.nn.parameters import Floats, views
from tests.jobs.nn.regularised import penalty, regularised

NETWORKS = [
    "5-softmax-3",
    "5-relu-4-softmax-3",
    "5-sigmoid-4-softmax-3",
    "5-tanh-4-softmax-3",
    "5-relu-6-sigmoid-5-tanh-4-softmax-3",
]


Rows: TypeAlias = tuple[Floats, Floats, NDArray[np.uint8]]
"""Parameters, inputs and targets, in the order of a network's arguments."""


def example(text: str, dtype: type[np.floating], rows: int = 11) -> tuple[Network, Rows]:
    """A network with parameters (biases too), inputs and targets, from a fixed seed."""
    layers = parse_network(text)
    generator = np.random.default_rng(4)
    parameters = initialise("normal-0.1", layers, 0, dtype) * 5
    inputs = generator.normal(size=(rows, 1 + layers[0].inputs)).astype(dtype)
    inputs[:, 0] = 1
    classes = layers[-1].outputs
    targets = np.eye(classes, dtype=np.uint8)[generator.integers(0, classes, rows)]
    return Network(layers, dtype), (parameters, inputs, targets)


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("text", NETWORKS)
def test_the_gradient_is_the_slope_of_the_loss(text: str, l2: float) -> None:
    """The gradient equals the central difference of the mean loss plus the L2 penalty."""
    network, (parameters, inputs, targets) = example(text, np.float64)

    def cost(at: Floats) -> float:
        mean = network.loss(at, inputs, targets).loss_sum / len(inputs)
        return mean + penalty(network, at, l2)

    step = 1e-5
    differences = np.array(
        [
            (cost(parameters + move) - cost(parameters - move)) / (2 * step)
            for move in step * np.eye(len(parameters))
        ]
    )
    mean_gradient = network.gradient_sum(parameters, inputs, targets).gradient / len(inputs)
    gradient = regularised(network, parameters, mean_gradient, l2)
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-9)


def some_masks(network: Network, rows: int = 11) -> list[Floats]:
    """Fixed masks that leave out a third of the outputs of each hidden layer."""
    generator = np.random.default_rng(9)
    return [
        (generator.random((rows, layer.outputs)) > 1 / 3) * network.dtype.type(1.5)
        for layer in network.layers[:-1]
    ]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("text", NETWORKS[1:])
def test_the_gradient_with_masks_and_smoothing(text: str, smoothing: float) -> None:
    """With fixed masks the gradient is the slope of the loss with the same masks."""
    network, (parameters, inputs, targets) = example(text, np.float64)
    masks = some_masks(network)

    def result(at: Floats) -> GradientSum:
        return network.gradient_sum(at, inputs, targets, smoothing=smoothing, masks=masks)

    step = 1e-5
    moves = step * np.eye(len(parameters))
    differences = np.array(
        [result(parameters + move).loss_sum - result(parameters - move).loss_sum for move in moves]
    ) / (2 * step)
    np.testing.assert_allclose(result(parameters).gradient, differences, rtol=1e-6, atol=1e-8)
    plain = network.gradient_sum(parameters, inputs, targets)
    assert np.abs(result(parameters).gradient - plain.gradient).max() > 0.01


def test_a_masked_unit_has_no_gradient() -> None:
    """A unit left out in all rows has no gradient, neither of its inputs nor of its outputs."""
    network, (parameters, inputs, targets) = example("5-tanh-4-softmax-3", np.float64)
    mask = np.ones((11, 4))
    mask[:, 2] = 0
    gradient = network.gradient_sum(parameters, inputs, targets, masks=[mask]).gradient
    first, second = views(gradient, network.layers)
    assert not first[:, 2].any()
    assert not second[1 + 2].any()
    assert first[:, 1].all()
    assert second[1 + 1].all()


def test_gradient_sum_and_loss_report_the_same_rows() -> None:
    """Loss, correct rows and row count are those of the forward pass."""
    network, (parameters, inputs, targets) = example(NETWORKS[-1], np.float64)
    probabilities = network.forward(parameters, inputs)
    labels = targets.argmax(axis=1)
    expected_loss = -np.log(probabilities[np.arange(11), labels]).sum()
    expected_correct = (probabilities.argmax(axis=1) == labels).sum()
    for result in (
        network.loss(parameters, inputs, targets),
        network.gradient_sum(parameters, inputs, targets),
    ):
        np.testing.assert_allclose(result.loss_sum, expected_loss, rtol=1e-13)
        assert (expected_correct, 11) == (result.correct, result.rows)


def test_a_row_counts_its_weight_in_the_gradient() -> None:
    """The weight changes the gradient alone: the loss stays a plain sum."""
    network, arguments = example(NETWORKS[-1], np.float64)
    whole, light = (network.gradient_sum(*arguments, weight=weight) for weight in (1, 1 / 11))
    np.testing.assert_allclose(light.gradient, whole.gradient / 11, rtol=1e-12)
    assert whole.loss_sum == light.loss_sum


def test_sums_over_parts_are_the_sum_over_all() -> None:
    """A batch's gradient is the sum of its micro-batches' gradients, even with an empty one."""
    network, (parameters, inputs, targets) = example(NETWORKS[-1], np.float64)
    whole = network.gradient_sum(parameters, inputs, targets)
    parts = [
        network.gradient_sum(parameters, inputs[part], targets[part])
        for part in (slice(0, 4), slice(4, 4), slice(4, 11))
    ]
    np.testing.assert_allclose(sum(part.gradient for part in parts), whole.gradient, rtol=1e-12)
    np.testing.assert_allclose(sum(part.loss_sum for part in parts), whole.loss_sum, rtol=1e-13)
    assert whole.correct == sum(part.correct for part in parts)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("text", NETWORKS)
def test_nothing_that_was_passed_is_changed(text: str, dtype: type[np.floating]) -> None:
    """Every method leaves its arguments unchanged and returns new arrays."""
    network, arguments = example(text, dtype)
    before = [argument.copy() for argument in arguments]
    parameters, inputs, _ = arguments
    results = [
        network.gradient_sum(*arguments).gradient,
        network.forward(parameters, inputs),
    ]
    network.loss(*arguments)
    for result in results:
        assert dtype == result.dtype
        assert not any(np.shares_memory(result, argument) for argument in arguments)
    for expected, argument in zip(before, arguments, strict=True):
        np.testing.assert_array_equal(expected, argument)


def test_threads_share_a_network() -> None:
    """Four threads that call one network at once get the bits of a single call."""
    network, arguments = example("60-relu-50-sigmoid-40-softmax-10", np.float32, rows=200)
    expected = network.gradient_sum(*arguments)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: network.gradient_sum(*arguments), range(40)))
    for result in results:
        np.testing.assert_array_equal(expected.gradient, result.gradient)
        assert expected.loss_sum == result.loss_sum


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("text", NETWORKS)
def test_huge_inputs_stay_finite(text: str, dtype: type[np.floating]) -> None:
    """Inputs of +-1e4 give finite probabilities, losses and gradients, and no warning."""
    network, (parameters, inputs, targets) = example(text, dtype)
    inputs[:, 1:] = 1e4 * np.sign(inputs[:, 1:])
    result = network.gradient_sum(parameters, inputs, targets)
    assert np.isfinite(result.gradient).all()
    assert np.isfinite(result.loss_sum)
    probabilities = network.forward(parameters, inputs)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    """The error for a wrong dtype or shape names the expected one."""
    network, (parameters, inputs, targets) = example(NETWORKS[0], np.float32)
    refusals: list[Any] = [
        (parameters.astype(np.float64), inputs, targets, "The parameters are float64"),
        (parameters, inputs.astype(np.float64), targets, "The inputs are float64"),
        (parameters, inputs[:, 1:], targets, "expected float32 of the shape (11, 6)"),
        (parameters[1:], inputs, targets, "expected float32 of the shape (18,)"),
        (parameters, inputs, targets[1:], "expected uint8 of the shape (11, 3)"),
        (parameters, inputs, targets.astype(np.int64), "The targets are int64"),
    ]
    for *arguments, complaint in refusals:
        with pytest.raises(ValueError, match=re.escape(complaint)):
            network.gradient_sum(*arguments)


def test_columns_that_are_zero_in_every_row_may_be_left_out() -> None:
    """Narrowed inputs with their columns give the same results as the full inputs."""
    generator = np.random.default_rng(5)
    layers = parse_network("12-relu-7-tanh-5-softmax-3")
    network = Network(layers, np.float64)
    parameters = initialise("scaled", layers, 1, np.float64)
    inputs = generator.random((9, 13))
    inputs[:, 0] = 1
    inputs[:, [2, 3, 8, 12]] = 0
    targets = np.eye(3, dtype=np.uint8)[generator.integers(0, 3, 9)]
    columns = np.flatnonzero(inputs.any(axis=0))
    narrow = np.ascontiguousarray(inputs[:, columns])

    full = network.gradient_sum(parameters, inputs, targets)
    narrowed = network.gradient_sum(parameters, narrow, targets, columns)

    np.testing.assert_allclose(narrowed.gradient, full.gradient, rtol=0, atol=1e-14)
    assert full.correct == narrowed.correct
    np.testing.assert_allclose(narrowed.loss_sum, full.loss_sum, rtol=1e-14)
    np.testing.assert_allclose(
        network.forward(parameters, narrow, columns),
        network.forward(parameters, inputs),
        rtol=1e-14,
    )
    with pytest.raises(ValueError, match=r"shape \(9, 8\)"):
        network.forward(parameters, narrow, columns[:-1])
