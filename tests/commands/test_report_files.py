"""The reports of the default run on MNIST and of a night with bad files, and pictures of both.

They are kept in the directory that the environment variable REPORT_DIR names.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from storage.dataset import open_dataset
from storage.places import open_location
from tests.commands.browser import chromium, visit
from tests.commands.conftest import Call

EACH = 500
"""Rows of each file of the night."""
MOST_BYTES = 3_000_000


def write_night(inbox: Path) -> None:
    """Write files that are good, unlabelled, inverted, noise, blank and broken."""
    block = open_dataset(open_location("data/mnist")).split("test").read_chunk(0)
    assert block.targets is not None
    images = block.inputs[:, 1:].reshape(-1, 28, 28)
    labels = block.targets.argmax(axis=1)
    first, second, third = (slice(start, start + EACH) for start in (0, EACH, 2 * EACH))
    inbox.mkdir()
    np.savez(inbox / "good.npz", x=images[first], y=labels[first])
    np.save(inbox / "unlabelled.npy", images[second])
    np.savez(inbox / "inverted.npz", x=255 - images[third], y=labels[third])
    shape = (EACH, 28, 28)
    np.save(inbox / "noise.npy", np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    np.save(inbox / "blank.npy", np.zeros(shape, np.uint8))
    (inbox / "torn.npz").write_bytes((inbox / "good.npz").read_bytes()[:1000])


@pytest.mark.slow
def test_reports_and_pictures(mnist_dir: Path, call: Call, tmp_path: Path) -> None:
    """The pages are small, make no request, log nothing, fit 400 and 1,280 pixels, and say it."""
    kept = Path(os.environ.get("REPORT_DIR") or tmp_path / "reports")
    kept.mkdir(parents=True, exist_ok=True)
    default, night = kept / "default.html", kept / "night.html"
    assert 0 == call("ingest", mnist_dir, "--out", "data/mnist").code
    for command in (["train"], ["score"], ["score", "--split", "train"]):
        assert 0 == call(*command).code
    assert 0 == call("report", "runs/mnist", "--out", default).code
    write_night(Path("inbox"))
    limits = ("--min-accuracy", 0.9, "--max-drift", 3)
    assert 3 == call("score", "--inbox", "inbox", "--settle", 0, *limits).code
    assert 0 == call("report", "runs/mnist", "--out", night).code
    text = night.read_text("utf-8")
    assert "No problem was noticed." in default.read_text("utf-8")
    assert "4 of 8 scorings failed or missed a gate." in text
    for words in ("inverted images?", "noise?", "blank images?", "torn.npz: not scored."):
        assert words in text
    for name in ("good.npz: ", "unlabelled.npy: "):
        assert name not in text
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not on PATH")
    overflow = "document.documentElement.scrollWidth - window.innerWidth"
    with chromium(program, tmp_path / "profile") as address:
        for page in (default, night):
            assert page.stat().st_size < MOST_BYTES
            for width in (400, 1280):
                picture = kept / f"{page.stem}-{width}.png"
                seen = visit(address, page, width, overflow, picture=picture)
                others = [url for url in seen.requests if not url.startswith("data:")]
                assert ([page.absolute().as_uri()], []) == (others, seen.messages)
                assert [0] == seen.values
                assert picture.stat().st_size > 0
