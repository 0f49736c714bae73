"""Progress on a pseudo-terminal."""

import os
import pty
import re
import sys

import pytest

SCRIPT = """
from jobs.commands import console as module
module.REDRAW_SECONDS = -1.0
console = module.Console()
for done in (0, 500, 1_000):
    console.progress("epoch 1/2", done, 2_000, "loss 0.5000")
console.say("end")
console.close()
"""


def test_progress_stays_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress shows rows, rate and loss, cut to the terminal's width, and is removed."""
    written = bytearray()

    def read(master: int) -> bytes:
        data = os.read(master, 4096)
        written.extend(data)
        return data

    monkeypatch.setenv("COLUMNS", "60")
    status = pty.spawn([sys.executable, "-c", SCRIPT], read)
    assert status == 0, written.decode()
    *drawn, removed, end = written.decode().split("\r", 4)
    assert all(len(line) == 59 for line in drawn)
    assert re.match(r"epoch 1/2: 1,000 of 2,000 rows, [\d,]+ rows/s, 0 s left", drawn[-1])
    assert (" " * 59, "end\r\n") == (removed, end)
