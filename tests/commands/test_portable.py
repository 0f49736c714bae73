"""Portable arithmetic: one digest on every processor, from a process that starts itself anew."""

import json
import signal
from pathlib import Path

import pytest

from jobs.training import portable
from jobs.training.portable import KERNEL, RESTARTED, SAMPLE_DIGEST
from tests.commands.conftest import SMALL, Call
from tests.commands.process import (
    assert_refused,
    document,
    run_pipeline,
    start_pipeline,
    succeeded,
    wait_for_line,
)

pytestmark = [
    pytest.mark.slow,  # each test starts a process, which starts anew
    pytest.mark.usefixtures("portable_machine"),
]

PORTABLE = ("train", "--arithmetic", "portable")
SETTINGS = (
    *("--network", "tanh-40-sigmoid-30-relu-20", "--epochs", "3", "--batch-size", "64"),
    *("--distort", "digits", "--dropout", "0.1", "--label-smoothing", "0.1"),
    *("--schedule", "cosine", "--warm-up", "0.2", "--holdout", "100"),
)
"""Settings with every function that rounds: all activations, schedules and the initial weights."""
GOLDEN = {
    "float32": (
        "728d1492c4367f6455c60dc7f3e17e43bdf5701a0ccaa30e560819902da4ef24",
        2.0759698021411896,
    ),
    "float64": (
        "b7bc3cab60f96a18d96c6118f1b392f62475b08074764b5d7e93187937b21c9b",
        2.075969787983281,
    ),
}
"""The digest of the model, and its validation loss.

NumPy 2.0.2, 2.2.6, 2.3.5 and 2.4.6 gave them, from the wheels of PyPI, on an AMD EPYC of 2022
(Zen 4).
"""
HOSTILE = {
    "OPENBLAS_CORETYPE": "Sandybridge",
    "NPY_ENABLE_CPU_FEATURES": "X86_V3",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA",
}


@pytest.mark.parametrize(
    ("dtype", "environment"), [("float32", {}), ("float64", {}), ("float64", HOSTILE)]
)
def test_golden_digests(dtype: str, environment: dict[str, str], tmp_path: Path) -> None:
    """The same model on every x86-64 processor with AVX2, whatever the environment says."""
    succeeded(run_pipeline("ingest", "synthetic:1000,200", "--out", "d", "-q", cwd=tmp_path))
    options = ("--dataset", "d", "--run", "r", "--dtype", dtype, "--json")
    ended = run_pipeline(*PORTABLE, *SETTINGS, *options, cwd=tmp_path, env=environment)
    printed = document(ended)
    loss = printed["epochs"][-1]["evaluation"]["validation"]["cross_entropy"]
    assert GOLDEN[dtype] == (printed["parameters_digest"], loss)
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["configuration"]["arithmetic"] == "portable"
    assert KERNEL == record["environment"]["blas_kernel"]
    assert SAMPLE_DIGEST == record["environment"]["sample_digest"]


def test_setting_of_a_file_and_of_a_run(dataset: Path, here: Path) -> None:
    """It comes from TOML or from the run; the log and the metrics are those of one command."""
    Path("portable.toml").write_text('arithmetic = "portable"\nepochs = 1\n')
    files = ("--metrics-file", "train.prom", "--log-json")
    ended = run_pipeline("train", "--config", "portable.toml", *SMALL, *files, cwd=here)
    lines = [json.loads(line) for line in succeeded(ended).splitlines()]
    assert ["summary"] == [line["event"] for line in lines if "exit" in line]
    assert 'exit_code{file="train.prom"} 0.0' in Path("train.prom").read_text()
    resumed = run_pipeline("train", "--resume", "--quiet", cwd=here)
    assert lines[-2]["parameters_digest"][:12] in succeeded(resumed)


def test_process_and_signals(dataset: Path, here: Path) -> None:
    """The process keeps its ID, and a signal still stops it."""
    with start_pipeline(*PORTABLE, *SMALL, "--epochs", "1000", cwd=here) as process:
        wait_for_line(process, " +2/")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert 128 + signal.SIGTERM == process.returncode
    assert "the checkpoint is saved" in err


def test_main_in_another_program(
    dataset: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that calls `main` is not started anew; its log ends with a summary."""
    monkeypatch.setenv(RESTARTED, "")
    monkeypatch.setattr(portable, "_kernels", lambda: {"Sandybridge"})
    assert_refused(call(*PORTABLE, *SMALL), 2, "Start it with `env OPENBLAS_CORETYPE=")
    [line] = call(*PORTABLE, *SMALL, "--log-json").out.splitlines()
    assert {"summary", 2} <= {*map(str, json.loads(line).values()), json.loads(line)["exit"]}
    assert not Path("runs/mnist").exists()
