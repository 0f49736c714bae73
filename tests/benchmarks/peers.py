"""Peers: bare matrix products, and the same training in PyTorch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.nn.architecture import Layer, parse_network
from tests.benchmarks.contest import Contestant
from tests.benchmarks.data import NETWORK, Workplace

ACTIVATIONS = {"relu": torch.nn.ReLU, "sigmoid": torch.nn.Sigmoid, "tanh": torch.nn.Tanh}


def bare_products(
    rows: int, batch_size: int, *, backward: bool = True, network: str = NETWORK
) -> Contestant:
    """Return an epoch that only computes matrix products, into preallocated arrays."""
    products = list(_products(parse_network(network), batch_size, backward))

    def epoch() -> None:
        for _ in range(rows // batch_size):
            for left, right, out in products:
                np.matmul(left, right, out=out)

    return epoch


def _products(
    layers: tuple[Layer, ...], rows: int, backward: bool
) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    generator = np.random.default_rng(0)

    def some(*shape: int) -> NDArray[np.float32]:
        return generator.random(shape, dtype=np.float32)

    for number, layer in enumerate(layers):
        inputs = layer.inputs if number else 1 + layer.inputs
        values, weights, deltas = (
            some(rows, inputs),
            some(inputs, layer.outputs),
            some(rows, layer.outputs),
        )
        yield values, weights, some(rows, layer.outputs)
        if backward:
            yield values.T, deltas, some(inputs, layer.outputs)
            if number:
                yield deltas, weights.T, some(rows, inputs)


def torch_model(network: str = NETWORK) -> torch.nn.Sequential:
    """Return a network with logits as output."""
    modules: list[torch.nn.Module] = []
    for layer in parse_network(network):
        modules.append(torch.nn.Linear(layer.inputs, layer.outputs))
        if layer.activation in ACTIVATIONS:
            modules.append(ACTIVATIONS[layer.activation]())
    return torch.nn.Sequential(*modules)


def torch_tensors(workplace: Workplace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scaled float32 images and labels, in memory."""
    images = torch.from_numpy(workplace.train_bytes[:, 1:].astype(np.float32) / 255)
    return images, torch.from_numpy(workplace.train_targets.argmax(axis=1))


def torch_epoch(workplace: Workplace, batch_size: int, threads: int, *, loader: bool) -> Contestant:
    """Return an epoch of SGD in PyTorch, from memory or through its DataLoader."""
    images, labels = torch_tensors(workplace)
    model = torch_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = loader_batches if loader else memory_batches

    def epoch() -> None:
        torch.set_num_threads(threads)
        for inputs, targets in batches(images, labels, batch_size):
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    return epoch


Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def memory_batches(images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> Batches:
    """Yield shuffled batches from tensors in memory."""
    order = torch.randperm(len(images))
    for start in range(0, len(images), batch_size):
        rows = order[start : start + batch_size]
        yield images[rows], labels[rows]


def loader_batches(images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> Batches:
    """Yield shuffled batches of a DataLoader as in its documentation, row by row."""
    dataset = torch.utils.data.TensorDataset(images, labels)
    yield from torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True)
