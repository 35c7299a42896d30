"""Presets of Concerto."""

from concerto_tf.models.presets import DEFAULT, MOST_EPOCHS, Preset, Training, by_name

#: What embeds best over many data sets; the options are the class's own defaults.
PRESETS = by_name(
    Preset(
        DEFAULT,
        Training(
            learning_rate=1e-4,  # small: the PCA initialization is close to where training ends
            most_epochs=MOST_EPOCHS,
            finetuning_rate=2e-3,  # twice the paper's: weights that meet scaled inputs are larger
        ),
    ),
    # As printed.
    Preset(
        "paper",
        Training(learning_rate=1e-3),
        {
            "units": 128,
            "attention_units": 128,
            "hidden_units": 128,
            "head_units": None,
            "mask_rate": 0.0,
            "dropout": 0.2,
            "value_clip": None,
            "input_epsilon": 1e-3,
            "scale_genes": False,
            "scale_inputs": False,
            "modality_dropout": 0.0,
            "components": 0,
            "align_sources": False,
            "readout": "teacher",
            "readout_offset": 0.0,
            "readout_activation": "relu",
            "temperature": 0.1,
            "negatives": "all",
            "target_sum": 1e4,
        },
    ),
)
