"""The printed configurations for cron, Kubernetes and Airflow, read as these programs read them."""

import ast
import configparser
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from jobs.scheduling.cron import CronTimes, cron_times
from jobs.scheduling.printers import PRINTERS, Plan
from storage.errors import UsageError
from tests.commands.process import REPOSITORY
from tests.jobs.scheduling.conftest import HOSTILE_WORDS, WORDS, own_command


def only(files: dict[str, str]) -> str:
    (text,) = files.values()
    return text


def cron_unescaped(command: str) -> str:
    """Return a command as cron passes it to the shell, up to a bare percent sign (do_command.c)."""
    whole = re.match(r"(?:[^%\\]|\\.)*", command)
    assert whole is not None
    return re.sub(r"\\([%\\])", r"\1", whole[0])


def test_cron_arguments(plan: Plan) -> None:
    """cron and the shell run exactly the given command in the given directory."""
    directory = "/data/a b%c\\\\d'e"
    plan = replace(plan, directory=directory, arguments=("score", *WORDS, *HOSTILE_WORDS))
    *settings, line = only(PRINTERS["cron"](plan)).splitlines()
    assert {"CRON_TZ=Europe/Berlin", "SHELL=/bin/sh"} <= set(settings)
    assert line.startswith("30 2 * * 1-5 cd ")
    expected = ["cd", directory, "&&", "exec", *own_command(), *plan.arguments]
    assert expected == shlex.split(cron_unescaped(line.split(" ", 5)[5]))


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ("5/15 * * * *", "5,20,35,50 * * * *"),
        ("*/15,5/20 * * * *", "*/15,0,5,15,25,30,45 * * * *"),
        ("0 0 * jan-MAR mon-FRI", "0 0 * 1-3 1-5"),
        ("0 0 */2 * *", "0 0 */2 * *"),
        ("0 0 13 * 5/1", "0 0 13 * 0,5,6"),
        ("0 22/1 * * 7", "0 22,23 * * 7"),
        ("0 0 */2 * MON", "0 0 */2 * 1"),
    ],
)
def test_cron_expressions(given: str, printed: str, plan: Plan) -> None:
    """Fields that not every cron accepts are printed as plain ones with the same times."""
    times = cron_times(given, "UTC")
    text = only(PRINTERS["cron"](replace(plan, times=times)))
    assert text.splitlines()[-1].startswith(f"{printed} cd ")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    again = cron_times(printed, "UTC").times_after(start)
    assert list(islice(times.times_after(start), 50)) == list(islice(again, 50))


def checks_tables() -> bool:
    """Return whether crontab(1) has a dry run, like Debian's."""
    if shutil.which("crontab") is None:
        return False
    process = subprocess.run(["crontab", "-h"], capture_output=True, text=True, check=False)
    return "dry run" in process.stdout + process.stderr


@pytest.mark.skipif(not checks_tables(), reason="no crontab with a dry run is installed")
@pytest.mark.parametrize("expression", ["5/15 * * * *", "*/15,5/20 2-4 1/9 jan-MAR mon,6/1"])
def test_crontab_accepts_the_table(expression: str, plan: Plan, tmp_path: Path) -> None:
    """The crontab command itself accepts the table."""
    plan = replace(plan, times=cron_times(expression, "UTC"), arguments=("score", *HOSTILE_WORDS))
    (tmp_path / "table").write_text(only(PRINTERS["cron"](plan)))
    subprocess.run(["crontab", "-n", str(tmp_path / "table")], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("scheduler", "change", "words"),
    [
        ("cron", {"arguments": ("score", "x" * 998)}, "at most 998"),
        ("cron", {"arguments": ("score", "a\rb")}, "line break"),
        ("cron", {"directory": "/data/a\nb"}, "Rename the directory"),
        ("kubernetes", {"directory": "/data/a\u2028b"}, "Rename the directory"),
        ("airflow", {"directory": "/data/a\x85b"}, "Rename the directory"),
        ("systemd", {"directory": "/data/a\x1bb"}, "Rename the directory"),
        ("systemd", {"directory": "/data/a\\"}, "ends in a space or a backslash"),
        ("systemd", {"directory": "/data/a\u3000"}, "ends in a space or a backslash"),
        ("kubernetes", {"times": cron_times("0 0 */2 * MON", "UTC")}, "means different days"),
        ("airflow", {"times": cron_times("0 0 */2 * MON", "UTC")}, "means different days"),
        # a zone without a known name must not become UTC
        ("airflow", {"times": CronTimes("0 0 * * *", UTC, "local")}, "Pass --timezone"),
        *(("cron", {"name": name}, "--name is") for name in ("Nightly", "a_b", "-a", "a" * 53, "")),
    ],
)
def test_refused_plans(scheduler: str, change: dict[str, Any], words: str, plan: Plan) -> None:
    """A plan that the other scheduler would refuse or misread is refused."""
    with pytest.raises(UsageError, match=words):
        PRINTERS[scheduler](replace(plan, **change))


@pytest.mark.parametrize("name", ["0", "1e3", "null", "yes", "0x1f"])
def test_kubernetes_arguments(name: str, plan: Plan) -> None:
    """Names that look like numbers stay strings, and arguments reach the container unchanged."""
    words = ("score", *HOSTILE_WORDS, "a\n\tb\x01\x1b\x7f", "\u2028\x85", name)
    directory = "/data/\U0001f600 # 'a' \"b\" - {c}"
    plan = replace(plan, name=name, claim=name, arguments=words, directory=directory)
    text = only(PRINTERS["kubernetes"](plan))
    assert text.isascii() or "\U0001f600" in text.splitlines()[1]
    document = kubernetes(plan)
    assert name == document["metadata"]["name"]
    pod = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert name == pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert list(words) == [expanded(word) for word in pod["containers"][0]["args"]]
    assert directory == pod["containers"][0]["workingDir"]
    for value in (name, directory.replace("\U0001f600", "\\U0001F600")):
        assert f'"{value}"'.replace(' "b" ', ' \\"b\\" ') in text


def expanded(word: str) -> str:
    """Return an argument as Kubernetes expands it (`expansion.Expand`) if no variable is set."""
    return re.sub(r"\$(\$|\(\w+\))", lambda match: "$" if match[1] == "$" else match[0], word)


def kubernetes(plan: Plan) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(only(PRINTERS["kubernetes"](plan)))
    return document


def test_kubernetes(plan: Plan) -> None:
    """The CronJob has the fields of batch/v1 and never runs twice at once."""
    dockerfile = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    installed = re.search(r"RUN (\S+)/pip install", dockerfile)
    assert installed is not None
    failure = {"containerName": "pipeline", "operator": "In", "values": [1, 2, 3, 5]}
    container = {
        "name": "pipeline",
        "image": "registry.example/mnist:1",
        "command": [f"{installed[1]}/pipeline"],
        "args": [word.replace("$", "$$") for word in WORDS],
        "workingDir": plan.directory,
        "volumeMounts": [{"name": "work", "mountPath": plan.directory}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 300,
        "containers": [container],
        "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": "work"}}],
    }
    job = {
        "backoffLimit": 3,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": failure}]},
        "template": {"spec": pod},
    }
    spec = {
        "schedule": "30 2 * * 1-5",
        "timeZone": "Europe/Berlin",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 86_400,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"spec": job},
    }
    assert {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "nightly"},
        "spec": spec,
    } == kubernetes(plan)


def test_airflow(plan: Plan) -> None:
    """The DAG compiles, and its task runs the command."""
    text = only(PRINTERS["airflow"](plan))
    tree = ast.parse(text)
    compile(text, "nightly.py", "exec")
    calls = {
        call.func.id: {word.arg: word.value for word in call.keywords}
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }
    literal = ast.literal_eval
    assert "30 2 * * 1-5" == literal(calls["DAG"]["schedule"])
    assert (1, False) == (
        literal(calls["DAG"]["max_active_runs"]),
        literal(calls["DAG"]["catchup"]),
    )
    command = jinja2.Template(literal(calls["BashOperator"]["bash_command"])).render()
    assert [*own_command(), *WORDS] == shlex.split(command)
    assert plan.directory == literal(calls["BashOperator"]["cwd"])


@pytest.mark.parametrize(
    "word",
    [
        "{% endraw %}{{ 1 + 1 }}",
        "{{ ds }}",
        "{# a #}",
        "}} {{",
        "a\r\nb\n{x}",
        "\\{\"'\U0001f600\u00e9",
        "run.sh",
    ],
)
def test_airflow_templates(word: str, plan: Plan) -> None:
    """Jinja renders the argument and the directory unchanged."""
    plan = replace(plan, arguments=("score", word))
    if "\n" not in word:
        plan = replace(plan, directory=f"/data/{word}")
    text = only(PRINTERS["airflow"](plan))
    fields = {
        one.arg: ast.literal_eval(one.value)
        for one in ast.walk(ast.parse(text))
        if isinstance(one, ast.keyword) and one.arg in ("bash_command", "cwd")
    }
    assert not any(field.endswith((".sh", ".bash")) for field in fields.values())
    rendered = {name: jinja2.Template(field).render() for name, field in fields.items()}
    assert ["score", word] == shlex.split(rendered["bash_command"])[-2:]
    assert plan.directory == rendered["cwd"]


def test_every_day_by_two_fields(plan: Plan) -> None:
    """If either day may match and one field allows all, every scheduler gets every day."""
    every = replace(plan, times=cron_times("0 0 13 * 0-6", "UTC"))
    assert "OnCalendar=*-*-* 00:00:00" in PRINTERS["systemd"](every)["nightly.timer"]
    assert "0 0 * * *" == kubernetes(every)["spec"]["schedule"]


@pytest.mark.parametrize("scheduler", ["kubernetes", "airflow"])
def test_sunday(scheduler: str, plan: Plan) -> None:
    """Sunday, which only cron accepts as 7, is printed as 0."""
    text = only(PRINTERS[scheduler](replace(plan, times=cron_times("0 0 * * 5-7", "UTC"))))
    assert "0 0 * * 0,5,6" in text


def test_how_a_failure_is_reported(plan: Plan, tmp_path: Path) -> None:
    """Without its number sign, the line to fill in is one that the other scheduler reads."""
    table = only(PRINTERS["cron"](plan)).replace("#MAILTO=", "MAILTO=")
    assert "MAILTO=you@example.org" in table.splitlines()[:-1]
    if checks_tables():
        (tmp_path / "table").write_text(table)
        subprocess.run(["crontab", "-n", str(tmp_path / "table")], check=True)
    units = configparser.ConfigParser(interpolation=None, strict=False)
    units.read_string(PRINTERS["systemd"](plan)["nightly.service"].replace("#OnF", "OnF"))
    assert "notify@%N.service" == units["Unit"]["OnFailure"]
    dag = only(PRINTERS["airflow"](plan)).replace("# on_failure", "on_failure")
    calls = [call for call in ast.walk(ast.parse(dag)) if isinstance(call, ast.Call)]
    (call,) = [call for call in calls if getattr(call.func, "id", "") == "DAG"]
    assert "on_failure_callback" in [word.arg for word in call.keywords]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_accepts_the_alert_of_kubernetes(plan: Plan, tmp_path: Path) -> None:
    """The printed expression is one of Prometheus, for the jobs of this schedule."""
    text = only(PRINTERS["kubernetes"](plan))
    (expression,) = re.findall(r"^#   expr: (.*)$", text, re.MULTILINE)
    assert 'job_name=~"nightly-[0-9]+"' in expression
    rule = {"alert": "JobFailed", "expr": expression}
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "jobs", "rules": [rule]}]}))
    checked = ["promtool", "check", "rules", str(rules)]
    subprocess.run(checked, check=True, capture_output=True)
