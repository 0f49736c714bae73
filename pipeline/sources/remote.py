"""Sources in object storage: copied to a temporary directory, which is removed at the end."""

import errno
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

from pipeline.sources.formats import Source, SourceOptions
from pipeline.sources.source import open_path, open_source
from pipeline.sources.splits import changed_error
from storage import files
from storage.errors import BadDataError, PipelineError, UnreachableError, UsageError
from storage.events import Progress, no_progress
from storage.local import LocalLocation
from storage.location import Location
from storage.places import open_location

THREADS = 8
"""Objects that are copied at once."""
PIECE_BYTES = 8 * 2**20
"""Bytes per request, which each thread holds in memory."""
POLL_SECONDS = 0.1
"""Interval at which `progress` is called during a copy."""
NAME_TAKEN = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
"""Errors where one object's name is a directory of another's."""

SourcePlace = str | Location | Source
"""What can be opened: a path, a name or a URL; a location; or an open source."""


@contextmanager
def opened_source(
    source: SourcePlace, options: SourceOptions | None = None, progress: Progress = no_progress
) -> Iterator[Source]:
    """Yield an open source; see `open_source` for the paths and names that `source` can be.

    An `s3://` URL, or a location in a store, is that of an object, or of a prefix with the files
    of a directory. They are copied to the temporary directory, and removed when the block ends.
    Errors, warnings and descriptions name the URL instead of the copy. Raises `UsageError` if
    there is no object, `BadDataError` for keys that are not names of files.
    """
    if isinstance(source, str) and "://" in source:
        source = open_location(source)
    if isinstance(source, LocalLocation):
        source = str(source)
    if isinstance(source, str):
        source = open_source(source, options, progress=progress)
    if isinstance(source, Source):
        yield source
        return
    with _temporary_directory() as directory:
        path, url = directory / source.name, str(source)
        with shown_as(directory, str(source.split()[0])), shown_as(path, url):
            _copy(source, path, progress)
            opened = open_path(path, options or SourceOptions(), progress)
            for split in opened.splits:
                split.origin = split.origin.replace(str(path), url)
            description = opened.description.replace(str(path), url)
            yield replace(opened, description=description)


def _copy(source: Location, path: Path, progress: Progress) -> None:
    """Copy an object to `path`, or the objects below a prefix to paths below it."""
    parent, name = source.split()
    if parent.holds(name):
        location, sizes, directory = parent, {name: parent.size(name)}, path.parent
    else:
        source.objects(_refuse)
        location, sizes, directory = source, source.sizes(), path
    if not sizes:
        raise UsageError(f"There is no object {source}, and none below it. Check the URL.")
    copied: list[int] = []
    stopped = Event()

    def count(size: int) -> None:
        copied.append(size)
        if stopped.is_set():
            raise CancelledError

    def report() -> None:
        note = f"{sum(copied) / 1e6:,.1f} of {sum(sizes.values()) / 1e6:,.1f} MB"
        progress(f"copy {source}", 0, 1, note)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="copy") as pool:
        try:
            _wait_for(
                [pool.submit(_copy_object, location, key, directory / key, count) for key in sizes],
                report,
            )
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress(f"copy {source}", 1, 1)


def _wait_for(futures: list[Future[None]], report: Callable[[], None]) -> None:
    """Wait until all objects are copied; raise an error of one of them, or of `report`."""
    waiting = set(futures)
    while waiting:
        report()
        done, waiting = wait(waiting, POLL_SECONDS)
        for future in done:
            future.result()


def _copy_object(location: Location, key: str, path: Path, count: Callable[[int], None]) -> None:
    """Copy an object; call `count` with the size of each piece, which may raise to stop.

    Raises `BadDataError` if the object is changed or removed during the copy.
    """
    try:
        before = location.status(key)
        with _local_errors(f"{location}/{key}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = files.create(path)
        try:
            for start in range(0, before.size, PIECE_BYTES):
                piece = location.get(key, start, min(start + PIECE_BYTES, before.size))
                with _local_errors(f"{location}/{key}"):
                    files.write(descriptor, piece)
                count(len(piece))
        finally:
            files.close(descriptor)
        changed = location.status(key).version != before.version
    except FileNotFoundError:
        changed = True
    if changed:
        raise changed_error(f"{location}/{key}")


def _refuse(key: str, error: PipelineError | None) -> None:
    """Raise the error for a key that leads outside, or is no path; skip those of folders."""
    if error is not None and not key.endswith("/"):
        raise error


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    with _local_errors("the source"):
        directory = tempfile.TemporaryDirectory(prefix="ingest-")
    with directory as name:
        yield Path(os.path.realpath(name))


@contextmanager
def _local_errors(name: str) -> Iterator[None]:
    """Raise a `PipelineError` if the copy of an object cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in NAME_TAKEN:
            raise BadDataError(
                f"{name} is the name of an object and of a prefix of others; expected names that "
                "files can have. Rename one of them."
            ) from error
        raise UnreachableError(
            f"Cannot copy {name} to {tempfile.gettempdir()}: {error.strerror or error}. Free some "
            "space there, or set TMPDIR to another directory, and run the same command again."
        ) from error


@contextmanager
def shown_as(path: Path, place: str) -> Iterator[None]:
    """Replace a path by another place in errors and log records while the block runs."""
    make_record = logging.getLogRecordFactory()

    def make_renamed(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = make_record(*arguments, **more)
        if str(path) in (text := record.getMessage()):
            record.msg, record.args = text.replace(str(path), place), ()
        return record

    logging.setLogRecordFactory(make_renamed)
    try:
        yield
    except PipelineError as error:
        error.args = tuple(str(text).replace(str(path), place) for text in error.args)
        raise
    finally:
        logging.setLogRecordFactory(make_record)
