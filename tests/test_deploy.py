"""The files in `deploy`, checked as far as possible without their platforms."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
import yaml  # type: ignore[import-untyped] # Dask's own, which ships no types

from jobs.commands.cli import cli
from tests.commands.process import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
PAGES = "".join(page.read_text() for page in (REPOSITORY / "docs").rglob("*.md"))
FILES = sorted(path.name for path in DEPLOY.iterdir())
IMAGE = "mnist-stream"


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def check_command(words: list[str]) -> None:
    """Check that a command of this project, or Dask's, exists and has these options."""
    if words[0] == "dask":
        assert words[1] in ("scheduler", "worker")
        return
    assert "pipeline" == words[0]
    command = cli.commands[words[1]]
    params = command.get_params(click.Context(command))
    options = {name for param in params for name in param.opts}
    assert set() == {word for word in words if word.startswith("--")} - options


def containers(document: Any) -> list[dict[str, Any]]:
    """Return every container in a manifest."""
    below: list[dict[str, Any]] = []
    values = document.values() if isinstance(document, dict) else document
    for value in values:
        if isinstance(value, dict | list):
            below += containers(value)
    if isinstance(document, dict):
        below += document.get("containers", [])
    return below


@pytest.mark.parametrize("name", FILES)
def test_is_documented(name: str) -> None:
    """A page of the docs names each file."""
    assert f"`{name}`" in PAGES


def test_compose() -> None:
    """The services run existing commands, from one image and on one volume."""
    services = load("compose.yaml")["services"]
    assert {"scheduler", "worker", "ingest", "train"} == set(services)
    for service in services.values():
        assert IMAGE == service["image"]
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert ["work:/work"] == service["volumes"]
        check_command(service["command"])


@pytest.mark.parametrize(
    ("name", "resource", "count"),
    [("train-daskjob.yaml", "DaskJob", 3), ("score-cronjob.yaml", "CronJob", 1)],
)
def test_manifests(name: str, resource: str, count: int) -> None:
    """The containers run existing commands from one image."""
    manifest = load(name)
    assert resource == manifest["kind"]
    assert count == len(containers(manifest))
    for container in containers(manifest):
        assert f"{IMAGE}:latest" == container["image"]
        check_command(container["args"])


def test_scorings_never_overlap() -> None:
    """The CronJob forbids concurrent scorings and limits retries."""
    spec = load("score-cronjob.yaml")["spec"]
    assert "Forbid" == spec["concurrencyPolicy"]
    assert 3 == spec["jobTemplate"]["spec"]["backoffLimit"]
    assert "Never" == spec["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"]


def test_dask_job() -> None:
    """The DaskJob has the three parts that the operator's schema requires."""
    spec = load("train-daskjob.yaml")["spec"]
    assert {"job", "cluster"} == set(spec)
    assert {"worker", "scheduler"} == set(spec["cluster"]["spec"])
    assert {"spec", "service"} == set(spec["cluster"]["spec"]["scheduler"])
    assert 4 == spec["cluster"]["spec"]["worker"]["replicas"]


def test_slurm(tmp_path: Path) -> None:
    """The script runs scheduler, worker and job, with a fake `srun` that runs its arguments."""
    script = DEPLOY / "train.slurm"
    bash = shutil.which("bash")
    assert bash is not None
    subprocess.run([bash, "-n", script], check=True)
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name, body in {
        "srun": 'exec "$@"',
        "dask": 'echo "dask $*" >> calls; [ "$1" = worker ] || echo {} > "$PWD/scheduler-7.json"',
        "pipeline": 'while [ ! -s calls ]; do :; done; echo "pipeline $*" >> calls',
    }.items():
        (tools / name).write_text(f"#!{bash}\n{body}\n")
        (tools / name).chmod(0o755)
    subprocess.run(
        [bash, script, "--epochs", "3"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7"},
        check=True,
        timeout=600,
    )
    calls = (tmp_path / "calls").read_text()
    assert (
        f"pipeline train --resume --scheduler-file {tmp_path}/scheduler-7.json --epochs 3" in calls
    )
    check_command(shlex.split(re.findall("^pipeline.*$", script.read_text(), re.MULTILINE)[0])[:5])
    assert not (tmp_path / "scheduler-7.json").exists()


def test_dockerfile() -> None:
    """The copied files exist, and include everything that the build needs."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert {"storage", "pipeline", "jobs", "pyproject.toml", "README.md", "LICENSE"} <= copied
    assert all((REPOSITORY / name).exists() for name in copied)
    assert lines[-1].startswith("CMD")


def recipe(directory: Path) -> list[list[str]]:
    """Return the Dockerfile's steps that install the programs, to run them in a directory."""
    steps = []
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        instruction, _, rest = line.partition(" ")
        words = shlex.split(rest.replace("/opt", str(directory / "opt")))
        if instruction == "COPY":
            *sources, target = words
            build = directory / "build" / target
            steps += [["cp", "-r", str(REPOSITORY / source), str(build)] for source in sources]
        elif instruction == "RUN" and words[0] != "useradd":  # not an account on this machine
            steps.append([sys.executable if words[0] == "python" else words[0], *words[1:]])
    return steps


def run(words: list[str], directory: Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a program; return its exit code and output."""
    ended = subprocess.run(
        words, check=False, cwd=directory, env=env, capture_output=True, text=True
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.install
def test_image(tmp_path: Path) -> None:
    """The Dockerfile's steps, run in a new virtual environment, install all programs."""
    build, opt = tmp_path / "build", tmp_path / "opt" / "mnist-stream" / "bin"
    build.mkdir()
    probe = [sys.executable, "-m", "pip", "download", "--no-deps", f"click=={version('click')}"]
    if run(probe, tmp_path)[0]:
        pytest.skip("pip reaches no index to install from")
    for step in recipe(tmp_path):
        code, output = run(step, build)
        assert 0 == code, (step, output)
    for words in (
        "dask scheduler --version",
        "dask worker --version",
        "python -c 'import obstore, matplotlib'",
        "pipeline ingest synthetic:60,10 --workers 1",
        "pipeline train --dataset data/synthetic --epochs 1 --batch-size 20 --recipe seed",
    ):
        program, *arguments = shlex.split(words)
        path = {"PATH": f"{opt}:/usr/bin:/bin"}
        code, output = run([str(opt / program), *arguments], tmp_path, path)
        assert 0 == code, (words, output)
