"""The language of the project: plain technical English, one word for one thing.

The lists below hold phrases that manuals of the field do not use, with what to say instead.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("jobs", "pipeline", "storage", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if path != Path(__file__)
)
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PHRASES = {
    "a defect of ours": "an internal error",
    "besides": "also, in addition to, or except",
    "by name of": "named",
    "came to the": "ended with the",
    "goes on": "continues",
    "heed": "obey, ignore",
    "in hand": "in progress",
    "is made of": "consists of",
    "is to be": "will be, must be",
    "lets go of": "releases",
    "lies in": "is in",
    "meanwhile": "in the meantime, or leave it out",
    "nobody": "no process, no user",
    "of ours": "of this project",
    "out of reach": "unreachable",
    "seen to": "handled",
    "so often": "how many times",
    "somebody": "another user, another process",
    "takes back": "undoes, returns",
    "told of": "notified of, given",
    "warned of": "caused a warning",
    "whoever": "the process that, users who",
}
"""Refused in code and pages: the phrase, and what to say instead."""
NAMES = {"found", "told", "there", "strange", "kind"}
"""Refused as names of variables: a name says what the value is."""


def assigned(source: str) -> set[str]:
    """Return the names of all variables and parameters of a module."""
    nodes = list(ast.walk(ast.parse(source)))
    stored = {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return stored | {node.arg for node in nodes if isinstance(node, ast.arg)}


def test_phrases() -> None:
    """No sentence has a phrase that the field's manuals would not print."""
    anywhere = "|".join(PHRASES).replace(" ", r"\s+#?\s*")
    pattern = re.compile(rf"\b(?:{anywhere})\b", re.IGNORECASE)
    refused = [
        f"{path.relative_to(ROOT)}: {phrase!r}; say {PHRASES[phrase]!r}"
        for path in [*SOURCES, *PAGES]
        for match in pattern.finditer(path.read_text())
        for phrase in [" ".join(re.findall(r"\w+", match[0].lower()))]
    ]
    assert not refused, "\n".join(refused)


def test_names() -> None:
    """Variables and parameters are named after their values."""
    having = {
        str(path.relative_to(ROOT)): vague
        for path in SOURCES
        if (vague := assigned(path.read_text()) & NAMES)
    }
    assert not having
