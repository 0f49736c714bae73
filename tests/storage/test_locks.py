"""The writer's lock: one holder, named to others, and freed by its death."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.errors import ConflictError, UnreachableError, UsageError
from storage.events import local_time
from storage.kernel_lock import kernel_lock
from storage.local import LocalLocation
from storage.location import Location
from storage.places import open_location
from tests.storage.artefacts import REPOSITORY

HOLD = """
import sys
from storage.errors import ConflictError
from storage.places import open_location
try:
    with open_location(sys.argv[1]).writer_lock("The run"):
        print("held", flush=True)
        sys.stdin.read()
except ConflictError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""

RETIRE = """
import os, sys
from pathlib import Path
from storage.ledger import waiting_lock
from storage.places import open_location
alone = Path(sys.argv[1] + ".alone")
for _ in range(50):
    place = open_location(sys.argv[1])
    with waiting_lock(place, "The run", None, 60, lambda conflict: None) as lock:
        os.close(os.open(alone, os.O_CREAT | os.O_EXCL))  # fails if another has the lock
        alone.unlink()
        lock.retire()
"""


@pytest.fixture
def lock_file(tmp_path: Path) -> Location:
    return open_location(tmp_path / "run" / ".lock")


@contextmanager
def process(lock_file: Location) -> Iterator[subprocess.Popen[str]]:
    """Start a process that tries to hold the lock until it is killed or its input ends."""
    command = [sys.executable, "-c", HOLD, str(lock_file)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, stdin=pipe, stdout=pipe) as started:
        try:
            yield started
        finally:
            started.kill()


def output_line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def test_the_holder_is_named(lock_file: Location) -> None:
    """A second writer is refused at once, with the first one's process, host and time."""
    with process(lock_file) as holder:
        assert "held" == output_line(holder)
        with pytest.raises(ConflictError) as caught, lock_file.writer_lock("The run"):
            pytest.fail("two hold the lock")
    expected = f"The run is being written by process {holder.pid} on {socket.gethostname()} since "
    since, _, _ = str(caught.value).partition(expected)[2].partition(" (")
    assert since == local_time(since)


def test_one_holder_at_a_time(anywhere: Location) -> None:
    """A lock excludes others in the same process too, and always names its holder."""
    lock_file = anywhere.child(".lock")
    with lock_file.writer_lock("The run"):
        for _ in range(2):
            with pytest.raises(ConflictError) as caught, lock_file.writer_lock("The run"):
                pytest.fail("two hold the lock")
            holder = f"process {os.getpid()} on {socket.gethostname()} since "
            assert f"The run is being written by {holder}" in str(caught.value)
    with pytest.raises(ZeroDivisionError), lock_file.writer_lock("The run"):
        raise ZeroDivisionError
    for _ in range(2):  # it is free after its block, failed or not
        with lock_file.writer_lock("The run"):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"\xff\0", b"[]", b'{"process": "x"}', b"[" * 100_000])
def test_a_lock_with_invalid_content(anywhere: Location, content: bytes) -> None:
    """A lock with invalid content is still held; its holder is not named."""
    lock_file = anywhere.child(".lock")
    with lock_file.writer_lock("The run"):
        if isinstance(anywhere, LocalLocation):
            lock_file.path.write_bytes(content)
        else:
            anywhere.put(".lock", content)
        with (
            pytest.raises(ConflictError, match=r"written by another process\. Wait"),
            lock_file.writer_lock("The run"),
        ):
            pytest.fail("two hold the lock")
        if not isinstance(anywhere, LocalLocation):
            with lock_file.writer_lock("The run", lambda text: None):
                pass


def test_a_killed_holder_frees_the_lock(lock_file: Location) -> None:
    """After SIGKILL the next writer gets the lock."""
    with process(lock_file) as holder:
        assert "held" == output_line(holder)
        holder.send_signal(signal.SIGKILL)
        assert -signal.SIGKILL == holder.wait()
        with lock_file.writer_lock("The run"):
            pass


def test_a_retired_lock_leaves_nothing(lock_file: Location) -> None:
    """A retired lock's file is removed on release; any other lock's file is emptied."""
    with lock_file.writer_lock("The run"):
        pass
    assert b"" == lock_file.path.read_bytes()
    with lock_file.writer_lock("The run") as lock:
        lock.retire()
        assert lock_file.path.exists()
    assert [] == list(lock_file.path.parent.iterdir())


def test_a_lock_is_held_until_its_file_is_gone(
    lock_file: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is removed before the release; afterwards it could be the next holder's."""
    unlink, tried = Path.unlink, []

    def try_first(path: Path) -> None:
        tried.append(path)
        with pytest.raises(ConflictError), lock_file.writer_lock("The run"):
            pytest.fail("two hold the lock")
        unlink(path)

    monkeypatch.setattr(Path, "unlink", try_first)
    with lock_file.writer_lock("The run") as lock:
        lock.retire()
    assert [lock_file.path] == tried


def test_retired_locks_exclude_each_other(lock_file: Location) -> None:
    """Processes exclude each other although the lock's file is removed each time."""
    command = [sys.executable, "-c", RETIRE, str(lock_file)]
    started = [subprocess.Popen(command, cwd=REPOSITORY) for _ in range(4)]
    assert [0] * 4 == [process.wait() for process in started]
    assert [] == list(lock_file.path.parent.iterdir())


def test_a_place_where_no_file_can_be_made() -> None:
    """An error while creating the file is unreachable; no other process is named as the holder."""
    with (
        pytest.raises(UnreachableError, match="no file can be created there"),
        kernel_lock(Path("/proc/lock"), "what", None),
    ):
        pass


def test_a_moved_directory_is_a_conflict(tmp_path: Path) -> None:
    """A moved directory is a conflict, which is not retried."""
    place = open_location(tmp_path / "run")
    with (
        pytest.raises(ConflictError, match="The run was moved or removed while"),
        place.child(".lock").writer_lock("The run"),
    ):
        place.path.rename(tmp_path / "elsewhere")
        raise FileNotFoundError(place.path)


@pytest.mark.parametrize("change", ["moved", "removed", "replaced"])
def test_a_locked_place_is_not_recreated(tmp_path: Path, change: str) -> None:
    """If the lock's file was replaced or removed, every write is refused."""
    place = open_location(tmp_path / "run")
    with place.child(".lock").writer_lock("The run") as lock:
        locked = place.under(lock)
        locked.put("kept", b"1")
        if change == "removed":
            place.delete_tree()
        else:
            place.path.rename(tmp_path / "elsewhere")
        if change == "replaced":
            place.put(".lock", b"another's")
        before = sorted(tmp_path.rglob("*"))
        for write in (
            lambda: locked.put("key", b"2"),
            lambda: locked.put("key", b"2", new=True),
            lambda: locked.append("kept", b"2"),
            lambda: locked.child("below").put("key", b"2"),
            lambda: locked.atomic_tree("tree", "root").__enter__().put("root", b""),
        ):
            with pytest.raises(ConflictError, match="The run was moved or removed while"):
                write()
        assert before == sorted(tmp_path.rglob("*"))
    assert before == sorted(tmp_path.rglob("*"))
    if change == "replaced":
        assert b"another's" == place.get(".lock")


@pytest.mark.parametrize("special", ["pipe", "link"])
def test_not_a_lock_file(lock_file: Location, special: str) -> None:
    """A pipe or a link with the lock's name is refused and left in place."""
    path = Path(str(lock_file))
    path.parent.mkdir()
    if special == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("elsewhere")
    before = os.lstat(path)
    with (
        pytest.raises(UsageError, match=special.replace("pipe", "not a regular file")),
        lock_file.writer_lock("The run"),
    ):
        pass
    assert before == os.lstat(path)


def test_the_holder_of_a_free_lock_is_none(lock_file: Location) -> None:
    """Looking at a lock names its live holder, creates nothing, and does not disturb writers."""
    assert lock_file.lock_holder() is None
    assert not Path(str(lock_file)).parent.exists()
    with process(lock_file) as holder:
        assert "held" == output_line(holder)
        assert f"process {holder.pid} on " in str(lock_file.lock_holder())
        holder.kill()
        holder.wait()
    assert lock_file.lock_holder() is None  # the signature of the killed process remains
    assert Path(str(lock_file)).read_bytes()
    with lock_file.writer_lock("The run"):
        assert lock_file.lock_holder()
