"""The commands to disturb, their preconditions, and the states that a reader may find."""

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
"""Messages about something that does not exist yet."""
BEING_REPLACED = "is being replaced, or"


@dataclass(frozen=True)
class Scenario:
    """A command, and its preconditions."""

    makes: str
    """The artefact that the command makes: `dataset`, `run` or `scores`."""
    begin: Callable[[Subject], None]
    """Creates the command's preconditions in an empty home."""
    command: Callable[[Subject], list[str]]


def _part_of_run(subject: Subject) -> None:
    """Train, and stop within the second epoch at a checkpoint."""
    run_well(subject.ingest)
    stopper = StopAt(5)
    places = {"dataset": subject.dataset, "run": subject.run}
    try:
        train(subject.config, **places, progress=stopper, stop=stopper.signal)
    except StoppedError:
        return
    raise AssertionError("the training did not stop")


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
    """A prepared scenario, on disk for any process to use, with the oracle's outcome."""

    base: Path
    name: str
    operations: int
    """Number of disk operations of the undisturbed command."""
    before: Outcome
    done: Outcome
    files: set[str]
    """All files and directories after the undisturbed command."""
    history: dict[str, Outcome]
    """Each checkpoint of the undisturbed training, by name."""
    output: bytes
    """The contents of --out, if any."""

    def command(self, subject: Subject) -> list[str]:
        """Return the arguments of the command to disturb."""
        return SCENARIOS[self.name].command(subject)

    @contextmanager
    def subject(self) -> Iterator[Subject]:
        """Copy the preconditions of the command."""
        with TemporaryDirectory(dir=self.base) as home:
            yield _subject(self.base, "before").copy(Path(home) / "home")

    def check_between(self, subject: Subject) -> None:
        """Check, after the disturbance, that a reader finds the old or the new state, complete."""
        dataset = _read(dataset_outcome, open_location(subject.dataset))
        _check_one_of("dataset", dataset, self.before.get("dataset"), self.done.get("dataset"))
        scores = _read(scores_outcome, open_location(subject.run).child("scores"))
        _check_one_of("scores", scores or None, self.before.get("scores"), self.done.get("scores"))
        _check_run(subject, self.before.get("run"), self.done.get("run"), self.history)
        output = subject.home / OUTPUT
        assert not output.exists() or output.read_bytes() == self.output, f"a part of {OUTPUT}"

    def check_outcome(self, subject: Subject) -> None:
        """Check that the outcome is the oracle's."""
        outcome = subject.outcome()
        assert self.done == outcome, f"expected {self.done}, found {outcome}"

    def check_done(self, subject: Subject) -> None:
        """Check, after an undisturbed run, the outcome, `verify`, and that no litter is left."""
        self.check_outcome(subject)
        for place in filter(Path.exists, (subject.dataset, subject.run)):
            wrong = [error for _, error in verify_location(open_location(place)) if error]
            assert not wrong, f"verify: {wrong[0]}"
        litter = set(filter(_is_litter, _files_of(subject))) - self.files
        assert not litter, f"left behind: {sorted(litter)}"
        missing = self.files - _files_of(subject)
        assert not missing, f"missing: {sorted(missing)}"


@cache
def stage(name: str) -> Stage:
    """Prepare a scenario, once for this process and those that it starts."""
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
    """Return every file and directory that the commands made, including hidden ones."""
    return {path.relative_to(subject.home).as_posix() for path in subject.home.rglob("*")}


def _is_litter(name: str) -> bool:
    """Return whether a leftover file is an error, with two exceptions.

    The temporary file of --out is in the user's own directory, where a dead writer's cannot be
    distinguished from a live one's. A complete run is not opened for writing again, so it may keep
    a sound checkpoint too many.
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
    """Return the outcome for a reader; None if nothing exists yet."""
    try:
        return read(location)
    except BadDataError as error:
        if any(words in str(error) for words in NOTHING_YET):
            return None
        if BEING_REPLACED in str(error):
            return {BEING_REPLACED: True}
        raise AssertionError(f"a reader fails: {error}") from error


def _check_one_of(
    what: str, outcome: Outcome | None, before: Outcome | None, done: Outcome | None
) -> None:
    if outcome == {BEING_REPLACED: True} and before != done:
        return
    assert outcome in (before, done), f"a reader finds, as {what}: {outcome}"


def _check_run(
    subject: Subject, before: Outcome | None, done: Outcome | None, history: dict[str, Outcome]
) -> None:
    """Check that a run is at a checkpoint of its history, no earlier than before the command."""
    outcome = _read(run_outcome, open_location(subject.run))
    if outcome is None or outcome["checkpoint"] is None:
        assert before is None, f"the run is lost: {outcome}"
        return
    assert done is not None
    name = outcome["checkpoint"]
    assert name in history, f"the undisturbed training has no checkpoint {name}"
    assert history[name] == {key: outcome[key] for key in history[name]}, f"another {name}"
    assert before is None or name >= before["checkpoint"], f"went back to {name}"
    lines = outcome["metrics"]
    assert lines == done["metrics"][: len(lines)], "other metrics"
    assert len(lines) >= int(name.split("-")[0]), f"{len(lines)} lines of metrics at {name}"
