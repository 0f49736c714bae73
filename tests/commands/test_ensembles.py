"""The options that name several runs: of score, predict, promote and export."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.commands.conftest import SMALL, Call

BOTH = ("runs/mnist", "runs/b")


@pytest.fixture
def runs(run: Path, dataset: Path, call: Call) -> tuple[str, str]:
    """Two runs with different seeds."""
    assert 0 == call("train", *SMALL, "--run", "runs/b", "--seed", 1, "--epochs", 1).code
    return BOTH


def options(*runs: str) -> list[str]:
    """Return `--run` before each run."""
    return [word for run in runs for word in ("--run", run)]


@pytest.mark.slow
def test_reports(runs: tuple[str, str], call: Call) -> None:
    """The reports of score, of the ledger and of names say which runs are averaged."""
    ended = call("score", *options("runs/mnist@1", "runs/b"))
    members = "2 checkpoints (runs/mnist 000001-000000, runs/b 000001-000000)"
    assert f"average over {members}" in ended.out.replace("\n", " ")
    document = json.loads(call("score", *options("runs/mnist@1", "runs/b"), "--json").out)
    assert list(runs) == document["runs"]
    assert 2 == len(document["members"])
    digest = document["model_digest"]
    shown = call("scores").out.replace("\n", " ")
    assert f"average over {members}" in shown
    assert "average of 2 runs" not in shown
    (entry,) = json.loads(call("scores", "--json").out)["entries"]
    assert [".", "../b"] == entry["runs"]
    assert re.search(r"^runs +\., \.\./b$", call("scores", "--verbose").out, re.MULTILINE)
    promoted = call("promote", "runs/mnist@1", "runs/b", "--as", "champion", "--min-accuracy", 0)
    assert f"average over {members}" in promoted.out.replace("\n", " ")
    assert f"champion: average over {members}" in call("promote", "--list").out.replace("\n", " ")
    assert "already scored" in call("score", "--model", "champion").out
    assert digest == json.loads(call("score", "--model", "champion", "--json").out)["model_digest"]
    page = call("report", "runs/mnist", "--out", "report.html")
    assert 0 == page.code
    assert "test (average of 2 runs)" in Path("report.html").read_text()


def test_predict_and_export(runs: tuple[str, str], call: Call, here: Path) -> None:
    """The other commands that load a model take the same runs."""
    Image.new("L", (28, 28), 0).save("seven.png")
    model = ("predict", "seven.png", "--as-is", "--json")
    digest = json.loads(call(*model, *options(*runs)).out)["model_digest"]
    exported = call("export", *runs, "--to", "model.py", "--json")
    assert digest == json.loads(exported.out)["model_digest"]
    assert digest != json.loads(call(*model).out)["model_digest"]


@pytest.mark.slow
def test_sweep(dataset: Path, call: Call) -> None:
    """`--sweep` names the best trials by their validation loss, one by default."""
    settings = (*SMALL, "--holdout", 50, "--epochs", 1, "--seeds", 3)
    swept = call("sweep", "--grid", "learning_rate=0.0001,0.01", *settings, "--out", "sweeps/a")
    assert 0 == swept.code, swept.err
    one = json.loads(call("score", "--sweep", "sweeps/a", "--json").out)
    assert "runs" not in one
    three = json.loads(call("score", "--sweep", "sweeps/a", "--best", 3, "--json").out)
    assert 3 == len(set(three["runs"]))
    assert str(Path(one["location"]).parents[1]) == three["runs"][0]
    promoted = call("promote", "--sweep", "sweeps/a", "--best", 3, "--as", "champion", "--json")
    assert three["model_digest"] == json.loads(promoted.out)["model"]["model_digest"]
    ended = call("score", "--sweep", "sweeps/a", "--best", 7)
    assert 3 == ended.code
    assert "expected" in ended.err
