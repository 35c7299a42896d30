"""Records, models and results in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from concerto_tf._calls import checked
from concerto_tf._paths import as_path, is_hdf5, open_hdf5
from concerto_tf.errors import InputError
from concerto_tf.records import Records
from concerto_tf.records.manifest import FILE_NAME
from concerto_tf.tasks.io.provenance import as_read, steps_in
from concerto_tf.tasks.io.result import what_was_done


@checked
def inspect(
    path: str | Path, verify: bool = False, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """What records, a model or a result hold.

    Args:
        path: Folder of records, folder of a training, a `.keras` file, or an `.h5ad` that a
            command wrote, which tells what was done to its cells (``steps``, the first one first).
        verify: Read every shard and compare it with its checksum.
        progress: Called with the number of cells verified and of all cells.

    Returns:
        A description; with ``verify`` also ``problems``, one line each.

    Raises:
        InputError: It is none of these.
    """
    name, path = path, as_path(path)
    if not path.exists():
        from concerto_tf.models.shipped import shipped  # which brings TensorFlow

        path = shipped(name) or path
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder; check the path")
    if path.suffix == ".keras" or (path / "model.keras").exists():
        return _model(path)
    if path.is_file() and is_hdf5(path):
        return _cells(path)
    if path.is_dir() and not (path / FILE_NAME).exists() and (path / "records").is_dir():
        path = path / "records"  # the folder of a run
    records = Records(path)
    manifest = records.manifest
    found: dict[str, Any] = {
        "kind": "records",
        "cells": records.n_cells,
        "genes": records.n_genes,
        "identifiers": str(records.vocabulary.kind),
        "units": records.units,
        "modalities": {name: info.n_genes for name, info in manifest.modalities.items()},
        "sources": dict(zip(records.sources, manifest.cells_per_source, strict=True)),
        "labels": {key: len(names) for key, names in records.labels.items()},
        "inputs": [str(item["name"]) for item in manifest.inputs],
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "compression": manifest.compression,
        "written_by": manifest.package_version,
        "notes": manifest.report.get("lines", []),
    }
    if verify:
        found["problems"] = records.verify(progress)
    return found


def _cells(path: Path) -> dict[str, Any]:
    """What an `.h5ad` holds, and what was done to its cells."""
    with open_hdf5(path) as file:
        if "obs" not in file or "var" not in file:
            raise InputError(f"{path}: is no .h5ad; give one, or records, or a model")
        lengths = {}
        for name in ("obs", "var"):
            table = file[name]
            index = table.attrs.get("_index", "index")
            lengths[name] = len(table[index] if hasattr(table, "keys") else table)
        parts = {name: list(file.get(name, ())) for name in ("obs", "obsm", "obsp", "uns")}
        parts["obs"] = [str(name) for name in file["obs"].attrs.get("column-order", ())]
    steps = [as_read(step) for step in steps_in(what_was_done(path))]
    return {
        "kind": "result" if steps else "cells",
        "cells": lengths["obs"],
        "genes": lengths["var"],
        **parts,
        "steps": steps,
    }


def _model(path: Path) -> dict[str, Any]:
    from concerto_tf.expected import expected
    from concerto_tf.models.fingerprint import fingerprint
    from concerto_tf.models.modality import described
    from concerto_tf.models.saving import load_model, model_file, read_config
    from concerto_tf.reference.files import FOLDER, load_reference
    from concerto_tf.tasks.annotate import ALPHA
    from concerto_tf.tasks.map import ALPHA as MAPPED_ALPHA

    file = model_file(path)
    saved = read_config(file)
    config, told = saved["config"], {}
    if "encoder" in config:  # one that tells cell types
        told = {
            "label_key": config["label_key"],
            "labels": config["classes"],
            **({"labels_coarse": config["coarse"]["names"]} if "coarse" in config else {}),
            "held_out_cells": len(config["calibration"]),
            **({"expected": expected(config["stated"], ALPHA)} if "stated" in config else {}),
        }
        config = config["encoder"]
    genes = config["genes"]
    sizes = {name: len(of["vocabulary"]) for name, of in described(config).items()}
    found = {
        "kind": "model",
        "method": saved["class_name"],
        "genes": len(config["vocabulary"]),
        "genes_used": len(config["vocabulary"] if genes is None else genes),
        "modalities": sizes,
        "units": "values" if config["target_sum"] is None else "counts",
        "sources": list(config["sources"]),
        **told,
        "fingerprint": fingerprint(load_model(file)),
        "written_by": config["concerto_tf"],
        "options": {
            key: value
            for key, value in config.items()
            if isinstance(value, int | float | str | None) and key not in ("name", "concerto_tf")
        },
    }
    if (file.parent / FOLDER).is_dir():
        reference = load_reference(file.parent / FOLDER)
        found["reference"] = {
            "cells": reference.n_cells,
            **{key: len(held.names) for key, held in reference.labels.items()},
            **{
                f"expected ({key})": expected(of, MAPPED_ALPHA)
                for key, of in reference.stated.items()
            },
        }
    return found
