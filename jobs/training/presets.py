"""Settings given by name or by file: recipes, sets of distortions, TOML."""

import tomllib
from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jobs.choices import DISTORTION_SETS, RECIPES
from jobs.training.config import TrainConfig
from jobs.training.settings import Setting, given_settings, setting_field
from storage.errors import UNUSABLE_NAME, UnreachableError, UsageError, did_you_mean
from storage.files import open_regular

RECIPE_FILES = Path(__file__).with_name("recipes")
TABLE_KEYS = {"like": "distort", "until": "distort_until"}
"""Keys of the table [distort] that are not named like the setting."""
TOML_LIMIT = 2**20


@dataclass(frozen=True)
class Presets:
    """Names that stand for several settings; settings that are given override theirs."""

    recipe: str | None = setting_field(
        "Data",
        None,
        "Preset.",
        "A recipe is a set of tuned settings; [Train a better model](../how-to/accuracy.md) says "
        "what each reaches and costs. All other settings override it.",
        choices=RECIPES,
    )
    distort: str | None = setting_field(
        "Data",
        None,
        "Distort training images.",
        "`digits` suits handwritten digits and sets the distortions below; `none` turns off those "
        "of a recipe. In TOML, it may be a table `[distort]` with the keys `rotate`, `scale`, "
        "`shear`, `shift`, `elastic`, `elastic_sigma`, `until`, and `like` for the name of a set "
        "that they override.",
        choices=DISTORTION_SETS,
    )


def flat_settings(given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the given settings by field name, with the set of distortions expanded.

    A recipe stays a name: see `with_recipe`. Raises `UsageError` like `given_settings`, and for
    an unknown recipe or set of distortions.
    """
    table = given.get("distort")
    own: dict[str, Any] = {}
    if isinstance(table, Mapping):
        own = _distortions_of(table, f"[distort] in {place}")
        given = {**given, "distort": own.pop("distort", None)}
    settings = given_settings(given, (*fields(TrainConfig), *fields(Presets)), place)
    for name in sorted(own.keys() & settings.keys()):
        raise UsageError(f"{place} gives {name} twice, inside and outside of [distort].")
    distort = settings.pop("distort", None)
    return ({} if distort is None else _strengths(distort)) | own | settings


def _strengths(name: str) -> dict[str, float]:
    """Return the settings of a set of distortions; those of `none` undo a recipe's."""
    from pipeline.distortions import SETS

    strengths = asdict(SETS[name])
    if not SETS[name].any:
        strengths["distort_until"] = 1.0
    return strengths


def _distortions_of(table: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the settings in a table [distort], with its `like` as `distort`."""
    distortions = [one for one in fields(TrainConfig) if one.metadata["section"] == "Distortions"]
    settings = {one.name: one for one in (*distortions, *fields(Presets)[1:])}
    aliases = [_renamed(settings[name], key) for key, name in TABLE_KEYS.items()]
    misplaced = {one.name for one in fields(TrainConfig)} - settings.keys()
    for key in table:
        if key.replace("-", "_") in misplaced:
            raise UsageError(f"{place} has {key}, which is no distortion; put it above [distort].")
    own = given_settings(table, (*settings.values(), *aliases), place)
    for key, name in TABLE_KEYS.items():
        if key in own and name in own:
            raise UsageError(f"{place} gives {key} twice, also as {name}; leave one out.")
    return {TABLE_KEYS.get(key, key): value for key, value in own.items()}


def _renamed(setting: Setting, name: str) -> Setting:
    """Return the setting under another name, which messages about its value use."""
    renamed = copy(setting)
    renamed.name = name
    return renamed


def with_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat settings, with those of their recipe where they have none."""
    own = dict(settings)
    name = own.pop("recipe", None)
    return own if name is None else recipe_settings(name) | own


def recipe_settings(name: str) -> dict[str, Any]:
    """Return the settings of a recipe, for `TrainConfig(**settings)`."""
    return flat_settings(read_toml(RECIPE_FILES / f"{name}.toml"), f"The recipe {name}")


def recipe_summary(name: str) -> str:
    """Return what a recipe reaches and costs: the last line of its comments."""
    lines = (RECIPE_FILES / f"{name}.toml").read_text().splitlines()
    return [line.removeprefix("# ") for line in lines if line.startswith("# ")][-1]


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file; raise `UsageError` if it cannot be read as one."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            data = file.read(TOML_LIMIT + 1)
        if len(data) > TOML_LIMIT:
            raise UsageError(f"{path} has more than {TOML_LIMIT:,} bytes; it is no configuration.")
        return tomllib.loads(data.decode())
    except FileNotFoundError:
        others = [other.name for other in path.parent.glob("*.toml")]
        hint = did_you_mean(path.name, others)
        raise UsageError(f"There is no configuration file {path}.{hint}") from None
    except OSError as error:
        error_type = UsageError if error.errno in UNUSABLE_NAME else UnreachableError
        raise error_type(f"Cannot read {path}: {error.strerror}. Give a TOML file.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML ({error}).") from error
