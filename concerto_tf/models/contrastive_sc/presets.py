"""Presets of contrastive-sc. `docs/presets.md` has the place of every printed value."""

from dataclasses import replace

from concerto_tf.models.presets import DEFAULT, MOST_EPOCHS, Preset, Training, by_name

# The method that the paper calls contrastive-sc joins three networks. Learning rate and the widths
# of the first two layers are not printed.
_PAPER = Preset(
    "paper",
    Training(learning_rate=1e-3, epochs=100, batch_size=300, genes="hvg:1500", ensemble=3),
    {
        "mask_rate": 0.8,
        "rescale": True,
        "backbone": (512, 128, 32),
        "head": None,
        "standardize": True,
        "input_epsilon": 1e-3,
        "value_clip": None,
        "augment_first": False,
        "scale_inputs": False,
        "components": 0,
        "target_sum": "median",
        "temperature": 0.07,
    },
)

PRESETS = by_name(
    # Chosen by a few trials on labelled data; the options are the class's own defaults.
    Preset(DEFAULT, Training(learning_rate=1e-3, most_epochs=MOST_EPOCHS)),
    _PAPER,
    # As printed for simulated cells.
    Preset(
        "simulation", replace(_PAPER.training, epochs=500, genes="hvg:500"), dict(_PAPER.options)
    ),
    # As the authors' program runs by default.
    Preset(
        "authors",
        Training(learning_rate=0.4, epochs=30, batch_size=200, genes="hvg:500"),
        {
            **_PAPER.options,
            "mask_rate": 0.9,
            "backbone": (200, 40, 60),
            "batch_norm": True,
            "unit_length": True,
        },
    ),
)
