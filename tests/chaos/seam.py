"""Replace the file operations of `storage.files`, through which all writing passes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from pipeline import ingest
from storage import files

OPERATIONS = (
    "create",
    "open_append",
    "write",
    "fsync",
    "fsync_path",
    "close",
    "rename",
    "mkdir",
    "unlink",
    "rmdir",
    "fsync_directory",
)

Operation = Callable[..., Any]
Around = Callable[[str, Operation, tuple[Any, ...]], Any]
"""Called instead of an operation, with its name, the real function, and its arguments."""


@contextmanager
def operations_through(around: Around) -> Iterator[None]:
    """Call `around` for every operation that changes the disk while the block runs.

    Operations within another one, such as fsync in `fsync_directory`, do not count. Ingest uses one
    thread, so that the n-th operation is always the same.
    """
    within = threading.local()

    def replaced(name: str, real: Operation) -> Operation:
        def operation(*arguments: Any) -> Any:
            if getattr(within, "one", False):
                return real(*arguments)
            within.one = True
            try:
                return around(name, real, arguments)
            finally:
                within.one = False

        return operation

    defaults = ingest.ingest.__kwdefaults__
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(defaults, threads=1))
        for name in OPERATIONS:
            real = getattr(files, name)
            stack.enter_context(mock.patch.object(files, name, replaced(name, real)))
        yield


@contextmanager
def counted() -> Iterator[list[str]]:
    """Yield a list that collects the names of the block's operations."""
    done: list[str] = []

    def around(name: str, real: Operation, arguments: tuple[Any, ...]) -> Any:
        done.append(name)
        return real(*arguments)

    with operations_through(around):
        yield done
