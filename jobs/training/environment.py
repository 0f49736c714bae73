"""NumPy and its BLAS: the versions that a run records, and the limit to one BLAS thread."""

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
"""The limit that all jobs in this process share: the setting belongs to the process, so the last
job to end restores it."""


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread while the block runs: results differ between one and several.

    A matrix product that another thread of the process has begun keeps its BLAS threads. A fork at
    that moment can hang, because OpenBLAS waits for its threads.
    """
    global _jobs, _limit  # noqa: PLW0603 - the setting belongs to the process
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
    """Let the current thread set the limit: threadpoolctl ignores all threads after the first."""
    OpenBLASController.clear_controlling_thread(force=True)


def environment() -> dict[str, Any]:
    """Return the versions and the BLAS kernel that NumPy computes with."""
    every = [library for library in threadpool_info() if library["user_api"] == "blas"]
    # Other packages, such as SciPy, bring their own BLAS; NumPy's is in numpy or numpy.libs.
    own = [library for library in every if library["filepath"].startswith(np.__path__[0])]
    blas = own or every
    return {
        "numpy": np.__version__,
        "blas": ", ".join(f"{library['internal_api']} {library['version']}" for library in blas),
        "blas_kernel": ", ".join(str(library.get("architecture")) for library in blas),
        "machine": platform.machine(),
    }
