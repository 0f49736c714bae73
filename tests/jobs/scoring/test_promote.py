"""Promotion: a model gets a name if it passes the gates, and keeps its checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.scoring.config import ScoreConfig
from jobs.scoring.gates import Gates
from jobs.scoring.job import run_batch, score
from jobs.scoring.promote import PromoteConfig, PromoteResult, promote, undo
from jobs.training.choose_model import choose_models
from jobs.training.job import train
from jobs.training.model import Model
from storage.checkpoints import CheckpointName, list_checkpoints, prune_checkpoints
from storage.errors import BadDataError, QualityGateError, UsageError
from storage.models import open_name
from storage.places import open_location
from storage.runs import open_run
from tests.jobs.inboxes import ledger
from tests.jobs.trainings import small

Promote = Callable[..., PromoteResult]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The directory of the names."""
    return tmp_path / "models"


@pytest.fixture
def give(run: Path, digits: Path, models: Path) -> Promote:
    """`give(epoch)` promotes that epoch's model, by default as champion."""

    def call(epoch: int, name: str = "champion", **options: Any) -> PromoteResult:
        where: dict[str, str] = {"run": str(run), "models": str(models), "dataset": str(digits)}
        return promote(PromoteConfig(name=name, checkpoint=str(epoch), **where | options))

    return call


def accuracies(run: Path, digits: Path) -> list[float]:
    """Return the accuracy of each epoch's model on the test split."""
    results = [score(run=run, dataset=digits, checkpoint=str(epoch)) for epoch in (1, 2, 3)]
    return [result.accuracy for result in results if result.accuracy is not None]


def champion(models: Path) -> str | None:
    """Return the champion's checkpoint."""
    holder = open_name(open_location(models), "champion").holder
    return holder and holder.checkpoint


def test_history(give: Promote, models: Path) -> None:
    """A name passes from one model to the next, and the earlier model is recorded."""
    first, second = give(1), give(2)
    assert None is first.before
    assert first.holder == second.before
    assert "000002-000000" == champion(models)
    events = open_name(open_location(models), "champion").events
    assert [("promoted", None), ("promoted", "000001-000000")] == [
        (event["event"], event["before"] and event["before"]["checkpoint"]) for event in events
    ]


def test_already(give: Promote, models: Path) -> None:
    """Promoting the same model again changes nothing."""
    give(1)
    assert give(1).already_done
    assert 1 == len(open_name(open_location(models), "champion").events)


def test_undo(give: Promote, models: Path) -> None:
    """Each undo returns the name to the previous model, until no model has it."""
    give(1)
    give(2)
    assert ["000001-000000", None] == [
        result.holder and result.holder.checkpoint
        for result in (undo(str(models), "champion") for _ in range(2))
    ]
    assert None is champion(models)
    with pytest.raises(UsageError, match="No model is called"):
        undo(str(models), "champion")
    events = [event["event"] for event in open_name(open_location(models), "champion").events]
    assert ["promoted", "promoted", "undone", "undone"] == events


def test_min_accuracy(give: Promote, run: Path, digits: Path, models: Path) -> None:
    """A model below the gate is refused: the name keeps its model, and the refusal is recorded."""
    one, two, three = accuracies(run, digits)
    assert one < two < three
    with pytest.raises(QualityGateError, match="No model is named champion"):
        give(1, min_accuracy=two)
    assert two == give(2, min_accuracy=two).verdicts[0].value
    with pytest.raises(QualityGateError, match="champion remains model"):
        give(1, min_accuracy=two)
    assert "000002-000000" == champion(models)
    events = [event["event"] for event in open_name(open_location(models), "champion").events]
    assert ["refused", "promoted", "refused"] == events


@pytest.mark.slow
def test_not_worse_than(give: Promote, models: Path) -> None:
    """A model must be as good as the champion on the same rows."""
    give(2, not_worse_than="champion")  # there is no champion yet
    with pytest.raises(QualityGateError, match="that of champion"):
        give(1, not_worse_than="champion")
    give(3, not_worse_than="champion")
    assert "000003-000000" == champion(models)
    with pytest.raises(UsageError, match="No model is called 'unknown'"):
        give(3, not_worse_than="unknown")


def test_gates_are_recorded_in_the_ledger(give: Promote, run: Path) -> None:
    """The scores used by a gate are in the run's ledger."""
    result = give(2, min_accuracy=0.0)
    (line,) = ledger(run)
    assert result.holder is not None
    assert (line["model_digest"], line["accuracy"]) == (
        result.holder.model_digest,
        result.holder.accuracy,
    )


def test_scores_with_the_promoted_model(
    give: Promote, run: Path, digits: Path, models: Path
) -> None:
    """`model` scores with the promoted checkpoint, and the ledger has the name."""
    give(1)
    result = score(model="champion", models=models, dataset=digits)
    assert "000001-000000" == result.metrics["checkpoint"]
    assert run / "scores" == result.scores.location.path.parent
    assert "champion" == ledger(run)[0]["model"]


def test_of_another_run(give: Promote, run: Path, digits: Path, models: Path) -> None:
    """A name can pass to a model of another run, whose scores are kept there."""
    give(1)
    other = run.parent / "other"
    train(small(epochs=1, learning_rate=0.01), dataset=digits, run=other)
    give(1, run=str(other))
    result = score(model="champion", models=models, dataset=digits)
    assert other / "scores" == result.scores.location.path.parent


def test_replaced_run(give: Promote, run: Path, digits: Path, models: Path) -> None:
    """If the run was replaced by another one, the name is refused."""
    give(1)
    shutil.rmtree(run)
    train(small(epochs=1, learning_rate=0.01), dataset=digits, run=run)
    with pytest.raises(BadDataError, match="the run was replaced"):
        score(model="champion", models=models, dataset=digits)
    with pytest.raises(BadDataError, match="the run was replaced"):
        Model.load(model="champion", models=models)


def test_promoted_checkpoints_are_kept(give: Promote, run: Path) -> None:
    """Promoted checkpoints are not pruned."""
    give(1)
    opened = open_run(open_location(run))
    prune_checkpoints(opened, CheckpointName(3, 0), 1, set())
    assert ["000001-000000", "000003-000000"] == [str(name) for name in list_checkpoints(opened)]


def test_drop_from_the_promoted_accuracy(
    give: Promote, run: Path, digits: Path, models: Path
) -> None:
    """Without earlier scores, a drop is measured from the accuracy at the promotion."""
    give(3, min_accuracy=0.0)
    shutil.rmtree(run / "scores")
    config = ScoreConfig(
        model="champion",
        models=str(models),
        dataset=str(digits),
        splits=("train",),
        gates=Gates(max_drop=0.0),
    )
    (result,) = run_batch(config).results
    (verdict,) = result.verdicts
    recorded = open_name(open_location(models), "champion").holder
    assert recorded is not None
    assert verdict.limit == recorded.accuracy


def test_by_digest(give: Promote, run: Path, models: Path) -> None:
    """A checkpoint can be chosen by the first digits of its model's digest."""
    digest = open_run(open_location(run)).metrics()[1]["parameters_digest"]
    where: dict[str, str] = {"run": str(run), "models": str(models)}
    result = promote(PromoteConfig(name="champion", checkpoint=digest[:10], **where))
    assert result.holder is not None
    assert ("000002-000000", digest) == (result.holder.checkpoint, result.holder.model_digest)
    with pytest.raises(BadDataError, match="no sound checkpoint of a model with digest"):
        promote(PromoteConfig(name="champion", checkpoint="0123456789abcdef", **where))


@pytest.mark.parametrize("judged", [False, True])
def test_a_checkpoint_that_is_pruned_is_not_promoted(
    run: Path, digits: Path, models: Path, monkeypatch: pytest.MonkeyPatch, judged: bool
) -> None:
    """If a training run prunes the chosen checkpoint before it is pinned, another one is chosen."""
    chosen: list[str] = []

    def choose(*arguments: Any) -> Any:
        choice = choose_models(*arguments)
        chosen.append(str(choice[0].names))
        if len(chosen) == 1:
            shutil.rmtree(run / "checkpoints" / chosen[0])
        return choice

    monkeypatch.setattr("jobs.scoring.promote.choose_models", choose)
    least = 0.0 if judged else None
    where: dict[str, Any] = {"run": run, "models": models, "dataset": digits}
    result = promote(
        PromoteConfig(name="champion", checkpoint="latest", min_accuracy=least, **where)
    )
    assert result.holder is not None
    assert ["000003-000000", "000002-000000"] == chosen
    assert "000002-000000" == result.holder.checkpoint
