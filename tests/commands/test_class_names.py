"""Class names are checked where they are given, and fit wherever they are shown."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jobs.commands.score_reports import quality_text
from jobs.commands.tables import table, width_of
from jobs.scoring.metrics import ConfusionCounter
from tests.commands.conftest import Call
from tests.storage.idx_files import write_files

LONG = "A class whose name has 31 chars"
CHINESE = "連衣裙外套"
NAMES = ["T-shirt/top", "$\\frac$", "Dress", CHINESE, LONG, "a,b", 'say "x"', "7", "Bag", "é"]


def write_labelled(directory: Path, labels: list[int]) -> str:
    values = np.resize(np.array(labels, np.uint8), 40)
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4)).astype(np.uint8)
    write_files(directory, images, values, images[::-1], values[::-1])
    return str(directory)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\n", "There are 2 class names for labels from 0 to 2; expected one for each label"),
        (b"a\nb\na\n", "The class name 'a' is given twice"),
        (b"a\n\nb\n", "is not a list of names"),
        (b"", "is not a list of names"),
        (b"\n\n", "is not a list of names"),
        (b"a\x00\nb\nc\n", "is not a list of names"),
        (b"\x89PNG\r\n\x1a\n\xff\n", "is not a list of names"),
        ("a\nb\nc\n".encode("utf-16"), "is not a list of names"),
        (b"a\nb\nc\n" * 200_000, "is not a list of names"),
        (None, "names.txt, which is not a file"),
    ],
)
def test_bad_files(content: bytes | None, expected: str, here: Path, call: Call) -> None:
    """A file that is not a list of different names is a usage error, and nothing is made."""
    source = write_labelled(here / "files", [0, 1, 2])
    if content is not None:
        (here / "names.txt").write_bytes(content)
    ended = call("ingest", source, "--out", "set", "--class-names", "names.txt")
    assert 2 == ended.code
    assert expected in ended.err
    assert not Path("set").exists()
    ended = call("ingest", source, "--out", "set", "--class-names", ".")
    assert "--class-names is ., which is not a file" in ended.err


@pytest.mark.parametrize(
    ("labels", "content", "names"),
    [
        ([0, 1, 2], "\ufeffcat\r\ndog \r\ncow\r\n\r\n".encode(), ["cat", "dog", "cow"]),
        ([1, 2, 3], b"cat\ndog\ncow", ["cat", "dog", "cow"]),
        ([0, 2], b"cat\ndog\ncow\n", ["cat", "cow"]),
        ([1, 3, 7], b"none\ncat\n-\ndog\n4\n5\n6\ncow\n", ["cat", "dog", "cow"]),
    ],
)
def test_names_of_labels(
    labels: list[int], content: bytes, names: list[str], here: Path, call: Call
) -> None:
    """A name belongs to the label of its line's number, or of its rank; others cause a warning."""
    source = write_labelled(here / "files", labels)
    Path("names.txt").write_bytes(content)
    ended = call("ingest", source, "--out", "set", "--class-names", "names.txt", "--json")
    assert names == json.loads(ended.out)["class_names"]
    assert ("Check that its first line is the first class" in ended.err) == (
        len(content.split()) > len(labels)
    )


def test_other_names_are_another_dataset(here: Path, call: Call) -> None:
    """The same names keep a dataset; others, or none, are a conflict until it is replaced."""
    source = write_labelled(here / "files", list(range(10)))
    Path("names.txt").write_text("\n".join(NAMES))
    Path("others.txt").write_text("\n".join(reversed(NAMES)))
    command = ("ingest", source, "--out", "set", "--json")
    named = json.loads(call(*command, "--class-names", "names.txt").out)
    assert json.loads(call(*command, "--class-names", "names.txt").out)["already_done"]
    for other in ((), ("--class-names", "others.txt")):
        ended = call(*command, *other)
        assert 4 == ended.code
        assert "pass its own --class-names to keep it" in ended.err
    unnamed = json.loads(call(*command, "--overwrite").out)
    assert named["digest"] != unnamed["digest"]
    assert named["splits"]["train"]["digest"] == unnamed["splits"]["train"]["digest"]


@pytest.mark.slow
def test_names_are_shown_everywhere(
    here: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long and Chinese names, commas, quotes and dollar signs fit 80 columns, files, pictures."""
    monkeypatch.setenv("COLUMNS", "80")
    source = write_labelled(here / "files", list(range(10)))
    Path("names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    call("ingest", source, "--out", "set", "--class-names", "names.txt")
    inspected = call("inspect", "set", "--images", "examples.png")
    assert (0, "") == (inspected.code, inspected.err)
    lines = [line for line in inspected.out.splitlines() if re.search(r" 4 +4$", line)]
    assert (10, 1) == (len(lines), len(set(map(width_of, lines))))
    sizes = ("--epochs", "1", "--batch-size", "10", "--network", "relu-4")
    trained = call("train", "--dataset", "set", "--run", "run", *sizes)
    assert 0 == trained.code, trained.err
    arguments = ("--dataset", "set", "--run", "run", "--out", "p.csv", "--probabilities")
    scored = call("score", *arguments)
    assert 0 == scored.code, scored.err
    for text in (inspected.out, scored.out):
        assert max(map(width_of, text.splitlines())) <= 80
        assert set(NAMES) <= {name for name in NAMES if f"\n{name} " in text}
    header = Path("p.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "p_$\\frac$,p_Dress,p_連衣裙外套" in header
    assert '"p_a,b","p_say ""x""",p_7' in header


def test_columns_after_wide_names_are_aligned() -> None:
    """Chinese characters take two columns of a terminal, combining accents none."""
    text = table(["class", "rows"], [[CHINESE, 5], ["e\u0301", 10], ["0123456789", 1]])
    assert [16] * 4 == [width_of(line) for line in text.splitlines()]
    count = ConfusionCounter((CHINESE, LONG))
    probabilities = np.full((2, 2), 0.5, np.float32)
    count.add(probabilities, np.array([0, 1], np.int32), np.eye(2, dtype=np.uint8))
    rows = [line for line in quality_text(count.result()).splitlines() if "100.00 %" in line]
    assert 1 == len({width_of(line) for line in rows})
