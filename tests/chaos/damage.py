"""Damage to every kind of file is detected by `verify` and by the commands that use the file.

Each case damages one file in a copy of the three commands' artefacts. Then `verify` and every
command that reads the file are run. Each gives the undisturbed result, or exits with code 3 and
names the place. No other result and no other exit code is allowed.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from storage.checkpoints import DIRECTORY, MANIFEST, STATE, list_checkpoints
from storage.places import open_location
from storage.runs import LOCK, RECORD, SCORES, open_run
from storage.scores import scoring_homes
from tests.chaos.subject import (
    Outcome,
    Subject,
    longer,
    run_outcome,
    scores_outcome,
    undisturbed,
)
from tests.chaos.tally import Experiment, scratch
from tests.commands.process import Ended, run_here
from tests.commands.sets import tree
from tests.storage.damages import truncations, with_flipped_bit

CONFIG = longer(keep=1000)
"""Keeps all six checkpoints, two of each epoch."""


@dataclass(frozen=True)
class Scene:
    """The subject that is copied and damaged, another subject, and the expected outcomes."""

    whole: Subject
    other: Subject
    """A subject made by the same commands from other rows, with the same file names."""
    outcome: Outcome
    scores_at: dict[str, Outcome]
    """For each checkpoint, the scores of a run that ends there."""

    @property
    def files(self) -> list[str]:
        """The key of every file that the commands made."""
        keys = open_location(self.whole.home).objects()
        return [key for key in keys if key.startswith(("dataset/", "run/"))]

    @contextmanager
    def copy(self) -> Iterator[Subject]:
        """Copy the subject for one case."""
        with TemporaryDirectory(prefix="damage-") as directory:
            yield self.whole.copy(Path(directory) / "copy")


@cache
def scene() -> Scene:
    """Return this process's scene, whose directory is removed when the process ends."""
    place = scratch()
    whole = undisturbed(place / "whole", CONFIG)
    other = undisturbed(place / "other", CONFIG, seed=8)
    scores_at = {}
    for name in checkpoints(whole):
        with halted(whole, name) as run:
            scores_at[name] = score_latest(whole, run)[1]
    return Scene(whole, other, whole.outcome(), scores_at)


def checkpoints(subject: Subject) -> list[str]:
    """Return the names of the run's checkpoints, oldest first."""
    return [str(name) for name in list_checkpoints(open_run(open_location(subject.run)))]


@contextmanager
def halted(subject: Subject, checkpoint: str) -> Iterator[Path]:
    """Copy the run's state right after a checkpoint, without scores."""
    with TemporaryDirectory(dir=subject.home) as directory:
        names = shutil.ignore_patterns(SCORES)
        run = Path(shutil.copytree(subject.run, Path(directory) / "run", ignore=names))
        for path in (run / DIRECTORY).iterdir():
            if path.name > checkpoint:
                shutil.rmtree(path)
        yield run


def score_latest(subject: Subject, run: Path) -> tuple[Ended, Outcome]:
    """Score with the latest checkpoint; return the exit and message, and the scores if any."""
    ended = run_here(*subject.score_with(run), "--checkpoint", "latest")
    return ended, scores_outcome(open_location(run / SCORES)) if ended.code == 0 else {}


def flip(scene: Scene, case: int, chance: random.Random) -> str:
    """Flip one bit of a file; the cases take the files in turn."""
    files = scene.files
    with scene.copy() as copy:
        key = files[case % len(files)]
        path = copy.home / key
        data = path.read_bytes()
        if not data:
            return "harmless"  # an empty lock file
        path.write_bytes(with_flipped_bit(data, chance))
        return judge(scene, copy, key)


def truncate(scene: Scene, case: int, chance: random.Random) -> str:
    """Truncate a file: to nothing, at each 4 KiB, and by one byte."""
    key, size = truncation_cases(scene)[case]
    with scene.copy() as copy:
        path = copy.home / key
        path.write_bytes(path.read_bytes()[:size])
        return judge(scene, copy, key)


def truncation_cases(scene: Scene) -> list[tuple[str, int]]:
    """Return every file with every length that it is truncated to."""
    sizes = {key: (scene.whole.home / key).stat().st_size for key in scene.files}
    return [(key, length) for key, size in sizes.items() for length in truncations(size) if size]


def misplace(scene: Scene, case: int, chance: random.Random) -> str:
    """Remove or replace a file or directory."""
    act, key = misplacement_cases(scene)[case]
    with scene.copy() as copy:
        act(scene, copy, key)
        return judge(scene, copy, key, *([next_similar(scene, key)] if act is swap else []))


Act = Callable[[Scene, Subject, str], None]


def delete(scene: Scene, copy: Subject, key: str) -> None:
    """Delete the file."""
    (copy.home / key).unlink()


def delete_directory(scene: Scene, copy: Subject, key: str) -> None:
    """Delete the file's directory."""
    shutil.rmtree((copy.home / key).parent)


def swap(scene: Scene, copy: Subject, key: str) -> None:
    """Swap the file and the next similar one."""
    one, other = copy.home / key, copy.home / next_similar(scene, key)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def take_others(scene: Scene, copy: Subject, key: str) -> None:
    """Replace the file by the other subject's."""
    shutil.copy(counterpart(scene, key), copy.home / key)


def take_others_directory(scene: Scene, copy: Subject, key: str) -> None:
    """Replace the file's directory by the other subject's."""
    delete_directory(scene, copy, key)
    shutil.copytree(counterpart(scene, key).parent, (copy.home / key).parent)


def next_similar(scene: Scene, key: str) -> str:
    """Return the next file, cyclically, of the same artefact with the same role."""
    similar = [other for other in scene.files if role(other) == role(key)]
    return similar[(similar.index(key) + 1) % len(similar)]


def role(key: str) -> tuple[str, str]:
    """Return the artefact of a file and its name, or `chunk`."""
    name = Path(key).name
    return key.partition("/")[0], "chunk" if name.startswith("c.") else name


def counterpart(scene: Scene, key: str) -> Path:
    """Return the other subject's file with the same role."""
    return scene.other.home / key.replace(scene.whole.scoring.name, scene.other.scoring.name)


def misplacement_cases(scene: Scene) -> list[tuple[Act, str]]:
    """Return every file with each act, and every directory, by one of its files."""
    files = [key for key in scene.files if not key.endswith(".lock")]
    cases: list[tuple[Act, str]] = [
        (act, key)
        for key in files
        for act in (delete, swap, take_others)
        if act is not swap or next_similar(scene, key) != key
    ]
    directories = {str(Path(key).parent): key for key in files if key.count("/") > 1}
    for directory, key in directories.items():
        cases.append((take_others_directory, key))
        if DIRECTORY not in directory:  # a run with one checkpoint fewer is sound
            cases.append((delete_directory, key))
    return cases


def judge(scene: Scene, copy: Subject, key: str, *more: str) -> str:
    """Return the outcome of a case that damaged the file `key` of a copy, and `more`."""
    artefact = key.partition("/")[0]
    verified = run_here("verify", copy.home / artefact, "--quiet")
    assert verified.code in (0, 3), f"{key}: verify ended with {verified}"
    if verified.code == 3:
        report = verified.out + verified.err
        assert any(names_place(report, copy.home / at) for at in (key, *more)), f"{key}: {verified}"
    refused = []
    documented = (0, 3, 4) if key.endswith(RECORD) else (0, 3)  # 4: a foreign or another run
    for use in uses(key):
        ended = use(scene, copy, key)
        assert ended.code in documented, f"{key}: {use.__name__} ended with {ended}"
        assert "Traceback" not in ended.err, f"{key}: {use.__name__} says {ended.err}"
        refused.append(ended.code != 0)
    if verified.code == 3:
        return "detected" if any(refused) else "survived"
    assert not any(refused), f"{key}: verify found nothing, and a command refused it"
    return "harmless"


def names_place(text: str, path: Path) -> bool:
    """Return whether a message names the file, its artefact, or its chunk and split."""
    places = [path, path.parent, *([path.parent.parent] if "Chunk " in text else [])]
    return any(f"{place}" in text for place in places)


Use = Callable[[Scene, Subject, str], Ended]


def uses(key: str) -> tuple[Use, ...]:
    """Return the commands that read a file."""
    artefact, first, *_ = key.split("/")
    if artefact == "dataset":
        return inspect, train_anew, score_anew
    if first == SCORES:
        return (score_again,)
    return inspect, resume, score_latest_of


def inspect(scene: Scene, copy: Subject, key: str) -> Ended:
    """Run `inspect`, which may accept damaged files that it only counts."""
    return run_here("inspect", copy.home / key.partition("/")[0], "--quiet")


def train_anew(scene: Scene, copy: Subject, key: str) -> Ended:
    """Train from the first step, to the same parameters, metrics and order."""
    return train_to_the_end(scene, copy, copy.home / "new-run")


def resume(scene: Scene, copy: Subject, key: str) -> Ended:
    """Resume from the damaged checkpoint or the one before, to the same result."""
    with halted(copy, hit_checkpoint(scene, key)) as run:
        return train_to_the_end(scene, copy, run)


def train_to_the_end(scene: Scene, copy: Subject, run: Path) -> Ended:
    """Train; if training succeeds, it must have the oracle's result."""
    ended = run_here(*copy.train, "--run", run)
    if ended.code == 0:
        assert scene.outcome["run"] == run_outcome(open_location(run)), "another training"
    return ended


def score_anew(scene: Scene, copy: Subject, key: str) -> Ended:
    """Score without existing scores, to the same predictions."""
    shutil.rmtree(copy.run / SCORES)
    return score_again(scene, copy, key)


def score_again(scene: Scene, copy: Subject, key: str) -> Ended:
    """Score, perhaps from existing scores, and write --out, to the same predictions."""
    place, expected = open_location(copy.run / SCORES), scene.outcome["scores"]
    misplaced = set(scoring_homes(place)) - expected.keys()  # another subject's, which stay
    ended = run_here(*copy.score, "--out", copy.home / "scores.csv")
    if ended.code == 0:
        outcome = scores_outcome(place)
        made = {home: outcome[home] for home in outcome.keys() - misplaced}
        assert expected == made, "another scoring"
    return ended


def score_latest_of(scene: Scene, copy: Subject, key: str) -> Ended:
    """Score with the damaged checkpoint: the same predictions, or a warning that names it."""
    name = hit_checkpoint(scene, key)
    with halted(copy, name) as run:
        ended, outcome = score_latest(copy, run)
        if ended.code == 0 and f"Checkpoint {name} is not used" not in ended.err:
            assert scene.scores_at[name] == outcome, "another scoring"
    return ended


def hit_checkpoint(scene: Scene, key: str) -> str:
    """Return the checkpoint of a file; the newest one for any other file."""
    parts = key.split("/")
    return parts[2] if parts[1] == DIRECTORY else checkpoints(scene.whole)[-1]


def fall_back(scene: Scene, case: int, chance: random.Random) -> str:
    """Damage some of the newest checkpoints, or all of them, each in one file.

    Each is named in a warning, and the training resumes from the newest sound one to the same
    result. If none is sound, the training is refused, and nothing is changed.
    """
    names = checkpoints(scene.whole)
    hit = names[-1 - case % len(names) :]
    with scene.copy() as copy:
        for name in hit:
            path = copy.run / DIRECTORY / name / chance.choice((STATE, MANIFEST))
            path.write_bytes(with_flipped_bit(path.read_bytes().rstrip(), chance))
        before = tree(copy.run) | {LOCK: None}  # the lock names its last holder
        ended = train_to_the_end(scene, copy, copy.run)
        for name in hit:
            assert f"Checkpoint {name} is not used" in ended.err, f"{name}: {ended}"
        if len(hit) < len(names):
            assert ended.code == 0, str(ended)
            return "survived"
        assert ended.code == 3, str(ended)
        assert before == tree(copy.run) | {LOCK: None}, "something was changed"
        return "detected"


EXPERIMENTS = (
    Experiment("damage-flip", flip, 5000, scene, scaled_by="flips"),
    Experiment(
        "damage-truncate", truncate, 0, scene, total=lambda scene: len(truncation_cases(scene))
    ),
    Experiment(
        "damage-misplace", misplace, 0, scene, total=lambda scene: len(misplacement_cases(scene))
    ),
    Experiment("damage-fallback", fall_back, 60, scene),
)
