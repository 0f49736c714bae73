"""The parameters of the estimator as the settings of a training run."""

import math
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from jobs.nn.architecture import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATION
from jobs.nn.choices import SCHEDULES
from jobs.training.config import VALIDATION, TrainConfig
from jobs.training.prepare import completed
from jobs.training.settings import given_settings
from pipeline.windows import usable_cores
from storage.dataset import Dataset
from storage.errors import UsageError
from storage.preparation import BYTES, ValueRange

SETTINGS = {
    "alpha": "l2",
    "learning_rate_init": "learning_rate",
    "max_iter": "epochs",
    "beta_1": "beta1",
    "beta_2": "beta2",
} | {name: name for name in ("momentum", "shuffle", "dropout", "label_smoothing", "dtype")}
"""Parameters, and the settings that they stand for."""
DEFAULTED = ("alpha", "learning_rate_init", "max_iter")
"""Parameters that may be None, for a default that depends on others."""
FLAGS = ("nesterovs_momentum", "early_stopping", "warm_start")
"""Parameters that are True or False, and no setting."""
SOLVERS = ("adamw", "adam", "sgd")
ACTIVATIONS = {name: name for name in HIDDEN_ACTIVATIONS} | {"logistic": "sigmoid"}
"""The activations of hidden layers; scikit-learn has another name for one."""
BATCH_SIZE = 200
"""The default, `auto`."""
FEWEST_STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 3_000, 10, 200
"""The default of `max_iter` gives this number of steps, within these numbers of epochs."""

Parameters = Mapping[str, Any]


def config_of(parameters: Parameters, data: Dataset, seed: int, **changes: Any) -> TrainConfig:
    """Return the configuration that parameters stand for, complete for a dataset.

    `changes` are settings that override it. Raises `ValueError` that names a parameter whose value
    is refused.
    """
    rows, holdout = data.split("train").schema.rows, 0
    if parameters["early_stopping"] and VALIDATION not in data.splits:
        holdout = min(math.ceil(rows * validation_fraction(parameters)), rows - 1)
    rows -= holdout
    batch_size = BATCH_SIZE
    if not isinstance(parameters["batch_size"], str) or parameters["batch_size"] != "auto":
        batch_size = _number(parameters, "batch_size", Integral, 1)
    batch_size = min(batch_size, rows)
    settings = _settings(parameters)
    optimizer = _choice("solver", parameters["solver"], SOLVERS)
    if settings["l2"] is not None and optimizer != "adamw":
        settings["l2"] /= batch_size
    if optimizer == "sgd" and settings["momentum"]:
        optimizer = "nesterov" if parameters["nesterovs_momentum"] else "momentum"
    if settings["epochs"] is None:
        epochs = math.ceil(FEWEST_STEPS / math.ceil(rows / batch_size))
        settings["epochs"] = min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS)
    settings |= {
        "network": _network_text(parameters),
        "seed": seed,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "schedule": _choice("learning_rate", parameters["learning_rate"], SCHEDULES),
        "threads": core_count(parameters),
        "holdout": holdout,
        "evaluate": "none",
    }
    return completed(TrainConfig(**settings | changes), data)


def validation_fraction(parameters: Parameters) -> float:
    """Return the share of the rows for validation, between 0 and 1."""
    fraction: float = _number(parameters, "validation_fraction", Real, 0, 1)
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction is {fraction!r}; expected a number between 0 and 1.")
    return fraction


def tolerance(parameters: Parameters) -> tuple[float, int]:
    """Return `tol` and `n_iter_no_change`."""
    return (
        _number(parameters, "tol", Real, 0),
        _number(parameters, "n_iter_no_change", Integral, 1),
    )


def fixed_seed(parameters: Parameters) -> int | None:
    """Return `random_state` if it is an integer."""
    if not isinstance(parameters["random_state"], Integral):
        return None
    return int(_number(parameters, "random_state", Integral, 0, 2**63 - 2))


def core_count(parameters: Parameters) -> int:
    """Return the number of cores that `n_jobs` means."""
    if parameters["n_jobs"] is not None:
        cores = int(_number(parameters, "n_jobs", Integral, -1024, 1024))
        if not cores:
            raise ValueError("n_jobs is 0; expected a number of cores, or -1 for all of them.")
        return cores if cores > 0 else max(1, usable_cores() + 1 + cores)
    if threading.current_thread() is not threading.main_thread():
        return 1  # another thread may be computing, and a fork could then hang
    blas = [
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    ]
    return int(min([usable_cores(), *blas]))


def value_range(scale: Any, dtype: np.dtype[Any]) -> ValueRange | None:
    """Return the range of values that `scale` means for arrays of a type."""
    if isinstance(scale, str) and scale == "auto":
        return BYTES if dtype == np.uint8 else None
    if scale is None:
        return None
    try:
        low, high = map(float, scale)
        return ValueRange(low, high)
    except (TypeError, ValueError):
        raise ValueError(
            f"scale is {scale!r}; expected 'auto', None, or two numbers, the lower one first."
        ) from None


def _settings(parameters: Parameters) -> dict[str, Any]:
    """Return the settings that have the values of parameters."""
    for flag in FLAGS:
        if parameters[flag] not in (True, False):
            raise ValueError(f"{flag} is {parameters[flag]!r}; expected True or False.")
    settings = {}
    for parameter, setting in SETTINGS.items():
        value = parameters[parameter]
        value = value.item() if isinstance(value, np.generic) else value
        given = {} if value is None and parameter in DEFAULTED else {setting: value}
        try:
            given_settings(given, fields(TrainConfig), "MLPClassifier")
        except UsageError as error:
            text = str(error).replace(f"gives {setting} as", f"has {parameter} =")
            raise ValueError(text) from error
        settings[setting] = value
    return settings


def _network_text(parameters: Parameters) -> str:
    """Return the hidden layers as in `--network`."""
    sizes, names = parameters["hidden_layer_sizes"], parameters["activation"]
    sizes = list(sizes) if isinstance(sizes, Iterable) else [sizes]
    several = isinstance(names, Iterable) and not isinstance(names, str)
    names = list(names) if several else [names] * len(sizes)
    if len(names) != len(sizes):
        raise ValueError(
            f"activation has {len(names)} names for hidden_layer_sizes of length {len(sizes)}; "
            "expected one for each hidden layer, or a single text."
        )
    pieces = []
    for size, name in zip(sizes, names, strict=True):
        _number({"hidden_layer_sizes": size}, "hidden_layer_sizes", Integral, 1, 10**6)
        pieces.append(f"{ACTIVATIONS[_choice('activation', name, ACTIVATIONS)]}-{size}")
    return "-".join(pieces) or OUTPUT_ACTIVATION


def _choice(parameter: str, value: Any, choices: Collection[str]) -> str:
    """Return a text; raise `ValueError` unless it is a choice."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{parameter} is {value!r}; expected {' or '.join(map(repr, choices))}.")
    return value


def _number(
    parameters: Parameters, name: str, number: type, least: float, most: float = math.inf
) -> Any:
    """Return a parameter's number; raise `ValueError` for another type or out of bounds."""
    value: Any = parameters[name]
    is_number = isinstance(value, number) and not isinstance(value, bool)
    if not (is_number and least <= value <= most):
        noun = "a whole number" if number is Integral else "a number"
        bounds = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; expected {noun}, {bounds}.")
    return value
