"""Scoring jobs: several splits, the ledger, gates, waiting, retries and invalid options."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.scoring.config import ScoreConfig
from jobs.scoring.gates import Gates
from jobs.scoring.job import run_batch, score
from jobs.scoring.result import ScoringResult
from jobs.scoring.retry import Retry
from jobs.signals import StopSignal
from jobs.training.choose_model import choose_models
from storage.errors import (
    BadDataError,
    ConflictError,
    PipelineError,
    QualityGateError,
    StoppedError,
    UnreachableError,
    UsageError,
)
from storage.places import open_location
from storage.scores import score_into
from tests.jobs.inboxes import Events, ledger
from tests.jobs.scoring.test_fit import unlabelled_test


def batch(run: Path, digits: Path, **options: Any) -> ScoringResult:
    """Run a scoring job."""
    how = {name: options.pop(name) for name in ("progress", "stop") if name in options}
    return run_batch(ScoreConfig(**{"run": str(run), "dataset": str(digits)} | options), **how)


def test_several_splits(run: Path, digits: Path) -> None:
    """Each split is scored once, in the order given."""
    result = batch(run, digits, splits=("train", "test", "train"))
    assert ["train", "test"] == [one.scores.schema.split for one in result.results]
    assert [("train", 1031), ("test", 211)] == [
        (line["split"], line["rows"]) for line in ledger(run)
    ]


def test_ledger_line(run: Path, digits: Path) -> None:
    """A line has times, digests, rows, metrics, the place of the scores, and the exit code."""
    (result,) = batch(run, digits).results
    (line,) = ledger(run)
    assert {
        "event": "scored",
        "exit": 0,
        "status": "ok",
        "model_digest": result.metrics["model_digest"],
        "dataset_digest": result.metrics["dataset_digest"],
        "checkpoint": "000003-000000",
        "split": "test",
        "rows": 211,
        "accuracy": result.accuracy,
        "cross_entropy": result.metrics["quality"]["cross_entropy"],
        "seconds": result.metrics["seconds"],
        "result": f"scores/{result.scores.schema.home}",
        "scores_digest": result.scores.digest,
        "gates": [],
    }.items() <= line.items()
    assert line["started"] <= line["time"]


def test_repr(run: Path, digits: Path) -> None:
    """Results describe themselves in one line."""
    job = batch(run, digits)
    (result,) = job.results
    expected = f"<ScoreResult {result.scores.location}: 211 rows, accuracy {result.accuracy:.4f}>"
    assert expected == repr(result)
    model = f"model {job.model_digest[:12]} of {run}"
    assert f"<ScoringResult {model}: 1 results, 0 errors, 0 left>" == repr(job)
    assert "secret" not in repr(ScoreConfig(storage_options={"secret_access_key": "hidden"}))


def test_lock_files_are_removed(run: Path, digits: Path) -> None:
    """After a complete scoring only the ledger's lock file remains."""
    batch(run, digits, splits=("train", "test"))
    hidden = sorted(path.name for path in (run / "scores").glob(".*"))
    assert [".ledger.lock"] == hidden


def test_scores_without_a_line(run: Path, digits: Path) -> None:
    """Scores whose job died before it recorded them get a line from the next job."""
    batch(run, digits)
    (run / "scores" / "ledger.jsonl").unlink()
    assert batch(run, digits).results[0].already_done
    assert [("scored", None)] == [(line["event"], line["started"]) for line in ledger(run)]


def test_missed_gate(run: Path, digits: Path) -> None:
    """Scores below a gate are published and marked; the error has exit code 5."""
    result = batch(run, digits, gates=Gates(min_accuracy=1.0))
    assert isinstance(result.error, QualityGateError)
    assert "expected at least 100.00 %" in str(result.error)
    (line,) = ledger(run)
    assert (5, "below gate") == (line["exit"], line["status"])
    assert [("min-accuracy", 1.0, False)] == [
        (gate["gate"], gate["limit"], gate["passed"]) for gate in line["gates"]
    ]
    assert result.results[0].scores.location.exists("metrics.json")


def test_gate_on_existing_scores(run: Path, digits: Path) -> None:
    """Existing scores are judged by each job; the ledger records new verdicts only."""
    batch(run, digits)
    for _ in range(2):
        assert isinstance(batch(run, digits, gates=Gates(min_accuracy=1.0)).error, QualityGateError)
    assert [("scored", 0), ("judged", 5)] == [(line["event"], line["exit"]) for line in ledger(run)]


def test_max_drop(run: Path, digits: Path) -> None:
    """A drop is measured from the split's last scoring that missed no gate."""
    three = batch(run, digits, checkpoint="3").results[0].accuracy
    assert three is not None
    for epoch in ("1", "2"):  # epoch 1 missed its gate, so epoch 2 is compared with epoch 3
        error = batch(run, digits, checkpoint=epoch, gates=Gates(max_drop=0.01)).error
        assert isinstance(error, QualityGateError)
    limits = [line["gates"][0]["limit"] for line in ledger(run)[1:]]
    assert [pytest.approx(three - 0.01)] * 2 == limits
    assert batch(run, digits, checkpoint="2", gates=Gates(max_drop=1.0)).error is None


def test_first_scoring_of_a_split(run: Path, digits: Path) -> None:
    """Without an earlier accuracy there is no verdict on a drop."""
    assert () == batch(run, digits, gates=Gates(max_drop=0.0)).results[0].verdicts


def test_a_bad_split_does_not_stop_the_others(run: Path, digits: Path, tmp_path: Path) -> None:
    """The other splits are scored, and the job ends with the bad split's error."""
    dataset = shutil.copytree(digits, tmp_path / "dataset")
    (dataset / "train" / "inputs" / "c.0.0").unlink()
    result = batch(run, dataset, splits=("train", "test"))
    assert ["test"] == [one.scores.schema.split for one in result.results]
    assert isinstance(result.error, BadDataError)


def test_wait(run: Path, digits: Path, tmp_path: Path, events: Events) -> None:
    """With --wait a job waits for another job's lock, and then scores."""
    (other,) = batch(shutil.copytree(run, tmp_path / "other"), digits).results
    home = open_location(run).child(f"scores/{other.scores.schema.home}")
    held = score_into(home, other.scores.schema)
    held.__enter__()

    def free(name: str) -> None:
        if name == "waiting":
            held.__exit__(None, None, None)

    events.called = free
    result = batch(run, digits, wait=60.0)
    assert [False] == [one.already_done for one in result.results]
    assert "being written by process" in events.named("waiting")[0]["text"]


def test_wait_is_limited(run: Path, digits: Path, tmp_path: Path) -> None:
    """If the lock is still held after --wait, the error names its holder."""
    (other,) = batch(shutil.copytree(run, tmp_path / "other"), digits).results
    home = open_location(run).child(f"scores/{other.scores.schema.home}")
    with score_into(home, other.scores.schema):
        error = batch(run, digits, wait=0.05).error
    assert isinstance(error, ConflictError)
    assert "is being written by process" in str(error)


@pytest.mark.parametrize("retries", [2, 5])
def test_retries(retries: int, events: Events) -> None:
    """A connection failure is retried, and each retry is logged."""
    outcomes = iter([UnreachableError("No route."), UnreachableError("No route."), None])

    def work() -> str:
        if error := next(outcomes):
            raise error
        return "done"

    assert "done" == Retry(retries, 0, StopSignal())(work)
    assert [retries, retries - 1] == [event["left"] for event in events.named("retry")]


@pytest.mark.parametrize(
    ("error", "calls"),
    [(UnreachableError("No route."), 3), (BadDataError("It is bad."), 1)],
)
def test_retries_are_limited(error: PipelineError, calls: int) -> None:
    """Retries are limited, and bad data is not retried."""
    called = []

    def work() -> None:
        called.append(1)
        raise error

    with pytest.raises(type(error)):
        Retry(2, 0, StopSignal())(work)
    assert calls == len(called)


def test_a_signal_ends_a_pause() -> None:
    """A job that waits for a retry stops after a signal."""
    stop = StopSignal()
    stop.number = 15

    def work() -> None:
        raise UnreachableError("No route.")

    with pytest.raises(StoppedError):
        Retry(1, 1e6, stop)(work)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "x.txt"}, "ends in .csv"),
        ({"out": "x.csv", "splits": ("a", "b")}, "{split} or {home}"),
        ({"out": "{home!r:>40}.csv"}, "--out contains {home!r:>40}"),
        ({"out": "{run.__class__}.csv"}, "--out contains {run.__class__}"),
        ({"out": "{{home}}.csv"}, "--out contains {}"),
        ({"out": "{split}.csv", "inbox": "i"}, "must contain {home}"),
        ({"out": "{name}.csv"}, "expected only"),
        ({"out": "{spilt}.csv"}, "Did you mean '{split}'?"),
        ({"out": "x.cvs"}, "Did you mean '.csv'?"),
        ({"model": "m", "run": "r"}, "leave out --run"),
        ({"model": "m", "checkpoint": "latest"}, "leave out --checkpoint"),
        ({"wait": -1.0}, "--wait is -1"),
        ({"retry_wait": float("inf")}, "--retry-wait is inf"),
        ({"splits": ()}, "No split"),
    ],
)
def test_invalid_options(options: dict[str, Any], words: str) -> None:
    """Invalid and contradictory options are refused."""
    with pytest.raises(UsageError) as caught:
        ScoreConfig(**options)
    assert words in str(caught.value)


def test_gates_need_labels(run: Path, digits: Path, tmp_path: Path) -> None:
    """A gate on a split without labels is refused before it is scored."""
    dataset = unlabelled_test(digits, tmp_path / "set")
    with pytest.raises(UsageError, match="has no labels, so its accuracy"):
        batch(run, dataset, gates=Gates(min_accuracy=0.5))
    assert not (run / "scores").exists()


def test_names_in_output(run: Path, digits: Path, tmp_path: Path) -> None:
    """With several splits, --out is a file for each."""
    batch(run, digits, splits=("train", "test"), out=str(tmp_path / "{split}.npz"))
    assert ["test.npz", "train.npz"] == sorted(path.name for path in tmp_path.glob("*.npz"))


def test_missed_gate_from_python(run: Path, digits: Path) -> None:
    """`score` raises a missed gate after it has published the scores."""
    with pytest.raises(QualityGateError, match="The scores are published as test-"):
        score(run=run, dataset=digits, gates=Gates(min_accuracy=1.0))
    assert score(run=run, dataset=digits).already_done


def test_empty_checkpoint(run: Path, digits: Path) -> None:
    """An empty --checkpoint, as from an unset variable of a script, is refused."""
    with pytest.raises(UsageError, match="--checkpoint is ''"):
        batch(run, digits, checkpoint="")


def test_checkpoint_pruned_after_it_was_chosen(
    run: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chosen model scores even if a training run prunes its checkpoint in the meantime."""

    def choose(*arguments: Any) -> Any:
        chosen = choose_models(*arguments)
        shutil.rmtree(run / "checkpoints" / chosen[0].names)
        return chosen

    monkeypatch.setattr("jobs.scoring.scorer.choose_models", choose)
    (result,) = batch(run, digits, checkpoint="latest").results
    assert not result.already_done
    assert not (run / "checkpoints" / "000003-000000").exists()
