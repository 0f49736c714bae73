"""The commands of scoring: score, scores, promote."""

from typing import TYPE_CHECKING, Any

import click

from jobs.choices import DEFAULT_BELOW, DEFAULT_RUN, DEFAULT_SETTLE
from jobs.commands import completion, options
from jobs.commands.sections import Command, IntRange, option
from jobs.signals import stop_on_signals
from storage.errors import UsageError

if TYPE_CHECKING:
    from jobs.commands.console import Console, Report
    from jobs.scoring.config import ScoreConfig
    from storage.location import TakeOver


@click.command(cls=Command)
@options.dataset
@option(
    "--split",
    "splits",
    section="Data",
    multiple=True,
    metavar="NAME",
    show_default="test",
    shell_complete=completion.splits,
    help="Split to score; repeatable.",
)
@option(
    "--inbox",
    section="Data",
    metavar="PLACE",
    shell_complete=completion.directories,
    help="Score each new file, folder of pictures and dataset below a path or URL once.",
)
@option(
    "--include",
    section="Data",
    advanced=True,
    multiple=True,
    metavar="GLOB",
    help="Score only files of the inbox whose name, or path, matches; repeatable.",
)
@option(
    "--exclude",
    section="Data",
    advanced=True,
    multiple=True,
    metavar="GLOB",
    help="Skip matching files and directories of the inbox; repeatable.",
)
@option(
    "--settle",
    section="Data",
    advanced=True,
    default=DEFAULT_SETTLE,
    show_default=f"{DEFAULT_SETTLE:g}",
    metavar="SECONDS",
    help="Skip inbox files modified within the last SECONDS.",
)
@options.model
@options.threads
@option(
    "--min-accuracy",
    section="Gates",
    type=float,
    metavar="SHARE",
    help="Exit 5 if the accuracy, from 0 to 1, is lower.",
)
@option(
    "--max-drop",
    section="Gates",
    type=float,
    metavar="SHARE",
    help="Exit 5 if the accuracy fell by more than SHARE since the last scoring of the split.",
)
@option(
    "--max-drift",
    section="Gates",
    type=float,
    metavar="X",
    help="Exit 5 if the rows, labelled or not, are further from training; 3 is a good limit.",
)
@option(
    "--out",
    "-o",
    metavar="FILE",
    shell_complete=completion.files,
    help="Also write predictions to a .csv, .parquet or .npz file; {split}, {home} and {file} in "
    "its name are replaced by the split, the scoring's name and the inbox's file.",
)
@option(
    "--probabilities",
    "all_probabilities",
    is_flag=True,
    help="Add the probability of every class to --out.",
)
@option(
    "--columns",
    metavar="NAMES",
    show_default="row,predicted,probability, and true,correct with labels",
    help="Columns of --out, separated by commas; also p_CLASS, the probability of a class, file "
    "for an inbox, and for Kaggle ImageId and Label.",
)
@option(
    "--review",
    metavar="FILE",
    shell_complete=completion.files,
    help="Write the least certain rows to a .csv or .html file.",
)
@option(
    "--below",
    advanced=True,
    type=float,
    metavar="SHARE",
    show_default=f"{DEFAULT_BELOW:g}",
    help="Largest probability below which a row is in --review.",
)
@options.log_json
@options.metrics_file
@options.wait
@option(
    "--retries",
    section="Retries",
    default=0,
    type=IntRange(0),
    metavar="N",
    help="Number of retries after a connection failure (exit 6).",
)
@option(
    "--retry-wait",
    section="Retries",
    default=60.0,
    show_default="60",
    metavar="SECONDS",
    help="Pause before each retry.",
)
@options.storage
@options.take_over
@options.cluster
@options.output_flags
def score(quiet: bool, verbose: bool, as_json: bool, log_json: bool, **asked: Any) -> None:
    """Predict every row with a trained model and report accuracy.

    Probabilities and metrics are written below the run, and listed by pipeline scores. Rows
    scored before are not scored again. Several runs are averaged.
    """
    from jobs.commands.metrics_file import metrics_written

    log = options.console_of(log_json, as_json=as_json, quiet=quiet, verbose=verbose)
    metrics = metrics_written("score", asked["metrics_file"])
    with metrics, stop_on_signals() as stop, log as output:
        from jobs.commands.score_reports import batch_report

        config = score_config(click.get_current_context().params)
        from jobs.scoring.job import run_batch

        with options.cluster_of("score", asked, stop) as cluster:
            batch = run_batch(config, progress=output.progress, stop=stop, cluster=cluster)
        one_split = config.inbox is None and len(set(config.splits)) == 1
        if batch.results or not one_split:
            output.result(batch_report(batch, one_split=one_split))
        if batch.error is not None:
            raise batch.error


def score_config(asked: dict[str, Any]) -> "ScoreConfig":
    """Return the configuration of a job; raise `UsageError` for options that exclude each other."""
    if asked["log_json"] and asked["as_json"]:
        raise UsageError("--log-json cannot be combined with --json; leave one of them out.")
    if asked["inbox"] is not None and asked["splits"]:
        raise UsageError("--split cannot be combined with --inbox; leave one of them out.")
    from jobs.scoring.config import ScoreConfig
    from jobs.scoring.gates import Gates

    names = ("sweep", "dataset", "inbox", "models", "out", "review")
    places = [*asked["run"], *(asked[name] for name in names)]
    if asked["model"] is not None or (asked["dataset"] is None and asked["inbox"] is None):
        places = []  # a promoted name records the run's place, and a run the dataset's
    store = options.store_options(asked["storage_options"], *places)
    changed = {
        "run": options.chosen_runs(asked, store),
        "splits": asked["splits"] or ("test",),
        "columns": () if asked["columns"] is None else tuple(asked["columns"].split(",")),
        "gates": Gates(asked["min_accuracy"], asked["max_drop"], asked["max_drift"]),
        "storage_options": store,
    }
    return ScoreConfig(**options.picked(ScoreConfig, asked) | changed)


@click.command(cls=Command)
@click.argument("run", default=DEFAULT_RUN, shell_complete=completion.runs)
@option(
    "--since",
    section="Data",
    metavar="WHEN",
    help="Only scorings since a date or time, or in the last 12h or 7d.",
)
@option(
    "--failed",
    section="Data",
    is_flag=True,
    help="Only failures and scorings below a gate.",
)
@options.storage
@options.output
def scores(
    console: "Console",
    run: str,
    since: str | None,
    failed: bool,
    storage_options: tuple[str, ...],
) -> "Report":
    """List all scorings with their times and models.

    RUN is the path or URL of a run, by default runs/mnist.
    """
    from jobs.commands.ledger_report import ledger_report

    report = ledger_report(options.location_of(run, storage_options), since, failed)
    for warning in report.document["warnings"]:
        console.warn(warning)
    return report


@click.command(cls=Command)
@click.argument("run", nargs=-1, shell_complete=completion.runs)
@option(
    "--as",
    "name",
    section="Model",
    metavar="NAME",
    shell_complete=completion.model_names,
    help="Name to give, such as champion.",
)
@options.sweep
@options.checkpoint
@options.average_shifts
@option(
    "--undo",
    section="Model",
    is_flag=True,
    help="Return the name to the previous model.",
)
@option("--list", "listing", section="Model", is_flag=True, help="List all names.")
@options.models
@options.threads
@option(
    "--min-accuracy",
    section="Gates",
    type=float,
    metavar="SHARE",
    help="Promote only if the accuracy, from 0 to 1, is at least SHARE.",
)
@option(
    "--not-worse-than",
    section="Gates",
    metavar="NAME",
    shell_complete=completion.model_names,
    help="Promote only if the accuracy is at least that of the model named NAME.",
)
@options.dataset
@option(
    "--split",
    section="Data",
    default="test",
    metavar="NAME",
    shell_complete=completion.splits,
    help="Split on which the gates measure accuracy.",
)
@options.wait
@options.storage
@options.take_over
@options.output
def promote(
    console: "Console",
    name: str | None,
    models: str,
    undo: bool,
    listing: bool,
    storage_options: tuple[str, ...],
    take_over: "TakeOver | None",
    **asked: Any,
) -> "Report":
    """Give a trained model a name for `score --model`.

    RUN is the path or URL of a run, by default runs/mnist; several runs are averaged. A model below
    a gate is not promoted (exit 5). The checkpoints of a promoted model are never deleted.
    """
    from jobs.commands.name_reports import names_report, promote_report
    from jobs.scoring import promote as job
    from storage.places import open_location

    # Without --dataset, the run may record a dataset in a store.
    places = () if asked["dataset"] is None else (*asked["run"], models, asked["dataset"])
    store = options.store_options(storage_options, *places)
    place = open_location(models, store)
    if listing:
        return names_report(job.list_names(place), models)
    if name is None:
        raise UsageError("No name is given; pass --as, such as --as champion.")
    if undo:
        return promote_report(job.undo(place, name, take_over), place)
    runs = options.chosen_runs(asked, store) or DEFAULT_RUN
    config = job.PromoteConfig(
        **options.picked(job.PromoteConfig, asked) | {"run": runs},
        name=name,
        models=models,
        storage_options=store,
        take_over=take_over,
    )
    with stop_on_signals() as stop:
        return promote_report(job.promote(config, progress=console.progress, stop=stop), place)
