"""Portable arithmetic: what a process needs for it, and what is said where it is missing."""

import os
import platform
import signal
from pathlib import Path

import pytest

from jobs.signals import stop_on_signals
from jobs.training import portable
from jobs.training.environment import sample_digest
from jobs.training.job import train
from jobs.training.portable import (
    ALLOWED,
    CPU_DISPATCH,
    DISABLED,
    KERNEL,
    RESTARTED,
    SAMPLE_DIGEST,
    TUNABLES,
    check_arithmetic,
    check_worker,
    warn_of_samples,
)
from storage.errors import RestartError, StoppedError, UnreachableError, UsageError
from tests.jobs.trainings import Log, small, warnings_in

KERNEL_OF_ANOTHER = "SkylakeX"
FEATURES = [name for name in CPU_DISPATCH if name in ALLOWED]
VARIABLES = {
    "OPENBLAS_CORETYPE": KERNEL,
    DISABLED: " ".join(name for name in CPU_DISPATCH if name not in ALLOWED),
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An x86-64 processor with AVX2 and no variables, on which OpenBLAS has chosen AVX-512."""
    for name in (*VARIABLES, "NPY_ENABLE_CPU_FEATURES", TUNABLES, RESTARTED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(portable, "CPU_BASELINE", ("X86_V2",))
    monkeypatch.setattr(portable, "CPU_FEATURES", {"AVX2": True, "FMA3": True})
    monkeypatch.setattr(portable, "cpu_features", lambda: FEATURES)
    compute_with(monkeypatch, KERNEL_OF_ANOTHER)
    return monkeypatch


def compute_with(machine: pytest.MonkeyPatch, kernel: str, library: str = "openblas") -> None:
    """Let NumPy's BLAS be this one."""
    blas = {"internal_api": library, "architecture": kernel}
    machine.setattr(portable, "numpy_blas", lambda: [blas])


def test_from_python(machine: pytest.MonkeyPatch, digits: Path, tmp_path: Path) -> None:
    """The error has the variables to set, as a shell command; there is no run."""
    machine.setenv("NPY_ENABLE_CPU_FEATURES", "AVX2")
    machine.setenv(TUNABLES, "glibc.malloc.check=1:glibc.cpu.hwcaps=-AVX2")
    with pytest.raises(RestartError) as caught:
        train(small(arithmetic="portable"), dataset=digits, run=tmp_path / "run")
    tunables = {TUNABLES: "glibc.malloc.check=1", "NPY_ENABLE_CPU_FEATURES": None}
    assert VARIABLES | tunables == caught.value.variables
    command = f"`env -u NPY_ENABLE_CPU_FEATURES OPENBLAS_CORETYPE={KERNEL} '{DISABLED}="
    assert command in str(caught.value)
    assert [] == list(tmp_path.iterdir())


def test_nothing_to_set(machine: pytest.MonkeyPatch) -> None:
    """A processor without AVX-512 needs no variables, unless the C library is set to another."""
    compute_with(machine, KERNEL)
    check_arithmetic("portable")
    machine.setenv(TUNABLES, "glibc.cpu.hwcaps=-FMA")
    with pytest.raises(RestartError) as caught:
        check_arithmetic("portable")
    assert caught.value.variables[TUNABLES] is None


def test_features_of_numpy(machine: pytest.MonkeyPatch) -> None:
    """NumPy may use neither more nor fewer of the portable features."""
    compute_with(machine, KERNEL)
    for features in ([*FEATURES, "AVX512_SKX"], FEATURES[1:]):
        machine.setattr(portable, "cpu_features", lambda features=features: features)
        with pytest.raises(RestartError):
            check_arithmetic("portable")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("machine", "aarch64", "this one is aarch64"),
        ("CPU_FEATURES", {"AVX2": False, "FMA3": True}, "NumPy reports no AVX2 here"),
        ("CPU_BASELINE", ("X86_V2", "X86_V4"), "NumPy was built for processors with X86_V4"),
        ("blas", "mkl", "NumPy computes with mkl, not OpenBLAS"),
        ("blas", None, "NumPy computes with an unknown BLAS"),
    ],
)
def test_machines_that_cannot(
    name: str, value: object, words: str, machine: pytest.MonkeyPatch
) -> None:
    """No variable helps, so the error names none; native arithmetic is not affected."""
    if name == "machine":
        machine.setattr(platform, "machine", lambda: value)
    elif name == "blas":
        blas = [{"internal_api": value}] if value else []
        machine.setattr(portable, "numpy_blas", lambda: blas)
    else:
        machine.setattr(portable, name, value)
    with pytest.raises(UsageError, match=words) as caught:
        check_arithmetic("portable")
    assert not isinstance(caught.value, RestartError)
    check_arithmetic("native")


def test_variables_without_effect(machine: pytest.MonkeyPatch) -> None:
    """A process is not started anew for ever: not with all variables set, and only once."""
    machine.setenv(RESTARTED, str(os.getpid()))
    with pytest.raises(UsageError, match=f"has {KERNEL_OF_ANOTHER} and") as once:
        check_arithmetic("portable")
    machine.setenv(RESTARTED, "1")  # inherited from another process
    with pytest.raises(RestartError):
        check_arithmetic("portable")
    for name, value in VARIABLES.items():
        machine.setenv(name, value)
    with pytest.raises(UsageError, match="although the environment variables are set") as again:
        check_arithmetic("portable")
    assert not any(isinstance(caught.value, RestartError) for caught in (once, again))


def test_workers(machine: pytest.MonkeyPatch) -> None:
    """A worker needs portable arithmetic only with a job that has it, and the job's results."""
    check_worker("")
    with pytest.raises(UnreachableError, match=f"CORETYPE={KERNEL} .*dask worker"):
        check_worker(sample_digest())
    compute_with(machine, KERNEL)
    check_worker(sample_digest())
    with pytest.raises(UnreachableError, match="rounds differently"):
        check_worker("another")
    compute_with(machine, KERNEL, "mkl")
    with pytest.raises(UnreachableError, match="not OpenBLAS"):
        check_worker(sample_digest())


def test_unknown_libraries(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """Libraries that round differently cause a warning, in portable arithmetic alone."""
    monkeypatch.setattr(portable, "sample_digest", lambda: SAMPLE_DIGEST)
    warn_of_samples("portable")
    monkeypatch.setattr(portable, "sample_digest", lambda: "another")
    warn_of_samples("native")
    assert [] == warnings_in(log)
    warn_of_samples("portable")
    assert "another" in warnings_in(log)[0]


def test_a_signal_before_the_restart() -> None:
    """It is not lost with the process's handlers."""
    with pytest.raises(StoppedError), stop_on_signals():
        signal.raise_signal(signal.SIGTERM)
        raise RestartError("", {})
