"""The reference pages agree with the code."""

import ast
import re
import runpy

from storage import errors
from tests.test_house import FLOORS, ROOT

REFERENCE = ROOT / "docs" / "reference"
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))


def test_generated_pages_are_current() -> None:
    """`python docs/generate.py` would change nothing."""
    stale = [str(path) for path in GENERATE["out_of_date"]()]
    assert [] == stale, "run: python docs/generate.py"


def test_exit_codes_are_those_of_the_errors() -> None:
    """The page of exit codes names every error type, each beside its own code."""
    page = (REFERENCE / "exit-codes.md").read_text()
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


def logged_events() -> set[tuple[str, frozenset[str]]]:
    """The name and the literal facts of every event that the product logs."""
    events = set()
    for path in (path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "event":
                names = [one for one in ast.walk(node.args[1]) if isinstance(one, ast.Constant)]
                facts = {keyword.arg for keyword in node.keywords if keyword.arg} - {"level"}
                events |= {(str(name.value), frozenset(facts)) for name in names}
    return events


def test_events_are_documented() -> None:
    """The page of events has a row for each event that is logged, with its facts."""
    page = (REFERENCE / "events.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", page, re.MULTILINE)
    documented: dict[str, set[str]] = {}
    for name, facts in rows:
        documented.setdefault(name, set()).update(re.findall(r"`(\w+)`", facts))
    logged = logged_events()
    assert len(logged) > 15
    missing = {name: facts - documented.get(name, {name}) for name, facts in logged}
    assert {} == {name: facts for name, facts in missing.items() if facts}
    assert [] == [name for name, _ in logged if name not in documented]
