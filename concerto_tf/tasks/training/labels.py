"""Labels to learn from: which there are, which cells are held out, and batches with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.novelty import UNKNOWN
from concerto_tf.records import Records
from concerto_tf.records.batch import ROW, SOURCE, Minibatch
from concerto_tf.records.batch import label_key as key_of_label
from concerto_tf.records.manifest import check_label

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger("concerto_tf")
#: More held-out cells than this make a calibration no better.
_MOST_CALIBRATION_CELLS = 2_000
#: Label codes of cells without a label, and of cells held out of training.
MISSING, HELD_OUT = -1, -2


def known_labels(records: Records, label_key: str) -> tuple[list[str], np.ndarray]:
    """The types that cells are labelled with.

    Args:
        records: Finished records.
        label_key: Which labels.

    Returns:
        Names of the types that have cells, and the code of each cell [n], int64 in the order of
        the input; -1 for cells without a label, or labelled ``unknown``.

    Raises:
        InputError: There are no such labels, or fewer than two types.
    """
    check_label(records.path, records.labels, label_key)
    names = records.labels[label_key]
    codes = np.full(records.n_cells, MISSING)
    for batch in records.dataset(
        min(4096, records.n_cells), modalities=(), labels=[label_key], pad_last=False
    ):
        codes[batch[ROW].numpy()] = Minibatch(batch).label(label_key).numpy()
    if UNKNOWN in names and (codes == names.index(UNKNOWN)).any():
        _log.info("%s: cells labelled %r count as unlabelled", label_key, UNKNOWN)
        codes[codes == names.index(UNKNOWN)] = MISSING
    count = np.bincount(codes[codes >= 0], minlength=len(names))
    present = np.flatnonzero(count)
    if len(present) < 2:
        there = f"all are {names[present[0]]!r}" if len(present) else "none of the cells has one"
        raise InputError(
            f"{records.path}: label {label_key!r} must tell at least two types apart, but {there}; "
            "name another label, or cells of several types"
        )
    for code in present[count[present] == 1]:
        _log.warning(
            "%s: %r has one cell; it is learned from, but nothing tells how well it is known",
            label_key,
            names[code],
        )
    place = np.full(len(names) + 1, MISSING)
    place[present] = np.arange(len(present))
    return [names[code] for code in present], place[codes]


def grouped(
    classes: Sequence[str], codes: np.ndarray, coarse: Sequence[str], coarse_codes: np.ndarray
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The coarse label that stands above each type.

    Args:
        classes: Names of the types.
        codes: Type of each cell [n]; -1 for none.
        coarse: Names of the coarse labels.
        coarse_codes: Coarse label of each cell [n]; -1 for none.

    Returns:
        Names of the groups, and the group of each type. A type whose cells have no coarse label is
        a group of its own.

    Raises:
        InputError: A type stands under several coarse labels.

    Example:

    >>> grouped(["CD4", "CD8", "B"], np.array([0, 1, 2]), ["T"], np.array([0, 0, -1]))
    (('T', 'B'), (0, 0, 1))
    """
    names, of_type = list(coarse), []
    for code, name in enumerate(classes):
        above = np.unique(coarse_codes[(codes == code) & (coarse_codes >= 0)])
        if len(above) > 1:
            raise InputError(
                f"cells of {name!r} have several coarse labels "
                f"({', '.join(coarse[of] for of in above[:5])}); give each type one, or name "
                "another column",
                "levels",
            )
        group = coarse[above[0]] if len(above) else name
        if group not in names:
            names.append(group)
        of_type.append(names.index(group))
    return tuple(names), tuple(of_type)


def hold_out(codes: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Chooses cells to calibrate on, of every type about the same share.

    Args:
        codes: Type of each cell [n]; negative for cells without a label.
        share: Share of the labelled cells; at least as many cells as an alpha of 0.05 takes (19)
            are held out, unless these are more than a quarter, and at most 2,000.
        seed: Seed of the choice.

    Returns:
        Which cells are held out, bool [n]. Every type keeps a cell to learn from.
    """
    chosen = np.zeros(len(codes), bool)
    labelled = np.flatnonzero(codes >= 0)
    if not share or not len(labelled):
        return chosen
    n = max(round(share * len(labelled)), min(19, len(labelled) // 4))
    n = min(n, _MOST_CALIBRATION_CELLS)
    rng = np.random.default_rng(seed)
    # A type of one cell keeps it to learn from.
    single = np.flatnonzero(np.bincount(codes[labelled]) == 1)
    labelled = rng.permutation(labelled[~np.isin(codes[labelled], single)])
    n = min(n, len(labelled) // 2)
    if not n:
        return chosen
    # Every k-th of the cells in order of their types: random within them, and in proportion.
    labelled = labelled[np.argsort(codes[labelled], kind="stable")]
    at = (np.arange(n) + rng.random()) * len(labelled) / n
    chosen[labelled[at.astype(int)]] = True
    for code in np.unique(codes[chosen]):
        own = np.flatnonzero(codes == code)
        if chosen[own].all():
            chosen[own[0]] = False
    return chosen


def labelled_batches(data: tf.data.Dataset, label_key: str, codes: np.ndarray) -> tf.data.Dataset:
    """Batches with labels of the cells by their rows.

    Args:
        data: Batches with ``row``.
        label_key: What to call the labels.
        codes: Label of each row; -1 for none, -2 for a cell that is held out: it counts for no
            source either, so that nothing is learned of it.

    Returns:
        The batches with ``label/<label_key>``.
    """
    import tensorflow as tf

    table = tf.constant(codes, tf.int32)

    def labelled(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        row = batch[ROW]
        label = tf.where(row >= 0, tf.gather(table, tf.maximum(row, 0)), HELD_OUT)
        source = tf.where(label == HELD_OUT, -1, batch[SOURCE])
        return {**batch, SOURCE: source, key_of_label(label_key): tf.maximum(label, MISSING)}

    return data.map(labelled)
