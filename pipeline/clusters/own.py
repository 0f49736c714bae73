"""A cluster of a job's own: processes of this machine, on loopback alone, that heed no Ctrl-C."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

import dask
from distributed import LocalCluster
from distributed.security import Security

from pipeline.clusters.options import ClusterOptions
from storage.errors import UnreachableError


def local_cluster(options: ClusterOptions) -> LocalCluster:
    """Processes with one thread each that listen on loopback only.

    Their profiler looks at every thread a hundred times a second, between any two NumPy calls: it
    took a tenth of the time of short steps. On a cluster of the user's own it is his to choose.
    """
    try:
        with (
            dask.config.set({"distributed.worker.profile.enabled": False}),
            _signals_left_to_this_thread(),
        ):
            return LocalCluster(
                n_workers=options.workers,
                threads_per_worker=1,
                processes=True,
                host="tls://127.0.0.1" if options.tls_ca else "127.0.0.1",
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                security=security_of(options),
            )
    except (OSError, TimeoutError, RuntimeError) as error:
        raise UnreachableError(f"Cannot start {options.workers} workers ({error}).") from error


@contextmanager
def _signals_left_to_this_thread() -> Iterator[None]:
    """Start threads, and from them processes, that no Ctrl-C reaches, be they still importing.

    A signal's mask goes down to both; what comes meanwhile comes here when the block ends. The
    tracker of Python's own semaphores would clear the mask, so it is started before; it need not
    tell what a job leaves that ends at once.
    """
    warnings = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if warnings is not None:
            os.environ["PYTHONWARNINGS"] = warnings
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def security_of(options: ClusterOptions) -> Security | None:
    """TLS by the options; None leaves it to Dask's own configuration."""
    if not options.tls_ca:
        return None
    pair = {
        f"tls_{side}_{kind}": getattr(options, f"tls_{kind}")
        for side in ("client", "scheduler", "worker")
        for kind in ("cert", "key")
    }
    return Security(tls_ca_file=options.tls_ca, require_encryption=True, **pair)
