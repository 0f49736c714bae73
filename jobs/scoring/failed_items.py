"""What is bad in an inbox: recorded while it lies there, forgotten when it is mended or gone."""

import json
import traceback
from functools import partial

from jobs.scoring.batch import ScoringJob
from jobs.scoring.listener import now
from storage.errors import BadDataError, InternalError, PipelineError
from storage.ledger import FAILED, FAILED_EVENT, Entry

INTERNAL_ERROR = "internal error (please report it)"
SHOWN_NAMES = 10
"""More bad files than this are not named in the error."""


class Failures:
    """The bad files of one pass over an inbox."""

    def __init__(self, batch: ScoringJob, place: str) -> None:
        """`place` names the inbox in the ledger."""
        self._batch = batch
        self._place = place
        self._entries: list[Entry] = []

    def record(self, name: str, content: str, error: str, bug: BaseException | None = None) -> None:
        """Record a bad file: as it is now, and in the ledger, there once for each content.

        Without `content`, where not even that can be told, once for each name and error. A `bug`
        of ours that kept the file from being scored is recorded with its traceback.
        """
        batch = self._batch
        trace = None if bug is None else "".join(traceback.format_exception(bug))
        entry: Entry = {
            "event": FAILED_EVENT,
            "time": now(),
            "exit": (InternalError if bug else BadDataError).exit_code,
            "status": "failed",
            "model": batch.config.model,
            "model_digest": batch.model_digest,
            "checkpoint": str(batch.checkpoint),
            "inbox": self._place,
            "file": name,
            "content": content or name,
            "error": error,
        }
        if trace:
            entry["traceback"] = trace
        batch.ledger.put_failure(entry)
        batch.ledger.record(entry, partial(_same_failure, entry), json.dumps(entry["content"]))
        self._entries.append(entry)
        batch.result.failed.append({"file": name, "error": error})
        text = _told_once(name, error)
        batch.listener.event(
            "failed",
            file=name,
            error=error,
            traceback=trace,
            text=f"{trace}{text}" if trace else text,
            warning=True,
        )

    def sum_up(self) -> None:
        """At the end of the pass: forget what is bad no more, and have the job end in an error."""
        self._forget_what_is_bad_no_more()
        for error in (BadDataError, InternalError):
            files = [
                str(entry["file"]) for entry in self._entries if entry["exit"] == error.exit_code
            ]
            if files:
                self._batch.result.errors.append(self._summary(files, error))

    def _summary(self, files: list[str], error: type[PipelineError]) -> PipelineError:
        bug, way_out = "", " Mend these files, or leave them out with --exclude."
        if error is InternalError:
            bug, way_out = f", by an {INTERNAL_ERROR}", ""
        return error(
            f"{len(files):,} in the inbox could not be scored{bug}: "
            f"{', '.join(files[:SHOWN_NAMES])}. The error of each is recorded in "
            f"{self._batch.ledger.location}/{FAILED}; the others were scored.{way_out}"
        )

    def _forget_what_is_bad_no_more(self) -> None:
        """A bad file that was mended, or taken away, is history: the ledger has it."""
        bad = {(entry["content"], entry["model_digest"]) for entry in self._entries}
        left = {one["file"] for one in self._batch.result.left}
        for entry in self._batch.ledger.failures():
            here = entry.get("inbox") == self._place and entry.get("file") not in left
            if here and (entry["content"], entry["model_digest"]) not in bad:
                self._batch.ledger.delete_failure(entry)


def _told_once(name: str, error: str) -> str:
    """A line for people that names the file once: many an error begins with its name."""
    found = error.removeprefix(f"{name}: ")
    return f"Not scored: {found}" if found.startswith(name) else f"{name} is not scored: {found}"


def _same_failure(entry: Entry, lines: list[Entry]) -> bool:
    same = ["event", "content", "model_digest"]
    if entry["content"] == entry["file"]:
        same.append("error")
    return any(all(line.get(name) == entry[name] for name in same) for line in lines)
