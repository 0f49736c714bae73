"""The structure of the code: three floors, imports only downward, one role per file.

A failing test names every file that breaks its rule.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = ("storage", "pipeline", "jobs")
FILES = [
    path.relative_to(ROOT) for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))
]
PACKAGE = "__init__.py"
MOST_LINES, FEWEST_LINES = 450, 60
SHORT = {
    "jobs/nn/choices.py": "names that --help shows, in a file that imports nothing",
    "jobs/nn/parameters.py": "the layout in memory that optimizers and checkpoints share",
    "jobs/scoring/retry.py": "the job, the scorer and the inbox share it",
    "jobs/training/result.py": "what `train` returns, as jobs/scoring/result.py is of scoring",
    "jobs/training/thread_map.py": "evaluation and scoring share it",
    "pipeline/draws.py": "distortions and dropout share it",
    "jobs/training/local_step.py": "chooses between two steps, for all that take steps",
    "storage/events.py": "logging and progress, which all floors use",
}
"""Files of fewer than `FEWEST_LINES` lines, each with its reason."""
ROOMS = {"jobs": 10, "pipeline/cluster": 5}
"""The largest number of files and folders directly in a folder, without `__init__.py`."""
FOLDERS = {
    "commands": {"exports", "scoring", "scheduling", "sweeps", "training", "nn"},
    "exports": {"training", "nn"},
    "sweeps": {"training", "nn"},
    "scoring": {"training", "nn"},
    "training": {"nn"},
    "scheduling": set(),
    "nn": set(),
}
"""The folders of jobs, and which others each may import."""
FORBIDDEN = {
    "storage": {"pipeline", "jobs", "dask", "distributed", "click"},
    "pipeline": {"jobs", "click"},
    "jobs": {"click"},
    "jobs/commands": set[str](),
}
"""Packages that a floor must not import: floors above it, and libraries that only those use."""


def imported(source: str, package: str) -> Iterator[str]:
    """Yield the full name of every module imported anywhere in `source`, a module of `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            # `from jobs import nn` may import the module jobs.nn
            yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def imports() -> dict[Path, set[str]]:
    """Return the names that each file imports, in functions too."""
    return {
        path: set(imported((ROOT / path).read_text(), ".".join(path.parent.parts)))
        for path in FILES
    }


def top(name: str) -> str:
    """Return the first package of a dotted name."""
    return name.partition(".")[0]


def folder(name: str) -> str:
    """Return the folder of jobs that contains a dotted name; empty for all other names."""
    parent = name.split(".")[1] if name.startswith("jobs.") else ""
    return parent if parent in FOLDERS else ""


def test_imports_are_seen() -> None:
    """Imports are recognised at any depth, under other names, and when relative."""
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
    assert Path("jobs/nn/network.py") in FILES


def test_arrows_point_down() -> None:
    """storage imports neither pipeline, jobs, dask nor click; pipeline not jobs; commands click."""
    refused = {
        str(path): {top(name) for name in names} & FORBIDDEN[place]
        for path, names in imports().items()
        for place in [str(path.parent) if str(path.parent) in FORBIDDEN else path.parts[0]]
    }
    assert {} == {path: names for path, names in refused.items() if names}


def test_arrows_between_the_folders_of_jobs() -> None:
    """Commands call scoring and scheduling, scoring calls training, training calls the network.

    The files directly in jobs import none of them.
    """
    assert set(FOLDERS) == {path.parts[1] for path in FILES if path.parts[0] == "jobs"} & {
        path.name for path in (ROOT / "jobs").iterdir() if path.is_dir()
    }
    wrong = {
        (str(path), name)
        for path, names in imports().items()
        if path.parts[0] == "jobs"
        for name in names
        if folder(name) and folder(name) not in {path.parts[1], *FOLDERS.get(path.parts[1], set())}
    }
    assert set() == wrong


def test_the_network_can_be_read_alone() -> None:
    """jobs/nn imports numpy, the standard library and itself, nothing else."""
    known = {"numpy", *sys.stdlib_module_names}
    wrong = {
        (str(path), name)
        for path, names in imports().items()
        if folder(".".join(path.parts)) == "nn"
        for name in names
        if top(name) not in known and folder(name) != "nn"
    }
    assert set() == wrong


def test_no_file_needs_itself() -> None:
    """No chain of imports, those in functions too, leads back to its file."""
    modules = {".".join(path.with_suffix("").parts): path for path in FILES}
    needs = {
        module: {module for name in imports()[path] for module in (name, name.rpartition(".")[0])}
        & modules.keys()
        for module, path in modules.items()
    }
    assert list(TopologicalSorter(needs).static_order())


def test_a_folder_has_few_rooms() -> None:
    """A folder has few enough files and folders to survey."""
    for place, most in ROOMS.items():
        below = {path.relative_to(place).parts[0] for path in FILES if path.is_relative_to(place)}
        assert most >= len(below - {PACKAGE}), (place, sorted(below))


def test_a_file_says_its_role() -> None:
    """The first statement of every file is a docstring whose first line is not empty."""
    docstrings = {
        path: ast.get_docstring(ast.parse((ROOT / path).read_text()), clean=False) or ""
        for path in FILES
    }
    assert [] == [str(path) for path, text in docstrings.items() if not text.split("\n")[0].strip()]


def test_no_file_is_long_or_short() -> None:
    """A file has one role: not so long that it has two, nor so short that it is part of another."""
    lines = {
        str(path): len((ROOT / path).read_text().splitlines())
        for path in FILES
        if path.name != PACKAGE
    }
    assert {} == {path: count for path, count in lines.items() if count > MOST_LINES}
    assert set(SHORT) == {path for path, count in lines.items() if count < FEWEST_LINES}


def test_no_file_is_for_everything() -> None:
    """No file name is so vague that it fits any content."""
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [] == [str(path) for path in FILES if vague & {*path.parts, path.stem}]
