"""Presets of contrastive-sc."""

from concerto_tf.models.presets import DEFAULT, MOST_EPOCHS, Preset, Training, by_name

PRESETS = by_name(
    # Chosen by a few trials on labelled data; the options are the class's own defaults.
    Preset(DEFAULT, Training(learning_rate=1e-3, most_epochs=MOST_EPOCHS)),
    # As printed; the widths of the first two layers are not.
    Preset(
        "paper",
        Training(learning_rate=1e-3, epochs=100, batch_size=300, genes="hvg:1500"),
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
            "target_sum": 1e4,
            "temperature": 0.07,
        },
    ),
)
