"""What is disturbed: a command, what was there before it, and what a reader may find meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from jobs.training.config import TrainConfig
from jobs.training.job import train
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
from tests.jobs.trainings import StopAt

OUTPUT = "predictions.csv"
NOTHING_YET = (
    *("There is no dataset", "There is no run", "contains no run.json", "There are no scores"),
    "is incomplete",
)
"""What the messages say of something that has not come to be."""
BEING_REPLACED = "is being replaced, or"


@dataclass(frozen=True)
class Scenario:
    """A command, and what it finds."""

    makes: str
    """What the command makes: `dataset`, `run` or `scores`."""
    begin: Callable[[Subject], None]
    """Makes, in an empty home, what is there before the command."""
    command: Callable[[Subject], list[str]]


def _part_of_run(subject: Subject) -> None:
    """A training that was stopped within its second epoch, at a checkpoint."""
    run_well(subject.ingest)
    stopper = StopAt(5)
    places = {"dataset": subject.dataset, "run": subject.run}
    try:
        train(subject.config, **places, progress=stopper, stop=stopper.signal)
    except StoppedError:
        return
    raise AssertionError("the training was to stop")


def _run_to_score(subject: Subject) -> None:
    run_well(subject.ingest)
    run_well(subject.train)


SCENARIOS = {
    "ingest": Scenario("dataset", lambda subject: None, lambda subject: subject.ingest),
    "replace": Scenario(
        "dataset",
        lambda subject: run_well([*subject.ingest, "--rows-per-chunk", "45"]),
        lambda subject: [*subject.ingest, "--overwrite"],
    ),
    "train": Scenario(
        "run", lambda subject: run_well(subject.ingest), lambda subject: subject.train
    ),
    "resume": Scenario("run", _part_of_run, lambda subject: subject.train),
    "score": Scenario(
        "scores",
        _run_to_score,
        lambda subject: [*subject.score, "--out", str(subject.home / OUTPUT)],
    ),
}


@dataclass(frozen=True)
class Stage:
    """A scenario made ready: what was before, on disk for any process to use, and the oracle."""

    base: Path
    name: str
    operations: int
    """How many operations the command comes to where nothing disturbs it."""
    before: Outcome
    done: Outcome
    files: set[str]
    """What there is in the end."""
    history: dict[str, Outcome]
    """Each checkpoint that the oracle passes, by name."""
    output: bytes
    """The plain file of the scores, if any."""

    def command(self, subject: Subject) -> list[str]:
        """The arguments of the command that is disturbed."""
        return SCENARIOS[self.name].command(subject)

    @contextmanager
    def subject(self) -> Iterator[Subject]:
        """A fresh copy of what was there before the command."""
        with TemporaryDirectory(dir=self.base) as home:
            yield _subject(self.base, "before").copy(Path(home) / "home")

    def check_between(self, subject: Subject) -> None:
        """After the disturbance, a reader finds what was before, or what was to be, whole."""
        dataset = _read(dataset_outcome, open_location(subject.dataset))
        _check_one_of("dataset", dataset, self.before.get("dataset"), self.done.get("dataset"))
        scores = _read(scores_outcome, open_location(subject.run).child("scores"))
        _check_one_of("scores", scores or None, self.before.get("scores"), self.done.get("scores"))
        _check_run(subject, self.before.get("run"), self.done.get("run"), self.history)
        output = subject.home / OUTPUT
        assert not output.exists() or output.read_bytes() == self.output, f"a part of {OUTPUT}"

    def check_outcome(self, subject: Subject) -> None:
        """The command came to the oracle's outcome."""
        found = subject.outcome()
        assert self.done == found, f"expected {self.done}, found {found}"

    def check_done(self, subject: Subject) -> None:
        """Run again, undisturbed, the command came to the oracle's outcome, and left no litter."""
        self.check_outcome(subject)
        for place in filter(Path.exists, (subject.dataset, subject.run)):
            wrong = [error for _, error in verify_location(open_location(place)) if error]
            assert not wrong, f"verify: {wrong[0]}"
        litter = set(filter(_is_litter, _files_of(subject))) - self.files
        assert not litter, f"left behind: {sorted(litter)}"
        missing = self.files - _files_of(subject)
        assert not missing, f"not there: {sorted(missing)}"


@cache
def stage(name: str) -> Stage:
    """A scenario made ready, once for this process and those that it starts."""
    base, scenario = scratch(), SCENARIOS[name]
    oracle = undisturbed(base / "oracle")
    before = _subject(base, "before")
    before.home.mkdir()
    scenario.begin(before)
    done = before.copy(base / "done")
    with counted() as operations:
        run_well(scenario.command(done))
    assert done.outcome()[scenario.makes] == oracle.outcome()[scenario.makes]
    output = (done.home / OUTPUT).read_bytes() if name == "score" else b""
    facts = (before.outcome(), done.outcome(), _files_of(done), _history(base))
    return Stage(base, name, len(operations), *facts, output)


def _subject(base: Path, name: str, config: TrainConfig = CONFIG) -> Subject:
    return Subject(base / name, base / "oracle" / "source", config)


def _files_of(subject: Subject) -> set[str]:
    """Every file and directory that the commands made, hidden ones too."""
    return {path.relative_to(subject.home).as_posix() for path in subject.home.rglob("*")}


def _is_litter(name: str) -> bool:
    """Whether it should not stay: all but what does no harm, and no command may judge.

    The temporary file of a plain output lies in the user's own directory, where a dead writer's
    cannot be told from a live one's. A run that is done is not opened for writing again, so a sound
    checkpoint may stay beyond the number to keep.
    """
    directory, _, rest = name.partition("/checkpoints/")
    checkpoint = directory == "run" and NAME.fullmatch(rest.split("/")[0])
    return not (checkpoint or name.startswith(f".{OUTPUT}."))


def _history(base: Path) -> dict[str, Outcome]:
    subject = _subject(base, "history", longer(keep=1000))
    subject.home.mkdir()
    _run_to_score(subject)
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
    subject: Subject, before: Outcome | None, done: Outcome | None, history: dict[str, Outcome]
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
