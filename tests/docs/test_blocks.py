"""Every block of README and docs runs and prints the page's output, or is marked with a reason."""

import re
from pathlib import Path

import pytest

from tests.commands.sets import write_kaggle, write_set
from tests.docs.blocks import LANGUAGES, PAGES, REPOSITORY, blocks_of, is_known
from tests.docs.session import pattern_of, session
from tests.jobs.inboxes import put_images
from tests.object_store.server import Store, create_bucket

BLOCKS = {str(page.relative_to(REPOSITORY)): list(blocks_of(page)) for page in PAGES}
ALL = [block for blocks in BLOCKS.values() for block in blocks]
RUN = {name: [block for block in blocks if block.is_run] for name, blocks in BLOCKS.items()}
USES_MNIST = re.compile(r"pipeline (?:demo|ingest +mnist|ingest(?! +[a-z]))|MNIST_DIR")
BUCKET = "my-bucket"
"""The bucket that the pages name."""


def test_every_fence_is_of_a_block() -> None:
    """No block escapes the tests by its form or by its language."""
    for page in PAGES:
        blocks = BLOCKS[str(page.relative_to(REPOSITORY))]
        fences = sum(2 if block.output is None else 4 for block in blocks)
        assert re.findall("```|~~~", page.read_text()) == ["```"] * fences, page
    assert [] == [f"{block} {block.language}" for block in ALL if block.language not in LANGUAGES]


def test_readme_is_short() -> None:
    """README stays short; details are in docs."""
    assert 130 >= len((REPOSITORY / "README.md").read_text().splitlines())


def test_every_mark_has_a_meaning() -> None:
    """A mark that a test does not know, such as one without a reason, is refused."""
    assert [] == [
        f"{block} {block.mark}" for block in ALL if block.mark and not is_known(block.mark)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, blocks in RUN.items() if blocks])
def test_page(
    name: str,
    tmp_path: Path,
    plain_environment: dict[str, str],
    request: pytest.FixtureRequest,
) -> None:
    """The blocks of a page run in order in one directory, and print the page's sample output."""
    env = dict(plain_environment)
    code = "".join(block.code for block in RUN[name])
    if USES_MNIST.search(code):
        env["MNIST_DIR"] = str(request.getfixturevalue("mnist_dir"))
    if "my-files" in code and "write_idx" not in code:
        write_set(tmp_path / "my-files")
    if "digit-recognizer" in code:
        write_kaggle(tmp_path / "digit-recognizer")
    if "new-files" in code and "mkdir new-files" not in code:
        put_images(tmp_path / "new-files" / "monday-images-idx3-ubyte", 1)
    if "s3://" in code:
        store: Store = request.getfixturevalue("store")
        create_bucket(Store(store.endpoint, BUCKET))
        env |= store.environment
    with session(tmp_path, env) as reader:
        for block in RUN[name]:
            out = reader.run(block)
            if block.output is not None:
                matches = bool(pattern_of(block.output).fullmatch(out))
                assert matches, f"{block} printed\n{out}"


@pytest.mark.parametrize(
    ("expected", "printed", "exact", "matches"),
    [
        ("a 1.5 s\n", "a 22.75 s\n", True, True),
        ("test 98.33 %\n", "test 98.34 %\n", True, False),
        ("test 98.33 %\n", "test 98.34 %\n", False, True),
        ("test 98.33 %\n", "train 98.33 %\n", False, False),
        ("model c48546ccd903\n", "model 048546ccd903\n", True, False),
        ("model c48546ccd903\n", "model 048546ccd903\n", False, True),
        ("167 mistakes\n", "168 mistakes\n", True, False),
        ("167 mistakes\n", "168 mistakes\n", False, True),
        ("60,000 rows\n", "50,000 rows\n", False, False),
        ("a   b\n...\nc\n", "a b\nx\ny\n  c\n", True, True),
        ("a\n...\nc\n", "a\nx\n", True, False),
        ("a ... c\n", "a b b c\n", True, True),
    ],
)
def test_sample_output(expected: str, printed: str, exact: bool, matches: bool) -> None:
    """Times may differ, as may digests and accuracies on other processors; nothing else may."""
    assert matches == bool(pattern_of(expected, exact=exact).fullmatch(printed))
