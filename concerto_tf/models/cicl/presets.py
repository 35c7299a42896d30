"""Presets of CICL. `docs/presets.md` has the place of every printed value."""

from concerto_tf.models.presets import DEFAULT, MOST_EPOCHS, Preset, Training, by_name

PRESETS = by_name(
    # Chosen by a few trials on labelled data; the options are the class's own defaults.
    Preset(DEFAULT, Training(learning_rate=3e-4, most_epochs=MOST_EPOCHS)),
    # As printed. The heads and their width are not, and the number of clusters is that of the cell
    # types of the cells: the option ``clusters``.
    Preset(
        "paper",
        Training(learning_rate=1e-5, epochs=1000, batch_size=6000, genes="hvg:500"),
        {
            "depth": 4,
            "width": None,
            "heads": 4,
            "key_dim": 128,
            "units": 1024,
            "normalize_first": False,
            "identity_start": False,
            "head_units": (1024, 512),
            "mask_rate": 0.0,
            "noise": 1.0,
            "cluster_weight": 0.1,
            "temperature": 0.5,
            "input_epsilon": 1e-3,
            "value_clip": None,
            "components": 0,
            "target_sum": "median",
            "negatives": "all",
        },
    ),
)
