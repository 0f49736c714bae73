"""The scoring job: splits or an inbox, each once, in this process or on a cluster.

What needs NumPy's and Dask's full weight is imported when something is found to be scored.
"""

import logging
import time
import traceback
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from jobs.choices import DEFAULT_CHECKPOINT, DEFAULT_RUN
from jobs.output import one_line
from jobs.scoring.config import ScoreConfig
from jobs.scoring.discover import Item, Selection
from jobs.scoring.gates import Verdict
from jobs.scoring.metrics import open_scored
from jobs.scoring.outputs import check_output, output_exists, output_memory, write_output
from jobs.scoring.records import Records
from jobs.scoring.result import INTERNAL_ERROR, SHOWN_NAMES, ScoreResult, ScoringResult
from jobs.scoring.retry import POLL_SECONDS, Attempts, pause
from jobs.signals import StopSignal
from jobs.training.select_checkpoint import choose_checkpoint, choose_dataset, open_chosen_dataset
from storage.checkpoints import Checkpoint
from storage.errors import (
    BadDataError,
    ConflictError,
    InternalError,
    QualityGateError,
    StoppedError,
    UnreachableError,
    UsageError,
)
from storage.events import Progress, event, no_progress
from storage.files import as_pipeline_error
from storage.ledger import FOUND, SCORED, Ledger, LedgerError, waiting_lock
from storage.location import Location
from storage.models import Holder, held_name
from storage.places import Place
from storage.runs import SCORES, open_run
from storage.scores import Scores, is_complete, scoring_home

if TYPE_CHECKING:
    from jobs.scoring.inbox import Arrival, Inbox
    from jobs.training.model import Model
    from pipeline.cluster.client import Cluster, OpenCluster
    from storage.dataset import Dataset

__all__ = ["ScoreResult", "run_batch", "score"]

logger = logging.getLogger(__name__)


class ModelError(BadDataError):
    """The model cannot be used: no fault of what was to be scored."""


def score(
    *,
    split: str = "test",
    progress: Progress = no_progress,
    stop: StopSignal | None = None,
    cluster: "Cluster | None" = None,
    **options: Any,
) -> ScoreResult:
    """Score one split of a dataset with a checkpoint of a run, and record it in the ledger.

    The work is done by the workers of a `cluster` where one is given, to the same bits. The
    `options`, such as `run`, `dataset`, `checkpoint` and `out`, are the fields of `ScoreConfig`. A
    split that has been scored already is found; a scoring that died is continued. Raises
    `UsageError`, `BadDataError`, `ConflictError`, `QualityGateError` where a gate is missed (the
    result is published all the same), or `StoppedError` after a signal.
    """
    config = ScoreConfig(splits=(split,), **options)
    result = run_batch(config, progress=progress, stop=stop, cluster=lambda: cluster)
    if result.error is not None:
        raise result.error
    return result.results[0]


def run_batch(
    config: ScoreConfig,
    *,
    progress: Progress = no_progress,
    stop: StopSignal | None = None,
    cluster: "OpenCluster" = lambda: None,
) -> ScoringResult:
    """Score what the configuration asks for.

    Of several things each is tried, whatever becomes of the others: what went wrong is in the
    result's `errors`, and `ScoringResult.error` is what to end with. What stands in the way of all
    of them is raised: `UsageError`, `BadDataError`, `UnreachableError`, `StoppedError`.
    """
    stop = stop or StopSignal()
    for split in config.splits:
        file = config.output(scoring_home("", "", split), split)
        if file is not None:
            check_output(file)
    for attempt in Attempts(config.retries, config.retry_wait, stop):
        with attempt:
            job = ScoringJob(config, progress, stop, cluster)
    began = time.monotonic()
    result = job.result
    event(
        logger,
        "started",
        "",
        run=str(result.run.location),
        checkpoint=result.checkpoint,
        model_digest=result.model_digest,
    )
    if config.inbox is not None:
        job.score_inbox(config.open(config.inbox))
    else:
        job.score_splits()
    event(logger, "done", "", seconds=round(time.monotonic() - began, 3))
    return result


class ScoringJob:
    """What a job scores, with which model, and what has come of it so far."""

    def __init__(
        self, config: ScoreConfig, progress: Progress, stop: StopSignal, cluster: "OpenCluster"
    ) -> None:
        """Find the model; raise as `open_run` and `choose_checkpoint` do."""
        self._config = config
        self._progress_callback = progress
        self._stop = stop
        self._cluster = cluster
        self._holder: Holder | None = None
        place, choice = self._named()
        self._run = open_run(config.open(place))
        self._scores = self._run.location.child(SCORES)
        checkpoint, warnings = choose_checkpoint(self._run, choice)
        self._checkpoint: Checkpoint | None = checkpoint
        """Kept until the model is made of it: a training may prune it by then."""
        self._model_made: Model | None = None
        self.result = ScoringResult(self._run, checkpoint.parameters_digest, str(checkpoint.name))
        self._check_holder()
        for warning in warnings:
            logger.warning("%s", warning)
        self._records = Records(
            Ledger(self._run.location, config.take_over),
            {
                "model": config.model,
                "model_digest": self.result.model_digest,
                "checkpoint": self.result.checkpoint,
            },
        )
        self._waited_for = ""

    def _named(self) -> tuple[Place, str]:
        """Return the run, and which of its checkpoints."""
        config = self._config
        if config.model is None:
            # An empty checkpoint is no default: a script's variable may be unset.
            choice = DEFAULT_CHECKPOINT if config.checkpoint is None else config.checkpoint
            return config.run or DEFAULT_RUN, choice
        name, self._holder = held_name(config.open(config.models), config.model)
        return name.run_place(self._holder), self._holder.checkpoint

    def _check_holder(self) -> None:
        """Refuse another model than the one that was promoted."""
        holder, digest = self._holder, self.result.model_digest
        if holder is None or (self._run.run_id, digest) == (holder.run_id, holder.model_digest):
            return
        raise BadDataError(
            f"{self._config.model} is model {holder.model_digest}; checkpoint "
            f"{self.result.checkpoint} of {self._run.location} is now {digest}: the run was "
            "replaced. Restore it, or promote another."
        )

    def _model(self) -> "Model":
        """Return the model, made when it is first needed. Raises `ModelError`."""
        if self._model_made is None:
            from jobs.training.model import model_of

            assert self._checkpoint is not None
            try:
                self._model_made = model_of(self._run, self._checkpoint)
            except BadDataError as error:
                raise ModelError(str(error)) from error
            self._checkpoint = None
        return self._model_made

    def _attempts(self) -> Attempts:
        return Attempts(self._config.retries, self._config.retry_wait, self._stop)

    def _check_stop(self) -> None:
        self._stop.check(
            "Stopped; what was scored so far is kept. Run the same command to continue."
        )

    def _progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._progress_callback(stage, done, total, note)
        self._check_stop()

    def _wait(self, conflict: ConflictError) -> None:
        """Wait a moment for another job, which is told once."""
        if str(conflict) != self._waited_for:
            self._waited_for = str(conflict)
            seconds = self._config.wait
            event(logger, "waiting", f"Waiting: {conflict}", seconds=seconds)
        pause(min(POLL_SECONDS, self._config.wait), self._stop)

    def score_splits(self) -> None:
        """Score each split of the dataset that the configuration names."""
        for split in dict.fromkeys(self._config.splits):
            self._check_stop()
            try:
                for attempt in self._attempts():
                    with attempt:
                        self._score_split(split)
            except (StoppedError, UsageError):
                raise
            except Exception as error:  # noqa: BLE001 - the other splits are scored all the same
                self._fail_split(split, error)

    def _score_split(self, split: str) -> None:
        config = self._config
        dataset = open_chosen_dataset(self._run, config.dataset, config.storage_options)
        unlabelled = [name for name, one in dataset.splits.items() if not one.schema.classes]
        if config.gates.any and split in unlabelled:
            raise UsageError(
                f"Split {split} has no labels, so no gate can be judged on it. Leave out "
                "--min-accuracy and --max-drop, or give a split with labels."
            )
        self._finish(*self._scored(dataset, split))

    def _fail_split(self, split: str, error: Exception) -> None:
        known, trace = as_pipeline_error(error), None
        if isinstance(known, UsageError):
            raise known from error
        if known is None:
            trace = "".join(traceback.format_exception(error))
            known = InternalError(
                f"Split {split} could not be scored: {INTERNAL_ERROR}: "
                f"{type(error).__name__}: {error}"
            )
        self.result.errors.append(known)
        facts = {"split": split, "error": str(known), "traceback": trace}
        event(logger, "failed", trace or "", logging.WARNING, **facts)

    def score_inbox(self, location: Location) -> None:
        """Score everything in an inbox that is whole and new, under the inbox's lock.

        Raises `UnreachableError` where there is no inbox, `UsageError` where what the job itself
        writes would arrive in it, and `ConflictError` that names the job that is at work on it.
        """
        from jobs.scoring.inbox import SPLIT, Inbox, check_apart, check_directory, inbox_key

        config = self._config
        for attempt in self._attempts():
            with attempt:
                check_directory(location)
        written = {"The run": self._run.location, "--out": config.output(SPLIT, SPLIT)}
        check_apart(location, written)
        key, what = inbox_key(location), f"The scoring of inbox {location}"
        lock_file = self._scores.child(f"{key}.lock")
        with waiting_lock(lock_file, what, config.take_over, config.wait, self._wait) as lock:
            inbox = Inbox(location, self._scores.child(key), lock, self._check_stop)
            for item in self._look(inbox):
                self._check_stop()
                reason = inbox.reason_to_leave(item)
                if reason is None:
                    self._score_item(inbox, item)
                else:
                    self._leave(item.name, reason)
            try:
                inbox.end()
            except UnreachableError as error:
                self.result.errors.append(error)
            self._records.forget_failures(inbox.name, {one["file"] for one in self.result.left})
            self.result.errors += self._records.failures()

    def _look(self, inbox: "Inbox") -> list[Item]:
        """Return what may be scored; report what is not."""
        config = self._config
        selection = Selection(config.include, config.exclude)
        for attempt in self._attempts():
            with attempt:
                found = inbox.look(selection, config.settle, self._stop)
        for name, reason in found.left.items():
            self._leave(name, reason)
        if found.skipped:
            more = len(found.skipped) - SHOWN_NAMES
            names = ", ".join(found.skipped[:SHOWN_NAMES]) + (f" and {more:,} more" * (more > 0))
            text = f"skipped, not data by name: {names}"
            event(logger, "skipped", text, files=found.skipped)
        for name, error in found.unreachable.items():
            self.result.errors.append(error)
            self._leave(one_line(name), str(error))
        return found.items

    def _leave(self, name: str, reason: str) -> None:
        self.result.left.append({"file": name, "reason": reason})
        event(logger, "left", f"{name}: left for the next run; {reason}", file=name, reason=reason)

    def _score_item(self, inbox: "Inbox", item: Item) -> None:
        from jobs.scoring.inbox import SPLIT, Arrival

        arrival = Arrival(item)
        try:
            for attempt in self._attempts():
                with attempt, ExitStack() as opened:
                    inbox.read(arrival, opened)
                    scores = self._scored_before(arrival.content)
                    already_done = scores is not None
                    if scores is None:
                        take_over = self._config.take_over
                        dataset = inbox.dataset(arrival, self._model(), self._progress, take_over)
                        scores, already_done = self._scored(dataset, item.split or SPLIT)
                    self._finish(scores, already_done, item.name, arrival.content)
                    inbox.remove_staged(arrival)
        except (ModelError, LedgerError, StoppedError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - Rust's panics too keep no other waiting
            self._fail_item(inbox, arrival, error)

    def _fail_item(self, inbox: "Inbox", arrival: "Arrival", error: BaseException) -> None:
        """Record that an item could not be scored, unless it changed while it was being read."""
        known, name = as_pipeline_error(error), arrival.item.name
        if known is not None and not isinstance(known, BadDataError | UsageError):
            self.result.errors.append(known)
            self._leave(name, str(known))
        elif inbox.has_changed(arrival.item):
            self._leave(name, "it changed or disappeared while it was being read")
        else:
            text = f"{INTERNAL_ERROR}: {type(error).__name__}: {error}"
            text = inbox.message(arrival, text if known is None else str(known))
            bug = error if known is None else None
            self._records.add_failure(inbox.name, name, arrival.content, text, bug)
            self.result.failed.append({"file": name, "error": text})

    def _scored_before(self, content: str) -> Scores | None:
        """Return what the ledger knows of the content, where it is still there."""
        for home in self._records.homes_of(content):
            location = self._run.location.child(home)
            if is_complete(location):
                return open_scored(location)
        return None

    def _scored(self, dataset: "Dataset", split: str) -> tuple[Scores, bool]:
        """Return the scores of a split, and whether they were found: scored already."""
        name = scoring_home(self.result.model_digest, dataset.digest, split)
        if is_complete(self._scores.child(name)):
            return open_scored(self._scores.child(name)), True
        from jobs.scoring.split import score_split

        config = self._config
        return score_split(
            self._scores,
            self._model(),
            dataset,
            split,
            threads=config.threads,
            take_over=config.take_over,
            wait=config.wait,
            pause=self._wait,
            progress=self._progress,
            cluster=self._cluster,
            output_memory=output_memory(str(config.out)),
        )

    def _finish(
        self,
        scores: Scores,
        already_done: bool,
        file: str | None = None,
        content: str | None = None,
    ) -> None:
        """Judge a complete scoring, write its file, record and report it."""
        self._records.check(scores.schema)
        verdicts = self._judge(scores, file)
        output = self._write_output(scores, already_done)
        result = ScoreResult(scores, already_done, output, file, verdicts)
        config = self._config
        dataset = None
        if file is None:
            dataset = str(choose_dataset(self._run, config.dataset, config.storage_options))
        is_new = self._records.add(result, dataset, content)
        self.result.results.append(result)
        self._report(result)
        # Only new verdicts end an inbox's run: a bad file raises one alarm, not one per night.
        if result.missed and (is_new or config.inbox is None):
            home = scores.schema.home
            missed = QualityGateError(f"{result.missed} The scores are published as {home}.")
            self.result.errors.append(missed)
            event(logger, "gate", "", missed=result.missed, result=str(scores.location))
        if file and config.gates.any and not verdicts:
            self.result.unjudged.append(file)
            event(logger, "unjudged", "", file=file)

    def _judge(self, scores: Scores, file: str | None) -> tuple[Verdict, ...]:
        """Return the verdict of each gate; none where there are no labels."""
        gates, schema = self._config.gates, scores.schema
        accuracy = ScoreResult(scores, already_done=True).accuracy
        if not gates.any or accuracy is None:
            return ()
        before = None
        if gates.max_drop is not None:
            before = self._records.accuracy_before(schema)
            if before is None and self._holder is not None:
                before = self._holder.accuracy
            if before is None:
                logger.info(
                    "--max-drop is not judged: no accuracy of %s is known from before.",
                    schema.split,
                )
        what = f"{file or schema.split} scored by {self.result.model_digest[:12]}"
        return gates.judge(accuracy, before, what)

    def _write_output(self, scores: Scores, already_done: bool) -> Location | None:
        config, schema = self._config, scores.schema
        file = config.output(schema.home, schema.split)
        if file is None:
            return None
        # A file of an inbox was written when it was scored; a split's is asked for each time.
        if not (config.inbox is not None and already_done and output_exists(file)):
            write_output(file, scores, all_probabilities=config.all_probabilities)
        return file

    def _report(self, result: ScoreResult) -> None:
        rows, place, text = result.scores.schema.rows, str(result.scores.location), ""
        if result.file and not result.already_done:
            text = f"{result.file}: {rows:,} rows are in {place}"
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
            result=place,
            output=result.output and str(result.output),
        )
