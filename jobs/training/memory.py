"""What memory a job will need at most, worked out before it starts; it does not grow with rows."""

import errno
import math
import os
import resource
from collections.abc import Iterable
from contextlib import suppress

import numpy as np

from jobs.nn.architecture import Layer, count_parameters
from jobs.nn.network import Network
from jobs.nn.optimizers import make_optimizer
from jobs.training.config import TrainConfig
from jobs.training.data_parallel import GROUP, member_span
from jobs.training.evaluate import BLOCK_ROWS
from jobs.training.step import micro_batch_count, thread_count
from pipeline.ingest import BASE_MEMORY
from pipeline.rows import reader_memory
from pipeline.stream import PLAIN_WINDOW_CHUNKS, chunks_per_window
from pipeline.windows import windows_memory
from storage.dataset import Dataset
from storage.errors import SHORTAGES, UsageError, starved
from storage.schema import SplitSchema

WINDOWS_OF_THREADS = 3
"""Two, and one more of which a thread may still have rows."""
FORMS_OF_THE_STATE = 4
"""Parameters and the optimiser's vectors: before and after a step, and twice in a checkpoint that
is being saved or loaded."""
INITIAL_BYTES = 64
"""Per weight of the largest layer, while its random numbers are drawn."""
MOST_VECTORS = 3
"""The same of any optimiser."""
FORMS_PER_REPLICA = 11
"""Its parameters and the optimiser's two vectors, before and after a round, twice in a checkpoint,
and what the allocator keeps between the two."""
ADDRESSES_OF_A_THREAD = 48 * 2**20
"""Its stack and OpenBLAS's buffer, most of which is never touched, in bytes."""
FORK_MEMORY = 16 * 2**20
"""What a forked process has of its own besides arrays, in bytes."""


def train_memory(config: TrainConfig, layers: tuple[Layer, ...], dataset: Dataset) -> int:
    """Return the bytes that a training on a dataset needs at most."""
    split = dataset.split("train").schema
    rows = split.rows - config.holdout
    batch_rows = config.batch_size or rows
    parts = micro_batch_count(config.micro_batches, batch_rows)
    itemsize = np.dtype(config.dtype).itemsize
    cores = min(thread_count(config.threads), parts)
    span = member_span(parts, cores)
    part_rows = -(-batch_rows // parts)
    micro_batches = part_rows * (_row_bytes(layers, itemsize) + span * split.row_bytes)
    tasks = -(-parts // span)
    sums = min(tasks, 2 * max(GROUP, cores)) + tasks.bit_length() + cores * span.bit_length()
    forms = FORMS_OF_THE_STATE * _vectors(config) + sums
    if config.parallel == "rounds":
        forms += FORMS_PER_REPLICA * config.replicas
    parameters = forms * count_parameters(layers) * itemsize
    first = 2 * layers[0].parameter_count * itemsize  # weights and gradient of occupied columns
    drawing = INITIAL_BYTES * max(layer.parameter_count for layer in layers)
    window = chunks_per_window(split, config.shuffle_memory, config.shuffle)
    readers = 0
    if config.parallel == "rounds" and window < split.chunks:
        readers = config.replicas  # each has a window, where no cluster has them
    evaluations = len(config.evaluations(dataset.splits))
    most_rows = max(each.schema.rows for each in dataset.splits.values())
    training = (
        parameters
        + cores * (FORK_MEMORY + micro_batches + first)
        + bool(evaluations)
        * _forward_bytes(layers, itemsize, thread_count(config.threads), most_rows)
        + evaluations * windows_memory(split, PLAIN_WINDOW_CHUNKS, WINDOWS_OF_THREADS)
        + windows_memory(split, window)
        + readers * reader_memory(split, window)
    )
    return BASE_MEMORY + max(training, drawing)


def score_memory(network: Network, split: SplitSchema, threads: int) -> int:
    """Bytes that a scoring needs at most; `split` is the schema of the split to score."""
    layers, itemsize = network.layers, network.dtype.itemsize
    # What a thread has of its chunk: its rows, and predictions in parts, joined and encoded.
    chunk = split.chunk_rows * (split.row_bytes + 3 * 4 * (layers[-1].outputs + 1))
    return (
        BASE_MEMORY
        + windows_memory(split, PLAIN_WINDOW_CHUNKS, WINDOWS_OF_THREADS)
        + _forward_bytes(layers, itemsize, threads, split.chunk_rows)
        + (2 * MOST_VECTORS + 1) * network.parameter_count * itemsize  # loading the checkpoint
        + threads * chunk
    )


def check_memory(needed: int, threads: int = 1) -> int:
    """`needed`, where this machine has so many bytes at all; else `UsageError`."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UsageError(
            f"This needs about {needed / 1e9:,.1f} GB of memory; the machine has "
            f"{there / 1e9:,.1f} GB. Choose a smaller network, batch or --shuffle-memory."
        )
    if needed - BASE_MEMORY + threads * ADDRESSES_OF_A_THREAD > free_addresses():
        raise starved(SHORTAGES[errno.ENOMEM])  # before OpenBLAS ends the process
    return needed


def free_addresses() -> float:
    """Return the bytes of address space that `ulimit -v` leaves this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    pages = 0
    with suppress(FileNotFoundError), open("/proc/self/statm", encoding="ascii") as status:
        pages = int(status.read().split()[0])
    return limit - pages * resource.getpagesize()


def _vectors(config: TrainConfig) -> int:
    """The parameters, and how many more of their length the optimiser remembers."""
    optimizer = make_optimizer(config.optimizer, momentum=config.momentum)
    return 1 + len(optimizer.initial_state(np.zeros(1, config.dtype)))


def _forward_bytes(layers: tuple[Layer, ...], itemsize: int, threads: int, rows: int) -> int:
    """Bytes of threads that each evaluate a block of at most `rows`, with the narrowed weights."""
    widths = [layer.outputs for layer in layers]
    row = 2 * layers[0].inputs + sum(widths) + max(widths) + 2 * widths[-1]
    return threads * itemsize * (layers[0].parameter_count + min(BLOCK_ROWS, rows) * row)


def _row_bytes(layers: Iterable[Layer], itemsize: int) -> int:
    """What one row costs on its way forward and back: inputs, sums, outputs and deltas."""
    widths = [(1 + layer.inputs, layer.outputs) for layer in layers]
    return itemsize * (2 * widths[0][0] + 4 * sum(outputs for _, outputs in widths))
