"""Portable arithmetic: the same functions of OpenBLAS and NumPy on every x86-64 with AVX2.

OpenBLAS and NumPy hold functions for several generations of processors, which round differently.
They choose among them when Python starts, by the processor and by environment variables; so does
the C library, whose exponential and logarithm NumPy uses in float64.
"""

import logging
import os
import platform
import shlex
from collections.abc import Mapping

from jobs.training.environment import (
    CPU_BASELINE,
    CPU_DISPATCH,
    CPU_FEATURES,
    cpu_features,
    numpy_blas,
    sample_digest,
)
from storage.errors import RestartError, UnreachableError, UsageError, listed

logger = logging.getLogger(__name__)

KERNEL = "Haswell"
"""OpenBLAS's kernel for processors with AVX2."""
NEEDED = ("AVX2", "FMA3")
ALLOWED = {
    *("SSE", "SSE2", "SSE3", "SSSE3", "SSE41", "POPCNT", "SSE42", "AVX", "F16C", *NEEDED),
    *("X86_V2", "X86_V3"),
}
"""Features that every processor with AVX2 has, by their names in NumPy 2.0 to 2.4."""
SAMPLE_DIGEST = "664b0622165d"
"""The sample digest of the libraries that the documentation lists."""
DISABLED = "NPY_DISABLE_CPU_FEATURES"
TUNABLES = "GLIBC_TUNABLES"
RESTARTED = "MNIST_STREAM_RESTARTED"
"""The environment variable with the ID of a process that has started anew."""


def check_arithmetic(arithmetic: str) -> None:
    """Raise unless this process computes portably, if the arithmetic is `portable`.

    Raises `RestartError` if other environment variables would help, and `UsageError` if the
    processor or the libraries cannot compute portably.
    """
    if arithmetic != "portable":
        return
    _check_machine()
    if _is_portable():
        return
    differing = {
        name: value for name, value in _variables().items() if os.environ.get(name) != value
    }
    if differing and os.environ.get(RESTARTED) != str(os.getpid()):
        raise RestartError(
            "Portable arithmetic needs environment variables that are read when Python starts. "
            f"Start it with `{_command(differing)} python`.",
            differing,
        )
    raise UsageError(
        f"Portable arithmetic needs OpenBLAS's kernel {KERNEL} and no CPU features of NumPy above "
        f"{NEEDED[0]}; this process has {listed(sorted(_kernels()))} and {listed(cpu_features())}, "
        "although the environment variables are set. Set them before Python starts, and use the "
        "NumPy that `pip install numpy` installs."
    )


def _check_machine() -> None:
    """Raise `UsageError` if no environment variable can make this process portable."""
    blas = {str(library["internal_api"]) for library in numpy_blas()}
    missing = [name for name in NEEDED if not CPU_FEATURES.get(name)]
    above = [name for name in CPU_BASELINE if name not in ALLOWED]
    if platform.machine() not in ("x86_64", "AMD64"):
        problem = f"this one is {platform.machine()}"
    elif missing:
        problem = f"NumPy reports no {' and no '.join(missing)} here"
        if DISABLED in os.environ:
            problem += f"; {DISABLED} is set, which may hide them"
    elif blas != {"openblas"}:
        problem = f"NumPy computes with {listed(sorted(blas)) or 'an unknown BLAS'}, not OpenBLAS"
    elif above:
        problem = f"NumPy was built for processors with {listed(above)}"
    else:
        return
    raise UsageError(
        f"Portable arithmetic needs an x86-64 processor with {' and '.join(NEEDED)}, and the NumPy "
        f"that `pip install numpy` installs: {problem}. Leave --arithmetic portable out, or use "
        "another machine or NumPy."
    )


def _is_portable() -> bool:
    """Return whether this process uses the portable functions, all of them and no others."""
    return (
        _kernels() == {KERNEL}
        and {*cpu_features()} == ALLOWED.intersection(CPU_DISPATCH)
        and not _is_of_processor(os.environ.get(TUNABLES, ""))
    )


def _kernels() -> set[str]:
    return {str(library.get("architecture")) for library in numpy_blas()}


def _is_of_processor(tunable: str) -> bool:
    """Return whether a setting of the C library may change which functions it chooses."""
    return "glibc.cpu." in tunable


def _variables() -> dict[str, str | None]:
    """Return the environment variables of a portable process; None for one that is not set."""
    tunables = os.environ.get(TUNABLES, "").split(":")
    kept = ":".join(tunable for tunable in tunables if not _is_of_processor(tunable))
    return {
        "OPENBLAS_CORETYPE": KERNEL,
        DISABLED: " ".join(name for name in CPU_DISPATCH if name not in ALLOWED),
        "NPY_ENABLE_CPU_FEATURES": None,  # NumPy refuses both
        TUNABLES: kept or None,
    }


def _command(variables: Mapping[str, str | None]) -> str:
    """Return the beginning of a shell command that sets and unsets environment variables."""
    unset = [word for name, value in variables.items() if value is None for word in ("-u", name)]
    pairs = [f"{name}={value}" for name, value in variables.items() if value is not None]
    return shlex.join(["env", *unset, *pairs])


def warn_of_samples(arithmetic: str) -> None:
    """Warn if portable arithmetic rounds differently with these versions of the libraries."""
    if arithmetic == "portable" and (digest := sample_digest()) != SAMPLE_DIGEST:
        logger.warning(
            "This version of NumPy, OpenBLAS or the C library rounds differently from those that "
            "the documentation of portable arithmetic lists (sample digest %s, not %s): the model "
            "is the same only where this version computes it.",
            digest,
            SAMPLE_DIGEST,
        )


def arithmetic_of_workers(arithmetic: str) -> str:
    """Return the sample digest that workers must have; empty if they compute natively."""
    return "" if arithmetic == "native" else sample_digest()


def check_worker(expected: str) -> None:
    """Raise `UnreachableError` unless this worker computes portably, with the job's results.

    `expected` is what `arithmetic_of_workers` returned in the job.
    """
    if not expected:
        return
    try:
        check_arithmetic("portable")
    except RestartError as error:
        raise UnreachableError(
            "The job computes with portable arithmetic, and a worker does not. Start it with "
            f"`{_command(error.variables)} dask worker`."
        ) from error
    except UsageError as error:
        raise UnreachableError(f"A worker cannot compute as the job does. {error}") from error
    digest = sample_digest()
    if digest != expected:
        raise UnreachableError(
            f"A worker rounds differently from the job (sample digest {digest}, not {expected}). "
            "Install the same versions of NumPy and of the C library."
        )
