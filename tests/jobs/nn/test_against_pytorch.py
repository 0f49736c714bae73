"""The network, optimizers and schedules agree with PyTorch's in float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from jobs.nn.architecture import parse_network
from jobs.nn.choices import OPTIMIZERS
from jobs.nn.initialise import initialise
from jobs.nn.lr_schedules import learning_rate
from jobs.nn.network import Network, Workspace
from jobs.nn.optimizers import make_optimizer
from jobs.nn.parameters import Floats, views
from jobs.training.dropout import Dropout
from jobs.training.step import UpdateRule

pytestmark = pytest.mark.slow

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed; `pip install -e '.[torch]'` does it"
)

MODULES = {"relu": torch.nn.ReLU, "sigmoid": torch.nn.Sigmoid, "tanh": torch.nn.Tanh}


class Twins:
    """One network in NumPy and in PyTorch, with the same parameters and the same rows."""

    def __init__(self, text: str) -> None:
        self.layers = parse_network(text)
        self.network = Network(self.layers, np.float64)
        self.parameters = initialise("normal-0.1", self.layers, 5, np.float64) * 3
        generator = np.random.default_rng(6)
        self.inputs = generator.normal(size=(13, 1 + self.layers[0].inputs))
        self.inputs[:, 0] = 1
        self.labels = generator.integers(0, self.layers[-1].outputs, 13)
        self.targets = np.eye(self.layers[-1].outputs, dtype=np.uint8)[self.labels]

        modules = []
        for layer, matrix in zip(self.layers, views(self.parameters, self.layers), strict=True):
            linear = torch.nn.Linear(layer.inputs, layer.outputs, dtype=torch.float64)
            linear.weight.data = torch.from_numpy(matrix[1:].T.copy())
            linear.bias.data = torch.from_numpy(matrix[0].copy())
            modules += [linear, MODULES.get(layer.activation, torch.nn.Identity)()]
        self.module = torch.nn.Sequential(*modules)
        self.linears = modules[::2]

    def torch_loss(self, smoothing: float = 0.0, masks: Sequence[Floats] = ()) -> Any:
        """Return the mean cross-entropy, and leave the gradients in PyTorch's parameters."""
        self.module.zero_grad()
        values, left = torch.from_numpy(self.inputs[:, 1:]), list(masks)
        for module in self.module:
            values = module(values)
            if left and not isinstance(module, torch.nn.Linear):
                values = values * torch.from_numpy(left.pop(0))
        labels = torch.from_numpy(self.labels)
        loss = torch.nn.functional.cross_entropy(values, labels, label_smoothing=smoothing)
        loss.backward()
        return loss

    def torch_flat(self, attribute: str) -> Floats:
        """PyTorch's parameters (`data`) or gradients (`grad`) in the order of the flat vector."""
        parts = []
        for linear in self.linears:
            parts.append(getattr(linear.bias, attribute).numpy())
            parts.append(getattr(linear.weight, attribute).numpy().T.ravel())
        return np.concatenate(parts)


@pytest.mark.parametrize(
    "text",
    ["7-softmax-4", "7-relu-6-softmax-4", "7-tanh-9-sigmoid-8-relu-6-softmax-4"],
)
def test_forward_loss_and_gradient(text: str) -> None:
    """Probabilities, mean loss and mean gradient equal PyTorch's."""
    twins = Twins(text)
    expected_loss = twins.torch_loss()
    logits = twins.module(torch.from_numpy(twins.inputs[:, 1:])).detach()
    result = twins.network.gradient_sum(twins.parameters, twins.inputs, twins.targets)
    np.testing.assert_allclose(
        twins.network.forward(twins.parameters, twins.inputs),
        torch.softmax(logits, dim=1).numpy(),
        rtol=1e-12,
    )
    np.testing.assert_allclose(result.loss_sum / 13, expected_loss.item(), rtol=1e-13)
    np.testing.assert_allclose(result.gradient / 13, twins.torch_flat("grad"), atol=1e-14)


@pytest.mark.parametrize(("smoothing", "share"), [(0.1, 0.0), (0.0, 0.4), (0.3, 0.25)])
def test_label_smoothing_and_dropout(smoothing: float, share: float) -> None:
    """Loss and gradient equal PyTorch's, with label smoothing and with the same dropout masks."""
    twins = Twins("7-tanh-9-sigmoid-8-relu-6-softmax-4")
    dropout = Dropout(share, seed=1)
    masks = dropout.masks(twins.network, 2, np.arange(13), Workspace()) if share else []
    expected_loss = twins.torch_loss(smoothing, masks)
    result = twins.network.gradient_sum(
        twins.parameters, twins.inputs, twins.targets, smoothing=smoothing, masks=masks
    )
    np.testing.assert_allclose(result.loss_sum / 13, expected_loss.item(), rtol=1e-13)
    np.testing.assert_allclose(result.gradient / 13, twins.torch_flat("grad"), atol=1e-14)


@pytest.mark.parametrize("l2", [0.0, 0.05])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_of_each_optimizer(name: str, l2: float) -> None:
    """After ten steps the parameters equal PyTorch's, with weight decay on all but the biases."""
    twins = Twins("7-tanh-9-softmax-4")
    groups = [
        {"params": [linear.weight for linear in twins.linears], "weight_decay": l2},
        {"params": [linear.bias for linear in twins.linears], "weight_decay": 0.0},
    ]
    theirs = {
        "sgd": lambda: torch.optim.SGD(groups, lr=0.02),
        "momentum": lambda: torch.optim.SGD(groups, lr=0.02, momentum=0.8),
        "nesterov": lambda: torch.optim.SGD(groups, lr=0.02, momentum=0.8, nesterov=True),
        "adam": lambda: torch.optim.Adam(groups, lr=0.02, betas=(0.8, 0.99)),
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.99)),
    }[name]()
    optimizer = make_optimizer(name, momentum=0.8, beta1=0.8, beta2=0.99)
    rule = UpdateRule(twins.network, optimizer, l2)

    parameters = twins.parameters
    state = rule.optimizer.initial_state(parameters)
    for step_number in range(1, 11):
        twins.torch_loss()
        theirs.step()
        gradient = twins.network.gradient_sum(parameters, twins.inputs, twins.targets).gradient
        gradient = gradient / 13
        after = np.empty_like(parameters), {key: np.empty_like(state[key]) for key in state}
        for block in (slice(0, 5), slice(5, len(parameters))):
            rule.apply(block, (parameters, state), gradient[block], 0.02, step_number, after)
        parameters, state = after

    np.testing.assert_allclose(parameters, twins.torch_flat("data"), rtol=1e-10, atol=1e-13)
    assert np.abs(parameters - twins.parameters).max() > 0.01


@pytest.mark.parametrize("total_steps", [2, 37, 100])
@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_every_step_of_each_schedule(schedule: str, total_steps: int) -> None:
    """The rates are those of CosineAnnealingLR and OneCycleLR."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)
        if schedule == "cosine"
        else torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=total_steps)
    )
    expected = []
    for step in range(total_steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < total_steps:
            scheduler.step()
    warm_up = 0.3 if schedule == "one-cycle" else 0.0
    rates = [
        learning_rate(schedule, 0.3, step, [total_steps], warm_up) for step in range(total_steps)
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-10)


def test_warm_up_and_restarts() -> None:
    """The rates are those of LinearLR before CosineAnnealingLR, and of CosineAnnealingWarmRestarts.

    The latter has neither warm-up nor a factor, and cycles of one length.
    """
    lr_scheduler = torch.optim.lr_scheduler

    def warm_cosine(optimizer: Any) -> Any:
        rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / 5, total_iters=4)
        fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=36)
        return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[4])

    def warm_restarts(optimizer: Any) -> Any:
        return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=8)

    for make, cycles, warm_up in ((warm_cosine, [40], 0.1), (warm_restarts, [8] * 5, 0.0)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        scheduler = make(optimizer)
        for step in range(40):
            expected = optimizer.param_groups[0]["lr"]
            rate = learning_rate("cosine", 0.3, step, cycles, warm_up)
            np.testing.assert_allclose(rate, expected, rtol=1e-10)
            optimizer.step()
            scheduler.step()
