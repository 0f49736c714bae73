"""Files for other schedulers, each read by the program or the parser that it is for."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
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

WORDS = ("score", "--inbox", "a b", "--out", "{home}.csv", "--model", "50%$x\"'\\")
"""Arguments with what each of the formats takes for something else."""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A nightly job."""
    return Plan(
        times=cron_times("30 2 * * 1-5", "Europe/Berlin"),
        arguments=WORDS,
        name="nightly",
        catch_up=True,
        zone_given=True,
        directory=str(tmp_path),
        image="registry.example/mnist:1",
        claim="work",
    )


def only(files: dict[str, str]) -> str:
    (text,) = files.values()
    return text


def own_command() -> list[str]:
    script = Path(sys.executable).with_name("pipeline")
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "jobs.commands.cli"]


def cron_reads(command: str) -> str:
    """A command as cron hands it to the shell: it ends at a bare percent sign (do_command.c)."""
    whole = re.match(r"(?:[^%\\]|\\.)*", command)
    assert whole is not None
    return re.sub(r"\\([%\\])", r"\1", whole[0])


HOSTILE_WORDS = (
    *(
        "\\\\",
        "a\\\\\\%b",
        "%",
        "$x",
        "$$",
        "$(A)",
        "a'b\"c",
        ";",
        "",
        " ",
        "#",
        "{{ x }}",
        "~",
        "*",
        "!x",
    ),
    *("\U0001f600", "\u00e9", "\u3000", "\ufeff", "0", "1e3", "0x1f", "null", "yes", "- a", "a: b"),
)


def test_cron_hands_every_argument_over(plan: Plan) -> None:
    """What cron, and then the shell, make of the line is the command, to the character."""
    directory = "/data/a b%c\\\\d'e"
    plan = replace(plan, directory=directory, arguments=("score", *WORDS, *HOSTILE_WORDS))
    *settings, line = only(PRINTERS["cron"](plan)).splitlines()
    assert {"CRON_TZ=Europe/Berlin", "SHELL=/bin/sh"} <= set(settings)
    assert line.startswith("30 2 * * 1-5 cd ")
    expected = ["cd", directory, "&&", "exec", *own_command(), *plan.arguments]
    assert expected == shlex.split(cron_reads(line.split(" ", 5)[5]))


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
    """What cron itself refuses is printed in the plain fields that mean the same."""
    times = cron_times(given, "UTC")
    text = only(PRINTERS["cron"](replace(plan, times=times)))
    assert text.splitlines()[-1].startswith(f"{printed} cd ")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    again = cron_times(printed, "UTC").times_after(start)
    assert list(islice(times.times_after(start), 50)) == list(islice(again, 50))


def checks_tables() -> bool:
    """Whether there is a crontab(1) with a dry run, as Debian's has."""
    if shutil.which("crontab") is None:
        return False
    process = subprocess.run(["crontab", "-h"], capture_output=True, text=True, check=False)
    return "dry run" in process.stdout + process.stderr


@pytest.mark.skipif(not checks_tables(), reason="no crontab with a dry run is installed")
@pytest.mark.parametrize("expression", ["5/15 * * * *", "*/15,5/20 2-4 1/9 jan-MAR mon,6/1"])
def test_crontab_takes_the_table(expression: str, plan: Plan, tmp_path: Path) -> None:
    """The program that it is for has nothing to say against it."""
    plan = replace(plan, times=cron_times(expression, "UTC"), arguments=("score", *HOSTILE_WORDS))
    (tmp_path / "table").write_text(only(PRINTERS["cron"](plan)))
    subprocess.run(["crontab", "-n", str(tmp_path / "table")], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("cron", {"arguments": ("score", "x" * 998)}, "at most 998"),
        ("cron", {"arguments": ("score", "a\rb")}, "line break"),
        ("cron", {"directory": "/data/a\nb"}, "Rename it"),
        ("kubernetes", {"directory": "/data/a\u2028b"}, "Rename it"),
        ("airflow", {"directory": "/data/a\x85b"}, "Rename it"),
        ("systemd", {"directory": "/data/a\x1bb"}, "Rename it"),
        ("systemd", {"directory": "/data/a\\"}, "systemd drops a blank"),
        ("systemd", {"directory": "/data/a\u3000"}, "systemd drops a blank"),
        ("kubernetes", {"times": cron_times("0 0 */2 * MON", "UTC")}, "means other days"),
        ("airflow", {"times": cron_times("0 0 */2 * MON", "UTC")}, "means other days"),
        # a zone whose name is not known is not taken for UTC
        ("airflow", {"times": CronTimes("0 0 * * *", UTC, "local")}, "Pass --timezone"),
        *(("cron", {"name": name}, "--name is") for name in ("Nightly", "a_b", "-a", "a" * 53, "")),
    ],
)
def test_what_is_refused(kind: str, change: dict[str, Any], words: str, plan: Plan) -> None:
    """What the other scheduler would refuse, or take for something else, is refused here."""
    with pytest.raises(UsageError, match=words):
        PRINTERS[kind](replace(plan, **change))


def systemd_reads(line: str) -> list[str]:
    """The words of a command line after systemd.service(5): quotes, escapes, specifiers, `$$`."""
    escapes = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "'": "'"}

    def unescaped(found: "re.Match[str]") -> str:
        code = found[1] or found[2]
        return chr(int(code, 16)) if code else escapes[found[3]]

    words = []
    for quoted, bare in re.findall(r'"((?:[^"\\]|\\.)*)"(?=\s|$)|(\S+)', line):
        assert not re.search(r"""["'\\;]""", bare), bare
        escape = r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|(.))"
        word = re.sub(escape, unescaped, quoted) if quoted else bare
        assert not re.search(r"%", word.replace("%%", "")), word
        assert not re.search(r"\$", word.replace("$$", "")), word
        words.append(word.replace("%%", "%").replace("$$", "$"))
    return words


def test_systemd_hands_every_argument_over(plan: Plan) -> None:
    """What systemd makes of the command line is the command, control characters included."""
    words = ("score", *HOSTILE_WORDS, "a\n\r\tb\x01\x1b\x7f", "\u2028\x85")
    service = PRINTERS["systemd"](replace(plan, arguments=words))["nightly.service"]
    (line,) = [line for line in service.split("\n") if line.startswith("ExecStart=")]
    assert [*own_command(), *words] == systemd_reads(line.removeprefix("ExecStart="))


def test_every_day_by_two_fields(plan: Plan) -> None:
    """Where one of two days is enough, and one field has all, every day is meant everywhere."""
    every = replace(plan, times=cron_times("0 0 13 * 0-6", "UTC"))
    assert "OnCalendar=*-*-* 00:00:00" in PRINTERS["systemd"](every)["nightly.timer"]
    assert "0 0 * * *" == kubernetes(every)["spec"]["schedule"]


@pytest.mark.parametrize("name", ["0", "1e3", "null", "yes", "0x1f"])
def test_kubernetes_holds_texts(name: str, plan: Plan) -> None:
    """What looks like a number to some reader of YAML is a text, and hostile words round-trip."""
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
    for text_of_user in (name, directory.replace("\U0001f600", "\\U0001F600")):
        assert f'"{text_of_user}"'.replace(' "b" ', ' \\"b\\" ') in text


def units(plan: Plan, directory: Path) -> list[Path]:
    """The service and the timer, written."""
    paths = []
    for name, text in PRINTERS["systemd"](plan).items():
        (directory / name).write_text(text)
        paths.append(directory / name)
    return paths


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@needs_systemd
@pytest.mark.parametrize("expression", ["30 2 * * 1-5", "*/15 8-18 1,15 * MON", "0 0 * 1 *"])
def test_systemd_verifies(expression: str, plan: Plan, tmp_path: Path) -> None:
    """systemd itself has nothing to say against the service and the timer."""
    paths = units(replace(plan, times=cron_times(expression, "Europe/Berlin")), tmp_path)
    process = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line for line in process.stderr.splitlines() if "nightly" in line]
    assert (0, []) == (process.returncode, told)


@needs_systemd
@pytest.mark.parametrize(
    "expression", ["30 2 * * 1-5", "*/20 6,18 * * *", "0 0 1,13 * FRI", "15 4 1 */3 *", "0 1 * * 7"]
)
def test_systemd_means_the_same_times(expression: str, plan: Plan, tmp_path: Path) -> None:
    """systemd works out the same next times from the timer as cron from the expression."""
    times = cron_times(expression, "UTC")
    timer = units(replace(plan, times=times), tmp_path)[1].read_text()
    calendars = [
        line.removeprefix("OnCalendar=")
        for line in timer.splitlines()
        if line.startswith("OnCalendar=")
    ]
    process = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=8", "--base-time=2026-01-01 00:00:00 UTC"]
        + calendars,
        capture_output=True,
        text=True,
        check=False,
        env={"TZ": "UTC", "PATH": "/usr/bin:/bin", "LC_ALL": "C"},
    )
    assert 0 == process.returncode, process.stderr
    found = sorted(
        {
            " ".join(line.split()[-3:-1])
            for line in process.stdout.splitlines()
            if line.strip().startswith(("Next elapse:", "Iter", "(in UTC)")) and "UTC" in line
        }
    )
    expected = [
        moment.strftime("%Y-%m-%d %H:%M:%S")
        for moment in islice(times.times_after(datetime(2026, 1, 1, tzinfo=UTC)), 8)
    ]
    assert expected == found[:8]


@pytest.mark.parametrize(("catch_up", "expected"), [(True, "true"), (False, "false")])
def test_systemd_makes_up(catch_up: bool, expected: str, plan: Plan) -> None:
    """A missed run is made up where it is asked for."""
    files = PRINTERS["systemd"](replace(plan, catch_up=catch_up))
    assert f"\nPersistent={expected}\n" in files["nightly.timer"]


def expanded(word: str) -> str:
    """An argument as Kubernetes hands it over where no variable is set (its `expansion.Expand`)."""
    return re.sub(r"\$(\$|\(\w+\))", lambda found: "$" if found[1] == "$" else found[0], word)


def kubernetes(plan: Plan) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(only(PRINTERS["kubernetes"](plan)))
    return document


def test_kubernetes(plan: Plan) -> None:
    """The CronJob has the fields of batch/v1, and what keeps it from running twice."""
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
    """The DAG compiles, and its task has the command."""
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
def test_airflow_takes_nothing_for_a_template(word: str, plan: Plan) -> None:
    """What Jinja renders is the argument, and the directory, to the character."""
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


@pytest.mark.parametrize("kind", ["kubernetes", "airflow"])
def test_sunday(kind: str, plan: Plan) -> None:
    """The Sunday that only cron calls 7 is called 0."""
    text = only(PRINTERS[kind](replace(plan, times=cron_times("0 0 * * 5-7", "UTC"))))
    assert "0 0 * * 0,5,6" in text
