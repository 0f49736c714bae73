"""BLAS: NumPy's own is recorded, and held to one thread for as long as any job is at work."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from jobs import environment
from jobs.environment import one_blas_thread


def blas_threads() -> set[int]:
    """The threads that each BLAS of the process may use."""
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


def test_held_until_the_last_job_ends() -> None:
    """Of two jobs in two threads the first to end leaves the other at one thread."""
    together, one_has_ended = Barrier(2), Barrier(2)

    def short() -> None:
        with one_blas_thread():
            together.wait()
        one_has_ended.wait()

    def long() -> set[int]:
        with one_blas_thread():
            together.wait()
            one_has_ended.wait()
            return blas_threads()

    with threadpool_limits(3, user_api="blas"), ThreadPoolExecutor(2) as pool:
        ended, found = pool.submit(short), pool.submit(long)
        assert {1} == found.result()
        ended.result()
        assert {3} == blas_threads()


def test_the_blas_of_another_package_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """SciPy brings an OpenBLAS of its own; a run resumed where it is loaded has the same bits."""
    [own] = [library for library in threadpool_info() if "numpy" in library["filepath"]]
    other = own | {"filepath": "/site-packages/scipy.libs/libopenblas.so", "version": "0.3.1"}
    monkeypatch.setattr(environment, "threadpool_info", lambda: [other, own])
    assert f"{own['internal_api']} {own['version']}" == environment.environment()["blas"]
