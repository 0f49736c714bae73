"""Evaluation: how well parameters do on rows that they are not trained on meanwhile."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jobs.nn.network import LossSum, Network
from jobs.nn.parameters import Floats
from jobs.training.step import network_inputs, unheeded_overflow
from jobs.workers import Workers
from pipeline.stream import Batch, BatchStream
from pipeline.windows import WindowLoader
from storage.closing import Closing
from storage.dataset import Dataset, Split
from storage.errors import BadDataError

BLOCK_ROWS = 500
"""Rows of one forward pass; fixed, so that the bits do not depend on the number of threads."""


@dataclass(frozen=True)
class Evaluation:
    """The quality on some rows."""

    accuracy: float
    """Share of rows whose most probable class is the target's, in [0, 1]."""
    cross_entropy: float
    """Mean over the rows, in nats."""

    def to_json(self) -> dict[str, Any]:
        """Both figures by name."""
        return dict(vars(self))


class Evaluator(Closing):
    """Evaluates one range of rows again and again; reads the next time's first rows ahead."""

    def __init__(
        self,
        network: Network,
        dataset: Dataset,
        split: str,
        *,
        first_row: int,
        rows: int,
        times: int,
        threads: int,
        loader: Callable[[Split], WindowLoader] | None = None,
    ) -> None:
        """Over rows [first_row, first_row + rows) of a labelled split, at most `times` times."""
        if not dataset.split(split).schema.classes:
            raise BadDataError(f"Split {split} has no labels; leave it out of --evaluate.")
        self._network = network
        self._scaling = dataset.preparation.scaling
        self._workers = Workers(self._block, threads)
        self._stream = BatchStream(
            dataset,
            split,
            batch_size=min(BLOCK_ROWS, rows),
            shuffle=False,
            first_row=first_row,
            rows=rows,
            epochs=times,
            loader=loader,
        )

    def evaluate(self, parameters: Floats) -> Evaluation:
        """Read all the rows once and judge the parameters by them."""
        loss_sum, correct, rows = 0.0, 0, 0
        for block in self._workers.map(self._blocks(parameters)):
            loss_sum += block.loss_sum
            correct += block.correct
            rows += block.rows
        return Evaluation(correct / rows, loss_sum / rows)

    def _blocks(self, parameters: Floats) -> Iterator[tuple[Floats, Batch]]:
        for batch in self._stream:
            yield parameters, batch
            del batch  # it is a view, and would keep its window in memory

    def _block(self, work: tuple[Floats, Batch]) -> LossSum:
        parameters, batch = work
        assert batch.targets is not None  # the split is labelled
        inputs, columns = network_inputs(batch.inputs, self._network.dtype, self._scaling)
        with unheeded_overflow():
            return self._network.loss(parameters, inputs, batch.targets, columns)

    def close(self) -> None:
        """Stop the stream and the threads."""
        self._workers.close()
        self._stream.close()
