"""Bare matrix products: what a step or a forward pass cannot do without."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.nn.architecture import Layer, parse_network
from tests.benchmarks.contest import Contestant
from tests.benchmarks.contestants import Case, Entry
from tests.benchmarks.data import NETWORK, Workplace

SCORED_AT_A_TIME = 500


def training(
    workplace: Workplace, threads: int, options: dict[str, Any], stack: ExitStack
) -> Entry:
    """Return the products of an epoch of a case."""
    case = Case(**options)
    return Entry(bare_products(case.rows, case.batch_size, network=case.network))


def scoring(workplace: Workplace, threads: int, options: dict[str, Any], stack: ExitStack) -> Entry:
    """Return the forward products of some rows."""
    return Entry(bare_products(options["rows"], SCORED_AT_A_TIME, backward=False))


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
