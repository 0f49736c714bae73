"""Events: lines on a console, JSON objects in a log."""

import json
import logging
from typing import Any

import pytest

from jobs.commands.console import Console, Report
from jobs.commands.logs import LOGGERS, JsonHandler, attached
from storage.errors import BadDataError, StoppedError
from storage.events import event, for_people

logger = logging.getLogger("jobs.scoring.test")


def test_console(capsys: pytest.CaptureFixture[str]) -> None:
    """Events with a text are lines on stdout, warnings on stderr."""
    with attached(Console()):
        event(logger, "left", "a\nb: left", file="a\nb")
        event(logger, "found", "", rows=1)
        event(logger, "started", "run runs/a", settings={"epochs": 2, "optimizer": "adam"})
        logging.getLogger("storage.test").warning("%s is damaged\x1b", "x")
        logging.getLogger("distributed").warning("not ours")
    shown = capsys.readouterr()
    assert shown.out == 'a\\nb: left\nrun runs/a\n  epochs = 2\n  optimizer = "adam"\n'
    assert shown.err == "Warning: x is damaged\\x1b\n"


@pytest.mark.parametrize("options", [(True, False), (False, True)])
def test_quiet(options: tuple[bool, bool], capsys: pytest.CaptureFixture[str]) -> None:
    """With --quiet or --json, warnings are the only events that are printed."""
    quiet, as_json = options
    with attached(Console(quiet=quiet, as_json=as_json)):
        logger.info("reading")
        logger.warning("damaged")
    assert ("", "Warning: damaged\n") == capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "table\nsummary\n"),
        ({"verbose": True}, "debug\ntable\nsummary\ndetails\n"),
        ({"quiet": True}, "summary\n"),
        ({"as_json": True, "verbose": True}, '{\n  "a": 1\n}\n'),
    ],
)
def test_result(
    options: dict[str, bool], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result is a text, one line with --quiet, longer with --verbose, a document with --json."""
    with attached(Console(**options)) as console:
        event(logger, "memory", "debug", logging.DEBUG, bytes=1)
        console.result(Report({"a": 1}, "table\nsummary", "summary", "details"))
    assert (expected, "") == capsys.readouterr()


def test_memory_is_printed_when_it_grows(capsys: pytest.CaptureFixture[str]) -> None:
    """A memory bound is printed only if it is larger than all earlier ones."""
    with attached(Console()):
        for megabytes in (100, 50, 100, 101, 3):
            event(logger, "memory", f"{megabytes} MB", bytes=megabytes * 10**6)
    assert capsys.readouterr().out == "100 MB\n101 MB\n"


def test_nothing_stays_behind() -> None:
    """After a command, even a failed one, the loggers have their former handlers and levels."""
    before = _state()
    with pytest.raises(StoppedError), attached(JsonHandler()):
        assert _state() != before
        raise StoppedError("Stopped.", 15)
    assert _state() == before


def _state() -> list[Any]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    return [(logger.level, list(logger.handlers)) for logger in loggers]


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """The documents that a JSON log wrote."""
    return []


@pytest.fixture
def log(lines: list[dict[str, Any]]) -> JsonHandler:
    """A JSON log that writes to `lines`."""
    return JsonHandler(lambda line: lines.append(json.loads(line)))


def test_json(log: JsonHandler, lines: list[dict[str, Any]]) -> None:
    """An event's facts are the fields; other records are notes or warnings, unless for people."""
    with attached(log):
        event(logger, "left", "a: left", file="a", accuracy=None)
        logger.info("reading")
        logger.warning("damaged")
        for_people(logger, "epoch  loss")
    assert all("T" in line.pop("time") for line in lines)
    assert lines == [
        {"event": "left", "file": "a", "text": "a: left"},
        {"event": "note", "text": "reading"},
        {"event": "warning", "text": "damaged"},
    ]


def test_progress_in_json(log: JsonHandler, lines: list[dict[str, Any]]) -> None:
    """A stage has a line at its start, and one with a rate at its end."""
    for done in (0, 1, 2, 3):
        log.progress("score train", done, 3)
    first, last = lines
    assert ("progress", "score train", 0, 3) == tuple(
        first[name] for name in ("event", "stage", "rows", "of")
    )
    assert 3 == last["rows"]
    assert "rows_per_second" not in first
    assert last["rows_per_second"] > 0


@pytest.mark.parametrize(("error", "code"), [(None, 0), (BadDataError("broken"), 3)])
def test_summary(
    error: Exception | None, code: int, log: JsonHandler, lines: list[dict[str, Any]]
) -> None:
    """The summary has the exit code and the totals of the events."""
    with attached(log):
        event(logger, "started", "", model_digest="abc")
        for rows in (2, 3):
            event(logger, "scored", "", rows=rows)
        event(logger, "gate", "", missed="too low")
    log.summary(error)
    expected = {"event": "summary", "exit": code, "model_digest": "abc", "rows": 5, "scored": 2}
    expected |= {"below_gate": 1, "failed": 0, "error": error and "broken"}
    assert expected == {name: lines[-1].get(name) for name in expected}


def _raise_broken_pipe(_line: str) -> None:
    raise StoppedError("Stopped: the reader of the output closed it.", 13)


def test_output_that_cannot_be_written_ends_the_job() -> None:
    """An error of the output is raised where the event is logged."""
    with attached(JsonHandler(_raise_broken_pipe)), pytest.raises(StoppedError):
        logger.info("reading")


def test_progress_before_the_first_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first row is done, neither rate nor remaining time is printed."""
    monkeypatch.setattr("jobs.commands.console.PLAIN_SECONDS", -1.0)
    console = Console()
    console.progress("ingest train", 0, 300)
    console.progress("ingest train", 100, 300)
    first, second = capsys.readouterr().err.splitlines()
    assert "ingest train: 0 of 300 rows" == first
    assert second.endswith(" left")
