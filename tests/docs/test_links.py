"""Relative links of README and docs lead to a file, and to a heading in it if they name one."""

import re
from pathlib import Path

from tests.docs.blocks import PAGES, REPOSITORY

LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s#]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"\s", "-", heading) for heading in words}


def broken_links(page: Path) -> list[str]:
    """The broken links of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = []
    for target, anchor in LINK.findall(text):
        path = page.parent / target if target else page
        is_page = path.suffix == ".md" and path.is_file()
        if not path.exists() or (anchor and not (is_page and anchor in anchors(path))):
            broken.append(f"{target}#{anchor}")
    return broken


def test_links() -> None:
    """Every relative link resolves."""
    broken = {str(page.relative_to(REPOSITORY)): broken_links(page) for page in PAGES}
    assert {} == {page: links for page, links in broken.items() if links}


def test_broken_links_are_noticed(tmp_path: Path) -> None:
    """A missing file or heading is a broken link; code has no links."""
    page = tmp_path / "page.md"
    page.write_text("# A `b`\n[x](page.md#a-b) [y](page.md#c) [z](none.md)\n```\n[c](d)\n```\n")
    assert ["page.md#c", "none.md#"] == broken_links(page)
