"""The reference pages agree with the code."""

import re
import runpy
from pathlib import Path

from storage import errors

DOCS = Path(__file__).parent.parent.parent / "docs"
GENERATE = runpy.run_path(str(DOCS / "generate.py"))


def test_generated_pages_are_current() -> None:
    """`python docs/generate.py` would change nothing."""
    stale = [str(path) for path in GENERATE["out_of_date"]()]
    assert [] == stale, "run: python docs/generate.py"


def test_exit_codes_are_those_of_the_errors() -> None:
    """The page of exit codes names every error type, each beside its own code."""
    page = (DOCS / "reference" / "exit-codes.md").read_text()
    rows = re.findall(r"^\| (\d+) \|[^|]*\|([^|]*)\|", page, re.MULTILINE)
    documented = {name: int(code) for code, cell in rows for name in re.findall(r"`(\w+)`", cell)}
    types = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = {
        error.__name__: error.exit_code
        for error in types
        if errors.PipelineError in error.__bases__ and error is not errors.StoppedError
    }
    assert codes | {"StoppedError": 143} == documented
    assert {"0", "130", "143"} <= {code for code, _ in rows}
