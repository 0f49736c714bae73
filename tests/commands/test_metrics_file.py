"""`--metrics-file`: what Prometheus gets to know of a run, and the alerts that follow."""

import builtins
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from jobs.commands import metrics_file
from jobs.commands.metrics_file import LAST_SUCCESS, MEANINGS
from storage.errors import UnreachableError
from storage.local import LocalLocation
from tests.commands.conftest import SMALL, Call
from tests.commands.process import REPOSITORY, assert_refused, run_pipeline
from tests.jobs.inboxes import put_images

RULES = REPOSITORY / "deploy" / "alerts.yml"
DAY = 86_400


def metrics(file: Path) -> dict[str, float]:
    """The values of a file, by the ends of their names."""
    families = list(text_string_to_metric_families(file.read_text()))
    assert all(family.documentation and family.type == "gauge" for family in families)
    return {
        sample.name.removeprefix(f"mnist_stream_{file.stem}_"): sample.value
        for family in families
        for sample in family.samples
    }


def test_score(run: Path, dataset: Path, call: Call) -> None:
    """A success sets both times; a failure after it keeps the time of the success."""
    file = Path("score.prom")
    with mock.patch.object(metrics_file.time, "time", return_value=1000.0):
        assert 0 == call("score", "--metrics-file", file).code
    first = metrics(file)
    assert {"exit_code": 0, "rows": 60, LAST_SUCCESS: 1000}.items() <= first.items()
    assert 0 < first["accuracy_ratio"] <= 1
    assert {*first} <= {*MEANINGS}
    with mock.patch.object(metrics_file.time, "time", return_value=2000.0):
        assert 5 == call("score", "--min-accuracy", 1.0, "--metrics-file", file).code
    missed = metrics(file)
    assert (5, 1000, 2000, 0) == (
        missed["exit_code"],
        missed[LAST_SUCCESS],
        missed["last_run_timestamp_seconds"],
        missed["rows"],
    )
    assert first["accuracy_ratio"] == missed["accuracy_ratio"]
    assert 2 == call("score", "--split", "tset", "--metrics-file", file).code
    assert (2, 1000) == (metrics(file)["exit_code"], metrics(file)[LAST_SUCCESS])


def test_inbox(run: Path, dataset: Path, call: Call) -> None:
    """Accuracy is over all rows with labels; bad files are counted."""
    put_images(Path("in/a-images-idx3-ubyte"), seed=1, rows=30, labelled=True)
    put_images(Path("in/b-images-idx3-ubyte"), seed=2, rows=10)
    Path("in/c-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03 damaged")
    ended = call("score", "--inbox", "in", "--settle", 0, "--metrics-file", "score.prom")
    assert 3 == ended.code, ended.err
    values = metrics(Path("score.prom"))
    assert {"exit_code": 3, "rows": 40, "failed_files": 1}.items() <= values.items()
    assert LAST_SUCCESS not in values


def test_train(dataset: Path, call: Call) -> None:
    """Training records its epochs and the accuracy of the last one."""
    how = (*SMALL, "--epochs", 2, "--metrics-file", "train.prom")
    assert 0 == call("train", *how).code
    values = metrics(Path("train.prom"))
    assert {"exit_code": 0, "epochs": 2}.items() <= values.items()
    assert 0 < values["accuracy_ratio"] <= 1
    assert 4 == call("train", *how).code
    assert 4 == metrics(Path("train.prom"))["exit_code"]


def test_schedule(here: Path) -> None:
    """The metrics of a schedule are those of its last job."""
    from datetime import UTC, datetime
    from logging import getLogger

    from storage.events import event

    logger = getLogger("jobs.scheduling.scheduler")
    due = datetime(2026, 1, 1, tzinfo=UTC)
    with metrics_file.schedule_metrics("schedule.prom"):
        for code in (0, 3):
            event(logger, "end", "", due=due, exit=code, seconds=2.5, next=due)
    values = metrics(here / "schedule.prom")
    assert {"exit_code": 3, "duration_seconds": 2.5}.items() <= values.items()
    assert due.timestamp() == values["next_timestamp_seconds"]
    assert LAST_SUCCESS in values


def test_a_file_that_cannot_be_written(
    run: Path, dataset: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a success it is an error, after a failure a warning beside the failure."""

    def full(*_: Any, **__: Any) -> None:
        raise UnreachableError("no space")

    assert 0 == call("score").code
    monkeypatch.setattr(LocalLocation, "put", full)
    assert 6 == call("score", "--metrics-file", "score.prom").code
    assert 2 == call("score", "--split", "tset", "--metrics-file", "score.prom").code


def test_files_of_one_directory_differ(here: Path) -> None:
    """The series of two jobs have different labels: the collector drops equal ones."""
    for name in ("a.prom", "b.prom"):
        metrics_file.MetricsFile("score", name).write(0, 1.0, {})
    labels = [
        sample.labels
        for name in ("a.prom", "b.prom")
        for family in text_string_to_metric_families(Path(name).read_text())
        for sample in family.samples
        if sample.name.endswith("exit_code")
    ]
    assert [{"file": "a.prom"}, {"file": "b.prom"}] == labels


@pytest.mark.parametrize("value", ["NaN", "+Inf", "1e12", "damaged", "\0"])
def test_damaged_last_success(value: str, here: Path) -> None:
    """A time that no alert could follow from is not kept."""
    Path("score.prom").write_text(f"mnist_stream_score_{LAST_SUCCESS} {value}\n")
    metrics_file.MetricsFile("score", "score.prom").write(3, 1.0, {})
    assert LAST_SUCCESS not in metrics(Path("score.prom"))


@pytest.mark.parametrize("name", ["score.txt", "s3://bucket/score.prom", "directory.prom"])
def test_invalid_names(name: str, here: Path, call: Call) -> None:
    """A name that the collector would not read is refused before any work."""
    (here / "directory.prom").mkdir()
    for command in (("score",), ("train",), ("schedule", "* * * * *", "--", "verify", "x")):
        ended = call(command[0], "--metrics-file", name, *command[1:])
        assert_refused(ended, 2, "--metrics-file", name)
    assert_refused(call("score", "--metrics-file", "~missing/x.prom"), 2, "'~missing/x.prom'")


def test_missing_library(here: Path, call: Call) -> None:
    """Without the library, the message names its extra."""
    load = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "prometheus_client":
            raise ModuleNotFoundError(name=name)
        return load(name, *rest)

    with mock.patch.object(builtins, "__import__", without):
        assert_refused(call("score", "--metrics-file", "x.prom"), 2, "'metrics'")


def test_the_rules_name_metrics_that_exist() -> None:
    """Each rule uses a metric that `score` writes."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    expressions = [rule["expr"] for rule in rules]
    names = [f"mnist_stream_score_{name}" for name in MEANINGS]
    assert all(any(name in expression for name in names) for expression in expressions)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_a_missed_night_raises_an_alert(run: Path, dataset: Path, here: Path) -> None:
    """Prometheus accepts the file and the rules, which fire for what they are for."""
    assert 0 == run_pipeline("score", "--metrics-file", "score.prom", cwd=here).code
    lint = ["promtool", "check", "metrics"]
    subprocess.run(lint, input=Path("score.prom").read_bytes(), check=True)
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True)
    name = "mnist_stream_score_"
    labels = '{instance="a"}'
    series = [
        # Days since 1970, as the tests of promtool begin at 0: the second night is missed.
        {"series": f"{name}{LAST_SUCCESS}{labels}", "values": f"0x24 {DAY}x80"},
        {"series": f"{name}last_run_timestamp_seconds{labels}", "values": "0x90"},
        {"series": f"{name}exit_code{labels}", "values": "0x30 5x20 0x40"},
        {"series": f"{name}drift{labels}", "values": "0x60 8x10 0x20"},
    ]

    def alerts(hour: int, alert: str, expected: list[dict[str, Any]]) -> dict[str, Any]:
        return {"eval_time": f"{hour}h", "alertname": alert, "exp_alerts": expected}

    def firing(severity: str, summary: str) -> list[dict[str, Any]]:
        labels = {"severity": severity, "instance": "a"}
        return [{"exp_labels": labels, "exp_annotations": {"summary": summary}}]

    missed = firing("page", "No scoring has succeeded on a for 1d 3h 0m 0s.")
    failed = firing("ticket", "The last scoring on a ended with exit code 5.")
    drifted = firing("ticket", "The last scored images differ from those of training, drift 8.")
    never = "There are no metrics of a scoring. Check the job, and node_exporter's directory."
    unreported = [
        {"exp_labels": {"severity": "page"}, "exp_annotations": {"summary": never}},
    ]
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1h",
        "tests": [
            {
                "interval": "1h",
                "input_series": series,
                "alert_rule_test": [
                    alerts(49, "ScoringMissed", []),
                    alerts(51, "ScoringMissed", missed),
                    alerts(29, "ScoringFailed", []),
                    alerts(40, "ScoringFailed", failed),
                    alerts(59, "InputDrifted", []),
                    alerts(65, "InputDrifted", drifted),
                    alerts(65, "ScoringNeverReported", []),
                ],
            },
            {
                "interval": "1h",
                "input_series": [],
                "alert_rule_test": [alerts(5, "ScoringNeverReported", unreported)],
            },
        ],
    }
    Path("rules.yml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        ["promtool", "test", "rules", "rules.yml"], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_a_server_has_the_alert(run: Path, dataset: Path, here: Path, call: Call) -> None:
    """A Prometheus server that scrapes the file of two nights ago fires for the missed night."""
    with mock.patch.object(metrics_file.time, "time", return_value=time.time() - 2 * DAY):
        assert 0 == call("score", "--metrics-file", "score.prom").code
    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(TextFiles, directory=str(here)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    target = {"targets": [f"127.0.0.1:{files.server_port}"]}
    textfile = {
        "job_name": "textfile",
        "metrics_path": "/score.prom",
        "static_configs": [target],
    }
    document = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [textfile],
    }
    Path("prometheus.yml").write_text(yaml.safe_dump(document))
    command = ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address={address}"]
    threading.Thread(target=files.serve_forever, daemon=True).start()
    with files, subprocess.Popen([*command, "--storage.tsdb.path=data"]) as server:
        try:
            assert ["ScoringMissed"] == firing_alerts(f"http://{address}/api/v1/alerts")
        finally:
            server.terminate()
            files.shutdown()


class TextFiles(SimpleHTTPRequestHandler):
    """Serves metrics as the collector does."""

    extensions_map: ClassVar = {".prom": "text/plain"}


def firing_alerts(url: str) -> list[str]:
    """Return the names of the firing alerts as soon as there are any."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(url) as response:
                alerts = json.load(response)["data"]["alerts"]
        except OSError:  # it is starting
            alerts = []
        if names := [a["labels"]["alertname"] for a in alerts if a["state"] == "firing"]:
            return names
        time.sleep(0.1)
    return []
