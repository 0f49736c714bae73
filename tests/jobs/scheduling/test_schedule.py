"""`pipeline schedule` as a process: its log, its signals and its heartbeat."""

import json
import os
import re
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.scheduling.scheduler import Heartbeat
from storage.places import open_location
from tests.commands.process import assert_refused, run_here, run_pipeline, start_pipeline


def owed(heartbeat: Path) -> Path:
    """Write a heartbeat of years ago, so that a scheduler has a run to make up at once."""
    last = datetime(2020, 6, 1, tzinfo=UTC).isoformat()
    place = Heartbeat(open_location(heartbeat.parent), heartbeat.name)
    place.write(last=last, running=None, last_exit=None)
    return heartbeat


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (("score",), ["summary"]),
        (("score", "--log-json"), ["summary"]),
        (("score", "--json"), []),
        (("scores", "--help"), []),
    ],
)
def test_json_log(job: tuple[str, ...], expected: list[str], tmp_path: Path) -> None:
    """With --log-json all of stdout is JSON: the job logs JSON too, or prints on stderr."""
    beat = owed(tmp_path / "beat.json")
    with start_pipeline(
        *("schedule", "0 0 1 1 *", "--timezone", "UTC", "--log-json", "--heartbeat", beat),
        *("--", *job),
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        log: list[dict[str, Any]] = []
        while not log or log[-1]["event"] != "end":
            log.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate()
    log += map(json.loads, out.splitlines())
    names = [line["event"] for line in log]
    before, after = ["waiting", "missed", "start"], ["end", "stopped", "summary"]
    assert [*before, *expected, *after] == names
    assert re.fullmatch(r"\d{4}-01-01T00:00:00\+00:00", log[0]["next"])
    assert ("Usage: pipeline scores" in errors) == ("--help" in job)
    assert (143, 143) == (process.returncode, log[-1]["exit"])
    assert errors.endswith("The schedule was stopped; no job is running.\n")
    assert "stopped" == json.loads(beat.read_text())["state"]


@pytest.mark.parametrize("place", ["directory", "file/beat.json", "pipe", "/dev/stdout"])
def test_heartbeat_that_cannot_be_a_file(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory, a pipe or a path below a file is refused: a probe would wait forever."""
    monkeypatch.chdir(tmp_path)
    Path("directory").mkdir()
    Path("file").touch()
    os.mkfifo("pipe")
    command = ("schedule", "0 0 1 1 *", "--heartbeat", place, "--", "score")
    assert_refused(run_here(*command), 2, "--heartbeat", place)


def test_two_schedulers_with_one_heartbeat(tmp_path: Path) -> None:
    """The second scheduler is refused; after the first was killed, the heartbeat is free."""
    options = ("--timezone", "UTC", "--heartbeat", "beat.json")
    command = ("schedule", "0 0 1 1 *", *options, "--", "score")
    with start_pipeline(*command, cwd=tmp_path) as first:
        assert first.stdout is not None
        line = first.stdout.readline()
        pattern = r"\S{10} \S{8}\+00:00  Waiting; the next run is due at \S{10} \S{8}\+00:00\n"
        assert re.fullmatch(pattern, line)
        refused = run_pipeline(*command, cwd=tmp_path)
        first.kill()  # before the assertion: a failure would wait for the process
        holder = f"beat.json: process {first.pid} on"
        assert_refused(refused, 4, "Another scheduler uses the heartbeat", holder, "Stop it, or")
    with start_pipeline(*command, cwd=tmp_path) as second:
        assert second.stdout is not None
        assert "Waiting" in second.stdout.readline()
        second.terminate()
