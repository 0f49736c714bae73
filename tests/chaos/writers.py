"""Two writers at one moment: one works, the other is told who does; readers never wait.

A holder is made to stand still (SIGSTOP) while others are at it: that these end at all shows that
they do not wait for it.
"""

import random
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from storage.location import open_location
from storage.runs import RECORD, SCORES
from tests.chaos.kills import look_at_dataset, look_at_run, look_at_scores
from tests.chaos.processes import (
    Command,
    ended,
    end_at,
    has_ended,
    held_still,
    run,
    started,
    wait_for_lock,
)
from tests.chaos.scene import Scene, scene
from tests.chaos.subject import Outcome, dataset_outcome, run_outcome, scores_outcome
from tests.chaos.tally import Experiment, Plan, Tally, try_cases
from tests.commands.process import Ended, start_pipeline

JOBS = ("train", "ingest", "score")


@dataclass(frozen=True)
class Writing:
    """One of the three jobs at work in a case's directory."""

    command: Command
    target: Path
    """The dataset, the run, or the run whose scores are written."""
    outcome: Callable[[], Outcome]
    expected: Outcome
    look: Callable[[], None]
