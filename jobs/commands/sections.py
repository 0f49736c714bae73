"""Commands and options whose help has sections: everyday ones first, all with --help-all."""

import re
import textwrap
from collections.abc import Callable
from typing import Any

import click

from storage.errors import did_you_mean

SECTIONS = (
    *(
        "Search",
        "Data",
        "Source",
        "Model",
        "Optimisation",
        "Evaluation",
        "Checkpoints",
        "Gates",
        "Schedule",
    ),
    *("Output", "Other schedulers", "Retries", "Distortions", "Rounds", "Cluster", "Storage"),
)
"""The sections of a help text, in this order."""
ADVANCED = {"Retries", "Distortions", "Rounds", "Cluster", "Storage"}
"""Sections that are shown by --help-all only."""
METAVARS = {"integer": "N", "float": "X"}
"""The placeholder of a value in help, by the name of its type."""
WIDTH = 80
DEFAULT = re.compile(r"\[default: [^]]+\]")
"""A default, kept on one line if it fits."""
NO_BREAK = "\xa0"
TERM_WIDTH = 25
"""Width of the first column; longer options have their description on the next line."""


class IntRange(click.IntRange):
    """A range with the error `'x' is not a valid integer`."""

    name = "integer"


class Count(click.types.IntParamType):
    """A whole number whose error names its unit, such as `of rows`."""

    def __init__(self, unit: str) -> None:
        self._unit = unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is not a whole number {self._unit}.", param, ctx)


class Choice(click.Choice[str]):
    """A choice whose error suggests the nearest value."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        known = ", ".join(self.choices)
        return f"{value!r} is not one of {known}.{did_you_mean(str(value), self.choices)}"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "NAME"


class Option(click.Option):
    """An option with a section; `advanced` leaves it to --help-all in any section.

    --help then names its `topic`, if it has one, or its section, if that is left out.
    """

    def __init__(
        self,
        *declarations: Any,
        section: str = "Output",
        advanced: bool = False,
        topic: str = "",
        **settings: Any,
    ) -> None:
        super().__init__(*declarations, **settings)
        self.section = section
        self.advanced = advanced or section in ADVANCED
        self.topic = section.lower() if section in ADVANCED else topic
        self.metavar = self.metavar or METAVARS.get(self.type.name)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        text = self.help or ""
        choices = self.type.choices if isinstance(self.type, click.Choice) else ()
        if not all(choice in text for choice in choices):
            text = f"{text.removesuffix('.')}: {', '.join(choices)}."
        default = self.get_help_extra(ctx).get("default", "")
        if isinstance(self.show_default, str):
            default = self.show_default
        return self.get_help_spec(ctx), text + (f"  [default: {default}]" if default else "")


def option(*declarations: str, **settings: Any) -> Callable[[Any], Any]:
    """Add an `Option`; `settings` are its own and those of `click.Option`."""
    return click.option(*declarations, cls=Option, **settings)


def _show_all(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        click.echo(help_text(context, show_all=True))
        context.exit()


class _HelpAll(Option):
    """The option --help-all, whose description names what --help leaves out."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        options = [one for one in ctx.command.get_params(ctx) if isinstance(one, Option)]
        options.sort(key=lambda one: SECTIONS.index(one.section))
        topics = dict.fromkeys(one.topic for one in options if one.topic)
        more = f"Show more options: {', '.join(topics)}." if topics else self.help
        return self.get_help_spec(ctx), str(more)


HELP_ALL = _HelpAll(
    ["--help-all"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_all,
    advanced=True,
    help="Show all options and exit.",
)


class Command(click.Command):
    """A command whose help shows its options in sections."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        return ["-h", "--help"]  # also in a context without a parent: click keeps the first answer

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *own, help_option = super().get_params(ctx)
        return [*own, help_option, HELP_ALL]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(help_text(ctx, show_all=False))


def help_text(context: click.Context, *, show_all: bool) -> str:
    """Return the usage, the description and the sections of a command's help."""
    formatter = context.make_formatter()
    formatter.width = min(formatter.width + 2, WIDTH)
    command = context.command
    command.format_usage(context, formatter)
    command.format_help_text(context, formatter)
    options = [one for one in command.get_params(context) if isinstance(one, click.Option)]
    advanced = [one for one in options if getattr(one, "advanced", False) and one is not HELP_ALL]
    hidden = [] if show_all else advanced or [HELP_ALL]
    formatter.write(
        _sections([one for one in options if one not in hidden], context, formatter.width)
    )
    if show_all:
        command.format_epilog(context, formatter)
    return formatter.getvalue().rstrip("\n")


def _sections(options: list[click.Option], context: click.Context, width: int) -> str:
    """Return the options under the titles of their sections, in two columns."""
    rows: dict[str, list[tuple[str, str]]] = {title: [] for title in SECTIONS}
    for one in options:
        if record := one.get_help_record(context):
            rows[section_of(one)].append(record)
    terms = [term for records in rows.values() for term, _ in records]
    term_width = max(len(term) for term in terms if len(term) <= TERM_WIDTH)
    return "".join(
        f"\n{title}:\n" + "".join(_entry(*record, term_width, width) for record in records)
        for title, records in rows.items()
        if records
    )


def _entry(term: str, text: str, term_width: int, width: int) -> str:
    """Return an option's lines: its name and, in the second column, its description."""
    indent = " " * (term_width + 4)
    room = width - len(indent)
    default = DEFAULT.search(text)
    if default and len(default[0]) <= room:
        text = text.replace(default[0], default[0].replace(" ", NO_BREAK))
    lines = textwrap.wrap(text, room, break_on_hyphens=False)
    first, *rest = [line.replace(NO_BREAK, " ") for line in lines]
    start = f"  {term:<{term_width}}  " if len(term) <= term_width else f"  {term}\n{indent}"
    return "\n".join([start + first, *(indent + line for line in rest)]) + "\n"


def section_of(option: click.Option) -> str:
    """Return the title of the section that an option is in."""
    return str(getattr(option, "section", "Output"))
