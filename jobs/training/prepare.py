"""Prepare a training run: settings that fit the dataset, and the run to start or to resume."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jobs.nn.architecture import Layer, format_hidden, format_network, parse_network
from jobs.training.choose_model import check_shifts
from jobs.training.config import VALIDATION, TrainConfig
from jobs.training.dropout import DROPOUT_VERSION
from jobs.training.environment import environment
from jobs.training.gradients import distortions
from jobs.training.presets import flat_settings, with_recipe
from jobs.training.settings import option_name
from jobs.training.step import STEP_VERSION, micro_batch_count
from jobs.training.trainer import FAR_FROM_ONE
from jobs.training.warm_start import INHERITED, START_VERSION
from pipeline.distortions import DISTORTION_VERSION, check_distortable
from pipeline.order import ORDER_VERSION
from pipeline.values import largest_input
from storage.checkpoints import Checkpoint, CheckpointName
from storage.dataset import Dataset
from storage.errors import BadDataError, ConflictError, UsageError, counted
from storage.location import Location
from storage.places import recorded_place
from storage.preparation import BYTES
from storage.runs import RECORD, Run, create_run, open_run, run_exists

logger = logging.getLogger(__name__)

SHOWN_CLASSES = 10
"""The most classes that a warning names."""
VERSIONS = {
    "order": ORDER_VERSION,
    "step": STEP_VERSION,
    "distortions": DISTORTION_VERSION,
    "dropout": DROPOUT_VERSION,
    "start": START_VERSION,
}
"""Versions of the arithmetic; a run records those of the parts that it uses."""


def recorded_run(location: Location, *, resume: bool) -> Run | None:
    """Return the run to resume, if there is one.

    Raises `ConflictError` if another release started it, with another order or arithmetic.
    """
    if not (resume and run_exists(location)):
        return None
    run = open_run(location)
    check_versions(run, "Continue")
    return run


def check_versions(run: Run, action: str) -> None:
    """Raise `ConflictError` if another release started a run, with another order or arithmetic.

    `action` is the verb of what that release can do.
    """
    if not run.versions.items() <= VERSIONS.items():
        raise ConflictError(
            f"The run {run.location} has versions {run.versions}; this release has {VERSIONS}. "
            f"{action} it with the release that started it."
        )


def configure(
    given: TrainConfig | Mapping[str, Any],
    run: Run | None,
    dataset: Dataset,
    parent: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Return the configuration to train with, complete for the dataset.

    Settings that are not given are the resumed run's, or for a new run those of its `parent`, which
    take precedence over a recipe's. Raises `UsageError` if the settings do not
    fit the dataset, `BadDataError` if it lacks what training needs, and `ConflictError` if the run
    has another configuration.
    """
    check_labels(dataset)
    if run is None:
        plain = given if isinstance(given, TrainConfig) else _from_mapping({}, parent or {}, given)
        return completed(plain, dataset)
    recorded = TrainConfig.from_json(run.configuration, f"{run.location}/{RECORD}")
    if isinstance(given, TrainConfig):
        config = replace(given, micro_batches=given.micro_batches or recorded.micro_batches)
    else:
        # Another recipe stands for all settings, those that it leaves at their defaults included.
        another = _recipe_of(given) not in (None, run.recipe)
        settings = recorded.to_json()
        inherited = {name: settings[name] for name in INHERITED if run.parent is not None}
        config = _from_mapping({} if another else settings, inherited, given)
    config = completed(config, dataset)
    if {*config.evaluated_splits} == {*recorded.evaluated_splits}:
        config = replace(config, evaluate=recorded.evaluate)  # in any order, with any spaces
    _check_same(run.location, config, recorded, _recipe_of(given))
    unused = {setting.name: getattr(recorded, setting.name) for setting in config.without_effect()}
    return replace(config, **unused)


def _from_mapping(
    others: dict[str, Any], parent: Mapping[str, Any], given: Mapping[str, Any]
) -> TrainConfig:
    """Return the given settings, then the parent's, then those of the recipe, then others."""
    settings = {**parent, **flat_settings(given, "train()")}
    return TrainConfig(**others | with_recipe(settings))


def asked_arithmetic(given: TrainConfig | Mapping[str, Any], run: Run | None) -> str:
    """Return the given arithmetic, or else the resumed run's, before any check of settings."""
    settings = vars(given) if isinstance(given, TrainConfig) else given
    recorded = run.configuration if run else {}
    return settings.get("arithmetic") or recorded.get("arithmetic") or TrainConfig.arithmetic


def _recipe_of(given: TrainConfig | Mapping[str, Any]) -> str | None:
    return None if isinstance(given, TrainConfig) else given.get("recipe")


def check_labels(dataset: Dataset) -> None:
    """Raise `BadDataError` unless the dataset has a training split with labels."""
    if "train" not in dataset.splits:
        raise BadDataError(
            f"{dataset.location} has no training split; it has {', '.join(dataset.splits)}. "
            "Ingest the training files as well, or give another --dataset."
        )
    if not dataset.split("train").schema.classes:
        raise BadDataError(
            f"The training split of {dataset.location} has no labels; there is nothing to learn."
        )


def completed(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """Return the configuration with the defaults that a dataset decides.

    These are the network's ends, the splits to evaluate, and the parts of a mini-batch. Raises
    `UsageError` for a text that is no network.
    """
    schema = dataset.split("train").schema
    try:
        layers = parse_network(config.network, schema.features, schema.classes)
    except ValueError as error:
        raise UsageError(str(error)) from error
    evaluate = config.evaluate
    if evaluate is None:
        evaluate = "test" if _has_labels(dataset, "test") else "none"
    rows = config.batch_size or max(1, schema.rows - config.holdout)
    return replace(
        config,
        network=format_network(layers),
        evaluate=evaluate,
        micro_batches=micro_batch_count(config.micro_batches, rows),
    )


def _has_labels(dataset: Dataset, name: str) -> bool:
    return name in dataset.splits and bool(dataset.split(name).schema.classes)


def changed_settings(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Return the settings that differ from their defaults and have an effect, by name."""
    by_dataset: dict[str, Any] = {
        "network": TrainConfig.network,
        "evaluate": None,
        "micro_batches": None,
    }
    usual = completed(replace(config, **by_dataset), dataset)
    return {
        name: value
        for name, value in config.changed().items()
        if name not in by_dataset or value != getattr(usual, name)
    }


def warn_of_no_effect(given: TrainConfig | Mapping[str, Any], config: TrainConfig) -> None:
    """Warn of settings in a mapping that have no effect with the others."""
    if isinstance(given, TrainConfig):
        return
    values = flat_settings(given, "train()")
    reasons: dict[str, list[str]] = {}
    for setting in config.without_effect():
        # A set of distortions gives the defaults of those without effect.
        by_set = setting.metadata["section"] == "Distortions"
        if setting.name in values and not (by_set and values[setting.name] == setting.default):
            other, _ = setting.metadata["only_with"]
            reason = f"--{other} {getattr(config, other)}"
            reasons.setdefault(reason, []).append(option_name(setting))
    for reason, options in reasons.items():
        verb = "has" if len(options) == 1 else "have"
        logger.warning("%s %s no effect with %s.", ", ".join(options), verb, reason)


def _check_same(
    location: Location, config: TrainConfig, recorded: TrainConfig, recipe: str | None
) -> None:
    differences = config.differences(recorded)
    if not differences:
        return
    given = "these settings" if recipe is None else f"--recipe {recipe} and these settings"
    way_out = f"Leave {given} out to resume with the recorded ones, or choose another --run."
    if recipe is None and len(differences) == 1 and config.epochs != recorded.epochs:
        cause, needed = f"{recorded.schedule} schedule spans", "--schedule constant"
        if recorded.schedule == "constant":
            until = f"--distort-until {recorded.distort_until:g}"
            cause, needed = f"{until} is a share of", "--distort-until 1"
        way_out = (
            f"Its {cause} exactly that many epochs; only a run with {needed} can be extended. "
            f"Leave --epochs out, or train a new run: --epochs {config.epochs} --run OTHER."
        )
    raise ConflictError(
        f"The run {location} has another configuration ({'; '.join(differences)}). {way_out}"
    )


def check_fit(config: TrainConfig, dataset: Dataset) -> tuple[Layer, ...]:
    """Return the network's layers.

    Raises `UsageError` if settings do not fit the dataset or one another, and `BadDataError` if a
    split to evaluate has no labels.
    """
    config.cycles  # noqa: B018 - a property that checks
    layers = parse_network(config.network)
    schema = dataset.split("train").schema
    expected = (schema.features, schema.classes)
    if (layers[0].inputs, layers[-1].outputs) != expected:
        raise UsageError(
            f"The network {config.network} takes {layers[0].inputs} values and gives "
            f"{layers[-1].outputs} classes; {dataset.location} has {expected[0]} and "
            f"{expected[1]}. Leave the ends out: --network {format_hidden(layers)}."
        )
    rows = schema.rows - config.holdout
    if rows < 1:
        raise UsageError(
            f"--holdout {config.holdout:,} leaves nothing of the {schema.rows:,} training rows."
        )
    if config.batch_size > rows:
        raise UsageError(
            f"--batch-size {config.batch_size:,} is more than the {counted(rows, 'training row')}; "
            "expected at most that, or 0 for all of them."
        )
    place = f"The training split of {dataset.location}"
    check_distortable(distortions(config), dataset.image_shape, schema.dtype, place)
    check_shifts(config.average_shifts, dataset.image_shape, place)
    _check_validation(config, dataset)
    _check_evaluations(config, dataset)
    return layers


def _check_validation(config: TrainConfig, dataset: Dataset) -> None:
    """Raise `UsageError` if validation rows are ambiguous, or needed and missing."""
    if VALIDATION in dataset.splits and config.holdout:
        raise UsageError(
            f"{dataset.location} has a validation split; leave out --holdout {config.holdout}, "
            "which makes one of training rows."
        )
    if config.patience and not config.holdout and VALIDATION not in dataset.splits:
        raise UsageError(
            f"--patience needs validation rows, and {dataset.location} has no validation split; "
            "keep training rows for it with --holdout ROWS."
        )


def _check_evaluations(config: TrainConfig, dataset: Dataset) -> None:
    names = [*dataset.splits, *([VALIDATION] if config.holdout else [])]
    for name in config.evaluations(dataset.splits):
        if name not in names:
            labelled = ",".join(
                split for split in names if split == VALIDATION or _has_labels(dataset, split)
            )
            holdout = ", or keep rows for it with --holdout ROWS" if name == VALIDATION else ""
            raise UsageError(
                f"{dataset.location} has no split '{name}' to evaluate after each epoch; "
                f"pass --evaluate {labelled} or --evaluate none{holdout}."
            )
        if name in dataset.splits and not _has_labels(dataset, name):
            way_out = "Ingest" if name == VALIDATION else "Leave it out of --evaluate, or ingest"
            raise BadDataError(
                f"The {name} split of {dataset.location} has no labels to evaluate by. {way_out} "
                "the files again, with its labels or without this split."
            )


def check_dataset(run: Run, dataset: Dataset) -> None:
    """Raise `ConflictError` unless the run was trained on this dataset."""
    if run.dataset_digest == dataset.digest:
        return
    place = run.dataset_place
    at = f"the dataset at {place}" if place else "a dataset"
    raise ConflictError(
        f"The run {run.location} was trained on {at} with digest {run.dataset_digest}; "
        f"{dataset.location} has {dataset.digest}. Pass the run's dataset with --dataset, or "
        "choose another run."
    )


def begin_run(
    location: Location,
    given: TrainConfig | Mapping[str, Any],
    config: TrainConfig,
    dataset: Dataset,
    parent: dict[str, Any] | None = None,
) -> Run:
    """Start a run and record its complete configuration, so that every release can resume it.

    The name of the recipe is recorded for people only: a recipe may differ between releases.
    """
    used = {
        "distortions": distortions(config).any,
        "dropout": config.dropout > 0,
        "start": parent is not None,
    }
    return create_run(
        location,
        configuration=config.to_json(),
        dataset_digest=dataset.digest,
        dataset={
            "place": recorded_place(dataset.location, location),
            "class_names": list(dataset.class_names),
            "labels": list(dataset.labels),
            "transforms": list(dataset.transforms),
            "image_shape": list(dataset.image_shape),
            "element_type": dataset.split("train").schema.dtype,
        },
        versions={name: version for name, version in VERSIONS.items() if used.get(name, True)},
        environment=environment(),
        recipe=_recipe_of(given),
        parent=parent,
    )


def reconfigured(run: Run, config: TrainConfig, newest: Checkpoint | None) -> Run:
    """Record the settings that this resume changed, so that the next one continues with them.

    A finished run stays unchanged. Raises `ConflictError` if it already has more epochs.
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


def environment_changes(run: Run) -> str:
    """Return how the environment differs from that at the start of the run, as far as recorded."""
    return "; ".join(
        f"{name} was {run.environment[name]!r}, is {value!r}"
        for name, value in environment().items()
        if name in run.environment and run.environment[name] != value
    )


def warn_of_environment(run: Run) -> None:
    """Warn of `environment_changes`."""
    if changes := environment_changes(run):
        logger.warning(
            "The run was started in another environment, so the last digits of its results may "
            "differ (%s).",
            changes,
        )


def warn_of_values(dataset: Dataset) -> None:
    """Warn if inputs of the first chunk are far from [0, 1]."""
    split, scaling = dataset.split("train"), dataset.preparation.scaling
    if split.schema.dtype == "uint8" and scaling == BYTES:
        return
    row, stored, size = largest_input(split, scaling, chunks=1)
    if size > FAR_FROM_ONE:
        logger.warning(
            "The network will learn badly: row %s of the training split holds %s, and the dataset "
            "has its %s. Ingest the files again with the --scale LOW,HIGH of most values.",
            row,
            stored,
            dataset.preparation,
        )


def warn_of_evaluation(config: TrainConfig, dataset: Dataset) -> None:
    """Warn if the held-out rows do not represent the others; give a hint if no rows measure."""
    evaluated = config.evaluations(dataset.splits)
    if config.holdout:
        _warn_of_holdout(config.holdout, dataset)
    elif evaluated in ((), ("train",)) and not _has_labels(dataset, "test"):
        logger.info("No accuracy on new rows: pass --holdout ROWS to keep training rows for it.")


def _warn_of_holdout(rows: int, dataset: Dataset) -> None:
    """Warn if the held-out rows contain all rows of a class, or a single class."""
    split, names = dataset.split("train"), np.array(dataset.class_names)
    first, before = divmod(split.schema.rows - rows, split.schema.chunk_rows)
    held = split.chunk_class_counts[first:].sum(axis=0)
    if before:
        targets = split.read_chunk(first).targets
        assert targets is not None  # the split has labels
        held -= targets[:before].sum(axis=0, dtype=np.int64)
    unseen = names[(held > 0) & (held == np.array(split.record.class_counts))][:SHOWN_CLASSES]
    if len(unseen):
        text = f"No row of class {', '.join(unseen)} is trained on: all are held out"
    elif rows > len(names) > 1 and np.count_nonzero(held) == 1:
        text = f"All rows held out are of class {names[held > 0][0]}"
    else:
        return
    logger.warning(
        "%s (--holdout %s). If the files are sorted by class, put their rows in random order and "
        "ingest them again.",
        text,
        rows,
    )
