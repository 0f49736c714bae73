"""The sweep directory: sweep.json, which fixes all trials, and a result per trial.

Each trial is an ordinary run below `trials`. Its result is a small document beside the runs, so
that a sweep of many trials can be read without reading them all.
"""

from dataclasses import dataclass, fields
from typing import Any

from storage import documents
from storage.errors import BadDataError, counted, nearest_place
from storage.location import Location
from storage.places import referenced

FORMAT = "mnist-stream sweep"
FORMAT_VERSION = 1
RECORD = "sweep.json"
TRIALS = "trials"
"""The directory of the trials' runs."""
RESULTS = "results"
FINISHED, TRAINED, FAILED = "finished", "trained", "failed"
"""The states of a result. A trial that was trained, and no more, has epochs left."""
RECORDED = {
    "dataset_digest": str,
    "dataset": str,
    "settings": dict,
    "search": dict,
    "configurations": list,
    "seeds": list,
    "rungs": list,
}
"""The fields of sweep.json, without its format."""
RESULT = {"state": str, "accuracy": list, "cross_entropy": list, "seconds": float}
PERMANENT = (2, 5)
"""Exit codes of failures that another try with the same settings would meet again."""


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    configuration: int
    """Index of its configuration."""
    seed: int
    name: str
    settings: dict[str, Any]
    """All settings that were given for it, as `pipeline train` takes them."""


@dataclass(frozen=True)
class TrialResult:
    """How far a trial got, and how well."""

    state: str
    """`finished`, `trained` or `failed`."""
    accuracy: tuple[float, ...] = ()
    """Validation accuracy after each epoch."""
    cross_entropy: tuple[float, ...] = ()
    """Validation cross-entropy after each epoch."""
    seconds: float = 0.0
    """Time of all epochs."""
    exit: int | None = None
    """Exit code of the error that ended it."""
    reason: str | None = None
    """Message of that error."""

    @property
    def best(self) -> int:
        """The index of the epoch with the lowest validation cross-entropy, the first of equals."""
        return self.cross_entropy.index(min(self.cross_entropy))


@dataclass(frozen=True)
class Sweep:
    """A sweep and the content of its sweep.json."""

    location: Location
    dataset_digest: str
    dataset: str
    """The dataset's URL, absolute path, or path relative to the sweep."""
    settings: dict[str, Any]
    """Settings that all trials were given."""
    search: dict[str, Any]
    """How the configurations were chosen: `grid`, `ranges`, `sample` and `sample_seed`."""
    configurations: list[dict[str, Any]]
    """The settings in which the trials differ."""
    seeds: list[int]
    """The seeds of each configuration."""
    rungs: list[int]
    """Epochs after which the worse half stops; empty without halving."""

    @property
    def dataset_place(self) -> str:
        """The dataset's path or URL."""
        return referenced(self.dataset, self.location)

    @property
    def trials(self) -> list[Trial]:
        """All trials, configuration by configuration."""
        numbers = range(len(self.configurations))
        return [trial for number in numbers for trial in self.trials_of(number)]

    def trials_of(self, number: int) -> list[Trial]:
        """Return the trials of one configuration."""
        settings = self.settings | self.configurations[number]
        return [
            Trial(number, seed, f"{number + 1:03d}-seed{seed}", settings | {"seed": seed})
            for seed in self.seeds
        ]

    def run(self, trial: Trial) -> Location:
        """Return the location of a trial's run."""
        return self.location.child(f"{TRIALS}/{trial.name}")

    def write(self) -> None:
        """Write sweep.json atomically; the caller holds the lock."""
        record = {one.name: getattr(self, one.name) for one in fields(self)[1:]}
        document = {"format": FORMAT, "format_version": FORMAT_VERSION} | record
        self.location.put(RECORD, documents.sealed_bytes(document), new=True)

    def write_result(self, trial: Trial, result: TrialResult) -> None:
        """Record how a trial ended, or how far it got."""
        self.location.put(f"{RESULTS}/{trial.name}.json", documents.sealed_bytes(vars(result)))

    def results(self) -> dict[str, TrialResult]:
        """Return the recorded results by the names of their trials.

        Raises `BadDataError` for a damaged one.
        """
        recorded = self.location.names(RESULTS)
        names = [trial.name for trial in self.trials if f"{trial.name}.json" in recorded]
        return {name: self._result(f"{RESULTS}/{name}.json") for name in names}

    def _result(self, key: str) -> TrialResult:
        document = documents.read_sealed(self.location, key)
        documents.check_fields(document, RESULT, f"{self.location}/{key}")
        known: dict[str, Any] = {one.name: document.get(one.name) for one in fields(TrialResult)}
        figures = {name: tuple(document[name]) for name in ("accuracy", "cross_entropy")}
        return TrialResult(**(known | figures))


def sweep_exists(location: Location) -> bool:
    """Return whether there is a sweep.json, sound or not."""
    return location.exists(RECORD)


def open_sweep(location: Location) -> Sweep:
    """Open a sweep; raise `BadDataError` if it is missing, damaged or of a newer format."""
    place = f"{location}/{RECORD}"
    try:
        record = documents.read_sealed(location, RECORD)
    except FileNotFoundError:
        raise BadDataError(
            f"There is no sweep at {location}.{nearest_place(str(location))} Make one with "
            f"`pipeline sweep --out {location}`."
        ) from None
    documents.check_format(record, FORMAT, (FORMAT_VERSION,), place)
    documents.check_fields(record, RECORDED, place)
    return Sweep(location, **{name: record[name] for name in RECORDED})


def best_runs(location: Location, count: int) -> list[Location]:
    """Return the runs of the best finished trials of a sweep, best first.

    They are compared by the validation cross-entropy of each one's best epoch, never by the test
    split. Raises `BadDataError` if fewer trials than `count` have finished.
    """
    sweep = open_sweep(location)
    results = sweep.results()
    finished = [
        (result.cross_entropy[result.best], trial.name)
        for trial in sweep.trials
        if (result := results.get(trial.name)) and result.state == FINISHED
    ]
    if len(finished) < count:
        raise BadDataError(
            f"The sweep {location} has {counted(len(finished), 'finished trial')}; expected at "
            f"least {count}. If the sweep was interrupted, continue it; otherwise ask for fewer."
        )
    return [location.child(f"{TRIALS}/{name}") for _, name in sorted(finished)[:count]]
