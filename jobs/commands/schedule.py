"""The command `schedule`: runs another command on a cron schedule, or prints a configuration."""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.commands import completion
from jobs.commands.score import score, score_config
from jobs.commands.sections import Choice, Command, option
from storage.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from subprocess import Popen

    from jobs.scheduling.cron import CronTimes

SHOWN_TIMES = 10


@click.command(cls=Command)
@click.argument("cron", metavar="'CRON'")
@click.argument(
    "job",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="-- COMMAND ...",
    shell_complete=completion.scheduled_command,
)
@option(
    "--timezone",
    section="Schedule",
    metavar="ZONE",
    show_default="this machine's",
    shell_complete=completion.time_zones,
    help="Time zone of CRON, such as Europe/Berlin.",
)
@option(
    "--catch-up",
    section="Schedule",
    type=Choice(["once", "none"]),
    default="once",
    help="Whether missed runs are made up once or skipped.",
)
@option(
    "--heartbeat",
    section="Schedule",
    metavar="FILE",
    show_default="in schedules/",
    shell_complete=completion.files,
    help="File that is rewritten every 15 s; a restarted scheduler continues from it.",
)
@option(
    "--dry-run",
    section="Schedule",
    is_flag=True,
    help="Print the next ten times and exit.",
)
@option("--log-json", is_flag=True, help="Print a line of JSON for each event instead.")
@option(
    "--metrics-file",
    metavar="FILE.prom",
    shell_complete=completion.files,
    help="Write metrics for node_exporter's textfile collector after each run.",
)
@option(
    "--print",
    "scheduler",
    section="Other schedulers",
    type=Choice(["cron", "systemd", "kubernetes", "airflow"]),
    help="Print a configuration for your own scheduler.",
)
@option(
    "--to",
    section="Other schedulers",
    metavar="DIRECTORY",
    shell_complete=completion.directories,
    help="Write the configuration to files in DIRECTORY.",
)
@option(
    "--name",
    section="Other schedulers",
    default="mnist-stream",
    metavar="NAME",
    help="Name of the schedule.",
)
@option(
    "--image",
    section="Other schedulers",
    metavar="IMAGE",
    show_default="mnist-stream:VERSION",
    help="Container image, for Kubernetes.",
)
@option(
    "--claim",
    section="Other schedulers",
    default="mnist-stream",
    metavar="NAME",
    help="Kubernetes volume claim that holds the current directory.",
)
def schedule(
    cron: str,
    job: tuple[str, ...],
    timezone: str | None,
    catch_up: str,
    heartbeat: str | None,
    scheduler: str | None,
    to: str | None,
    dry_run: bool,
    log_json: bool,
    metrics_file: str | None,
    **asked: Any,
) -> None:
    """Run a pipeline command on a cron schedule.

    \b
    pipeline schedule '0 3 * * *' -- score --inbox arrivals --model champion

    CRON has five fields: minute, hour, day of month, month, day of week. The scheduler stays in the
    foreground and runs one job at a time. SIGTERM or Ctrl-C lets a running job finish; a second one
    stops it, with its progress saved.
    """
    from jobs.commands.logs import json_log

    with json_log(counting=False) if log_json else nullcontext():
        if log_json and (scheduler is not None or dry_run):
            raise UsageError("--log-json cannot be combined with --print or --dry-run.")
        if metrics_file is not None and (scheduler is not None or dry_run):
            raise UsageError(
                "--metrics-file cannot be combined with --print or --dry-run. To write the "
                "metrics of train or score, give it after the command."
            )
        if scheduler is not None and dry_run:
            raise UsageError("--dry-run cannot be combined with --print; leave one of them out.")
        if to is not None and scheduler is None:
            raise UsageError("--to needs --print, such as --print systemd.")
        _check_job(job)
        from jobs.scheduling.cron import cron_times

        times = cron_times(cron, timezone)
        if scheduler is not None:
            plan = {"catch_up": catch_up == "once", "zone_given": timezone is not None} | asked
            _print_files(scheduler, times, job, to, plan)
        elif dry_run:
            _print_times(times)
        else:
            from jobs.commands.metrics_file import schedule_metrics

            with schedule_metrics(metrics_file):
                _run(times, job, log_json, catch_up == "once", heartbeat)


def _check_job(job: tuple[str, ...]) -> None:
    """Raise an error for a command line that would fail at every run."""
    if not job:
        raise UsageError("No command is given; add one after --, such as -- score --split test.")
    command = _command(job[0])
    if not {"--help", "--help-all", "-h"}.intersection(job[1:]):
        asked = command.make_context(f"pipeline {job[0]}", list(job[1:])).params
        if command is score:
            score_config(asked)


def _print_times(times: "CronTimes") -> None:
    from jobs.output import print_line
    from storage.events import local_time

    for due in islice(times.times_after(datetime.now(UTC)), SHOWN_TIMES):
        weekday = due.astimezone(times.zone).strftime("%a")
        print_line(f"{local_time(due, times.zone)}  {weekday} {times.zone_name}")


def _print_files(
    scheduler: str, times: "CronTimes", job: tuple[str, ...], to: str | None, plan: dict[str, Any]
) -> None:
    from jobs.output import print_exactly, print_line
    from jobs.scheduling.printers import PRINTERS, Plan
    from storage.files import file_to_write
    from storage.places import open_location

    # Decode as UTF-8 in every locale.
    directory, *words = (os.fsencode(text).decode() for text in (os.getcwd(), *job))
    files = PRINTERS[scheduler](Plan(times, tuple(words), directory, **plan))
    if to is None:
        print_exactly("\n".join(files.values()).rstrip("\n"))
        return
    place = open_location(to)
    for file_name in files:
        file_to_write(Path(str(place), file_name), "The file to write")
    for file_name, text in files.items():
        place.put(file_name, text.encode())
        print_line(f"{place}/{file_name}")


def _run(
    times: "CronTimes", job: tuple[str, ...], log_json: bool, catch_up: bool, heartbeat: str | None
) -> None:
    from jobs.commands.logs import ScheduleHandler, attached
    from jobs.scheduling.scheduler import Scheduler, heartbeat_at
    from jobs.signals import handle_signals

    if any("s3://" in word for word in job):
        from storage.s3_options import store_settings

        store_settings({})  # raises an error for variables that would fail at every run
    beat = heartbeat_at(heartbeat, times, job)
    log = nullcontext() if log_json else attached(ScheduleHandler(times.zone))
    with log, beat.hold():
        scheduler = Scheduler(times, _launcher(job, log_json), beat, catch_up=catch_up)
        handle_signals(lambda number, _: scheduler.ask_to_stop(number))
        scheduler.run()


def _launcher(job: tuple[str, ...], log_json: bool) -> "Callable[[], Popen[bytes]]":
    """Return a function that starts the job.

    With a JSON log on stdout, the job logs in JSON too. A job without --log-json, or with --json,
    prints to stderr.
    """
    from jobs.scheduling.scheduler import launch_pipeline

    if not log_json or "--log-json" in job:
        return partial(launch_pipeline, job)
    knows = any("--log-json" in option.opts for option in _command(job[0]).params)
    if knows and not {"--json", "--help", "--help-all", "-h"}.intersection(job):
        return partial(launch_pipeline, (job[0], "--log-json", *job[1:]))
    return partial(launch_pipeline, job, stdout=sys.stderr.fileno())


def _command(name: str) -> click.Command:
    """Return a command, any but schedule; raise `UsageError` for other names."""
    group = click.get_current_context().find_root().command
    assert isinstance(group, click.Group)
    known = {other: command for other, command in group.commands.items() if other != "schedule"}
    if name not in known:
        hint = did_you_mean(name, known)
        if name == "pipeline":
            hint = " Leave out the word 'pipeline'."
        elif not name.isalpha():
            hint = " Quote the five fields of the schedule, and put -- before the command."
        raise UsageError(f"{name!r} cannot be scheduled; expected one of {', '.join(known)}.{hint}")
    return known[name]
