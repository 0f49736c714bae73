"""The scoring job: splits or an inbox, each once, in this process or on a cluster.

What needs NumPy's and Dask's full weight is imported when something is found to be scored.
"""

import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from jobs.choices import DEFAULT_MODELS
from jobs.scoring.batch import ScoringJob
from jobs.scoring.config import ScoreConfig
from jobs.scoring.failed_items import INTERNAL_ERROR
from jobs.scoring.gates import Gates
from jobs.scoring.listener import LargestMemory, ScoreListener
from jobs.scoring.result import ScoreResult, ScoringResult
from jobs.scoring.retry import try_again
from jobs.signals import StopSignal
from storage.errors import InternalError, StoppedError, UsageError
from storage.files import as_pipeline_error
from storage.location import TakeOver
from storage.places import Place
from storage.scores import scoring_home

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster, OpenCluster

__all__ = ["ScoreResult", "run_batch", "score"]

Progress = Callable[[str, int, int], None]


def score(
    *,
    run: Place | None = None,
    dataset: Place | None = None,
    split: str = "test",
    checkpoint: str | None = None,
    model: str | None = None,
    models: Place = DEFAULT_MODELS,
    out: Place | None = None,
    all_probabilities: bool = False,
    threads: int = 0,
    wait: float = 0.0,
    take_over: TakeOver | None = None,
    gates: Gates | None = None,
    report: Progress = lambda stage, done, total: None,
    announce: Callable[[str], None] = lambda text: None,
    stop: StopSignal | None = None,
    cluster: "Cluster | None" = None,
) -> ScoreResult:
    """Score one split of a dataset with a checkpoint of a run, and record it in the ledger.

    The work is done by the workers of a `cluster` where one is given, to the same bits. The
    options are those of `ScoreConfig`, which can do more. What has been scored already is found
    and said so; what died is gone on with. Raises `UsageError`, `BadDataError`, `ConflictError`,
    `QualityGateError` where a gate is missed (the result is published all the same), or
    `StoppedError` after a signal.
    """
    config = ScoreConfig(
        run=run,
        dataset=dataset,
        splits=(split,),
        checkpoint=checkpoint,
        model=model,
        models=models,
        out=out,
        all_probabilities=all_probabilities,
        threads=threads,
        wait=wait,
        take_over=take_over,
        gates=gates or Gates(),
    )
    listener = _Calls(report, announce)
    batch = run_batch(config, listener=listener, stop=stop, cluster=lambda: cluster)
    if batch.error is not None:
        raise batch.error
    return batch.results[0]


class _Calls(ScoreListener):
    """Two functions as a listener."""

    def __init__(self, report: Progress, announce: Callable[[str], None]) -> None:
        self._report = report
        self._announce = announce

    def say(self, text: str) -> None:
        self._announce(text)

    def progress(self, stage: str, done: int, total: int) -> None:
        self._report(stage, done, total)


def run_batch(
    config: ScoreConfig,
    *,
    listener: ScoreListener | None = None,
    stop: StopSignal | None = None,
    cluster: "OpenCluster" = lambda: None,
) -> ScoringResult:
    """Score what the configuration asks for.

    Of several things each is tried, whatever becomes of the others: what went wrong is in the
    result's `errors`, and `ScoringResult.error` is what to end with. What stands in the way of all
    of them is raised: `UsageError`, `BadDataError`, `UnreachableError`, `StoppedError`.
    """
    listener, stop = listener or ScoreListener(), stop or StopSignal()
    if config.out is not None:
        _check_output(config)
    if config.inbox is not None:
        listener = LargestMemory(listener)

    def begin() -> ScoringJob:
        return ScoringJob(config, listener, stop, cluster)

    batch = try_again(
        begin, retries=config.retries, retry_wait=config.retry_wait, listener=listener, stop=stop
    )
    began = time.monotonic()
    listener.event(
        "started",
        run=str(batch.run.location),
        checkpoint=str(batch.checkpoint),
        model_digest=batch.model_digest,
    )
    if config.inbox is not None:
        from jobs.scoring.inbox import score_inbox

        score_inbox(batch)
    else:
        _score_splits(batch)
    listener.event("done", seconds=round(time.monotonic() - began, 3))
    return batch.result


def _check_output(config: ScoreConfig) -> None:
    """Refuse now what would fail once all is scored; raises `UsageError`."""
    from jobs.scoring.outputs import check_kind, check_place

    check_kind(str(config.out))
    for split in config.splits:
        file = config.output(scoring_home("", "", split), split)
        if file is not None:
            check_place(file)


def _score_splits(batch: ScoringJob) -> None:
    for split in dict.fromkeys(batch.config.splits):
        batch.stop.check("Stopped between two splits. Run the same command to go on.")
        try:
            batch.attempt(partial(batch.score_split, split))
        except (StoppedError, UsageError):
            raise
        except Exception as error:
            known, trace = as_pipeline_error(error), None
            if isinstance(known, UsageError):
                raise known from error
            if known is None:
                trace = "".join(traceback.format_exception(error))
                known = InternalError(
                    f"Split {split} could not be scored: {INTERNAL_ERROR}: "
                    f"{type(error).__name__}: {error}"
                )
            batch.result.errors.append(known)
            batch.listener.event(
                "failed",
                split=split,
                error=str(known),
                traceback=trace,
                text=trace,
                warning=True,
            )
