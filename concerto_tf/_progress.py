"""Says what is at work where it takes long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger("concerto_tf")
#: Seconds after which it is said what is at work, and again after twice as many each time, up to a
#: minute between two lines.
FIRST, LONGEST = 5.0, 60.0


@contextmanager
def stage(what: str | Callable[[], str]) -> Iterator[None]:
    """Names a piece of work in the log once it takes more than 5 s, and again as it goes on.

    For what has no number of cells done to be told; short work leaves no line.

    Args:
        what: The work: "UMAP of 2,638 cells"; or a call that tells it, where it says how far it is.

    Example:
        >>> with stage("a sum"):
        ...     sum(range(10))
        45
    """
    done = threading.Event()
    began = time.monotonic()

    def tell() -> None:
        wait = FIRST
        while not done.wait(wait):
            passed = time.monotonic() - began
            _log.info("%s: at work for %.0f s", what() if callable(what) else what, passed)
            wait = min(passed, LONGEST)

    teller = threading.Thread(target=tell, name="concerto-stage", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
