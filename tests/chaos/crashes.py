"""The machine dies after an operation, and what was not synced is lost: whole, in part, or not.

What POSIX leaves open, the seed decides: data that no fsync has followed may be there, cut, or
gone; a name that no fsync of its directory has followed may be new or old.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.chaos.scenarios import SCENARIOS, Stage, stage
from tests.chaos.seam import Operation, operations_through
from tests.chaos.tally import Experiment
from tests.commands.process import run_here

VARIANTS = 6
"""Cases of each operation, which lose other things."""
MOST_CRASHES = 3
"""In a row, before the command may run to its end."""


class Died(BaseException):
    """The machine is dead; no handler of errors may make anything of it."""


def _try_crash(stage: Stage, case: int, chance: random.Random) -> str:
    """Die, perhaps again during what follows; a reader finds all or nothing each time."""
    with stage.subject() as subject, TemporaryDirectory(dir=stage.base) as kept:
        command = stage.command(subject)
        deaths = [case // VARIANTS + 1]
        while len(deaths) < MOST_CRASHES and chance.random() < 0.4:
            deaths.append(chance.randrange(1, stage.operations))
        told = ""
        try:
            for number, survivors in enumerate(deaths):
                disk = Disk(Path(kept) / str(number), survivors)
                with dying(disk), suppress(Died):
                    run_here(*command)
                told += f"death after operation {survivors}, {disk.last}"
                told += disk.settle(chance) + "; "
                stage.check_between(subject)
                if not disk.dead:  # the command had ended: what it told the user is there for good
                    stage.check_outcome(subject)
            again = run_here(*command)
            assert 0 == again.code, f"run again: {again.code} {again.err}"
            stage.check_done(subject)
        except AssertionError as error:
            raise AssertionError(f"{told}: {error}") from error
    return "survived"


@dataclass
class Written:
    """A file with the bytes of it that are known to be on disk."""

    descriptor: int
    """Our own, to cut the file by whatever its name is by then."""
    synced: int


@dataclass
class Disk:
    """Remembers what has not been synced, and loses it."""

    kept: Path
    """A directory on the same file system, for links to what is removed or replaced."""
    survivors: int
    """Operations that are done; all later ones find the machine dead."""
    last: str = ""
    dead: bool = False
    """Whether there was an operation after those."""
    _done: int = 0
    _written: dict[int, Written] = field(default_factory=dict)
    """By inode: descriptors are used again."""
    _names: list[tuple[Path, str, Callable[[], None]]] = field(default_factory=list)
    """Changes of names not yet durable: directory, what was done, and how to undo it."""

    def __post_init__(self) -> None:
        self.kept.mkdir()

    def operate(self, name: str, real: Operation, arguments: tuple[Any, ...]) -> Any:
        """Do an operation and remember what may be lost of it, or raise `Died`."""
        if self._done == self.survivors:
            self.dead = True
            if name == "close":
                real(*arguments)  # the kernel closes what a dead process had open
            raise Died
        self._done += 1
        self.last = name
        before = getattr(self, f"_before_{name}", self._nothing)(*arguments)
        result = real(*arguments)
        after = getattr(self, f"_after_{name}", None)
        if after is not None:
            after(result, *arguments)
        if before is not None:
            self._names.append(before)
        return result

    @staticmethod
    def _nothing(*arguments: Any) -> None:
        """Most operations change no names."""

    def settle(self, chance: random.Random) -> str:
        """Lose what was not synced, as the seed has it, and tell what was lost."""
        told = ""
        share = chance.choice((0.0, 0.5, 1.0))
        for _, what, undo in reversed(self._names):
            if chance.random() < share:
                with suppress(OSError):  # what came later, and is kept, stands in the way
                    undo()
                    told += f", {what} undone"
        for written in self._written.values():
            size = os.fstat(written.descriptor).st_size
            if size > written.synced:
                left = chance.choice((written.synced, size, chance.randint(written.synced, size)))
                os.ftruncate(written.descriptor, left)
                told += f", {size - left} of {size} bytes lost"
            os.close(written.descriptor)
        self._written.clear()
        return told

    # Data

    def _after_create(self, descriptor: int, path: Path) -> None:
        self._remember(descriptor, path, 0)

    def _after_open_append(self, descriptor: int, path: Path) -> None:
        if os.fstat(descriptor).st_ino not in self._written:
            self._remember(descriptor, path, os.fstat(descriptor).st_size)

    def _remember(self, descriptor: int, path: Path, synced: int) -> None:
        ours = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._written[os.fstat(descriptor).st_ino] = Written(ours, synced)

    def _after_fsync(self, result: None, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._written[status.st_ino].synced = status.st_size

    # Names

    def _after_fsync_directory(self, result: None, path: Path) -> None:
        self._names = [entry for entry in self._names if entry[0] != path.resolve()]

    def _before_create(self, path: Path) -> tuple[Path, str, Callable[[], None]]:
        return path.parent.resolve(), f"creation of {path.name}", lambda: os.unlink(path)

    def _before_open_append(self, path: Path) -> tuple[Path, str, Callable[[], None]] | None:
        return None if path.exists() else self._before_create(path)

    def _before_mkdir(self, path: Path) -> tuple[Path, str, Callable[[], None]]:
        def undo() -> None:
            os.rename(path, self._aside())  # with all that is in it

        return path.parent.resolve(), f"mkdir {path.name}", undo

    def _before_rename(self, source: Path, target: Path) -> tuple[Path, str, Callable[[], None]]:
        replaced = self._link(target) if target.is_file() else None

        def undo() -> None:
            if os.path.lexists(source):
                raise FileExistsError(source)
            os.rename(target, source)
            if replaced is not None:
                os.link(replaced, target)

        assert source.parent.resolve() == target.parent.resolve(), (
            "the experiment knows renames within a directory only"
        )
        return target.parent.resolve(), f"rename to {target.name}", undo

    def _before_unlink(self, path: Path) -> tuple[Path, str, Callable[[], None]]:
        removed = self._link(path)
        return path.parent.resolve(), f"unlink {path.name}", lambda: os.link(removed, path)

    def _before_rmdir(self, path: Path) -> tuple[Path, str, Callable[[], None]]:
        return path.parent.resolve(), f"rmdir {path.name}", lambda: os.mkdir(path)

    def _link(self, path: Path) -> Path:
        link = self._aside()
        os.link(path, link)
        return link

    def _aside(self) -> Path:
        return self.kept / str(len(os.listdir(self.kept)))


@contextmanager
def dying(disk: Disk) -> Iterator[None]:
    """Let every operation of the block go to a disk that dies."""
    with operations_through(disk.operate):
        yield


EXPERIMENTS = tuple(
    Experiment(
        f"crash-{name}",
        _try_crash,
        0,
        partial(stage, name),
        total=lambda stage: stage.operations * VARIANTS,
    )
    for name in SCENARIOS
)
