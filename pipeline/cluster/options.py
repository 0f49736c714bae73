"""Which cluster a job is to work on, if any: settings alone, without the weight of Dask's own."""

import json
import os
import site
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from storage.errors import UsageError

DEFAULT_TIMEOUT = 120.0
"""Seconds that a job waits for a scheduler, or for workers where there are none."""


@dataclass(frozen=True)
class ClusterOptions:
    """Which cluster to use; all None leaves it to Dask's own configuration, and that to nobody."""

    scheduler: str | None = None
    """The scheduler's address, such as `tcp://host:8786`."""
    scheduler_file: str | None = None
    """The file that `dask scheduler --scheduler-file` writes."""
    workers: int | None = None
    """Processes of a cluster of this machine's own; 0 for none, whatever Dask is configured to."""
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    timeout: float = DEFAULT_TIMEOUT

    def __post_init__(self) -> None:
        """Raise `UsageError` for options that exclude each other, or are incomplete."""
        given = (self.scheduler, self.scheduler_file, self.workers)
        if sum(option is not None for option in given) > 1:
            raise UsageError(
                "Give one of --scheduler, --scheduler-file and --workers, not several."
            )
        if "" in given:
            raise UsageError("The scheduler that is named is empty; leave the option out for none.")
        if not self.timeout >= 1:  # a NaN is neither
            raise UsageError(f"The cluster's timeout is {self.timeout} s; expected at least 1.")
        files = (self.tls_ca, self.tls_cert, self.tls_key)
        if any(files) and not all(files):
            raise UsageError("Give all three of --tls-ca, --tls-cert and --tls-key, or none.")
        for file in filter(None, files):
            if not Path(file).is_file():
                raise UsageError(f"There is no file {file}; expected a PEM file for TLS.")

    @property
    def address(self) -> str | None:
        """The scheduler's address by the options, else by Dask's configuration.

        That has `scheduler-address`, which DASK_SCHEDULER_ADDRESS sets.
        """
        if self.scheduler or self.workers is not None or self.scheduler_file:
            return self.scheduler
        return configured_address()

    @property
    def names_a_cluster(self) -> bool:
        """Whether there is a cluster to work on at all."""
        return bool(self.workers or self.scheduler_file or self.address)


def configured_address() -> str | None:
    """Return the scheduler's address by Dask's configuration; raise `UsageError` if that is bad.

    Dask is not imported where it has nothing to read: that takes a tenth of a second.
    """
    variables = any(name.startswith("DASK_") for name in os.environ)
    if not variables and "dask" not in sys.modules and not any(map(os.path.exists, places())):
        return None
    from pipeline.windows import config

    found = config.get("scheduler-address", None)
    return str(found) if found else None


def address_in(file: str) -> str | None:
    """Return the scheduler's address from the file that it writes when it has started.

    None where the file is missing or unfinished. Raises `UsageError` for any other content.
    """
    content = b""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise _no_scheduler_file(file)
        content = Path(file).read_bytes()
        return str(json.loads(content)["address"])
    except OSError:
        return None
    except ValueError as error:
        if content.lstrip()[:1] in {b"", b"{"}:
            return None
        raise _no_scheduler_file(file) from error
    except (TypeError, KeyError, RecursionError) as error:
        raise _no_scheduler_file(file) from error


def _no_scheduler_file(file: str) -> UsageError:
    return UsageError(
        f"{file} is not a scheduler file. Give the file that "
        "`dask scheduler --scheduler-file FILE` writes."
    )


def places() -> list[str]:
    """Where Dask looks for its configuration when no variable names another place."""
    prefixes = dict.fromkeys([sys.prefix, *site.PREFIXES])
    return [
        "/etc/dask",
        *(os.path.join(prefix, "etc", "dask") for prefix in prefixes),
        os.path.join(os.path.expanduser("~"), ".config", "dask"),
    ]
