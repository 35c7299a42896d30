"""Training over several devices of one machine, with MirroredStrategy and `model.fit`.

    python examples/several_devices.py

Takes all GPUs where there are two or more, and otherwise two halves of the CPU, which is not
faster and shows that it works. Negatives and the statistics of the batch normalization are those
of the whole batch over all devices.

`concerto train --strategy mirrored` and `concerto_tf.train(..., strategy="mirrored")` do the same.
"""

from __future__ import annotations

import tempfile

import tensorflow as tf

import concerto_tf
from concerto_tf.simulate import SplatParams, simulate_cells


def devices() -> list[str]:
    """Names of all GPUs, or of two logical CPU devices; before TensorFlow has started any."""
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) > 1:
        return [f"GPU:{i}" for i in range(len(gpus))]
    cpu = tf.config.list_physical_devices("CPU")[0]
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, halves)
    return ["CPU:0", "CPU:1"]


def main() -> None:
    strategy = tf.distribute.MirroredStrategy(devices())
    replicas = strategy.num_replicas_in_sync
    cells = simulate_cells(
        SplatParams.droplet(n_cells=1024, n_genes=300, group_sizes=(2, 1), seed=0)
    )
    records = concerto_tf.convert(cells, tempfile.mkdtemp(), drop_empty=True)

    with strategy.scope():
        model = concerto_tf.Concerto.from_records(records, hidden_units=32)
        model.compile(steps=60)
    # Of every batch each device takes 64 cells.
    data = records.dataset(64 * replicas, shuffle=True, repeat=True)
    history = model.fit(data, steps_per_epoch=20, epochs=3, verbose=0)

    print(f"{replicas} devices: loss", *(f"{x:.2f}" for x in history.history["loss"]))
    print("embedding:", model.embed(records.dataset(256)).shape)


if __name__ == "__main__":
    main()
