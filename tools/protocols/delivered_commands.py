"""Commands as README and docs print them, run in a folder as a user types them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from concerto_tf.errors import InputError
from protocols.quality_cells import LABEL, SOURCE

if TYPE_CHECKING:
    from anndata import AnnData

_ROOT = Path(__file__).resolve().parents[2]
#: Files that the commands read, without their ending.
REFERENCE, QUERY = "cells", "new-cells"
#: What the sections of README and docs print, by the last command. `{source}` and `{modality}` are
#: the keys and places that the cells need.
PRINTED = {
    "run": ("concerto run cells.h5ad -o result{source}{modality}",),
    "annotate": (
        f"concerto convert cells.h5ad -o records --label-key {LABEL}{{source}}",
        "concerto train records -o model",
        f"concerto finetune model records --label-key {LABEL} -o model-types",
        "concerto annotate model-types new-cells.h5ad -o annotated.h5ad{source}",
    ),
    "map": (
        f"concerto convert cells.h5ad -o records --label-key {LABEL}{{source}}",
        "concerto train records -o model",
        f"concerto map model --reference records --query new-cells.h5ad --label-key {LABEL} "
        "-o mapped.h5ad{source}",
    ),
    "impute": (
        "concerto run cells.h5ad -o result{source}{modality}",
        "concerto impute result/model --reference cells.h5ad --query new-cells.h5ad "
        "-o imputed.h5ad{source}{modality}",
    ),
}
_LEFT = {"run": "result/result.h5ad", "annotate": "annotated.h5ad", "map": "mapped.h5ad"}
_LEFT |= {"impute": "imputed.h5ad"}


class Refused(Exception):
    """A command ended with an error that the user is to mend (exit code 2)."""


class Desk:
    """A folder with the cells of a user, and the commands run there.

    Args:
        path: The folder; made.
        seed: Given to the commands where it is not 0, their default.
        has_sources: Whether reference and query have the column of sources.
        modality: Name of a further modality, a table in ``obsm``; empty for RNA alone.
    """

    def __init__(self, path: Path, seed: int, has_sources: bool, modality: str = "") -> None:
        path.mkdir(parents=True)
        self._path, self._seed = path, seed
        self._keys = {
            "source": f" --source-key {SOURCE}" if has_sources else "",
            "modality": f" --modality {modality}=obsm:{modality}" if modality else "",
        }
        self._ended: dict[str, str] = {}  # what each command that was run said last, if it failed

    def put(self, name: str, cells: AnnData) -> None:
        """Lays a file of cells down; what was made of an earlier one of the name is made anew."""
        cells.write_h5ad(self._path / f"{name}.h5ad")
        made = [said for said in self._ended if f" {name}.h5ad" in said]
        for said in made:
            del self._ended[said]

    def commands(self, kind: str) -> list[str]:
        """The commands, word by word.

        Args:
            kind: One of `PRINTED`.
        """
        seed = f" --seed {self._seed}" if self._seed else ""
        return [said.format(**self._keys) + seed for said in PRINTED[kind]]

    def left(self, kind: str) -> AnnData:
        """What the commands leave: the file of the last one. None is run twice on the same files.

        Args:
            kind: One of `PRINTED`.

        Raises:
            Refused: One ended with exit code 2.
            InputError: One ended with another.
        """
        import anndata

        for said in self.commands(kind):
            if said not in self._ended:
                self._ended[said] = self._run(said)
            if self._ended[said]:
                raise Refused(f"{said}: {self._ended[said]}")
        return anndata.read_h5ad(self._path / _LEFT[kind])

    def _run(self, said: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "concerto_tf.cli", *shlex.split(said)[1:]],
            cwd=self._path,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        if done.returncode not in (0, 2):
            raise InputError(f"{said}: exit code {done.returncode}: {last}")
        return last if done.returncode else ""
