"""The Sankey figure: which flows are drawn, and how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from concerto_tf.errors import InputError
from concerto_tf.pl import flows
from concerto_tf.tasks.relatives import relatives


def make_table(n_groups: int, n_labels: int, n: int = 4000, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, n_groups, n)
    label = np.where(rng.random(n) < 0.6, group % n_labels, rng.integers(0, n_labels, n))
    return relatives([f"cluster {g}" for g in group], [f"cell type {x}" for x in label])


def draw(table: pd.DataFrame, path: Path) -> None:
    flows.sankey_figure(table, path, left="query", right="reference")


def test_shares_survive_the_merging_of_small_flows() -> None:
    table = make_table(12, 30)
    merged = flows.merge_small(table)
    np.testing.assert_allclose(merged.groupby("group")["share"].sum(), 1.0)
    named = merged[merged["label"] != "other"]
    assert (named["share"] >= 0.05).all() and len(merged) < len(table) / 2
    # One small flow alone keeps its name.
    alone = pd.DataFrame({"group": "a", "label": ["T", "B"], "share": [0.98, 0.02]})
    assert set(flows.merge_small(alone)["label"]) == {"T", "B"}


def test_flows_leave_and_reach_the_whole_of_their_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(5, 4)
    drawn = []
    draw = flows._flow
    monkeypatch.setattr(
        flows, "_flow", lambda axes, *flow: (drawn.append(flow), draw(axes, *flow))[1]
    )
    saved = {}
    monkeypatch.setattr(flows, "save_figure", lambda figure, path: saved.update(figure=figure))
    flows.sankey_figure(table, "x.png", left="query", right="reference")
    assert len(drawn) == len(table)
    high, low = sum(flow[1] for flow in drawn), sum(flow[3] for flow in drawn)
    gap = flows._gap(5)
    np.testing.assert_allclose([high, low], [1 - 4 * gap, 1 - 3 * gap])
    written = [text.get_text() for text in saved["figure"].axes[0].texts]
    sizes = table.groupby("group")["cells"].sum()
    assert all(f"{name}  ({size:,})" in written for name, size in sizes.items())


def test_groups_stand_beside_where_they_lead() -> None:
    table = relatives(list("aabbccdd"), ["T", "T", "B", "B", "T", "T", "B", "M"])
    weight = table.pivot_table(index="group", columns="label", values="share", fill_value=0.0)
    groups, labels = flows._orders(weight)
    assert abs(groups.index("a") - groups.index("c")) == 1  # both lead to T
    assert set(labels) == {"T", "B", "M"}


@pytest.mark.parametrize(("groups", "labels"), [(1, 1), (40, 50)])
def test_one_group_or_many_make_a_picture(groups: int, labels: int, tmp_path: Path) -> None:
    from matplotlib.image import imread

    draw(make_table(groups, labels), tmp_path / "figure.png")
    height, width, _ = imread(tmp_path / "figure.png").shape
    assert height > 300 and width > 800


def test_an_unknown_kind_of_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="xyz is no kind of image"):
        draw(make_table(3, 3), tmp_path / "figure.xyz")
    assert not list(tmp_path.iterdir())


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        draw(relatives([None], ["T"]), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
