"""Before a job's first task: the same versions on every side, and its plugin on every worker."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Scheduler

from pipeline.clusters.client import Cluster
from pipeline.clusters.worker_side import ENDING_SECONDS, JOB_PREFIX, PACKAGES, WorkerSide, reason
from storage.errors import UnreachableError

ONE_ANSWER_SECONDS = 5.0
"""How long a worker may take that is asked by itself whether it is there."""


def check_versions(cluster: Cluster) -> None:
    """Raise `UnreachableError` with a table where any side has another version of something."""
    with cluster.reaching("for the versions on every side"), _answered_by_all(cluster):
        found: Any = cluster.ask(
            lambda client: client.get_versions(packages=list(PACKAGES)), cluster.timeout
        )
    sides = {"client": found["client"], "scheduler": found["scheduler"], **found["workers"]}
    table = {name: _of_side(side) for name, side in sides.items()}
    if any(versions != table["client"] for versions in table.values()):
        error = UnreachableError(
            "The versions differ between the sides of the cluster; install the same on each."
        )
        error.add_note(_version_table(table))
        raise error


def end_dead_jobs(cluster: Cluster) -> None:
    """Have the workers forget jobs that were killed, once their last tasks have ended.

    Such a task may still write to what this job is about to remove, and what workers hold for a
    job takes memory for as long as they live. Whatever does not succeed is left to the next job.
    """

    async def end(client: Any) -> None:
        jobs = await client.run_on_scheduler(dead_jobs)
        ends = (client.scheduler.unregister_worker_plugin(name=job) for job in jobs)
        await asyncio.gather(*ends, return_exceptions=True)

    with suppress(Exception):
        cluster.ask(end, min(cluster.timeout, 2 * ENDING_SECONDS))


def dead_jobs(dask_scheduler: Scheduler) -> list[str]:
    """For the scheduler: the jobs with a plugin on the workers, but no client any more."""
    return [
        name
        for name in dask_scheduler.worker_plugins
        if name.startswith(JOB_PREFIX) and not any(one in name for one in dask_scheduler.clients)
    ]


def set_workers_up(cluster: Cluster, side: WorkerSide) -> None:
    """Leave a job's plugin on every worker, also on those to come."""
    cluster.is_set_up = True
    for last in (False, True):
        try:
            with _answered_by_all(cluster):
                cluster.ask(lambda client: client.register_plugin(side), cluster.timeout)
            return
        except UnreachableError:
            raise
        except OSError as error:  # a worker died on it: the scheduler has the plugin for the others
            if last:
                raise cluster.lost(error) from error
        except Exception as error:  # whatever a worker's own installation raises
            raise UnreachableError(
                f"A worker cannot be set up ({type(error).__name__}: {reason(error)}). Install "
                "the same version of this project on every side."
            ) from error


@contextmanager
def _answered_by_all(cluster: Cluster) -> Iterator[None]:
    """Tell which side it is that does not answer what all workers are asked."""
    try:
        yield
    except TimeoutError as error:
        silent = _silent(cluster)
        if not silent:
            raise cluster.lost(f"asked all workers: {reason(error)}") from error
        raise UnreachableError(
            f"Of the cluster at {cluster.address} {', '.join(silent)} did not answer for "
            f"{cluster.timeout:.0f} s. End what stands still, then run the same command again."
        ) from error


def _silent(cluster: Cluster) -> list[str]:
    """The workers that do not answer; each is asked by itself."""

    async def asked(client: Any) -> list[Any]:
        return await asyncio.gather(
            *(
                asyncio.wait_for(
                    client.scheduler.broadcast(msg={"op": "identity"}, workers=[worker]),
                    ONE_ANSWER_SECONDS,
                )
                for worker in workers
            ),
            return_exceptions=True,
        )

    workers = cluster.workers(now=True)
    with cluster.reaching("which workers answer"):
        answers = cluster.ask(asked, 2 * ONE_ANSWER_SECONDS)
    pairs = zip(workers, answers, strict=True)
    return [worker for worker, answer in pairs if isinstance(answer, TimeoutError)]


def _of_side(side: Any) -> dict[str, str]:
    packages = side["packages"] if side else {}
    return {name: str(packages.get(name) or "missing") for name in ("python", *PACKAGES)}


def _version_table(table: dict[str, dict[str, str]]) -> str:
    """A line for each side, a column for each thing."""
    rows = [["", "python", *PACKAGES]]
    rows += [[side, *versions.values()] for side, versions in table.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
