"""What the papers print of data sets, to stand beside what is measured here."""

from __future__ import annotations

#: CICL, tables 1 and 3: cells, types, and ARI and NMI (over the larger entropy) of CICL and CLEAR.
_CICL = {
    "Adam": (3660, 8, 0.7175, 0.7681, 0.5247, 0.6491),
    "Bach": (23184, 8, 0.8071, 0.8086, 0.5776, 0.7620),
    "Bladder": (2432, 2, 0.9885, 0.9709, 0.9852, 0.9679),
    "deng": (268, 6, 0.8982, 0.8469, 0.6260, 0.8056),
    "Diaphragm": (1858, 6, 0.9309, 0.8660, 0.9075, 0.8139),
    "hrvatin": (48266, 8, 0.8730, 0.9085, 0.6669, 0.7816),
    "Klein": (2717, 4, 0.8180, 0.8100, 0.5392, 0.6781),
    "kolodziejczyk": (704, 3, 0.6150, 0.6813, 0.4261, 0.3863),
    "Limb_Muscle": (3855, 6, 0.8961, 0.8212, 0.6565, 0.7492),
    "Mammary_Gland": (3282, 4, 0.9226, 0.8859, 0.8993, 0.8485),
    "muraro": (2126, 10, 0.9383, 0.8846, 0.5134, 0.7014),
    "Plasschaert": (6977, 8, 0.4278, 0.6164, 0.4052, 0.6041),
    "pollen": (301, 11, 0.9117, 0.9323, 0.7500, 0.8565),
    "Qx_Spleen": (9552, 5, 0.4923, 0.6585, 0.2838, 0.4950),
    "Qx_Trachea": (11269, 5, 0.4949, 0.7124, 0.2868, 0.5449),
    "QS_Diaphragm": (870, 5, 0.9561, 0.9412, 0.9571, 0.9396),
    "QS_Heart": (4365, 8, 0.9660, 0.9328, 0.5386, 0.7254),
    "QS_Limb_Muscle": (1090, 6, 0.9094, 0.8810, 0.8918, 0.8500),
    "QS_Lung": (1676, 11, 0.7297, 0.7786, 0.5773, 0.7214),
    "QS_Trachea": (1350, 4, 0.5841, 0.6683, 0.5445, 0.6585),
    "Romanov": (2881, 7, 0.6886, 0.6380, 0.5920, 0.5820),
    "Tosches_turtle": (18664, 15, 0.4228, 0.6739, 0.3432, 0.6287),
    "Wang_lung": (9519, 2, 0.9469, 0.8778, 0.0549, 0.2237),
    "yan": (90, 6, 0.7989, 0.8307, 0.6584, 0.7951),
    "Young": (5685, 11, 0.6578, 0.7479, 0.3806, 0.5808),
}
#: contrastive-sc, table 1: its scores of these are drawn (figure 6), none is printed as a number.
_DRAWN_ONLY = {
    "10X PBMC": (4271, 8),
    "Mouse ES cells": (2717, 4),
    "Worm neuron cell": (4186, 10),
    "Mouse bladder cell": (2746, 16),
    "Mouse bladder cell, 2,100 of its cells": (2100, 16),
}


def printed(cells: int, types: int) -> dict:
    """What the papers print of a data set with so many cells and types.

    A data set counts as the same where both numbers are; the name that the paper gives it is said,
    for the reader to judge.

    Args:
        cells: Number of cells.
        types: Number of types.

    Returns:
        Empty where no paper has it. Else ``scores``, by method ``ari_kmeans`` and
        ``nmi_max_kmeans``, ``source``, and ``notes`` on what is not printed.

    Example:

    >>> printed(90, 6)["scores"]["cicl"]["ari_kmeans"]
    0.7989
    >>> printed(4186, 10)["notes"]
    ['contrastive-sc draws its scores of "Worm neuron cell" in figure 6 and prints no number']
    """
    found: dict = {}
    for name, (n, k, *values) in _CICL.items():
        if (n, k) == (cells, types):
            pairs = {"cicl": values[:2], "clear": values[2:]}
            found["scores"] = {
                method: {"ari_kmeans": ari, "nmi_max_kmeans": nmi}
                for method, (ari, nmi) in pairs.items()
            }
            found["source"] = f'CICL, table 3, "{name}"'
    for name, size in _DRAWN_ONLY.items():
        if size == (cells, types):
            where = "figure S4" if "2,100" in name else "figure 6"
            found["notes"] = [
                f'contrastive-sc draws its scores of "{name}" in {where} and prints no number'
            ]
    return found
