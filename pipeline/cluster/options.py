"""Which cluster a job uses, if any: settings only, without importing Dask's cluster."""

import json
import os
import site
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from storage.errors import UsageError

DEFAULT_TIMEOUT = 120.0
"""Seconds that a job waits for a scheduler, and for workers when there are none."""


@dataclass(frozen=True)
class ClusterOptions:
    """The cluster to use. If all fields are None, Dask's own configuration decides."""

    scheduler: str | None = None
    """The scheduler's address, such as `tcp://host:8786`."""
    scheduler_file: str | None = None
    """The file that `dask scheduler --scheduler-file` writes."""
    workers: int | None = None
    """Worker processes to start on this machine; 0 for no cluster, whatever Dask's configuration
    says. They import the calling script, which needs `if __name__ == "__main__":` around the call
    of `connect`."""
    tls_ca: str | None = None
    """PEM file with the CA certificate of a `tls://` cluster."""
    tls_cert: str | None = None
    """PEM file with this client's certificate."""
    tls_key: str | None = None
    """PEM file with the private key of that certificate."""
    timeout: float = DEFAULT_TIMEOUT
    """Longest wait in seconds for a scheduler, or for a worker if there is none."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for options that exclude each other, or are incomplete."""
        given = (self.scheduler, self.scheduler_file, self.workers)
        if sum(option is not None for option in given) > 1:
            raise UsageError("Give only one of --scheduler, --scheduler-file and --workers.")
        if "" in given:
            raise UsageError("The scheduler's name is empty; omit the option to use no cluster.")
        if not self.timeout >= 1:  # also false for NaN
            raise UsageError(f"The cluster timeout is {self.timeout} s; expected at least 1 s.")
        files = (self.tls_ca, self.tls_cert, self.tls_key)
        if any(files) and not all(files):
            raise UsageError("Give all three of --tls-ca, --tls-cert and --tls-key, or none.")
        for file in filter(None, files):
            if not Path(file).is_file():
                raise UsageError(f"There is no file {file}; expected a PEM file for TLS.")

    @property
    def address(self) -> str | None:
        """The scheduler's address from the options, else from Dask's configuration.

        Raises `UsageError` if it is not an address.
        """
        if self.workers is not None or self.scheduler_file:
            return None
        address = self.scheduler or configured_address()
        return address and checked_address(address)

    @property
    def names_a_cluster(self) -> bool:
        """Whether there is a cluster to use at all."""
        return bool(self.workers or self.scheduler_file or self.address)


def configured_address() -> str | None:
    """Return `scheduler-address` of Dask's configuration, which DASK_SCHEDULER_ADDRESS sets.

    Dask is imported, which takes a tenth of a second, only if there is a configuration to read.
    Raises `UsageError` if it cannot be read.
    """
    variables = any(name.startswith("DASK_") for name in os.environ)
    if not variables and "dask" not in sys.modules and not any(map(os.path.exists, places())):
        return None
    with translate_configuration_errors():
        from dask import config

    address = config.get("scheduler-address", None)
    return str(address) if address else None


@contextmanager
def translate_configuration_errors() -> Iterator[None]:
    """Import Dask in the block; raise `UsageError` if its configuration cannot be read."""
    try:
        yield
    except (TypeError, ValueError) as error:
        reason = str(error).partition(", original error message:")[0]
        raise UsageError(
            f"Dask cannot read its configuration files and DASK_ variables ({reason}). Correct or "
            "remove the setting."
        ) from error


def checked_address(address: str) -> str:
    """Return a scheduler's address; raise `UsageError` if it cannot be one."""
    try:
        parts = urlsplit(address)
        if parts.scheme in {"tcp", "tls"} and parts.hostname and parts.port:
            return address
    except ValueError:  # the port is not a number
        pass
    raise UsageError(
        f"{address!r} is not the address of a Dask scheduler; expected one such as "
        "tcp://host:8786, by --scheduler, --scheduler-file or DASK_SCHEDULER_ADDRESS."
    )


def address_in(file: str) -> str | None:
    """Return the scheduler's address from its file; None if the file is missing or unfinished.

    Raises `UsageError` for a file with any other content.
    """
    content = b""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise _no_scheduler_file(file)
        content = Path(file).read_bytes()
        return checked_address(str(json.loads(content)["address"]))
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
    """Return where Dask looks for its configuration unless a variable names another place."""
    prefixes = dict.fromkeys([sys.prefix, *site.PREFIXES])
    return [
        "/etc/dask",
        *(os.path.join(prefix, "etc", "dask") for prefix in prefixes),
        os.path.join(os.path.expanduser("~"), ".config", "dask"),
    ]
