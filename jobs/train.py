"""The training job: see that settings fit the dataset, open or resume the run, train to its end."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.blas import one_blas_thread
from jobs.config import VALIDATION, TrainConfig
from jobs.defaults import DEFAULT_DATASET, DEFAULT_RUN
from jobs.environment import environment
from jobs.memory import check_memory, train_memory
from jobs.nn.architecture import Layer, parse_network
from jobs.stop import StopSignal
from jobs.training.step import STEP_VERSION, micro_batch_count
from jobs.training.train_job import TrainJob, TrainListener, TrainResult
from jobs.training.trainer import template
from pipeline.order import ORDER_VERSION
from storage.checkpoints import Checkpoint, load_newest, sweep_checkpoints
from storage.dataset import Dataset, open_dataset
from storage.errors import BadDataError, ConflictError, UsageError
from storage.location import Place, open_location
from storage.objects import Location, TakeOver
from storage.runs import RECORD, Run, check_place, create_run, open_run, run_exists, run_lock

if TYPE_CHECKING:
    from pipeline.cluster import Cluster

__all__ = ["TrainListener", "TrainResult", "check_fit", "train"]


def train(
    config: TrainConfig,
    *,
    dataset: Place = DEFAULT_DATASET,
    run: Place = DEFAULT_RUN,
    resume: bool = False,
    take_over: TakeOver | None = None,
    listener: TrainListener | None = None,
    stop: StopSignal | None = None,
    cluster: "Cluster | None" = None,
) -> TrainResult:
    """Train a network on a dataset's training split, into a run.

    Gradients are computed by the workers of a `cluster` where one is given, to the same bits.

    With `resume` a run that has a checkpoint goes on from it, to the same bits as if it had never
    stopped, and one that has none is started. `take_over` is leave to take the lock of a dead
    writer in a store. Raises `UsageError` for settings that do not fit the dataset,
    `BadDataError` for damage, `ConflictError` where the run exists (without `resume`), is locked,
    or has another configuration or dataset, `StoppedError` after a signal.
    """
    data = open_dataset(open_location(dataset))
    layers = check_fit(config, data)
    location = open_location(run)
    listener = listener or TrainListener()
    listener.planned(check_memory(train_memory(config, layers, data)))
    if run_exists(location) and not resume:
        raise ConflictError(
            f"The run {location} exists. Pass --resume to go on with it, or choose another --run."
        )
    if not run_exists(location):
        check_place(location)  # before the lock leaves its file in what is not ours
    with run_lock(location, take_over) as location, one_blas_thread():
        record, config = _open_or_create(location, config, data)
        newest = _newest(record, template(config, layers), listener)
        job = TrainJob(
            record, config, data, layers, newest, listener, stop or StopSignal(), cluster
        )
        del newest  # its tensors are to go once the trainer has them
        return job.run_to_end()


def check_fit(config: TrainConfig, dataset: Dataset) -> tuple[Layer, ...]:
    """The network's layers, where the configuration fits the dataset; else `UsageError`."""
    try:
        layers = parse_network(config.network)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if "train" not in dataset.splits:
        raise BadDataError(
            f"{dataset.location} has no training split; it has {', '.join(dataset.splits)}. "
            "Ingest the training files as well, or give another --dataset."
        )
    schema = dataset.split("train").schema
    if not schema.classes:
        raise BadDataError(
            f"The training split of {dataset.location} has no labels; there is nothing to learn."
        )
    found = (layers[0].inputs, layers[-1].outputs)
    expected = (schema.features, schema.classes)
    if found != expected:
        middle = config.network.split("-", 1)[1].rsplit("-", 1)[0]
        raise UsageError(
            f"The network {config.network} takes {found[0]} values and gives {found[1]} classes; "
            f"{dataset.location} has {expected[0]} and {expected[1]}. Pass for example "
            f"--network {expected[0]}-{middle}-{expected[1]}."
        )
    rows = schema.rows - config.holdout
    if rows < 1:
        raise UsageError(
            f"--holdout {config.holdout:,} leaves nothing of the {schema.rows:,} training rows."
        )
    if config.batch_size > rows:
        raise UsageError(
            f"--batch-size {config.batch_size:,} is more than the {rows:,} training rows; "
            "expected at most that, or 0 for all of them."
        )
    _check_validation(config, dataset)
    held_out = {VALIDATION} if config.holdout else set()
    for name in config.evaluated_splits:
        if name not in {*dataset.splits, *held_out}:
            there = [split for split in dataset.splits if dataset.split(split).schema.classes]
            raise UsageError(
                f"{dataset.location} has no split '{name}' to evaluate after each epoch; "
                f"pass --evaluate {','.join(there)}, or --evaluate none."
            )
        if name in dataset.splits and not dataset.split(name).schema.classes:
            raise BadDataError(f"Split {name} has no labels; leave it out of --evaluate.")
    return layers


def _check_validation(config: TrainConfig, dataset: Dataset) -> None:
    """Refuse settings that leave open which rows the best epoch is chosen by."""
    if VALIDATION not in dataset.splits:
        if config.patience and not config.holdout:
            raise UsageError(
                f"--patience stops by validation, and {dataset.location} has no validation split; "
                "keep rows for it with --holdout ROWS."
            )
        return
    if not dataset.split(VALIDATION).schema.classes:
        raise BadDataError(
            f"The validation split of {dataset.location} has no labels; no epoch can be chosen by "
            "it. Ingest it again with its labels, or without the split."
        )
    if config.holdout:
        raise UsageError(
            f"{dataset.location} has a validation split; leave out --holdout {config.holdout}, "
            "which makes one of training rows."
        )


def _open_or_create(
    location: Location, config: TrainConfig, dataset: Dataset
) -> tuple[Run, TrainConfig]:
    """The run, and the configuration with the parts of a mini-batch that it has or gets.

    Their number is recorded, so that no other release's choice goes on with the run.
    """
    location.sweep()
    if not location.exists(RECORD):
        rows = config.batch_size or dataset.split("train").schema.rows - config.holdout
        config = replace(config, micro_batches=micro_batch_count(config.micro_batches, rows))
        run = create_run(
            location,
            configuration=config.to_json(),
            dataset_digest=dataset.digest,
            dataset={
                "class_names": list(dataset.class_names),
                "transforms": list(dataset.transforms),
            },
            versions={"order": ORDER_VERSION, "step": STEP_VERSION},
            environment=environment(),
        )
        return run, config
    run = open_run(location)
    if run.dataset_digest != dataset.digest:
        raise ConflictError(
            f"The run {location} was trained on a dataset with digest {run.dataset_digest}; "
            f"{dataset.location} has {dataset.digest}. Give the same dataset, or another --run."
        )
    versions = {"order": ORDER_VERSION, "step": STEP_VERSION}
    if run.versions != versions:
        raise ConflictError(
            f"The run {location} has versions {run.versions}; this release has {versions}. "
            "Go on with the release that began it."
        )
    recorded = TrainConfig.from_json(run.configuration, f"{location}/{RECORD}")
    if not config.micro_batches:
        config = replace(config, micro_batches=recorded.micro_batches)
    if differences := config.differences(recorded):
        raise ConflictError(
            f"The run {location} has another configuration ({'; '.join(differences)}). "
            "Give the recorded settings, or another --run."
        )
    sweep_checkpoints(run)
    return run, config


def _newest(run: Run, tensors: dict[str, Any], listener: TrainListener) -> Checkpoint | None:
    for found in load_newest(run, tensors):
        if isinstance(found, Checkpoint):
            return found
        name, error = found
        listener.warned(f"Checkpoint {name} is not used: {error}")
    return None
