"""A model is used only if it is the one that is expected; inputs lie in one file."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from concerto_tf import InputError
from concerto_tf.cli import main
from concerto_tf.models import Concerto, save_model
from concerto_tf.models.fingerprint import fingerprint
from concerto_tf.records import open_input
from concerto_tf.tasks.io.embedded import open_embedded

GENES = [f"AB{i}C" for i in range(30)]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with cells and a model, and the fingerprint of that."""
    folder = tmp_path_factory.mktemp("given")
    counts = np.random.default_rng(0).poisson(1.0, (20, 30)).astype("float32")
    counts[:, 0] += 1
    cells = anndata.AnnData(sp.csr_matrix(counts))
    cells.var_names = GENES
    cells.obs["kind"] = ["a", "b"] * 10
    cells.write_h5ad(folder / "cells.h5ad")
    model = Concerto(GENES, hidden_units=8, components=0)
    save_model(model, folder / "model.keras")
    line = ["convert", str(folder / "cells.h5ad"), "-o", str(folder / "records"), "--quiet"]
    assert main([*line, "--label-key", "kind"]) == 0
    return folder, fingerprint(model)


def test_inspect_prints_it(given: tuple[Path, str], capsys) -> None:
    folder, expected = given
    assert main(["inspect", str(folder / "model.keras"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == expected


COMMANDS = {
    "inspect": ["model.keras"],
    "embed": ["model.keras", "cells.h5ad", "-o", "out"],
    "annotate": ["model.keras", "cells.h5ad", "-o", "out"],
    "map": ["model.keras", "--query", "cells.h5ad", "-o", "out"],
    "impute": ["model.keras", "--query", "cells.h5ad", "-o", "out"],
    "explain": ["model.keras", "cells.h5ad", "-o", "out"],
    "finetune": ["model.keras", "records", "--label-key", "kind", "-o", "out"],
    "export": ["model.keras", "-o", "out"],
    "train": ["records", "--from", "model.keras", "-o", "out"],
    "convert": ["cells.h5ad", "--like", "model.keras", "-o", "out"],
}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_that_reads_a_model(
    command: str, given: tuple[Path, str], capsys, monkeypatch
) -> None:
    folder, expected = given
    monkeypatch.chdir(folder)
    for wrong, words in ((expected[::-1], "its fingerprint is"), ("me", "is no fingerprint")):
        assert main([command, *COMMANDS[command], "--expect", wrong]) == 2
        said = capsys.readouterr().err
        assert words in said and "--expect" in said and said.count("\n") == 1
        assert not (folder / "out").exists()


def test_the_one_that_is_meant_is_used(given: tuple[Path, str], tmp_path: Path, capsys) -> None:
    folder, expected = given
    line = ["embed", str(folder / "model.keras"), str(folder / "cells.h5ad"), "--quiet"]
    assert main([*line, "-o", str(tmp_path / "out.h5ad"), "--expect", expected[:16]]) == 0
    line = ["train", str(folder / "records"), "-o", str(tmp_path / "m"), "--expect", expected]
    assert main(line) == 2
    assert "no model is named" in capsys.readouterr().err


def test_parts_in_other_files_are_not_followed(given: tuple[Path, str], tmp_path: Path) -> None:
    cells = anndata.read_h5ad(given[0] / "cells.h5ad")
    cells.obsm["X_concerto"] = np.ones((20, 3), "float32")
    cells.write_h5ad(tmp_path / "whole.h5ad")
    where = tmp_path / "cells.h5ad"

    def external(file: h5py.File) -> None:
        file["X/data"] = h5py.ExternalLink("whole.h5ad", "/X/data")

    def virtual(file: h5py.File) -> None:
        with h5py.File(tmp_path / "whole.h5ad") as whole:
            source = h5py.VirtualSource(whole["X/data"])
            layout = h5py.VirtualLayout(source.shape, "float32")
        layout[:] = source
        file["X"].create_virtual_dataset("data", layout)

    def raw(file: h5py.File) -> None:
        (tmp_path / "secret").write_bytes(bytes(4000))
        file["X"].create_dataset(
            "data", (600,), "float32", external=[(str(tmp_path / "secret"), 0, 2400)]
        )

    for change in (external, virtual, raw):
        where.write_bytes((tmp_path / "whole.h5ad").read_bytes())
        with h5py.File(where, "r+") as file:
            del file["X/data"]
            change(file)
        for read in (open_input, lambda path: open_embedded(path, backed=False)):
            with pytest.raises(InputError, match="/X/data lies in another file"):
                read(where)
