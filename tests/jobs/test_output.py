"""Printing: a terminal shows special characters in a name, and never interprets them."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from jobs.commands.tables import facts, table
from jobs.output import one_line, printable
from storage.events import local_time

HOSTILE = {
    "\x1b[31mred": r"\x1b[31mred",
    "\x07\x08\x7f\x9b2J": r"\x07\x08\x7f\x9b2J",
    "a\rb": r"a\rb",
    "abc\u202egnp": r"abc\u202egnp",
    "a\u2066b\u200f": r"a\u2066b\u200f",
    "line\u2028line\x85": r"line\u2028line\x85",
    "caf\udce9": r"caf\xe9",
    "half\ud83d": r"half\ud83d",
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items())
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    """Control, escape and reordering characters, and bytes that are not text, are escaped."""
    assert shown == printable(text) == one_line(text)


def test_plain_text_stays() -> None:
    """Letters of any script are unchanged, as are line feeds and tabs in multi-line text."""
    text = "Zürich 東京 \U0001f600\n\ta\tb"
    assert text == printable(text)
    assert "Zürich 東京 \U0001f600\\n\\ta\\tb" == one_line(text)


def test_a_name_adds_no_line_to_a_table() -> None:
    """A line feed in a name is escaped, and column widths fit the escaped text."""
    assert table(["name", "rows"], [["a\nb", 1]]).splitlines() == ["name  rows", "a\\nb     1"]
    assert facts([("dataset", "a\nb")]) == "dataset  a\\nb"


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 7, 31, 22, 30, 1, 999_999, tzinfo=UTC),
        "2026-07-31T22:30:01.999+00:00",
        "2026-07-31T22:30:01",
    ],
)
def test_times_have_their_offset(moment: datetime | str) -> None:
    """A time for people is local, to the second, with its offset; a text without one is UTC."""
    assert local_time(moment, ZoneInfo("Europe/Berlin")) == "2026-08-01 00:30:01+02:00"
    assert datetime.fromisoformat(local_time(moment)) == datetime(
        2026, 7, 31, 22, 30, 1, tzinfo=UTC
    )
