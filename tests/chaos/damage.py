"""Damage to every kind of file: told by `verify` and by whoever uses the file, or without effect.

A case does one thing to one file of a copy of what the three commands made. `verify` looks at it,
then every command that has a use for the file is run: each ends as if nothing had been, or refuses
with exit 3 and names the place. Nothing in between: no other result, no other code.
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
"""Every checkpoint is kept: six of them, two in each epoch."""


@dataclass(frozen=True)
class Scene:
    """What is damaged in copies, whose files take its files' places, and what must come of it."""

    whole: Subject
    other: Subject
    """Of other rows, and so of another dataset and run: the same commands and file names."""
    outcome: Outcome
    scores_at: dict[str, Outcome]
    """By checkpoint, the scoring of a run that has none later."""

    @property
    def files(self) -> list[str]:
        """Every file that the commands made, by its key below the subject's home."""
        made = open_location(self.whole.home).objects()
        return [key for key in made if key.startswith(("dataset/", "run/"))]

    @contextmanager
    def copy(self) -> Iterator[Subject]:
        """A copy for one case."""
        with TemporaryDirectory(prefix="damage-") as directory:
            yield self.whole.copy(Path(directory) / "copy")


@cache
def scene() -> Scene:
    """The one scene of this process; its directory goes when the process ends."""
    place = scratch()
    whole = undisturbed(place / "whole", CONFIG)
    other = undisturbed(place / "other", CONFIG, seed=8)
    scores_at = {}
    for name in checkpoints(whole):
        with halted(whole, name) as run:
            scores_at[name] = score_latest(whole, run)[1]
    return Scene(whole, other, whole.outcome(), scores_at)


def checkpoints(subject: Subject) -> list[str]:
    """The names of the run's checkpoints, oldest first."""
    return [str(name) for name in list_checkpoints(open_run(open_location(subject.run)))]


@contextmanager
def halted(subject: Subject, checkpoint: str) -> Iterator[Path]:
    """A copy of the run as it was right after a checkpoint, and never scored."""
    with TemporaryDirectory(dir=subject.home) as directory:
        names = shutil.ignore_patterns(SCORES)
        run = Path(shutil.copytree(subject.run, Path(directory) / "run", ignore=names))
        for path in (run / DIRECTORY).iterdir():
            if path.name > checkpoint:
                shutil.rmtree(path)
        yield run


def score_latest(subject: Subject, run: Path) -> tuple[Ended, Outcome]:
    """Score with the latest checkpoint; the scoring, where there is one."""
    ended = run_here(*subject.score, "--run", run, "--checkpoint", "latest")
    return ended, scores_outcome(open_location(run / SCORES)) if ended.code == 0 else {}


def flip(scene: Scene, case: int, chance: random.Random) -> str:
    """Flip one bit of one file; the cases take the files in turn."""
    files = scene.files
    with scene.copy() as copy:
        key = files[case % len(files)]
        path = copy.home / key
        data = path.read_bytes()
        if not data:
            return "harmless"  # a lock that nobody has signed
        path.write_bytes(with_flipped_bit(data, chance))
        return judge(scene, copy, key)


def truncate(scene: Scene, case: int, chance: random.Random) -> str:
    """Cut one file off: at nothing, at each 4 KiB, and by a byte."""
    key, size = truncation_cases(scene)[case]
    with scene.copy() as copy:
        path = copy.home / key
        path.write_bytes(path.read_bytes()[:size])
        return judge(scene, copy, key)


def truncation_cases(scene: Scene) -> list[tuple[str, int]]:
    """Every file with every length that it is cut to."""
    sizes = {key: (scene.whole.home / key).stat().st_size for key in scene.files}
    return [(key, length) for key, size in sizes.items() for length in truncations(size) if size]


def misplace(scene: Scene, case: int, chance: random.Random) -> str:
    """Take one file or directory away, or put another in its place."""
    act, key = misplacement_cases(scene)[case]
    with scene.copy() as copy:
        act(scene, copy, key)
        return judge(scene, copy, key, *([next_of_kind(scene, key)] if act is swap else []))


Act = Callable[[Scene, Subject, str], None]


def delete(scene: Scene, copy: Subject, key: str) -> None:
    """The file is gone."""
    (copy.home / key).unlink()


def delete_directory(scene: Scene, copy: Subject, key: str) -> None:
    """The whole directory that holds the file is gone."""
    shutil.rmtree((copy.home / key).parent)


def swap(scene: Scene, copy: Subject, key: str) -> None:
    """The file and the next one of its kind have each other's name."""
    one, other = copy.home / key, copy.home / next_of_kind(scene, key)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def take_others(scene: Scene, copy: Subject, key: str) -> None:
    """The file is that of another dataset, run or scoring."""
    shutil.copy(others(scene, key), copy.home / key)


def take_others_directory(scene: Scene, copy: Subject, key: str) -> None:
    """All of the directory that holds the file is another's."""
    delete_directory(scene, copy, key)
    shutil.copytree(others(scene, key).parent, (copy.home / key).parent)


def next_of_kind(scene: Scene, key: str) -> str:
    """The next file, in a circle, of the same name or, of chunks, of any number."""
    kind = key_kind(key)
    same = [other for other in scene.files if key_kind(other) == kind]
    return same[(same.index(key) + 1) % len(same)]


def key_kind(key: str) -> tuple[str, str]:
    """What a file's neighbours of its kind have in common: the artefact and the name."""
    name = Path(key).name
    return key.partition("/")[0], "chunk" if name.startswith("c.") else name


def others(scene: Scene, key: str) -> Path:
    """The same file of the other subject: its scoring has another name."""
    return scene.other.home / key.replace(scene.whole.scoring.name, scene.other.scoring.name)


def misplacement_cases(scene: Scene) -> list[tuple[Act, str]]:
    """Every file with everything that can be done to it, and directories with one of theirs."""
    files = [key for key in scene.files if not key.endswith(".lock")]
    cases: list[tuple[Act, str]] = [
        (act, key)
        for key in files
        for act in (delete, swap, take_others)
        if act is not swap or next_of_kind(scene, key) != key
    ]
    directories = {str(Path(key).parent): key for key in files if key.count("/") > 1}
    for directory, key in directories.items():
        cases.append((take_others_directory, key))
        if DIRECTORY not in directory:  # a run with one checkpoint less is a sound run
            cases.append((delete_directory, key))
    return cases


def judge(scene: Scene, copy: Subject, key: str, *more: str) -> str:
    """How a case ended, after something was done to the file `key` of a copy, and to `more`."""
    artefact = key.partition("/")[0]
    verified = run_here("verify", copy.home / artefact, "--quiet")
    assert verified.code in (0, 3), f"{key}: verify ended with {verified}"
    if verified.code == 3:
        told = verified.out + verified.err
        assert any(names_place(told, copy.home / at) for at in (key, *more)), f"{key}: {verified}"
    refused = []
    documented = (0, 3, 4) if key.endswith(RECORD) else (0, 3)  # 4: not ours, or another run
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
    """Whether a message names the file, what it is a part of, or the chunk with its split."""
    places = [path, path.parent, *([path.parent.parent] if "Chunk " in text else [])]
    return any(f"{place}" in text for place in places)


Use = Callable[[Scene, Subject, str], Ended]


def uses(key: str) -> tuple[Use, ...]:
    """The commands that have a use for a file."""
    artefact, first, *_ = key.split("/")
    if artefact == "dataset":
        return inspect, train_anew, score_anew
    if first == SCORES:
        return (score_again,)
    return inspect, go_on, score_latest_of


def inspect(scene: Scene, copy: Subject, key: str) -> Ended:
    """Tell what is there; what it reads only to count bytes it need not refuse."""
    return run_here("inspect", copy.home / key.partition("/")[0], "--quiet")


def train_anew(scene: Scene, copy: Subject, key: str) -> Ended:
    """Train from the first step: the same parameters, metrics and order."""
    return train_to_the_end(scene, copy, copy.home / "new-run")


def go_on(scene: Scene, copy: Subject, key: str) -> Ended:
    """Go on from the checkpoint that was hit, or the one before: to the same end."""
    with halted(copy, hit_checkpoint(scene, key)) as run:
        return train_to_the_end(scene, copy, run)


def train_to_the_end(scene: Scene, copy: Subject, run: Path) -> Ended:
    """Train; what comes of it, if anything does, is the oracle's."""
    ended = run_here(*copy.train, "--run", run)
    if ended.code == 0:
        assert scene.outcome["run"] == run_outcome(open_location(run)), "another training"
    return ended


def score_anew(scene: Scene, copy: Subject, key: str) -> Ended:
    """Score as if it had not been done before: the same predictions."""
    shutil.rmtree(copy.run / SCORES)
    return score_again(scene, copy, key)


def score_again(scene: Scene, copy: Subject, key: str) -> Ended:
    """Score what may be done already, and write it all out: the same predictions."""
    ended = run_here(*copy.score, "--out", copy.home / "scores.csv")
    if ended.code == 0:
        found = scores_outcome(open_location(copy.run / SCORES))
        assert scene.outcome["scores"] == found, "another scoring"
    return ended


def score_latest_of(scene: Scene, copy: Subject, key: str) -> Ended:
    """Score with the checkpoint that was hit: the same predictions, or a warning that names it."""
    name = hit_checkpoint(scene, key)
    with halted(copy, name) as run:
        ended, found = score_latest(copy, run)
        if ended.code == 0 and f"Checkpoint {name} is not used" not in ended.err:
            assert scene.scores_at[name] == found, "another scoring"
    return ended


def hit_checkpoint(scene: Scene, key: str) -> str:
    """The checkpoint that a file is of; the newest one where it is of none."""
    parts = key.split("/")
    return parts[2] if parts[1] == DIRECTORY else checkpoints(scene.whole)[-1]


def fall_back(scene: Scene, case: int, chance: random.Random) -> str:
    """Damage the newest checkpoints, or all of them, each in one of its files.

    Each is named by a warning, the newest sound one is used, and the end is the same; where none
    is sound, that is refused, and nothing is changed.
    """
    names = checkpoints(scene.whole)
    hit = names[-1 - case % len(names) :]
    with scene.copy() as copy:
        for name in hit:
            path = copy.run / DIRECTORY / name / chance.choice((STATE, MANIFEST))
            path.write_bytes(with_flipped_bit(path.read_bytes().rstrip(), chance))
        before = tree(copy.run) | {LOCK: None}  # which names its last holder
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
