"""Presets of Concerto. `docs/presets.md` has the place of every printed value."""

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
    # As printed. Rates of 1e-4 to 1e-6 are; this is the largest, with which 3 epochs do most.
    Preset(
        "paper",
        Training(learning_rate=1e-4, epochs=3, batch_size=32, genes="hvg:2000"),
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
