"""The batch job: score splits or an inbox, once each, judge them, record them, write them out.

What needs NumPy's and Dask's full weight is imported when something is found to be scored.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.choices import DEFAULT_CHECKPOINT, DEFAULT_RUN
from jobs.scoring.config import ScoreConfig
from jobs.scoring.listener import ScoreListener, now
from jobs.scoring.result import ScoreResult, ScoringResult, open_scored
from jobs.scoring.retry import try_again
from jobs.signals import StopSignal
from jobs.training.select_checkpoint import choose_checkpoint, choose_dataset, open_chosen_dataset
from storage.checkpoints import Checkpoint
from storage.errors import (
    BadDataError,
    QualityGateError,
    UsageError,
)
from storage.ledger import FOUND, JUDGED, SCORED, Entry, Ledger
from storage.location import Location
from storage.models import Holder, held_name
from storage.places import Place
from storage.runs import SCORES, open_run
from storage.scores import is_complete, scoring_home

if TYPE_CHECKING:
    from jobs.training.model import Model
    from pipeline.cluster.client import OpenCluster
    from storage.dataset import Dataset

Result = TypeVar("Result")


class ModelError(BadDataError):
    """The model cannot be used: no fault of what was to be scored."""


class ScoringJob:
    """One batch job at work: the run, its model and ledger, and what has been scored so far."""

    def __init__(
        self,
        config: ScoreConfig,
        listener: ScoreListener,
        stop: StopSignal,
        cluster: "OpenCluster",
    ) -> None:
        """Finds the model; raises as `open_run` and `choose_checkpoint` do."""
        self.config = config
        self.listener = listener
        self.stop = stop
        self._cluster = cluster
        self.holder: Holder | None = None
        run, choice = self._named()
        self.run = open_run(config.open(run))
        checkpoint, warnings = choose_checkpoint(self.run, choice)
        self.checkpoint = checkpoint.name
        self._chosen: Checkpoint | None = checkpoint
        """Kept until the model is made of it: a training may prune it by then."""
        self.model_digest = checkpoint.parameters_digest
        self._check_holder()
        for warning in warnings:
            listener.warn(warning)
        self.ledger = Ledger(self.run.location, config.take_over)
        self.result = ScoringResult(
            self.run, self.model_digest, str(self.checkpoint), warnings=warnings
        )
        self._model: Model | None = None

    def _named(self) -> tuple[Place, str]:
        """The run, and which of its checkpoints."""
        if self.config.model is None:
            choice = self.config.checkpoint
            return self.config.run or DEFAULT_RUN, DEFAULT_CHECKPOINT if choice is None else choice
        name, self.holder = held_name(self.config.open(self.config.models), self.config.model)
        return name.run_place(self.holder), self.holder.checkpoint

    def _check_holder(self) -> None:
        """Never another model than the one that was promoted."""
        if self.holder is None:
            return
        found = (self.run.run_id, self.model_digest)
        if found != (self.holder.run_id, self.holder.model_digest):
            raise BadDataError(
                f"{self.config.model} is model {self.holder.model_digest}; checkpoint "
                f"{self.checkpoint} of {self.run.location} is now {self.model_digest}: the run was "
                "replaced. Restore it, or promote another."
            )

    def load_model(self) -> "Model":
        """The model, read when it is first needed. Raises `ModelError` where it cannot be."""
        if self._model is None:
            from jobs.training.model import model_of

            assert self._chosen is not None
            try:
                self._model = model_of(self.run, self._chosen)
            except BadDataError as error:
                raise ModelError(str(error)) from error
            self._chosen = None
        return self._model

    def attempt(self, work: Callable[[], Result]) -> Result:
        """Do it, as often as is allowed where something is out of reach."""
        config = self.config
        return try_again(
            work,
            retries=config.retries,
            retry_wait=config.retry_wait,
            listener=self.listener,
            stop=self.stop,
        )

    def score_split(self, split: str) -> ScoreResult:
        """Score a split of the dataset, or find it scored; record, judge and write it."""
        dataset = open_chosen_dataset(self.run, self.config.dataset, self.config.storage_options)
        if self.config.gates.any and split in dataset.splits:
            _check_labels(split, bool(dataset.splits[split].schema.classes))
        return self.settle(self.make(dataset, split))

    def _dataset_location(self) -> Location:
        return choose_dataset(self.run, self.config.dataset, self.config.storage_options)

    def make(self, dataset: "Dataset", split: str) -> ScoreResult:
        """Score a split of an open dataset, or find it scored."""
        home = self.run.location.child(
            f"{SCORES}/{scoring_home(self.model_digest, dataset.digest, split)}"
        )
        if is_complete(home):
            return ScoreResult(open_scored(home), already_done=True)
        from jobs.scoring.outputs import output_memory
        from jobs.scoring.split import make_scores

        return make_scores(
            self.run,
            self.load_model(),
            dataset,
            split,
            threads=self.config.threads,
            wait=self.config.wait,
            take_over=self.config.take_over,
            listener=self.listener,
            stop=self.stop,
            cluster=self._cluster,
            output_memory=output_memory(str(self.config.out)),
        )

    def settle(self, result: ScoreResult, content: str | None = None) -> ScoreResult:
        """Judge a complete scoring, record it unless that is done, and write its file."""
        home = result.scores.schema.home
        of_home = f'"{SCORES}/{home}"'
        self.ledger.entries(of_home)  # a damaged ledger is told of before anything is written
        verdicts = self._judge(result)
        result = replace(result, verdicts=verdicts, warnings=self.result.warnings)
        output = self._write_output(result)
        result = replace(result, output=output)
        is_new = self._record(result, content, of_home)
        self.result.results.append(result)
        self._tell(result)
        # Of an inbox's old files only what is new ends the night: the alarm is for the next one.
        if result.missed and (is_new or self.config.inbox is None):
            self.result.errors.append(
                QualityGateError(f"{result.missed} The scores are published as {home}.")
            )
            self.listener.event("gate", missed=result.missed, result=str(result.scores.location))
        if result.file and self.config.gates.any and not verdicts:
            self.result.unjudged.append(result.file)
            self.listener.event("unjudged", file=result.file)
        return result

    def _judge(self, result: ScoreResult) -> Any:
        gates, schema = self.config.gates, result.scores.schema
        if not gates.any:
            return ()
        what = f"{result.file or schema.split} scored by {self.model_digest[:12]}"
        if result.accuracy is None:
            if self.config.inbox is None:
                _check_labels(schema.split, labelled=False)
            return ()
        before = None if gates.max_drop is None else self._accuracy_before(result)
        if gates.max_drop is not None and before is None:
            self.listener.say(
                f"--max-drop is not judged: no accuracy of {schema.split} is known from before."
            )
        return gates.judge(result.accuracy, before, what)

    def _accuracy_before(self, result: ScoreResult) -> float | None:
        """That of the last scoring of the same split that missed no gate, else the promotion's."""
        schema = result.scores.schema
        place = f"{SCORES}/{schema.home}"
        before: float | None = None
        for line in self.ledger.entries(f'"split": "{schema.split}"'):
            if line.get("result") == place and line["event"] == SCORED:
                break
            passed = line["event"] == SCORED and line["exit"] == 0 and line["split"] == schema.split
            if passed and line.get("accuracy") is not None:
                before = line["accuracy"]
        if before is None and self.holder is not None:
            return self.holder.accuracy
        return before

    def _record(self, result: ScoreResult, content: str | None, of_home: str) -> bool:
        """A line for the scoring, whoever published it; one more where the verdict has changed.

        Returns whether the verdict is new.
        """
        scored = self._entry(SCORED, result, content)
        if self.ledger.record(scored, lambda lines: _has(lines, SCORED), of_home):
            return True
        if content is not None:
            found = self._entry(FOUND, result, content)
            self.ledger.record(found, lambda lines: _of_content(lines, content), of_home)
        if not result.verdicts:
            return False
        judged = self._entry(JUDGED, result, content)
        return self.ledger.record(judged, lambda lines: _same_verdict(lines, judged), of_home)

    def _entry(self, event: str, result: ScoreResult, content: str | None) -> Entry:
        schema, metrics = result.scores.schema, result.metrics
        quality = metrics["quality"] or {}
        seconds = float(metrics.get("seconds", 0.0))
        # Of what another job scored, perhaps one that died, it is not known.
        began = None if result.already_done else datetime.now(UTC) - timedelta(seconds=seconds)
        return {
            "event": event,
            "time": now(),
            "started": began and began.isoformat(timespec="milliseconds"),
            "seconds": seconds,
            "exit": QualityGateError.exit_code if result.missed else 0,
            "status": "below gate" if result.missed else "ok",
            "model": self.config.model,
            "model_digest": self.model_digest,
            "checkpoint": str(self.checkpoint),
            "dataset": None if result.file else str(self._dataset_location()),
            "dataset_digest": schema.dataset_digest,
            "split": schema.split,
            "file": result.file,
            "content": content,
            "rows": schema.rows,
            "accuracy": quality.get("accuracy"),
            "cross_entropy": quality.get("cross_entropy"),
            "gates": [verdict.to_json() for verdict in result.verdicts],
            "result": f"{SCORES}/{schema.home}",
            "scores_digest": result.scores.digest,
        }

    def _write_output(self, result: ScoreResult) -> Location | None:
        schema = result.scores.schema
        file = self.config.output(schema.home, schema.split)
        if file is None:
            return None
        from jobs.scoring.outputs import output_exists, write_output

        # A file of an inbox was written when it was scored; a split's is asked for each time.
        if not (self.config.inbox and result.already_done and output_exists(file)):
            write_output(file, result.scores, all_probabilities=self.config.all_probabilities)
        return file

    def _tell(self, result: ScoreResult) -> None:
        schema = result.scores.schema
        seconds = None if result.already_done else float(result.metrics.get("seconds", 0.0))
        text = None
        if result.file and not result.already_done:
            text = f"{result.file}: {schema.rows:,} rows are in {result.scores.location}"
        self.listener.event(
            FOUND if result.already_done else SCORED,
            split=schema.split,
            file=result.file,
            rows=schema.rows,
            seconds=seconds,
            rows_per_second=round(schema.rows / seconds) if seconds else None,
            accuracy=result.accuracy,
            result=str(result.scores.location),
            output=result.output and str(result.output),
            text=text,
        )


def _check_labels(split: str, labelled: bool) -> None:
    if not labelled:
        raise UsageError(
            f"Split {split} has no labels, so no gate can be judged on it. Leave out "
            "--min-accuracy and --max-drop, or give a split with labels."
        )


def _has(lines: list[Entry], event: str) -> bool:
    return any(line["event"] == event for line in lines)


def _of_content(lines: list[Entry], content: str) -> bool:
    return any(line.get("content") == content for line in lines)


def _same_verdict(lines: list[Entry], judged: Entry) -> bool:
    """Whether the last verdict on a scoring is the same as this one."""
    verdicts = [line["gates"] for line in lines if line["event"] in (SCORED, JUDGED)]
    return bool(verdicts) and bool(verdicts[-1] == judged["gates"])
