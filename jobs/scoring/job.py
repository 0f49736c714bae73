"""The scoring job: splits of a dataset, or an inbox, in this process or on a cluster."""

import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from jobs.output import one_line
from jobs.scoring.config import ScoreConfig
from jobs.scoring.discover import Item, Selection
from jobs.scoring.outputs import check_output
from jobs.scoring.result import INTERNAL_ERROR, SHOWN_NAMES, ScoreResult, ScoringResult
from jobs.scoring.retry import Retry
from jobs.scoring.scorer import ModelError, Scorer
from jobs.signals import StopSignal
from jobs.training.config import VALIDATION
from jobs.training.select_checkpoint import open_chosen_dataset
from storage.errors import (
    BadDataError,
    InternalError,
    MissingExtraError,
    StoppedError,
    UnreachableError,
    UsageError,
    as_pipeline_error,
    did_you_mean,
)
from storage.events import Progress, event, no_progress
from storage.ledger import LedgerError, waiting_lock
from storage.location import Location
from storage.runs import Run
from storage.scores import scoring_home

if TYPE_CHECKING:
    from jobs.scoring.inbox import Arrival, Inbox
    from pipeline.cluster.client import Cluster, OpenCluster
    from storage.dataset import Dataset

__all__ = ["ScoreResult", "run_batch", "score"]

logger = logging.getLogger(__name__)


def score(
    *,
    split: str = "test",
    progress: Progress = no_progress,
    stop: StopSignal | None = None,
    cluster: "Cluster | None" = None,
    **options: Any,
) -> ScoreResult:
    """Score one split of a dataset with a checkpoint of a run, and record it in the ledger.

    Existing scores are returned unchanged; an interrupted scoring is continued.

    Parameters
    ----------
    split
        Name of the split to score.
    progress
        Called with the rows done; may raise to stop.
    stop
        Set by a signal handler to stop after the chunks in progress.
    cluster
        Dask cluster whose workers compute the scores, to the same bits.
    **options
        Fields of `ScoreConfig`, such as `run`, `dataset`, `checkpoint` and `out`.

    Raises
    ------
    UsageError
        If an option is invalid, or the model does not know a class of the dataset.
    BadDataError
        If the dataset, the checkpoint or the images do not fit, or are damaged.
    ConflictError
        If another job is scoring the same split.
    QualityGateError
        If a gate is missed; the scores are published anyway.
    UnreachableError
        If storage or the cluster cannot be used.
    StoppedError
        After a signal; finished chunks are kept.
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
    """Score the splits or the inbox that the configuration names.

    The others are scored despite an error in one split or file. The result's `errors` contains all
    errors, and `ScoringResult.error` the most severe. Errors that concern all splits or files are
    raised.

    Parameters
    ----------
    config
        What to score, with which model, and where to write it.
    progress
        Called with the rows done; may raise to stop.
    stop
        Set by a signal handler to stop after the chunks in progress.
    cluster
        Called when there is something to score; returns a Dask cluster or None.

    Raises
    ------
    UsageError
        If the configuration does not fit the run or the inbox.
    BadDataError
        If the run or its checkpoint is damaged.
    UnreachableError
        If the run, the inbox or the cluster cannot be used.
    StoppedError
        After a signal; finished scores are kept.
    """
    stop = stop or StopSignal()
    for split in config.splits:
        home = scoring_home("", "", split)
        file, review = config.output(home, split), config.review_file(home, split)
        if file is not None:
            check_output(file)
        if review is not None:
            from jobs.scoring.review import check_review

            check_review(review, file)
    retry = Retry(config.retries, config.retry_wait, stop)
    scorer = retry(lambda: Scorer(config, progress, stop, cluster))
    began = time.monotonic()
    result = scorer.result
    event(
        logger,
        "started",
        "",
        run=str(result.run.location),
        checkpoint=result.checkpoint,
        model_digest=result.model_digest,
        average_shifts=result.average_shifts,
    )
    if config.inbox is not None:
        _InboxJob(config, scorer, retry).run(config.open(config.inbox))
    else:
        _score_splits(config, scorer, retry)
    event(logger, "done", "", seconds=round(time.monotonic() - began, 3))
    return result


def _score_splits(config: ScoreConfig, scorer: Scorer, retry: Retry) -> None:
    for split in dict.fromkeys(config.splits):
        scorer.check_stop()
        try:
            retry(partial(_score_split, config, scorer, split))
        except (StoppedError, UsageError):
            raise
        except Exception as error:  # noqa: BLE001 - the other splits are scored all the same
            _fail_split(scorer.result, split, error)


def _score_split(config: ScoreConfig, scorer: Scorer, split: str) -> None:
    dataset = open_chosen_dataset(scorer.run, config.dataset, config.storage_options)
    _check_split(scorer.run, dataset, split)
    if config.gates.need_labels and not dataset.splits[split].schema.classes:
        raise UsageError(
            f"Split {split} has no labels, so its accuracy cannot be judged. Leave out "
            "--min-accuracy and --max-drop, or give a split with labels."
        )
    scorer.finish(*scorer.score(dataset, split), lambda: dataset)
    if split == "train" and dataset.digest == scorer.run.dataset_digest:
        logger.warning(
            "The train split includes the rows that %s was trained on: its accuracy says nothing "
            "about new images.",
            scorer.run.location,
        )


def _check_split(run: Run, dataset: "Dataset", split: str) -> None:
    """Raise `UsageError` for a split that the dataset does not have."""
    if split in dataset.splits:
        return
    held_out = run.configuration.get("holdout")
    if split == VALIDATION and held_out:
        raise UsageError(
            f"The run held out its last {held_out:,} training rows for validation; they are not a "
            f"split. `pipeline inspect {run.location}` shows their accuracy."
        )
    hint = did_you_mean(split, dataset.splits)
    if split == "test":
        hint += " `pipeline score --inbox DIRECTORY` scores images that arrive separately."
    raise UsageError(
        f"{dataset.location} has no split {split!r}; pass --split with one of: "
        f"{', '.join(dataset.splits)}.{hint}"
    )


def _fail_split(result: ScoringResult, split: str, error: Exception) -> None:
    failure, trace = as_pipeline_error(error), None
    if isinstance(failure, UsageError):
        raise failure from error
    if failure is None:
        trace = "".join(traceback.format_exception(error))
        failure = InternalError(
            f"Split {split} could not be scored: {INTERNAL_ERROR}: {type(error).__name__}: {error}"
        )
    result.errors.append(failure)
    facts = {"split": split, "error": str(failure), "traceback": trace}
    event(logger, "failed", trace or "", logging.WARNING, **facts)


class _InboxJob:
    """Scores the new files of an inbox."""

    def __init__(self, config: ScoreConfig, scorer: Scorer, retry: Retry) -> None:
        self._config = config
        self._scorer = scorer
        self._retry = retry
        self._result = scorer.result

    def run(self, location: Location) -> None:
        """Score each complete, new file of the inbox, under the inbox's lock.

        Raises `UnreachableError` if the inbox does not exist, `UsageError` if the job writes into
        it, and `ConflictError` if another job is working on it.
        """
        from jobs.scoring.inbox import SPLIT, Inbox, check_apart, check_directory, inbox_key

        config, scorer = self._config, self._scorer
        self._retry(lambda: check_directory(location))
        written = {"The run": scorer.run.location, "--out": config.output(SPLIT, SPLIT)}
        written["--review"] = config.review_file(SPLIT, SPLIT)
        check_apart(location, written)
        key, subject = inbox_key(location), f"The scoring of inbox {location}"
        lock_file = scorer.scores.child(f"{key}.lock")
        with waiting_lock(lock_file, subject, config.take_over, config.wait, scorer.wait) as lock:
            inbox = Inbox(location, scorer.scores.child(key), lock, scorer.check_stop)
            for item in self._discover(inbox):
                scorer.check_stop()
                reason = inbox.reason_to_leave(item)
                if reason is None:
                    self._score(inbox, item)
                else:
                    self._leave(item.name, reason)
            try:
                inbox.end()
            except UnreachableError as error:
                self._result.errors.append(error)
            left = {entry["file"] for entry in self._result.left}
            scorer.records.forget_failures(inbox.name, left)
            self._result.errors += scorer.records.failures()

    def _discover(self, inbox: "Inbox") -> list[Item]:
        """Return the candidates; report the files that are skipped or left for the next run."""
        config = self._config
        selection = Selection(config.include, config.exclude)
        classes = tuple(map(str, self._scorer.run.dataset.get("class_names") or ()))
        listing = self._retry(
            lambda: inbox.look(selection, classes, config.settle, self._retry.stop)
        )
        for name, reason in listing.left.items():
            self._leave(name, reason)
        if listing.skipped:
            more = len(listing.skipped) - SHOWN_NAMES
            names = ", ".join(listing.skipped[:SHOWN_NAMES])
            names += f" and {more:,} more" if more > 0 else ""
            event(
                logger, "skipped", f"Skipped because of their names: {names}", files=listing.skipped
            )
        for name, error in listing.unreachable.items():
            self._result.errors.append(error)
            self._leave(one_line(name), str(error))
        return listing.items

    def _leave(self, name: str, reason: str) -> None:
        self._result.left.append({"file": name, "reason": reason})
        event(logger, "left", f"{name}: left for the next run; {reason}", file=name, reason=reason)

    def _score(self, inbox: "Inbox", item: Item) -> None:
        from jobs.scoring.inbox import Arrival

        arrival = Arrival(item)
        with self._failures_recorded(inbox, arrival), ExitStack() as opened:
            self._retry(lambda: inbox.read(arrival, opened))
            for part in self._retry(lambda: self._parts(inbox, arrival)):
                with self._failures_recorded(inbox, part):
                    self._retry(partial(self._attempt, inbox, part))

    def _parts(self, inbox: "Inbox", arrival: "Arrival") -> "list[Arrival]":
        """Return an item's splits; files that were scored before are not opened."""
        if self._scorer.scored_before(arrival.content) is not None:
            return [arrival]
        return inbox.open(arrival, self._scorer.model, self._scorer.progress)

    @contextmanager
    def _failures_recorded(self, inbox: "Inbox", arrival: "Arrival") -> Iterator[None]:
        try:
            yield
        except (ModelError, LedgerError, StoppedError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic in Rust is no Exception
            self._fail(inbox, arrival, error)

    def _attempt(self, inbox: "Inbox", arrival: "Arrival") -> None:
        from jobs.scoring.inbox import SPLIT

        item, scorer = arrival.item, self._scorer

        @cache
        def dataset_of() -> "Dataset":
            take_over = self._config.take_over
            return inbox.dataset(arrival, scorer.model, scorer.progress, take_over)

        scores = scorer.scored_before(arrival.content)
        already_done = scores is not None
        if scores is None:
            scores, already_done = scorer.score(dataset_of(), item.split or SPLIT)
        scorer.finish(scores, already_done, dataset_of, item.name, arrival.content)
        inbox.remove_staged(arrival)

    def _fail(self, inbox: "Inbox", arrival: "Arrival", error: BaseException) -> None:
        """Record that an item could not be scored, unless it changed while it was being read."""
        failure, name = as_pipeline_error(error), arrival.item.name
        concerns_file = isinstance(failure, BadDataError | UsageError)
        if failure is not None and (not concerns_file or isinstance(failure, MissingExtraError)):
            self._result.errors.append(failure)
            self._leave(name, str(failure))
        elif inbox.has_changed(arrival.item):
            self._leave(name, "it changed or disappeared while it was being read")
        else:
            text = f"{INTERNAL_ERROR}: {type(error).__name__}: {error}"
            text = inbox.message(arrival, text if failure is None else str(failure))
            bug = error if failure is None else None
            self._scorer.records.add_failure(inbox.name, name, arrival.content, text, bug)
            self._result.failed.append({"file": name, "error": text})
