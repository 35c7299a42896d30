"""Records and models in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from concerto_tf._paths import as_path
from concerto_tf.errors import InputError
from concerto_tf.records import Records
from concerto_tf.records.manifest import FILE_NAME


def inspect(
    path: str | Path, verify: bool = False, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """What records or a model hold.

    Args:
        path: Folder of records, folder of a training, or a `.keras` file.
        verify: Read every shard and compare it with its checksum.
        progress: Called with the number of cells verified and of all cells.

    Returns:
        A description; with ``verify`` also ``problems``, one line each.

    Raises:
        InputError: It is neither.
    """
    path = as_path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder; check the path")
    if path.suffix == ".keras" or (path / "model.keras").exists():
        return _model(path)
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


def _model(path: Path) -> dict[str, Any]:
    from concerto_tf.models.modality import described
    from concerto_tf.models.saving import model_file, read_config
    from concerto_tf.reference.files import FOLDER, load_reference

    file = model_file(path)
    saved = read_config(file)
    config, told = saved["config"], {}
    if "encoder" in config:  # one that tells cell types
        told = {
            "label_key": config["label_key"],
            "labels": config["classes"],
            "held_out_cells": len(config["calibration"]),
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
        }
    return found
