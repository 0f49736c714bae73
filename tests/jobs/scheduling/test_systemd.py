"""The systemd units that `pipeline schedule` prints, checked by systemd itself if installed."""

import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pytest

from jobs.scheduling.cron import cron_times
from jobs.scheduling.printers import PRINTERS, Plan
from tests.jobs.scheduling.conftest import HOSTILE_WORDS, own_command


def systemd_split(line: str) -> list[str]:
    """Split a command line by the rules of systemd.service(5)."""
    escapes = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "'": "'"}

    def unescaped(match: "re.Match[str]") -> str:
        code = match[1] or match[2]
        return chr(int(code, 16)) if code else escapes[match[3]]

    words = []
    for quoted, bare in re.findall(r'"((?:[^"\\]|\\.)*)"(?=\s|$)|(\S+)', line):
        assert not re.search(r"""["'\\;]""", bare), bare
        escape = r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|(.))"
        word = re.sub(escape, unescaped, quoted) if quoted else bare
        assert not re.search(r"%", word.replace("%%", "")), word
        assert not re.search(r"\$", word.replace("$$", "")), word
        words.append(word.replace("%%", "%").replace("$$", "$"))
    return words


def test_arguments(plan: Plan) -> None:
    """systemd reads exactly the given command, control characters included."""
    words = ("score", *HOSTILE_WORDS, "a\n\r\tb\x01\x1b\x7f", "\u2028\x85")
    service = PRINTERS["systemd"](replace(plan, arguments=words))["nightly.service"]
    (line,) = [line for line in service.split("\n") if line.startswith("ExecStart=")]
    assert [*own_command(), *words] == systemd_split(line.removeprefix("ExecStart="))


def units(plan: Plan, directory: Path) -> list[Path]:
    """Write the service and the timer; return their paths."""
    paths = []
    for name, text in PRINTERS["systemd"](plan).items():
        (directory / name).write_text(text)
        paths.append(directory / name)
    return paths


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@needs_systemd
@pytest.mark.parametrize("expression", ["30 2 * * 1-5", "*/15 8-18 1,15 * MON", "0 0 * 1 *"])
def test_systemd_accepts_the_units(expression: str, plan: Plan, tmp_path: Path) -> None:
    """`systemd-analyze verify` reports nothing about the service and the timer."""
    paths = units(replace(plan, times=cron_times(expression, "Europe/Berlin")), tmp_path)
    process = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in process.stderr.splitlines() if "nightly" in line]
    assert (0, []) == (process.returncode, complaints)


@needs_systemd
@pytest.mark.parametrize(
    "expression", ["30 2 * * 1-5", "*/20 6,18 * * *", "0 0 1,13 * FRI", "15 4 1 */3 *", "0 1 * * 7"]
)
def test_systemd_computes_the_same_times(expression: str, plan: Plan, tmp_path: Path) -> None:
    """The timer elapses at the times of the cron expression."""
    times = cron_times(expression, "UTC")
    timer = units(replace(plan, times=times), tmp_path)[1].read_text()
    calendars = [
        line.removeprefix("OnCalendar=")
        for line in timer.splitlines()
        if line.startswith("OnCalendar=")
    ]
    process = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=8", "--base-time=2026-01-01 00:00:00 UTC"]
        + calendars,
        capture_output=True,
        text=True,
        check=False,
        env={"TZ": "UTC", "PATH": "/usr/bin:/bin", "LC_ALL": "C"},
    )
    assert 0 == process.returncode, process.stderr
    elapses = sorted(
        {
            " ".join(line.split()[-3:-1])
            for line in process.stdout.splitlines()
            if line.strip().startswith(("Next elapse:", "Iter", "(in UTC)")) and "UTC" in line
        }
    )
    expected = [
        moment.strftime("%Y-%m-%d %H:%M:%S")
        for moment in islice(times.times_after(datetime(2026, 1, 1, tzinfo=UTC)), 8)
    ]
    assert expected == elapses[:8]


@pytest.mark.parametrize(("catch_up", "expected"), [(True, "true"), (False, "false")])
def test_catch_up(catch_up: bool, expected: str, plan: Plan) -> None:
    """A missed run is made up with `catch_up` only."""
    files = PRINTERS["systemd"](replace(plan, catch_up=catch_up))
    assert f"\nPersistent={expected}\n" in files["nightly.timer"]
