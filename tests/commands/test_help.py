"""Help: it is complete."""

import re
from pathlib import Path

import click
import pytest

from jobs.commands.cli import cli
from storage import errors
from tests.commands.process import run_pipeline

EXIT_CODES = {
    "0": "done, or already done",
    "1": "internal error: traceback, and where to report it",
    "2": "wrong usage",
    "3": "bad data: IDX, dataset, checkpoint, scores",
    "4": "conflict: locked, exists already, configuration differs",
    "5": "a quality gate was missed",
    "6": "storage or cluster unreachable: worth trying again",
    "130, 143": "interrupted, checkpoint saved",
}
"""Section 9 of the design."""

every_command = pytest.mark.parametrize("name", list(cli.commands))


def options_of(name: str) -> dict[str, click.Option]:
    """A command's options by their long names; `--no-...` goes with its positive."""
    command = cli.commands[name]
    parameters = command.get_params(click.Context(command))
    options = [found for found in parameters if isinstance(found, click.Option)]
    return {max(option.opts, key=len): option for option in options}


def test_exit_codes(tmp_path: Path) -> None:
    """The list of exit codes in --help is the design's, and the errors' own."""
    ended = run_pipeline("--help", cwd=tmp_path)
    _, _, rest = ended.out.partition("Exit codes:\n")
    listed = re.findall(r"^ {4}(\S.*?)  +(.*)$", rest.partition("\n\n")[0], re.MULTILINE)
    assert EXIT_CODES == dict(listed)
    kinds = [found for found in vars(errors).values() if isinstance(found, type)]
    codes = {str(kind.exit_code) for kind in kinds if issubclass(kind, errors.PipelineError)}
    assert codes == {"1", "2", "3", "4", "5", "6"}


def test_commands_in_order_of_use(tmp_path: Path) -> None:
    """--help lists the commands in the order of use, each with a whole sentence."""
    listing = run_pipeline("--help", cwd=tmp_path).out.partition("Commands:\n")[2]
    found = re.findall(r"^  (\w+) +(.*)$", listing, re.MULTILINE)
    assert [name for name, _ in found] == [
        "ingest",
        "inspect",
        "verify",
        "train",
        "score",
        "scores",
        "promote",
        "schedule",
        "demo",
    ]
    assert [] == [text for _, text in found if not text.endswith(".") or text.endswith("...")]


@every_command
def test_every_option_has_a_help_text(name: str) -> None:
    """Every command and every option says in a sentence what it is for."""
    assert (cli.commands[name].help or "").split("\n")[0].endswith(".")
    texts = {option: found.help or "" for option, found in options_of(name).items()}
    without = [
        option for option, text in texts.items() if not re.fullmatch(r"\S.*[.\])]", text, re.DOTALL)
    ]
    assert [] == without
