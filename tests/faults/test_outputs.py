"""No output takes the place of an input, or of a file of a model, records or an export."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("line", "out"),
    [
        (["embed", "model", "cells.h5ad"], "served/variables/variables.index"),
        (["embed", "model", "cells.h5ad"], "model/model.keras"),
        (["explain", "model", "cells.h5ad"], "cells.h5ad"),
        (["explain", "model", "cells.h5ad"], "records/manifest.json"),
        (
            ["compare", "cells.h5ad", "--condition", "batch", "--control", "a"]
            + ["--label-key", "kind", "--min-cells", "2"],
            "records",
        ),
        (
            [
                "map",
                "model",
                "--reference",
                "cells.h5ad",
                "--query",
                "cells.h5ad",
                "--figure",
                "genes.pdf",
                "--groupby",
                "kind",
            ]
            + ["--orthologs", "genes.tsv", "--label-key", "kind"],
            "out.h5ad",
        ),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else part,
)
def test_outputs_do_not_take_the_place_of_anything(
    line: list, out: str, given, call, judge, tmp_path: Path
) -> None:
    for name in ("records", "model"):
        shutil.copytree(given / name, tmp_path / name)
    shutil.copy(given / "cells.h5ad", tmp_path)
    (tmp_path / "genes.tsv").write_text("a\tb\nAB1C\tAB1C\n")
    (tmp_path / "served" / "variables").mkdir(parents=True)
    for name in ("saved_model.pb", "variables/variables.index"):
        (tmp_path / "served" / name).write_text("weights")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    places = [tmp_path / part if (tmp_path / part).exists() else part for part in line]
    places = [tmp_path / part if part == "genes.pdf" else part for part in places]
    code, said = call([*places, "-o", tmp_path / out])
    judge(code, said)
    assert "would be lost" in said or "is the folder of records" in said, said
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
