"""What is tried, how often, and what came of it: experiments, their plan, and the tally."""

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
"""How a case may end well: as if nothing had been; with the right message; without effect."""

TryCase = Callable[[Any, int, random.Random], str]
"""Tries one case, given what the cases share, and returns its outcome; an `AssertionError` says
what went wrong."""


TRIES = 50
"""How often to draw another moment for a case."""


class TooLateError(Exception):
    """A job had ended before the moment that was drawn for it; another one is to be drawn."""


@dataclass(frozen=True)
class Plan:
    """How often and how an experiment is to be tried."""

    count: int
    """Cases to try; 0 for all there are, where they can be counted."""
    seed: int = 0
    jobs: int = 1
    """Processes to try cases in; 1 tries them in this one."""
    case: int | None = None
    """The one case to try, to repeat a failure."""

    def cases(self, total: int | None = None) -> list[int]:
        """The cases to try, of `total`: each one, or as many as are wanted, drawn by the seed.

        Where there is no end of them, `total` is None and they are counted from 0.
        """
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
        """One more case of experiment `name` that ended: well, or with `what` went wrong."""
        self.outcomes.setdefault(name, Counter())[outcome or "failed"] += 1
        if not outcome:
            words = ["--only", name, "--seed", str(seed), "--case", str(case)]
            repeat = shlex.join(["python", "-m", "tests.chaos", *words])
            self.failures.append(f"{name}: {what}\n  repeat with: {repeat}")

    def check(self) -> None:
        """Raise `AssertionError` that tells of every failure, or that nothing was tried."""
        assert self.outcomes, "nothing was tried"
        assert not self.failures, "\n".join(self.failures)

    def table(self) -> str:
        """A line per experiment: how often it was tried, and how the cases ended."""
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
    """One thing to try, of which there are many cases.

    Each case gets its number and a generator seeded by name, seed and number, so that it can be
    repeated alone.
    """

    name: str
    try_case: TryCase
    """A function of a module, or a partial of one: it is pickled where there are several jobs."""
    count: int
    """Cases in the long run, by default; 0 for all there are."""
    prepare: Callable[[], Any] = lambda: None
    """Makes what the cases share, once for this process."""
    total: Callable[[Any], int] | None = None
    """How many cases there are of what is shared, where they can be counted."""
    scaled_by: str = ""
    """The option of the long run that `count` goes with: `kills`, `flips` or none."""
    several: str = "processes"
    """Where a plan's jobs are: `processes`, or `threads` where a case starts processes and does
    little else, or `none` where its processes want the machine for themselves."""

    def run(self, plan: Plan, tally: Tally) -> None:
        """Try the cases of a plan and count how they end."""
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
        spawn = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
        executor: Executor = (
            ThreadPoolExecutor(jobs)
            if self.several == "threads"
            else ProcessPoolExecutor(jobs, mp_context=spawn)
        )
        with executor as pool:
            yield from pool.map(attempt, cases, chunksize=4)


def _attempt(try_case: TryCase, shared: Any, seed: str, case: int) -> tuple[str, str]:
    """The outcome of one case, or none and what went wrong."""
    chance = random.Random(f"{seed}|{case}")
    for _ in range(TRIES):
        try:
            outcome = try_case(shared, case, chance)
            assert outcome in OUTCOMES, outcome
        except TooLateError:
            continue
        except Exception as error:  # noqa: BLE001 - whatever it is, the other cases are still tried
            return "", f"{type(error).__name__}: {error}"
        return outcome, ""
    return "", f"too late {TRIES} times"


def scratch() -> Path:
    """A directory that goes when this process ends."""
    directory = TemporaryDirectory(prefix="chaos-")
    atexit.register(directory.cleanup)
    return Path(directory.name)
