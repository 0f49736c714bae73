"""Score an inbox: read, score and record each complete, new file; record why others failed."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial

from jobs.output import one_line
from jobs.scoring.config import ScoreConfig
from jobs.scoring.discover import Item, Selection
from jobs.scoring.inbox import (
    SPLIT,
    Arrival,
    Inbox,
    check_apart,
    check_directory,
    inbox_key,
)
from jobs.scoring.result import INTERNAL_ERROR, SHOWN_NAMES
from jobs.scoring.retry import Retry
from jobs.scoring.scorer import ModelError, Scorer
from storage.dataset import Dataset
from storage.errors import (
    BadDataError,
    MissingExtraError,
    StoppedError,
    UnreachableError,
    UsageError,
    as_pipeline_error,
)
from storage.events import event
from storage.ledger import LedgerError, waiting_lock
from storage.location import Location

logger = logging.getLogger(__name__)


def score_inbox(location: Location, config: ScoreConfig, scorer: Scorer, retry: Retry) -> None:
    """Score each complete, new file of an inbox, under the inbox's lock.

    The scorer's result collects the outcome. Raises `UnreachableError` if the inbox does not exist,
    `UsageError` if the job writes into it, and `ConflictError` if another job is working on it.
    """
    retry(lambda: check_directory(location))
    written = {"The run": scorer.run.location, "--out": config.output(SPLIT, SPLIT)}
    written["--review"] = config.review_file(SPLIT, SPLIT)
    check_apart(location, written)
    key, subject = inbox_key(location), f"The scoring of inbox {location}"
    lock_file = scorer.scores.child(f"{key}.lock")
    with waiting_lock(lock_file, subject, config.take_over, config.wait, scorer.wait) as lock:
        inbox = Inbox(location, scorer.scores.child(key), lock, scorer.check_stop)
        _InboxPass(inbox, config, scorer, retry).run()


class _InboxPass:
    """Scores the items of an inbox, for the holder of its lock."""

    def __init__(self, inbox: Inbox, config: ScoreConfig, scorer: Scorer, retry: Retry) -> None:
        self._inbox = inbox
        self._config = config
        self._scorer = scorer
        self._retry = retry
        self._result = scorer.result

    def run(self) -> None:
        inbox, scorer = self._inbox, self._scorer
        for item in self._discover():
            scorer.check_stop()
            reason = inbox.reason_to_leave(item)
            if reason is None:
                self._score(item)
            else:
                self._leave(item.name, reason)
        try:
            inbox.end()
        except UnreachableError as error:
            self._result.errors.append(error)
        left = {entry["file"] for entry in self._result.left}
        scorer.records.forget_failures(inbox.name, left)
        self._result.errors += scorer.records.failures()

    def _discover(self) -> list[Item]:
        """Return the candidates; report the files that are skipped or left for the next run."""
        config = self._config
        selection = Selection(config.include, config.exclude)
        classes = tuple(map(str, self._scorer.run.dataset.get("class_names") or ()))
        listing = self._retry(
            lambda: self._inbox.look(selection, classes, config.settle, self._retry.stop)
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

    def _score(self, item: Item) -> None:
        arrival = Arrival(item)
        with self._failures_recorded(arrival), ExitStack() as opened:
            self._retry(lambda: self._inbox.read(arrival, opened))
            for part in self._retry(lambda: self._parts(arrival)):
                with self._failures_recorded(part):
                    self._retry(partial(self._attempt, part))

    def _parts(self, arrival: Arrival) -> list[Arrival]:
        """Return an item's splits; files that were scored before are not opened."""
        if self._scorer.scored_before(arrival.content) is not None:
            return [arrival]
        return self._inbox.open(arrival, self._scorer.model, self._scorer.progress)

    @contextmanager
    def _failures_recorded(self, arrival: Arrival) -> Iterator[None]:
        try:
            yield
        except (ModelError, LedgerError, StoppedError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic in Rust is no Exception
            self._fail(arrival, error)

    def _attempt(self, arrival: Arrival) -> None:
        item, scorer = arrival.item, self._scorer

        @cache
        def dataset_of() -> Dataset:
            take_over = self._config.take_over
            return self._inbox.dataset(arrival, scorer.model, scorer.progress, take_over)

        scores = scorer.scored_before(arrival.content)
        already_done = scores is not None
        if scores is None:
            scores, already_done = scorer.score(dataset_of(), item.split or SPLIT)
        scorer.finish(scores, already_done, dataset_of, item.name, arrival.content)
        self._inbox.remove_staged(arrival)

    def _fail(self, arrival: Arrival, error: BaseException) -> None:
        """Record that an item could not be scored, unless it changed while it was being read."""
        inbox, name = self._inbox, arrival.item.name
        failure = as_pipeline_error(error)
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
