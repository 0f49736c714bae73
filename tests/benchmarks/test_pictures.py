"""The benchmark of pictures on a sample: most changed test digits get their class."""

from pathlib import Path

import pytest

from jobs.training.job import train
from jobs.training.model import Model
from tests.benchmarks.data import Workplace
from tests.benchmarks.pictures import chosen_digits, right_share


@pytest.mark.slow
def test_changed_digits_get_their_class(mnist_dir: Path, tmp_path: Path) -> None:
    """Of 100 pictures, at least 95 are right if enlarged or stretched, and 94 with all changes."""
    workplace = Workplace(tmp_path)
    train({"epochs": 5}, dataset=workplace.dataset.location, run=tmp_path / "run")
    digits, labels = chosen_digits(workplace, 100)
    for change, least in (("enlarged", 0.95), ("all", 0.94), ("tall", 0.95), ("wide", 0.95)):
        share, refused = right_share(Model.load(tmp_path / "run"), digits, labels, change)
        assert share >= least
        assert refused <= 1
