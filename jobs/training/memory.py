"""Upper bounds of a job's memory, computed before it starts; they do not grow with the rows."""

import errno
import logging
import math
import os
import resource
from collections.abc import Sequence
from contextlib import suppress

from jobs.nn.initialise import initialise_memory
from jobs.nn.network import Network
from jobs.nn.optimizers import make_optimizer
from jobs.training.config import TrainConfig
from jobs.training.evaluate import HIDDEN_UNITS, evaluation_memory
from jobs.training.gradients import gradient_rule
from jobs.training.local_step import step_memory
from jobs.training.rounds import replicas_memory
from jobs.training.step import micro_batch_count, thread_count
from pipeline.plan import BASE_MEMORY
from pipeline.stream import PLAIN_WINDOW_CHUNKS, chunks_per_window
from pipeline.windows import windows_memory
from storage.dataset import Dataset
from storage.errors import SHORTAGES, UsageError, starved
from storage.events import event
from storage.schema import SplitSchema

logger = logging.getLogger(__name__)

WINDOWS_OF_THREADS = 3
"""Two windows, and one more whose rows a thread may still use."""
FORMS_OF_THE_STATE = 4
"""Copies of the parameters and the optimizer's vectors: before and after a step, and two in a
checkpoint that is being saved or loaded."""
MOST_VECTORS = 3
"""The parameters and the vectors of any optimizer."""
ADDRESSES_OF_A_THREAD = 48 * 2**20
"""Address space of a thread's stack and OpenBLAS buffer, most of it unused, in bytes."""


def train_memory(
    config: TrainConfig, network: Network, dataset: Dataset, *, from_parent: bool = False
) -> int:
    """Return the bytes that training needs at most; `from_parent` loads a parent's checkpoint."""
    schema = dataset.split("train").schema
    batch_size = config.batch_size or schema.rows - config.holdout
    micro_batches = micro_batch_count(config.micro_batches, batch_size)
    threads = thread_count(config.threads)
    window = chunks_per_window(schema, config.shuffle_memory, config.shuffle)
    optimizer = make_optimizer(config.optimizer)
    rule = gradient_rule(config, network, dataset)
    needed = (
        FORMS_OF_THE_STATE * (1 + len(optimizer.remembers)) * network.parameter_memory
        + step_memory(rule, schema, batch_size, micro_batches, threads)
        + windows_memory(schema, window)
    )
    if config.parallel == "rounds":
        needed += replicas_memory(config.replicas, network, schema, window)
    if evaluations := len(config.evaluations(dataset.splits)):
        rows = max(split.schema.rows for split in dataset.splits.values())
        windows = windows_memory(schema, PLAIN_WINDOW_CHUNKS, WINDOWS_OF_THREADS)
        needed += evaluation_memory(network, rows, threads, config.average_shifts)
        needed += evaluations * windows
    # The file, its tensors, the parameters before and after they are adapted to the classes.
    parent = (2 * MOST_VECTORS + 2) * network.parameter_memory if from_parent else 0
    return BASE_MEMORY + max(needed, initialise_memory(network.layers), parent)


def score_memory(
    networks: Sequence[Network], split: SplitSchema, threads: int, average_shifts: int = 0
) -> int:
    """Return the bytes that scoring a split with these members' networks needs at most."""
    # Each member's checkpoint and parameters, a template, and a vector on its way.
    sizes = [network.parameter_memory for network in networks]
    vectors = (MOST_VECTORS + 1) * (sum(sizes) + max(sizes))
    # The members compute one after the other; a block's inputs are kept in each dtype.
    evaluation = len({network.dtype for network in networks}) * max(
        evaluation_memory(network, split.chunk_rows, threads, average_shifts)
        for network in networks
    )
    # A thread holds a chunk's rows, its predictions in blocks, joined and encoded, and outputs of
    # the hidden layer in blocks and joined.
    values = 3 * 4 * (networks[0].layers[-1].outputs + 1) + 2 * 8 * HIDDEN_UNITS
    chunk = split.chunk_rows * (split.row_bytes + values)
    return (
        BASE_MEMORY
        + windows_memory(split, PLAIN_WINDOW_CHUNKS, WINDOWS_OF_THREADS)
        + evaluation
        + vectors
        + threads * chunk
    )


def check_memory(needed: int, threads: int) -> None:
    """Log the bytes that a job needs; raise `UsageError` if this machine has less memory."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > installed:
        raise UsageError(
            f"This needs about {needed / 1e9:,.1f} GB of memory; the machine has "
            f"{installed / 1e9:,.1f} GB. Choose a smaller network, batch or --shuffle-memory."
        )
    if needed - BASE_MEMORY + threads * ADDRESSES_OF_A_THREAD > _free_addresses():
        raise starved(SHORTAGES[errno.ENOMEM])  # before OpenBLAS ends the process
    text = f"memory at most {needed / 1e6:,.0f} MB"
    event(logger, "memory", text, logging.DEBUG, bytes=needed)


def _free_addresses() -> float:
    """Return the bytes of address space that `ulimit -v` leaves this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    pages = 0
    with suppress(FileNotFoundError), open("/proc/self/statm", encoding="ascii") as status:
        pages = int(status.read().split()[0])
    return limit - pages * resource.getpagesize()
