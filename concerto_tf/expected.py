"""What is to be expected of labels: known cells called unknown, and cells of new types caught.

Whoever gives labels measures p-values of known cells as a query would have them, and of cells of
each type were it not known; these are kept with model or reference. Here they become shares at an
error rate, and a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: Cells of a type, below which nothing is stated of it.
FEWEST_STATED = 5
#: Types that are named in a sentence, those that are caught least; and of known types those that
#: lose most, where they lose as much and twice as much as all cells.
_NAMED, _MOST_LOST, _MUCH_LOST = 6, 3, 0.2


def expected(stated: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """What is to be expected at an error rate.

    Args:
        stated: Novelty p-values of ``known`` cells, those of each type (``of_type``), and by type
            those of cells of it were it not known (``new``); empty where that was not measured.
        alpha: Novelty p-value below which a cell is unknown.

    Returns:
        ``known_lost``, the share of known cells that is called unknown, ``lost_by_type``,
        ``new_caught``, the share of cells of a type left out on the mean over the types, and
        ``by_type``. Empty for nothing.

    Example:

    >>> from concerto_tf.expected import expected
    >>> found = expected({"known": [0.01, 0.5], "new": {"B": [0.02], "NK": [0.03, 0.2]}}, 0.05)
    >>> found["known_lost"], found["new_caught"], found["by_type"]
    (0.5, 0.75, {'NK': 0.5, 'B': 1.0})
    """
    if not stated:
        return {}
    caught, lost = (
        {name: round(_below(p, alpha), 3) for name, p in stated.get(which, {}).items()}
        for which in ("new", "of_type")
    )
    caught = dict(sorted(caught.items(), key=lambda item: item[1]))
    return {
        "known_lost": round(_below(stated["known"], alpha), 3),
        "lost_by_type": dict(sorted(lost.items(), key=lambda item: -item[1])),
        **({"new_caught": round(float(np.mean(list(caught.values()))), 3)} if caught else {}),
        "by_type": caught,
    }


def in_words(rates: Mapping[str, Any]) -> str:
    """What `expected` gives, as a sentence.

    Example:

    >>> from concerto_tf.expected import in_words
    >>> print(in_words({"known_lost": 0.04, "lost_by_type": {"DC": 0.6, "B": 0.02}, "by_type": {}}))
    of known cells about 4% are called unknown (of DC 60%, more in another study)
    """
    lost, of_types = rates["known_lost"], rates.get("lost_by_type", {}).items()
    most = [
        f"of {name} {share:.0%}" for name, share in of_types if share > max(_MUCH_LOST, 2 * lost)
    ]
    where = ", ".join([*most[:_MOST_LOST], "more in another study"])
    said = f"of known cells about {lost:.0%} are called unknown ({where})"
    if "new_caught" not in rates:
        return said
    named = [f"{name} {share:.0%}" for name, share in rates["by_type"].items()]
    more = ", ..." if len(named) > _NAMED else ""
    return (
        f"{said}; of cells of a type left out {rates['new_caught']:.0%} on average "
        f"({', '.join(named[:_NAMED])}{more})"
    )


def p_by_type(
    p_value: np.ndarray, label: np.ndarray, names: Sequence[str]
) -> dict[str, list[float]]:
    """P-values of the cells of each type that has five or more, as they are kept.

    Args:
        p_value: Novelty p-values [n].
        label: Types of the cells [n].
        names: Names of the types.

    Example:

    >>> import numpy as np
    >>> p_by_type(np.full(6, 0.5), np.array([0, 0, 0, 0, 0, 1]), ["B", "T"])
    {'B': [0.5, 0.5, 0.5, 0.5, 0.5]}
    """
    own = {name: p_value[label == code] for code, name in enumerate(names)}
    return {name: rounded(p) for name, p in own.items() if len(p) >= FEWEST_STATED}


def rounded(p_value: np.ndarray) -> list[float]:
    """Novelty p-values as they are kept: digits that no error rate needs are left out."""
    return [round(float(p), 4) for p in p_value]


def _below(p_value: Sequence[float], alpha: float) -> float:
    return float(np.mean(np.array(p_value) < alpha)) if len(p_value) else 0.0
