"""Tables fit the terminal; omitted columns are printed with --verbose or --json."""

import re
from typing import Any

import numpy as np
import pytest

from jobs.commands.ledger_report import ledger_report
from jobs.commands.score_reports import quality_text
from jobs.commands.tables import facts, fit, grid, table
from jobs.scoring.metrics import ConfusionCounter
from storage.places import open_location
from tests.commands.conftest import Call
from tests.commands.process import Ended
from tests.jobs.inboxes import put_images

LONG_FILE = "2026/11/deliveries from the southern warehouse/shift 2/batch-0001-images-idx3-ubyte"
LONG_RUN = "experiments/wide networks/with a rather long name/2026-11-27/seed-0"


def assert_fits(text: str, width: int) -> None:
    assert max(map(len, text.splitlines())) <= width, text


def joined(text: str) -> str:
    """The text without its layout, so that wrapped words are joined."""
    return "".join(text.split())


@pytest.fixture(params=[80, 200])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The width of the terminal."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def test_text_is_wrapped_and_numbers_are_not(width: int) -> None:
    """A long path is broken after slashes; no character is lost."""
    text = table(["file", "rows"], [[LONG_FILE, 1_000_000]])
    assert_fits(text, width)
    assert (width == 200) == (LONG_FILE in text)
    assert joined(f"filerows{LONG_FILE}") == joined(text.replace(" 1000000", ""))
    if width == 80:
        assert text.splitlines()[1].startswith("2026/11/deliveries from the southern warehouse/")


def test_optional_columns_are_left_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optional column is left out before any text is wrapped."""
    arguments = (["a", "b", "c"], [["x" * 10, "y" * 10, "z" * 10]], ("b", "c"))
    monkeypatch.setenv("COLUMNS", "34")
    assert "z" * 10 in table(*arguments, optional=("c",))
    monkeypatch.setenv("COLUMNS", "33")
    assert ["a           b", "x" * 10 + "  " + "y" * 10] == table(
        *arguments, optional=("c",)
    ).splitlines()


def test_grid(width: int) -> None:
    """As many texts as fit share a line."""
    cells = [f"class {number}: {number:,}" for number in range(62)]
    text = grid(cells)
    assert_fits(text, width)
    assert joined("".join(cells)) == joined(text)
    assert len(text.splitlines()) == -(-62 // ((width + 2) // (len(cells[-1]) + 2)))


def quality(names: list[str]) -> dict[str, Any]:
    """Metrics of 200 rows per class, a tenth of which are predicted as the next class."""
    true = np.repeat(np.arange(len(names)), 200)
    predicted = (true + (np.arange(len(true)) % 10 == 0)) % len(names)
    counter = ConfusionCounter(tuple(names))
    eye = np.eye(len(names), dtype=np.uint8)
    counter.add(np.float32(eye[predicted]), predicted.astype(np.int32), eye[true])
    return counter.result()


@pytest.mark.parametrize("classes", [10, 26, 47, 62])
@pytest.mark.parametrize("name", ["{}", "a class with a long name {}"])
def test_quality_of_many_classes(classes: int, name: str, width: int) -> None:
    """Every class is listed; a confusion matrix that does not fit is summarised."""
    names = [name.format(number) for number in range(classes)]
    text = quality_text(quality(names))
    assert_fits(text, width)
    assert text.count(" 90.00 % ") >= classes
    matrix = "true \\ predicted" in text
    assert matrix != ("--json has the confusion matrix" in text)
    assert matrix == (name == "{}" and (classes == 10 or (width == 200 and classes < 47)))


def test_facts(width: int) -> None:
    """A digest that does not fit beside a long name is put below it."""
    pairs = [("train", "a" * 12), ("train-images-idx3-ubyte.gz", "d" * 64)]
    text = facts(pairs)
    assert_fits(text, width)
    assert joined(text) == joined("".join(map("".join, pairs)))
    assert len(text.splitlines()) == (3 if width == 80 else 2)


def test_line_of_two_parts(width: int) -> None:
    """A line that is too wide is broken at its semicolon, and its first part at spaces."""
    accuracies = "Accuracy 98.50 % (train), 97.50 % (test), 96.67 % (validation) after epoch 10"
    assert "a\n" + "b" * width == fit("a; " + "b" * width)
    assert "a\nb\n" + "c" * width == fit("a; b; " + "c" * width)
    lines = fit(f"{accuracies}, the best of 12; model 76ce3a09c55a in runs/mnist").splitlines()
    assert_fits("\n".join(lines), width)
    assert ("model 76ce3a09c55a in runs/mnist" == lines[-1]) == (width == 80)


@pytest.mark.slow
def test_scores_and_names(width: int, dataset: Any, run: Any, call: Call) -> None:
    """Tables of the ledger, an inbox and promoted names fit; details have the omitted columns."""
    put_images(run.parent.parent / "inbox" / LONG_FILE, 1, labelled=True)
    (run.parent.parent / "inbox" / "bad-images-idx3-ubyte").write_bytes(b"no images")
    long_run = run.parent.parent / LONG_RUN
    long_run.parent.mkdir(parents=True)
    run.rename(long_run)
    average = ("--checkpoint", "1,2", "--average-shifts", "1")
    assert_fits(_printed(call("promote", LONG_RUN, "--as", "average", *average)), width)
    assert 0 == call("promote", LONG_RUN, "--as", "champion").code
    scoring = ("score", "--run", LONG_RUN, "--dataset", "data/mnist")
    assert (0, 0) == (call(*scoring).code, call(*scoring, *average).code)
    scored = _printed(call("score", "--run", LONG_RUN, "--inbox", "inbox", "--settle", "0"), 3)
    ledger = _printed(call("scores", LONG_RUN))
    assert_fits(scored.partition("\nwhat ")[2].partition("\n\n")[0], width)
    assert_fits(ledger.rpartition("\n\n")[0], width)
    listed = _printed(call("promote", "--list"))
    assert_fits(listed, width)
    text = ": average over 2 checkpoints and shifts of up to 1 pixel"
    assert joined(f"average{text}") in joined(listed)
    digests = re.findall(rf"([0-9a-f]{{12}}){joined(text)}", joined(ledger))
    assert 1 == len(digests)
    assert joined(ledger).count(digests[0]) == 2  # in the table, too
    assert ("scores/test-" in ledger) == (width == 200)
    assert "bad-images-idx3-ubyte:notscored:thisisnotanIDXfile" in joined(ledger)
    report = ledger_report(open_location(LONG_RUN), None, failed=False)
    for entry in report.document["entries"]:
        assert entry["model_digest"] in report.details
        assert entry.get("result", "") in report.details
    assert_fits("\n".join(re.findall(r"^.*[0-9a-f]{64}$", report.details, re.MULTILINE)), width)


def _printed(ended: Ended, code: int = 0) -> str:
    assert code == ended.code, ended.err
    return ended.out
