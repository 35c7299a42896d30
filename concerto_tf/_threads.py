"""How many processors this process may use, and how libraries are held to that."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

#: What TensorFlow with XLA, BLAS, OpenMP (scikit-learn, faiss) and numba (UMAP) read when loaded.
_VARIABLES = (
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
_asked: int | None = None


def processors() -> int:
    """Number of processors that this process may use.

    What was asked for by `limit_threads`, or the least of what the system, a container and SLURM
    give.
    """
    if _asked is not None:
        return _asked
    number = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        number = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # a container's share: microseconds of every so many
        share, of = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        number = min(number, round(int(share) / int(of)))
    with suppress(KeyError, ValueError):
        number = min(number, int(os.environ["SLURM_CPUS_PER_TASK"]))
    return max(1, number)


def limit_threads(number: int | None = None) -> None:
    """Holds libraries to a number of threads, in this process and in those that it starts.

    To be called before any of them is imported, as they read it then. Where numba runs already, it
    keeps its threads: it reads its variable again and again, and fails over another number.

    Args:
        number: Threads; None for as many as there are `processors`, where the environment does not
            say otherwise.
    """
    global _asked
    _asked = number
    for name in _VARIABLES:
        if name.startswith("NUMBA") and "numba" in sys.modules:
            continue
        if number is None:
            os.environ.setdefault(name, str(processors()))
        else:
            os.environ[name] = str(number)
