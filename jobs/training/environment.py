"""What rounds the results: the libraries that a run records, and the limit to one BLAS thread."""

import hashlib
import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
from numpy._core._multiarray_umath import (  # type: ignore[import-not-found]
    __cpu_baseline__,
    __cpu_dispatch__,
    __cpu_features__,
)
from numpy.typing import NDArray
from threadpoolctl import OpenBLASController, threadpool_info, threadpool_limits

from jobs.nn.initialise import uniforms

CPU_BASELINE: tuple[str, ...] = tuple(__cpu_baseline__)
"""The processor features that this NumPy always uses."""
CPU_DISPATCH: tuple[str, ...] = tuple(__cpu_dispatch__)
"""The processor features for which this NumPy has functions of their own."""
CPU_FEATURES: dict[str, bool] = __cpu_features__
"""Whether this process has each feature."""
SAMPLE_SHAPE = (2, 50, 800)
"""The shape of the sample values: two matrices, large enough for all loops of a BLAS kernel."""

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


def numpy_blas() -> list[dict[str, Any]]:
    """Return threadpoolctl's descriptions of NumPy's BLAS; none if it does not know the library.

    Other packages, such as SciPy, bring their own BLAS; that of NumPy's wheels is in numpy.libs.
    """
    every = [library for library in threadpool_info() if library["user_api"] == "blas"]
    own = [library for library in every if library["filepath"].startswith(np.__path__[0])]
    return own or every


def cpu_features() -> list[str]:
    """Return the processor features whose functions NumPy uses beside its baseline's."""
    return [name for name in CPU_DISPATCH if CPU_FEATURES[name]]


@cache
def sample_digest() -> str:
    """Return a digest of sample results, which differs wherever functions round differently.

    The samples are all that a training's results depend on beside exact operations: products, the
    exponential, the logarithm and the hyperbolic tangent in both types, and the cosine.
    """
    digest = hashlib.sha256()
    uniform = uniforms(math.prod(SAMPLE_SHAPE), seed=0, layer=0)
    with one_blas_thread():
        for dtype in (np.float32, np.float64):
            positive: NDArray[Any] = (20 * uniform).astype(dtype)
            signed: NDArray[Any] = (20 * uniform - 10).astype(dtype)
            left, right = signed.reshape(SAMPLE_SHAPE)
            functions = (np.exp(signed), np.log(positive), np.tanh(signed))
            for values in (left @ right.T, *functions):
                digest.update(values.tobytes())
    digest.update(np.cos(signed).tobytes())
    return digest.hexdigest()[:12]


def environment() -> dict[str, str]:
    """Return what a result's last digits depend on, for the record of a run."""
    blas = numpy_blas()
    return {
        "numpy": np.__version__,
        "blas": ", ".join(f"{library['internal_api']} {library['version']}" for library in blas),
        "blas_kernel": ", ".join(str(library.get("architecture")) for library in blas),
        "cpu_features": ", ".join(cpu_features()),
        "libc": " ".join(platform.libc_ver()).strip(),
        "machine": platform.machine(),
        "sample_digest": sample_digest(),
    }
