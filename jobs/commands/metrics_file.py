"""The file of --metrics-file: what node_exporter's textfile collector publishes about a job.

It is written when a command ends, however it ends, and after each job of a schedule. A killed
process cannot write: then the time of the last success grows old.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from jobs.commands.logs import attached
from storage.errors import (
    MissingExtraError,
    PipelineError,
    RestartError,
    UnreachableError,
    UsageError,
    exit_code_of,
)
from storage.files import file_to_write
from storage.places import open_location

logger = logging.getLogger(__name__)

FILE_BYTES = 2**20
"""A larger file is not one of these."""
LAST_SUCCESS = "last_success_timestamp_seconds"
MEANINGS = {
    "exit_code": "Exit code of the last run.",
    "last_run_timestamp_seconds": "When the last run ended.",
    LAST_SUCCESS: "When the last run with exit code 0 ended.",
    "duration_seconds": "How long the last run took.",
    "rows": "Rows that the last run scored.",
    "failed_files": "Files of the inbox that the last run could not score.",
    "accuracy_ratio": "Share of correct rows, of those with labels that the last run measured.",
    "drift": "Largest drift score of the rows of the last run.",
    "epochs": "Epochs that the last run trained.",
    "next_timestamp_seconds": "When the next run is due.",
}
"""The metrics by the ends of their names, as Prometheus shows their meaning."""


class MetricsFile:
    """A file of metrics of one command, written anew after each run."""

    def __init__(self, command: str, place: str) -> None:
        """Raise `UsageError` if the file can never be written, or the library is missing."""
        try:
            import prometheus_client  # noqa: F401 - refused before any work
        except ModuleNotFoundError:
            raise MissingExtraError("--metrics-file", "prometheus-client", "metrics") from None
        if "://" in place or not place.endswith(".prom"):
            raise UsageError(
                f"--metrics-file is {place!r}; expected a path on this machine that ends in .prom, "
                "which the textfile collector reads."
            )
        path = file_to_write(Path(str(open_location(place))), "--metrics-file")
        self._directory, self._name = open_location(path.parent), path.name
        self._prefix = f"mnist_stream_{command}_"

    def write(self, exit_code: int, seconds: float, values: Mapping[str, float]) -> None:
        """Replace the file atomically; the last success remains if this run is none."""
        from prometheus_client import CollectorRegistry, Gauge, generate_latest

        now = time.time()
        success = now if exit_code == 0 else self._last_success(now)
        every = {
            "exit_code": exit_code,
            "last_run_timestamp_seconds": now,
            "duration_seconds": seconds,
            **({} if success is None else {LAST_SUCCESS: success}),
            **values,
        }
        registry = CollectorRegistry()
        for name, value in every.items():
            gauge = Gauge(self._prefix + name, MEANINGS[name], ["file"], registry=registry)
            gauge.labels(self._name).set(value)  # the collector refuses equal series of two files
        self._directory.sweep_partial(self._name)
        self._directory.put(self._name, generate_latest(registry))

    def _last_success(self, now: float) -> float | None:
        """Return the time of the last success from the former file; None if it has none.

        A time that is not in the past is damage: no alert would ever follow from it.
        """
        from prometheus_client.parser import text_string_to_metric_families

        try:
            text = self._directory.get(self._name, 0, FILE_BYTES).decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == self._prefix + LAST_SUCCESS and sample.value <= now:
                        return float(sample.value)
        except (FileNotFoundError, PipelineError, ValueError):
            return None
        return None


class _RunHandler(logging.Handler):
    """Collects the metrics of a run of train or score from its events."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)  # the project's loggers get this level
        self.values: dict[str, float] = {}
        self._labelled: list[tuple[int, float]] = []

    def emit(self, record: logging.LogRecord) -> None:
        name, facts = getattr(record, "event", ""), getattr(record, "facts", {})
        if name == "started":
            self.values |= {"rows": 0, "failed_files": 0}
        elif name in ("scored", "found"):
            self._add_scoring(name, facts)
        elif name == "failed" and "file" in facts:
            self.values["failed_files"] += 1
        elif name == "epoch":
            accuracies = [split["accuracy"] for split in facts["evaluation"].values()]
            self.values["epochs"] = self.values.get("epochs", 0) + 1
            self.values["accuracy_ratio"] = accuracies[-1] if accuracies else facts["accuracy"]

    def _add_scoring(self, name: str, facts: dict[str, Any]) -> None:
        self.values["rows"] += facts["rows"] if name == "scored" else 0
        if facts["accuracy"] is not None:
            self._labelled.append((facts["rows"], facts["accuracy"]))
            rows = sum(rows for rows, _ in self._labelled)
            right = sum(rows * accuracy for rows, accuracy in self._labelled)
            self.values["accuracy_ratio"] = right / rows
        if facts.get("drift") is not None:
            self.values["drift"] = max(facts["drift"], self.values.get("drift", 0.0))


class _ScheduleHandler(logging.Handler):
    """Writes the metrics after each job of a schedule."""

    def __init__(self, file: MetricsFile) -> None:
        super().__init__(logging.DEBUG)
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        facts = getattr(record, "facts", {})
        if getattr(record, "event", "") == "end":
            due: datetime = facts["next"]
            values = {"next_timestamp_seconds": due.timestamp()}
            try:
                self._file.write(facts["exit"], facts["seconds"], values)
            except (UnreachableError, UsageError) as error:  # later runs go ahead
                logger.warning("The metrics could not be written: %s", error)


@contextmanager
def metrics_written(command: str, place: str | None) -> Iterator[None]:
    """Write the metrics of a run of train or score at the end of the block, also after a failure.

    After a failure, an error of writing is only a warning. Without a `place`, write nothing.
    """
    if place is None:
        yield
        return
    file, handler, began = MetricsFile(command, place), _RunHandler(), time.monotonic()
    error: BaseException | None = None
    try:
        with attached(handler):
            yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        if not isinstance(error, RestartError):  # else the command has yet to run
            _write_last(file, error, time.monotonic() - began, handler.values)


def _write_last(
    file: MetricsFile, error: BaseException | None, seconds: float, values: Mapping[str, float]
) -> None:
    is_usage = isinstance(error, click.ClickException)
    code = UsageError.exit_code if is_usage else exit_code_of(error)
    try:
        file.write(code, seconds, values)
    except PipelineError as failure:
        if error is None:
            raise
        logger.warning("The metrics could not be written: %s", failure)


@contextmanager
def schedule_metrics(place: str | None) -> Iterator[None]:
    """Write the metrics of a schedule after each of its jobs while the block runs."""
    if place is None:
        yield
        return
    with attached(_ScheduleHandler(MetricsFile("schedule", place))):
        yield
