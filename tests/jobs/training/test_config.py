"""The settings: their types and ranges, from TOML and JSON, and what may differ in a resume."""

import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.nn.choices import OPTIMIZERS
from jobs.training.config import TrainConfig, may_change, read_toml
from storage.errors import BadDataError, UsageError

OTHER = TrainConfig(
    network="784-tanh-5-softmax-10",
    epochs=3,
    batch_size=7,
    optimizer="sgd",
    learning_rate=0.5,
    schedule="constant",
    momentum=0.5,
    l2=0.0,
    init="normal-0.1",
    seed=9,
    dtype="float64",
    shuffle=False,
    shuffle_memory=2**21,
    drop_last=True,
    micro_batches=3,
    parallel="rounds",
    replicas=3,
    sync_every=5,
    outer_learning_rate=0.7,
    outer_momentum=0.9,
    evaluate="train,test",
    holdout=11,
    patience=4,
    checkpoint_every=6,
    keep=8,
    threads=2,
)
"""Every setting differs from its default."""

OF_ROUNDS = ("replicas", "sync_every", "outer_learning_rate", "outer_momentum")
"""What says nothing of a run of steps."""


def refusal(**settings: Any) -> str:
    """The message with which these settings are refused."""
    with pytest.raises(UsageError) as caught:
        TrainConfig(**settings)
    return str(caught.value)


def test_every_setting_is_explained() -> None:
    """Each setting has a help text that is a sentence."""
    for setting in fields(TrainConfig):
        assert re.fullmatch(r"[A-Z].*[^.]\.|.*none\.", setting.metadata["help"]), setting.name


def test_other_differs() -> None:
    """`OTHER` has no default left, so that the tests with it leave out no setting."""
    assert all(getattr(OTHER, f.name) != f.default for f in fields(TrainConfig))


def test_json_round_trip() -> None:
    """The settings go to JSON and back."""
    assert OTHER == TrainConfig.from_json(OTHER.to_json(), "run.json")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"batchsize": 3}, "run.json has an unknown setting 'batchsize'"),
        ({"epochs": "3"}, "run.json gives epochs as '3'; expected a whole number."),
        ({"epochs": 0}, "--epochs is 0; expected 1 to 1,000,000."),
        ({"epochs": None}, "gives epochs as None; expected a whole number."),
    ],
)
def test_bad_json(document: dict[str, Any], message: str) -> None:
    """A record that holds anything else is bad data, and its place is named."""
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
    assert OTHER == TrainConfig().updated(read_toml(tmp_path / "run.toml"), "run.toml")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("batchsize", "batch_size"),
        ("lr", "l2"),
        ("learning-rte", "learning_rate"),
        ("optimiser", "optimizer"),
        ("epoch", "epochs"),
        ("Seed", "seed"),
    ],
)
def test_unknown_setting(key: str, nearest: str) -> None:
    """An unknown setting is an error that names the place and the nearest known one."""
    with pytest.raises(UsageError) as caught:
        TrainConfig().updated({key: 1}, "my.toml")
    expected = f"my.toml has an unknown setting '{key}'; did you mean '{nearest}'?"
    assert expected == str(caught.value)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"epochs": 2.0}, "a whole number"),
        ({"epochs": True}, "a whole number"),
        ({"epochs": "2"}, "a whole number"),
        ({"learning_rate": "0.1"}, "a number"),
        ({"learning_rate": True}, "a number"),
        ({"shuffle": 1}, "true or false"),
        ({"shuffle": "true"}, "true or false"),
        ({"network": 784}, "a text in quotes"),
        ({"evaluate": ["train", "test"]}, "a text in quotes"),
        ({"seed": {"a": 1}}, "a whole number"),
    ],
)
def test_types(settings: dict[str, Any], kind: str) -> None:
    """A value of another type is refused with the place, the setting and what is expected."""
    ((name, value),) = settings.items()
    with pytest.raises(UsageError) as caught:
        TrainConfig().updated(settings, "my.toml")
    expected = f"my.toml gives {name} as {value!r}; expected {kind}."
    assert expected == str(caught.value)


def test_integers_for_floats() -> None:
    """A whole number passes for a float, and is one from there on."""
    rate = TrainConfig().updated({"learning_rate": 1}, "my.toml").learning_rate
    assert (1.0, float) == (rate, type(rate))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "--epochs is 0; expected 1 to 1,000,000."),
        ({"epochs": 10**6 + 1}, "--epochs"),
        ({"batch_size": -1}, "--batch-size is -1; expected at least 0."),
        ({"learning_rate": -0.1}, "--learning-rate is -0.1; expected 0 to 1,000,000"),
        ({"learning_rate": float("nan")}, "--learning-rate is nan"),
        ({"learning_rate": float("inf")}, "--learning-rate is inf"),
        ({"momentum": 1.0}, "--momentum is 1.0; expected 0 to 0.9999."),
        ({"momentum": -0.5}, "--momentum"),
        ({"l2": -0.5}, "--l2"),
        ({"l2": float("nan")}, "--l2"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**63}, "--seed"),
        ({"shuffle_memory": 2**20 - 1}, "--shuffle-memory is 1048575; expected at least 1,048,576"),
        ({"micro_batches": -1}, "--micro-batches"),
        ({"holdout": -1}, "--holdout"),
        ({"patience": -1, "holdout": 1}, "--patience"),
        ({"checkpoint_every": -1}, "--checkpoint-every"),
        ({"keep": 0}, "--keep is 0; expected at least 1."),
        ({"threads": -1}, "--threads"),
        ({"threads": 1025}, "--threads is 1025; expected 0 to 1,024."),
        ({"optimizer": "adamm"}, "(nearest: adam)"),
        ({"schedule": "cosin"}, "(nearest: cosine)"),
        ({"init": "he"}, "expected one of scaled, he-normal,"),
        ({"dtype": "float16"}, "--dtype is 'float16'; expected one of float32, float64"),
        (
            {"evaluate": "valid"},
            "--evaluate is 'valid'; expected none, or some of train, validation",
        ),
        ({"evaluate": ""}, "--evaluate"),
        ({"evaluate": "test,test"}, "--evaluate"),
        ({"evaluate": "none,test"}, "--evaluate"),
    ],
)
def test_ranges(settings: dict[str, Any], message: str) -> None:
    """A setting out of range is refused with its option, its value, and the range."""
    assert message in refusal(**settings)


def test_enormous_integer() -> None:
    """An integer beyond all floats is out of range like any other."""
    with pytest.raises(UsageError, match="--learning-rate is inf"):
        TrainConfig().updated({"learning_rate": 10**400}, "my.toml")


@pytest.mark.parametrize(
    "value",
    [16**5000, -(16**5000), [16**5000], "a" * 10**6],
    ids=["large", "small", "list", "text"],
)
def test_value_that_is_too_long_to_show(value: object) -> None:
    """TOML's hexadecimal numbers may be longer than Python prints: told in a short message."""
    with pytest.raises(UsageError, match=r"my.toml gives epochs as .*; expected") as refusal:
        TrainConfig().updated({"epochs": value}, "my.toml")
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 1},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"momentum": 0.0},
        {"momentum": 0.9999},
        {"seed": 2**63 - 1},
        {"shuffle_memory": 2**20},
        {"keep": 1},
        {"threads": 1024},
        {"holdout": 1, "patience": 1},
    ],
)
def test_limits(settings: dict[str, Any]) -> None:
    """Both ends of each range are allowed."""
    assert replace(TrainConfig(), **settings).to_json().items() >= settings.items()


@pytest.mark.parametrize(
    ("evaluate", "splits"),
    [
        ("none", ()),
        ("test", ("test",)),
        ("test,train", ("test", "train")),
        (" train , test ", ("train", "test")),
        ("validation,train", ("validation", "train")),
    ],
)
def test_evaluated_splits(evaluate: str, splits: tuple[str, ...]) -> None:
    """The splits to evaluate, in the order given."""
    assert splits == TrainConfig(evaluate=evaluate).evaluated_splits


@pytest.mark.parametrize(
    ("settings", "splits", "expected"),
    [
        ({}, ("train", "test"), ("test",)),
        ({"holdout": 1}, ("train", "test"), ("test", "validation")),
        ({}, ("train", "validation"), ("test", "validation")),
        ({"evaluate": "validation"}, ("validation",), ("validation",)),
        ({"evaluate": "none"}, ("validation",), ("validation",)),
    ],
)
def test_evaluations(
    settings: dict[str, Any], splits: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    """Rows for validation are always evaluated: epochs are chosen by them."""
    assert expected == TrainConfig(**settings).evaluations(splits)


def _others() -> list[tuple[str, Any]]:
    return [(name, value) for name, value in OTHER.to_json().items() if name != "patience"]


@pytest.mark.parametrize(("name", "value"), _others(), ids=[name for name, _ in _others()])
def test_digest_and_differences(name: str, value: Any) -> None:
    """The digest and the differences tell every setting but those that a resume may change."""
    recorded = TrainConfig()
    given = replace(recorded, **{name: value})
    if name in ("checkpoint_every", "keep", "threads", *OF_ROUNDS):
        assert ([], recorded.digest) == (given.differences(recorded), given.digest)
        return
    expected = [f"{name}: {getattr(recorded, name)!r} recorded, {value!r} given"]
    assert expected == given.differences(recorded)
    assert recorded.digest != given.digest


@pytest.mark.parametrize("name", OF_ROUNDS)
def test_of_rounds(name: str) -> None:
    """Of a run of rounds, its settings are told by the digest and the differences too."""
    recorded = TrainConfig(parallel="rounds")
    given = replace(recorded, **{name: getattr(OTHER, name)})
    assert 1 == len(given.differences(recorded))
    assert recorded.digest != given.digest


@pytest.mark.parametrize(
    ("schedule", "changes"), [("constant", True), ("cosine", False), ("one-cycle", False)]
)
def test_epochs_may_change(schedule: str, changes: bool) -> None:
    """The number of epochs may change where the schedule does not go by it."""
    recorded = TrainConfig(schedule=schedule)
    given = replace(recorded, epochs=99)
    assert changes == (not given.differences(recorded))
    assert changes == (given.digest == recorded.digest)
    epochs = next(setting for setting in fields(TrainConfig) if setting.name == "epochs")
    assert changes == may_change(epochs, recorded)


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
    """What is not TOML is refused with the file's name."""
    (tmp_path / "my.toml").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_toml(tmp_path / "my.toml")
    assert message in str(caught.value)
    assert str(tmp_path / "my.toml") in str(caught.value)


def test_no_toml(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(UsageError, match=r"There is no configuration file .*absent\.toml"):
        read_toml(tmp_path / "absent.toml")


def test_learning_rate_by_optimizer() -> None:
    """Unless it is given, the learning rate is the optimizer's; a record keeps its own."""
    rates = {name: TrainConfig(optimizer=name).learning_rate for name in OPTIMIZERS}
    assert rates == {"sgd": 1.6, "momentum": 0.3, "nesterov": 0.3, "adam": 0.004, "adamw": 0.006}
    for name, rate in rates.items():
        assert rate == TrainConfig().updated({"optimizer": name}, "here").learning_rate
        for learning_rate in (0.006, 0.5):
            given = {"optimizer": name, "learning_rate": learning_rate}
            assert learning_rate == TrainConfig().updated(given, "here").learning_rate
            assert learning_rate == TrainConfig.from_json(given, "run.json").learning_rate
    assert 0.5 == TrainConfig(learning_rate=0.5).updated({"optimizer": "sgd"}, "x").learning_rate


def test_none_stands_for_the_default() -> None:
    """None means a default that depends on something else; other settings have no None."""
    given = {"learning_rate": None, "l2": None, "micro_batches": None}
    assert TrainConfig() == TrainConfig().updated(given, "here") == TrainConfig(**given)
    assert "seed as None; expected a whole number" in refusal(seed=None)


def test_l2_by_optimizer() -> None:
    """Unless it is given, l2 is AdamW's for adamw and none for the others."""
    assert 0.1 == TrainConfig().l2 == TrainConfig().updated({"optimizer": "adamw"}, "here").l2
    for name in ("sgd", "momentum", "nesterov", "adam"):
        assert 0.0 == TrainConfig(optimizer=name).l2
        assert 0.0 == TrainConfig().updated({"optimizer": name}, "here").l2
    assert 0.3 == TrainConfig().updated({"optimizer": "sgd", "l2": 0.3}, "here").l2
    assert 0.3 == TrainConfig(l2=0.3).updated({"optimizer": "sgd"}, "here").l2


def test_a_setting_of_another_type() -> None:
    """From Python too, a text for a number is refused as such."""
    assert "learning_rate" in refusal(learning_rate="fast")


@pytest.mark.parametrize("kind", ["directory", "pipe", "below a file"])
def test_no_file_for_settings(kind: str, tmp_path: Path) -> None:
    """A place that can never be read as a file is a usage error, and a pipe is not waited for."""
    place = tmp_path / "place"
    if kind == "directory":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.write_text("")
        place /= "my.toml"
    with pytest.raises(UsageError, match="Cannot read") as caught:
        read_toml(place)
    assert str(place) in str(caught.value)


def test_a_setting_in_two_spellings() -> None:
    """A setting that is given with a dash and with an underscore has no value."""
    with pytest.raises(UsageError, match="batch_size twice, as 'batch_size' and as 'batch-size'"):
        TrainConfig().updated({"batch_size": 1, "batch-size": 2}, "my.toml")
