"""What was probably meant: misspelt commands, options and values, and those of other programs."""

import os
from pathlib import Path

import pytest

from tests.commands.conftest import Call
from tests.commands.process import assert_refused

MEANT = [
    (("trian",), "'train'"),
    (("Train",), "'train'"),
    (("fit",), "'train'"),
    (("predict",), "'score'"),
    (("train", "--lr", "1"), "'--learning-rate'"),
    (("train", "-lr", "1"), "'--learning-rate'"),
    (("train", "--lr=1"), "'--learning-rate'"),
    (("train", "--learn", "1"), "'--learning-rate'"),
    (("train", "--learning_rate", "1"), "'--learning-rate'"),
    (("train", "--Batchsize", "1"), "'--batch-size'"),
    (("train", "--bs", "1"), "'--batch-size'"),
    (("train", "--weight-decay", "1"), "'--l2'"),
    (("ingest", "--output", "x"), "'--out'"),
    (("score", "--ouput", "x"), "'--out'"),
    (("train", "--optimizer", "adma"), "'adam'"),
    (("train", "--optimizer", "AdamW"), "'adamw'"),
    (("train", "--schedule", "onecycle"), "'one-cycle'"),
    (("ingest", "--compression", "zst"), "'zstd'"),
    (("schedule", "0 0 * * *", "--print", "kubernets", "--", "score"), "'kubernetes'"),
    (("schedule", "0 0 * * *", "--", "scroe"), "'score'"),
    (("schedule", "0 0 * * *", "--timezone", "Europe/Berln", "--", "score"), "'Europe/Berlin'"),
]


@pytest.mark.parametrize(("words", "meant"), MEANT, ids=" ".join)
def test_what_was_meant(words: tuple[str, ...], meant: str, call: Call) -> None:
    """The nearest thing that exists is named."""
    assert_refused(call(*words), 2, f"Did you mean {meant}?")


@pytest.mark.parametrize("words", [("xyzzy",), ("train", "--xyzzy"), ("train", "--init", "xyzzy")])
def test_nothing_near(words: tuple[str, ...], call: Call) -> None:
    """A word that is like none that exists gets no guess."""
    ended = call(*words)
    assert_refused(ended, 2, "'")
    assert "Did you mean" not in ended.err


def test_a_demo_where_no_directory_can_be(here: Path, call: Call) -> None:
    """A file or a pipe at its place is refused before anything is downloaded."""
    os.mkfifo(here / "pipe")
    assert_refused(call("demo", "pipe"), 2, "'pipe' is not a directory")
