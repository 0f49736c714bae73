"""Shell completion, requested as bash and zsh do: commands, options, choices, places, names."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.conftest import Call
from tests.commands.process import PYTHON, REPOSITORY, run_pipeline

Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(call: Call, monkeypatch: pytest.MonkeyPatch) -> Complete:
    """`complete("train --da")` returns the values that bash offers for the last word."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("_PIPELINE_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", f"pipeline {line}")
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" "))))
        ended = call()
        assert (0, "") == (ended.code, ended.err)
        offered = [item.split(",", 1) for item in ended.out.split()]
        return [value if form == "plain" else f"<{form}>" for form, value in offered]

    return ask


def test_commands_and_options(complete: Complete) -> None:
    """Commands, options, short ones and those of rounds too, and choices."""
    assert ["score", "scores", "schedule"] == complete("sc")
    assert ["--learning-rate"] == complete("train --learn")
    assert ["--lr"] == complete("train --lr")
    assert ["--outer-learning-rate", "--outer-momentum"] == complete("train --outer")
    assert ["adam", "adamw"] == complete("train --optimizer ada")
    assert ["seed", "quick", "accurate", "record", "fashion"] == complete("train --recipe ")
    assert ["digits"] == complete("train --distort d")
    assert ["fashion", "<file>"] == complete("inspect data/mnist --distort f")
    assert ["lz4", "lz4hc", "zstd"] == complete("ingest --compression ")


def test_places(dataset: Path, run: Path, complete: Complete) -> None:
    """Datasets, runs and TOML files are found in folders; stores get no requests."""
    here = dataset.parent.parent
    (here / "data" / "other").mkdir()
    (here / "data" / "other" / "zarr.json").write_text('{"attributes": {"format": "other"}}')
    (here / "a b" / "x").mkdir(parents=True)
    (here / "conf").mkdir()
    (here / "conf" / "small.toml").touch()
    assert ["<dir>", "data/mnist"] == complete("train --dataset ")
    assert ["<dir>", "data/mnist"] == complete("train --dataset data/m")
    assert ["<dir>"] == complete("train --dataset runs/")
    assert ["<dir>", f"{here}/runs/mnist"] == complete(f"score --run {here}/ru")
    assert ["<file>", "data/mnist", "runs/mnist"] == complete("inspect ")
    assert ["<file>", "conf/small.toml"] == complete("train --config ")
    assert ["<dir>", "conf", "kmnist"] == [*complete("ingest conf"), *complete("ingest k")[1:]]
    for start in ("s3://bucket/", "file://x"):
        assert [] == complete(f"train --dataset {start}")


def test_sweeps(here: Path, complete: Complete) -> None:
    """Settings that vary, their choices, and the places of sweeps."""
    (here / "sweeps" / "a").mkdir(parents=True)
    (here / "sweeps" / "a" / "sweep.json").touch()
    assert ["optimizer=", "outer_learning_rate=", "outer_momentum="] == complete("sweep --grid o")
    assert ["optimizer=adam", "optimizer=adamw"] == complete("sweep --grid optimizer=ad")
    assert ["optimizer=sgd,adam", "optimizer=sgd,adamw"] == complete("sweep --grid optimizer=sgd,a")
    assert ["<dir>", "sweeps/a"] == complete("sweep --out ")
    assert ["<dir>", "sweeps/a"] == complete("score --sweep ")


def test_names_and_splits(dataset: Path, run: Path, call: Call, complete: Complete) -> None:
    """Promoted names, checkpoints, and the splits of the named dataset or the run's."""
    assert 0 == call("promote", "--as", "champion", "--models", "names").code
    assert ["champion"] == complete("score --models names --model ch")
    assert [] == complete("score --model ch")
    assert ["best", "latest", "average", "1", "2"] == complete("score --checkpoint ")
    assert ["1,best", "1,latest", "1,1", "1,2"] == complete("score --checkpoint 1,")
    several = "score --run runs/mnist --run runs/other --checkpoint "
    assert ["best", "latest", "average", "1", "2"] == complete(several)
    assert ["train", "test"] == complete("promote runs/mnist runs/other --split t")
    assert ["test"] == complete("score --dataset data/mnist --split te")
    assert ["train", "test"] == complete("promote runs/mnist --split t")
    assert [] == complete("score --dataset elsewhere --split ")
    assert ["train,test"] == complete("train --dataset data/mnist --evaluate train,te")


def test_schedule(complete: Complete) -> None:
    """The scheduled command and its options, and time zones."""
    assert ["score", "scores"] == complete("schedule '@daily' -- sco")
    assert ["--min-accuracy"] == complete("schedule '@daily' -- score --min")
    assert ["lz4hc"] == complete("schedule '@daily' -- ingest --compression lz4h")
    assert [] == complete("schedule '@daily' -- sched")
    assert ["Europe/Berlin"] == complete("schedule --timezone Europe/Berl")


@pytest.mark.parametrize("content", ["", "[]", '{"attributes": 1}', "[" * 100_000])
def test_damaged_documents(content: str, here: Path, complete: Complete) -> None:
    """Unreadable files are not offered, and cause no traceback in the command line."""
    (here / "data").mkdir()
    (here / "data" / "zarr.json").write_text(content)
    assert complete("train --dataset ") in ([], ["<dir>"])


def test_in_bash(dataset: Path) -> None:
    """The script that --help names completes in bash."""
    here = dataset.parent.parent
    command = here / "bin" / "pipeline"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {" ".join(PYTHON)} -m jobs.commands.cli "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(_PIPELINE_COMPLETE=bash_source pipeline)"; complete -p pipeline;'
        "compopt() { :; }; COMP_WORDS=(pipeline train --dataset da); COMP_CWORD=3;"
        '_pipeline_completion pipeline; echo "${COMPREPLY[@]}";'
        'COMP_WORDS=(pipeline ingest ""); COMP_CWORD=2;'
        '_pipeline_completion pipeline; echo "${COMPREPLY[@]}"'
    )
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=here,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    registered, offered, sources = ended.stdout.splitlines()
    assert registered == "complete -o nosort -F _pipeline_completion pipeline"
    assert offered == "data/mnist"
    assert sources == "bin data mnist fashion-mnist kmnist synthetic"


@pytest.mark.slow
def test_in_zsh(dataset: Path) -> None:
    """Zsh is given the script, and each value with its description."""
    here = dataset.parent.parent
    ask = {"_PIPELINE_COMPLETE": "zsh_complete", "COMP_CWORD": "2"}
    shown = run_pipeline(cwd=here, env=ask | {"COMP_WORDS": "pipeline train --resu"})
    assert shown.out.splitlines()[:2] == ["plain", "--resume"]
    script = run_pipeline(cwd=here, env={"_PIPELINE_COMPLETE": "zsh_source"})
    assert script.out.startswith("#compdef pipeline\n")
    assert 1 == run_pipeline(cwd=here, env={"_PIPELINE_COMPLETE": "csh_source"}).code
