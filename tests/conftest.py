"""What all tests share: quiet TensorFlow, markers, the shared data, two devices, commands."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    import tensorflow as tf

# Before anything imports TensorFlow. On a machine with GPUs the tests use the CPU all the same,
# so that they test the same thing everywhere; set CUDA_VISIBLE_DEVICES to have it otherwise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell makes what it runs in the background deaf to Ctrl-C, and what that starts in turn. Tests
# that interrupt a process need one that listens.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

# Folders whose tests and doctests run again on every Keras stack (`tools/test --stacks`).
STACK_FOLDERS = ("layers", "losses", "models")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set the markers `stack` (by folder) and `shared_data` (by fixture)."""
    for item in items:
        parts = item.path.relative_to(ROOT).parts
        if parts[0] in ("tests", "concerto_tf") and parts[1] in STACK_FOLDERS:
            item.add_marker("stack")
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker("shared_data")


def pytest_collection() -> None:
    """Make two CPU devices before a test module can start TensorFlow: afterwards it is too late."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave XLA to the tests marked `xla`, and to commands in processes of their own."""
    from concerto_tf.models.batch_model import BatchModel

    BatchModel.use_xla = item.get_closest_marker("xla") is not None


@pytest.fixture(scope="session")
def strategy() -> tf.distribute.Strategy:
    """Two replicas. One for all tests: TensorFlow mixes up the collectives of several."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def on_both(strategy: tf.distribute.Strategy) -> Callable[[np.ndarray, Callable], Any]:
    """What a function gives for each half of the rows of an array, on its own replica."""
    import tensorflow as tf

    def call(x: np.ndarray, run: Callable[[tf.Tensor], Any]) -> Any:
        size = len(x) // 2

        @tf.function
        def everywhere() -> Any:
            parts = strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(x[context.replica_id_in_sync_group * size :][:size])
            )
            return strategy.run(lambda part: run(part), (parts,))

        return tf.nest.map_structure(strategy.experimental_local_results, everywhere())

    return call


@pytest.fixture(scope="session")
def numeric_gradient() -> Callable[[Callable[[np.ndarray], float], np.ndarray], np.ndarray]:
    """The gradient of a function at an array, by central differences."""

    def gradient(
        of: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-6
    ) -> np.ndarray:
        found = np.zeros_like(x)
        for i in np.ndindex(*x.shape):
            up, down = x.copy(), x.copy()
            up[i] += step
            down[i] -= step
            found[i] = (of(up) - of(down)) / (2 * step)
        return found

    return gradient


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared data sets; the test is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no data sets in ../shared/data")
    return SHARED_DATA


#: Path, mode, and the names of the innermost functions of a call that opens a file.
Opened = tuple[str, str, frozenset[str]]
_lists: list[list[Opened]] = []


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _lists and isinstance(args[0], str | bytes | os.PathLike):
        names, frame = set(), sys._getframe(1)
        while frame is not None and len(names) < 8:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        for heard in _lists:
            heard.append((os.fsdecode(args[0]), args[1] or "", frozenset(names)))


@pytest.fixture(scope="session")
def opened_files() -> Callable[[], AbstractContextManager[list[Opened]]]:
    """A context that gives the list of the files that Python opens meanwhile."""
    sys.addaudithook(_hear)  # for good: there is no way to remove it

    @contextmanager
    def listening() -> Iterator[list[Opened]]:
        heard: list[Opened] = []
        _lists.append(heard)
        try:
            yield heard
        finally:
            _lists.remove(heard)

    return listening


@dataclass(frozen=True)
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str

    def mendable(self, *words: str) -> None:
        """Asserts that a quiet command said in one or two lines what the user can mend."""
        assert self.code == 2, self
        assert self.out == ""
        lines = self.err.splitlines()
        assert 1 <= len(lines) <= 2 and lines[0].startswith("concerto"), self.err
        assert "Traceback" not in self.err and "a fault of ours" not in self.err
        for word in words:
            assert word in self.err, f"{word!r} is not in {self.err!r}"

    @property
    def last(self) -> dict[str, Any]:
        """The JSON object that stdout ends with."""
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture(scope="session")
def concerto() -> Callable[..., Answer]:
    """Runs a command line in this process."""

    def call(*arguments: Any, stderr: IO[str] | None = None) -> Answer:
        from concerto_tf.cli import main

        out, err = io.StringIO(), stderr or io.StringIO()
        with _process_kept(), warnings.catch_warnings(), contextlib.redirect_stdout(out):
            with contextlib.redirect_stderr(err):
                code = main([str(argument) for argument in arguments])
        return Answer(code, out.getvalue(), "" if stderr else err.getvalue())

    return call


@contextmanager
def _process_kept() -> Iterator[None]:
    """What `main` does to the logger and the interpreter is for a process of its own."""
    log = logging.getLogger("concerto_tf")
    before = log.handlers, log.level, log.propagate
    hooks = sys.excepthook, sys.unraisablehook
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks
        log.handlers, log.propagate = before[0], before[2]
        log.setLevel(before[1])
