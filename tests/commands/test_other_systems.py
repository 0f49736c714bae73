"""The commands without the parts of Python's standard library that only Linux has."""

import os
from pathlib import Path

import pytest

from tests.commands.process import document, run_pipeline

pytestmark = pytest.mark.slow

WITHOUT_LINUX = """
import fcntl, mmap, os, resource, signal, socket, sys

LACKING = {
    os: (
        *("CLD_", "EFD_", "GRND_", "MFD_", "O_DIRECT ", "O_LARGEFILE", "O_NOATIME", "O_PATH"),
        *("O_RSYNC", "O_TMPFILE", "P_PIDFD", "POSIX_FADV_", "RWF_", "SCHED_", "SPLICE_", "XATTR_"),
        *("copy_file_range", "eventfd", "fdatasync", "fork ", "getrandom", "getresgid"),
        *("getresuid", "getxattr", "listxattr", "memfd_create", "pidfd_open", "pipe2"),
        *("posix_fadvise", "posix_fallocate", "removexattr", "sched_", "setns", "setresgid"),
        *("process_cpu_count",),
        *("setresuid", "setxattr", "splice", "timerfd_", "unshare"),
    ),
    fcntl: ("F_ADD_SEALS", "F_GET_SEALS", "F_OFD_", "F_SEAL_", "F_SETPIPE_SZ", "F_GETPIPE_SZ"),
    mmap: ("MADV_", "MAP_DENYWRITE", "MAP_EXECUTABLE", "MAP_POPULATE", "MAP_STACK"),
    resource: ("prlimit", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_RT", "RLIMIT_SIGPENDING"),
    signal: ("SIGRTM", "SIGPOLL", "SIGPWR", "SIGSTKFLT", "sigtimedwait", "sigwaitinfo"),
    socket: ("AF_ALG", "AF_NETLINK", "AF_VSOCK", "SO_PEERCRED", "SO_PASSCRED"),
}
LIBRARIES = ("psutil", "psutil._pslinux", "psutil._common", "threadpoolctl")
for module, beginnings in LACKING.items():
    for name in [*vars(module)]:
        if f"{name} ".startswith(beginnings):
            delattr(module, name)

def knows_the_system(frame):  # these libraries have other means on each
    while frame and frame.f_globals.get("__name__") not in LIBRARIES:
        frame = frame.f_back
    return frame

def refuse(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and arguments:
        place = arguments[0]
        if isinstance(place, str) and place.startswith(("/proc", "/sys", "/dev/shm")):
            if not knows_the_system(sys._getframe(1)):
                raise FileNotFoundError(2, "No such file or directory", place)

sys.addaudithook(refuse)
"""
"""A `sitecustomize` that removes what CPython documents as Linux only, or not on macOS."""


def test_the_three_commands(tmp_path: Path) -> None:
    """The digests are the same as on Linux; training uses a single process."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_LINUX)
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"
    restricted, linux = tmp_path / "restricted", tmp_path / "linux"
    for place in (restricted, linux):
        place.mkdir()
    for command in (
        ("ingest", "synthetic:300,60", "--rows-per-chunk", 64),
        ("train", "--dataset", "data/synthetic", "--epochs", 2, "--batch-size", 100),
        ("score", "--dataset", "data/synthetic", "--out", "rows.csv"),
        ("verify", "data/synthetic"),
        ("verify", "runs/mnist"),
    ):
        environment = {"PYTHONPATH": path}
        printed = document(run_pipeline(*command, "--json", cwd=restricted, env=environment))
        expected = document(run_pipeline(*command, "--json", cwd=linux))
        for name in ("digest", "parameters_digest", "order_digest", "scores_digest", "wrong"):
            assert expected.get(name) == printed.get(name)
