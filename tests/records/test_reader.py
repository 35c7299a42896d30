from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.records import Records, convert
from concerto_tf.records.batch import Minibatch

pytestmark = pytest.mark.stack


@pytest.fixture
def records(cells: anndata.AnnData, tmp_path: Path) -> Records:
    return convert(cells, tmp_path / "records", source_key="donor", label_keys=["type"], shards=5)


def rows_of(dataset: tf.data.Dataset) -> list[int]:
    rows = np.concatenate([batch["row"].numpy() for batch in dataset])
    return rows[rows >= 0].tolist()


def dense(batch: dict[str, tf.Tensor], n_genes: int) -> np.ndarray:
    counts = np.zeros((len(batch["row"]), n_genes))
    for row, (genes, values) in enumerate(zip(batch["genes"], batch["values"], strict=True)):
        np.add.at(counts[row], genes.numpy(), values.numpy())
    return counts


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_gives_back_what_was_converted(
    cells: anndata.AnnData, tmp_path: Path, shuffle: bool, compression: str
) -> None:
    records = convert(
        cells,
        tmp_path / "r",
        source_key="donor",
        label_keys=["type"],
        shards=3,
        compression=compression,
    )
    assert records.verify() == []
    n_genes, seen = cells.n_vars, []
    width = -(-records.modalities["rna"].max_nonzeros // 32) * 32
    for batch in records.dataset(
        32, shuffle=shuffle, drop_remainder=False, labels=["type"], cells=True
    ):
        assert batch["genes"].shape == batch["values"].shape == (32, width)
        assert batch["genes"].dtype == tf.int32 and batch["values"].dtype == tf.float32
        rows = batch["row"].numpy()
        real = rows >= 0
        expected = cells.X[rows[real]].toarray()
        assert np.array_equal(dense(batch, n_genes)[real], expected)
        assert np.array_equal(batch["total"].numpy()[real], expected.sum(1))
        obs = cells.obs.iloc[rows[real]]
        assert [name.decode() for name in batch["cell"].numpy()[real]] == list(obs.index)
        assert [records.sources[i] for i in batch["source"].numpy()[real]] == list(obs["donor"])
        assert [records.labels["type"][i] for i in batch["label/type"].numpy()[real]] == list(
            obs["type"]
        )
        for genes, n in zip(
            batch["genes"].numpy(), (batch["values"].numpy() > 0).sum(1), strict=True
        ):
            assert (np.diff(genes[:n]) > 0).all() and not genes[n:].any()
        seen += rows[real].tolist()
    assert sorted(seen) == list(range(200))


def test_padding_of_the_last_batch(records: Records) -> None:
    *_, last = records.dataset(64, labels=["type"], cells=True)
    real = 200 % 64
    assert last["row"].shape == 64
    for name in ("row", "source", "label/type"):
        assert (last[name].numpy()[real:] == -1).all() and (last[name].numpy()[:real] >= 0).all()
    assert not last["values"].numpy()[real:].any() and not last["genes"].numpy()[real:].any()
    assert set(last["cell"].numpy()[real:]) == {b""}
    *_, last = records.dataset(64, pad_last=False)
    assert last["row"].shape == real
    assert len(list(records.dataset(64, drop_remainder=True))) == 3


def test_every_epoch_holds_each_cell_once_in_another_order(records: Records) -> None:
    # 200 cells, batches of 20: ten batches an epoch.
    stream = rows_of(records.dataset(20, shuffle=True, repeat=True).take(30))
    epochs = [stream[start : start + 200] for start in (0, 200, 400)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(200))
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_follows_from_seed_and_epoch_alone(records: Records) -> None:
    stream = rows_of(records.dataset(20, shuffle=True, repeat=True, seed=3).take(30))
    tf.random.set_seed(99)  # nobody else's seed matters
    try:
        for epoch in range(3):
            alone = rows_of(records.dataset(20, shuffle=True, seed=3, first_epoch=epoch))
            assert alone == stream[epoch * 200 : epoch * 200 + 200]
        resumed = rows_of(
            records.dataset(20, shuffle=True, repeat=True, seed=3, first_epoch=1).take(20)
        )
        assert resumed == stream[200:]
        assert rows_of(records.dataset(20, shuffle=True, seed=4)) != stream[:200]
    finally:
        # The test process is shared.
        tf.random.set_seed(None)


def test_an_epoch_that_does_not_divide_starts_afresh(records: Records) -> None:
    # 200 = 6 batches of 30 and 20 cells that are left out, other ones in every epoch.
    stream = rows_of(records.dataset(30, shuffle=True, repeat=True).take(12))
    again = rows_of(records.dataset(30, shuffle=True, repeat=True, first_epoch=1).take(6))
    assert stream[180:] == again
    assert len(set(stream[:180])) == 180 and set(stream[:180]) != set(stream[180:])


@pytest.mark.parametrize("shuffle", [False, True])
def test_position_tells_nothing_of_the_input_order(
    make_cells, tmp_path: Path, shuffle: bool
) -> None:
    n_cells = 2000
    records = convert(make_cells(n_cells, 10), tmp_path / "r", shards=4, chunk_cells=300)
    rows = np.array(rows_of(records.dataset(50, shuffle=shuffle)))
    # Spearman's correlation of a random order has standard deviation 1 / sqrt(n - 1); five of them
    # are passed once in 1.7 million trials. The order is fixed by the seed, so it passes for good.
    correlation = np.corrcoef(np.arange(n_cells), rows)[0, 1]
    assert abs(correlation) < 5 / np.sqrt(n_cells - 1)
    # Neighbours in a batch are no neighbours in the input: 1 in n_cells / 2 would be by chance,
    # and more than 12 where 2 are expected happen in one of 500,000 trials (Poisson).
    assert (np.abs(np.diff(rows)) == 1).sum() < 12
    # Two epochs have nothing in common either.
    if shuffle:
        other = np.array(rows_of(records.dataset(50, shuffle=True, first_epoch=1)))
        correlation = np.corrcoef(np.argsort(rows), np.argsort(other))[0, 1]
        assert abs(correlation) < 5 / np.sqrt(n_cells - 1)


def test_selected_genes(cells: anndata.AnnData, records: Records) -> None:
    chosen = np.array([1, 5, 6, 40])
    for batch in records.dataset(50, genes=chosen, shuffle=True):
        counts = cells.X[batch["row"].numpy()].toarray()
        kept = np.zeros_like(counts)
        kept[:, chosen] = counts[:, chosen]
        assert batch["genes"].shape == (50, 32)
        assert np.array_equal(dense(batch, cells.n_vars), kept)
        assert np.array_equal(batch["total"], counts.sum(1))
        for genes, n in zip(batch["genes"].numpy(), (kept > 0).sum(1), strict=True):
            assert (np.diff(genes[:n]) > 0).all() and not genes[n:].any()
    with pytest.raises(InputError, match="from 0 to 59"):
        records.dataset(50, genes=np.array([60]))


def test_sources_go_by_name(cells: anndata.AnnData, records: Records) -> None:
    batch = next(iter(records.dataset(200, sources=["other", "young"])))
    donors = cells.obs["donor"].iloc[batch["row"].numpy()]
    assert batch["source"].numpy().tolist() == [1 if d == "young" else -1 for d in donors]
    *_, last = records.dataset(150, sources=["young", "old"])
    assert (last["source"].numpy()[50:] == -1).all()
    assert set(last["source"].numpy()[:50]) == {0, 1}


@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_share_the_cells(records: Records, count: int, shuffle: bool) -> None:
    # Of five shards two workers read two each and half of the fifth, seven a part of every one.
    rows: list[int] = []
    for index in range(count):
        own = rows_of(
            records.dataset(8, shuffle=shuffle, shard_of=(index, count), drop_remainder=False)
        )
        assert len(own) - 200 // count in (0, 1)
        rows += own
    assert Counter(rows) == Counter(range(200))


def test_every_modality_is_packed_and_its_features_chosen(make_cells, tmp_path: Path) -> None:
    """As RNA is: the same values as without, in fewer places."""
    cells, rng = make_cells(64), np.random.default_rng(0)
    peaks = rng.poisson(1, (64, 200)) * (rng.random((64, 200)) < 0.05)
    peaks[0] = 1  # by which all are padded otherwise
    cells.obsm["peaks"] = peaks
    records = convert(cells, tmp_path / "r", modalities={"peaks": "obsm:peaks"})
    chosen = np.arange(0, 200, 2)
    for genes, want in (
        ({}, peaks),
        ({"peaks": chosen}, np.where(np.isin(np.arange(200), chosen), peaks, 0)),
    ):
        [batch] = records.dataset(64, packed=True, genes=genes)
        held = Minibatch(batch).modality("peaks")
        assert held.genes.shape[1] < (want > 0).sum(1).max()
        found = np.zeros((64, 200))
        rows = batch["row"].numpy()[held.rows.numpy()]
        np.add.at(found, (rows, held.genes.numpy()), held.values.numpy())
        np.testing.assert_array_equal(found, want)
        np.testing.assert_array_equal(held.total, peaks.sum(1)[batch["row"]])


def test_further_modalities(make_cells, tmp_path: Path) -> None:
    cells = make_cells(40)
    protein = np.random.default_rng(0).poisson(3, (40, 5)) * 100
    cells.obsm["protein"] = protein
    records = convert(cells, tmp_path / "r", modalities={"protein": "obsm:protein"})
    assert len(records.vocabulary_of("protein")) == 5
    [batch] = records.dataset(40)
    for row, genes, values in zip(
        batch["row"].numpy(),
        batch["protein/genes"].numpy(),
        batch["protein/values"].numpy(),
        strict=True,
    ):
        found = np.zeros(5)
        np.add.at(found, genes, values)
        assert found.tolist() == protein[row].tolist()


@pytest.mark.parametrize("scale", [1, 300, 70_000, 0.5])
def test_every_value_dtype(make_cells, tmp_path: Path, scale: float) -> None:
    cells = make_cells(30)
    cells.X = cells.X * scale
    records = convert(cells, tmp_path / "r")
    expected = {1: "uint8", 300: "uint16", 70_000: "uint32", 0.5: "float32"}[scale]
    assert records.manifest.modalities["rna"].value_dtype == expected
    [batch] = records.dataset(30)
    assert np.array_equal(dense(batch, 60), cells.X[batch["row"].numpy()].toarray())


def test_obs_in_input_order(cells: anndata.AnnData, tmp_path: Path) -> None:
    cells.obs["type"] = cells.obs["type"].astype(object)
    cells.obs.iloc[[3, 9], 1] = None
    records = convert(cells, tmp_path / "r", source_key="donor", label_keys=["type"])
    obs = records.obs()
    assert obs["row"].tolist() == list(range(200))
    assert obs["cell"].tolist() == list(cells.obs_names)
    assert obs["source"].tolist() == cells.obs["donor"].tolist()
    assert obs["label/type"].tolist() == cells.obs["type"].tolist()
    assert obs["label/type"][3] is None


def test_typical_total_is_the_median(cells: anndata.AnnData, tmp_path: Path) -> None:
    totals = np.asarray(cells.X.sum(1)).ravel()
    for shards in (1, 3):
        records = convert(cells, tmp_path / str(shards), shards=shards)
        assert records.typical_total == np.median(totals)


def test_typical_total_where_shards_are_empty(cells: anndata.AnnData, tmp_path: Path) -> None:
    few = cells[:12].copy()
    records = convert(few, tmp_path / "few", shards=4, seed=2)
    assert 0 in [shard.n_cells for shard in records.manifest.shards]
    assert records.typical_total == np.median(np.asarray(few.X.sum(1)))


def test_gene_stats(cells: anndata.AnnData, records: Records) -> None:
    counts = cells.X.toarray().astype(float)
    scaled = 1e4 * counts / counts.sum(1, keepdims=True)
    stats = records.gene_stats
    assert stats.n_cells.tolist() == (counts > 0).sum(0).tolist()
    np.testing.assert_allclose(stats.mean, scaled.mean(0), rtol=1e-8)
    np.testing.assert_allclose(stats.variance, scaled.var(0, ddof=1), rtol=1e-7)


def test_cardinality(records: Records) -> None:
    assert records.dataset(64).cardinality() == 4
    assert records.dataset(64, shuffle=True).cardinality() == 3
    assert records.dataset(64, repeat=True).cardinality() == tf.data.INFINITE_CARDINALITY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "at least 1"),
        (
            {"batch_size": 8, "labels": ["typ"]},
            "no label 'typ'; did you mean 'type'.*; or convert again",
        ),
        ({"batch_size": 201, "shuffle": True}, "200 cells .* do not fill a batch of 201"),
        ({"batch_size": 8, "shard_of": (2, 2)}, "share 2 of 2"),
    ],
)
def test_options_that_do_not_fit(records: Records, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        records.dataset(**options)


class Counting(Records):
    """Records that count their datasets."""

    made = 0

    def dataset(self, *args: Any, **kwargs: Any) -> Any:
        self.made += 1
        return super().dataset(*args, **kwargs)


def test_what_is_known_of_cells_is_read_once(cells: anndata.AnnData, tmp_path: Path) -> None:
    path = convert(cells, tmp_path / "r", label_keys=["type"]).path
    records = Counting(path)
    first = records.obs()
    first["cell"] = np.array([])
    assert len(records.obs()["cell"]) == cells.n_obs
    assert records.typical_total == np.median(np.asarray(cells.X.sum(1)))
    assert records.made == 1


def test_vocabulary_is_read_once(cells: anndata.AnnData, tmp_path: Path, opened_files) -> None:
    path = convert(cells, tmp_path / "r").path
    with opened_files() as opened:
        records = Records(path)
        records.dataset(4, packed=True)
        records.dataset(4)
        records.gene_stats_of("rna")
        assert records.measured().all()
        assert records.vocabulary.ids == tuple(cells.var_names)
    assert sum(name == str(path / "vocabulary.tsv") for name, *_ in opened) == 1
