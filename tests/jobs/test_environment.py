"""BLAS on one thread: for as long as any job is at work, whichever of them ends first."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from threadpoolctl import threadpool_info, threadpool_limits

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
