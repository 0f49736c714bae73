"""The scoring job: splits of a dataset, or an inbox, in this process or on a cluster."""

import logging
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs.scoring.config import ScoreConfig
from jobs.scoring.outputs import check_output
from jobs.scoring.result import INTERNAL_ERROR, ScoreResult, ScoringResult
from jobs.scoring.retry import Retry
from jobs.scoring.scorer import Scorer
from jobs.signals import StopSignal
from jobs.training.config import VALIDATION
from jobs.training.select_checkpoint import open_chosen_dataset
from storage.errors import (
    InternalError,
    StoppedError,
    UsageError,
    as_pipeline_error,
    did_you_mean,
)
from storage.events import Progress, event, no_progress
from storage.runs import Run
from storage.scores import scoring_home

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster, OpenCluster
    from storage.dataset import Dataset

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
        runs=list(dict.fromkeys(str(run.location) for run in result.runs)),
        checkpoint=result.checkpoint,
        model_digest=result.model_digest,
        average_shifts=result.average_shifts,
    )
    if config.inbox is not None:
        from jobs.scoring.inbox_job import score_inbox

        score_inbox(config.open(config.inbox), config, scorer, retry)
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
    trained = [run for run in scorer.result.runs if run.dataset_digest == dataset.digest]
    if split == "train" and trained:
        logger.warning(
            "The train split includes the rows that %s was trained on: its accuracy says nothing "
            "about new images.",
            trained[0].location,
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
