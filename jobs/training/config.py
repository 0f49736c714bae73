"""The settings of a training: typed, from options and TOML, to and from JSON."""

import difflib
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_args

from jobs.nn.choices import INITS, OPTIMIZERS, SCHEDULES
from storage.documents import digest_of
from storage.errors import UNUSABLE_NAME, BadDataError, UnreachableError, UsageError
from storage.files import open_regular

VALIDATION = "validation"
"""The split that epochs are chosen by: the dataset's own, or the rows that are held out."""
EVALUATED = ("train", VALIDATION, "test")
BY_OPTIMIZER = {
    "learning_rate": {"sgd": 1.6, "momentum": 0.3, "nesterov": 0.3, "adam": 0.004, "adamw": 0.006},
    "l2": dict.fromkeys(OPTIMIZERS, 0.0) | {"adamw": 0.1},
}
"""Defaults of the settings that depend on the optimizer.

The learning rates but adamw's were found on MNIST with the other defaults: trained without the last
10,000 rows of the training split, each has the lowest mean cross-entropy on those rows over seeds 0
to 2, the smaller of equals, among rates a factor of 1.3 to 2 apart. AdamW decouples its decay from
the gradient: as much would drown the gradient of the others.
"""
SMALLEST_SHUFFLE_MEMORY = 2**20
TOML_LIMIT = 2**20
SHOWN = 200
"""Characters of a value, or an unknown setting's name, that are looked at and shown."""
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}

RATES = ", ".join(f"{name} {rate:g}" for name, rate in BY_OPTIMIZER["learning_rate"].items())

NO_LIMITS = {
    "choices": None,
    "least": None,
    "most": None,
    "may_change": False,
    "rounds_only": False,
}


def _setting(default: Any, text: str, **limits: Any) -> Any:
    """Return a field: a setting's default with what the commands and the checks need to know.

    A default of None depends on other settings; the help text describes it. `limits` may be:
    `choices`, the values allowed; `least` and `most`, bounds that are allowed themselves;
    `may_change`, where a resume may give another value, as the bits do not depend on it; and
    `rounds_only`, where the bits depend on it in rounds alone.
    """
    return field(default=default, metadata=NO_LIMITS | limits | {"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """Everything except the dataset that the result of a training depends on."""

    network: str = _setting(
        "784-relu-200-sigmoid-80-softmax-10",
        "Layer widths with the activation between them: relu, sigmoid or tanh; softmax last.",
    )
    epochs: int = _setting(10, "Times each training row is visited.", least=1, most=10**6)
    batch_size: int = _setting(
        200, "Rows of a mini-batch, one optimiser step; 0 takes all rows.", least=0
    )
    optimizer: str = _setting("adamw", "How a gradient becomes a step.", choices=OPTIMIZERS)
    learning_rate: float = _setting(
        None,
        "Step size; the largest one where the schedule varies it. Default: by optimizer "
        f"({RATES}).",
        least=0,
        most=10**6,
    )
    schedule: str = _setting(
        "one-cycle", "How the learning rate goes over the run.", choices=SCHEDULES
    )
    momentum: float = _setting(
        0.9,
        "Momentum coefficient of momentum and nesterov; other optimizers ignore it.",
        least=0,
        most=0.9999,
    )
    l2: float = _setting(
        None,
        "L2 regularisation strength. Default: 0.1 for adamw (decoupled weight decay), 0 for other "
        "optimizers.",
        least=0,
        most=1e6,
    )
    init: str = _setting(
        "scaled", "First weights: scaled is He's for relu, Glorot's otherwise.", choices=INITS
    )
    seed: int = _setting(
        0, "Random seed for initial weights and shuffling.", least=0, most=2**63 - 1
    )
    dtype: str = _setting("float32", "Floating-point type.", choices=("float32", "float64"))
    shuffle: bool = _setting(True, "Visit the rows in a new random order each epoch.")
    shuffle_memory: int = _setting(
        256 * 2**20,
        "Bytes for the two windows within which rows are shuffled.",
        least=SMALLEST_SHUFFLE_MEMORY,
    )
    drop_last: bool = _setting(False, "Leave out an epoch's last mini-batch where it is short.")
    micro_batches: int | None = _setting(
        None,
        "Parts of a mini-batch whose gradients are computed separately. Default: by batch size.",
        least=1,
    )
    parallel: str = _setting(
        "steps",
        "What a cluster computes in parallel: the gradients of each step, to the same bits, or "
        "rounds of local steps, which are another algorithm.",
        choices=("steps", "rounds"),
    )
    replicas: int = _setting(
        4,
        "Rounds only: number of replicas; each uses the learning rate times sqrt(replicas).",
        least=1,
        most=1024,
        rounds_only=True,
    )
    sync_every: int = _setting(
        48,
        "Rounds only: steps of each replica before they are averaged.",
        least=1,
        rounds_only=True,
    )
    outer_learning_rate: float = _setting(
        1.0,
        "Rounds only: step size towards the replicas' mean; 1 takes the mean (DiLoCo: 0.7).",
        least=0,
        most=10,
        rounds_only=True,
    )
    outer_momentum: float = _setting(
        0.5,
        "Rounds only: Nesterov momentum of the outer step; 0 for none (DiLoCo: 0.9).",
        least=0,
        most=0.9999,
        rounds_only=True,
    )
    evaluate: str = _setting(
        "test",
        "Splits to evaluate after each epoch: none, or some of train,validation,test. A dataset's "
        "validation split always is evaluated.",
    )
    holdout: int = _setting(
        0,
        "Last rows of the training split to keep for validation, where the dataset has no "
        "validation split.",
        least=0,
    )
    patience: int = _setting(
        0, "Epochs without a better validation before stopping; 0 never stops.", least=0
    )
    checkpoint_every: int = _setting(
        0, "Mini-batches between checkpoints within an epoch; 0 for none.", least=0, may_change=True
    )
    keep: int = _setting(
        3, "Newest checkpoints to keep, besides the best.", least=1, may_change=True
    )
    threads: int = _setting(
        0, "CPU cores to compute on; 0 for all.", least=0, most=1024, may_change=True
    )

    def __post_init__(self) -> None:
        """Fill in the optimizer's defaults; raise `UsageError` for a setting out of range."""
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value is None and setting.name in BY_OPTIMIZER:
                value = BY_OPTIMIZER[setting.name][self.optimizer]
                object.__setattr__(self, setting.name, value)
            _check(setting, _typed(setting, value, "The configuration"))
        self.evaluated_splits  # noqa: B018 - a property that checks

    @property
    def evaluated_splits(self) -> tuple[str, ...]:
        """The splits to evaluate after each epoch."""
        names = tuple(name.strip() for name in self.evaluate.split(",") if name.strip())
        if names == ("none",):
            return ()
        if not names or len(set(names)) != len(names) or set(names) - {*EVALUATED}:
            raise UsageError(
                f"--evaluate is {self.evaluate!r}; expected none, or some of "
                f"{', '.join(EVALUATED)} with commas between them."
            )
        return names

    def evaluations(self, splits: Collection[str]) -> tuple[str, ...]:
        """Return the names of all evaluations after an epoch, on a dataset with these splits."""
        names = self.evaluated_splits
        validated = (self.holdout or VALIDATION in splits) and VALIDATION not in names
        return (*names, VALIDATION) if validated else names

    def to_json(self) -> dict[str, Any]:
        """Return all settings by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any], place: str) -> Self:
        """Return the settings of a record; raise `BadDataError` naming `place` for others."""
        try:
            return cls(**given_settings(document, place))
        except UsageError as error:
            raise BadDataError(str(error)) from error

    def fixed(self) -> dict[str, Any]:
        """Return the settings by name that a resume of a run with these may not change."""
        return {
            setting.name: getattr(self, setting.name)
            for setting in fields(self)
            if not may_change(setting, self)
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the settings that a resume may not change."""
        return digest_of(self.fixed())

    def differences(self, recorded: "TrainConfig") -> list[str]:
        """Return why this configuration cannot continue a run with the recorded one."""
        return [
            f"{name}: {value!r} recorded, {getattr(self, name)!r} given"
            for name, value in recorded.fixed().items()
            if getattr(self, name) != value
        ]


def may_change(setting: "Field[Any]", recorded: TrainConfig) -> bool:
    """Return whether a resume may give another value: epochs too, where no schedule spans them."""
    if setting.name == "epochs":
        return recorded.schedule == "constant"
    if setting.metadata["rounds_only"]:
        return recorded.parallel == "steps"
    return bool(setting.metadata["may_change"])


def given_settings(settings: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the settings that are given, by field name; None stands for a default that is None.

    Raises `UsageError` that names `place` for a value of another type and for a setting that is
    unknown, with the nearest known one, or given twice.
    """
    known = {setting.name: setting for setting in fields(TrainConfig)}
    given: dict[str, Any] = {}
    for key, value in settings.items():
        name = key.replace("-", "_")
        if name not in known:
            (nearest,) = difflib.get_close_matches(name[:SHOWN], known, n=1, cutoff=0)
            raise UsageError(
                f"{place} has an unknown setting '{key[:SHOWN]}'; did you mean '{nearest}'?"
            )
        if name in given:
            raise UsageError(f"{place} gives {name} twice, with _ and with -; leave one out.")
        given[name] = _typed(known[name], value, place)
    return {name: value for name, value in given.items() if value is not None}


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file; raise `UsageError` where it cannot be read as one."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            data = file.read(TOML_LIMIT + 1)
        if len(data) > TOML_LIMIT:
            raise UsageError(f"{path} has more than {TOML_LIMIT:,} bytes; it is no configuration.")
        return tomllib.loads(data.decode())
    except FileNotFoundError:
        raise UsageError(f"There is no configuration file {path}.") from None
    except OSError as error:
        error_type = UsageError if error.errno in UNUSABLE_NAME else UnreachableError
        raise error_type(f"Cannot read {path}: {error.strerror}. Give a TOML file.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML ({error}).") from error


def setting_type(setting: "Field[Any]") -> type:
    """Return the type of a setting's values other than None."""
    kinds: tuple[type, ...] = get_args(setting.type) or (setting.type,)
    return kinds[0]


def _typed(setting: "Field[Any]", value: Any, place: str) -> Any:
    """Return `value` as the setting's own type; an integer passes for a float."""
    kind = setting_type(setting)
    if value is None and setting.default is None:
        return None
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return math.inf  # which is out of range
    if type(value) is not kind:
        raise UsageError(
            f"{place} gives {setting.name} as {_shown(value)}; expected {KINDS[kind]}."
        )
    return value


def _shown(value: Any) -> str:
    """Return a value as a message shows it: TOML can hold numbers and texts of any length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python refuses to print thousands of digits
        return "something enormous"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _check(setting: "Field[Any]", value: Any) -> None:
    """Raise `UsageError` where a value is none of the choices or out of bounds."""
    choices, least, most = (setting.metadata[key] for key in ("choices", "least", "most"))
    option = "--" + setting.name.replace("_", "-")
    if choices and value not in choices:
        (nearest,) = difflib.get_close_matches(value[:SHOWN], choices, n=1, cutoff=0)
        raise UsageError(
            f"{option} is {_shown(value)}; expected one of {', '.join(choices)} "
            f"(nearest: {nearest})."
        )
    if least is None or value is None:
        return
    if not least <= value <= (math.inf if most is None else most):
        bounds = f"at least {least:,}" if most is None else f"{least:,} to {most:,}"
        raise UsageError(f"{option} is {_shown(value)}; expected {bounds}.")
