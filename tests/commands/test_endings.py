"""A command's exit code and the summary of its JSON log always agree."""

import builtins
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from jobs.signals import SIGNALS
from tests.chaos.processes import is_held
from tests.commands.conftest import Call
from tests.commands.process import assert_refused, start_pipeline


class Panic(BaseException):
    """Like a Rust panic, not an `Exception`."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("defect"), 1),
        (Panic("defect"), 1),
        (GeneratorExit(), 1),
        (MemoryError(), 6),
        (OSError(28, "No space left on device"), 6),
        (RecursionError(), 3),
        (KeyboardInterrupt(), 128 + signal.SIGINT),
        (SystemExit(0), 128 + signal.SIGPIPE),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    ("command", "fails"),
    [
        (("score",), "jobs.scoring.job.run_batch"),
        (("schedule", "0 3 * * *", "--", "score"), "jobs.scheduling.scheduler.Scheduler.run"),
    ],
    ids=["score", "schedule"],
)
def test_the_summary_has_the_exit_code(
    command: tuple[str, ...],
    fails: str,
    error: BaseException,
    code: int,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The summary has the exit code and the error, expected or not."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(fails, fail)
    ended = call(command[0], "--log-json", *command[1:])
    last = json.loads(ended.out.splitlines()[-1])
    assert ("summary", code, code) == (last["event"], last["exit"], ended.code)
    assert last["error"]


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_work(number: signal.Signals, tmp_path: Path) -> None:
    """A job that is done prints its result and ends with 0."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):  # until the pipe is full, so that printing has to wait
        while True:
            os.write(writing, bytes(1))
    os.set_blocking(writing, True)
    dataset = tmp_path / "data"
    command = ("ingest", "synthetic:20,5", "--out", dataset)
    with start_pipeline(*command, cwd=tmp_path, stdout=writing) as process:
        os.close(writing)
        while not dataset.exists() or is_held(tmp_path / ".data.lock"):
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        process.send_signal(number)
        with open(reading, "rb") as pipe:
            printed = pipe.read().strip(bytes(1)).decode()
        assert 0 == process.wait(), process.communicate()
    assert str(dataset) in printed


@pytest.mark.parametrize(
    "command",
    [
        ("ingest", "synthetic:20,5", "--out", "s3://bucket/x"),
        ("train", "--dataset", "s3://bucket/x"),
        ("train", "--run", "s3://bucket/x"),
        ("score", "--out", "s3://bucket/x.csv"),
        ("score", "--inbox", "s3://bucket/x"),
        ("promote", "--as", "x", "--models", "s3://bucket/x"),
        ("verify", "s3://bucket/x"),
        ("inspect", "s3://bucket/x"),
        ("scores", "s3://bucket/x"),
        ("schedule", "0 3 * * *", "--", "score", "--inbox", "s3://bucket/x"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("given", ["variable", "option"])
def test_an_endpoint_that_is_none(
    command: tuple[str, ...],
    given: str,
    made: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every command refuses a bad endpoint before any work, and names its source."""
    monkeypatch.chdir(made)
    if given == "variable":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
        assert_refused(call(*command), 2, "AWS_ENDPOINT_URL 'localhost:9000' is not a valid")
    else:
        option = ("--storage-option", "endpoint_url=localhost:9000")
        assert_refused(call(*command, *option), 2, "--storage-option endpoint_url 'localhost:9000'")


@pytest.mark.parametrize(
    ("library", "extra", "command"),
    [
        ("obstore", "s3", ("verify", "s3://bucket/x")),
        ("pyarrow", "parquet", ("score", "--out", "x.parquet")),
        ("matplotlib", "plot", ("inspect", "data/mnist", "--images", "x.png")),
    ],
)
def test_a_library_that_is_not_installed(
    library: str,
    extra: str,
    command: tuple[str, ...],
    dataset: Path,
    run: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message names the extra to install."""
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments)

    for name in [*sys.modules]:
        if name.partition(".")[0] == library or name.startswith("storage.s3"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("jobs.scoring.outputs.find_spec", lambda name: None)
    ended = call(*command)
    assert_refused(ended, 2, f"the library {library}", f"pip install '.[{extra}]'")
