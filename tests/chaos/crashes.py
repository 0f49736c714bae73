"""The machine crashes after an operation, and data that was not synced may be lost.

The seed decides the cases that POSIX leaves open. Data without a later fsync may be complete,
truncated or lost. A name without a later fsync of its directory may be new or old.
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
"""Number of cases for each operation, with different losses."""
MOST_CRASHES = 3
"""Most crashes in a row before the command may finish."""


class Died(BaseException):
    """The machine crashed; not an `Exception`, so that no error handler catches it."""


def _try_crash(stage: Stage, case: int, chance: random.Random) -> str:
    """Crash, perhaps again during the next run; a reader finds all or nothing each time."""
    with stage.subject() as subject, TemporaryDirectory(dir=stage.base) as kept:
        command = stage.command(subject)
        deaths = [case // VARIANTS + 1]
        while len(deaths) < MOST_CRASHES and chance.random() < 0.4:
            deaths.append(chance.randrange(1, stage.operations))
        events = ""
        try:
            for number, survivors in enumerate(deaths):
                disk = Disk(Path(kept) / str(number), survivors)
                with dying(disk), suppress(Died):
                    run_here(*command)
                events += f"crash after operation {survivors}, {disk.last}"
                events += disk.lose(chance) + "; "
                stage.check_between(subject)
                if not disk.dead:  # the command had reported success, so its result must survive
                    stage.check_outcome(subject)
            again = run_here(*command)
            assert 0 == again.code, f"run again: {again.code} {again.err}"
            stage.check_done(subject)
        except AssertionError as error:
            raise AssertionError(f"{events}: {error}") from error
    return "survived"


@dataclass
class Written:
    """A file that may have unsynced bytes."""

    descriptor: int
    """A separate descriptor, to truncate the file even after it is renamed."""
    synced: int
    """Number of bytes that are known to be on disk."""


@dataclass
class Disk:
    """A disk that tracks unsynced data and names, and can lose them."""

    kept: Path
    """A directory on the same file system, for links to removed and replaced files."""
    survivors: int
    """Number of operations before the crash."""
    last: str = ""
    dead: bool = False
    """Whether an operation was attempted after the crash."""
    _done: int = 0
    _written: dict[int, Written] = field(default_factory=dict)
    """By inode, because descriptors are reused."""
    _names: list[tuple[Path, str, Callable[[], None]]] = field(default_factory=list)
    """Changes of names that are not durable: directory, description, and a function to undo it."""

    def __post_init__(self) -> None:
        self.kept.mkdir()

    def operate(self, name: str, real: Operation, arguments: tuple[Any, ...]) -> Any:
        """Perform an operation and record its unsynced data, or raise `Died`."""
        if self._done == self.survivors:
            self.dead = True
            if name == "close":
                real(*arguments)  # the kernel closes the files of a dead process
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
        """Replace the operations that do not change names."""

    def lose(self, chance: random.Random) -> str:
        """Lose some unsynced data; return a description of the loss."""
        losses = ""
        share = chance.choice((0.0, 0.5, 1.0))
        for _, what, undo in reversed(self._names):
            if chance.random() < share:
                with suppress(OSError):  # a later change that is kept may prevent it
                    undo()
                    losses += f", {what} undone"
        for written in self._written.values():
            size = os.fstat(written.descriptor).st_size
            if size > written.synced:
                left = chance.choice((written.synced, size, chance.randint(written.synced, size)))
                os.ftruncate(written.descriptor, left)
                losses += f", {size - left} of {size} bytes lost"
            os.close(written.descriptor)
        self._written.clear()
        return losses

    # Data

    def _after_create(self, descriptor: int, path: Path) -> None:
        self._remember(descriptor, path, 0)

    def _after_open_append(self, descriptor: int, path: Path) -> None:
        if os.fstat(descriptor).st_ino not in self._written:
            self._remember(descriptor, path, os.fstat(descriptor).st_size)

    def _remember(self, descriptor: int, path: Path, synced: int) -> None:
        separate = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._written[os.fstat(descriptor).st_ino] = Written(separate, synced)

    def _after_fsync(self, result: None, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._written[status.st_ino].synced = status.st_size

    def _after_fsync_path(self, result: None, path: Path) -> None:
        status = path.stat()
        if status.st_ino in self._written:  # not if an earlier process wrote it
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
            os.rename(path, self._aside())  # with its contents

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
            "the experiment supports renames within a directory only"
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
    """Perform every operation of the block on a disk that crashes."""
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
