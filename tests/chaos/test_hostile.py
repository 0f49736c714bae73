"""Hostile files, the short part: a few forgeries of every target, in one limited process."""

from functools import partial

from tests.chaos.damage import scene
from tests.chaos.documents import TARGETS
from tests.chaos.hostile import try_targets
from tests.chaos.tally import Plan, Tally, try_cases

EXAMPLES = 8
"""Of each target."""


def test_hostile_files_end_in_a_documented_exit() -> None:
    """Whatever a file says, it is used or refused, in bounded memory; nothing outside is touched."""
    tally = Tally()
    try_case = partial(try_targets, scene().whole.home, EXAMPLES, tuple(TARGETS))
    try_cases("hostile", Plan(1), tally, try_case, [0])
    tally.check()
