"""Contestants in processes of their own, on as many cores as they have threads.

A process prepares its contestant, trains one epoch to compile and to warm up, and then works once
for each line that it reads. So several can take turns, each undisturbed by the others' libraries.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from psutil import Process

from jobs.nn.architecture import Layer, parse_network
from jobs.nn.initialise import initialise
from jobs.nn.network import Network
from jobs.nn.parameters import Floats
from jobs.training.gradients import network_inputs
from pipeline.stream import BatchStream
from storage.location import Closing
from tests.benchmarks.contest import Contestant
from tests.benchmarks.data import Workplace

PROJECT = Path(__file__).parents[2]
NEEDS = "The benchmarks need {}. Run: pip install -e '.[bench]'"
LOSS_ROWS = 2_000
"""Rows of the loss that shows whether contestants train the same network."""


@dataclass(frozen=True)
class Case:
    """A training that contestants compare: the same network, rows, order and update rule."""

    network: str
    batch_size: int
    optimizer: str = "sgd"
    rows: int = 60_000
    micro_batches: int | None = None
    """Micro-batches of the project's steps. None: the default, at most one per thread."""

    @property
    def learning_rate(self) -> float:
        """A rate at which all networks learn."""
        return 0.1 if self.optimizer == "sgd" else 0.001

    @property
    def l2(self) -> float:
        """The strength of decoupled weight decay, of weights only."""
        return 0.0 if self.optimizer == "sgd" else 0.1

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of the network."""
        return parse_network(self.network)

    @property
    def name(self) -> str:
        """The case in a table."""
        widths = "-".join(word for word in self.network.split("-") if word.isdigit())
        return f"{widths}, {self.optimizer}, batch {self.batch_size}"

    def initial_parameters(self) -> Floats:
        """Return the parameters that every contestant starts from."""
        return initialise("scaled", self.layers, 0)

    def order(self, workplace: Workplace) -> NDArray[np.int64]:
        """Return the row numbers of the first streamed epoch: `(steps, batch_size)`."""
        with BatchStream(
            workplace.dataset, "train", batch_size=0, rows=self.rows, reads_rows=False
        ) as stream:
            return next(iter(stream)).rows.reshape(-1, self.batch_size)

    def loss(self, workplace: Workplace, parameters: Floats) -> float:
        """Return the mean loss of some training rows."""
        inputs, targets = workplace.train_bytes[:LOSS_ROWS], workplace.train_targets[:LOSS_ROWS]
        network = Network(self.layers)
        scaled, columns = network_inputs(inputs, network.dtype, workplace.scaling)
        return network.loss(parameters, scaled, targets, columns).loss_sum / LOSS_ROWS


class Entry(NamedTuple):
    """A contestant that is ready."""

    run: Contestant
    parameters: Callable[[], Floats] | None = None
    """Returns the parameters that it has trained so far."""


class ContestantProcess(Closing):
    """A contestant that works in a process of its own, on its own cores."""

    def __init__(
        self,
        function: str,
        workplace: Workplace,
        threads: int,
        options: Case | dict[str, object],
        *,
        cores: int | None = None,
    ) -> None:
        """Start `function`, `module.name`, with `options` on the first `cores` cores, or `threads`.

        Wait until it is `ready` before you let it work.
        """
        self._cores = sorted(os.sched_getaffinity(0))[: cores or threads]
        self.busy: list[float] = []
        """Cores that it kept busy, on average, in each run."""
        settings = asdict(options) if isinstance(options, Case) else options
        _ = workplace.dataset  # ingested here, for all processes
        task = [function, str(workplace.directory), threads, settings]
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
        environment = os.environ | {"PYTHONPATH": str(PROJECT)} | dict.fromkeys(names, str(threads))
        if threads == 1:
            environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        cpu_list = ",".join(map(str, self._cores))
        command = ["taskset", "--cpu-list", cpu_list, sys.executable, "-m", __name__]
        self._process = subprocess.Popen(
            [*command, json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env=environment,
        )

    def ready(self) -> float | None:
        """Wait until it has worked once; return the loss after an epoch, if it trains.

        Raises `RuntimeError` if one of its threads may use another core.
        """
        loss = self._reply()
        threads = [thread.id for process in self._family() for thread in process.threads()]
        used = set().union(*map(os.sched_getaffinity, threads))
        if used != set(self._cores):
            raise RuntimeError(f"A contestant may use the cores {used}, not {self._cores} only.")
        return loss

    def __call__(self) -> float:
        """Let it work once; return its seconds."""
        assert self._process.stdin is not None
        before = self._processor_seconds()
        print(file=self._process.stdin, flush=True)
        seconds = self._reply()
        assert seconds is not None
        self.busy.append((self._processor_seconds() - before) / seconds)
        return seconds

    def _reply(self) -> float | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"A contestant ended with {self._process.wait()}: see above.")
        reply: float | None = json.loads(line)
        return reply

    def _family(self) -> list[Process]:
        process = Process(self._process.pid)
        return [process, *process.children(recursive=True)]

    def _processor_seconds(self) -> float:
        times = [process.cpu_times() for process in self._family()]
        return sum(time.user + time.system for time in times)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def main() -> None:
    """Prepare a contestant; let it work once for each line of the standard input."""
    function, directory, threads, options = json.loads(sys.argv[1])
    module, name = function.split(".")
    workplace = Workplace(Path(directory))
    with ExitStack() as stack:
        try:
            prepare = getattr(import_module(f"tests.benchmarks.{module}"), name)
        except ModuleNotFoundError as missing:
            sys.exit(NEEDS.format(missing.name))
        entry: Entry = prepare(workplace, threads, options, stack)
        entry.run()
        loss = None
        if entry.parameters is not None:
            loss = Case(**options).loss(workplace, entry.parameters())
        gc.collect()
        gc.freeze()  # so that no collection in an epoch visits what the preparation has left
        print(json.dumps(loss), flush=True)
        for _ in sys.stdin:
            began = time.perf_counter()
            measured = entry.run()
            elapsed = time.perf_counter() - began
            print(json.dumps(elapsed if measured is None else measured), flush=True)


if __name__ == "__main__":
    main()
