"""What click refuses: the message, and the option, command or value that was probably meant."""

import sys
from collections.abc import Iterable
from typing import Any

import click

from jobs.output import one_line, print_aside
from storage.errors import did_you_mean

ELSEWHERE = {
    "--bs": "--batch-size",
    "--early-stopping": "--patience",
    "--force": "--overwrite",
    "--iterations": "--epochs",
    "--layers": "--network",
    "--lr": "--learning-rate",
    "--tz": "--timezone",
    "--val-split": "--holdout",
    "--validation": "--holdout",
    "--wd": "--l2",
    "--weight-decay": "--l2",
    "check": "verify",
    "convert": "ingest",
    "evaluate": "score",
    "fit": "train",
    "info": "inspect",
    "predict": "score",
}
"""What other programs call the same option or command."""
SHOWN = 100
"""Characters of a name that a message shows."""


class NearestChoice(click.Choice[str]):
    """A choice whose message for another value names the nearest one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the choice; raise `click.BadParameter` for anything else."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            hint = did_you_mean(str(value), self.choices)
            self.fail(f"{error.message}{hint}", param, ctx)


def show_usage_error(error: click.ClickException) -> None:
    """Print how the command is used and what is wrong with it, on stderr."""
    if type(error).__name__ == "NoArgsIsHelpError":  # not in older releases of click
        print_aside(error.format_message())
        return
    message = one_line(error.format_message())
    context = error.ctx if isinstance(error, click.UsageError) else None
    lines = []
    if context is not None:
        lines = [context.get_usage(), f"Try '{context.command_path} --help' for help.", ""]
        if isinstance(error, click.NoSuchOption):
            message = one_line(_no_such_option(error.option_name, context))
    print_aside("\n".join([*lines, f"Error: {message}"]))


def check_command(name: str, context: click.Context, known: Iterable[str]) -> None:
    """Raise `click.UsageError` with the nearest command unless `name` is one."""
    known = list(known)
    if name in known or name.startswith("-"):
        return
    hint = did_you_mean(ELSEWHERE.get(name.lower(), name), known)
    expected = f" Expected one of {', '.join(known)}."
    raise click.UsageError(f"There is no command {name[:SHOWN]!r}.{hint or expected}", context)


def _no_such_option(name: str, context: click.Context) -> str:
    """Return the message for an option that the command does not have, with the nearest one."""
    if not name.startswith("--"):  # click takes -lr for -l and -r
        name = next((word for word in sys.argv[1:] if word.startswith(name)), name)
    typed = "--" + name.partition("=")[0].strip("-").lower().replace("_", "-")
    known = [
        option
        for parameter in context.command.get_params(context)
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--")
    ]
    begun = next((option for option in known if option.startswith(typed)), typed)
    hint = did_you_mean(ELSEWHERE.get(typed, begun), known)
    return f"There is no option {name[:SHOWN]!r}.{hint}"
