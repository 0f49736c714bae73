"""Dask in this process: its configuration, and its scheduler on threads.

Dask reads its YAML files when it is first imported, and that is here: one that is no YAML is wrong
usage, and no defect of ours.
"""

from storage.errors import UsageError

__all__ = ["config", "run_on_threads"]

try:
    from dask import config
    from dask.threaded import get as run_on_threads
except TypeError as error:
    raise UsageError(
        f"Dask cannot put its own configuration together ({error}): two of its files or DASK_ "
        "variables contradict each other. Mend or remove one of them."
    ) from error
except ValueError as error:
    told = str(error).partition(", original error message:")[0]
    raise UsageError(
        f"Dask cannot read its own configuration ({told}): mend that file, or remove it."
    ) from error
