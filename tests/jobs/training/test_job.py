"""Training: correct records, and a result that depends on the settings alone."""

import re
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.commands.run_reports import train_report
from jobs.nn.architecture import parse_network
from jobs.nn.initialise import initialise
from jobs.nn.lr_schedules import learning_rate
from jobs.nn.parameters import Floats, views
from jobs.training.environment import environment
from jobs.training.job import train
from jobs.training.result import TrainResult
from jobs.training.trainer import flat_parameters
from pipeline.ingest import ingest
from pipeline.sources.digits import draw_digits
from storage.checkpoints import list_checkpoints, load_checkpoint
from storage.dataset import open_dataset
from storage.errors import (
    StoppedError,
    UsageError,
)
from storage.places import open_location
from storage.runs import open_run
from tests.jobs.trainings import SMALL, Log, StopAt, outcome, small, warnings_in
from tests.storage.artefacts import stored_rows
from tests.storage.idx_files import write_idx, write_set

ROWS = 1031


def rows_of(dataset: Path, split: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A split's inputs in [0, 1], bias first, and its labels."""
    stored = stored_rows(open_dataset(open_location(dataset)).split(split))
    assert stored.targets is not None
    return stored.inputs / 255, stored.targets.argmax(axis=1)


def judge(
    parameters: Floats, inputs: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of a network like `SMALL`'s, implemented independently."""
    first, last = views(parameters, parse_network(SMALL.network))
    hidden = np.maximum(inputs @ first, 0)
    logits = np.hstack([np.ones((len(hidden), 1)), hidden]) @ last
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    of_truth = probabilities[np.arange(len(labels)), labels]
    return float(np.mean(probabilities.argmax(axis=1) == labels)), float(-np.log(of_truth).mean())


def parameters_after(result: TrainResult, epoch: int) -> Floats:
    """The parameters in the checkpoint of an epoch."""
    name = list_checkpoints(result.run)[epoch - 1]
    assert (epoch, 0) == (name.epoch, name.step)
    layers = parse_network(result.config.network)
    return flat_parameters(layers, load_checkpoint(result.run, name).tensors)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"batch_size": 0, "micro_batches": 7}, marks=pytest.mark.slow),
        pytest.param({"shuffle": False}, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_threads(settings: dict[str, Any], digits: Path, tmp_path: Path) -> None:
    """One to four threads give the same run, to the last bit."""
    outcomes = [
        outcome(
            train(
                small(epochs=2, threads=threads, evaluate="train,test", **settings),
                dataset=digits,
                run=tmp_path / str(threads),
            )
        )
        for threads in (1, 2, 3, 4)
    ]
    assert [outcomes[0]] * 4 == outcomes


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"batch_size": 0}, 1),
        ({"batch_size": 1, "holdout": 900}, 131),
        ({"batch_size": 97, "drop_last": True}, 10),
        ({"batch_size": 1031, "drop_last": True}, 1),
        ({"batch_size": 1030}, 2),
    ],
)
def test_batch_sizes(settings: dict[str, Any], steps: int, digits: Path, tmp_path: Path) -> None:
    """Any batch size has the right number of steps and a finite loss."""
    result = train(small(epochs=1, **settings), dataset=digits, run=tmp_path / "run")
    assert steps == result.metrics[0]["steps"]
    assert np.isfinite(result.metrics[0]["loss"])


@pytest.mark.slow
def test_more_parts_than_rows(digits: Path, tmp_path: Path) -> None:
    """More micro-batches than rows means one row each."""
    digests = set()
    for number in (50, 51, 10**12):
        config = small(epochs=1, batch_size=50, micro_batches=number, holdout=900)
        result = train(config, dataset=digits, run=tmp_path / str(number))
        digests.add(result.parameters_digest)
    assert 1 == len(digests)


def test_loss_goes_down(digits: Path, tmp_path: Path) -> None:
    """The loss falls from epoch to epoch, and the digits are learned."""
    result = train(SMALL, dataset=digits, run=tmp_path / "run")
    losses = [line["loss"] for line in result.metrics]
    assert sorted(losses, reverse=True) == losses
    assert losses[-1] < losses[0] / 2
    assert 0.75 < result.metrics[-1]["evaluation"]["test"]["accuracy"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_recorded_figures(dtype: str, digits: Path, tmp_path: Path) -> None:
    """With a learning rate of 0, an epoch's loss and accuracy are those at its start."""
    config = small(epochs=1, learning_rate=0.0, dtype=dtype, evaluate="train,test")
    result = train(config, dataset=digits, run=tmp_path / "run")
    initial = initialise("scaled", parse_network(config.network), 0, dtype)
    assert initial.tobytes() == parameters_after(result, 1).tobytes()
    precision = 1e-5 if dtype == "float32" else 1e-13
    train_accuracy, train_loss = judge(initial, *rows_of(digits, "train"))
    line = result.metrics[0]
    assert train_accuracy == line["accuracy"]
    assert pytest.approx(train_loss, rel=precision) == line["loss"]
    test_accuracy, test_loss = judge(initial, *rows_of(digits, "test"))
    assert {
        "train": {
            "accuracy": train_accuracy,
            "cross_entropy": pytest.approx(train_loss, rel=precision),
        },
        "test": {
            "accuracy": test_accuracy,
            "cross_entropy": pytest.approx(test_loss, rel=precision),
        },
    } == line["evaluation"]


def test_evaluation(digits: Path, tmp_path: Path) -> None:
    """Each epoch evaluates the parameters at its end, on exactly the rows of the split."""
    config = small(epochs=3, dtype="float64", holdout=100, evaluate="train,test")
    result = train(config, dataset=digits, run=tmp_path / "run")
    inputs, labels = rows_of(digits, "train")
    splits = {
        "train": (inputs[:-100], labels[:-100]),
        "test": rows_of(digits, "test"),
        "validation": (inputs[-100:], labels[-100:]),
    }
    for epoch, line in enumerate(result.metrics, 1):
        parameters = parameters_after(result, epoch)
        expected = {
            name: dict(zip(("accuracy", "cross_entropy"), judge(parameters, *rows), strict=True))
            for name, rows in splits.items()
        }
        assert expected.keys() == line["evaluation"].keys()
        for name, figures in expected.items():
            assert pytest.approx(figures, rel=1e-12) == line["evaluation"][name]


@pytest.mark.slow
def test_no_evaluation(digits: Path, tmp_path: Path, log: Log) -> None:
    """With `none` nothing is evaluated, and the model is the same."""
    none = train(small(epochs=1, evaluate="none"), dataset=digits, run=tmp_path / "none")
    both = train(small(epochs=1, evaluate="train,test"), dataset=digits, run=tmp_path / "both")
    assert {} == none.metrics[0]["evaluation"]
    assert ["train", "test"] == list(both.metrics[0]["evaluation"])
    assert none.parameters_digest == both.parameters_digest
    assert "pass --holdout" not in log.text


@pytest.mark.slow
def test_seeds(digits: Path, tmp_path: Path) -> None:
    """A seed determines the run and, for any network, the order; another seed changes both."""
    network = {"network": "784-tanh-5-softmax-10", "optimizer": "sgd", "dtype": "float64"}
    variants: list[dict[str, Any]] = [{"seed": 5}, {"seed": 5}, {"seed": 6}, {"seed": 5, **network}]
    one, again, other, network_of_seed = (
        train(small(epochs=2, **settings), dataset=digits, run=tmp_path / str(number))
        for number, settings in enumerate(variants)
    )
    assert outcome(one) == outcome(again)
    assert one.parameters_digest != other.parameters_digest
    assert one.order_digest != other.order_digest
    assert one.order_digest == network_of_seed.order_digest


@pytest.mark.slow
def test_holdout_is_not_trained_on(tmp_path: Path) -> None:
    """The parameters do not depend on the values of held-out rows."""
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (353, 4, 3), dtype=np.uint8)
    labels = np.arange(353, dtype=np.uint8) % 4
    changed = images.copy()
    changed[303 - 41 : 303] ^= 255  # the last 41 of the 303 training rows
    results = {}
    for name, rows in (("one", images), ("other", changed)):
        ingest(str(write_set(tmp_path / name, rows, labels)), tmp_path / f"{name}-data")
        for holdout in (41, 40):
            config = small(network="12-relu-6-softmax-4", batch_size=20, holdout=holdout, epochs=2)
            results[name, holdout] = train(
                config, dataset=tmp_path / f"{name}-data", run=tmp_path / f"{name}-{holdout}"
            )
    one, other = results["one", 41], results["other", 41]
    assert one.parameters_digest == other.parameters_digest
    assert one.metrics[0]["evaluation"]["test"] == other.metrics[0]["evaluation"]["test"]
    validations = [result.metrics[0]["evaluation"]["validation"] for result in (one, other)]
    assert validations[0] != validations[1]
    # With one held-out row less, a changed row is trained on, and changes the result.
    assert results["one", 40].parameters_digest != results["other", 40].parameters_digest


@pytest.mark.parametrize(
    ("order", "holdout", "warnings"),
    [
        ("sorted", 62, ["No row of class 3 is trained on: all are held out (--holdout 62)"]),
        ("sorted", 61, ["All rows held out are of class 3 (--holdout 61)"]),
        ("mixed", 62, []),
        ("sorted", 0, []),
    ],
)
def test_holdout_of_sorted_rows(
    order: str, holdout: int, warnings: list[str], tmp_path: Path, log: Log
) -> None:
    """Rows held out from files sorted by class cause a warning that names the class."""
    labels = np.arange(300, dtype=np.uint8) % 4
    if order == "sorted":
        labels[:250].sort()  # 62 rows of class 3
    images = np.random.default_rng(3).integers(0, 256, (300, 4, 3), dtype=np.uint8)
    source = write_set(tmp_path / "files", images, labels)  # the last 50 rows are the test split
    ingest(str(source), tmp_path / "data", rows_per_chunk=40)
    config = {"network": "relu-6", "batch_size": 20, "holdout": holdout, "epochs": 1}
    train(config, dataset=tmp_path / "data", run=tmp_path / "run")
    assert warnings == [text.partition(". If ")[0] for text in warnings_in(log)]


def test_record(digits: Path, tmp_path: Path) -> None:
    """run.json records the complete configuration, including defaults that the dataset decides."""
    config = small(network="relu-9", epochs=1, l2=0.25, micro_batches=None)
    train(config, dataset=digits, run=tmp_path / "run")
    run = open_run(open_location(tmp_path / "run"))
    complete = replace(config, network=SMALL.network, micro_batches=1, evaluate="test")
    assert complete.to_json() == run.configuration
    assert open_dataset(open_location(digits)).digest == run.dataset_digest
    assert {"order": 1, "step": 4} == run.versions
    assert environment() == run.environment
    names = {"numpy", "blas", "blas_kernel", "cpu_features", "libc", "machine", "sample_digest"}
    assert names == run.environment.keys()
    assert np.__version__ == run.environment["numpy"]


def test_metrics_file(digits: Path, tmp_path: Path) -> None:
    """metrics.jsonl has a line per epoch, with digests and timing."""
    result = train(small(epochs=2), dataset=digits, run=tmp_path / "run")
    lines = open_run(open_location(tmp_path / "run")).metrics()
    assert list(result.metrics) == lines
    assert [(1, 11), (2, 22)] == [(line["epoch"], line["steps"]) for line in lines]
    assert result.parameters_digest == lines[-1]["parameters_digest"]
    assert result.order_digest == lines[-1]["order_digest"]
    timing = lines[0]["timing"]
    assert {"seconds", "rows_per_second", "seconds_waited", "time"} == timing.keys()


def test_learning_rate_and_time_of_epochs(digits: Path, tmp_path: Path) -> None:
    """An epoch records its last step's learning rate, and when it ended, also after a resume."""
    config = small(epochs=3, schedule="cosine", warm_up=0.5, learning_rate=0.25)
    began = datetime.now(UTC)
    stop_in_epoch_2 = StopAt(13)
    with pytest.raises(StoppedError):
        train(
            config,
            dataset=digits,
            run=tmp_path / "run",
            progress=stop_in_epoch_2,
            stop=stop_in_epoch_2.signal,
        )
    result = train(config, dataset=digits, run=tmp_path / "run", resume=True)
    total = 3 * 11
    rates = [learning_rate("cosine", 0.25, step, [total], 0.5) for step in (10, 21, 32)]
    assert rates == result.history["learning_rate"]
    times = [datetime.fromisoformat(time) for time in result.history["time"]]
    assert times == sorted(times)
    millisecond = timedelta(milliseconds=1)
    assert began - millisecond <= times[0] <= times[-1] <= datetime.now(UTC)


def test_events(digits: Path, tmp_path: Path, log: Log) -> None:
    """The data, the settings and each epoch are events, and each step is progress."""
    steps: list[tuple[str, int, int, str]] = []

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        steps.append((stage, done, total, note))

    config = small(epochs=2, momentum=0.5, evaluate="test")
    result = train(config, dataset=digits, run=tmp_path / "run", progress=progress)
    logged = [(vars(record).get("event"), vars(record).get("facts")) for record in log.records]
    training, run, header, *epochs = logged
    assert ("training", ROWS) == (training[0], training[1]["rows"])
    assert ("run", result.config.to_json()) == (run[0], run[1]["configuration"])
    names = ("network", "epochs", "batch_size", "learning_rate", "micro_batches")
    names += ("shuffle_memory", "keep")  # not momentum, which adamw does not use
    assert {name: getattr(config, name) for name in names} == run[1]["settings"]
    assert (None, None) == header  # no event
    assert [("epoch", line) for line in result.metrics] == epochs
    assert [
        f"Training 784-relu-9-softmax-10 on 1,031 rows of {digits}",
        f"Run {tmp_path / 'run'}: 2 epochs on 2 cores",
        "epoch     loss     train         test (loss)    time",
    ] == log.messages[:3]
    row = r" {2}2/2   \d\.\d{4}   \d\d\.\d\d %    \d\d\.\d\d % \(\d\.\d{4}\) +\d\.\d s"
    assert re.fullmatch(row, log.messages[-1])
    assert [("epoch 1/2", 97, ROWS), ("epoch 2/2", ROWS, ROWS)] == [steps[0][:3], steps[-1][:3]]
    assert 22 == len(steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"network": "783-relu-9-softmax-10"},
            "has 784 and 10. Leave the ends out: --network relu-9.",
        ),
        (
            {"network": "784-relu-9-softmax-9"},
            "has 784 and 10. Leave the ends out: --network relu-9.",
        ),
        (
            {"network": "9"},
            "network '9' ends after piece 1, '9': expected a layer, as in 'relu-200-",
        ),
        ({"network": "softmax-9"}, "Leave the ends out: --network softmax."),
        ({"network": "784-rely-9-softmax-10"}, "Did you mean 'relu'"),
        ({"network": "rely-9"}, "Did you mean 'relu'"),
        ({"holdout": 1031}, "--holdout 1,031 leaves nothing"),
        ({"batch_size": 1032}, "at most that, or 0 for all"),
        ({"batch_size": 1000, "holdout": 32}, "more than the 999 training rows"),
        ({"holdout": 1030}, "more than the 1 training row;"),
        ({"shuffle_memory": 2**20, "evaluate": "validating"}, "--evaluate is 'validating'"),
        ({"evaluate": "validation"}, "no split 'validation' to evaluate"),
        ({"patience": 3}, "--holdout ROWS"),
    ],
)
def test_settings_that_do_not_fit(
    settings: dict[str, Any], message: str, digits: Path, tmp_path: Path
) -> None:
    """Settings that do not fit the dataset are refused with advice, before a run is made."""
    with pytest.raises(UsageError) as caught:
        train(small(**settings), dataset=digits, run=tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with a validation split."""
    directory = tmp_path_factory.mktemp("validated")
    files = write_set(directory / "files", *draw_digits(0, "train", 0, 253))
    images, labels = draw_digits(0, "validation", 0, 50)
    write_idx(files / "val-images-idx3-ubyte", images)
    write_idx(files / "val-labels-idx1-ubyte", labels)
    ingest(str(files), directory / "data", rows_per_chunk=50)
    return directory / "data"


def test_validation_split(validated: Path, tmp_path: Path) -> None:
    """A validation split determines the best checkpoint and patience, as held-out rows do."""
    settings = {"epochs": 12, "patience": 1, "learning_rate": 0.05, "batch_size": 20, "l2": 0.0}
    result = train(small(**settings, schedule="constant"), dataset=validated, run=tmp_path / "run")
    entropies = [line["evaluation"]["validation"]["cross_entropy"] for line in result.metrics]
    assert result.stopped_early
    assert result.best is not None
    assert 1 + int(np.argmin(entropies)) == result.best.epoch
    assert repr(result).splitlines()[1].endswith(f", best: checkpoint {result.best}")
    assert "Stopped early: no lower validation loss in 1 epoch.\n" in train_report(result).text
    inputs, labels = rows_of(validated, "validation")
    expected = judge(parameters_after(result, 1), inputs, labels)[1]
    assert pytest.approx(expected, rel=1e-5) == entropies[0]


def test_holdout_beside_a_validation_split(validated: Path, tmp_path: Path) -> None:
    """A validation split together with --holdout is refused: neither is chosen silently."""
    with pytest.raises(UsageError, match="has a validation split; leave out --holdout 9"):
        train(small(holdout=9), dataset=validated, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_full_batch_memory(tmp_path: Path) -> None:
    """Full-batch training holds two windows and a few micro-batches, not the split."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (20_000, 28, 28), dtype=np.uint8)
    labels = (np.arange(20_000) % 10).astype(np.uint8)
    source = write_set(tmp_path / "set", images, labels)
    decoded = images.nbytes
    del images
    ingest(str(source), tmp_path / "data", rows_per_chunk=300)
    config = small(batch_size=0, epochs=1, micro_batches=200, threads=2, evaluate="none")
    tracemalloc.start()
    try:
        train(config, dataset=tmp_path / "data", run=tmp_path / "run")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < decoded / 3
