"""The house of section 2: three floors, arrows only downward, one role per file, none too long."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("storage", "pipeline", "jobs")
FILES = [
    path.relative_to(ROOT) for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))
]
LINES = 450
ROOMS = 10
"""The most files and folders directly in jobs."""
FOLDERS = {
    ("commands", "scoring"),
    ("commands", "scheduling"),
    ("commands", "training"),
    ("commands", "nn"),
    ("scoring", "training"),
    ("scoring", "nn"),
    ("training", "nn"),
}
"""The folders of jobs, and which of them each may import."""

FORBIDDEN = {
    "storage": {"pipeline", "jobs", "dask", "distributed", "click"},
    "pipeline": {"jobs", "click"},
}
"""What a floor must not import: the floors above it, and what is theirs to use."""

every_file = pytest.mark.parametrize("path", FILES, ids=str)


def imported(source: str, package: str) -> Iterator[str]:
    """The full name of every module imported anywhere in `source`, a module of `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            # `from jobs import nn` may import the module jobs.nn
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    return set(imported((ROOT / path).read_text(), ".".join(path.parent.parts)))


def packages_of(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(path)}


def knows_click(path: Path) -> bool:
    """Return whether a file may import click: those of jobs/commands."""
    return path.parent == Path("jobs/commands")


def is_work(path: Path) -> bool:
    """What a job does, apart from how it is asked for and what is told of it."""
    return path.parts[:2] in {("jobs", name) for name in ("scoring", "training", "scheduling")}


def test_imports_are_seen() -> None:
    """The reader of imports sees them at any depth, under other names, and relative ones."""
    source = """
import a.b as c, d
from e.f import g
from . import h
from ..i import j
def later():
    if True:
        from k import l
"""
    expected = {"a.b", "d", "e.f.g", "jobs.nn.h", "jobs.i.j", "k.l"}
    assert expected == set(imported(source, "jobs.nn"))


def test_the_floors_are_here() -> None:
    """Each floor has files to be held to the rules."""
    assert set(FLOORS) == {path.parts[0] for path in FILES}
    assert Path("jobs/nn/network.py") in FILES


@every_file
def test_arrows_point_down(path: Path) -> None:
    """storage imports neither pipeline, jobs, dask nor click; pipeline neither jobs nor click."""
    assert set() == packages_of(path) & FORBIDDEN.get(path.parts[0], set())


@pytest.mark.parametrize("path", [path for path in FILES if is_work(path)], ids=str)
def test_work_knows_no_commands(path: Path) -> None:
    """What jobs do imports nothing of jobs/commands: commands call jobs, never the other way."""
    assert [] == [name for name in imports_of(path) if f"{name}.".startswith("jobs.commands.")]


@every_file
def test_only_the_commands_know_click(path: Path) -> None:
    """click is imported by jobs/commands alone."""
    assert knows_click(path) or "click" not in packages_of(path)


def test_arrows_between_the_folders_of_jobs() -> None:
    """Commands call scoring and scheduling, scoring calls training, training calls the network."""
    arrows = {
        (path.parts[1], name.split(".")[1])
        for path in FILES
        if path.parts[0] == "jobs" and len(path.parts) > 2
        for name in imports_of(path)
        if name.startswith("jobs.") and (ROOT / "jobs" / name.split(".")[1]).is_dir()
    }
    assert {(one, other) for one, other in arrows if one != other} <= FOLDERS


def test_jobs_is_a_small_floor() -> None:
    """Folders and files directly in jobs are few, and the files import none of the folders."""
    rooms = {path.parts[1] for path in FILES if path.parts[0] == "jobs"} - {"__init__.py"}
    assert ROOMS >= len(rooms)
    for path in FILES:
        if path.parts[0] == "jobs" and len(path.parts) == 2:
            assert [] == [
                name
                for name in imports_of(path)
                if name.startswith("jobs.") and (ROOT / "jobs" / name.split(".")[1]).is_dir()
            ]


def test_no_file_needs_itself() -> None:
    """Whoever follows the imports from a file, those in functions too, never comes back to it."""
    modules = {".".join(path.with_suffix("").parts): path for path in FILES}
    needs = {
        name: {found.rpartition(".")[0] for found in imports_of(path)} & modules.keys()
        for name, path in modules.items()
    }
    assert list(TopologicalSorter(needs).static_order())


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[1] == "nn"], ids=str)
def test_the_network_can_be_read_alone(path: Path) -> None:
    """jobs/nn imports numpy, the standard library and itself, nothing else."""
    outside = {
        name
        for name in imports_of(path)
        if name.partition(".")[0] not in {"numpy", *sys.stdlib_module_names}
        and not name.startswith("jobs.nn.")
    }
    assert set() == outside


@every_file
def test_a_file_says_its_role(path: Path) -> None:
    """The first statement of every file is a docstring whose first line is not empty."""
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text()), clean=False)
    assert docstring is not None
    assert docstring.partition("\n")[0].strip()


@every_file
def test_no_file_is_long(path: Path) -> None:
    """Past some 400 lines a file wants two roles; none has more than 450."""
    assert LINES >= len((ROOT / path).read_text().splitlines())


@every_file
def test_no_file_is_for_everything(path: Path) -> None:
    """No file is called after nothing in particular: one role each."""
    assert not {"utils", "util", "helpers", "helper", "common", "misc"} & {*path.parts, path.stem}
