"""BLAS held to one thread in this process, for as long as any job in it is at work."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from threadpoolctl import OpenBLASController, threadpool_limits

_lock = Lock()
_jobs = 0
_limit: threadpool_limits | None = None
"""What the jobs in this process, be they in several of its threads, hold together: the setting is
the process's, so the last of them to end gives it back, and not the first."""


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread while the block runs: its bits differ between one and several.

    Another thread of the process that is within a product of several BLAS threads when a job begins
    goes on with those; a fork in that moment can hang, for OpenBLAS then waits for its threads.
    """
    global _jobs, _limit  # noqa: PLW0603 - as what they count is: the process's
    with _lock:
        if not _jobs:
            _let_this_thread_set()
            _limit = threadpool_limits(limits=1, user_api="blas")
        _jobs += 1
    try:
        yield
    finally:
        with _lock:
            _jobs -= 1
            if not _jobs and _limit is not None:
                _let_this_thread_set()
                _limit.restore_original_limits()
                _limit = None


def _let_this_thread_set() -> None:
    """From any thread but the first that ever asked, threadpoolctl would ignore it in silence."""
    OpenBLASController.clear_controlling_thread(force=True)
