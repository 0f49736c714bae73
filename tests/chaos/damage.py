"""Damage to every kind of file: told by `verify` and by whoever uses the file, or without effect.

A case does one thing to one file of a copy of what the three commands made. `verify` looks at it,
then every command that has a use for the file is run: each ends as if nothing had been, or refuses
with exit 3 and names the place. Nothing in between: no other result, no other code.
"""

import atexit
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from storage.checkpoints import DIRECTORY, STATE, list_checkpoints
from storage.location import open_location
from storage.runs import METRICS, RECORD, SCORES, open_run
from tests.chaos.subject import (
    Ended,
    Outcome,
    Subject,
    longer,
    new_subject,
    run_here,
    run_outcome,
    scores_outcome,
    undisturbed,
)
from tests.chaos.tally import Experiment, Plan, Tally, try_cases
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
        return [key for key in made if not key.startswith("source/")]

    @contextmanager
    def copy(self) -> Iterator[Subject]:
        """A copy for one case."""
        with TemporaryDirectory(prefix="damage-") as directory:
            yield self.whole.copy(Path(directory) / "copy")


@cache
def scene() -> Scene:
    """The one scene of this process; its directory goes when the process ends."""
    directory = TemporaryDirectory(prefix="chaos-damage-")
    atexit.register(directory.cleanup)
    place = Path(directory.name)
    whole = undisturbed(place / "whole", CONFIG)
    other = new_subject(place / "other", CONFIG, seed=8)
    for arguments in other.commands.values():
        assert 0 == run_here(arguments).code
    scores_at = {}
    for name in checkpoints(whole):
        copy = whole.copy(place / name)
        score_latest(copy, name)
        scores_at[name] = scores_outcome(open_location(copy.run / SCORES))
        shutil.rmtree(copy.home)
    return Scene(whole, other, whole.outcome(), scores_at)


def checkpoints(subject: Subject) -> list[str]:
    """The names of the run's checkpoints, oldest first."""
    return [str(name) for name in list_checkpoints(open_run(open_location(subject.run)))]


def forget_later(subject: Subject, checkpoint: str) -> None:
    """Let the run be as if it had died right after a checkpoint."""
    for path in (subject.run / DIRECTORY).iterdir():
        if path.name > checkpoint:
            shutil.rmtree(path)


def score_latest(subject: Subject, checkpoint: str) -> Ended:
    """Score anew with the latest checkpoint, where none is later than the given one."""
    forget_later(subject, checkpoint)
    shutil.rmtree(subject.run / SCORES)
    return run_here([*subject.score, "--checkpoint", "latest"])


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
        return judge(scene, copy, key)


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
    shutil.copy(scene.other.home / others_key(scene, key), copy.home / key)


def take_others_directory(scene: Scene, copy: Subject, key: str) -> None:
    """All of the directory that holds the file is another's."""
    directory = (copy.home / key).parent
    shutil.rmtree(directory)
    shutil.copytree((scene.other.home / others_key(scene, key)).parent, directory)


def next_of_kind(scene: Scene, key: str) -> str:
    """The next file, in a circle, of the same name or, of chunks, of any number."""
    kind = key_kind(key)
    same = [other for other in scene.files if key_kind(other) == kind]
    return same[(same.index(key) + 1) % len(same)]


def key_kind(key: str) -> tuple[str, str]:
    """What a file's neighbours of its kind have in common: the artefact and the name."""
    name = Path(key).name
    return key.split("/")[0], "chunk" if name.startswith("c.") else name


def others_key(scene: Scene, key: str) -> str:
    """Where the other subject has the same file: its scoring has another name."""
    return key.replace(scene.whole.scoring.name, scene.other.scoring.name)


def misplacement_cases(scene: Scene) -> list[tuple[Act, str]]:
    """Every file with everything that can be done to it, and directories with one of theirs."""
    files = [key for key in scene.files if not key.endswith(".lock")]
    cases: list[tuple[Act, str]] = [
        (act, key)
        for key in files
        for act in (delete, swap, take_others)
        if act is not swap or next_of_kind(scene, key) != key
    ]
    directories = {str(Path(key).parent): key for key in files}
    for directory, key in directories.items():
        cases.append((delete_directory, key))
        if directory not in ("dataset", "run"):  # the whole of another is sound
            cases.append((take_others_directory, key))
    return cases


def judge(scene: Scene, copy: Subject, key: str) -> str:
    """How a case ended, after something was done to the file `key` of a copy."""
    artefact = key.split("/")[0]
    verified = run_here(["verify", str(copy.home / artefact), "--quiet"])
    assert verified.code in (0, 3), f"{key}: verify ended with {verified}"
    if verified.code == 3:
        assert names_place(verified.out + verified.err, copy.home / key), f"{key}: {verified}"
    refused = []
    for use in uses(key):
        ended = use(scene, copy, key)
        assert ended.code in (0, 3), f"{key}: {use.__name__} ended with {ended}"
        assert "Traceback" not in ended.err, f"{key}: {use.__name__} says {ended.err}"
        refused.append(ended.code == 3)
    if verified.code == 3:
        return "detected" if any(refused) else "survived"
    assert not any(refused), f"{key}: verify found nothing, and a command refused it"
    return "harmless"


def names_place(text: str, path: Path) -> bool:
    """Whether a message names the file, or the directory above it and a chunk or its like."""
    return any(str(place) in text for place in (path, path.parent, path.parent.parent))


Use = Callable[[Scene, Subject, str], Ended]


def uses(key: str) -> tuple[Use, ...]:
    """The commands that have a use for a file."""
    artefact, first, *_ = key.split("/")
    if artefact == "dataset":
        return inspect, train_anew, score_anew
    if first == SCORES:
        return (score_again,)
    return inspect, go_on, score_with


def inspect(scene: Scene, copy: Subject, key: str) -> Ended:
    """Tell what is there; what it reads only to count bytes it need not refuse."""
    return run_here(["inspect", str(copy.home / key.split("/")[0]), "--quiet"])


def train_anew(scene: Scene, copy: Subject, key: str) -> Ended:
    """Train from the first step: the same parameters, metrics and order."""
    new = copy.home / "new-run"
    ended = run_here([*copy.train, "--run", str(new)])
    if ended.code == 0:
        assert scene.outcome["run"] == run_outcome(open_location(new)), f"{key}: another training"
    return ended


def score_anew(scene: Scene, copy: Subject, key: str) -> Ended:
    """Score as if it had not been done before: the same predictions."""
    shutil.rmtree(copy.run / SCORES)
    ended = run_here(copy.score)
    if ended.code == 0:
        found = scores_outcome(open_location(copy.run / SCORES))
        assert scene.outcome["scores"] == found, f"{key}: another scoring"
    return ended


def score_again(scene: Scene, copy: Subject, key: str) -> Ended:
    """Score what is done already, and write it all out: the same predictions."""
    ended = run_here([*copy.score, "--out", str(copy.home / "scores.csv")])
    if ended.code == 0:
        found = scores_outcome(open_location(copy.run / SCORES))
        assert scene.outcome["scores"] == found, f"{key}: another scoring"
    return ended


def score_with(scene: Scene, copy: Subject, key: str) -> Ended:
    """Score with the checkpoint that was hit, the latest one: as before, or with a warning."""
    checkpoint = hit_checkpoint(scene, key)
    ended = score_latest(replace_run(copy, scene, key), checkpoint)
    if ended.code == 0 and f"Checkpoint {checkpoint} is not used" not in ended.err:
        found = scores_outcome(open_location(copy.home / "hit" / "run" / SCORES))
        assert scene.scores_at[checkpoint] == found, f"{key}: another scoring"
    return ended
