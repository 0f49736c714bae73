"""The command of the schedule. Thin: parse, call the scheduler, print."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import click

from jobs.commands.score import score, score_config
from jobs.commands.usage_errors import NearestChoice
from storage.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from subprocess import Popen

    from jobs.scheduling.cron import CronTimes

SHOWN_TIMES = 10


@click.command()
@click.argument("cron", metavar="'CRON'")
@click.argument("job", nargs=-1, type=click.UNPROCESSED, metavar="-- score ...")
@click.option(
    "--timezone", metavar="ZONE", help="Such as Europe/Berlin.  [default: this machine's]"
)
@click.option(
    "--catch-up",
    type=NearestChoice(["once", "none"]),
    default="once",
    show_default=True,
    help="What becomes of runs that were missed.",
)
@click.option(
    "--heartbeat",
    metavar="FILE",
    help="The file that tells that the scheduler lives, and from which a new one goes on.  "
    "[default: in schedules/]",
)
@click.option("--dry-run", is_flag=True, help="Print the next ten times, and start nothing.")
@click.option(
    "--print",
    "kind",
    type=NearestChoice(["cron", "systemd", "kubernetes", "airflow"]),
    help="Print the file for a scheduler that you have already.",
)
@click.option("--to", metavar="DIRECTORY", help="Write what --print prints into files there.")
@click.option(
    "--name", default="mnist-stream", show_default=True, help="What the printed schedule is called."
)
@click.option("--image", help="The container image to print.  [default: mnist-stream:VERSION]")
@click.option(
    "--claim",
    default="mnist-stream",
    show_default=True,
    help="The volume claim to print, which holds the current directory.",
)
@click.option("--log-json", is_flag=True, help="Print a line of JSON for each event instead.")
def schedule(
    cron: str,
    job: tuple[str, ...],
    timezone: str | None,
    catch_up: str,
    heartbeat: str | None,
    dry_run: bool,
    kind: str | None,
    to: str | None,
    name: str,
    image: str | None,
    claim: str,
    log_json: bool,
) -> None:
    """Run a command of pipeline whenever CRON says, in the foreground.

    \b
    pipeline schedule '0 3 * * *' -- score --inbox arrivals --model champion

    CRON has five fields: minute, hour, day of the month, month, day of the week. One job runs at a
    time, in a process of its own. SIGTERM or Ctrl-C lets it end; a second one has it save
    what it has and stop.
    """
    from jobs.commands.logs import json_log

    with json_log(counting=False) if log_json else nullcontext():
        if log_json and (kind is not None or dry_run):
            raise UsageError("--log-json cannot be combined with --print or --dry-run.")
        if kind is not None and dry_run:
            raise UsageError("--dry-run cannot be combined with --print; leave one of them out.")
        _check_job(job)
        from jobs.scheduling.cron import cron_times

        times = cron_times(cron, timezone)
        if kind is not None:
            _print_files(kind, times, job, timezone, catch_up, to, name, image, claim)
            return
        if to is not None:
            raise UsageError("--to goes with --print; pass --print systemd, for example.")
        if dry_run:
            _print_times(times)
            return
        if any("s3://" in word for word in job):
            from storage.s3_options import store_settings

            store_settings({})  # variables that each night would end with
        _run(times, job, catch_up, heartbeat, log_json)


def _check_job(job: tuple[str, ...]) -> None:
    """Refuse now what would fail each night: the command must be one, with options that can be."""
    if not job:
        raise UsageError("No command is given; put it behind --, such as -- score --split test.")
    command = _command(job[0])
    if "--help" not in job[1:] and "-h" not in job[1:]:
        asked = command.make_context(f"pipeline {job[0]}", list(job[1:])).params
        if command is score:
            score_config(asked)


def _print_times(times: "CronTimes") -> None:
    from datetime import UTC, datetime
    from itertools import islice

    from jobs.output import print_line

    for due in islice(times.times_after(datetime.now(UTC)), SHOWN_TIMES):
        local = due.astimezone(times.zone)
        print_line(f"{local.isoformat(sep=' ')}  {local:%a} {times.zone_name}")


def _print_files(
    kind: str,
    times: "CronTimes",
    job: tuple[str, ...],
    timezone: str | None,
    catch_up: str,
    to: str | None,
    name: str,
    image: str | None,
    claim: str,
) -> None:
    import os
    from pathlib import Path

    from jobs.output import print_exactly, print_line
    from jobs.scheduling.printers import PRINTERS, Plan, as_utf8
    from storage.files import file_to_write
    from storage.places import open_location

    plan = Plan(
        times=times,
        arguments=tuple(map(as_utf8, job)),
        name=name,
        catch_up=catch_up == "once",
        zone_given=timezone is not None,
        directory=as_utf8(os.getcwd()),
        image=image,
        claim=claim,
    )
    files = PRINTERS[kind](plan)
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
    times: "CronTimes",
    job: tuple[str, ...],
    catch_up: str,
    heartbeat: str | None,
    log_json: bool,
) -> None:
    from jobs.commands.logs import ScheduleHandler, attached
    from jobs.scheduling.scheduler import Scheduler, heartbeat_at
    from jobs.signals import handle_signals

    beat = heartbeat_at(heartbeat, times, job)
    log = nullcontext() if log_json else attached(ScheduleHandler(times.zone))
    with log, beat.hold():
        launch = _launcher(job, log_json)
        scheduler = Scheduler(times, launch, beat, catch_up=catch_up == "once")
        with handle_signals(lambda number, _: scheduler.ask_to_stop(number)):
            scheduler.run()


def _launcher(job: tuple[str, ...], log_json: bool) -> "Callable[[], Popen[bytes]]":
    """Starts the job. Where stdout is a log of JSON, so is what the job prints there.

    A job that knows no --log-json, or is to print something else, prints on stderr.
    """
    from jobs.scheduling.scheduler import launch_pipeline

    if not log_json or "--log-json" in job:
        return partial(launch_pipeline, job)
    knows = any("--log-json" in option.opts for option in _command(job[0]).params)
    if knows and not {"--json", "--help", "-h"}.intersection(job):
        return partial(launch_pipeline, (job[0], "--log-json", *job[1:]))
    return partial(launch_pipeline, job, stdout=sys.stderr.fileno())


def _command(name: str) -> click.Command:
    """One of the commands that can be scheduled: those beside this one."""
    group = click.get_current_context().find_root().command
    assert isinstance(group, click.Group)
    command = group.commands.get(name)
    if command is None or name == "schedule":
        known = [other for other in group.commands if other != "schedule"]
        hint = did_you_mean(name, known)
        raise UsageError(f"{name!r} cannot be scheduled; expected one of {', '.join(known)}.{hint}")
    return command
