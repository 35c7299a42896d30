"""What is to be expected of labels, said where they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from concerto_tf.expected import expected, in_words
from concerto_tf.tasks.io.provenance import found_out

if TYPE_CHECKING:
    import pandas as pd


def add_expected(table: pd.DataFrame, stated: Mapping[str, Any], alpha: float) -> str:
    """Notes what share of known and of new cells is called unknown at an error rate.

    Args:
        table: The labels; gains ``attrs["expected"]``, what `concerto_tf.expected.expected` gives,
            where that was measured. The file that they are written to tells it, too.
        stated: Novelty p-values of known cells and of types left out.
        alpha: Novelty p-value below which a cell is unknown.

    Returns:
        It in words.
    """
    rates = expected(stated, alpha)
    if not rates:
        return in_words({"known_lost": alpha})
    table.attrs["expected"] = rates
    # Names of types may hold a "/".
    told = {name: of for name, of in rates.items() if not name.endswith("by_type")}
    found_out(expected={**told, "in_words": in_words(rates)})
    return in_words(rates)
