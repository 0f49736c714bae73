"""Programs on the PATH of a page's blocks."""

import sys

import pytest

from tests.commands.process import REPOSITORY

PROGRAMS = {
    "pipeline": "-m jobs.commands.cli",
    "dask": "-m dask",
    "python": "",
    "python3": "",
}


@pytest.fixture(scope="session")
def plain_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A reader's variables: this checkout's `pipeline` on the PATH, and a temporary home."""
    programs, home = tmp_path_factory.mktemp("bin"), tmp_path_factory.mktemp("home")
    for name, arguments in PROGRAMS.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        program.chmod(0o755)
    return {
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(home),
        "COLUMNS": "80",
        "LANG": "C.UTF-8",
    }
