"""Where the time of a step goes: microseconds of every line of the real step, beside JAX's total.

Tracing sees every line of the project that a step runs, and so each NumPy call and each operator.
The time of the trace function is left out. What tracing costs in addition is taken to be the same
for every event, and is subtracted, so that the lines add up to the step without tracing.
"""

import linecache
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import numpy as np

from jobs.commands.tables import table
from jobs.training.environment import one_blas_thread
from tests.benchmarks.contest import Verdict, medians
from tests.benchmarks.contestants import PROJECT, Case, ContestantProcess
from tests.benchmarks.data import CORES, NETWORK, Workplace
from tests.benchmarks.epochs import CASES, PEERS, streaming_trainer

FOLDERS = tuple(f"{PROJECT / name}{os.sep}" for name in ("jobs", "pipeline", "storage"))
LEAST_SHARE = 0.005
"""Lines that take a smaller share of a step are added up."""
Line = tuple[str, int]
"""A file and a line number."""
Time = list[float]
"""Seconds and events."""


class LineClock:
    """Measures how long this thread takes for every line of the project."""

    def __init__(self) -> None:
        self._steps: list[dict[Line, Time]] = []
        self._now: dict[Line, Time] = defaultdict(_no_time)
        self._places: list[Line] = [("", 0)]
        """The line that each traced frame is at, the caller's first."""
        self._left = 0.0

    def start(self) -> None:
        """Trace the frames that are entered from now on."""
        self._left = time.perf_counter()
        sys.settrace(self._trace)

    def end_step(self) -> None:
        """Begin the next step."""
        self._steps.append(dict(self._now))
        self._now.clear()

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        entered = time.perf_counter()
        place = (frame.f_code.co_filename, frame.f_lineno)
        if not place[0].startswith(FOLDERS):
            return None  # its time counts for the line that called it
        spent = self._now[self._places[-1]]
        spent[0] += entered - self._left
        spent[1] += 1
        if event == "call":
            self._places.append(place)
        elif event == "return":
            self._places.pop()
        elif event == "line":
            self._places[-1] = place
        self._left = time.perf_counter()
        return self._trace

    def lines(self, step_seconds: float) -> dict[Line, float]:
        """Return each line's median seconds in a step that takes `step_seconds`, longest first."""
        none = _no_time()
        names = {line for step in self._steps for line in step}
        seconds, events = (
            {line: median(step.get(line, none)[part] for step in self._steps) for line in names}
            for part in (0, 1)
        )
        excess = (sum(seconds.values()) - step_seconds) / sum(events.values())
        corrected = {line: seconds[line] - excess * events[line] for line in names}
        return dict(sorted(corrected.items(), key=lambda item: -item[1]))


def _no_time() -> Time:
    return [0.0, 0]


def bench_profile(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Print a profile of a step of the default network; return its time / JAX's.

    With two threads, it is the profile of the process that hands out the work, and the lines of
    `_wait` are what it waits for the other process.
    """
    for case in CASES:
        if case.network == NETWORK:
            case = replace(case, rows=case.rows // 5)  # noqa: PLW2901 - enough steps
            for threads in dict.fromkeys((1, CORES)):
                yield from _profile(workplace, rounds, case, threads)


def _profile(workplace: Workplace, rounds: int, case: Case, threads: int) -> Iterator[Verdict]:
    steps = case.rows // case.batch_size
    with ExitStack() as stack:
        peers = {
            name: stack.enter_context(ContestantProcess(PEERS[name], workplace, threads, case))
            for name in ("products", "JAX scan", "streamed")
        }
        for process in peers.values():
            process.ready()
        seconds = {name: value / steps for name, value in medians(peers, rounds).items()}
    lines = _lines_of_steps(workplace, case, threads)
    total = sum(lines.values())
    shown = {line: value for line, value in lines.items() if value >= LEAST_SHARE * total}
    rows = [(_source(line), value) for line, value in shown.items()]
    rows += [
        ("all other lines", total - sum(shown.values())),
        ("the step", total),
        ("the step in a process of its own", seconds["streamed"]),
        ("its matrix products", seconds["products"]),
        ("JAX's step in a scan", seconds["JAX scan"]),
    ]
    where = f"{case.name}, {threads} thread{'s' if threads > 1 else ''}"
    cells = [[f"{1e6 * value:.1f}", f"{100 * value / total:.1f}", text] for text, value in rows]
    print(table(["us", "%", where], cells, left=[where]), end="\n\n")
    yield Verdict(f"step / JAX scan, {where}", seconds["streamed"] / seconds["JAX scan"], None)


def _lines_of_steps(workplace: Workplace, case: Case, threads: int) -> dict[Line, float]:
    """Return the median seconds of each line of the steps of an epoch, on as many cores."""
    clock, cores, ends = LineClock(), os.sched_getaffinity(0), [0.0]
    os.sched_setaffinity(0, sorted(cores)[:threads])
    try:
        with one_blas_thread(), streaming_trainer(workplace, case, threads) as trainer:
            trainer.train_epoch(lambda: None)
            trainer.train_epoch(lambda: ends.append(time.perf_counter()))
            clock.start()
            try:
                trainer.train_epoch(clock.end_step)
            finally:
                sys.settrace(None)
    finally:
        os.sched_setaffinity(0, cores)
    return clock.lines(median(np.diff(ends[1:])))


def _source(line: Line) -> str:
    path, number = line
    text = linecache.getline(path, number).strip()
    return f"{Path(path).name}:{number}  {text}" if text else "outside of the project"
