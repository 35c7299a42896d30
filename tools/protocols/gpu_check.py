"""What devices do beside the CPU: the same numbers, how fast, and all of them together."""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf import __version__
from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models import METHODS, Concerto
from concerto_tf.records import Records

#: Steps whose weights are compared, their cells, and how far devices may differ, as a share of the
#: largest value: sums are taken in another order, and each step builds on the one before.
COMPARED_STEPS, COMPARED_CELLS = 16, 64
BOUNDS = {"embedding": 1e-4, "weights": 1e-3}
#: Views are off where numbers are compared: devices draw random numbers of their own.
_NO_VIEWS = {"mask_rate": 0.0, "dropout": 0.0}


def check(
    records: str | Path,
    kind: str = "GPU",
    *,
    batch_size: int = 256,
    steps: int = 50,
    rounds: int = 3,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compares devices with the CPU, measures them, and trains on all of them together.

    Each part runs in a process of its own, which leaves no memory of a device taken, and no
    collectives of several strategies that TensorFlow could mix up.

    Args:
        records: Folder of the records to train on.
        kind: `"GPU"`, or `"CPU"` to try this itself: two logical devices.
        batch_size: Cells of a minibatch on one device.
        steps: Training steps that are timed at once.
        rounds: How often each is timed; the median counts.
        say: Is told each stage.

    Returns:
        What can be written as JSON: `machine`, `equality` with `within_bounds`, `cells_per_second`
        by what was measured, and `together`, the same for 1, 2, 4 ... devices.

    Raises:
        InputError: There is no such device.
    """
    folder = str(records)
    machine = _apart(kind, _machine, kind)
    devices = machine["devices"]
    if not devices:
        raise InputError(f"TensorFlow sees no {kind} here")
    say("numbers beside those of the CPU")
    equality = {devices[0]: _apart(kind, _difference, folder, devices[:1])}
    if len(devices) > 1:
        equality["all"] = _apart(kind, _difference, folder, devices)
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, (device, method, options) in _candidates(devices[0]):
            say(f"round {number + 1} of {rounds}: {name}")
            of = [folder, [device], batch_size, steps, method]
            rates.setdefault(name, []).append(_apart(kind, _rate, *of, **options))
    together: dict[int, float] = {}
    for n in _powers(len(devices)):
        say(f"{n} of the devices together")
        of = [folder, devices[:n], batch_size * n, steps]
        together[n] = float(np.median([_apart(kind, _rate, *of) for _ in range(rounds)]))
    return {
        "machine": machine,
        "bounds": BOUNDS,
        "equality": equality,
        "within_bounds": all(
            value <= BOUNDS[name] for of in equality.values() for name, value in of.items()
        ),
        "batch_size": batch_size,
        "cells_per_second": {name: float(np.median(of)) for name, of in rates.items()},
        "together": together,
    }


def _apart(kind: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a function gives in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_begin, initargs=(kind,)) as process:
        return process.submit(call, *arguments, **options).result()


def _begin(kind: str) -> None:
    """Two logical devices where the CPU is tried; memory of GPUs as it is needed elsewhere."""
    if kind == "CPU":
        [cpu] = tf.config.list_physical_devices("CPU")
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def _difference(folder: str, devices: Sequence[str]) -> dict[str, float]:
    """How far embeddings and weights lie from those of the CPU, by the largest value."""
    # By default GPUs round what they multiply to 10 bits.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    records, found = Records(folder), []
    for places in (["CPU:0"], devices):
        data = _minibatches(records, COMPARED_CELLS, len(places))
        with _place(places):
            model = _model(Concerto, records, **_NO_VIEWS)
            cells = records.dataset(COMPARED_CELLS, packed=True).take(COMPARED_STEPS)
            before = model.embed(cells)
        with _place(places) if len(places) == 1 else nullcontext():
            model.fit(data, steps_per_epoch=COMPARED_STEPS, epochs=1, verbose=0)
        weights = [np.array(tf.convert_to_tensor(of)) for of in model.trainable_weights]
        found.append((before, weights))
    (embedding, weights), (other, others) = found
    return {
        "embedding": _share(other, embedding),
        "weights": max(_share(b, a) for a, b in zip(weights, others, strict=True)),
    }


def _share(value: np.ndarray, of: np.ndarray) -> float:
    return float(np.abs(value - of).max() / max(np.abs(of).max(), 1e-12))


def _candidates(device: str) -> Iterator[tuple[str, tuple[str, str, dict[str, Any]]]]:
    """What is timed: name, device, method and options of `_model`."""
    for name in METHODS:
        for precision in ("float32", "mixed_bfloat16"):
            yield f"{name}, {precision}", (device, name, {"precision": precision})
    yield "concerto, without XLA", (device, "concerto", {"xla": False})
    if not device.startswith("CPU"):
        yield "concerto, CPU", ("CPU:0", "concerto", {})


@contextmanager
def _place(devices: Sequence[str]) -> Iterator[None]:
    """Where models are made and used: one device, or several replicas.

    The first GPU is where TensorFlow puts all by itself; under a scope of that device, it would
    look there for the iterators of the data as well.
    """
    if len(devices) > 1:
        with tf.distribute.MirroredStrategy(list(devices)).scope():
            yield
    else:
        with tf.device(devices[0]) if devices[0].startswith("CPU") else nullcontext():
            yield


def _model(
    method: Any, records: Records, precision: str = "float32", xla: bool = True, **options: Any
) -> Any:
    """A compiled model, of one seed, on the devices of the scope."""
    keras.utils.set_random_seed(0)
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(precision)
    try:
        model = method.from_records(records, **options)
        one = tf.distribute.get_strategy().num_replicas_in_sync == 1
        model.compile(keras.optimizers.Adam(1e-3), jit_compile=xla and one)
    finally:
        keras.mixed_precision.set_dtype_policy(before)
    return model


def _minibatches(records: Records, batch_size: int, replicas: int = 1) -> tf.data.Dataset:
    return records.dataset(
        batch_size, shuffle=True, repeat=True, packed=True, seed=0, replicas=replicas
    )


class StepClock(keras.callbacks.Callback):
    """Keeps when each training step ended, in `times`."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.times.append(time.perf_counter())


def _rate(
    folder: str,
    devices: Sequence[str],
    batch_size: int,
    steps: int,
    method: str = "concerto",
    **options: Any,
) -> float:
    """Cells per second of `fit`, reading and all, after two steps that compile."""
    records, clock = Records(folder), StepClock()
    data = _minibatches(records, batch_size, len(devices))
    with _place(devices):
        model = _model(METHODS[method], records, **options)
    with _place(devices) if len(devices) == 1 else nullcontext():
        model.fit(data, steps_per_epoch=steps + 2, epochs=1, verbose=0, callbacks=[clock])
    return steps * batch_size / (clock.times[-1] - clock.times[1])


def _powers(n: int) -> list[int]:
    """1, 2, 4 ... and `n`."""
    found = [2**i for i in range(n.bit_length()) if 2**i <= n]
    return found if found[-1] == n else [*found, n]


def _machine(kind: str) -> dict[str, Any]:
    """What is measured on, without the name of host or user."""
    gpus = tf.config.list_physical_devices("GPU")
    told = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    build = tf.sysconfig.get_build_info()
    devices = tf.config.list_logical_devices(kind)
    return {
        "date": date.today().isoformat(),
        "devices": [device.name.split("device:")[-1] for device in devices],
        "gpus": [{key: str(value) for key, value in of.items()} for of in told],
        "cuda": build.get("cuda_version"),
        "cudnn": build.get("cudnn_version"),
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "concerto_tf": __version__,
    }
