"""What precedes a training: settings that fit the dataset, and the run to begin or to resume."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jobs.environment import environment
from jobs.nn.architecture import Layer, parse_network
from jobs.training.config import VALIDATION, TrainConfig, given_settings
from jobs.training.step import STEP_VERSION, micro_batch_count
from jobs.training.trainer import FAR_FROM_ONE
from pipeline.order import ORDER_VERSION
from pipeline.values import largest_input
from storage.checkpoints import Checkpoint, CheckpointName
from storage.dataset import Dataset
from storage.errors import BadDataError, ConflictError, UsageError
from storage.location import Location
from storage.places import reference_to
from storage.preparation import BYTES
from storage.runs import RECORD, Run, create_run, open_run, run_exists

logger = logging.getLogger(__name__)

VERSIONS = {"order": ORDER_VERSION, "step": STEP_VERSION}


def run_and_config(
    location: Location, given: TrainConfig | Mapping[str, Any], *, resume: bool
) -> tuple[Run | None, TrainConfig]:
    """Return the run to resume, if there is one, and the configuration to train with.

    Raises `ConflictError` where the run has another configuration or is of other versions.
    """
    if not (resume and run_exists(location)):
        if isinstance(given, TrainConfig):
            return None, given
        return None, TrainConfig(**given_settings(given, "train()"))
    run = open_run(location)
    if run.versions != VERSIONS:
        raise ConflictError(
            f"The run {location} has versions {run.versions}; this release has {VERSIONS}. "
            "Continue it with the release that began it."
        )
    recorded = TrainConfig.from_json(run.configuration, f"{location}/{RECORD}")
    if not isinstance(given, TrainConfig):
        config = replace(recorded, **given_settings(given, "train()"))
    else:
        config = replace(given, micro_batches=given.micro_batches or recorded.micro_batches)
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


def check_fit(config: TrainConfig, dataset: Dataset) -> tuple[Layer, ...]:
    """Return the network's layers; raise `UsageError` where settings do not fit the dataset.

    `BadDataError` where the dataset lacks what a training needs.
    """
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
    expected = (schema.features, schema.classes)
    if (layers[0].inputs, layers[-1].outputs) != expected:
        middle = config.network.split("-", 1)[1].rsplit("-", 1)[0]
        raise UsageError(
            f"The network {config.network} takes {layers[0].inputs} values and gives "
            f"{layers[-1].outputs} classes; {dataset.location} has {expected[0]} and "
            f"{expected[1]}. Pass for example --network {expected[0]}-{middle}-{expected[1]}."
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
    _check_evaluations(config, dataset)
    return layers


def _check_validation(config: TrainConfig, dataset: Dataset) -> None:
    """Refuse settings that leave open which rows the best epoch is chosen by."""
    if VALIDATION in dataset.splits and config.holdout:
        raise UsageError(
            f"{dataset.location} has a validation split; leave out --holdout {config.holdout}, "
            "which makes one of training rows."
        )
    if config.patience and not config.holdout and VALIDATION not in dataset.splits:
        raise UsageError(
            f"--patience stops by validation, and {dataset.location} has no validation split; "
            "keep rows for it with --holdout ROWS."
        )


def _check_evaluations(config: TrainConfig, dataset: Dataset) -> None:
    splits = {name: bool(split.schema.classes) for name, split in dataset.splits.items()}
    if config.holdout:
        splits[VALIDATION] = True
    for name in config.evaluations(dataset.splits):
        if name not in splits:
            labelled = ",".join(split for split, has_labels in splits.items() if has_labels)
            holdout = ", or keep rows for it with --holdout ROWS" if name == VALIDATION else ""
            raise UsageError(
                f"{dataset.location} has no split '{name}' to evaluate after each epoch; "
                f"pass --evaluate {labelled} or --evaluate none{holdout}."
            )
        if not splits[name]:
            raise BadDataError(
                f"The {name} split of {dataset.location} has no labels to evaluate by. Leave it "
                "out of --evaluate, or ingest it again with its labels or not at all."
            )


def check_dataset(run: Run, dataset: Dataset) -> None:
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


def begin_run(location: Location, config: TrainConfig, dataset: Dataset) -> tuple[Run, TrainConfig]:
    """Begin a run; record how many parts a mini-batch has, so that every release keeps to it."""
    rows = config.batch_size or dataset.split("train").schema.rows - config.holdout
    config = replace(config, micro_batches=micro_batch_count(config.micro_batches, rows))
    place = str(dataset.location)
    run = create_run(
        location,
        configuration=config.to_json(),
        dataset_digest=dataset.digest,
        dataset={
            # A relative path is recorded as seen from the run, so that both can be moved.
            "place": place if os.path.isabs(place) else reference_to(dataset.location, location),
            "class_names": list(dataset.class_names),
            "transforms": list(dataset.transforms),
            "image_shape": list(dataset.image_shape),
            "element_type": dataset.split("train").schema.dtype,
        },
        versions=VERSIONS,
        environment=environment(),
    )
    return run, config


def reconfigured(run: Run, config: TrainConfig, newest: Checkpoint | None) -> Run:
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


def warn_of_environment(run: Run) -> None:
    """Warn where NumPy or its BLAS are others than those that the run was begun with."""
    here = environment()
    differing = [
        f"{name}: {run.environment.get(name)!r} then, {here[name]!r} now"
        for name in here
        if run.environment.get(name) != here[name]
    ]
    if differing:
        logger.warning(
            "The run was begun in another environment, so its last bits may differ from here on "
            "(%s).",
            "; ".join(differing),
        )


def warn_of_values(dataset: Dataset) -> None:
    """Warn where inputs are far from [0, 1], as far as the first chunk shows."""
    split, scaling = dataset.split("train"), dataset.preparation.scaling
    if split.schema.dtype == "uint8" and scaling == BYTES:
        return
    row, stored, size = largest_input(split, scaling, chunks=1)
    if size > FAR_FROM_ONE:
        logger.warning(
            "The network will learn badly: row %s of the training split holds %s, and the dataset "
            "has its %s. Ingest the files again with a --scale LOW,HIGH that most values lie in.",
            row,
            stored,
            dataset.preparation,
        )
