"""Help is complete, needs no other text, and fits a screen."""

import re

import click
import pytest

from jobs.choices import RECIPES
from jobs.commands.cli import cli
from jobs.commands.sections import ADVANCED, SECTIONS
from jobs.training.presets import recipe_summary
from storage import errors
from tests.commands.conftest import Call

EXIT_CODES = {
    "0": "success, or nothing left to do",
    "1": "internal error: please report it with its traceback",
    "2": "wrong usage",
    "3": "bad data: image file, dataset, checkpoint or scores",
    "4": "conflict: locked, already exists, or other settings",
    "5": "below a quality gate",
    "6": "storage or cluster unreachable: try again later",
    "130, 143": "interrupted; progress is saved",
}
"""Section 9 of the design."""

LINES, COLUMNS = 45, 80
"""A screen, in which the help of each command fits."""

every_command = pytest.mark.parametrize("name", list(cli.commands))


def options_of(name: str) -> list[click.Option]:
    """A command's options."""
    command = cli.commands[name]
    parameters = command.get_params(click.Context(command))
    return [parameter for parameter in parameters if isinstance(parameter, click.Option)]


def test_exit_codes(call: Call) -> None:
    """The list of exit codes in --help is the design's, and the errors' own."""
    _, _, rest = call("--help").out.partition("Exit codes:\n")
    listed = re.findall(r"^ {4}(\S.*?)  +(.*)$", rest.partition("\n\n")[0], re.MULTILINE)
    assert EXIT_CODES == dict(listed)
    types = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = {str(error.exit_code) for error in types if issubclass(error, errors.PipelineError)}
    assert codes == {"1", "2", "3", "4", "5", "6"}


def test_commands_in_order_of_use(call: Call) -> None:
    """--help begins with an example and lists the commands, each with a whole sentence."""
    shown = call("--help").out
    assert re.findall(r"^  pipeline (\w+) +# ", shown, re.MULTILINE) == ["ingest", "train", "score"]
    listing = shown.partition("Commands:\n")[2].partition("\n\n")[0]
    listed = re.findall(r"^  ([\w-]+) +(.*)$", listing, re.MULTILINE)
    assert [name for name, _ in listed] == list(cli.commands)
    assert list(cli.commands)[:4] == ["ingest", "train", "score", "demo"]
    assert [] == [text for _, text in listed if not re.fullmatch(r"[A-Z].*[^.]\.", text)]


@pytest.mark.parametrize("name", ["", *cli.commands])
@pytest.mark.parametrize("columns", [80, 200])
def test_help_fits_a_screen(
    name: str, columns: int, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line is longer than 80 columns, also on a wide terminal; --help is one screen."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for flag in ["--help", "--help-all"][: 2 if name else 1]:
        lines = call(*filter(None, [name]), flag).out.splitlines()
        assert [] == [line for line in lines if len(line) > COLUMNS]
        assert flag == "--help-all" or len(lines) <= LINES


@every_command
def test_narrow_help_breaks_no_word(name: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow terminal, the help has the same words as on a wide one."""
    monkeypatch.setenv("COLUMNS", "80")
    words = call(name, "--help-all").out.split()
    monkeypatch.setenv("COLUMNS", "60")
    assert words == call(name, "--help-all").out.split()


def test_short_help_outside_of_the_group() -> None:
    """A command has -h in any context: click creates its help option once per process."""
    assert ["-h", "--help"] in [option.opts for option in options_of("demo")]


@every_command
def test_every_option_is_shown(name: str, call: Call) -> None:
    """--help-all shows every option once; --help leaves out some sections and mentions it."""
    everything, short = call(name, "--help-all").out, call(name, "--help").out
    shown = re.findall(r"^  (?:-\w, )?(--[\w-]+)", everything, re.MULTILINE)
    assert sorted(shown) == sorted(max(option.opts, key=len) for option in options_of(name))
    sections = re.findall(r"^(\w[\w ]+):$", everything, re.MULTILINE)
    assert sections == [title for title in SECTIONS if title in sections]
    assert set(re.findall(r"^(\w[\w ]+):$", short, re.MULTILINE)) == {*sections} - ADVANCED
    left_out = len(everything.splitlines()) > len(short.splitlines()) + 1
    assert left_out == ("--help-all" in short)


def test_help_names_what_it_leaves_out(call: Call) -> None:
    """--help names what it leaves out: sections, topics and, for train, what recipes reach."""
    shown = {name: " ".join(call(name, "--help").out.split()) for name in ("train", "promote")}
    topics = "warm start, restarts, dropout, averages, distortions, rounds, cluster, storage"
    assert shown["train"].endswith(f"--help-all Show more options: {topics}.")
    recipes = call("train", "--help-all").out.partition("\nRecipes (--recipe):\n")[2]
    expected = [f"{name} {recipe_summary(name)}" for name in RECIPES]
    assert " ".join(expected) == " ".join(recipes.split())
    assert all(re.search(r": [\d.]+ % .*(second|minute|hour)", text) for text in expected)
    assert shown["promote"].endswith("--help-all Show more options: averages, retries, storage.")


@every_command
def test_every_option_has_a_help_text(name: str) -> None:
    """Every command and every option has a description that is a full sentence."""
    assert (cli.commands[name].help or "").split("\n")[0].endswith(".")
    texts = {option.opts[0]: option.help or "" for option in options_of(name)}
    sentence = re.compile(r"(?!Of |The same)[A-Z\d.a-z].*[^.]\.", re.DOTALL)
    assert {} == {option: text for option, text in texts.items() if not sentence.fullmatch(text)}


def test_no_default_needs_an_explanation(call: Call) -> None:
    """A default with a special meaning is described in words."""
    shown = " ".join(call("train", "--help-all").out.split())
    for option, default in {
        "--threads": "all cores",
        "--patience": "no early stopping",
        "--checkpoint-every": "at the end of each epoch only",
        "--l2": "0.1 for adamw, 0 otherwise",
        "--micro-batches": "by batch size",
        "--shuffle-memory": "256 MiB",
        "--shuffle / --no-shuffle": "on",
        "--optimizer": "adamw",
    }.items():
        assert re.search(rf"{option} [^[]*\[default: {default}\]", shown), option
    for name in cli.commands:
        assert not re.search(r"default: (-1|none|None|0\.0)\b", call(name, "--help-all").out)
