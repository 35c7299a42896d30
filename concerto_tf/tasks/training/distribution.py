"""The devices and the processes that train one model together."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from concerto_tf.errors import InputError, Interrupted

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger("concerto_tf")
#: Over the devices of one process.
STRATEGIES = ("auto", "one", "mirrored")
#: Over several processes, mostly on several machines.
MULTIWORKER = "multiworker"


def make_strategy(name: str) -> Any:
    """The distribution strategy of a name, or None for one device.

    Raises:
        InputError: With `MULTIWORKER`: the workers are not described, or TensorFlow has begun.
    """
    import tensorflow as tf

    if name == MULTIWORKER:
        return _over_workers()
    if name == "one" or (name == "auto" and len(tf.config.list_logical_devices("GPU")) < 2):
        return None
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


class TrainingProcesses:
    """The processes that train one model together; mostly there is one.

    All of them compute the same weights. The first alone writes what a training leaves behind.

    Args:
        strategy: What `make_strategy` gave.

    Attributes:
        index: Number of this process.
        count: Number of processes.
        first: Whether this is the one that writes.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None) -> None:
        import tensorflow as tf

        several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self.index, self.count = (_place()[0], len(_place()[1])) if several else (0, 1)
        self.first = self.index == 0
        self._strategy = strategy if self.count > 1 else None

    def distribute(self, data: tf.data.Dataset) -> Any:
        """Batches of this process as `fit` takes them, one part for each of its devices."""
        if self._strategy is None:
            return data
        return self._strategy.distribute_datasets_from_function(lambda _: data)

    def agree(self, state: int, complaint: str) -> None:
        """Waits for all processes; raises InputError with a complaint if their states differ."""
        import tensorflow as tf

        if self._strategy is None:
            return

        def gather() -> tf.Tensor:
            own = tf.constant([state], tf.int64)
            return tf.distribute.get_replica_context().all_gather(own, axis=0)

        found = self._strategy.run(tf.function(gather))
        found = self._strategy.experimental_local_results(found)[0].numpy()
        if len(set(found.tolist())) > 1:
            raise InputError(complaint)

    def start_alike(self, variables: list[Any]) -> None:
        """Gives all processes the values that the first one has.

        What is computed before the training (principal components, say) differs in its last bits
        between machines, and would differ for good.
        """
        import tensorflow as tf

        if self._strategy is None:
            return

        def share(values: list[tf.Tensor]) -> list[tf.Tensor]:
            context = tf.distribute.get_replica_context()
            mine = tf.cast(context.replica_id_in_sync_group == 0, tf.float64)
            return [context.all_reduce("SUM", mine * value) for value in values]

        # As float64, which holds counters exactly and is summed on every kind of device.
        values = [tf.cast(tf.convert_to_tensor(v), tf.float64) for v in variables]
        shared = self._strategy.run(tf.function(share), (values,))
        for variable, value in zip(variables, shared, strict=True):
            value = self._strategy.experimental_local_results(value)[0]
            variable.assign(tf.cast(value, variable.dtype))

    @contextmanager
    def naming_loss(self) -> Iterator[None]:
        """Turns what TensorFlow raises when another process is gone into an `Interrupted`."""
        import tensorflow as tf

        try:
            yield
        except (
            tf.errors.UnavailableError,
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.DeadlineExceededError,
        ) as error:
            if self.count == 1:
                raise
            raise Interrupted(
                "another worker ended; run the same again on all workers to continue"
            ) from error


def _over_workers() -> tf.distribute.MultiWorkerMirroredStrategy:
    import tensorflow as tf

    index, addresses = _place()
    _log.info("worker %d of %d: waiting for all of %s", index, len(addresses), ", ".join(addresses))
    try:
        with _stoppable():
            return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise InputError(
            "strategy multiworker has to come first in a process, and TensorFlow has begun "
            "already; train in a process of its own, from the path of sound records"
        ) from error
    except tf.errors.OpError as error:
        raise InputError(
            f"worker {index} cannot listen at {addresses[index]}, or not reach the others "
            f"({error.message[:100]}); see to TF_CONFIG"
        ) from error


def _place() -> tuple[int, list[str]]:
    """Number of this process and addresses of all, as TF_CONFIG has them."""
    help_ = (
        'set it to {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", '
        '"index": N}}'
    )
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        cluster, task = config["cluster"], config["task"]
        chief, others = list(cluster.get("chief", ())), list(cluster.get("worker", ()))
        index = int(task["index"]) + {"chief": 0, "worker": len(chief)}[task["type"]]
    except KeyError as error:
        raise InputError(
            f"strategy multiworker reads TF_CONFIG, where {error} is missing; {help_}"
        ) from None
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"strategy multiworker cannot read TF_CONFIG; {help_}") from None
    if not 0 <= index < len(chief) + len(others):
        raise InputError(f"TF_CONFIG: there is no {task['type']} {task['index']}; {help_}")
    return index, [*chief, *others]


@contextmanager
def _stoppable() -> Iterator[None]:
    """Lets Ctrl-C end the process while it waits within TensorFlow, which also takes SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Callable | int | None] = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }
    if before[signal.SIGINT] is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
