"""Record scorings, verdicts and an inbox's bad files in the run's ledger."""

import json
import logging
import traceback
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.scoring.result import INTERNAL_ERROR, SHOWN_NAMES, ScoreResult
from storage.errors import BadDataError, InternalError, PipelineError, QualityGateError, counted
from storage.events import event
from storage.ledger import FAILED, FAILED_EVENT, FOUND, JUDGED, SCORED, Entry, Ledger
from storage.runs import SCORES
from storage.scores import ScoresSchema

logger = logging.getLogger(__name__)


class Records:
    """Writes the ledger for one job."""

    def __init__(self, ledger: Ledger, model: Mapping[str, Any]) -> None:
        """`model` is added to each line: promoted name, digest, checkpoint, shifts, and runs."""
        self._ledger = ledger
        self._model = dict(model)
        self._bad: list[Entry] = []

    def check(self, schema: ScoresSchema) -> None:
        """Raise `LedgerError` if the lines of a scoring are damaged or missing."""
        self._ledger.entries(json.dumps(f"{SCORES}/{schema.home}"))

    def homes_of(self, content: str) -> Iterator[str]:
        """Yield the places of the scores of this content by the same model."""
        for line in self._ledger.entries(content):
            home = line.get("result")
            if line["model_digest"] == self._model["model_digest"] and isinstance(home, str):
                yield home

    def accuracy_before(self, schema: ScoresSchema) -> float | None:
        """Return the accuracy of the split's last other scoring that missed no gate."""
        before: float | None = None
        for line in self._ledger.entries(f'"split": "{schema.split}"'):
            if line["event"] != SCORED or line["split"] != schema.split:
                continue
            if line.get("result") == f"{SCORES}/{schema.home}":
                break
            if line["exit"] == 0 and line.get("accuracy") is not None:
                before = line["accuracy"]
        return before

    def add(self, result: ScoreResult, dataset: str | None, content: str | None) -> bool:
        """Record scores that have no line yet, and verdicts that changed.

        `content` is the digest of an inbox's file. Returns whether the verdict is new.
        """
        scored = self._entry(SCORED, result, dataset, content)
        home = json.dumps(scored["result"])
        if self._ledger.record(scored, _is_scored, home):
            return True
        if content is not None:
            self._ledger.record(
                self._entry(FOUND, result, dataset, content),
                lambda lines: any(line.get("content") == content for line in lines),
                home,
            )
        if not result.verdicts:
            return False
        judged = self._entry(JUDGED, result, dataset, content)
        return self._ledger.record(
            judged, lambda lines: _last_gates(lines) == judged["gates"], home
        )

    def _entry(
        self, name: str, result: ScoreResult, dataset: str | None, content: str | None
    ) -> Entry:
        schema, metrics = result.scores.schema, result.metrics
        quality = metrics["quality"] or {}
        began = None
        if result.seconds is not None:
            began = datetime.now(UTC) - timedelta(seconds=result.seconds)
        return {
            "event": name,
            "time": now(),
            "started": began and began.isoformat(timespec="milliseconds"),
            "seconds": float(metrics.get("seconds", 0.0)),
            "exit": QualityGateError.exit_code if result.missed else 0,
            "status": "below gate" if result.missed else "ok",
            **self._model,
            "dataset": dataset,
            "dataset_digest": schema.dataset_digest,
            "split": schema.split,
            "file": result.file,
            "content": content,
            "rows": schema.rows,
            "accuracy": quality.get("accuracy"),
            "cross_entropy": quality.get("cross_entropy"),
            "drift": result.drift_score,
            "drift_text": result.drift_text,
            "gates": [verdict.to_json() for verdict in result.verdicts],
            "result": f"{SCORES}/{schema.home}",
            "scores_digest": result.scores.digest,
        }

    def add_failure(
        self, inbox: str, name: str, content: str, error: str, bug: BaseException | None
    ) -> None:
        """Record a bad file, in the ledger once for each content.

        If its content is not known (""), the ledger has it once for each name and error. A `bug`
        is recorded with its traceback.
        """
        trace = "".join(traceback.format_exception(bug)) if bug else None
        entry: Entry = {
            "event": FAILED_EVENT,
            "time": now(),
            "exit": (InternalError if bug else BadDataError).exit_code,
            "status": "failed",
            **self._model,
            "inbox": inbox,
            "file": name,
            "content": content or name,
            "error": error,
        } | ({"traceback": trace} if trace else {})
        fields = ["event", "content", "model_digest"] + ([] if content else ["error"])
        self._ledger.put_failure(entry)
        self._ledger.record(
            entry,
            lambda lines: any(all(line.get(key) == entry[key] for key in fields) for line in lines),
            json.dumps(entry["content"]),
        )
        self._bad.append(entry)
        event(
            logger,
            "failed",
            (trace or "") + failure_text(name, error),
            logging.WARNING,
            file=name,
            error=error,
            traceback=trace,
        )

    def forget_failures(self, inbox: str, left: Collection[str]) -> None:
        """Delete the records of files that were repaired or removed, but not of those `left`."""
        bad = {(entry["content"], entry["model_digest"]) for entry in self._bad}
        for entry in self._ledger.failures():
            was_tried = entry.get("inbox") == inbox and entry.get("file") not in left
            if was_tried and (entry["content"], entry["model_digest"]) not in bad:
                self._ledger.delete_failure(entry)

    def failures(self) -> Iterator[PipelineError]:
        """Yield an error that names the bad files, and one that names files that hit a bug."""
        place = f"{self._ledger.location}/{FAILED}"
        for error_type, bug, remedy in (
            (BadDataError, "", " Repair these files, or exclude them with --exclude."),
            (InternalError, f" because of an {INTERNAL_ERROR}", ""),
        ):
            names = [str(bad["file"]) for bad in self._bad if bad["exit"] == error_type.exit_code]
            if names:
                yield error_type(
                    f"{counted(len(names), 'file')} of the inbox could not be scored{bug}: "
                    f"{', '.join(names[:SHOWN_NAMES])}. The errors are recorded in {place}.{remedy}"
                )


def now() -> str:
    """Return the current time, UTC in ISO 8601 to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _is_scored(lines: list[Entry]) -> bool:
    return any(line["event"] == SCORED for line in lines)


def _last_gates(lines: list[Entry]) -> Any:
    """Return the last verdict among a scoring's lines; None if there is none."""
    verdicts = [line["gates"] for line in lines if line["event"] in (SCORED, JUDGED)]
    return verdicts[-1] if verdicts else None


def failure_text(name: str, error: str) -> str:
    """Return a message that names the file only once: many errors begin with its name."""
    rest = error.removeprefix(f"{name}: ").removeprefix(f"{name} ")
    return f"{name}: not scored: {rest}"
