"""Recipes and sets of distortions: what they stand for, and what overrides them."""

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from jobs.choices import RECIPES
from jobs.training.config import TrainConfig
from jobs.training.job import train
from jobs.training.prepare import changed_settings
from jobs.training.presets import RECIPE_FILES, flat_settings, recipe_settings, with_recipe
from pipeline.distortions import SETS
from storage.dataset import open_dataset
from storage.errors import ConflictError, UsageError
from storage.places import open_location
from storage.runs import open_run
from tests.jobs.trainings import REPOSITORY, Log, warnings_in

DIGITS = asdict(SETS["digits"])
NONE = asdict(SETS["none"]) | {"distort_until": 1}
PAGE = REPOSITORY / "docs" / "how-to" / "accuracy.md"
QUICK = TrainConfig(**recipe_settings("quick"))
SHORT: dict[str, Any] = {"epochs": 3, "network": "relu-9", "batch_size": 200, "threads": 1}
"""Settings that make any recipe train in a moment."""


def test_every_file_is_a_recipe() -> None:
    """The names that --help lists are the files of the package."""
    assert {*RECIPES} == {path.stem for path in RECIPE_FILES.glob("*.toml")}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str, digits: Path, tmp_path: Path, log: Log) -> None:
    """A recipe's settings are valid, have an effect, fit any classes, and train."""
    settings = recipe_settings(name)
    config = TrainConfig(**settings)
    assert not settings.keys() & {setting.name for setting in config.without_effect()}
    assert "softmax" not in config.network
    assert not settings.keys() & {"seed", "evaluate", "holdout", "threads", "keep"}
    short = SHORT | ({"restart_epochs": 1} if config.restarts else {})
    result = train({"recipe": name, **short}, dataset=digits, run=tmp_path / "run")
    assert settings | short == {
        key: getattr(result.config, key) for key in settings | short if key != "network"
    } | {"network": "relu-9"}
    assert name == open_run(result.run.location).recipe
    assert [] == warnings_in(log)


def test_the_page_lists_the_recipes() -> None:
    """The table of the page has a row for each recipe, with its network and epochs."""
    rows = re.findall(
        r"^\| `(\w+)` \| .* \| `([\w-]+)` \| (\d+) \|", PAGE.read_text(), re.MULTILINE
    )
    configs = [TrainConfig(**recipe_settings(name)) for name in RECIPES]
    expected = [
        (name, config.network, str(config.epochs))
        for name, config in zip(RECIPES, configs, strict=True)
    ]
    assert expected == rows


def test_layers() -> None:
    """The file overrides the recipe, and options override both, sets of distortions included."""
    file = {"recipe": "quick", "epochs": 2, "distort": {"like": "digits", "rotate": 3}}
    options = {"recipe": "seed", "epochs": 4, "shear": 0.5}
    settings = flat_settings(file, "my.toml") | flat_settings(options, "The command line")
    assert "seed" == settings["recipe"]
    expected = recipe_settings("seed") | DIGITS | {"rotate": 3, "shear": 0.5, "epochs": 4}
    assert expected == with_recipe(settings)
    none = with_recipe(settings | flat_settings({"distort": "none"}, "The command line"))
    assert expected | NONE == none


def test_none_turns_all_distortions_off() -> None:
    """`none` resets all that a recipe may set; `digits` leaves the share of epochs."""
    plain = TrainConfig(**with_recipe({"recipe": "quick"} | NONE)).to_json()
    names = [one.name for one in fields(TrainConfig) if one.metadata["section"] == "Distortions"]
    assert {name: getattr(TrainConfig(), name) for name in names} == {
        name: plain[name] for name in names
    }
    assert QUICK == TrainConfig(**with_recipe({"recipe": "quick"} | DIGITS))
    assert QUICK.distort_until < 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"distort": "digits"}, DIGITS),
        ({"distort": "digits", "scale": 0.2}, DIGITS | {"scale": 0.2}),
        (
            {"scale": 0.2, "distort": {"like": "digits", "shift": 2}},
            DIGITS | {"scale": 0.2, "shift": 2},
        ),
        (
            {"distort": {"elastic-sigma": 6, "until": 0.5}},
            {"elastic_sigma": 6, "distort_until": 0.5},
        ),
        ({"distort": {"like": "none", "rotate": 5}}, NONE | {"rotate": 5}),
        ({"distort": {}}, {}),
        ({"distort": None, "recipe": None}, {}),
        ({"recipe": "seed", "epochs": 1}, {"recipe": "seed", "epochs": 1}),
    ],
    ids=str,
)
def test_distort(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """A set is a name or a table; what is given beside it, or in the table, overrides it."""
    assert expected == flat_settings(given, "my.toml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"recipe": "quik"},
            "my.toml gives recipe as 'quik'; expected one of seed, quick, accur",
        ),
        ({"recipe": "quik"}, "Did you mean 'quick'?"),
        ({"recipe": 3}, "my.toml gives recipe as 3; expected a text in quotes."),
        ({"recipie": "quick"}, "unknown setting 'recipie'. Did you mean 'recipe'?"),
        ({"distort": "digit"}, "my.toml gives distort as 'digit'; expected one of digits, none. D"),
        ({"distort": True}, "my.toml gives distort as True; expected a text in quotes."),
        ({"distort": {"rotat": 1}}, "[distort] in my.toml has an unknown setting 'rotat'. Did you"),
        (
            {"distort": {"epochs": 1}},
            "[distort] in my.toml has epochs, which is no distort",
        ),
        (
            {"distort": {"like": "x"}},
            "[distort] in my.toml gives like as 'x'; expected one of d",
        ),
        ({"distort": {"rotate": 200}}, "[distort] in my.toml gives rotate as 200.0; expected 0 to"),
        ({"distort": {"until": "x"}}, "[distort] in my.toml gives until as 'x'; expected a numb"),
        ({"distort": {"until": 2}}, "[distort] in my.toml gives until as 2.0; expected 0 to 1."),
        ({"distort": {"like": 3}}, "[distort] in my.toml gives like as 3; expected a text in q"),
        ({"distort": {"untill": 1}}, "has an unknown setting 'untill'. Did you mean 'until'?"),
        (
            {"distort": {"shift": 1}, "shift": 2},
            "gives shift twice, inside and outside of [distort]",
        ),
        (
            {"distort": {"like": "digits", "distort": "none"}},
            "[distort] in my.toml gives like twice, also as distort; leave one out.",
        ),
        ({"distort": {"distort_until": 1, "until": 0}}, "until twice, also as distort_until"),
    ],
    ids=str,
)
def test_refused(given: dict[str, Any], message: str) -> None:
    """An unknown name is refused with those there are; a table is checked like the settings."""
    with pytest.raises(UsageError) as caught:
        flat_settings(given, "my.toml")
    assert message in str(caught.value)


def test_resume(digits: Path, tmp_path: Path) -> None:
    """A recipe is compared by its settings: equal ones resume, others are named."""
    place = tmp_path / "run"
    given = {"recipe": "quick", "distort": "none"} | SHORT | {"epochs": 1}
    first = train(given, dataset=digits, run=place)
    for same in (given, {}, first.config):
        result = train(same, run=place, resume=True)
        assert (True, first.config) == (result.already_done, result.config)
    with pytest.raises(
        ConflictError,
        match=r"epochs: 1 recorded, \d+ given;.*rotate: 0\.0 recorded, 15\.0 given.* Leave "
        "--recipe quick and these settings out to resume",
    ):
        train({"recipe": "quick"}, run=place, resume=True)
    assert "quick" == open_run(open_location(place)).recipe


def test_resume_with_another_recipe(digits: Path, tmp_path: Path) -> None:
    """Another recipe stands for all settings: those at its defaults are compared, too."""
    place = tmp_path / "run"
    train({"recipe": "quick"} | SHORT | {"epochs": 1}, dataset=digits, run=place)
    with pytest.raises(ConflictError) as caught:
        train({"recipe": "seed"} | SHORT | {"epochs": 1}, run=place, resume=True)
    assert "learning_rate: 0.0025 recorded, 0.006 given" in str(caught.value)
    assert "schedule: 'cosine' recorded, 'one-cycle' given" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (flat_settings({"distort": "digits"}, "my.toml") | NONE, []),
        ({"distort": "none"}, []),
        ({"distort_until": 0.5}, ["--distort-until has no effect with --distort none."]),
    ],
)
def test_warnings(
    given: dict[str, Any], expected: list[str], digits: Path, tmp_path: Path, log: Log
) -> None:
    """A set of distortions causes no warning; a strength's setting without strengths does."""
    result = train(given | SHORT | {"epochs": 1}, dataset=digits, run=tmp_path / "run")
    assert expected == warnings_in(log)
    assert "distort_until" not in changed_settings(
        result.config, open_dataset(open_location(digits))
    )
