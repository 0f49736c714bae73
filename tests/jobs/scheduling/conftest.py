"""A plan to print, and arguments that could be misread in the printed formats."""

import sys
from pathlib import Path

import pytest

from jobs.scheduling.cron import cron_times
from jobs.scheduling.printers import Plan

HOSTILE_WORDS = (
    *(
        "\\\\",
        "a\\\\\\%b",
        "%",
        "$x",
        "$$",
        "$(A)",
        "a'b\"c",
        ";",
        "",
        " ",
        "#",
        "{{ x }}",
        "~",
        "*",
    ),
    *(
        "!x",
        "\U0001f600",
        "\u00e9",
        "\u3000",
        "\ufeff",
        "0",
        "1e3",
        "0x1f",
        "null",
        "yes",
        "- a",
        "a: b",
    ),
)
"""Arguments that a shell, a crontab, systemd, YAML or Jinja could misread."""
WORDS = ("score", "--inbox", "a b", "--out", "{home}.csv", "--model", "50%$x\"'\\")
"""A command with characters that each format treats specially."""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A job on weekday nights."""
    return Plan(
        times=cron_times("30 2 * * 1-5", "Europe/Berlin"),
        arguments=WORDS,
        name="nightly",
        catch_up=True,
        zone_given=True,
        directory=str(tmp_path),
        image="registry.example/mnist:1",
        claim="work",
    )


def own_command() -> list[str]:
    """Return the expected command for `pipeline` in printed schedules."""
    script = Path(sys.executable).with_name("pipeline")
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "jobs.commands.cli"]
