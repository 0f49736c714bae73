"""The commands of scoring: score, scores, promote. Thin: parse, call a job, print."""

from typing import TYPE_CHECKING, Any

import click

from jobs.choices import DEFAULT_CHECKPOINT, DEFAULT_RUN, DEFAULT_SETTLE
from jobs.commands import options
from jobs.signals import stop_on_signals
from storage.errors import UsageError

if TYPE_CHECKING:
    from jobs.commands.console import Console, Report
    from jobs.scoring.config import ScoreConfig
    from storage.location import TakeOver

CHECKPOINT_HELP = (
    "best (by validation; the latest without one), latest, an epoch's number, or the first digits "
    "of a model's digest."
)


@click.command()
@click.option("--run", help=f"The run's path or URL.  [default: {DEFAULT_RUN}]")
@options.dataset
@click.option(
    "--split",
    "splits",
    multiple=True,
    help="A split to score; give it again for more.  [default: test]",
)
@click.option(
    "--inbox",
    metavar="PLACE",
    help="Score the IDX files and datasets that arrive at a path or URL, each once, by content.",
)
@click.option(
    "--include",
    multiple=True,
    metavar="GLOB",
    help="Score only images and datasets of the inbox whose name matches GLOB (the path, if "
    "GLOB has a slash). May be repeated.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Skip files and directories of the inbox that match GLOB. May be repeated.",
)
@click.option(
    "--settle",
    default=DEFAULT_SETTLE,
    metavar="SECONDS",
    help="Skip files of the inbox modified within the last SECONDS.",
)
@click.option("--checkpoint", help=f"{CHECKPOINT_HELP}  [default: {DEFAULT_CHECKPOINT}]")
@click.option("--model", metavar="NAME", help="A promoted name, which has run and checkpoint.")
@options.models
@click.option(
    "--out",
    metavar="FILE",
    help="Write predictions to a .csv, .parquet or .npz file as well; {split} and {home} in "
    "its name stand for the split and the scoring.",
)
@click.option(
    "--probabilities",
    "all_probabilities",
    is_flag=True,
    help="Write the probabilities of all classes to --out.",
)
@click.option(
    "--min-accuracy",
    type=float,
    metavar="SHARE",
    help="Exit 5 if the accuracy, from 0 to 1, is lower.",
)
@click.option(
    "--max-drop",
    type=float,
    metavar="SHARE",
    help="Exit 5 if the accuracy is lower by more than SHARE than that of the split's last "
    "scoring.",
)
@options.threads
@options.wait
@click.option(
    "--retries",
    default=0,
    type=click.IntRange(0),
    help="Number of retries after a connection failure (exit 6).",
)
@click.option("--retry-wait", default=60.0, metavar="SECONDS", help="Seconds between two retries.")
@click.option("--log-json", is_flag=True, help="Print a line of JSON for each event instead.")
@options.storage
@options.take_over
@options.cluster
@options.output_flags
def score(quiet: bool, as_json: bool, log_json: bool, **asked: Any) -> None:
    """Score splits of a dataset, or an inbox, with a run's model.

    What the same model has scored before is found, and not done again. Each scoring has a line in
    the run's ledger: see `pipeline scores`.
    """
    from jobs.commands.console import Console
    from jobs.commands.logs import attached, json_log

    log = json_log() if log_json else attached(Console(quiet=quiet, as_json=as_json))
    with stop_on_signals() as stop, log as output:
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
    """Return the job that the options of `score` ask for; `UsageError` for what cannot be meant."""
    if asked["log_json"] and asked["as_json"]:
        raise UsageError("--log-json and --json are two ways to print; leave one out.")
    if asked["inbox"] is not None and asked["splits"]:
        raise UsageError("--inbox is scored in place of a dataset's splits; leave out --split.")
    from jobs.scoring.config import ScoreConfig
    from jobs.scoring.gates import Gates

    places = [asked[name] for name in ("run", "dataset", "inbox", "models", "out")]
    if asked["model"] is not None or (asked["dataset"] is None and asked["inbox"] is None):
        places = []  # not all are known here: the name has the run's, and the run the dataset's
    changed = {
        "splits": asked["splits"] or ("test",),
        "gates": Gates(asked["min_accuracy"], asked["max_drop"]),
        "storage_options": options.store_options(asked["storage_options"], *places),
    }
    return ScoreConfig(**options.picked(ScoreConfig, asked) | changed)


@click.command()
@click.argument("run", default=DEFAULT_RUN)
@click.option(
    "--since", metavar="WHEN", help="Leave out what is older: 12h, 7d, or a date or time."
)
@click.option("--failed", is_flag=True, help="Only what was bad, or missed a gate.")
@options.storage
@options.output
def scores(
    console: "Console",
    run: str,
    since: str | None,
    failed: bool,
    storage_options: tuple[str, ...],
) -> "Report":
    """Show the ledger of RUN: what was scored, when, with which model.

    RUN is runs/mnist unless told otherwise.
    """
    from jobs.commands.score_reports import ledger_report

    report = ledger_report(options.location_of(run, storage_options), since, failed)
    for warning in report.document["warnings"]:
        console.warn(warning)
    return report


@click.command()
@click.argument("run", default=DEFAULT_RUN)
@click.option("--as", "name", metavar="NAME", help="The name to give, such as champion.")
@click.option("--checkpoint", default="best", help=CHECKPOINT_HELP)
@options.models
@click.option(
    "--min-accuracy",
    type=float,
    metavar="SHARE",
    help="Promote only a model whose accuracy, from 0 to 1, is at least this.",
)
@click.option(
    "--not-worse-than",
    metavar="NAME",
    help="Promote only a model whose accuracy is at least that of another name's.",
)
@options.dataset
@click.option("--split", default="test", help="The split that the gates are judged on.")
@options.threads
@options.wait
@click.option("--undo", is_flag=True, help="Give the name back to the model that had it before.")
@click.option("--list", "listing", is_flag=True, help="List the names and their models.")
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
    """Give a checkpoint of RUN a name, for `pipeline score --model`.

    RUN is runs/mnist unless told otherwise. The checkpoint is kept from then on. Where a gate is
    missed (exit 5) the name stays where it is.
    """
    from jobs.commands.score_reports import names_report, promote_report
    from jobs.scoring import promote as job
    from storage.places import open_location

    # Without --dataset its place may be one that the run records.
    places = () if asked["dataset"] is None else (asked["run"], models, asked["dataset"])
    store = options.store_options(storage_options, *places)
    if listing:
        return names_report(job.list_names(open_location(models, store)), models)
    if name is None:
        raise UsageError("No name is given; pass --as, such as --as champion.")
    if undo:
        return promote_report(job.undo(open_location(models, store), name, take_over))
    config = job.PromoteConfig(
        **options.picked(job.PromoteConfig, asked),
        name=name,
        models=models,
        storage_options=store,
        take_over=take_over,
    )
    with stop_on_signals() as stop:
        return promote_report(job.promote(config, progress=console.progress, stop=stop))
