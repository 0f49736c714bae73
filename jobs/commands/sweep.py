"""The command that trains many runs and compares them."""

from typing import TYPE_CHECKING, Any

import click

from jobs.commands import completion, options
from jobs.commands.sections import IntRange, option
from jobs.commands.train import ALIASES, SettingsCommand, given_settings
from jobs.signals import stop_on_signals
from storage.errors import UsageError

if TYPE_CHECKING:
    from jobs.commands.console import Console, Report
    from storage.location import TakeOver

BOOLEANS = {"true": True, "on": True, "false": False, "off": False}


class _SweepCommand(SettingsCommand):
    """A command with the settings of training, of which --help shows those that sweeps need."""

    everyday = ("recipe", "network", "epochs", "learning_rate", "holdout")


@click.command(cls=_SweepCommand)
@option(
    "--grid",
    section="Search",
    multiple=True,
    metavar="NAME=X,Y,...",
    shell_complete=completion.setting_values,
    help="Values of a setting, such as learning_rate=0.003,0.006; repeatable. All combinations are "
    "trained.",
)
@option(
    "--range",
    "ranges",
    section="Search",
    multiple=True,
    metavar="NAME=LOW:HIGH",
    shell_complete=completion.setting_values,
    help="Range of a setting to draw from; repeatable. Learning rates and l2 are drawn by their "
    "logarithm.",
)
@option(
    "--sample",
    section="Search",
    metavar="N",
    type=IntRange(1, 10_000),
    help="Configurations to draw from ranges and grids.",
)
@option(
    "--sample-seed",
    section="Search",
    advanced=True,
    metavar="N",
    default=0,
    type=IntRange(0),
    help="Random seed of the draws.",
)
@option(
    "--seeds",
    section="Search",
    metavar="N",
    default=1,
    type=IntRange(1, 1000),
    help="Seeds of each configuration, from --seed on.",
)
@option(
    "--halving",
    section="Search",
    is_flag=True,
    help="Stop the worse half of the configurations early, after epochs / 2, / 4 and so on.",
)
@option(
    "--out",
    section="Checkpoints",
    metavar="PLACE",
    required=True,
    shell_complete=completion.sweeps,
    help="Path or URL of the sweep.",
)
@options.train_dataset
@options.train_config
@options.log_json
@options.storage
@options.take_over
@options.cluster
@options.output
def sweep(
    console: "Console",
    out: str,
    grid: tuple[str, ...],
    ranges: tuple[str, ...],
    sample: int | None,
    sample_seed: int,
    seeds: int,
    halving: bool,
    dataset: str | None,
    config_file: str | None,
    storage_options: tuple[str, ...],
    take_over: "TakeOver | None",
    **asked: Any,
) -> "Report":
    """Train runs with different settings, and compare them.

    The same command continues an interrupted sweep. Configurations are compared on validation rows,
    never on the test split. On a cluster, each worker trains one run at a time. The exit code is 0
    if any run has finished.
    """
    with stop_on_signals() as stop:
        lists = {name: _values(name, text) for name, text in map(_split, grid)}
        bounds = {name: _bounds(name, text) for name, text in map(_split, ranges)}
        if len(lists) + len(bounds) < len(grid) + len(ranges):
            raise UsageError("A setting has two lists or ranges; leave one out.")
        given = given_settings(config_file, asked, without={*lists, *bounds})
        from jobs.commands.sweep_table import sweep_report
        from jobs.sweeps.job import sweep as run_sweep

        places = () if dataset is None else (dataset, out)
        store = options.store_options(storage_options, *places)
        with options.cluster_of("sweep", asked, stop) as cluster:
            result = run_sweep(
                given,
                out=out,
                grid=lists,
                ranges=bounds,
                sample=sample,
                sample_seed=sample_seed,
                seeds=seeds,
                halving=halving,
                dataset=dataset,
                storage_options=store,
                take_over=take_over,
                progress=console.progress,
                stop=stop,
                cluster=cluster,
            )
    return sweep_report(result)


def _split(text: str) -> tuple[str, str]:
    """Return the setting and the rest of `NAME=REST`."""
    name, equals, rest = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if not equals or not name or not rest.strip():
        raise UsageError(f"{text!r} has no name or no values; expected NAME=VALUES.")
    aliases = {other.removeprefix("--"): known for known, own in ALIASES.items() for other in own}
    return aliases.get(name, name), rest


def _values(name: str, text: str) -> list[Any]:
    return [_value(name, one.strip()) for one in text.split(",")]


def _bounds(name: str, text: str) -> tuple[Any, Any]:
    parts = text.split(":")
    if len(parts) != 2:
        raise UsageError(f"The range of {name} is {text!r}; expected LOW:HIGH.")
    return _value(name, parts[0].strip()), _value(name, parts[1].strip())


def _value(name: str, text: str) -> Any:
    """Return a text as a value of a setting; a text of an unknown setting stays one."""
    from jobs.sweeps.search import SETTINGS
    from jobs.training.settings import TYPE_NAMES, option_type

    if name not in SETTINGS:
        return text
    value_type = option_type(SETTINGS[name])
    try:
        return BOOLEANS[text.lower()] if value_type is bool else value_type(text)
    except (ValueError, KeyError):
        wanted = TYPE_NAMES[value_type]
        raise UsageError(f"{name} is given as {text!r}; expected {wanted}.") from None
