"""What the bits of a computation depend on besides the code: NumPy, its BLAS, the processor."""

import platform
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info


def environment() -> dict[str, Any]:
    """The versions and the BLAS kernel that this process computes with."""
    blas = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return {
        "numpy": np.__version__,
        "blas": ", ".join(f"{found['internal_api']} {found['version']}" for found in blas),
        "blas_kernel": ", ".join(str(found.get("architecture")) for found in blas),
        "machine": platform.machine(),
    }
