"""The comparison of epochs in a tiny form."""

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")
pytest.importorskip("torch")

from tests.benchmarks import epochs, profiles
from tests.benchmarks.contestants import Case, ContestantProcess
from tests.benchmarks.data import NETWORK, Workplace

TINY = Case(NETWORK, batch_size=100, optimizer="adamw", rows=1_000)


@pytest.mark.slow
def test_contestants_train_the_same_network(tmp_path: Path) -> None:
    """All have the same loss after an epoch, and one core if they have one thread."""
    workplace = Workplace(tmp_path)
    losses = {}
    for name, function in epochs.PEERS.items():
        with ContestantProcess(function, workplace, 1, TINY) as contestant:
            losses[name] = contestant.ready()
            assert contestant() > 0
    assert losses.pop("products") is None
    assert losses == pytest.approx(dict.fromkeys(losses, losses["streamed"]), rel=1e-4)


def test_another_loss_is_refused() -> None:
    """A contestant whose loss differs by more than a hundredth ends the comparison."""
    losses = {("streamed", 1): 1.0, ("products", 1): None, ("JAX scan", 1): 1.009}
    epochs._check_losses(losses)
    with pytest.raises(RuntimeError, match="different networks"):
        epochs._check_losses(losses | {("PyTorch", 1): 1.02})


@pytest.mark.slow
def test_lines_add_up_to_the_step(tmp_path: Path) -> None:
    """The products are among the longest lines; tracing and the choice of a core end."""
    cores = os.sched_getaffinity(0)
    lines = profiles._lines_of_steps(Workplace(tmp_path), TINY, 1)
    longest = [profiles._source(line) for line in list(lines)[:5]]
    assert any("matmul" in source for source in longest), longest
    assert 0 < sum(lines.values()) < 1
    assert sys.gettrace() is None
    assert cores == os.sched_getaffinity(0)
