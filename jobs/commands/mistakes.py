"""Wrong usage: what is printed, and which command or option was probably meant."""

from collections.abc import Iterable

import click

from jobs.output import one_line
from storage.errors import did_you_mean

OTHER_NAMES = {
    "--address": ("--scheduler",),
    "--arch": ("--network",),
    "--batch": ("--batch-size",),
    "--bs": ("--batch-size",),
    "--chunk-size": ("--rows-per-chunk",),
    "--codec": ("--compression",),
    "--continue": ("--resume",),
    "--cores": ("--threads",),
    "--cpus": ("--threads",),
    "--cv": ("--holdout",),
    "--data": ("--dataset",),
    "--decay": ("--l2",),
    "--dest": ("--out",),
    "--early-stopping": ("--patience",),
    "--endpoint-url": ("--storage-option",),
    "--folder": ("--inbox",),
    "--force": ("--overwrite",),
    "--hidden": ("--network",),
    "--hidden-layers": ("--network",),
    "--hidden-units": ("--network",),
    "--input": ("--dataset",),
    "--iterations": ("--epochs",),
    "--jobs": ("--threads", "--workers"),
    "--layers": ("--network",),
    "--max-iter": ("--epochs",),
    "--minibatch": ("--batch-size",),
    "--model": ("--network", "--run"),
    "--n-jobs": ("--threads", "--workers"),
    "--neurons": ("--network",),
    "--normalize": ("--scale",),
    "--num-workers": ("--threads", "--workers"),
    "--output": ("--out",),
    "--precision": ("--dtype",),
    "--random-state": ("--seed",),
    "--regularization": ("--l2",),
    "--silent": ("--quiet",),
    "--solver": ("--optimizer",),
    "--threshold": ("--min-accuracy",),
    "--tz": ("--timezone",),
    "--units": ("--network",),
    "--val-split": ("--holdout",),
    "--validation": ("--holdout",),
    "--wd": ("--l2",),
    "--weight-decay": ("--l2",),
    "-b": ("--batch-size",),
    "-c": ("--config", "--checkpoint"),
    "-d": ("--dataset",),
    "-e": ("--epochs",),
    "-f": ("--overwrite",),
    "-i": ("--inbox",),
    "-j": ("--threads", "--workers"),
    "-l": ("--learning-rate", "--list"),
    "-m": ("--model", "--network"),
    "-n": ("--epochs", "--name"),
    "-r": ("--run", "--resume"),
    "-s": ("--seed", "--split"),
    "-t": ("--threads", "--timezone"),
    "-w": ("--workers",),
    "check": ("verify",),
    "convert": ("ingest",),
    "cron": ("schedule",),
    "download": ("ingest",),
    "eval": ("score",),
    "evaluate": ("score",),
    "fit": ("train",),
    "help": ("--help",),
    "history": ("scores",),
    "import": ("ingest",),
    "info": ("inspect",),
    "ls": ("inspect",),
    "predict": ("score",),
    "resume": ("train",),
    "run": ("train",),
    "show": ("inspect",),
    "test": ("score",),
    "validate": ("verify",),
    "version": ("--version",),
}
"""Names that other programs use, and what they are here: the first one that the command has."""
GPU_NAMES = {"--cuda", "--device", "--gpu", "--gpus", "-g"}
GPU_HINT = " mnist-stream computes on CPU cores: see --threads and --workers."


def usage_message(error: click.ClickException) -> str:
    """Return a command's usage and what is wrong with it."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message()
    message = one_line(error.format_message())
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return f"Error: {message}"
    if isinstance(error, click.exceptions.NoSuchOption):
        message = f"{one_line(error.message)}{_hint(error.option_name, context)}"
    elif isinstance(error, click.exceptions.NoSuchCommand):
        message = f"{one_line(error.message)}{_hint(error.command_name, context)}"
    help_command = f"Try '{context.command_path} --help' for help."
    return f"{context.get_usage()}\n{help_command}\n\nError: {message}"


def _hint(name: str, context: click.Context) -> str:
    """Return ` Did you mean 'x'?` for an unknown command or option; empty if nothing is near."""
    if name in GPU_NAMES:
        return GPU_HINT
    known = [*getattr(context.command, "commands", ()), *_option_names(context)]
    meant = [other for other in OTHER_NAMES.get(name, ()) if other in known]
    begun = [other for other in known if other.startswith(name)]
    return did_you_mean([*meant, *begun, name][0], known)


def _option_names(context: click.Context) -> Iterable[str]:
    for parameter in context.command.get_params(context):
        yield from parameter.opts
        yield from parameter.secondary_opts
