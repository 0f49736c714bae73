"""Directories on this machine's disks, and what the system's refusals become."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.directories import as_pipeline_error, make_directories, remove_tree
from storage.errors import BadDataError, PipelineError, UnreachableError, UsageError
from storage.local import LocalLocation

DEEP = 1200
"""More than the interpreter's recursion limit, and a path that the system still takes."""


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory with a short path, which leaves room for many below it."""
    place = Path("/tmp") / f"deep{os.getpid()}"
    yield place
    shutil.rmtree(place, ignore_errors=True)


def test_deeply_nested(top: Path) -> None:
    """However deep directories are nested, they are made, listed and removed."""
    deep = top.joinpath(*["d"] * DEEP)
    make_directories(deep)
    (deep / "file").touch()
    (deep / "link").symlink_to(top)
    key = f"{'d/' * DEEP}file"
    assert [key] == LocalLocation(top).objects(lambda key, error: None)
    remove_tree(top / "d")
    assert [] == list(top.iterdir())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENAMETOOLONG, "too long", "x"), UsageError),
        (OSError(errno.ENOSPC, "full"), UnreachableError),
        (PermissionError(errno.EACCES, "no", "x"), UnreachableError),
        (MemoryError(), UnreachableError),
        (RecursionError(), BadDataError),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "no"), UsageError),
        (UsageError("Said already."), UsageError),
    ],
)
def test_refusals(error: Exception, kind: type[PipelineError]) -> None:
    """What the system refuses is an error with an exit code, in printable words."""
    found = as_pipeline_error(error)
    assert type(found) is kind
    assert str(found).endswith(".")
    str(found).encode()


def test_a_defect_is_none() -> None:
    """What only wrong code raises stays what it is."""
    assert as_pipeline_error(TypeError()) is None
