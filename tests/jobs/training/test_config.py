"""Settings: types and ranges, TOML and JSON, and changes on resume."""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.nn.choices import OPTIMIZERS, SCHEDULES
from jobs.nn.optimizers import Adam, AdamW
from jobs.training.config import TrainConfig, may_change
from jobs.training.presets import read_toml
from jobs.training.settings import given_settings, setting_field
from jobs.training.step import optimizer_of
from storage.errors import BadDataError, UsageError

OTHER = TrainConfig(
    network="784-tanh-5-softmax-10",
    epochs=3,
    batch_size=7,
    optimizer="sgd",
    learning_rate=0.5,
    schedule="constant",
    warm_up=0.2,
    restarts=2,
    restart_epochs=1,
    restart_factor=0.5,
    momentum=0.5,
    beta1=0.8,
    beta2=0.99,
    l2=0.0,
    dropout=0.3,
    label_smoothing=0.1,
    init="normal-0.1",
    seed=9,
    dtype="float64",
    arithmetic="portable",
    shuffle=False,
    shuffle_memory=2**21,
    drop_last=True,
    micro_batches=3,
    parallel="rounds",
    replicas=3,
    sync_every=5,
    outer_learning_rate=0.7,
    outer_momentum=0.9,
    rotate=3.5,
    scale=0.1,
    shear=0.2,
    shift=2.0,
    elastic=0.5,
    elastic_sigma=4.0,
    distort_until=0.75,
    evaluate="train,test",
    holdout=11,
    patience=4,
    average_shifts=2,
    checkpoint_every=6,
    keep=8,
    threads=2,
)
"""Every setting differs from its default."""

OF_ROUNDS = ("replicas", "sync_every", "outer_learning_rate", "outer_momentum")
"""Settings that have no effect on a run of steps."""
NEEDED = {
    "elastic_sigma": {"elastic": 1.0},
    "distort_until": {"rotate": 5.0},
    "warm_up": {"schedule": "cosine"},
    "restarts": {"schedule": "cosine"},
    "restart_epochs": {"schedule": "cosine", "restarts": 2},
    "restart_factor": {"schedule": "cosine", "restarts": 2},
    "beta1": {"optimizer": "adam"},
    "beta2": {"optimizer": "adam"},
}
"""Values of other settings with which these have an effect."""


def updated(**settings: Any) -> TrainConfig:
    """The defaults, overridden by some settings from a file."""
    return TrainConfig(**given_settings(settings, fields(TrainConfig), "my.toml"))


def refusal(settings: dict[str, Any]) -> str:
    """Return the error message for a file with these settings."""
    with pytest.raises(UsageError) as caught:
        updated(**settings)
    return str(caught.value)


def test_json_round_trip() -> None:
    """Every setting survives a round trip through JSON; none has its default."""
    assert all(getattr(OTHER, field.name) != field.default for field in fields(TrainConfig))
    assert OTHER == TrainConfig.from_json(OTHER.to_json(), "run.json")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"batchsize": 3}, "run.json has an unknown setting 'batchsize'"),
        ({"epochs": "3"}, "run.json gives epochs as '3'; expected a whole number."),
        ({"holdout": 0.2}, "run.json gives holdout as 0.2; expected a whole number of rows."),
        ({"epochs": 0}, "run.json gives epochs as 0; expected 1 to 1,000,000."),
    ],
)
def test_bad_json(document: dict[str, Any], message: str) -> None:
    """An invalid record is bad data, and its place is named."""
    with pytest.raises(BadDataError) as caught:
        TrainConfig.from_json(document, "run.json")
    assert message in str(caught.value)


def test_toml(tmp_path: Path) -> None:
    """Every setting can be given in TOML by its name, with dashes or underscores."""
    lines = []
    for number, (name, value) in enumerate(OTHER.to_json().items()):
        key = name.replace("_", "-") if number % 2 else name
        text = str(value).lower() if isinstance(value, bool) else repr(value)
        lines.append(f"{key} = {text}\n")
    (tmp_path / "run.toml").write_text("".join(lines))
    assert updated(**read_toml(tmp_path / "run.toml")) == OTHER


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        *[("batchsize", "batch_size"), ("optimiser", "optimizer"), ("Seed", "seed")],
        *[("lr", "learning_rate"), ("hidden", "network"), ("weight-decay", "l2"), ("x", None)],
    ],
)
def test_unknown_setting(key: str, nearest: str | None) -> None:
    """An unknown setting is an error that names the place and the nearest setting."""
    hint = f"Did you mean '{nearest}'?" if nearest else "`pipeline train --help-all` lists"
    assert refusal({key: 1}).startswith(f"my.toml has an unknown setting '{key}'. {hint}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 2.0}, "a whole number"),
        ({"epochs": True}, "a whole number"),
        ({"epochs": None}, "a whole number"),
        ({"learning_rate": "0.1"}, "a number"),
        ({"learning_rate": True}, "a number"),
        ({"shuffle": 1}, "true or false"),
        ({"network": 784}, "a text in quotes"),
        ({"evaluate": ["train", "test"]}, "a text in quotes"),
        ({"seed": {"a": 1}}, "a whole number"),
    ],
)
def test_types(settings: dict[str, Any], expected: str) -> None:
    """A value of another type is refused with the expected type, from Python too."""
    ((name, value),) = settings.items()
    assert f"my.toml gives {name} as {value!r}; expected {expected}." == refusal(settings)
    with pytest.raises(UsageError, match=f"gives {name} as .*; expected {expected}"):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "my.toml gives epochs as 0; expected 1 to 1,000,000."),
        ({"epochs": 10**6 + 1}, "gives epochs as "),
        ({"batch_size": -1}, "gives batch_size as -1; expected at least 0."),
        ({"learning_rate": -0.1}, "gives learning_rate as -0.1; expected 0 to 1,000,000"),
        ({"learning_rate": float("nan")}, "gives learning_rate as nan"),
        ({"learning_rate": float("inf")}, "gives learning_rate as inf"),
        ({"learning_rate": 10**400}, "gives learning_rate as inf"),
        ({"momentum": 1.0}, "gives momentum as 1.0; expected 0 to 0.9999."),
        ({"l2": -0.5}, "gives l2 as "),
        ({"seed": -1}, "gives seed as "),
        ({"seed": 2**63}, "gives seed as "),
        (
            {"shuffle_memory": 2**20 - 1},
            "gives shuffle_memory as 1048575; expected at least 1,0",
        ),
        ({"micro_batches": -1}, "gives micro_batches as "),
        ({"holdout": -1}, "gives holdout as "),
        ({"patience": -1, "holdout": 1}, "gives patience as "),
        ({"checkpoint_every": -1}, "gives checkpoint_every as "),
        ({"keep": 0}, "gives keep as 0; expected at least 1."),
        ({"warm_up": 1.5}, "gives warm_up as 1.5; expected 0 to 1."),
        ({"restarts": -1}, "gives restarts as -1; expected 0 to 1,000."),
        ({"restart_epochs": 0}, "gives restart_epochs as 0; expected at least 1."),
        ({"restart_factor": 1.5}, "gives restart_factor as 1.5; expected 0 to 1."),
        ({"beta1": 1.0}, "gives beta1 as 1.0; expected 0 to 0.9999."),
        ({"beta2": 1.0}, "gives beta2 as 1.0; expected 0 to 0.99999."),
        ({"dropout": 0.95}, "gives dropout as 0.95; expected 0 to 0.9."),
        ({"label_smoothing": 0.6}, "gives label_smoothing as 0.6; expected 0 to 0.5."),
        ({"threads": 1025}, "gives threads as 1025; expected 0 to 1,024."),
        ({"optimizer": "adamm"}, "nesterov, adam, adamw. Did you mean 'adam'?"),
        ({"init": "he"}, "normal-0.1. Did you mean 'he-normal'?"),
        ({"dtype": "float16"}, "gives dtype as 'float16'; expected one of float32, float64"),
        ({"evaluate": "valid"}, "--evaluate is 'valid'; expected none, or some of train, valid"),
        ({"evaluate": ""}, "--evaluate"),
        ({"evaluate": "test,test"}, "--evaluate"),
        ({"evaluate": "none,test"}, "--evaluate"),
        ({"batch_size": 1, "batch-size": 2}, "my.toml gives batch_size twice"),
    ],
)
def test_ranges(settings: dict[str, Any], message: str) -> None:
    """A setting out of range is refused with its place, its value and the range."""
    assert message in refusal(settings)


@pytest.mark.parametrize(
    "value",
    [16**5000, -(16**5000), [16**5000], "a" * 10**6],
    ids=["large", "small", "list", "text"],
)
def test_value_that_is_too_long_to_show(value: object) -> None:
    """TOML's hexadecimal numbers may be longer than Python prints: the message stays short."""
    assert "expected" in refusal({"epochs": value})
    assert len(refusal({"epochs": value})) < 400


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 1, "batch_size": 0, "learning_rate": 0.0, "momentum": 0.0, "keep": 1},
        {"momentum": 0.9999, "seed": 2**63 - 1, "shuffle_memory": 2**20, "threads": 1024},
    ],
)
def test_limits(settings: dict[str, Any]) -> None:
    """Both ends of each range are allowed; a whole number passes for a float, and becomes one."""
    assert updated(**settings).to_json().items() >= settings.items()
    assert float is type(updated(learning_rate=1).learning_rate)


@pytest.mark.parametrize(
    ("evaluate", "holdout", "splits", "expected"),
    [
        ("none", 0, ("train",), ()),
        ("test", 0, ("train", "test"), ("test",)),
        (" train , test ", 0, ("train", "test"), ("train", "test")),
        ("test", 1, ("train", "test"), ("test", "validation")),
        ("test", 0, ("train", "validation"), ("test", "validation")),
        ("validation,train", 0, ("validation",), ("validation", "train")),
        ("none", 0, ("validation",), ("validation",)),
    ],
)
def test_evaluations(
    evaluate: str, holdout: int, splits: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    """Splits in the order given; rows for validation are always evaluated."""
    assert expected == TrainConfig(evaluate=evaluate, holdout=holdout).evaluations(splits)


@pytest.mark.parametrize("parallel", ["steps", "rounds"])
def test_digest_and_differences(parallel: str) -> None:
    """The digest and the differences cover every setting except those that may change on resume."""
    usual = TrainConfig(parallel=parallel, optimizer="momentum", l2=0.1)
    others = OTHER.to_json() | {"parallel": "rounds" if parallel == "steps" else "steps"}
    for name, value in others.items():
        recorded = replace(usual, **NEEDED.get(name, {}))
        given = replace(recorded, **{name: value})
        if name in ("checkpoint_every", "keep", "threads") or (
            name in OF_ROUNDS and parallel == "steps"
        ):
            assert ([], recorded.digest) == (given.differences(recorded), given.digest)
            continue
        expected = [f"{name}: {getattr(recorded, name)!r} recorded, {value!r} given"]
        assert expected == given.differences(recorded)
        assert recorded.digest != given.digest


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        ({}, "0d1358a9d8ff5331c3731f434891f742eab9cf58fd43643fbacf913c7091492c"),
        (
            {"parallel": "rounds"},
            "1a1fec0a777f975a807789eea699c15965982ba9b4ff4e81970f468321fadf13",
        ),
        (
            {
                "schedule": "constant",
                "optimizer": "sgd",
                "momentum": 0.5,
                "evaluate": "none",
                "threads": 2,
                "patience": 0,
            },
            "ac7eb5f4fabdf40d1fa6d7db1b40d4aa1ebc12b2abc8f35b3abc6ee3aa6dc982",
        ),
    ],
)
def test_digests_of_earlier_releases(settings: dict[str, Any], digest: str) -> None:
    """The digest of a complete configuration stays the same from release to release."""
    complete = {"network": "784-relu-200-sigmoid-80-softmax-10", "micro_batches": 2}
    assert digest == TrainConfig(**complete | {"evaluate": "test"} | settings).digest


@dataclass(frozen=True, repr=False)
class LaterConfig(TrainConfig):
    """The settings of a release that added one."""

    novelty: float = setting_field("Model", 0.5, "Strength of the novelty.", added=True)


def test_digest_with_an_added_setting() -> None:
    """An added setting changes the digest, and refuses a resume, unless it has its default."""
    earlier = LaterConfig.from_json(TrainConfig().to_json(), "run.json")
    assert TrainConfig().digest == earlier.digest
    later = replace(earlier, novelty=0.6)
    assert later.digest != earlier.digest
    assert ["novelty: 0.5 recorded, 0.6 given"] == later.differences(earlier)
    assert ["novelty: 0.6 recorded, 0.5 given"] == earlier.differences(later)


@pytest.mark.parametrize(
    ("epochs", "restarts", "length", "cycles"),
    [
        (265, 2, 26, (213, 26, 26)),
        (10, 3, None, (4, 2, 2, 2)),
        (3, 2, None, (1, 1, 1)),
        (5, 0, 7, (5,)),
    ],
)
def test_cycles(epochs: int, restarts: int, length: int | None, cycles: tuple[int, ...]) -> None:
    """Restarted cycles have `restart_epochs`, or equal shares; the first has the other epochs."""
    config = TrainConfig(schedule="cosine", epochs=epochs, restarts=restarts, restart_epochs=length)
    assert cycles == config.cycles
    assert (epochs,) == replace(config, schedule="one-cycle").cycles


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"restarts": 2, "restart_epochs": 5}, "--restarts 2 with cycles of 5 epochs needs at "),
        ({"restarts": 2, "restart_epochs": 6}, "at least 13 epochs; --epochs is 10. Train for"),
        ({"restarts": 10}, "--restarts 10 with cycles of 1 epoch needs at least 11 epochs"),
    ],
)
def test_restarts_longer_than_the_run(settings: dict[str, Any], message: str) -> None:
    """The first cycle needs an epoch."""
    with pytest.raises(UsageError) as caught:
        updated(schedule="cosine", **settings).cycles  # noqa: B018 - a property that checks
    assert message in str(caught.value)


@pytest.mark.parametrize("optimizer", [Adam, AdamW])
def test_betas(optimizer: type[Adam]) -> None:
    """The optimizer of a run has its betas."""
    config = TrainConfig(optimizer=optimizer.__name__.lower(), beta1=0.8, beta2=0.99)
    assert optimizer(0.8, 0.99) == optimizer_of(config)


def test_defaults_by_schedule() -> None:
    """The default of the warm-up depends on the schedule."""
    shares = {name: updated(schedule=name).warm_up for name in SCHEDULES}
    assert {"constant": 0, "cosine": 0, "one-cycle": 0.3} == shares


@pytest.mark.parametrize(
    ("schedule", "changes"), [("constant", True), ("cosine", False), ("one-cycle", False)]
)
def test_epochs_may_change(schedule: str, changes: bool) -> None:
    """The number of epochs may change if neither schedule nor distortions depend on it."""
    recorded = TrainConfig(schedule=schedule)
    given = replace(recorded, epochs=99)
    assert changes == (not given.differences(recorded)) == (given.digest == recorded.digest)
    epochs = next(setting for setting in fields(TrainConfig) if setting.name == "epochs")
    assert changes == may_change(epochs, recorded)
    assert not may_change(epochs, replace(recorded, rotate=5.0, distort_until=0.5))
    assert changes == may_change(epochs, replace(recorded, distort_until=0.5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epochs = ", "is not valid TOML"),
        (b"epochs = 1\nepochs = 2\n", "is not valid TOML"),
        (b"network = '\xff'", "is not valid TOML"),
        (b"a = " + b"[" * 5000, "is not valid TOML"),
        (b"epochs = " + b"9" * 5000, "is not valid TOML"),
        (b"#" * (2**20 + 1), "more than 1,048,576 bytes"),
    ],
)
def test_bad_toml(content: bytes, message: str, tmp_path: Path) -> None:
    """A file that is not TOML is refused with its name."""
    (tmp_path / "my.toml").write_bytes(content)
    with pytest.raises(UsageError, match=rf"{tmp_path}/my.toml (has )?{message}"):
        read_toml(tmp_path / "my.toml")


@pytest.mark.parametrize("obstacle", ["absent", "directory", "pipe", "below a file"])
def test_no_file_for_settings(obstacle: str, tmp_path: Path) -> None:
    """A path that cannot be read as a file is a usage error, without waiting for a pipe."""
    place = tmp_path / "place"
    if obstacle == "directory":
        place.mkdir()
    elif obstacle == "pipe":
        os.mkfifo(place)
    elif obstacle == "below a file":
        place.write_text("")
        place /= "my.toml"
    with pytest.raises(UsageError, match=rf"(no configuration file|Cannot read) {place}"):
        read_toml(place)


def test_defaults_by_optimizer() -> None:
    """The defaults of the learning rate and l2 depend on the optimizer."""
    rates = {name: updated(optimizer=name).learning_rate for name in OPTIMIZERS}
    assert rates == {"sgd": 1.6, "momentum": 0.3, "nesterov": 0.3, "adam": 0.004, "adamw": 0.006}
    assert [0, 0, 0, 0, 0.1] == [updated(optimizer=name).l2 for name in OPTIMIZERS]
    given = {"optimizer": "sgd", "learning_rate": 0.006, "l2": 0.1}
    assert given.items() <= TrainConfig.from_json(given, "run.json").to_json().items()
    nothing = dict.fromkeys(["learning_rate", "l2", "micro_batches", "evaluate", "patience"])
    assert TrainConfig() == updated(**nothing) == TrainConfig(**nothing)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("512MiB", 2**29),
        ("1.5 GB", 1_500_000_000),
        ("2g", 2 * 10**9),
        ("0.5gib", 2**29),
        (" 1048576 ", 2**20),
        ("4096 kB", 4_096_000),
        (2**20, 2**20),
    ],
)
def test_sizes(size: str | int, expected: int) -> None:
    """A size is a number of bytes, or a number with a unit; it is recorded in bytes."""
    assert expected == updated(shuffle_memory=size).shuffle_memory
    assert expected == TrainConfig(shuffle_memory=size).to_json()["shuffle_memory"]


@pytest.mark.parametrize("size", ["", "MiB", "512i", "1e9", "-5MiB", "5 foos", "٣MiB", "9" * 400])
def test_invalid_sizes(size: str) -> None:
    """Any other text is refused with an example."""
    assert "expected a number of bytes, or a size such as 512MiB" in refusal(
        {"shuffle-memory": size}
    )


def test_repr() -> None:
    """The repr shows the settings that differ from their defaults; Python reads it back."""
    assert "TrainConfig()" == repr(TrainConfig(optimizer="adamw", l2=0.1))
    given = TrainConfig(optimizer="sgd", epochs=3, learning_rate=0.5)
    assert "TrainConfig(epochs=3, optimizer='sgd', learning_rate=0.5)" == repr(given)
    assert OTHER == eval(repr(OTHER), {"TrainConfig": TrainConfig})
