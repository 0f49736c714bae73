"""Configuration files for other schedulers: cron, systemd, Kubernetes, Airflow.

Each runs the command by its absolute path in the current directory, so relative paths keep their
meaning. Where the other scheduler supports it, only one job runs at a time; the locks of
`pipeline score` protect the rest.
"""

import json
import re
import shlex
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import yaml

from jobs.output import printable
from jobs.scheduling.cron import LOCAL, CronTimes
from jobs.scheduling.scheduler import this_pipeline
from storage.errors import UsageError

WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
STOP_SECONDS = 300
"""Seconds that a stopped job has to save its progress."""
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")
"""Names that Kubernetes, the strictest of the four, accepts for a CronJob."""
LAYOUT_CATEGORIES = ("Cc", "Zl", "Zp")
"""Unicode categories of control characters and separators of lines and paragraphs."""
CRONTAB_LINE = 998
"""Length of the longest line, in bytes, that cron reads completely."""
PLAIN_FIELD = re.compile(r"({0})(,({0}))*".format(r"\*(/\d\d?)?|\d\d?(-\d\d?(/\d\d?)?)?"), re.ASCII)
"""A field that all schedulers interpret alike; not all support `5/15` and names."""
IMAGE_PIPELINE = "/opt/mnist-stream/bin/pipeline"
"""The path at which `deploy/Dockerfile` installs the command."""
AIRFLOW_FILES = (".sh", ".bash")
"""Airflow's BashOperator interprets text with these endings as a template file's name."""
SAFE = re.compile(r"[\w@%+=:,./{}-]+", re.ASCII)
"""Words that systemd reads unquoted."""


@dataclass(frozen=True)
class Plan:
    """The command to run, its schedule and its working directory."""

    times: CronTimes
    arguments: tuple[str, ...]
    """Arguments of `pipeline`, such as `score`, `--inbox`, `arrivals`."""
    directory: str
    catch_up: bool
    zone_given: bool
    """Whether the user gave the time zone; else the other scheduler's default applies."""
    name: str
    image: str | None
    """The container image with `pipeline`, for Kubernetes; by default this release's."""
    claim: str
    """The volume claim that holds the directory, for Kubernetes."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for a name or directory that not every scheduler accepts."""
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"--name is {self.name!r}; expected at most 52 lowercase letters, digits and "
                "dashes, such as nightly-scores."
            )
        if _has_layout(self.directory):
            raise UsageError(
                f"The current directory is {self.directory!r}; a schedule cannot contain line "
                "breaks or control characters. Rename the directory."
            )

    @property
    def command(self) -> list[str]:
        """The absolute command and its arguments."""
        script = Path(sys.executable).with_name("pipeline")
        return [*([str(script)] if script.exists() else this_pipeline()), *self.arguments]

    @property
    def deadline_seconds(self) -> int:
        """How late a run may start; with `catch_up`, until the next one is due."""
        first, second = self.times.between(datetime.now(UTC), datetime.max.replace(tzinfo=UTC), 2)
        apart = int((second - first).total_seconds())
        return max(60, min(apart, 86_400)) if self.catch_up else 60


def _cron(plan: Plan) -> dict[str, str]:
    """Return a table for crontab(1)."""
    if any(map(_has_layout, plan.arguments)):
        raise UsageError(
            "An argument contains a line break or a control character, which a crontab cannot "
            "contain. Leave it out, or print another scheduler's configuration."
        )
    command = _cron_escaped(shlex.join(plan.command))
    directory = _cron_escaped(shlex.quote(plan.directory))
    lines = [
        f"# {plan.name}: install with `crontab FILE`, or add the lines with `crontab -e`.",
        "# If the previous job is still running, the new one exits with code 4.",
        "# cron does not make up missed runs.",
        "# It mails all output of a job; for errors only, add >/dev/null to the last line.",
        "# Fill in an address and remove its number sign:",
        "#MAILTO=you@example.org",
        "SHELL=/bin/sh",
    ]
    if plan.zone_given:
        lines.append("# CRON_TZ works in cronie; Debian's cron uses the machine's time zone.")
        lines.append(f"CRON_TZ={plan.times.zone_name}")
    line = f"{_cron_expression(plan)} cd {directory} && exec {command}"
    if len(line.encode()) > CRONTAB_LINE:
        raise UsageError(
            f"The crontab line has {len(line.encode()):,} bytes; cron reads at most "
            f"{CRONTAB_LINE}. Use shorter names, or print another scheduler's configuration."
        )
    return {f"{plan.name}.crontab": "\n".join([*lines, line]) + "\n"}


def _cron_escaped(text: str) -> str:
    """Escape backslashes, and percent signs, which would end the command."""
    return text.replace("\\", "\\\\").replace("%", "\\%")


def _systemd(plan: Plan) -> dict[str, str]:
    """Return a service and its timer, for `systemctl --user` or the system."""
    path = plan.directory
    if path.endswith("\\") or path != path.strip():
        raise UsageError(
            f"The current directory is {path!r}; systemd cannot represent a path that ends in a "
            "space or a backslash. Rename the directory."
        )
    service = f"""\
# {plan.name}.service: copy it and {plan.name}.timer to ~/.config/systemd/user/, then run
# systemctl --user daemon-reload && systemctl --user enable --now {plan.name}.timer
[Unit]
Description=mnist-stream: pipeline {plan.arguments[0]}
# To be notified of a failure, fill in a unit that sends a message and remove the number sign:
#OnFailure=notify@%N.service

[Service]
Type=oneshot
WorkingDirectory={path.replace("%", "%%")}
ExecStart={" ".join(map(_systemd_quoted, plan.command))}
# On SIGTERM the job saves its progress, and the next run continues from it.
KillMode=mixed
TimeoutStopSec={STOP_SECONDS}
"""
    calendars = "\n".join(f"OnCalendar={calendar}" for calendar in _calendars(plan))
    timer = f"""\
# {plan.name}.timer: systemd does not start a second instance of a running service.
[Unit]
Description=mnist-stream: {plan.times.expression}

[Timer]
{calendars}
AccuracySec=1s
Persistent={str(plan.catch_up).lower()}

[Install]
WantedBy=timers.target
"""
    return {f"{plan.name}.service": service, f"{plan.name}.timer": timer}


def _calendars(plan: Plan) -> list[str]:
    """Return the schedule in the syntax of systemd.time(7).

    If either the day or the weekday must match, that takes two calendars.
    """
    times = plan.times
    minutes, hours, days, months, weekdays = times.fields
    clock = f"{_listed(hours, 24)}:{_listed(minutes, 60)}:00"
    zone = f" {times.zone_name}" if plan.zone_given else ""
    date = "*" if times.every_day else _listed(days, 31)
    week = ",".join(WEEKDAYS[day] for day in weekdays) + " "
    if times.any_weekday or times.every_day:
        week = ""
    month = _listed(months, 12)
    if times.both_days or times.every_day:
        return [f"{week}*-{month}-{date} {clock}{zone}"]
    return [f"*-{month}-{date} {clock}{zone}", f"{week}*-{month}-* {clock}{zone}"]


def _listed(values: Sequence[int], every: int) -> str:
    return "*" if len(values) == every else ",".join(f"{value:02}" for value in values)


def _systemd_quoted(word: str) -> str:
    """Quote a word of a command line for systemd.service(5)."""
    if SAFE.fullmatch(word):
        return word.replace("%", "%%")
    return f'"{"".join(map(_systemd_escaped, word))}"'


def _systemd_escaped(character: str) -> str:
    if character in "%$":
        return 2 * character
    if character in '"\\' or _has_layout(character):
        code = ord(character)
        return f"\\x{code:02x}" if code < 128 else f"\\u{code:04x}"
    return character


def _kubernetes(plan: Plan) -> dict[str, str]:
    """Return a CronJob of batch/v1."""
    zone = f"\n  timeZone: {_yaml(plan.times.zone_name)}" if plan.zone_given else ""
    # Kubernetes replaces `$(NAME)` by a variable, and `$$` by `$`.
    arguments = ", ".join(_yaml(word.replace("$", "$$")) for word in plan.arguments)
    directory = _yaml(plan.directory)
    text = f"""\
# kubectl apply -f {plan.name}.yaml
# The volume must contain the files of {printable(plan.directory)}.
# Build the image from deploy/Dockerfile, or install the command at the same path.
# An evicted pod is restarted and continues; permanent errors are not retried. A job that failed
# for good, also after the retries of backoffLimit, has an event:
#   kubectl get events --field-selector type=Warning,involvedObject.kind=Job
# With kube-state-metrics, Prometheus can raise an alert:
#   expr: kube_job_failed{{condition="true", job_name=~"{plan.name}-[0-9]+"}} > 0
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {_yaml(plan.name)}
spec:
  schedule: {_yaml(_plain_expression(plan))}{zone}
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: {plan.deadline_seconds}
  successfulJobsHistoryLimit: 3
  failedJobsHistoryLimit: 3
  jobTemplate:
    spec:
      backoffLimit: 3
      podFailurePolicy:
        rules:
        - action: FailJob
          onExitCodes:
            containerName: pipeline
            operator: In
            values: [1, 2, 3, 5]
      template:
        spec:
          restartPolicy: Never
          terminationGracePeriodSeconds: {STOP_SECONDS}
          containers:
          - name: pipeline
            image: {_yaml(plan.image or f"mnist-stream:{version('mnist-stream')}")}
            command: [{IMAGE_PIPELINE}]
            args: [{arguments}]
            workingDir: {directory}
            volumeMounts:
            - name: work
              mountPath: {directory}
          volumes:
          - name: work
            persistentVolumeClaim:
              claimName: {_yaml(plan.claim)}
"""
    return {f"{plan.name}.yaml": text}


def _yaml(text: str) -> str:
    """Quote text so that YAML 1.1 and 1.2 both read it as a string."""
    return str(yaml.safe_dump(text, default_style='"', width=sys.maxsize)).rstrip("\n")


def _airflow(plan: Plan) -> dict[str, str]:
    """Return a DAG with one task, for Airflow 2.4 and later."""
    zone = plan.times.zone_name
    if zone == LOCAL:
        raise UsageError(
            "The name of this machine's time zone is unknown, and Airflow requires it. Pass "
            "--timezone, such as --timezone Europe/Berlin."
        )
    text = f'''\
"""{plan.name}: {plan.times.expression}, written by `pipeline schedule --print airflow`."""

from datetime import timedelta

import pendulum
from airflow import DAG

try:
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:  # Airflow 2
    from airflow.operators.bash import BashOperator

with DAG(
    dag_id={plan.name!r},
    schedule={_plain_expression(plan)!r},
    start_date=pendulum.datetime(2024, 1, 1, tz={zone!r}),
    catchup=False,  # of several missed runs, only the last is made up
    max_active_runs=1,
    dagrun_timeout=timedelta(days=1),
    # To be notified of a failure, fill in a function or a notifier and remove the number sign:
    # on_failure_callback=notify,
):
    BashOperator(
        task_id="pipeline",
        bash_command={_airflow_text(shlex.join(plan.command))!r},
        cwd={_airflow_text(plan.directory)!r},
        append_env=True,
        retries=0,  # the command has its own --retries
    )
'''
    return {f"{plan.name.replace('-', '_')}.py": text}


def _airflow_text(text: str) -> str:
    """Return text for an operator's field, where Airflow expands Jinja templates and file names.

    If that would change the text, return a template with the text as a string literal. JSON's
    escapes are also Jinja's, except for characters outside ASCII, which need none.
    """
    if re.search(r"[{\r\n]", text) or text.endswith(AIRFLOW_FILES):
        return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"
    return text


PRINTERS: dict[str, Callable[[Plan], dict[str, str]]] = {
    "cron": _cron,
    "systemd": _systemd,
    "kubernetes": _kubernetes,
    "airflow": _airflow,
}
"""For each scheduler, a function that returns the text of each file by its name."""


def _has_layout(text: str) -> bool:
    return any(unicodedata.category(character) in LAYOUT_CATEGORIES for character in text)


def _cron_expression(plan: Plan) -> str:
    """Return the expression in five fields that every cron accepts, with the same times."""
    texts = plan.times.expression.split()
    return " ".join(map(_plain_field, texts, plan.times.fields))


def _plain_expression(plan: Plan) -> str:
    """Return an expression that every scheduler interprets alike; raise `UsageError` otherwise.

    Kubernetes does not accept 7 for Sunday. If a day field begins with `*` but is restricted, such
    as `*/2`, cron requires both day fields to match. The other schedulers require only one.
    """
    times = plan.times
    minutes, hours, days, months, weekdays = _cron_expression(plan).split()
    if times.every_day:
        days = weekdays = "*"
    elif times.both_days and not times.any_day and not times.any_weekday:
        raise UsageError(
            f"{times.expression!r} means different days to cron than to Kubernetes and Airflow: "
            "restrict the days or the weekdays, not both."
        )
    elif times.any_weekday:
        weekdays = "*"
    elif times.any_day:
        days = "*"
    if "7" in weekdays:
        weekdays = _ranges(times.fields[4])
    return f"{minutes} {hours} {days} {months} {weekdays}"


def _plain_field(text: str, values: Sequence[int]) -> str:
    """Return a field without names and without a step after a single number.

    A leading `*` is kept: cron treats such day fields differently.
    """
    if PLAIN_FIELD.fullmatch(text):
        return text
    first, *_ = text.split(",")
    return f"{first},{_ranges(values)}" if text.startswith("*") else _ranges(values)


def _ranges(values: Sequence[int]) -> str:
    """Return sorted numbers in cron's syntax, such as `1-3,5`."""
    texts: list[str] = []
    for _, group in groupby(enumerate(values), key=lambda pair: pair[1] - pair[0]):
        run = [value for _, value in group]
        texts += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run)
    return ",".join(texts)
