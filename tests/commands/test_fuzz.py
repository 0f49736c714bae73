"""Hostile arguments and environments give a documented exit code and no traceback."""

import os
import random
import shutil
from pathlib import Path

import click
import pytest

from jobs.commands.cli import cli
from tests.commands.conftest import SMALL, Call
from tests.commands.process import run_pipeline

DOCUMENTED = {0, 2, 3, 4, 5, 6}
HOSTILE = (
    *("", " ", "-", "--", "=", ".", "a=b", "%s", "{home}", "{x", "x.csv", "x.png", "x.toml"),
    *("-1", "0", "nan", "inf", "1e308", "1e400", "9" * 30, "9" * 5000, "0" * 5000, "\u0663"),
    *("~", "~nosuchuser/x", "n" * 300, "d/" * 1200 + "x", "pipe", "socket", "dangling", "loop"),
    *("caf\udce9", "half\ud83d", "a\nb", "\x1b[31m", "\u202etxt", "\x85", "\U0001f600"),
    *("file://", "file://x", "s3://", "s3:///x", "http://x", "://", "synthetic:", "data/mnist"),
    *(f"synthetic:{'9' * 5000}", "synthetic:1,-1", "synthetic:5,5", "runs/mnist", "files", "7d"),
    *("784-relu-" + "9" * 5000, "9" * 5000 + "d", "0001-01-01", "9999-12-31T23:59:59", "test"),
    *("* * * * *", "*/0 * * * *", "1-0 * * * *", "0 0 31 2 *", "* " * 5000, "9" * 500 + " 0 * * *"),
    *("[" * 5000, "best", "latest", "000002-000000", "Europe/Berlin", "../../etc/passwd"),
)
"""Values that are invalid for most options, and some that are valid for one."""
SLOW = {
    *("--help", "--version", "--scheduler", "--scheduler-file", "--workers", "--take-over"),
    *("--storage-option", "--wait"),
}
"""Options that do no work or wait for a cluster or a store; other tests cover them."""
BASE = {
    "train": [*SMALL, "--epochs", "1"],
    "ingest": ["synthetic:20,10"],
    "schedule": ["0 3 * * *", "--dry-run"],
    "promote": ["--as", "champion"],
}
"""Arguments that keep a command fast unless a hostile one replaces them."""


def arguments(draw: random.Random, name: str) -> list[str]:
    """Draw a command line: some options and arguments of a command, mostly with hostile values."""
    command = cli.commands[name]
    parameters = command.get_params(click.Context(command))
    options = [parameter for parameter in parameters if not SLOW.intersection(parameter.opts)]
    words = [name, *BASE.get(name, [])]
    for parameter in draw.sample(options, min(len(options), draw.randint(1, 3))):
        if isinstance(parameter, click.Argument):
            words.insert(1, draw.choice(HOSTILE))
        elif isinstance(parameter, click.Option):
            flag = [] if parameter.is_flag else [draw.choice(HOSTILE)]
            words += [draw.choice(parameter.opts), *flag]
    return [*words, "--", draw.choice(["score", *HOSTILE])] if name == "schedule" else words


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_arguments(seed: int, dataset: Path, run: Path, files: Path, call: Call) -> None:
    """Random command lines, from fixed seeds, end as documented."""
    os.mkfifo("pipe")
    Path("dangling").symlink_to("absent")
    Path("loop").symlink_to("loop")
    draw = random.Random(seed)
    for _ in range(40):
        words = arguments(draw, draw.choice([name for name in cli.commands if name != "demo"]))
        ended = call(*words)
        assert ended.code in DOCUMENTED, (words, ended.err)
        assert "Traceback" not in ended.err, (words, ended.err)
        assert (ended.out + ended.err).replace("\n", "").replace("\t", "").isprintable(), words


STRICT = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii:strict",
}
LINES = (
    ("train", "--help"),
    ("inspect", "caf\udce9"),
    ("ingest", "caf\udce9", "--out", "\U0001f600"),
    ("schedule", "0 3 * * *", "--print", "systemd", "--", "score", "--out", "\u6771.csv"),
)


@pytest.mark.slow
@pytest.mark.parametrize("words", LINES, ids=lambda words: words[0])
@pytest.mark.parametrize("around", ["strict", "gone", "full", "closed"])
def test_surroundings(around: str, words: tuple[str, ...], files: Path) -> None:
    """A strict locale, a deleted working directory, a full or a closed stdout."""
    files.rename(files.with_name("caf\udce9"))
    place = files.parent
    options: dict[str, object] = {}
    if around == "strict":
        options["env"] = STRICT
    elif around == "gone":
        place = files.parent / "gone"
        place.mkdir()
        options["preexec_fn"] = lambda: shutil.rmtree(place)
    elif around == "closed":
        options["preexec_fn"] = lambda: os.closerange(1, 3)
    with open("/dev/full", "w") as full:
        if around == "full":
            options["stdout"] = full
        ended = run_pipeline(*words, cwd=place, **options)  # type: ignore[arg-type]
    expected = {"full": {3, 6}, "gone": {0, 2, 3}}.get(around, {0, 3})
    assert ended.code in expected, ended.err
    assert "Traceback" not in ended.err
    assert "Exception ignored" not in ended.err
