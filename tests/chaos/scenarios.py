"""What is disturbed: a command, what was there before it, and what a reader may find meanwhile."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jobs.signals import StopSignal
from jobs.training.config import TrainConfig
from jobs.training.job import TrainListener, train
from storage.checkpoints import NAME, list_checkpoints
from storage.errors import BadDataError, StoppedError
from storage.location import Location
from storage.places import open_location
from storage.runs import open_run
from storage.verify import verify_location
from tests.chaos.seam import counted
from tests.chaos.subject import (
    CONFIG,
    Outcome,
    Subject,
    checkpoint_outcome,
    dataset_outcome,
    longer,
    run_outcome,
    run_well,
    scores_outcome,
    undisturbed,
)
from tests.chaos.tally import scratch

OUTPUT = "predictions.csv"
NOTHING_YET = (
    "There is no dataset",
    "There is no run",
    "holds no run.json",
    "There is no scoring",
    "is incomplete",
)
"""What the messages say of something that has not come to be."""
BEING_REPLACED = "was being replaced"


@dataclass(frozen=True)
class Scenario:
    """A command, and what it finds."""

    name: str
    makes: str
    """What the command makes: `dataset`, `run` or `scores`."""
    begin: Callable[[Subject], None]
    """Makes, in an empty home, what is there before the command."""
    command: Callable[[Subject], list[str]]


def _nothing(subject: Subject) -> None:
    """The command is the first."""


def _other_dataset(subject: Subject) -> None:
    run_well([*subject.ingest, "--rows-per-chunk", "45"])


def _dataset(subject: Subject) -> None:
    run_well(subject.ingest)


def _part_of_run(subject: Subject) -> None:
    """A training that was stopped within its second epoch, at a checkpoint."""
    run_well(subject.ingest)
    listener = _StopAt(5)
    try:
        train(
            subject.config,
            dataset=subject.dataset,
            run=subject.run,
            listener=listener,
            stop=listener.signal,
        )
    except StoppedError:
        return
    raise AssertionError("the training was to stop")


def _run_to_score(subject: Subject) -> None:
    run_well(subject.ingest)
    run_well(subject.train)


class _StopAt(TrainListener):
    """Asks for a stop in a step, as a signal would."""

    def __init__(self, step: int) -> None:
        self.signal = StopSignal()
        self._left = step

    def stepped(self, epoch: int, rows: int, total: int, loss: float) -> None:
        self._left -= 1
        if not self._left:
            self.signal.number = 15


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("ingest", "dataset", _nothing, lambda subject: subject.ingest),
        Scenario(
            "replace", "dataset", _other_dataset, lambda subject: [*subject.ingest, "--overwrite"]
        ),
        Scenario("train", "run", _dataset, lambda subject: subject.train),
        Scenario("resume", "run", _part_of_run, lambda subject: subject.train),
        Scenario(
            "score",
            "scores",
            _run_to_score,
            lambda subject: [*subject.score, "--out", str(subject.home / OUTPUT)],
        ),
    )
}


@dataclass(frozen=True)
class Stage:
    """A scenario made ready: what was before, and the oracle, on disk for any process to use."""

    base: Path
    name: str

    @property
    def scenario(self) -> Scenario:
        """What is disturbed."""
        return SCENARIOS[self.name]

    @property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.base / "facts.json").read_text())
        return facts

    @property
    def operations(self) -> int:
        """How many operations the command comes to where nothing disturbs it."""
        return int(self._facts["operations"])

    @contextmanager
    def subject(self) -> Iterator[Subject]:
        """A fresh copy of what was there before the command."""
        with TemporaryDirectory(dir=self.base) as home:
            yield self._before.copy(Path(home) / "home")

    @property
    def _before(self) -> Subject:
        return Subject(self.base / "before", self.base / "oracle" / "source")

    @property
    def _done(self) -> Subject:
        return Subject(self.base / "done", self.base / "oracle" / "source")

    def prepare(self) -> None:
        """Make it; once, before any process uses it."""
        undisturbed(self.base / "oracle")
        self._before.home.mkdir()
        self.scenario.begin(self._before)
        done = self._before.copy(self._done.home)
        with counted() as operations:
            run_well(self.scenario.command(done))
        facts: dict[str, Any] = {
            "operations": len(operations),
            "before": self._before.outcome(),
            "done": done.outcome(),
            "files": files_of(done),
            "history": _history(self.base, CONFIG),
        }
        oracle = Subject(self.base / "oracle", self.base / "oracle" / "source").outcome()
        assert facts["done"][self.scenario.makes] == oracle[self.scenario.makes]
        (self.base / "facts.json").write_text(json.dumps(facts))

    def check_between(self, subject: Subject) -> None:
        """After the disturbance, a reader finds what was before, or what was to be, whole."""
        facts = self._facts
        before, done = facts["before"], facts["done"]
        dataset = _read(dataset_outcome, open_location(subject.dataset))
        _check_one_of("dataset", dataset, before.get("dataset"), done.get("dataset"))
        scores = _read(scores_outcome, open_location(subject.run).child("scores"))
        _check_one_of("scores", scores or None, before.get("scores"), done.get("scores"))
        _check_run(subject, before.get("run"), done.get("run"), facts["history"])
        output = subject.home / OUTPUT
        assert not output.exists() or _bytes(output) == _bytes(self._done.home / OUTPUT), (
            f"{OUTPUT} is there in part"
        )

    def check_outcome(self, subject: Subject) -> None:
        """The command came to the oracle's outcome."""
        done, found = self._facts["done"], subject.outcome()
        assert done == found, f"expected {done}, found {found}"

    def check_done(self, subject: Subject) -> None:
        """Run again, undisturbed, the command came to the oracle's outcome, and left no litter."""
        facts = self._facts
        self.check_outcome(subject)
        for place in filter(Path.exists, (subject.dataset, subject.run)):
            wrong = [error for _, error in verify_location(open_location(place)) if error]
            assert not wrong, f"verify: {wrong[0]}"
        litter = set(filter(_is_litter, files_of(subject))) - set(facts["files"])
        assert not litter, f"left behind: {sorted(litter)}"
        missing = set(facts["files"]) - set(files_of(subject))
        assert not missing, f"not there: {sorted(missing)}"


@cache
def stage(name: str) -> Stage:
    """A scenario made ready, once for this process and those that it starts."""
    made = Stage(scratch(), name)
    made.prepare()
    return made


def files_of(subject: Subject) -> list[str]:
    """Every file and directory that the commands made, hidden ones too."""
    found = []
    for directory, directories, names in os.walk(subject.home):
        base = Path(directory).relative_to(subject.home)
        found += [(base / name).as_posix() for name in directories + names]
    return sorted(found)


def _is_litter(name: str) -> bool:
    """Whether it should not stay: all but what does no harm, and no command may judge.

    The temporary file of a plain output lies in the user's own directory, where a dead writer's
    cannot be told from a live one's. A run that is done is not opened for writing again, so a sound
    checkpoint may stay beyond the number to keep.
    """
    directory, _, rest = name.partition("/checkpoints/")
    checkpoint = directory == "run" and NAME.fullmatch(rest.split("/")[0])
    return not (checkpoint or name.startswith(f".{OUTPUT}."))


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def _history(base: Path, config: TrainConfig) -> dict[str, Outcome]:
    """Each checkpoint that the oracle passes, by name."""
    subject = Subject(base / "history", base / "oracle" / "source", longer(keep=1000))
    subject.home.mkdir()
    run_well(subject.ingest)
    run_well(subject.train)
    run = open_run(open_location(subject.run))
    return {str(name): checkpoint_outcome(run, name) for name in list_checkpoints(run)}


def _read(read: Callable[[Location], Outcome], location: Location) -> Outcome | None:
    """What a reader finds, or None where it is told that there is nothing yet."""
    try:
        return read(location)
    except BadDataError as error:
        if any(words in str(error) for words in NOTHING_YET):
            return None
        if BEING_REPLACED in str(error):
            return {BEING_REPLACED: True}
        raise AssertionError(f"a reader is told: {error}") from error


def _check_one_of(
    what: str, found: Outcome | None, before: Outcome | None, done: Outcome | None
) -> None:
    if found == {BEING_REPLACED: True} and before != done:
        return
    assert found in (before, done), f"a reader finds of the {what}: {found}"


def _check_run(
    subject: Subject,
    before: Outcome | None,
    done: Outcome | None,
    history: dict[str, Outcome],
) -> None:
    """What a reader finds of a run is a point of its history, no earlier than it was before."""
    found = _read(run_outcome, open_location(subject.run))
    if found is None or found["checkpoint"] is None:
        assert before is None, f"the run is gone: {found}"
        return
    assert done is not None
    name = found["checkpoint"]
    assert name in history, f"a checkpoint {name} that the oracle never passed"
    assert history[name] == {key: found[key] for key in history[name]}, f"another {name}"
    assert before is None or name >= before["checkpoint"], f"went back to {name}"
    lines = found["metrics"]
    assert lines == done["metrics"][: len(lines)], "other metrics"
    assert len(lines) >= int(name.split("-")[0]), f"{len(lines)} lines of metrics at {name}"
