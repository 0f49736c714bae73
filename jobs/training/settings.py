"""Settings as dataclass fields: their metadata, and the types and ranges of their values."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, field
from decimal import Decimal
from typing import Any, TypeAlias, get_args

from jobs.choices import known_name
from storage.errors import UsageError, did_you_mean

Setting: TypeAlias = "Field[Any]"

COMMAND_LINE = "The command line"
LONGEST = 200
"""Characters of a value, or of an unknown setting's name, that a message shows."""
TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
}


class _Positive:
    """All numbers above 0, as the values of another setting that `only_with` needs."""

    def __contains__(self, value: Any) -> bool:
        return bool(value > 0)


POSITIVE = _Positive()
SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([kmgt]?i?)b?", re.ASCII | re.IGNORECASE)
PREFIXES = ("", "k", "m", "g", "t")
DEFAULTS: dict[str, Any] = {
    "more": "",
    "default_text": None,
    "choices": None,
    "least": None,
    "most": None,
    "is_size": False,
    "may_change": False,
    "only_with": None,
    "added": False,
    "unit": "",
}


def setting_field(section: str, default: Any, text: str, more: str = "", **limits: Any) -> Any:
    """Return a dataclass field with the metadata of a setting.

    `section` groups the settings in `--help`, `text` describes the setting there in a line, and
    `more` adds to it in the reference. A default of None depends on other settings or on the
    dataset. `limits` may be: `default_text`, which describes a default; `choices`, the values
    allowed; `least` and `most`, inclusive bounds; `is_size`, for bytes, which may have a unit;
    `may_change`, if a resume may give another value, as the result does not depend on it;
    `only_with`, a setting and those of its values with which this one has an effect; `added`, if
    the first release lacks the setting; and `unit`, such as "of rows", for errors about a value
    that is no whole number.
    """
    metadata = DEFAULTS | limits | {"section": section, "help": text, "more": more}
    return field(default=default, metadata=metadata)


def option_name(setting: Setting) -> str:
    """Return the option of a setting, such as `--batch-size`."""
    return "--" + setting.name.replace("_", "-")


def option_type(setting: Setting) -> type:
    """Return the type in which the command line takes a setting: a size may have a unit."""
    return str if setting.metadata["is_size"] else setting_type(setting)


def setting_type(setting: Setting) -> type:
    """Return the type of a setting's values other than None."""
    types: tuple[type, ...] = get_args(setting.type) or (setting.type,)
    return types[0]


def given_settings(
    given: Mapping[str, Any], known: Iterable[Setting], place: str
) -> dict[str, Any]:
    """Return the given settings by field name, leaving out None, which means the default.

    Raises `UsageError` that names `place` for a value of another type or out of range, and for a
    setting that is not among the known ones, or given twice.
    """
    by_name = {setting.name: setting for setting in known}
    settings: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in by_name:
            option = known_name(name.replace("_", "-"), map(option_name, by_name.values()))
            hint = did_you_mean(option.replace("-", "_"), by_name)
            raise UsageError(
                f"{place} has an unknown setting '{key[:LONGEST]}'."
                f"{hint or ' `pipeline train --help-all` lists the settings.'}"
            )
        if name in settings:
            raise UsageError(f"{place} gives {name} twice, with _ and with -; leave one out.")
        converted = convert(by_name[name], value, place)
        if value is not None:
            check_range(by_name[name], converted, place)
            settings[name] = converted
    return settings


def convert(setting: Setting, value: Any, place: str) -> Any:
    """Return `value` as the setting's own type; an integer is accepted as a float.

    None stands for a default that depends on other settings or is described by a text.
    """
    expected = setting_type(setting)
    if value is None and (setting.default is None or setting.metadata["default_text"]):
        return setting.default
    if setting.metadata["is_size"] and isinstance(value, str):
        return _parse_size(setting, value)
    if expected is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return math.inf  # infinity is out of range
    if type(value) is not expected:
        wanted = f"{TYPE_NAMES[expected]} {setting.metadata['unit']}".rstrip()
        raise UsageError(f"{place} gives {setting.name} as {_shown(value)}; expected {wanted}.")
    return value


def _parse_size(setting: Setting, text: str) -> int:
    """Return the bytes of a size such as `512MiB`, `1.5 GB` or `268435456`."""
    size = SIZE.fullmatch(text.strip())
    prefix = size[2].lower() if size else "i"
    if size is None or prefix == "i":
        raise UsageError(
            f"{option_name(setting)} is {_shown(text)}; expected a number of bytes, or a size such "
            "as 512MiB or 2GB."
        )
    base = 1024 if prefix.endswith("i") else 1000
    return int(Decimal(size[1]) * base ** PREFIXES.index(prefix[:1]))


def check_range(setting: Setting, value: Any, place: str = COMMAND_LINE) -> None:
    """Raise `UsageError` that names `place` if a value is no choice, or out of bounds."""
    choices, least, most = (setting.metadata[key] for key in ("choices", "least", "most"))
    subject = f"{place} gives {setting.name} as"
    if place == COMMAND_LINE:
        subject = f"{option_name(setting)} is"
    if choices and value not in choices:
        raise UsageError(
            f"{subject} {_shown(value)}; expected one of {', '.join(choices)}."
            f"{did_you_mean(value, choices)}"
        )
    if least is None or value is None:
        return
    if not least <= value <= (math.inf if most is None else most):
        bounds = f"at least {least:,}" if most is None else f"{least:,} to {most:,}"
        raise UsageError(f"{subject} {_shown(value)}; expected {bounds}.")


def _shown(value: Any) -> str:
    """Return a value as a message shows it: TOML can hold numbers and texts of any length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python refuses to print thousands of digits
        return "something enormous"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
