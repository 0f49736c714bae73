"""What a report shows of a run: each part is read when it is asked for, and raises if damaged."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import numpy as np

from jobs.commands.report.examine import Cell, Examination, examine, wilson_interval
from jobs.output import percent
from jobs.scoring.images import Pixels, pixels_of
from jobs.scoring.metrics import open_scored
from jobs.training.choose_model import ModelChoice, choose_model
from jobs.training.config import VALIDATION, TrainConfig
from jobs.training.history import Metrics, check_history
from jobs.training.select_checkpoint import best_checkpoint, open_chosen_dataset
from storage.dataset import Dataset
from storage.errors import BadDataError, as_pipeline_error
from storage.ledger import FAILED_EVENT, SCORED, Entry, Ledger
from storage.location import Location
from storage.runs import METRICS, RECORD, SCORES, open_run, run_exists
from storage.scores import Scores, is_complete, scoring_home

T = TypeVar("T")

EXAMPLES, LEAST_EXAMPLES, ALL_EXAMPLES = 12, 3, 150
"""Images of each class: the most, the least, and about how many of all classes."""
SHOWN_CLASSES = 50
"""Classes of which images, or a row of the confusion matrix, are shown."""
WORST_CELLS = 6
NEIGHBOURS = 100
"""The most runs beside this one that are looked at to find the run before."""
SHOWN_SCORINGS = 60
MAX_DRIFT = "max-drift"
"""The gate on the drift, as the ledger names it."""
SPLITS = ("test", VALIDATION)
"""The splits whose accuracy is a run's, the first one that was scored or evaluated."""


@dataclass(frozen=True)
class Part(Generic[T]):
    """A part of the report, or the reason why it is missing."""

    value: T | None = None
    hole: str | None = None

    @classmethod
    def of(cls, make: Callable[[], T]) -> "Part[T]":
        """Return what a function returns, or the reason of the error that it raises.

        Errors that are not about data, files or a connection are raised.
        """
        try:
            return cls(make())
        except Exception as error:
            known = as_pipeline_error(error)
            if known is None:
                raise
            return cls(hole=str(known))


@dataclass(frozen=True)
class Result:
    """How good a model is on a split."""

    split: str
    rows: int
    accuracy: float
    cross_entropy: float

    @property
    def hits(self) -> int:
        return round(self.accuracy * self.rows)

    @property
    def errors(self) -> int:
        return self.rows - self.hits

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the accuracy, of 95 %."""
        return wilson_interval(self.hits, self.rows)


class Subject:
    """A run; its properties raise `PipelineError` for what is missing or damaged."""

    def __init__(
        self,
        location: Location,
        dataset: str | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        """Open the run; raise `BadDataError` if it cannot be read at all.

        `dataset` is the place of its dataset, by default the recorded one.
        """
        self._places = dataset, storage_options
        self.run = open_run(location)
        self.config = TrainConfig.from_json(self.run.configuration, f"{location}/{RECORD}")

    def __str__(self) -> str:
        return str(self.run.location)

    def part(self, name: str) -> Part[Any]:
        """Return a property, or the reason why it is missing."""
        return Part.of(partial(getattr, self, name))

    @cached_property
    def epochs(self) -> list[Metrics]:
        """The recorded metrics, one line per epoch."""
        return check_history(self.run.metrics(), f"{self}/{METRICS}")

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that the run was trained on."""
        dataset = open_chosen_dataset(self.run, *self._places)
        if dataset.digest != self.run.dataset_digest:
            raise BadDataError(
                f"{dataset.location} is now another dataset, {dataset.digest[:12]}; the run was "
                f"trained on {self.run.dataset_digest[:12]}. Restore it from a copy."
            )
        return dataset

    @cached_property
    def model(self) -> ModelChoice:
        """The best checkpoint, or the latest without validation."""
        chosen, _ = choose_model(self.run, "best")
        return chosen

    @cached_property
    def entries(self) -> list[Entry]:
        """The lines of the ledger, oldest first."""
        ledger = Ledger(self.run.location)
        ledger.check_presence()
        return ledger.entries()

    @cached_property
    def scores(self) -> Scores:
        """The scores of the run's own test or validation split."""
        for split in SPLITS:
            if scores := self._scores_of(split):
                return scores
        raise BadDataError(
            f"The test split has not been scored. Run `pipeline score --run {self}`."
        )

    @cached_property
    def training_scores(self) -> Scores:
        """The scores of the training split."""
        scores = self._scores_of("train")
        if scores is None:
            raise BadDataError(
                "Suspicious labels need the scores of the training split. Run `pipeline score "
                f"--run {self} --split train`."
            )
        return scores

    def _scores_of(self, split: str) -> Scores | None:
        """Return scores of a split by the best model, else by the one that scored it last."""
        places = []
        if (model := self.part("model").value) is not None:
            members = len(model.members), model.average_shifts
            places = [scoring_home(model.digest, self.run.dataset_digest, split, *members)]
        for entry in reversed(self.part("entries").value or []):
            is_own = entry.get("dataset_digest") == self.run.dataset_digest and "runs" not in entry
            if entry["event"] == SCORED and entry.get("split") == split and is_own:
                places.append(str(entry.get("result")).removeprefix(f"{SCORES}/"))
        for place in dict.fromkeys(places):
            location = self.run.location.child(SCORES).child(place)
            if is_complete(location):
                return open_scored(location)
        return None

    @property
    def quality(self) -> dict[str, Any] | None:
        """The metrics of `scores`; None if the split has no labels."""
        return self.scores.metrics.get("quality")

    @cached_property
    def result(self) -> Result:
        """The accuracy of `scores`, else of the best epoch's evaluation."""
        scores = self.part("scores").value
        if scores is not None and (quality := scores.metrics.get("quality")):
            rows = scores.schema.rows
            split = scores.schema.split
            return Result(split, rows, quality["accuracy"], quality["cross_entropy"])
        line = self.best_epoch
        for split in SPLITS:
            rows = self._rows(split)
            if rows and (figures := line["evaluation"].get(split)):
                return Result(split, rows, figures["accuracy"], figures["cross_entropy"])
        raise BadDataError(
            "Accuracy is not known: no split with labels was evaluated or scored, or the dataset "
            "cannot be opened."
        )

    def _rows(self, split: str) -> int:
        dataset = self.part("dataset").value
        if dataset is None:
            return 0
        if split == VALIDATION and self.config.holdout:
            return self.config.holdout
        return dataset.splits[split].schema.rows if split in dataset.splits else 0

    @property
    def best_epoch(self) -> Metrics:
        """The line of the epoch that the model was saved after."""
        if not self.epochs:
            raise BadDataError(
                f"No epoch is finished yet. Continue with `pipeline train --resume --run {self}`."
            )
        best = best_checkpoint(self.epochs)
        return self.epochs[best.epoch - 1 if best else -1]

    @cached_property
    def worst_cells(self) -> list[tuple[Cell, int]]:
        """The cells of the confusion matrix with the most mistakes."""
        confusion = np.array((self.quality or {}).get("confusion", []), dtype=np.int64)
        if confusion.size == 0:
            return []
        np.fill_diagonal(confusion, 0)
        order = np.argsort(-confusion, axis=None, kind="stable")[:WORST_CELLS]
        cells = [divmod(int(place), len(confusion)) for place in order]
        return [(cell, int(confusion[cell])) for cell in cells if confusion[cell]]

    @cached_property
    def examination(self) -> Examination:
        """The scores beside their labels and images."""
        scores = self.scores  # first: the error names the command that makes them
        return examine(self.dataset, scores, [cell for cell, _ in self.worst_cells])

    @cached_property
    def training_examination(self) -> Examination:
        """The same for the training split."""
        scores = self.training_scores
        return examine(self.dataset, scores)

    @cached_property
    def class_images(self) -> list[tuple[str, list[Pixels]]]:
        """The first images of each class, from the first chunk of the training split that has any.

        Without labels, the first images, under an empty name.
        """
        dataset = self.dataset
        split = next(iter(dataset.splits.values()))
        counts = split.chunk_class_counts
        each = min(EXAMPLES, max(LEAST_EXAMPLES, ALL_EXAMPLES // len(dataset.class_names)))
        if not split.schema.classes:
            return [
                ("", [pixels_of(row, dataset) for row in split.read_chunk(0).inputs[:EXAMPLES]])
            ]
        images = []
        for number, name in enumerate(dataset.class_names[:SHOWN_CLASSES]):
            chunk = int(np.argmax(counts[:, number] > 0))
            block = split.read_chunk(chunk)
            assert block.targets is not None
            rows = np.flatnonzero(block.targets[:, number])[:each]
            images.append((name, [pixels_of(block.inputs[row], dataset) for row in rows]))
        return images

    @cached_property
    def scorings(self) -> list["Scoring"]:
        """The last scorings and failures in the ledger, oldest first."""
        shown = [entry for entry in self.entries if entry["event"] in (SCORED, FAILED_EVENT)]
        return [self._scoring(entry) for entry in shown[-SHOWN_SCORINGS:]]

    def _scoring(self, entry: Entry) -> "Scoring":
        place = str(entry.get("result", "")).removeprefix(f"{SCORES}/")
        location = self.run.location.child(SCORES).child(place)
        scores = Part.of(lambda: open_scored(location)) if place else Part[Scores]()
        gates = self._last_gates(entry)
        return Scoring(
            time=entry["time"],
            what=_what(entry),
            rows=entry.get("rows"),
            accuracy=entry.get("accuracy"),
            drift=_drift_of(entry, scores.value),
            drift_limit=next((gate["limit"] for gate in gates if gate["gate"] == MAX_DRIFT), None),
            shares=Part.of(lambda: _class_shares(scores.value)).value or {},
            verdict=_verdict(entry, gates),
            problem=entry.get("error") or scores.hole,
        )

    def _last_gates(self, entry: Entry) -> list[dict[str, Any]]:
        """Return the last verdicts on a scoring's scores."""
        lines = [line for line in self.entries if line.get("result") == entry.get("result")]
        gates = [line["gates"] for line in lines if line.get("gates")]
        return list(gates[-1]) if gates and "result" in entry else []

    @cached_property
    def before(self) -> "Subject | None":
        """The run beside this one on the same dataset that was written last before it."""
        parent, own = self.run.location.split()
        candidates = []
        for name in parent.names()[:NEIGHBOURS]:
            location = parent.child(name)
            if name == own or name.startswith(".") or not run_exists(location):
                continue
            other = Part.of(partial(Subject, location, *self._places)).value
            if other and other.run.dataset_digest == self.run.dataset_digest:
                written = other.written
                if written and self.written and written < self.written:
                    candidates.append((written, name, other))
        return max(candidates, key=lambda item: item[:2])[2] if candidates else None

    @cached_property
    def written(self) -> float | None:
        """When metrics.jsonl was last written, in seconds since 1970; None without any."""
        return Part.of(lambda: self.run.location.status(METRICS).modified).value


@dataclass(frozen=True)
class Scoring:
    """A line of the ledger, with what its scores say."""

    time: str
    what: str
    """The file or the split."""
    rows: int | None
    accuracy: float | None
    drift: dict[str, Any] | None
    drift_limit: float | None
    """The largest drift that passed `--max-drift`; None without this gate."""
    shares: dict[str, float]
    """The share of rows predicted as each class."""
    verdict: str
    problem: str | None
    """Why the file was not scored, or its scores cannot be read."""

    @property
    def is_bad(self) -> bool:
        return self.verdict != "ok"

    @property
    def looks(self) -> str:
        """What its drift looks like; empty if it is small."""
        return str(self.drift["text"] or "") if self.drift else ""

    @property
    def details(self) -> str:
        """Why it was not scored or cannot be read, and what its drift looks like."""
        return f"{self.problem or ''} {self.looks}".strip()

    @property
    def warning(self) -> str | None:
        """What is wrong with the scoring; None if nothing is."""
        if self.is_bad:
            return f"{self.what}: {self.verdict}. {self.details}".strip()
        return f"{self.what}: {self.looks}" if self.looks else None


def _what(entry: Entry) -> str:
    """Return the file or split of a scoring, and the number of runs if its model averages them."""
    runs = len(set(entry.get("runs", ())))
    average = f" (average of {runs} runs)" if runs else ""
    return f"{entry.get('file') or entry.get('split')}{average}"


def _class_shares(scores: Scores | None) -> dict[str, float]:
    if scores is None:
        return {}
    schema = scores.schema
    counts = np.zeros(schema.classes, np.int64)
    for number in range(schema.chunks):
        counts += np.bincount(scores.read_chunk(number)[1], minlength=schema.classes)
    return dict(zip(schema.class_names, (counts / schema.rows).tolist(), strict=True))


def _drift_of(entry: Entry, scores: Scores | None) -> dict[str, Any] | None:
    """Return the drift of a scoring: `score`, and `text` if there is one."""
    recorded = None if scores is None else scores.metrics.get("drift")
    details = recorded if isinstance(recorded, dict) else {}
    score = entry.get("drift", details.get("score"))
    text = entry.get("drift_text") or details.get("text")
    return {"score": score, "text": text} if type(score) in (int, float) else None


def _verdict(entry: Entry, gates: list[dict[str, Any]]) -> str:
    if entry["event"] == FAILED_EVENT:
        return "not scored"
    missed = [
        f"drift above {gate['limit']:g}"
        if gate["gate"] == MAX_DRIFT
        else f"accuracy below {percent(gate['limit'])}"
        for gate in gates
        if not gate["passed"]
    ]
    return ", ".join(missed) or ("below a gate" if entry["exit"] and not gates else "ok")


def differing(subjects: list[Subject]) -> Iterator[tuple[str, list[Any]]]:
    """Yield each setting that is not the same in all runs, with its values."""
    configurations = [subject.run.configuration for subject in subjects]
    names = dict.fromkeys(name for configuration in configurations for name in configuration)
    for name in names:
        values = [configuration.get(name) for configuration in configurations]
        if any(value != values[0] for value in values):
            yield name, values
