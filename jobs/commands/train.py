"""The command that trains."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.choices import DEFAULT_RUN, RECIPES
from jobs.commands import completion, options
from jobs.commands.sections import Choice, Command, Count, Option, option
from jobs.signals import stop_on_signals

if TYPE_CHECKING:
    from jobs.commands.console import Console, Report
    from storage.location import TakeOver

RARE_SETTINGS = {
    *("shuffle", "shuffle_memory", "drop_last", "init", "dtype", "momentum", "micro_batches"),
    *("checkpoint_every", "keep"),
}
"""Settings that are shown by --help-all only, as are added ones and those of rounds."""
TOPICS = {
    "restarts": "restarts",
    "dropout": "dropout",
    "average_shifts": "averages",
}
"""What --help says that --help-all shows, beside its sections."""
ALIASES = {"learning_rate": ["--lr"]}
METAVARS = {
    "network": "LAYERS",
    "evaluate": "SPLITS",
    "holdout": "ROWS",
    "shuffle_memory": "SIZE",
}


class SettingsCommand(Command):
    """A command with an option for each field of `TrainConfig`, which is imported when needed."""

    everyday: tuple[str, ...] | None = None
    """The settings that --help shows; None for those that are neither rare nor added."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        settings = _setting_options(self.everyday)
        return [*own[:-2], *settings, *own[-2:]]  # the last two are of --help

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the recipes, for --help-all."""
        from jobs.training.presets import recipe_summary

        with formatter.section("Recipes (--recipe)"):
            formatter.write_dl([(name, recipe_summary(name)) for name in RECIPES])


@click.command(cls=SettingsCommand)
@options.train_dataset
@options.train_config
@option(
    "--run",
    section="Checkpoints",
    metavar="PLACE",
    default=DEFAULT_RUN,
    shell_complete=completion.runs,
    help="Path or URL of the run.",
)
@option(
    "--resume",
    section="Checkpoints",
    is_flag=True,
    help="Continue the run with its settings, or start it.",
)
@option(
    "--from",
    "parent",
    section="Model",
    advanced=True,
    topic="warm start",
    metavar="RUN[@CHECKPOINT]",
    shell_complete=completion.runs,
    help="Start with the parameters of another run's checkpoint: best (the default), latest, an "
    "epoch or a model digest. Network and dtype are that run's.",
)
@option(
    "--from-optimizer",
    section="Model",
    advanced=True,
    is_flag=True,
    help="Start with the state of that run's optimizer as well.",
)
@options.log_json
@options.metrics_file
@options.storage
@options.take_over
@options.cluster
@options.output
def train(
    console: "Console",
    dataset: str | None,
    run: str,
    resume: bool,
    parent: str | None,
    from_optimizer: bool,
    config_file: str | None,
    metrics_file: str | None,
    storage_options: tuple[str, ...],
    take_over: "TakeOver | None",
    **asked: Any,
) -> "Report":
    """Train a network on a dataset, or resume a run.

    A resumed run gives the same model, bit for bit, as an uninterrupted one.
    """
    from jobs.commands.metrics_file import metrics_written

    with metrics_written("train", metrics_file), stop_on_signals() as stop:
        given = given_settings(config_file, asked)
        from jobs.commands.run_reports import train_report
        from jobs.training.job import train as run_train

        # Without --dataset, the run may record a dataset in a store, and so may its parent.
        places = () if dataset is None else (dataset, run, *(() if parent is None else (parent,)))
        store = options.store_options(storage_options, *places)
        with options.cluster_of("train", asked, stop) as cluster:
            result = run_train(
                given,
                dataset=dataset,
                run=run,
                storage_options=store,
                resume=resume,
                take_over=take_over,
                progress=console.progress,
                stop=stop,
                cluster=cluster,
                parent=parent,
                from_optimizer=from_optimizer,
            )
    return train_report(result)


def _setting_options(everyday: tuple[str, ...] | None) -> list[click.Parameter]:
    """Return an option for each preset and setting, without a default: TOML comes first."""
    from dataclasses import fields

    from jobs.training.config import TrainConfig
    from jobs.training.presets import Presets

    settings = (*fields(Presets), *fields(TrainConfig))
    return [_setting_option(setting, everyday) for setting in settings]


def _setting_option(setting: Any, everyday: tuple[str, ...] | None) -> Option:
    from jobs.training.settings import option_name, option_type

    metadata = setting.metadata
    is_rare = metadata.get("added") or setting.name in RARE_SETTINGS
    if everyday is not None:
        is_rare = setting.name not in everyday
    names = [option_name(setting), *ALIASES.get(setting.name, [])]
    default = metadata["default_text"]
    if default is None and setting.default is not None:
        default = str(setting.default).removesuffix(".0")
    type_: Any = Choice(metadata["choices"]) if metadata["choices"] else option_type(setting)
    if metadata["unit"]:
        type_ = Count(metadata["unit"])
    if isinstance(setting.default, bool):
        names = [f"{names[0]}/--no-{names[0][2:]}"]
        default = "on" if setting.default else "off"
        type_ = None
    return Option(
        names,
        section=metadata["section"],
        advanced=is_rare,
        topic=TOPICS.get(setting.name, ""),
        type=type_,
        metavar=METAVARS.get(setting.name),
        default=None,
        show_default=default,
        shell_complete=completion.evaluated_splits if setting.name == "evaluate" else None,
        help=metadata["help"],
    )


def given_settings(
    config_file: str | None, asked: dict[str, Any], without: Collection[str] = ()
) -> dict[str, Any]:
    """Return the settings of the file, overridden by those given as options.

    Those that are `without` effect in the file are left out.
    """
    from jobs.training.config import TrainConfig
    from jobs.training.presets import Presets, flat_settings, read_toml
    from jobs.training.settings import COMMAND_LINE

    from_file = read_toml(Path(config_file)) if config_file else {}
    from_options = options.picked(Presets, asked) | options.picked(TrainConfig, asked)
    settings = flat_settings(from_file, str(config_file))
    kept = {name: value for name, value in settings.items() if name not in without}
    return kept | flat_settings(from_options, COMMAND_LINE)
