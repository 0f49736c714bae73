"""Hostile files, the short part: a few forgeries of every target, in one limited process."""

from tests.chaos.hostile import SAMPLE
from tests.chaos.tally import Plan, Tally


def test_hostile_files_end_in_a_documented_exit() -> None:
    """Whatever a file says, it is used or refused, in bounded memory; nothing else is touched."""
    tally = Tally()
    SAMPLE.run(Plan(1), tally)
    tally.check()
