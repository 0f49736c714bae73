"""Ingest, train and score real files as in the README, with a kill and on a cluster."""

from pathlib import Path

import pytest

from tests.commands.process import document, kill_at_line, run_pipeline, succeeded
from tests.commands.sets import write_set

DIGESTS = {
    "digest": "7100e1c181d5e2237a395f73b876d817e908c7186226448302d3e72a9c7d60dd",
    "order_digest": "e60b8f7d03ea802d16a45cd5f54ef6360df3edfaf17f4a5aaf9bac08515e32d9",
}
"""Digests of the dataset and its order, which are equal on every machine."""
SMALL = ("train", "--resume", "--network", "784-relu-8-softmax-10", "--batch-size", "60")


def test_mnist(mnist_dir: Path, tmp_path: Path) -> None:
    """The three commands on MNIST, with a kill, give the digests of every machine."""
    env = {"MNIST_DIR": str(mnist_dir)}
    ingested = document(run_pipeline("ingest", "--json", cwd=tmp_path, env=env))
    kill_at_line(" +2/", "train", "--resume", cwd=tmp_path)
    trained = document(run_pipeline("train", "--resume", "--json", cwd=tmp_path))
    scored = document(run_pipeline("score", "--json", cwd=tmp_path))
    assert {"digest": ingested["digest"], "order_digest": trained["order_digest"]} == DIGESTS
    assert scored["model_digest"] == trained["parameters_digest"]
    assert 0.98 <= scored["quality"]["accuracy"]


@pytest.mark.slow
def test_kill_and_cluster(tmp_path: Path) -> None:
    """A killed run that is resumed on two workers has the bits of an undisturbed one."""
    write_set(tmp_path / "files")
    succeeded(run_pipeline("ingest", "files", "--out", "data/mnist", cwd=tmp_path))
    train = (*SMALL, "--epochs", 40, "--run")
    expected = document(run_pipeline(*train, "runs/undisturbed", "--json", cwd=tmp_path))
    kill_at_line(" +3/", *train, "runs/mnist", cwd=tmp_path)
    trained = document(run_pipeline(*train, "runs/mnist", "--workers", 2, "--json", cwd=tmp_path))
    for name in ("parameters_digest", "order_digest"):
        assert expected[name] == trained[name]
    assert "is sound" in succeeded(run_pipeline("verify", "runs/mnist", cwd=tmp_path))
