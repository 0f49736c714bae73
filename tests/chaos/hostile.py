"""Hostile files: commands end with a documented exit code and in bounded memory.

Hypothesis draws the forgeries (see `documents`). Each session runs in a process with limited
address space and processor time. An audit hook checks that nothing is unpickled, and nothing
outside the given places is opened, moved or removed.

    python -m tests.chaos.hostile SUBJECT EXAMPLES SEED TARGET...
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

from tests.chaos.damage import CONFIG, Scene, scene
from tests.chaos.documents import OUTSIDE, TARGETS, Target
from tests.chaos.processes import GIVEN_UP
from tests.chaos.subject import Subject, config_options, run_well
from tests.chaos.tally import Experiment
from tests.commands.process import REPOSITORY, run_here
from tests.commands.sets import tree

DOCUMENTED = (0, 2, 3, 4, 5, 6)
MEMORY = 2**30
"""Bytes of address space that commands may use in addition to the imports."""
STACK = 2**19
"""Bytes of a thread's stack; the system's larger default would count as used memory."""
PROCESSOR_SECONDS = 30
"""Limit for one example in seconds; most take a hundredth of it."""
SECRET = b"not for you"
DASK = "dask."
"""Prefix of modules that may be unpickled: Dask pickles its graphs in memory to name them."""
FOLLOWING = ("open", "os.truncate", "os.chmod", "os.mkdir", "os.listdir", "os.scandir")
"""Audited operations that follow symlinks."""
NOT_FOLLOWING = ("os.rename", "os.remove", "os.rmdir")
"""Audited operations on the link itself."""
EXAMPLES = 100
"""Examples of one session, which is one case of an experiment."""
SAMPLE_EXAMPLES = 5
"""Examples of each target in the session that has all targets."""


def try_targets(
    examples: int, targets: tuple[str, ...], scene: Scene, case: int, chance: random.Random
) -> str:
    """Run a session in a new process, with `examples` of each target."""
    session = (str(scene.whole.home), str(examples), str(chance.randrange(2**32)), *targets)
    ended = subprocess.run(
        [sys.executable, "-m", "tests.chaos.hostile", *session],
        cwd=REPOSITORY,
        env=os.environ | {"MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        timeout=20 * GIVEN_UP,
        check=False,
    )
    assert 0 == ended.returncode, f"{' '.join(session)}: {ended.returncode}\n{ended.stderr[-4000:]}"
    return "detected"


class Watch:
    """An audit hook that records forbidden operations while a command runs."""

    def __init__(self) -> None:
        self.outside: str | None = None
        """The resolved directory in which nothing may be touched; None while no command runs."""
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.outside is None:
            return
        if event == "pickle.find_class" and not arguments[0].startswith(DASK):
            self.seen.append(f"{event} {arguments}")
        elif event in FOLLOWING or event in NOT_FOLLOWING:
            for argument in arguments[:2]:
                if isinstance(argument, str | bytes | os.PathLike):
                    self._look(event, Path(os.fsdecode(argument)))

    def _look(self, event: str, path: Path) -> None:
        if event in FOLLOWING:
            target = os.path.realpath(path)
        else:
            target = os.path.join(os.path.realpath(path.parent), path.name)
        if self.outside is not None and f"{target}/".startswith(f"{self.outside}/"):
            self.seen.append(f"{event} {path}")


def run_session(home: Path, examples: int, number: int, names: list[str]) -> None:
    """Run all examples of a session in this process, whose limits stay in effect."""
    watch = Watch()
    sys.addaudithook(watch)
    threading.stack_size(STACK)
    signal.signal(signal.SIGPROF, give_up)
    subject = Subject(home, home / "source", CONFIG)
    artefacts = {target.artefact for target in TARGETS.values()}
    for artefact in artefacts:  # imports everything before the memory is limited
        with copied(subject) as copy:
            for arguments in commands(copy, artefact, plain=True):
                run_well(arguments)
    limit_memory()
    for name in names:
        try_target(subject, name, examples, number, watch)


def try_target(subject: Subject, name: str, examples: int, number: int, watch: Watch) -> None:
    """Try forgeries of one target; raise for the simplest one that ends badly."""
    target = TARGETS[name]

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.draw)
    def session(drawn: Any) -> None:
        with copied(subject) as copy:
            target.forge(copy, drawn)
            watched(copy, target, watch)

    session()


def watched(copy: Subject, target: Target, watch: Watch) -> None:
    """Run the commands that read a forgery; raise if one does not end as documented."""
    outside = copy.home.parent / OUTSIDE
    watch.seen.clear()
    before = tree(outside)
    for arguments in commands(copy, target.artefact):
        watch.outside = str(outside.resolve())
        try:
            with limited_time():
                ended = run_here(*arguments)
        finally:
            watch.outside = None
        command = " ".join(arguments[:2])
        assert ended.code in DOCUMENTED, f"{command} ended with {ended.code}:\n{ended.err}"
        assert "Traceback" not in ended.err, f"{command}: {ended.err}"
        assert [] == watch.seen, f"{command}: {watch.seen}"
    assert before == tree(outside), "something outside was changed"


@contextmanager
def copied(subject: Subject) -> Iterator[Subject]:
    """Copy a subject with its source, beside a directory `OUTSIDE` with a secret file."""
    with TemporaryDirectory(prefix="hostile-") as directory:
        outside = Path(directory) / OUTSIDE
        outside.mkdir()
        (outside / "secret").write_bytes(SECRET)
        copy = subject.copy(Path(directory) / "copy")
        shutil.copytree(subject.source, copy.home / "source")
        yield Subject(copy.home, copy.home / "source", subject.config)


def commands(subject: Subject, artefact: str, *, plain: bool = False) -> list[list[str]]:
    """Return the commands that read an artefact; `plain` are those for one that is not forged."""
    if artefact == "source":
        return [[*subject.ingest, "--out", str(subject.home / "new")]]
    if artefact == "config":
        config = (
            config_options(subject.config)
            if plain
            else ["--config", str(subject.home / "config.toml")]
        )
        new = ["--run", str(subject.home / "new-run"), "--epochs", "1"]
        return [["train", "--dataset", str(subject.dataset), *new, *config, "--quiet"]]
    place = subject.run if artefact in ("run", "scores") else subject.dataset
    reading = [["verify", str(place)], ["inspect", str(place)]]
    if artefact == "scores":
        out = subject.home / "scores.csv"
        return [*reading, [*subject.score, "--out", str(out)], subject.score]
    picture = ["--images", str(subject.home / "images.png")]
    anew = [*subject.score, "--checkpoint", "1", "--split", "train"]
    if artefact in ("dataset", "attributes"):
        train = [*subject.train, "--run", str(subject.home / "new-run")]
        drawing = [["inspect", str(place), *picture]] if artefact == "attributes" else []
        return [*reading, *drawing, anew, train]
    return [*reading, subject.score, anew, subject.train]


def limit_memory() -> None:
    """Limit the further growth of the address space to `MEMORY`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


@contextmanager
def limited_time() -> Iterator[None]:
    """Raise `TimeoutError` in a block that uses too much processor time."""
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def give_up(number: int, frame: Any) -> None:
    """Raise `TimeoutError`; the handler of the timer's signal."""
    raise TimeoutError(f"more than {PROCESSOR_SECONDS} s of the processor")


SAMPLE = Experiment(
    "hostile-sample", partial(try_targets, SAMPLE_EXAMPLES, tuple(TARGETS)), 1, scene
)
"""All targets in one short session."""
EXPERIMENTS = (
    SAMPLE,
    *(
        Experiment(f"hostile-{name}", partial(try_targets, EXAMPLES, (name,)), 4, scene)
        for name in TARGETS
    ),
)


if __name__ == "__main__":
    run_session(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
