"""Presets of CLEAR."""

from concerto_tf.models.presets import DEFAULT, MOST_EPOCHS, Preset, Training, by_name

_PAPER = {
    "mask": 0.2,
    "noise": 0.8,
    "swap": 0.1,
    "crossover": 0.25,
    "crossover_many": 0.25,
    "probability": 0.5,
    "stddev": 0.2,
    "momentum": 0.999,
    "backbone": (1024, 128),
    "head": None,
    "standardize": False,
    "scale_inputs": False,
    "components": 0,
    "target_sum": 1e4,
    "temperature": 0.2,
}

PRESETS = by_name(
    # Chosen by a few trials on labelled data; the options are the class's own defaults.
    Preset(DEFAULT, Training(learning_rate=1e-3, most_epochs=MOST_EPOCHS)),
    # As printed, but for the learning rate.
    Preset("paper", Training(learning_rate=1e-3, epochs=200, cosine=True), _PAPER),
    # With the printed learning rate, too.
    Preset("paper-lr1", Training(learning_rate=1.0, epochs=200, cosine=True), _PAPER),
)
