"""Presets of CLEAR. `docs/presets.md` has the place of every printed value."""

from concerto_tf.models.presets import DEFAULT, MOST_EPOCHS, Preset, Training, by_name

_PAPER = Preset(
    "paper",
    Training(learning_rate=1.0, epochs=200, cosine=True, genes="hvg:2000"),
    {
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
    },
)

PRESETS = by_name(
    # Chosen by a few trials on labelled data; the options are the class's own defaults.
    Preset(DEFAULT, Training(learning_rate=1e-3, most_epochs=MOST_EPOCHS)),
    _PAPER,
    # As the authors' program runs in its own example. With SGD and scaled input a rate of 1 is
    # none too large.
    Preset(
        "authors",
        Training(
            learning_rate=1.0,
            epochs=100,
            batch_size=512,
            cosine=True,
            optimizer="momentum",
            genes="hvg:2000",
        ),
        {
            **_PAPER.options,
            "stddev": 0.5,
            "standardize": True,
            "augment_first": False,
            "input_epsilon": 1e-3,
            "value_clip": 10.0,
            "last_relu": True,
            "unit_length": True,
        },
    ),
)
