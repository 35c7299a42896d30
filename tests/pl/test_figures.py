"""Figures: that what is drawn is what the data say, looked up in the drawing itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from concerto_tf.errors import InputError
from concerto_tf.pl.figures import (
    MISSING_COLOR,
    PALETTE,
    check_figure,
    training_curve,
    umap_figure,
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, to be looked into."""
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(self: Figure, *args: object, **options: object) -> None:
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    return figures


def cells(n_names: int, n: int = 300, name: str = "type {}") -> AnnData:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, n_names, n)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical.from_codes(codes, [name.format(i) for i in range(n_names)])},
        index=[str(i) for i in range(n)],
    )
    adata = AnnData(np.zeros((n, 1), "f4"), obs)
    adata.obsm["X_umap"] = rng.normal(size=(n, 2)) + codes[:, None]
    return adata


def test_every_cell_has_its_categorys_color(tmp_path: Path, drawn: list[Figure]) -> None:
    adata = cells(5)
    adata.obs.loc[adata.obs_names[:9], "cell_type"] = np.nan
    umap_figure(adata, "cell_type", tmp_path / "map.png")
    points = drawn[0].axes[0].collections[0]
    color = {
        tuple(xy): to_hex(c).upper()
        for xy, c in zip(np.asarray(points.get_offsets()), points.get_facecolors(), strict=True)
    }
    for xy, code in zip(adata.obsm["X_umap"], adata.obs["cell_type"].cat.codes, strict=True):
        assert color[tuple(xy)] == (PALETTE[code] if code >= 0 else MISSING_COLOR)
    # the gray ones are drawn first, below
    assert [to_hex(c).upper() for c in points.get_facecolors()[:9]] == [MISSING_COLOR] * 9
    texts = [t.get_text() for t in drawn[0].axes[0].get_legend().get_texts()]
    assert texts == [f"type {i}" for i in range(5)] + ["no value"]


def test_many_categories_are_numbered(tmp_path: Path, drawn: list[Figure]) -> None:
    adata = cells(30, n=3000)
    umap_figure(adata, "cell_type", tmp_path / "map.png")
    axes = drawn[0].axes[0]
    assert [t.get_text() for t in axes.texts] == [str(i + 1) for i in range(30)]
    assert axes.get_legend().get_texts()[11].get_text() == "12  type 11"
    own = adata.obsm["X_umap"][(adata.obs["cell_type"] == "type 11").to_numpy()]
    assert np.abs(np.subtract(axes.texts[11].xy, own.mean(0))).max() < 1
    colors = {h.get_color() for h in axes.get_legend().get_lines()}
    assert len(colors) == 30


def test_short_names_stand_on_the_map(tmp_path: Path, drawn: list[Figure]) -> None:
    umap_figure(cells(12, name="{}"), "cell_type", tmp_path / "map.png")
    axes = drawn[0].axes[0]
    assert [t.get_text() for t in axes.texts] == [str(i) for i in range(12)]
    assert axes.get_legend().get_texts()[3].get_text() == "3"


def test_legend_is_bounded(tmp_path: Path, drawn: list[Figure]) -> None:
    umap_figure(cells(100, n=5000), "cell_type", tmp_path / "map.png")
    texts = [t.get_text() for t in drawn[0].axes[0].get_legend().get_texts()]
    assert len(texts) == 61
    assert texts[-1] == "and 40 smaller"


def test_map_keeps_its_size_beside_a_long_legend(tmp_path: Path, drawn: list[Figure]) -> None:
    for i, name in enumerate(("{}", "a name of a good many letters, number {}")):
        umap_figure(cells(30, name=name), "cell_type", tmp_path / f"{i}.png")
    sizes = [f.axes[0].get_window_extent().size for f in drawn]
    np.testing.assert_allclose(sizes[0], sizes[1])


@pytest.mark.parametrize("n", [1, 20, 60_000])
def test_any_number_of_cells(tmp_path: Path, drawn: list[Figure], n: int) -> None:
    umap_figure(cells(1, n=n), "cell_type", tmp_path / "map.png")
    assert 0.4 < drawn[0].axes[0].collections[0].get_sizes()[0] <= 40


def test_colors_are_told_apart_by_everyone() -> None:
    """Distance in CIELAB of any two of the first eight, and of all, under color blindness."""
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    # deuteranopia and protanopia by Machado et al. (2009)
    kinds = {
        "normal": np.eye(3),
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    }
    xyz = np.array([[0.412, 0.358, 0.181], [0.213, 0.715, 0.072], [0.019, 0.119, 0.951]])
    for kind, matrix in kinds.items():
        seen = np.clip(linear @ np.transpose(matrix), 0, 1) @ xyz.T / [0.950, 1.0, 1.089]
        f = np.where(seen > 0.008856, np.cbrt(seen), 7.787 * seen + 16 / 116)
        lab = np.stack(
            [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1
        )
        distance = np.sqrt(np.square(lab[:, None] - lab).sum(-1)) + 1e3 * np.eye(30)
        assert distance[:8, :8].min() > 15, kind
        assert distance.min() > 10, kind


def test_same_cells_same_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        umap_figure(cells(4), "cell_type", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_other_formats(tmp_path: Path, ending: str) -> None:
    umap_figure(cells(4), "cell_type", tmp_path / f"map.{ending}")
    assert [p.name for p in tmp_path.iterdir()] == [f"map.{ending}"]
    assert (tmp_path / f"map.{ending}").stat().st_size > 1000


def test_nothing_is_left_of_a_failed_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Figure, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        umap_figure(cells(4), "cell_type", tmp_path / "map.png")
    assert list(tmp_path.iterdir()) == []


def test_unknown_columns_are_refused(tmp_path: Path) -> None:
    adata = cells(3)
    with pytest.raises(InputError, match="no column 'tissue' in obs; there are: cell_type"):
        umap_figure(adata, "tissue", tmp_path / "map.png")


def test_curves_of_a_csv_log(tmp_path: Path, drawn: list[Figure]) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "epoch,alignment,effective_rank,loss,val_loss\n"
        "0,0.9,12.5,3.0,3.1\n1,0.5,20.0,2.0,NA\n2,0.4,25.0,1.5,2.2\n"
    )
    training_curve(log, tmp_path / "training.png")
    panels = {a.get_title(loc="left"): a for a in drawn[0].axes if a.get_visible()}
    assert list(panels) == ["Loss", "Alignment", "Effective rank"]
    train, held_out = panels["Loss"].get_lines()
    np.testing.assert_array_equal(train.get_xydata(), [[1, 3.0], [2, 2.0], [3, 1.5]])
    np.testing.assert_array_equal(held_out.get_ydata(), [3.1, np.nan, 2.2])
    np.testing.assert_array_equal(
        panels["Effective rank"].get_lines()[0].get_ydata(), [12.5, 20, 25]
    )
    assert (tmp_path / "training.png").exists()


def test_curves_of_a_history(tmp_path: Path, drawn: list[Figure]) -> None:
    training_curve({"loss": [2.0], "learning_rate": [0.1]}, tmp_path / "training.png")
    (axes,) = drawn[0].axes
    np.testing.assert_array_equal(axes.get_lines()[0].get_xydata(), [[1, 2.0]])


def test_unsuitable_histories_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "training.png"
    with pytest.raises(InputError, match="none of loss, alignment.*there: accuracy"):
        training_curve({"accuracy": [1.0]}, out)
    with pytest.raises(InputError, match="differ in length"):
        training_curve({"loss": [1.0], "alignment": [1.0, 2.0]}, out)
    with pytest.raises(InputError, match="No such file"):
        training_curve(tmp_path / "missing.csv", out)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="there: none"):
        training_curve(tmp_path / "empty.csv", out)
    assert not out.exists()


@pytest.mark.parametrize("name", ["map", "map.tsv", "map.xyz", ".png"])
def test_an_unknown_kind_of_image_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no kind of image.*png"):
        check_figure(tmp_path / name)
    with pytest.raises(InputError, match="is no kind of image"):
        umap_figure(cells(3), "cell_type", tmp_path / name)
    assert not list(tmp_path.iterdir())
    for known in ("map.png", "map.PDF", "map.svg"):
        check_figure(known)


def test_categories_stand_in_the_order_people_count_in(drawn: list[Figure], tmp_path: Path) -> None:
    adata = AnnData(np.zeros((4, 1), "f4"), {"group": ["10", "2", "0", "T"]})
    adata.obsm["X_umap"] = np.arange(8.0).reshape(-1, 2)
    umap_figure(adata, "group", tmp_path / "a.png")
    legend = drawn[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["0", "2", "10", "T"]


def test_marks_do_not_cover_small_groups(drawn: list[Figure], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(1000, 2)) + 20 * np.eye(2)[0] * (np.arange(1000) // 100)[:, None]
    small = rng.normal(size=(10, 2)) / 100 + [90, 8]
    names = [f"c{i // 100}" for i in range(1000)] + ["tiny"] * 10
    adata = AnnData(np.zeros((1010, 1), "f4"), {"group": pd.Categorical(names)})
    adata.obsm["X_umap"] = np.concatenate([xy, small])
    umap_figure(adata, "group", tmp_path / "a.png")
    *_, mark = drawn[0].axes[0].texts
    assert mark.get_va() == "bottom" and mark.xy[1] == pytest.approx(small[:, 1].max())
