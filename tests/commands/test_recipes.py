"""Recipes on the command line: layers of settings, what `inspect` shows, and what is refused."""

import json
from pathlib import Path

from tests.commands.conftest import SMALL, Call
from tests.commands.process import assert_refused

QUICK = ("train", "--recipe", "quick", *SMALL)


def test_options_override_the_file_and_the_file_the_recipe(
    dataset: Path, here: Path, call: Call
) -> None:
    """The run records all settings, and the recipe's name, which `inspect` shows."""
    (here / "my.toml").write_text("epochs = 5\nl2 = 0.25\n[distort]\nrotate = 5\nuntil = 0.5\n")
    ended = call(*QUICK, "--config", "my.toml", "--epochs", 1, "--shear", 0.1)
    assert 0 == ended.code, ended.err
    shown = json.loads(call("inspect", "runs/mnist", "--json").out)
    assert "quick" == shown["recipe"]
    assert {
        "network": SMALL[1],
        "epochs": 1,
        "l2": 0.25,
        "beta2": 0.99,
        "rotate": 5.0,
        "shear": 0.1,
        "scale": 0.15,
        "distort_until": 0.5,
    }.items() <= shown["configuration"].items()
    assert "\nrecipe" in call("inspect", "runs/mnist").out
    repeated = call(*QUICK, "--config", "my.toml", "--epochs", 1, "--shear", 0.1, "--resume")
    assert 0 == repeated.code, repeated.err
    changed = call(*QUICK, "--epochs", 1, "--distort", "none", "--resume")
    assert_refused(changed, 4, "rotate: 5.0 recorded, 0.0 given", "Leave --recipe quick and these")


def test_a_run_without_a_recipe(run: Path, call: Call) -> None:
    """Neither its record nor `inspect` mentions recipes; JSON has none."""
    assert "recipe" not in json.loads((run / "run.json").read_text())
    assert "recipe" not in call("inspect", "runs/mnist").out
    assert json.loads(call("inspect", "runs/mnist", "--json").out)["recipe"] is None


def test_inspect_prints_a_configuration(dataset: Path, run: Path, here: Path, call: Call) -> None:
    """The settings that `inspect` prints are a TOML file, and those of the run."""
    settings = (
        call("inspect", "runs/mnist").out.partition("configuration\n")[2].partition("\n\n")[0]
    )
    (here / "run.toml").write_text(settings)
    ended = call("train", "--config", "run.toml", "--resume")
    assert 0 == ended.code, ended.err
    assert ended.out.startswith("runs/mnist is already trained.")


def test_a_recipe_that_does_not_fit(call: Call) -> None:
    """A set smaller than a mini-batch is refused with the setting to change."""
    assert 0 == call("ingest", "synthetic:300,60", "--out", "data/mnist").code
    assert_refused(
        call("train", "--recipe", "accurate"), 2, "--batch-size 512 is more than the 300"
    )
