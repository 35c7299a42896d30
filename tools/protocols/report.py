"""What a protocol leaves behind: a table, a result and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._files import atomic, write_json
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
    with atomic(out / "table.tsv") as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.6g")
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


def dots(table: pd.DataFrame, by: str, panels: Mapping[str, Sequence[str]]) -> Figure:
    """One dot for each choice, metric and seed, and a bar at the mean.

    Args:
        table: One row per choice and seed, with a column for each metric.
        by: Column that names the choices.
        panels: Title to names of metrics; those that the table lacks are left out.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    from concerto_tf.pl.figures import PALETTE

    shown = {title: [name for name in names if name in table] for title, names in panels.items()}
    shown = {title: names for title, names in shown.items() if names}
    figure = Figure((1.5 + 0.95 * sum(map(len, shown.values())), 3.2), layout="constrained")
    axes = figure.subplots(
        1, len(shown), sharey=True, squeeze=False, width_ratios=[len(n) for n in shown.values()]
    )[0]
    choices = list(dict.fromkeys(table[by]))
    for ax, (title, names) in zip(axes, shown.items(), strict=True):
        for i, choice in enumerate(choices):
            own = table[table[by] == choice]
            for at, name in enumerate(names):
                x = at + min(0.22, 0.8 / len(choices)) * (i - (len(choices) - 1) / 2)
                ax.plot([x] * len(own), own[name], "o", color=PALETTE[i], ms=3.5, alpha=0.6, mew=0)
                ax.plot(
                    x,
                    own[name].mean(),
                    "_",
                    color=PALETTE[i],
                    ms=12,
                    mew=2.2,
                    label=choice if at == 0 else None,
                )
        ax.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=7)
        ax.set_title(title, fontsize=10, loc="left")
        ax.tick_params(axis="y", labelsize=8)
        ax.grid(axis="y", color="0.92")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("score (higher is better)", fontsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside upper right",
        ncols=min(4, len(choices)),
        frameon=False,
        fontsize=8,
    )
    return figure
