"""The training job: see that settings fit the dataset, open or resume the run, train to its end."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.choices import DEFAULT_RUN
from jobs.environment import environment, one_blas_thread
from jobs.nn.architecture import Layer, parse_network
from jobs.signals import StopSignal
from jobs.training.config import VALIDATION, TrainConfig, given_settings
from jobs.training.epochs import TrainJob, TrainListener, TrainResult
from jobs.training.memory import check_memory, train_memory
from jobs.training.select_checkpoint import open_chosen_dataset
from jobs.training.step import STEP_VERSION, micro_batch_count, thread_count
from jobs.training.trainer import template
from pipeline.order import ORDER_VERSION
from storage.checkpoints import (
    Checkpoint,
    CheckpointName,
    load_newest,
    sweep_checkpoints,
)
from storage.dataset import Dataset
from storage.errors import BadDataError, ConflictError, UsageError
from storage.location import Location, TakeOver
from storage.places import Place, open_location, reference_to
from storage.runs import RECORD, Run, check_place, create_run, open_run, run_exists, run_lock

if TYPE_CHECKING:
    from pipeline.cluster.client import Cluster

__all__ = ["TrainListener", "TrainResult", "check_fit", "train"]


def train(
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    dataset: Place | None = None,
    run: Place = DEFAULT_RUN,
    storage_options: Mapping[str, str] | None = None,
    resume: bool = False,
    take_over: TakeOver | None = None,
    listener: TrainListener | None = None,
    stop: StopSignal | None = None,
    cluster: "Cluster | None" = None,
) -> TrainResult:
    """Train a network on a dataset's training split, into a run.

    Gradients are computed by the workers of a `cluster` where one is given, to the same bits.

    With `resume` a run that has a checkpoint continues from it, to the same bits as if it had never
    stopped, and one that has none is started. `config` may be a mapping of some settings: the
    others, and a `dataset` of None, are those of the run that is resumed, or the defaults. A
    `TrainConfig` gives all settings. `storage_options` are for URLs of a store. `take_over` allows
    taking the lock of a dead writer in a store.

    Raises `UsageError` for settings that do not fit the dataset, `BadDataError` for damage,
    `ConflictError` where the run exists (without `resume`), is locked, or has another configuration
    or dataset, `StoppedError` after a signal.
    """
    given = {} if config is None else config
    location = open_location(run, storage_options)
    record, config = _run_and_config(location, given, resume=resume)
    data = open_chosen_dataset(record, dataset, storage_options)
    if record is not None:
        _check_dataset(record, data)
    layers = check_fit(config, data)
    listener = listener or TrainListener()
    memory = train_memory(config, layers, data)
    listener.planned(check_memory(memory, thread_count(config.threads)))
    if run_exists(location) and not resume:
        raise ConflictError(
            f"The run {location} exists. Pass --resume to continue it, or choose another --run."
        )
    if not run_exists(location):
        check_place(location)  # before the lock leaves its file in what is not ours
    with run_lock(location, take_over) as location, one_blas_thread():
        location.sweep()
        # Another process may have begun the run in the meantime.
        record, config = _run_and_config(location, given, resume=resume)
        layers = check_fit(config, data)
        if record is None:
            record, config = _create(location, config, data)
        _check_dataset(record, data)
        sweep_checkpoints(record)
        newest = _newest(record, template(config, layers), listener)
        record = _reconfigured(record, config, newest)
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
            holdout = ", or keep rows for it with --holdout ROWS" if name == VALIDATION else ""
            raise UsageError(
                f"{dataset.location} has no split '{name}' to evaluate after each epoch; "
                f"pass --evaluate {','.join(there)} or --evaluate none{holdout}."
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
            f"The validation split of {dataset.location} has no labels to choose the best epoch "
            "by. Ingest it again with its labels, or without the split."
        )
    if config.holdout:
        raise UsageError(
            f"{dataset.location} has a validation split; leave out --holdout {config.holdout}, "
            "which makes one of training rows."
        )


def _check_dataset(run: Run, dataset: Dataset) -> None:
    """Raise `ConflictError` unless the run was trained on this dataset."""
    if run.dataset_digest == dataset.digest:
        return
    place = run.dataset_place
    at = f"the dataset at {place}" if place else "a dataset"
    raise ConflictError(
        f"The run {run.location} was trained on {at} with digest {run.dataset_digest}; "
        f"{dataset.location} has {dataset.digest}. Pass the same dataset with --dataset, or choose "
        "another --run."
    )


def _run_and_config(
    location: Location, given: TrainConfig | Mapping[str, Any], *, resume: bool
) -> tuple[Run | None, TrainConfig]:
    """Return the run to resume, if there is one, and the configuration to train with."""
    if not (resume and run_exists(location)):
        if isinstance(given, TrainConfig):
            return None, given
        return None, TrainConfig(**given_settings(given, "train()"))
    run = open_run(location)
    versions = {"order": ORDER_VERSION, "step": STEP_VERSION}
    if run.versions != versions:
        raise ConflictError(
            f"The run {location} has versions {run.versions}; this release has {versions}. "
            "Continue it with the release that began it."
        )
    recorded = TrainConfig.from_json(run.configuration, f"{location}/{RECORD}")
    config = given
    if not isinstance(config, TrainConfig):
        config = replace(recorded, **given_settings(config, "train()"))
    elif config.micro_batches is None:
        config = replace(config, micro_batches=recorded.micro_batches)
    _check_same(location, config, recorded)
    return run, config


def _check_same(location: Location, config: TrainConfig, recorded: TrainConfig) -> None:
    differences = config.differences(recorded)
    if not differences:
        return
    way_out = "Leave these settings out to resume with the recorded ones, or choose another --run."
    if len(differences) == 1 and config.epochs != recorded.epochs:
        way_out = (
            f"Its {recorded.schedule} schedule spans just that many epochs; only a run with "
            f"--schedule constant can be extended. Leave --epochs out, or train a new run: "
            f"--epochs {config.epochs} --run OTHER."
        )
    raise ConflictError(
        f"The run {location} has another configuration ({'; '.join(differences)}). {way_out}"
    )


def _create(location: Location, config: TrainConfig, dataset: Dataset) -> tuple[Run, TrainConfig]:
    """Begin the run; record how many parts a mini-batch has, so that every release keeps to it."""
    rows = config.batch_size or dataset.split("train").schema.rows - config.holdout
    config = replace(config, micro_batches=micro_batch_count(config.micro_batches, rows))
    run = create_run(
        location,
        configuration=config.to_json(),
        dataset_digest=dataset.digest,
        dataset={
            "place": _recorded_place(dataset.location, location),
            "class_names": list(dataset.class_names),
            "transforms": list(dataset.transforms),
            "image_shape": list(dataset.image_shape),
            "element_type": dataset.split("train").schema.dtype,
        },
        versions={"order": ORDER_VERSION, "step": STEP_VERSION},
        environment=environment(),
    )
    return run, config


def _recorded_place(dataset: Location, run: Location) -> str:
    """Return the dataset's place as the run records it: where a path is relative, to the run."""
    text = str(dataset)
    return text if os.path.isabs(text) else reference_to(dataset, run)


def _reconfigured(run: Run, config: TrainConfig, newest: Checkpoint | None) -> Run:
    """Record the settings that this resume changed, so that the next one continues with them.

    A finished run is left as it is. Raises `ConflictError` where more epochs have been trained than
    are asked for now.
    """
    changed = config.epochs != run.configuration.get("epochs", config.epochs)
    end = CheckpointName(config.epochs, 0)
    if changed and newest is not None and newest.name > end:
        raise ConflictError(
            f"The run {run.location} has been trained for more than --epochs {config.epochs}: its "
            f"newest checkpoint is {newest.name} (epoch-step). Leave --epochs out, or choose "
            "another --run."
        )
    finished = newest is not None and newest.name == end and not changed
    if finished or config.to_json() == run.configuration:
        return run
    return run.reconfigured(config.to_json())


def _newest(run: Run, tensors: dict[str, Any], listener: TrainListener) -> Checkpoint | None:
    for found in load_newest(run, tensors):
        if isinstance(found, Checkpoint):
            return found
        name, error = found
        listener.warned(f"Checkpoint {name} is not used: {error}")
    return None
