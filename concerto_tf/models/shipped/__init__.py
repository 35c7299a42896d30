"""Models that come with the package, by name: `annotate human-blood CELLS.h5ad`.

Each has a folder here with `model.keras`, `types.tsv` (its cell types with identifiers of the Cell
Ontology) and `README.md`, which says what it was built from and what it is worth.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

#: Names of the models.
SHIPPED = ("human-blood",)


def shipped(name: str | Path) -> Path | None:
    """The folder of a model that comes with the package; None where no such model does.

    Args:
        name: What a user calls it. A file or folder of that name goes first.

    Example:

    >>> from concerto_tf.models.shipped import shipped
    >>> shipped("human-blood").name, shipped("model.keras")
    ('human-blood', None)
    """
    if str(name) not in SHIPPED or Path(name).exists():
        return None
    return Path(str(files(__name__))) / str(name)


def ontology(name: str) -> pd.DataFrame:
    """The cell types of a model that comes with the package.

    Args:
        name: One of `SHIPPED`.

    Returns:
        A table by cell type: ``id`` in the Cell Ontology, ``group``, the coarse label, and
        ``group_id``.

    Example:

    >>> from concerto_tf.models.shipped import ontology
    >>> ontology("human-blood").loc["NK", "id"]
    'CL:0000623'
    """
    import pandas as pd

    folder = Path(str(files(__name__))) / name
    return pd.read_csv(folder / "types.tsv", sep="\t", index_col="type")
