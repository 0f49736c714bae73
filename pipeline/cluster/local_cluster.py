"""A job's own cluster: processes of this machine that no other user can reach.

They speak TLS with a certificate made for the run, listen on loopback, serve no Web pages, and keep
their files in a directory of the user's own: Dask's workers import modules and unpickle data from
theirs, and a directory that is shared may be somebody else's.
"""

import fcntl
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path

import dask
import distributed
from distributed.security import Security

from pipeline.cluster.options import ClusterOptions
from pipeline.cluster.worker import reason
from storage.errors import UnreachableError, causes
from storage.files import check_room
from storage.location import Closing

THREADS, THREADS_OF_A_WORKER = 15, 15
OPEN_FILES, OPEN_FILES_OF_A_WORKER = 40, 15
"""What a job and its workers use at most, somewhat more than measured.

Dask hangs or prints tracebacks where it gets less.
"""
CLOSE_SECONDS = 5.0
DIRECTORY_PREFIX = "mnist-stream-workers-"
SETTINGS = {
    # The profiler looks at every thread a hundred times a second, between any two NumPy calls: it
    # took a tenth of the time of short steps. On a cluster of the user's own it is his to choose.
    "distributed.worker.profile.enabled": False,
    # Anybody could read these pages.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


class LocalCluster(Closing):
    """Processes with one thread each, and the directory that they keep their files in."""

    def __init__(self, options: ClusterOptions) -> None:
        """Start them; raise `UnreachableError` if the system does not give what they need."""
        workers = options.workers or 0
        check_room(
            threads=THREADS + THREADS_OF_A_WORKER * workers,
            open_files=OPEN_FILES + OPEN_FILES_OF_A_WORKER * workers,
        )
        with ExitStack() as on_failure:
            try:
                directory = on_failure.enter_context(private_directory())
                self.dask = on_failure.enter_context(_start(options, directory))
            except Exception as error:  # whatever Dask makes of what the system does not give
                raise UnreachableError(
                    f"Cannot start {workers} workers ({reason(_system_error(error))}). Give fewer "
                    "--workers, or raise the limits of processes (ulimit -u), open files (-n) and "
                    "memory (-v)."
                ) from error
            self._open = on_failure.pop_all()

    def close(self) -> None:
        """End the processes and remove their directory."""
        with suppress(Exception):
            self.dask.close(timeout=CLOSE_SECONDS)
        self._open.close()


@contextmanager
def private_directory() -> Iterator[Path]:
    """Make a temporary directory that only its owner can enter, locked while the block runs.

    Those that killed processes of the same user left are removed.
    """
    base = Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir())
    for left in base.glob(f"{DIRECTORY_PREFIX}*"):
        with suppress(OSError), _locked(left):
            if left.stat().st_uid == os.getuid():
                shutil.rmtree(left)
    made = Path(tempfile.mkdtemp(prefix=f".{DIRECTORY_PREFIX}", dir=base))
    with _locked(made):
        path = made.rename(base / made.name[1:])  # it has its name once it is locked
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock a directory while the block runs; raise `OSError` if another process has locked it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _system_error(error: BaseException) -> BaseException:
    """Return what the system said, if that is among an error's causes; else the error."""
    system = (cause for cause in causes(error) if isinstance(cause, OSError) and cause.errno)
    return next(system, error)


def _start(options: ClusterOptions, directory: Path) -> distributed.LocalCluster:
    with dask.config.set(SETTINGS), _signals_blocked():
        return distributed.LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            processes=True,
            host="tls://127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            local_directory=str(directory),
            silence_logs=logging.CRITICAL,
            security=security_of(options) or Security.temporary(),
        )


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start processes that no Ctrl-C reaches, not even while they import.

    They inherit the mask; a signal that comes meanwhile is delivered here when the block ends. The
    tracker of Python's own semaphores would clear the mask, so it is started before.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def security_of(options: ClusterOptions) -> Security | None:
    """Return TLS by the options; None leaves it to Dask's own configuration."""
    if not options.tls_ca:
        return None
    pair = {
        f"tls_{side}_{kind}": getattr(options, f"tls_{kind}")
        for side in ("client", "scheduler", "worker")
        for kind in ("cert", "key")
    }
    return Security(tls_ca_file=options.tls_ca, require_encryption=True, **pair)
