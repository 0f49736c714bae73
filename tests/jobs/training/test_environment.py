"""BLAS: NumPy's own is recorded, and limited to one thread while any job runs."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from jobs.training import environment
from jobs.training.environment import one_blas_thread


def blas_threads() -> set[int]:
    """The thread limits of the BLAS libraries of this process."""
    return {blas["num_threads"] for blas in threadpool_info() if blas["user_api"] == "blas"}


def test_held_until_the_last_job_ends() -> None:
    """When the first of two jobs in two threads ends, the limit of the other stays."""
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
        ended, limited = pool.submit(short), pool.submit(long)
        assert {1} == limited.result()
        ended.result()
        assert {3} == blas_threads()


def test_the_blas_of_another_package_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """SciPy has its own OpenBLAS; a run resumed with it loaded has the same bits."""
    [own] = [library for library in threadpool_info() if "numpy" in library["filepath"]]
    other = own | {"filepath": "/site-packages/scipy.libs/libopenblas.so", "version": "0.3.1"}
    monkeypatch.setattr(environment, "threadpool_info", lambda: [other, own])
    assert f"{own['internal_api']} {own['version']}" == environment.environment()["blas"]
