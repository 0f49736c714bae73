"""The settings of a training run: typed, from options and TOML, to and from JSON."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from jobs.training.setting_fields import BY_OPTIMIZER, ROUNDS_ONLY, WARM_UP, TrainSettings
from jobs.training.settings import Setting, check_range, convert, given_settings
from storage.documents import digest_of
from storage.errors import (
    BadDataError,
    UsageError,
    counted,
    did_you_mean,
)

VALIDATION = "validation"
"""The split that determines the best epoch: the dataset's own, or the held-out rows."""
EVALUATED = ("train", VALIDATION, "test")


@dataclass(frozen=True, repr=False)
class TrainConfig(TrainSettings):
    """All settings of a training run; with the dataset they determine its result."""

    def __post_init__(self) -> None:
        """Fill in defaults; raise `UsageError` for a setting out of range."""
        for setting in fields(self):
            value = convert(setting, getattr(self, setting.name), "The configuration")
            value = self.default(setting) if value is None else value
            check_range(setting, value)
            object.__setattr__(self, setting.name, value)
        self.evaluated_splits  # noqa: B018 - a property that checks

    def __repr__(self) -> str:
        """Show the settings that differ from their defaults."""
        shown = (
            f"{setting.name}={value!r}"
            for setting in fields(self)
            if (value := getattr(self, setting.name)) != self.default(setting)
        )
        return f"TrainConfig({', '.join(shown)})"

    def changed(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults and have an effect, by name."""
        ignored = self.without_effect()
        return {
            setting.name: value
            for setting in fields(self)
            if setting not in ignored
            if (value := getattr(self, setting.name)) != self.default(setting)
        }

    def default(self, setting: Setting) -> Any:
        """Return the default of a setting with the others; None if the dataset decides."""
        if setting.name == "warm_up":
            return WARM_UP[self.schedule]
        by_optimizer = BY_OPTIMIZER.get(setting.name)
        return by_optimizer[self.optimizer] if by_optimizer else setting.default

    @property
    def distort(self) -> str:
        """`none` without distortions, otherwise `some`."""
        strengths = (self.rotate, self.scale, self.shear, self.shift, self.elastic)
        return "some" if any(strengths) else "none"

    @property
    def cycles(self) -> tuple[int, ...]:
        """The epochs of each cycle of the schedule; a single one without restarts.

        Raises `UsageError` if the restarts leave no epoch for the first. That is not checked
        earlier, because a resume compares each setting with the run's first.
        """
        if self.schedule != "cosine" or not self.restarts:
            return (self.epochs,)
        length = self.restart_epochs or max(1, self.epochs // (self.restarts + 1))
        first = self.epochs - self.restarts * length
        if first < 1:
            raise UsageError(
                f"--restarts {self.restarts} with cycles of {counted(length, 'epoch')} needs at "
                f"least {self.epochs - first + 1:,} epochs; --epochs is {self.epochs:,}. Train for "
                "more epochs, or with fewer or shorter restarts."
            )
        return (first, *[length] * self.restarts)

    @property
    def evaluated_splits(self) -> tuple[str, ...]:
        """The splits of `evaluate`; none if the dataset is to decide."""
        if self.evaluate is None:
            return ()
        names = tuple(name.strip() for name in self.evaluate.split(",") if name.strip())
        if names == ("none",):
            return ()
        if not names or len(set(names)) != len(names) or set(names) - {*EVALUATED}:
            unknown = next((name for name in names if name not in EVALUATED), "")
            raise UsageError(
                f"--evaluate is {self.evaluate!r}; expected none, or some of "
                f"{', '.join(EVALUATED)} with commas between them."
                f"{did_you_mean(unknown, (*EVALUATED, 'none'))}"
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
        """Return the settings of a record; raise `BadDataError` naming `place` if they are bad."""
        try:
            return cls(**given_settings(document, fields(cls), place))
        except UsageError as error:
            raise BadDataError(str(error)) from error

    def fixed(self) -> dict[str, Any]:
        """Return the settings that must not change when a run with these is resumed."""
        return {
            setting.name: getattr(self, setting.name)
            for setting in fields(self)
            if not may_change(setting, self)
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the settings that must not change on resume.

        Settings that a later release added are left out while they have their defaults, so that
        runs of earlier releases keep their digests.
        """
        unchanged = {
            setting.name
            for setting in fields(self)
            if setting.metadata["added"] and getattr(self, setting.name) == self.default(setting)
        }
        fixed = self.fixed().items()
        return digest_of({name: value for name, value in fixed if name not in unchanged})

    def differences(self, recorded: "TrainConfig") -> list[str]:
        """Return why this configuration cannot continue a run with the recorded one."""
        ignored = {setting.name for setting in self.without_effect()}
        return [
            f"{name}: {value!r} recorded, {getattr(self, name)!r} given"
            for name, value in recorded.fixed().items()
            if getattr(self, name) != value and name not in ignored
        ]

    def without_effect(self) -> list[Setting]:
        """Return the settings that have no effect with the values of the others."""
        return [
            setting
            for setting in fields(self)
            if (needed := setting.metadata["only_with"])
            and getattr(self, needed[0]) not in needed[1]
        ]


def may_change(setting: Setting, recorded: TrainConfig) -> bool:
    """Return whether a setting may change on resume: epochs may, unless others span them."""
    if setting.name == "epochs":
        spanned = recorded.distort != "none" and recorded.distort_until < 1
        return recorded.schedule == "constant" and not spanned
    if setting.metadata["only_with"] == ROUNDS_ONLY:
        return recorded.parallel == "steps"
    return bool(setting.metadata["may_change"])
