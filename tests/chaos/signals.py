"""SIGTERM and SIGINT: the job stops where it can be gone on with, soon; the second one ends it."""

import random
import signal
from functools import partial
from pathlib import Path

from storage.checkpoints import CheckpointName, list_checkpoints
from storage.location import open_location
from storage.runs import SCORES, open_run, run_exists
from tests.chaos.kills import assert_nothing_left, look_at_dataset, look_at_run, look_at_scores
from tests.chaos.processes import (
    Command,
    Work,
    end_at,
    ended,
    has_ended,
    held_still,
    run,
    started,
    wait_for,
    wait_for_lock,
)
from tests.chaos.scene import CONFIG, Scene, scene
from tests.chaos.subject import dataset_outcome, run_outcome, scores_outcome
from tests.chaos.tally import Experiment, Plan, Tally, try_cases

SIGNALS = (signal.SIGTERM, signal.SIGINT)
EVERY_STEP = ("--checkpoint-every", "1")


def stop_train(scene: Scene, case: int, chance: random.Random) -> str:
    """Stop a training at a random moment, twice; it goes on to the same bits."""
    with scene.case() as place:
        directory = place / "run"
        command = scene.train(directory)
        for _ in range(2):
            stop_at_random(command, scene.work["train"], chance, "the checkpoint is saved")
            look_at_run(directory, scene.outcome["run"])
        assert 0 == run(command).code
        assert scene.outcome["run"] == run_outcome(open_location(directory))
        assert_nothing_left(place)
    return "survived"


def stop_ingest(scene: Scene, case: int, chance: random.Random) -> str:
    """Stop an ingest at a random moment; nothing of it is left, and it can be begun again."""
    with scene.case() as place:
        dataset = place / "dataset"
        command = scene.ingest(dataset)
        if stop_at_random(command, scene.work["ingest"], chance, "nothing was published"):
            look_at_dataset(dataset, None, scene.outcome["dataset"])
            assert not dataset.exists()
            assert_nothing_left(place)
        assert 0 == run(command).code
        assert scene.outcome["dataset"] == dataset_outcome(open_location(dataset))
    return "survived"


def stop_score(scene: Scene, case: int, chance: random.Random) -> str:
    """Stop a scoring at a random moment; what it has scored is kept, and it goes on."""
    with scene.case() as place:
        directory = scene.unscored_run(place)
        command = scene.score(directory)
        stop_at_random(command, scene.work["score"], chance, "are kept")
        look_at_scores(directory / SCORES, scene.outcome["scores"])
        assert 0 == run(command).code
        assert scene.outcome["scores"] == scores_outcome(open_location(directory / SCORES))
        assert_nothing_left(place)
    return "survived"


def stop_at_random(command: Command, work: Work, chance: random.Random, told: str) -> bool:
    """Send one of the two signals while a command works; whether it was stopped by that.

    It may have done its work by then, or come too near to the end to be stopped.
    """
    number = chance.choice(SIGNALS)
    moment = chance.uniform(0, work.writing)
    with started(command) as process:
        locked = wait_for_lock(process, command)
        sent = locked and end_at(process, moment, number)
        found = ended(process)
    if found.code == 0 or (found.out and found.code == -number):
        return False  # the second is for the moment in which the job is over, and Python not yet
    assert sent and found.code == 128 + number, (found, number)
    assert found.err.startswith("Stopped") and told in found.err, found.err
    assert found.err.count("\n") == 1, found.err
    return True


def stop_soon(scene: Scene, case: int, chance: random.Random) -> str:
    """A training that saves at each step shows how far it is, and stops within two steps."""
    with scene.case() as place:
        directory = place / "run"
        plain = scene.train(directory)
        command = Command((*plain.arguments, *EVERY_STEP), plain.lock)
        number = chance.choice(SIGNALS)
        steps = chance.randrange(1, CONFIG.epochs * scene.batches - 3)
        with started(command) as process:
            assert wait_for(lambda: steps_saved(scene, directory) >= steps, process)
            with held_still(process):
                before = steps_saved(scene, directory)
                process.send_signal(number)
            found = ended(process)
        assert found.code == 128 + number, found
        assert before <= steps_saved(scene, directory) <= before + 2
        assert 0 == run(plain).code
        assert scene.outcome["run"] == run_outcome(open_location(directory))
    return "survived"


def steps_saved(scene: Scene, directory: Path) -> int:
    """The step of the newest checkpoint of a run; 0 where there is none yet."""
    location = open_location(directory)
    if not run_exists(location):
        return 0
    newest = max(list_checkpoints(open_run(location)), default=CheckpointName(0, 0))
    return newest.epoch * scene.batches + newest.step


def stop_at_once(scene: Scene, case: int, chance: random.Random) -> str:
    """Two signals in one moment end a training without a word; the next one mends it."""
    with scene.case() as place:
        directory = place / "run"
        command = scene.train(directory)
        with started(command) as process:
            assert wait_for_lock(process, command)
            assert not has_ended(process, chance.uniform(0, scene.work["train"].writing / 2))
            with held_still(process):
                for number in SIGNALS:
                    process.send_signal(number)
            found = ended(process)
        assert found.code in [128 + number for number in SIGNALS], found
        assert "" == found.out + found.err, found
        look_at_run(directory, scene.outcome["run"])
        assert 0 == run(command).code
        assert scene.outcome["run"] == run_outcome(open_location(directory))
        assert_nothing_left(place)
    return "survived"


def stop_in_start_up(scene: Scene, case: int, chance: random.Random) -> str:
    """A signal in the start-up ends a command without harm, however far it has come."""
    number = chance.choice(SIGNALS)
    with scene.case() as place:
        directory = place / "run"
        command = scene.train(directory)
        with started(command) as process:
            sent = end_at(process, chance.uniform(0, scene.work["train"].start_up), number)
            found = ended(process)
        assert sent and found.code in (128 + number, -number), found
        look_at_run(directory, scene.outcome["run"])
        assert 0 == run(command).code
        assert scene.outcome["run"] == run_outcome(open_location(directory))
    return "survived"


TRIES = {
    "stop-train": stop_train,
    "stop-ingest": stop_ingest,
    "stop-score": stop_score,
    "stop-soon": stop_soon,
    "stop-at-once": stop_at_once,
    "stop-in-start-up": stop_in_start_up,
}


def run_signals(name: str, plan: Plan, tally: Tally) -> None:
    """Try the cases of one of them."""
    try_cases(name, plan, tally, partial(TRIES[name], scene()), plan.cases())


EXPERIMENTS = tuple(
    Experiment(name, partial(run_signals, name), 30, scaled_by="kills") for name in TRIES
)
