"""Score rows with one model: find or compute the scores, judge, write, record and report them.

Dask and the network are imported only if something remains to be scored.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from jobs.choices import DEFAULT_BELOW, DEFAULT_CHECKPOINT, DEFAULT_RUN
from jobs.scoring.config import ScoreConfig
from jobs.scoring.gates import Verdict
from jobs.scoring.metrics import open_scored
from jobs.scoring.outputs import (
    check_columns,
    labels_of,
    write_output,
)
from jobs.scoring.records import Records
from jobs.scoring.result import ScoreResult, ScoringResult
from jobs.scoring.retry import POLL_SECONDS, pause
from jobs.signals import StopSignal
from jobs.training.choose_model import (
    ModelChoice,
    choose_holder,
    choose_models,
    recorded_runs,
)
from jobs.training.select_checkpoint import choose_dataset, open_chosen_dataset
from storage.errors import (
    BadDataError,
    ConflictError,
    QualityGateError,
    UnreachableError,
    UsageError,
    counted,
)
from storage.events import Progress, event, for_people
from storage.ledger import FOUND, SCORED, Ledger
from storage.location import Location
from storage.models import Holder, held_name
from storage.runs import SCORES
from storage.scores import Scores, is_complete, scoring_home

if TYPE_CHECKING:
    from jobs.training.model import Model
    from jobs.training.reference import Reference
    from pipeline.cluster.client import OpenCluster
    from storage.dataset import Dataset

logger = logging.getLogger(__name__)


class ModelError(BadDataError):
    """The model itself cannot be used, so no rows can be scored."""


class Scorer:
    """Scores datasets with one model; `result` collects the outcome."""

    def __init__(
        self, config: ScoreConfig, progress: Progress, stop: StopSignal, cluster: "OpenCluster"
    ) -> None:
        """Choose the model; raise as `choose_models` does."""
        self._config = config
        self._progress_callback = progress
        self._stop = stop
        self._cluster = cluster
        self._holder: Holder | None = None
        chosen, warnings = self._choose()
        self.run = chosen.run
        """The run below which the scores are kept: the first one of several."""
        self.scores = self.run.location.child(SCORES)
        self._choice: ModelChoice | None = chosen
        """Kept in memory until `model` uses it: a training run may prune it in between."""
        self._average = len(chosen.members), chosen.average_shifts
        runs = [member.run for member in chosen.members]
        self.result = ScoringResult(runs, chosen.digest, chosen.names, chosen.average_shifts)
        for warning in warnings:
            logger.warning("%s", warning)
        for member in chosen.members:
            if member.checkpoint.name.step:
                name, epochs = member.checkpoint.name, member.run.configuration.get("epochs")
                text = f"Checkpoint {name} was saved within epoch {name.epoch + 1} of {epochs}"
                for_people(logger, f"{text}; the training may not be finished.")
        self.records = Records(
            Ledger(self.run.location, config.take_over),
            {
                "model": config.model,
                "model_digest": self.result.model_digest,
                "checkpoint": chosen.names,
                "average_shifts": chosen.average_shifts,
            }
            | recorded_runs(runs),
        )
        self._last_conflict = ""

    def _choose(self) -> tuple[ModelChoice, tuple[str, ...]]:
        """Return the chosen checkpoints, and warnings."""
        config = self._config
        if config.model is not None:
            name, self._holder = held_name(config.open(config.models), config.model)
            return choose_holder(name, self._holder, config.storage_options)
        runs = DEFAULT_RUN if config.run is None else config.run
        # An empty checkpoint is refused later: it may be a script's unset variable.
        choice = DEFAULT_CHECKPOINT if config.checkpoint is None else config.checkpoint
        return choose_models(runs, choice, config.average_shifts, config.storage_options)

    @cached_property
    def model(self) -> "Model":
        """The model, loaded on first use. Raises `ModelError`."""
        from jobs.training.model import model_of

        assert self._choice is not None
        try:
            model = model_of(self._choice)
        except BadDataError as error:
            raise ModelError(str(error)) from error
        self._choice = None
        return model

    @cached_property
    def reference(self) -> "Reference | None":
        """The distributions that scored rows are compared with; None, with a note, if unknown."""
        from jobs.training.reference import ensure_reference

        # Rows that no member was trained on: those that all runs on this dataset held out.
        holdout = min(
            int(run.configuration.get("holdout") or 0)
            for run in self.result.runs
            if run.dataset_digest == self.run.dataset_digest
        )
        try:
            return ensure_reference(self.run, self.model, self._training_dataset, holdout)
        except (BadDataError, UnreachableError, UsageError) as error:
            is_judged = self._config.gates.max_drift is not None
            level = logging.WARNING if is_judged else logging.INFO
            logger.log(level, "Drift is not recorded: the model has no reference. %s", error)
        return None

    def _training_dataset(self) -> "Dataset":
        """Return the run's own dataset; raise `BadDataError` if another one is in its place."""
        dataset = open_chosen_dataset(self.run, None, self._config.storage_options)
        if dataset.digest != self.run.dataset_digest:
            raise BadDataError(
                f"{dataset.location} is not the dataset that the run was trained on: it was "
                "replaced. Ingest the original files again."
            )
        return dataset

    def check_stop(self) -> None:
        """Raise `StoppedError` after a signal."""
        self._stop.check("Stopped; finished scores are kept. Run the same command to continue.")

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report progress; raise `StoppedError` after a signal."""
        self._progress_callback(stage, done, total, note)
        self.check_stop()

    def wait(self, conflict: ConflictError) -> None:
        """Sleep a moment until another job releases its lock; log each conflict once."""
        if str(conflict) != self._last_conflict:
            self._last_conflict = str(conflict)
            seconds = self._config.wait
            event(logger, "waiting", f"Waiting: {conflict}", seconds=seconds)
        pause(min(POLL_SECONDS, self._config.wait), self._stop)

    def scored_before(self, content: str) -> Scores | None:
        """Return the scores of a file with this content digest, if the ledger has them."""
        for home in self.records.homes_of(content):
            location = self.run.location.child(home)
            if is_complete(location):
                return open_scored(location)
        return None

    def score(self, dataset: "Dataset", split: str) -> tuple[Scores, bool]:
        """Return the scores of a split, and whether they existed already."""
        name = scoring_home(self.result.model_digest, dataset.digest, split, *self._average)
        if is_complete(self.scores.child(name)):
            return open_scored(self.scores.child(name)), True
        from jobs.scoring.split import score_split

        config = self._config
        labelled = bool(dataset.split(split).schema.classes)
        check_columns(
            config.columns,
            self.model.class_names,
            labelled=labelled,
            from_inbox=config.inbox is not None,
        )
        return score_split(
            config,
            self.scores,
            self.model,
            dataset,
            split,
            pause=self.wait,
            progress=self.progress,
            cluster=self._cluster,
            reference=self.reference,
        )

    def finish(
        self,
        scores: Scores,
        already_done: bool,
        dataset_of: "Callable[[], Dataset]",
        file: str | None = None,
        content: str | None = None,
    ) -> None:
        """Judge complete scores, write `--out` and `--review`, record and report them.

        `dataset_of` returns the scored dataset, for its labels and images; `file` and `content` are
        the name and digest of an inbox's file.
        """
        config = self._config
        result = ScoreResult(scores, already_done, file=file)
        self.records.check(scores.schema)
        verdicts = self._judge(result)
        output = self._write_output(result, dataset_of)
        result = replace(result, output=output, verdicts=verdicts)
        dataset = None
        if file is None:
            dataset = str(choose_dataset(self.run, config.dataset, config.storage_options))
        self._write_review(result, dataset_of)
        is_new = self.records.add(result, dataset, content)
        self.result.results.append(result)
        _report(result)
        # In an inbox only new verdicts change the exit code: one alarm per file, not per night.
        if result.missed and (is_new or config.inbox is None):
            home = scores.schema.home
            missed = QualityGateError(f"{result.missed} The scores are published as {home}.")
            self.result.errors.append(missed)
            event(logger, "gate", "", missed=result.missed, result=str(scores.location))
        if file and config.gates.any and not verdicts:
            self.result.unjudged.append(file)
            event(logger, "unjudged", "", file=file)

    def _judge(self, result: ScoreResult) -> tuple[Verdict, ...]:
        """Return a verdict for each gate that can be judged."""
        gates, schema = self._config.gates, result.scores.schema
        if not gates.any:
            return ()
        before, drift, subject = None, result.drift, result.file or schema.split
        if gates.max_drift is not None and (drift is None or drift["score"] is None):
            why = "no drift is recorded" if drift is None else "it has too few rows"
            logger.info("--max-drift is not judged on %s: %s.", subject, why)
        if gates.max_drop is not None and result.accuracy is not None:
            before = self.records.accuracy_before(schema)
            if before is None and self._holder is not None:
                before = self._holder.accuracy
            if before is None:
                text = "--max-drop is not judged: there is no earlier accuracy of %s."
                logger.info(text, schema.split)
        subject = f"{subject} scored by {self.result.model_digest[:12]}"
        return gates.judge(result.accuracy, before, subject, drift)

    def _write_output(
        self, result: ScoreResult, dataset_of: "Callable[[], Dataset]"
    ) -> Location | None:
        config, schema = self._config, result.scores.schema
        file = config.output(schema.home, schema.split, result.file)
        if file is not None and self._is_due(file, result):
            write_output(
                file,
                result.scores,
                labels_of(dataset_of(), schema),
                all_probabilities=config.all_probabilities,
                columns=config.columns,
                source=result.file,
            )
        return file

    def _write_review(self, result: ScoreResult, dataset_of: "Callable[[], Dataset]") -> None:
        config, schema = self._config, result.scores.schema
        file = config.review_file(schema.home, schema.split, result.file)
        if file is None or not self._is_due(file, result):
            return
        from jobs.scoring.review import write_review

        below = DEFAULT_BELOW if config.below is None else config.below
        rows, uncertain = write_review(file, result.scores, dataset_of(), below, result.file)
        text = f"To review: {counted(uncertain, 'row')} below {below:g} in {file}"
        if rows < uncertain:
            text = f"To review: the {rows:,} least certain of {uncertain:,} rows in {file}"
        event(logger, "review", text, review=str(file), rows=rows, uncertain=uncertain)

    def _is_due(self, file: Location, result: ScoreResult) -> bool:
        """Return whether an output must be written: a split's each time, a file's once."""
        return result.file is None or not result.already_done or not file.is_object()


def _report(result: ScoreResult) -> None:
    rows, place, text = result.scores.schema.rows, str(result.scores.location), ""
    if result.file and not result.already_done:
        text = f"{result.file}: {counted(rows, 'row')} scored"
        if result.drift_text:
            text += f". {result.drift_text}"
    event(
        logger,
        FOUND if result.already_done else SCORED,
        text,
        split=result.scores.schema.split,
        file=result.file,
        rows=rows,
        seconds=result.seconds,
        rows_per_second=round(rows / result.seconds) if result.seconds else None,
        accuracy=result.accuracy,
        drift=result.drift_score,
        drift_text=result.drift_text,
        result=place,
        output=result.output and str(result.output),
    )
