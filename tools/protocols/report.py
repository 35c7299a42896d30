"""What a protocol leaves behind: a table, a result and a figure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._files import write_json, write_table
from concerto_tf.errors import InputError
from concerto_tf.pl.figures import save_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def check_folder(out: str | Path) -> Path:
    """Makes the folder of a protocol, before there is any work to lose.

    Args:
        out: The folder; it may be there already.

    Returns:
        Its path.

    Raises:
        InputError: It is a file, or cannot be written.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder for the report")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); name another folder"
        ) from error
    return out


def leave(
    out: str | Path, table: pd.DataFrame, result: dict[str, Any], figure: Figure | None = None
) -> dict[str, Any]:
    """Writes ``table.tsv``, ``figure.png`` and, last, ``result.json``, each whole or not at all.

    Args:
        out: The folder; made where it is not there.
        table: One row per measurement; its index is not written.
        result: What is to be remembered. NumPy's numbers are written as numbers, what is not
            finite as null.
        figure: The figure; ``None`` leaves none.

    Returns:
        The result as ``result.json`` holds it.

    Raises:
        InputError: The folder cannot be made.

    Example:

    >>> import pandas as pd, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> leave(folder, pd.DataFrame({"method": ["pca"], "ari": [0.7]}), {"best": np.float64(0.7)})
    {'best': 0.7}
    >>> sorted(entry.name for entry in folder.iterdir())
    ['result.json', 'table.tsv']
    """
    out = check_folder(out)
    write_table(out / "table.tsv", table)
    if figure is not None:
        save_figure(figure, out / "figure.png")
    result = plain(result)
    write_json(out / "result.json", result)
    return result


def plain(value: Any) -> Any:
    """A value as JSON knows it: NumPy's numbers as Python's, NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
