"""NumPy and its BLAS: what a run records of them, and one BLAS thread for a calculation."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
from threadpoolctl import OpenBLASController, threadpool_info, threadpool_limits

_lock = Lock()
_jobs = 0
_limit: threadpool_limits | None = None
"""What the jobs in this process, be they in several of its threads, hold together: the setting is
the process's, so the last of them to end gives it back, and not the first."""


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread while the block runs: its bits differ between one and several.

    Another thread of the process that is within a product of several BLAS threads when a job begins
    keeps using those; a fork in that moment can hang, for OpenBLAS then waits for its threads.
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


def environment() -> dict[str, Any]:
    """Return the versions and the BLAS kernel that NumPy computes with."""
    every = [library for library in threadpool_info() if library["user_api"] == "blas"]
    # Other packages, SciPy for one, bring a BLAS of their own; NumPy's lies beside or below it.
    own = [library for library in every if library["filepath"].startswith(np.__path__[0])]
    blas = own or every
    return {
        "numpy": np.__version__,
        "blas": ", ".join(f"{library['internal_api']} {library['version']}" for library in blas),
        "blas_kernel": ", ".join(str(library.get("architecture")) for library in blas),
        "machine": platform.machine(),
    }
