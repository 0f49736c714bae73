"""SIGKILL at random moments: the same command, run again to its end, gives what it always gives.

Each case kills its command once or twice in a row, and after each kill looks at what is on
the disk as a reader would: what counts as there is whole.
"""

import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from storage.errors import BadDataError
from storage.location import open_location
from storage.predictions import is_complete
from storage.runs import RECORD, SCORES, open_run
from storage.verify import verify_run
from tests.chaos.processes import Command, Work, end_at, run, started, wait_for_lock
from tests.chaos.scene import Scene, scene
from tests.chaos.subject import Outcome, dataset_outcome, run_outcome, scores_outcome, untimed
from tests.chaos.tally import Experiment, Plan, Tally, try_cases

KILLS_IN_A_ROW = (1, 1, 2)
IN_START_UP = 0.1
"""The share of kills before the command holds its lock."""

Look = Callable[[], None]
"""Looks at what a killed command has left; an `AssertionError` says what is wrong with it."""


def kill_ingest(scene: Scene, case: int, chance: random.Random) -> str:
    """Kill ingests into a place that is empty or, every other time, holds another dataset."""
    replaced = case % 2 == 1
    landed = 0
    while not landed:
        with scene.case() as place:
            dataset = place / "dataset"
            if replaced:
                assert 0 == run(scene.ingest(dataset, other=True)).code
            command = scene.ingest(dataset, *["--overwrite"] * replaced)
            before = scene.other_dataset if replaced else None
            look = partial(look_at_dataset, dataset, before, scene.outcome["dataset"])
            landed = kill_until_done(command, scene.work["ingest"], chance, look)
            assert scene.outcome["dataset"] == dataset_outcome(open_location(dataset))
            assert_nothing_left(place)
    return "survived"


def look_at_dataset(dataset: Path, before: Outcome | None, after: Outcome) -> None:
    """A reader finds the dataset there was before, if any, or the new one, each whole."""
    try:
        found = dataset_outcome(open_location(dataset))
    except BadDataError as error:
        expected = "was being replaced" if before else "There is no dataset"
        assert expected in str(error), error
    else:
        assert found in (before, after), f"a reader finds {found}"


def kill_train(scene: Scene, case: int, chance: random.Random) -> str:
    """Kill trainings of one run, which go on with `--resume`."""
    landed = 0
    while not landed:
        with scene.case() as place:
            directory = place / "run"
            look = partial(look_at_run, directory, scene.outcome["run"])
            landed = kill_until_done(scene.train(directory), scene.work["train"], chance, look)
            assert scene.outcome["run"] == run_outcome(open_location(directory))
            assert_nothing_left(place)
    return "survived"


def look_at_run(directory: Path, oracle: Outcome) -> None:
    """Once there is a run, all that is in it is sound, and its metrics are the oracle's first."""
    location = open_location(directory)
    if not location.exists(RECORD):
        return
    wrong = [str(error) for _, error in verify_run(location) if error is not None]
    assert not wrong, wrong
    metrics = untimed(open_run(location).metrics())
    assert metrics == oracle["metrics"][: len(metrics)]


def kill_score(scene: Scene, case: int, chance: random.Random) -> str:
    """Kill scorings of one run."""
    landed = 0
    while not landed:
        with scene.case() as place:
            directory = scene.unscored_run(place)
            look = partial(look_at_scores, directory / SCORES, scene.outcome["scores"])
            landed = kill_until_done(scene.score(directory), scene.work["score"], chance, look)
            assert scene.outcome["scores"] == scores_outcome(open_location(directory / SCORES))
            assert_nothing_left(place)
    return "survived"


def look_at_scores(directory: Path, oracle: Outcome) -> None:
    """What says that it is complete is what it has to be."""
    location = open_location(directory)
    for home, expected in oracle.items():
        if is_complete(location.child(home)):
            assert expected == scores_outcome(location)[home]


def kill_until_done(command: Command, work: Work, chance: random.Random, look: Look) -> int:
    """Kill a command some times in a row, then let it end; how many of the kills came in time."""
    landed = 0
    for _ in range(chance.choice(KILLS_IN_A_ROW)):
        if not killed(command, work, chance):
            break
        landed += 1
        look()
    last = run(command)
    assert 0 == last.code, last.err
    return landed


def killed(command: Command, work: Work, chance: random.Random) -> bool:
    """Start a command and kill it at a random moment; False where it had ended well before."""
    early = chance.random() < IN_START_UP
    moment = chance.uniform(0, work.start_up if early else work.writing)
    with started(command) as process:
        if (early or wait_for_lock(process, command)) and end_at(process, moment, signal.SIGKILL):
            return True
        _, err = process.communicate()
        assert 0 == process.returncode, err
        return False


def assert_nothing_left(place: Path) -> None:
    """Nothing hidden is left but locks: what dead writers leave, the next one clears away."""
    hidden = [path.name for path in place.rglob(".*") if not path.name.endswith(".lock")]
    assert not hidden, f"left behind: {hidden}"


TRIES = {"kill-train": kill_train, "kill-ingest": kill_ingest, "kill-score": kill_score}
COUNTS = {"kill-train": 200, "kill-ingest": 100, "kill-score": 100}


def run_kills(name: str, plan: Plan, tally: Tally) -> None:
    """Try the cases of one of the three."""
    try_cases(name, plan, tally, partial(TRIES[name], scene()), plan.cases())


EXPERIMENTS = tuple(
    Experiment(name, partial(run_kills, name), count, scaled_by="kills")
    for name, count in COUNTS.items()
)
