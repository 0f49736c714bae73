"""The jobs of the experiments with real processes, and their expected results.

The subject is larger than that of the experiments within one process, so that a random moment can
fall anywhere in a job's writes.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from storage.errors import BadDataError, ConflictError
from storage.location import Location
from storage.places import open_location
from storage.runs import RECORD, SCORES, open_run
from storage.scores import is_complete
from storage.verify import verify_run
from tests.chaos.processes import Command, Work, measure, run
from tests.chaos.subject import (
    SPLITS,
    Outcome,
    Subject,
    dataset_outcome,
    longer,
    new_subject,
    run_outcome,
    scores_outcome,
    undisturbed,
)
from tests.chaos.tally import Experiment, scratch
from tests.jobs.trainings import untimed

TIMES = 10
"""900 training rows in 45 chunks, 310 test rows in 16."""
CONFIG = longer(
    epochs=6,
    batch_size=67,
    micro_batches=2,
    schedule="cosine",
    restarts=2,  # a snapshot after every second epoch
    checkpoint_every=4,
    threads=2,
)
"""An epoch has two windows and 14 batches; each batch is computed in two parts by two processes."""
BATCHES = -(-(TIMES * SPLITS["train"][1] - CONFIG.holdout) // CONFIG.batch_size)

JOBS = ("train", "ingest", "score", "replace")
"""`replace` is an ingest with `--overwrite` over another dataset."""


@dataclass(frozen=True)
class Job:
    """A job in a case's directory, and how to check its result."""

    command: Command
    place: Path
    target: Path
    """The artefact that it writes: a dataset, a run, or a run's scores."""
    work: Work
    expected: Outcome
    read: Callable[[Location], Outcome]
    look: Callable[[], None]
    """Reads the artefact at any moment; raises `AssertionError` if it is not complete."""

    def finish(self) -> None:
        """Run the command to its end and check the result."""
        last = run(self.command)
        assert 0 == last.code, last.err
        self.check()

    def check(self) -> None:
        """Check that the result is the oracle's, and that only locks are left behind."""
        outcome = self.read(open_location(self.target))
        differing = [key for key in self.expected if self.expected[key] != outcome.get(key)]
        assert not differing, f"other than undisturbed: {', '.join(differing)}"
        hidden = [path.name for path in self.place.rglob(".*") if path.suffix != ".lock"]
        assert not [name for name in hidden if name != ".lock"], f"left behind: {hidden}"


@dataclass(frozen=True)
class Scene:
    """A directory for the cases, and the undisturbed results of the three commands."""

    directory: Path
    oracle: Subject
    other: Subject
    """A subject with other rows, hence another dataset."""
    expected: Outcome
    other_dataset: Outcome
    work: dict[str, Work]
    """The duration of each command."""

    @contextmanager
    def job(self, name: str) -> Iterator[Job]:
        """Prepare one of `JOBS` in an empty directory for one case."""
        with TemporaryDirectory(dir=self.directory) as directory:
            place = Path(directory)
            yield {"train": self._train, "score": self._score}.get(name, self._ingest)(place, name)

    def _train(self, place: Path, name: str) -> Job:
        command, expected = train(self.oracle, place / "run"), self.expected["run"]
        look = partial(look_at_run, place / "run", expected)
        return Job(command, place, place / "run", self.work[name], expected, run_outcome, look)

    def _score(self, place: Path, name: str) -> Job:
        copy = unscored(self.oracle.run, place / "run")
        command, expected = score(self.oracle, copy), self.expected["scores"]
        look = partial(look_at_scores, copy / SCORES, expected)
        return Job(command, place, copy / SCORES, self.work[name], expected, scores_outcome, look)

    def _ingest(self, place: Path, name: str) -> Job:
        target, expected, before = place / "dataset", self.expected["dataset"], None
        if name == "replace":
            shutil.copytree(self.other.dataset, target)
            before = self.other_dataset
        command = ingest(self.oracle, target, *(["--overwrite"] if before else []))
        look = partial(look_at_dataset, target, before, expected)
        return Job(command, place, target, self.work["ingest"], expected, dataset_outcome, look)


def unscored(run: Path, copy: Path) -> Path:
    """Copy a run without its scores."""
    return Path(shutil.copytree(run, copy, ignore=shutil.ignore_patterns(SCORES, ".lock")))


def ingest(subject: Subject, dataset: Path, *options: str) -> Command:
    """Return the command that makes a subject's dataset in another place."""
    arguments = (*subject.ingest, "--out", str(dataset), *options)
    return Command(arguments, dataset.with_name(f".{dataset.name}.lock"))


def train(subject: Subject, directory: Path) -> Command:
    """Return the command that trains in another run."""
    return Command((*subject.train, "--run", str(directory)), directory / ".lock")


def score(subject: Subject, directory: Path) -> Command:
    """Return the command that scores with another run of the same model."""
    lock = directory / SCORES / f".{subject.scoring.name}.lock"
    return Command(tuple(subject.score_with(directory)), lock)


def look_at_dataset(dataset: Path, before: Outcome | None, after: Outcome) -> None:
    """Check that a reader finds the old dataset, if any, or the new one, each complete."""
    try:
        outcome = dataset_outcome(open_location(dataset))
    except BadDataError as error:
        expected = "being replaced" if before else "There is no dataset"
        assert expected in str(error), error
    except ConflictError as error:
        assert before, error
        assert "was replaced by another dataset" in str(error), error
    else:
        assert outcome in (before, after), f"a reader finds {outcome}"


def look_at_run(directory: Path, expected: Outcome) -> None:
    """Check that a run, if it exists, is sound, and that its metrics begin like the oracle's."""
    location = open_location(directory)
    if not location.exists(RECORD):
        return
    wrong = [str(error) for _, error in verify_run(location) if error is not None]
    assert not wrong, wrong
    metrics = untimed(open_run(location).metrics())
    assert metrics == expected["metrics"][: len(metrics)]


def look_at_scores(directory: Path, expected: Outcome) -> None:
    """Check that complete scores are the oracle's."""
    location = open_location(directory)
    for home in expected:
        if is_complete(location.child(home)):
            assert expected == scores_outcome(location)


@cache
def scene() -> Scene:
    """Run every command once for its result and once for its duration, in this process.

    The directory is removed when the process ends; worker processes receive the scene.
    """
    directory = scratch()
    oracle = undisturbed(directory / "oracle", CONFIG, times=TIMES)
    other = new_subject(directory / "other", CONFIG, times=TIMES, seed=8)
    timed = directory / "timed"
    work = {
        "ingest": measure(ingest(other, other.dataset)),
        "train": measure(train(oracle, timed)),
        "score": measure(score(oracle, timed)),
    }
    other_dataset = dataset_outcome(open_location(other.dataset))
    return Scene(directory, oracle, other, oracle.outcome(), other_dataset, work)


experiment = partial(Experiment, prepare=scene, scaled_by="kills", several="threads")
"""An experiment whose cases run the scene's jobs in separate processes."""
