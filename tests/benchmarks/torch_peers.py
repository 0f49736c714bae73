"""The same training in PyTorch, from memory and through its DataLoader."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from jobs.nn.parameters import Floats, views
from tests.benchmarks.contestants import Case, Entry
from tests.benchmarks.data import Workplace

ACTIVATIONS = {"relu": torch.nn.ReLU, "sigmoid": torch.nn.Sigmoid, "tanh": torch.nn.Tanh}
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def memory(workplace: Workplace, threads: int, options: dict[str, Any], stack: ExitStack) -> Entry:
    """Return an epoch from float32 tensors in memory.

    Gathering bytes and scaling them, and `torch.compile`, were no faster with any batch size.
    """
    case = Case(**options)
    order = torch.from_numpy(case.order(workplace))

    def batches(images: torch.Tensor, labels: torch.Tensor) -> Batches:
        for rows in order:
            yield images[rows], labels[rows]

    return _training(workplace, threads, case, batches)


def loader(workplace: Workplace, threads: int, options: dict[str, Any], stack: ExitStack) -> Entry:
    """Return an epoch through the DataLoader; its order is its own, so it has no parameters."""
    case = Case(**options)

    def batches(images: torch.Tensor, labels: torch.Tensor) -> Batches:
        return loader_batches(images[: case.rows], labels[: case.rows], case.batch_size)

    return Entry(_training(workplace, threads, case, batches).run)


def _training(
    workplace: Workplace,
    threads: int,
    case: Case,
    batches: Callable[[torch.Tensor, torch.Tensor], Batches],
) -> Entry:
    torch.set_num_threads(threads)
    images, labels = torch_tensors(workplace)
    model = _model(case)
    optimizer = _optimizer(case, model)

    def epoch() -> None:
        for inputs, targets in batches(images, labels):
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    def parameters() -> Floats:
        matrices = []
        for linear in _linear(model):
            matrices += [linear.bias, linear.weight.T.reshape(-1)]
        return torch.cat(matrices).detach().numpy()

    return Entry(epoch, parameters)


def _model(case: Case) -> torch.nn.Sequential:
    """Return the case's network, with its initial parameters and logits as output."""
    modules: list[torch.nn.Module] = []
    for layer, matrix in zip(
        case.layers, views(case.initial_parameters(), case.layers), strict=True
    ):
        linear = torch.nn.Linear(layer.inputs, layer.outputs)
        with torch.no_grad():
            linear.bias.copy_(torch.from_numpy(matrix[0]))
            linear.weight.copy_(torch.from_numpy(matrix[1:].T))
        modules.append(linear)
        if layer.activation in ACTIVATIONS:
            modules.append(ACTIVATIONS[layer.activation]())
    return torch.nn.Sequential(*modules)


def _linear(model: torch.nn.Sequential) -> list[torch.nn.Linear]:
    return [module for module in model if isinstance(module, torch.nn.Linear)]


def _optimizer(case: Case, model: torch.nn.Sequential) -> torch.optim.Optimizer:
    if case.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=case.learning_rate)
    groups = [
        {"params": [linear.weight for linear in _linear(model)], "weight_decay": case.l2},
        {"params": [linear.bias for linear in _linear(model)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=case.learning_rate, fused=True)


def torch_tensors(workplace: Workplace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scaled float32 images and labels, in memory."""
    images = torch.from_numpy(workplace.train_bytes[:, 1:].astype(np.float32) / 255)
    return images, torch.from_numpy(workplace.train_targets.argmax(axis=1))


def loader_batches(images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> Batches:
    """Yield shuffled batches of a DataLoader as in its documentation, row by row."""
    dataset = torch.utils.data.TensorDataset(images, labels)
    yield from torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True)
