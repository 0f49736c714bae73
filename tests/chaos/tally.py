"""Experiments with many cases, plans that select cases, and the tally of outcomes."""

import atexit
import multiprocessing
import random
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

OUTCOMES = ("survived", "detected", "harmless")
"""Good outcomes: the undisturbed result, the right error message, or no effect at all."""

TryCase = Callable[[Any, int, random.Random], str]
"""Tries one case, given the shared state, and returns its outcome; raises `AssertionError`."""


TRIES = 50
"""Number of random moments that are tried for a case."""


class TooLateError(Exception):
    """A job ended before the random moment; the case is tried again with another moment."""


@dataclass(frozen=True)
class Plan:
    """The cases of an experiment to run, and the number of processes."""

    count: int
    """Number of cases; 0 for all of a finite experiment."""
    seed: int = 0
    jobs: int = 1
    """Number of processes; 1 runs the cases in this one."""
    case: int | None = None
    """The only case to run, to repeat a failure."""

    def cases(self, total: int | None = None) -> list[int]:
        """Return the numbers of the cases, a random sample of `total` if that is finite."""
        if self.case is not None:
            return [self.case]
        if total is None:
            return list(range(self.count))
        if not 0 < self.count < total:
            return list(range(total))
        return sorted(random.Random(f"{self.seed}|cases").sample(range(total), self.count))


@dataclass
class Tally:
    """Counts the outcomes of all experiments, by name."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def count(self, name: str, seed: int, case: int, outcome: str, what: str) -> None:
        """Count a case of experiment `name`; an empty outcome is a failure described by `what`."""
        self.outcomes.setdefault(name, Counter())[outcome or "failed"] += 1
        if not outcome:
            words = ["--only", name, "--seed", str(seed), "--case", str(case)]
            repeat = shlex.join(["python", "-m", "tests.chaos", *words])
            self.failures.append(f"{name}: {what}\n  repeat with: {repeat}")

    def check(self) -> None:
        """Raise `AssertionError` with all failures, or if nothing was tried."""
        assert self.outcomes, "nothing was tried"
        assert not self.failures, "\n".join(self.failures)

    def table(self) -> str:
        """Return a table with a line per experiment: its cases and their outcomes."""
        header = ("experiment", "tried", *OUTCOMES, "failed", "seconds")
        rows: list[tuple[str, ...]] = [header]
        for name, ended in self.outcomes.items():
            figures = (ended.total(), *(ended[outcome] for outcome in (*OUTCOMES, "failed")))
            rows.append((name, *map(str, figures), f"{self.seconds[name]:.0f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        )


@dataclass(frozen=True)
class Experiment:
    """An experiment with many cases.

    Each case receives its number and a random generator seeded by name, seed and number, so that it
    can be repeated alone.
    """

    name: str
    try_case: TryCase
    """A module's function or a partial of one, because worker processes unpickle it."""
    count: int
    """Default number of cases in the long run; 0 for all."""
    prepare: Callable[[], Any] = lambda: None
    """Returns the cases' shared state; cached for this process."""
    total: Callable[[Any], int] | None = None
    """Returns the number of cases of a finite experiment."""
    scaled_by: str = ""
    """The option of the long run that scales `count`: `kills`, `flips` or none."""
    several: str = "processes"
    """How cases run in parallel: in `processes`, in `threads` if a case only starts processes, or
    `none` if a case needs the whole machine."""

    def run(self, plan: Plan, tally: Tally) -> None:
        """Run the cases of a plan and count their outcomes."""
        shared = self.prepare()
        began = time.perf_counter()
        cases = plan.cases(self.total and self.total(shared))
        attempt = partial(_attempt, self.try_case, shared, f"{self.name}|{plan.seed}")
        for case, ending in zip(cases, self._endings(attempt, cases, plan.jobs), strict=True):
            tally.count(self.name, plan.seed, case, *ending)
        took = time.perf_counter() - began
        tally.seconds[self.name] = tally.seconds.get(self.name, 0) + took

    def _endings(
        self, attempt: Callable[[int], tuple[str, str]], cases: list[int], jobs: int
    ) -> Iterable[tuple[str, str]]:
        jobs = min(jobs, len(cases))
        if self.several == "none" or jobs <= 1:
            yield from map(attempt, cases)
            return
        spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads
        executor: Executor = (
            ThreadPoolExecutor(jobs)
            if self.several == "threads"
            else ProcessPoolExecutor(jobs, mp_context=spawn)
        )
        with executor as pool:
            yield from pool.map(attempt, cases, chunksize=4)


def _attempt(try_case: TryCase, shared: Any, seed: str, case: int) -> tuple[str, str]:
    """Return the outcome of one case and "", or "" and a description of the failure."""
    chance = random.Random(f"{seed}|{case}")
    for _ in range(TRIES):
        try:
            outcome = try_case(shared, case, chance)
            assert outcome in OUTCOMES, outcome
        except TooLateError:
            continue
        except Exception as error:  # noqa: BLE001 - the other cases are tried all the same
            return "", f"{type(error).__name__}: {error}"
        return outcome, ""
    return "", f"too late {TRIES} times"


def scratch() -> Path:
    """Return a new directory that is removed when this process ends."""
    directory = TemporaryDirectory(prefix="chaos-")
    atexit.register(directory.cleanup)
    return Path(directory.name)
