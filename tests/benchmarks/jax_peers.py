"""The same training in JAX, from memory, compiled for an epoch or for a step.

Rows are bytes on the device, and are gathered and scaled in the compiled program; parameters and
the optimizer's state are donated. Other flags of XLA were no faster with any batch size.
"""

from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jobs.nn.parameters import Floats, views
from tests.benchmarks.contestants import Case, Entry
from tests.benchmarks.data import Workplace

ACTIVATIONS = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}


def scan(workplace: Workplace, threads: int, options: dict[str, Any], stack: ExitStack) -> Entry:
    """Return an epoch as one compiled `lax.scan` over its steps."""
    return _training(workplace, Case(**options), scanned=True)


def step(workplace: Workplace, threads: int, options: dict[str, Any], stack: ExitStack) -> Entry:
    """Return an epoch of compiled steps."""
    return _training(workplace, Case(**options), scanned=False)


def _training(workplace: Workplace, case: Case, *, scanned: bool) -> Entry:
    images = jnp.asarray(workplace.train_bytes[:, 1:])
    labels = jnp.asarray(workplace.train_targets.argmax(axis=1), jnp.int32)
    order = case.order(workplace).astype(np.int32)
    matrices = views(case.initial_parameters(), case.layers)
    parameters = [(jnp.asarray(matrix[1:]), jnp.asarray(matrix[0])) for matrix in matrices]
    optimizer = _optimizer(case)
    carried = (parameters, optimizer.init(parameters))

    def loss(parameters: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        for (weights, bias), layer in zip(parameters, case.layers, strict=True):
            sums = inputs @ weights + bias
            inputs = ACTIVATIONS.get(layer.activation, lambda logits: logits)(sums)
        return optax.softmax_cross_entropy_with_integer_labels(inputs, labels).mean()

    def step(carried: Any, rows: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        parameters, state = carried
        inputs = images[rows].astype(jnp.float32) / 255
        gradient = jax.grad(loss)(parameters, inputs, labels[rows])
        updates, state = optimizer.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state

    def epoch(carried: Any, order: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        return jax.lax.scan(
            lambda carried, rows: (step(carried, rows, images, labels), None), carried, order
        )[0]

    compiled = jax.jit(epoch if scanned else step, donate_argnums=0)
    parts = [jnp.asarray(order)] if scanned else list(order)

    def run() -> None:
        nonlocal carried
        for part in parts:
            carried = compiled(carried, part, images, labels)
        jax.block_until_ready(carried)

    def trained() -> Floats:
        flat = [array.ravel() for weights, bias in carried[0] for array in (bias, weights)]
        return np.concatenate([np.asarray(array) for array in flat])

    return Entry(run, trained)


def _optimizer(case: Case) -> optax.GradientTransformation:
    if case.optimizer == "sgd":
        return optax.sgd(case.learning_rate)
    mask = [(True, False) for _ in case.layers]  # weights decay, biases do not
    return optax.adamw(case.learning_rate, weight_decay=case.l2, mask=mask)
