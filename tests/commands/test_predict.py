"""The command predict: its output, its files, and its exit codes for bad pictures."""

import io
import json
import os
import struct
import sys
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from jobs.commands.predict import drawn
from tests.commands.conftest import Call
from tests.commands.process import assert_refused


@pytest.fixture
def seven(run: Path, here: Path) -> str:
    """A drawing of a seven beside a run."""
    picture = np.full((60, 40), 250, np.uint8)
    picture[10:14, 8:32] = picture[10:50, 28:32] = 10
    Image.fromarray(picture).save(here / "seven.png")
    return "seven.png"


def test_three_best_and_what_was_done(seven: str, call: Call) -> None:
    """One line for each picture; --quiet has the best class, --json all of them."""
    ended = call("predict", seven, seven)
    assert (ended.code, ended.err) == (0, "")
    first, second = ended.out.splitlines()
    assert first == second
    assert first.startswith("seven.png: ")
    assert first.count(" %") == 3
    assert first.endswith("(inverted, cropped, centred)")
    quiet = call("predict", seven, "-q").out
    assert quiet.count(" %") == 1
    document = json.loads(call("predict", seven, "--json").out)
    (entry,) = document["pictures"]
    assert sum(entry["probabilities"].values()) == pytest.approx(1)
    assert entry["probabilities"][entry["predicted"]] == entry["probability"]
    assert quiet.startswith(f"seven.png: {entry['predicted']} ")


def test_files(seven: str, here: Path, call: Call) -> None:
    """--show writes what --as-is predicts the same from; --out has a row for each picture."""
    (here / "text.png").write_text("seven")
    ended = call("predict", seven, "text.png", "--show", "seen.png", "--out", "out.csv")
    assert ended.code == 3
    assert "Warning: text.png is not a PNG" in ended.err
    assert "Error: 1 of 2 pictures could not be predicted" in ended.err
    seen = call("predict", "seen.png", "--as-is")
    assert ended.out.split(" (")[0].split(": ")[1] == seen.out.split(" (")[0].split(": ")[1]
    header, first, second = (here / "out.csv").read_text().splitlines()
    assert header == "name,predicted,probability,prepared,error"
    assert first.startswith("seven.png,")
    assert second.startswith("text.png,,,,")


def test_standard_input(seven: str, here: Path, call: Call) -> None:
    """A picture may come from a pipe, once."""
    with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(seven).read_bytes()))):
        assert call("predict", "-").out.startswith("-: ")
    with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""))):
        assert_refused(call("predict", "-"), 3, "Standard input")
    assert_refused(call("predict", "-", "-"), 2, "more than once")


def bomb() -> bytes:
    """Return a small PNG of 20,000 x 20,000 pixels."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(10_000))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_bad_pictures(seven: str, here: Path, call: Call) -> None:
    """A message that names the file and exit code 3, whatever the file contains."""
    animation = io.BytesIO()
    frames = [Image.new("L", (20, 20), level) for level in (0, 255)]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    pixel = io.BytesIO()
    Image.new("L", (1, 1), 255).save(pixel, "PNG")
    files = {
        "empty.png": b"",
        "text.jpg": b"a seven",
        "bomb.png": bomb(),
        "moving.gif": animation.getvalue(),
        "cut.png": Path(seven).read_bytes()[:-30],
        "pixel.png": pixel.getvalue(),
    }
    for name, content in files.items():
        (here / name).write_bytes(content)
        assert_refused(call("predict", name), 3, name)
    raw = here / os.fsdecode(b"\xff.png")
    raw.write_bytes(b"")
    assert_refused(call("predict", raw), 3, r"\xff.png")


def test_wrong_usage(seven: str, here: Path, call: Call) -> None:
    """Names that are no files, and options that do not fit, are refused before any picture."""
    assert_refused(call("predict"), 2, "Missing argument")
    assert_refused(call("predict", seven, "eight.png"), 2, "no picture eight.png")
    assert_refused(call("predict", seven, "."), 2, "directory")
    assert_refused(call("predict", "https://host/x.png"), 2, "https:// URL")
    assert_refused(call("predict", seven, "--out", "x.txt"), 2, "--out", ".csv")
    assert_refused(call("predict", seven, "--show", "x.jpg"), 2, "--show", ".png")
    picture = (here / seven).read_bytes()
    for same in (seven, f"./{seven}", here / seven):
        assert_refused(call("predict", seven, "--show", same), 2, "one of the pictures")
    assert (here / seven).read_bytes() == picture
    assert_refused(call("predict", seven, "--model", "best", "--run", "x"), 2, "leave them out")
    assert_refused(call("predict", seven, "--as-is"), 3, "60 x 40", "28 x 28")


def test_drawn() -> None:
    """Two rows of pixels make a line; encodings without half blocks get shades."""
    image = np.array([[0, 255, 0, 255], [0, 255, 255, 0], [255, 0, 0, 0]], np.uint8)
    assert drawn(image, "utf-8").splitlines() == [" █▄▀", "▀   "]
    assert drawn(image, "ascii").splitlines() == [" #::", ":   "]
    assert drawn(np.zeros((2, 1000), np.uint8), "utf-8") == ""
