"""The console on a terminal: a real pseudo-terminal, 80 columns wide."""

import os
import pty
import re
import sys

import pytest

SCRIPT = """
from jobs.commands.console import Console
console = Console()
for done in (0, 500, 1_000):
    console.progress("epoch 1/2", done, 2_000, "loss 0.5000")
console._bar.refresh()
console.close()
"""


def test_progress_shows_rows_rate_and_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar shows the stage, rows done, rows per second and the loss, on one line."""
    written = bytearray()

    def read(master: int) -> bytes:
        data = os.read(master, 4096)
        written.extend(data)
        return data

    monkeypatch.setenv("COLUMNS", "80")
    status = pty.spawn([sys.executable, "-c", SCRIPT], read)
    assert status == 0, written.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    assert re.search(r"epoch 1/2 .*1,000/2,000 rows.* [\d,]+ rows/s +loss 0\.5000", text), text
