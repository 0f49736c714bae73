"""The command that trains a run again and compares the bits."""

import re
from typing import TYPE_CHECKING, Any

import click

from jobs.choices import DEFAULT_RUN
from jobs.commands import completion, options
from jobs.commands.sections import Command, option
from jobs.signals import stop_on_signals
from storage.errors import UsageError

if TYPE_CHECKING:
    from jobs.commands.console import Console, Report
    from jobs.training.reproduce import Reproduction

RANGE = re.compile(r"([0-9]{1,7})(-([0-9]{1,7})?)?", re.ASCII)


@click.command(cls=Command)
@click.argument("run", default=DEFAULT_RUN, shell_complete=completion.runs)
@option(
    "--epochs",
    section="Data",
    metavar="A-B",
    show_default="all that the run has",
    help="Epochs to train again, such as 3-5, 8 or 8-. The run must keep the checkpoint of the "
    "epoch before A, or A be 1.",
)
@options.dataset
@options.threads
@options.log_json
@options.storage
@options.cluster
@options.output
def reproduce(
    console: "Console",
    run: str,
    epochs: str | None,
    dataset: str | None,
    threads: int,
    storage_options: tuple[str, ...],
    **asked: Any,
) -> "Report | None":
    """Train a run again and compare every epoch, bit for bit.

    RUN is the path or URL of a run, by default runs/mnist. Its metrics and checkpoints are compared
    with those of a second training in memory; a difference ends with exit code 5. The run is only
    read, also while it is in training.
    """
    first, last = epoch_range(epochs)
    with stop_on_signals() as stop:
        from jobs.training.reproduce import reproduce as run_again

        # Without --dataset, the run may record a dataset in a store.
        places = () if dataset is None else (dataset, run)
        store = options.store_options(storage_options, *places)
        with options.cluster_of("reproduce", asked, stop) as cluster:
            result = run_again(
                run,
                first=first,
                last=last,
                dataset=dataset,
                threads=threads,
                storage_options=store,
                progress=console.progress,
                stop=stop,
                cluster=cluster,
            )
    report = reproduction_report(result)
    if not result.is_same:
        console.result(report)
        result.check()
    return report


def epoch_range(text: str | None) -> tuple[int, int | None]:
    """Return the first and the last epoch of `A-B`, `A` or `A-`; None for the run's last one."""
    if text is None:
        return 1, None
    match = RANGE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"--epochs is {text!r}; expected a range such as 3-5, one epoch such as 8, or 8- for "
            "all from there."
        )
    first = int(match[1])
    if match[2] is None:
        return first, first
    return first, None if match[3] is None else int(match[3])


def reproduction_report(result: "Reproduction") -> "Report":
    """Report a reproduction; what differs is left to the error."""
    from jobs.commands.console import Report
    from jobs.commands.tables import facts

    last = result.epochs[-1].metrics
    document = {
        "run": str(result.run.location),
        "same": result.is_same,
        "epochs": [{**epoch.metrics, "differences": epoch.differences} for epoch in result.epochs],
        "first": result.first,
        "last": result.last,
        "recorded_epochs": result.recorded,
        "environment_changes": result.environment_changes or None,
    }
    text = f"{result.summary[0].upper()}{result.summary[1:]}" if result.is_same else ""
    digests = [("model", last["parameters_digest"]), ("order", last["order_digest"])]
    return Report(document, text, text, facts(digests))
