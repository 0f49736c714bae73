"""Code that a page quotes is in the function that it names, line for line."""

import inspect
import re
import textwrap
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "explanation" / "backpropagation.md"
QUOTES = re.findall(
    r"^<!-- not run: quoted from (\S+) in (\S+)\.py -->\n```python\n(.*?)^```$",
    PAGE.read_text(),
    re.MULTILINE | re.DOTALL,
)


def test_quotes_are_found() -> None:
    """The page quotes the code of every step, forward and backward."""
    assert {name for name, _, _ in QUOTES} == {
        "Backpropagation.forward",
        "Backpropagation.middle",
        "Backpropagation._multiply_slope",
        "Backpropagation.first_gradient",
        "cross_entropy",
        "CrossEntropy.loss_sum.func",
    }


@pytest.mark.parametrize(("name", "module", "code"), QUOTES)
def test_quotes_are_current(name: str, module: str, code: str) -> None:
    """A quote's lines are consecutive lines of the function."""
    function = attrgetter(name)(import_module(module.replace("/", ".")))
    source = [line.strip() for line in inspect.getsource(function).splitlines()]
    quote = [line.strip() for line in textwrap.dedent(code).splitlines()]
    starts = range(len(source) - len(quote) + 1)
    assert any(source[start : start + len(quote)] == quote for start in starts)
