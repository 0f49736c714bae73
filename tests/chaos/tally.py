"""What was tried, how often, and what came of it: the plan of an experiment, and its tally."""

import multiprocessing
import random
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field

OUTCOMES = ("survived", "detected", "harmless")
"""How a case may end well: as if nothing had been; with the right message; without effect."""

TryCase = Callable[[int, random.Random], str]
"""Tries one case and returns its outcome; an `AssertionError` says what went wrong."""


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


@dataclass(frozen=True)
class Failure:
    """A case that did not end as it must."""

    name: str
    what: str
    repeat: str
    """The command that repeats it."""

    def __str__(self) -> str:
        return f"{self.name}: {self.what}\n  repeat with: {self.repeat}"


@dataclass
class Tally:
    """Counts the outcomes of all experiments, by name."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def count(self, name: str, outcome: str) -> None:
        """One more case of experiment `name` that ended well."""
        assert outcome in OUTCOMES, outcome
        self.outcomes.setdefault(name, Counter())[outcome] += 1

    def fail(self, name: str, what: str, seed: int, case: int) -> None:
        """One more case that did not."""
        self.outcomes.setdefault(name, Counter())["failed"] += 1
        self.failures.append(Failure(name, what, repeat_command(name, seed, case)))

    def check(self) -> None:
        """Raise `AssertionError` that tells of every failure, or that nothing was tried."""
        assert self.outcomes, "nothing was tried"
        assert not self.failures, "\n".join(map(str, self.failures))

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
    """One thing to try, of which there are many cases."""

    name: str
    run: Callable[[Plan, Tally], None]
    count: int
    """Cases in the long run, by default; 0 for all there are."""
    scaled_by: str = ""
    """The option of the long run that `count` goes with: `kills`, `flips` or none."""


def try_cases(
    name: str,
    plan: Plan,
    tally: Tally,
    try_case: TryCase,
    cases: Iterable[int],
    *,
    in_threads: bool = False,
) -> None:
    """Try cases of experiment `name` and count how they end.

    Each gets its number and a generator seeded by name, seed and number, so that it can be
    repeated alone. `try_case` can be pickled (a function of a module, or a partial of one): with
    `plan.jobs` above 1 it is called in other processes or, where it starts some itself and does
    little else, `in_threads`.
    """
    began = time.perf_counter()
    cases = list(cases)
    attempts = [(try_case, name, plan.seed, case) for case in cases]
    if plan.jobs == 1 or len(cases) == 1:
        endings = map(_attempt, attempts)
        _count(name, plan.seed, cases, endings, tally)
    else:
        spawn = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
        several: Executor = (
            ThreadPoolExecutor(plan.jobs)
            if in_threads
            else ProcessPoolExecutor(min(plan.jobs, len(cases)), mp_context=spawn)
        )
        with several as pool:
            _count(name, plan.seed, cases, pool.map(_attempt, attempts, chunksize=4), tally)
    tally.seconds[name] = tally.seconds.get(name, 0) + time.perf_counter() - began


def _count(
    name: str, seed: int, cases: list[int], endings: Iterable[tuple[str, str]], tally: Tally
) -> None:
    for case, (outcome, what) in zip(cases, endings, strict=True):
        if outcome:
            tally.count(name, outcome)
        else:
            tally.fail(name, what, seed, case)


def _attempt(attempt: tuple[TryCase, str, int, int]) -> tuple[str, str]:
    """The outcome of one case, or none and what went wrong."""
    try_case, name, seed, case = attempt
    try:
        return try_case(case, random.Random(f"{name}|{seed}|{case}")), ""
    except Exception as error:  # noqa: BLE001 - whatever it is, the other cases are still tried
        return "", f"{type(error).__name__}: {error}"


def repeat_command(name: str, seed: int, case: int) -> str:
    """The command that tries one case again."""
    arguments = ["--only", name, "--seed", str(seed), "--case", str(case)]
    return shlex.join(["python", "-m", "tests.chaos", *arguments])
