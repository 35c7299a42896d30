"""Whatever cells go into records, the same cells come out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from concerto_tf.records import Records, convert

# A failure is not made smaller: that takes minutes here.
PHASES = [Phase.explicit, Phase.generate]
# Largest whole numbers that each way to store a value holds, and what is around them.
WHOLE = [1, 2, 255, 256, 65_535, 65_536, 2**24, 2**32 - 1]
# Names that a file may hold. A barcode without characters is none, and surrogates are no text.
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def cells(draw: st.DrawFn) -> anndata.AnnData:
    """Cells of every kind: few or none of the genes, all dtypes, strange names."""
    n_cells = draw(st.integers(1, 30))
    n_genes = draw(st.sampled_from([1, 2, 7, 300, 65_535, 65_536, 70_001]))
    dtype = np.dtype(draw(st.sampled_from(["u1", "u2", "i4", "u4", "i8", "f2", "f4", "f8"])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = rng.integers(0, min(n_genes, 40) + 1, n_cells)
    lengths[rng.integers(n_cells)] = min(n_genes, 40)
    genes = [np.sort(rng.choice(n_genes, length, replace=False)) for length in lengths]
    # The last gene is where an index that is too narrow would show.
    genes = [np.union1d(g[:-1], [n_genes - 1]) if len(g) else g for g in genes]
    indptr = np.concatenate([[0], np.cumsum([len(g) for g in genes])])
    indices = np.concatenate(genes).astype(int)
    if dtype.kind == "f" and draw(st.booleans()):
        # What float32 holds, others are rounded to it. None is whole: that would be a mistake of
        # whoever has such a matrix, and is refused.
        data = (rng.integers(0, 900, len(indices)) + 0.5).astype(dtype)
    else:
        exact = {"f2": 2**11, "f4": 2**24, "f8": 2**32 - 1}.get(dtype.str[1:])
        fits = exact or min(2**32 - 1, int(np.iinfo(dtype).max))
        pool = [x for x in draw(st.lists(st.sampled_from(WHOLE), min_size=1)) if x <= fits] or [1]
        data = rng.choice(np.array(pool, "i8"), len(indices)).astype(dtype)
    values = sp.csr_matrix((data, indices, indptr), (n_cells, n_genes))
    text = draw(st.lists(NAMES, min_size=n_cells, max_size=n_cells, unique=True))
    sources = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    labels = draw(st.lists(st.one_of(st.none(), NAMES), min_size=1, max_size=4, unique=True))
    obs = pd.DataFrame(
        {
            "source": [sources[i % len(sources)] for i in range(n_cells)],
            "label": pd.Categorical([labels[i % len(labels)] for i in range(n_cells)]),
        },
        index=pd.Index(text, dtype=object),
    )
    var = pd.DataFrame(index=pd.Index([f"AB{i}C" for i in range(n_genes)]))
    return anndata.AnnData(values, obs, var)


def read(records: Records) -> tuple[list[int], sp.csr_matrix]:
    """All cells in the order of the input."""
    found = []
    for batch in records.dataset(7, pad_last=False).as_numpy_iterator():
        for row, genes, values in zip(batch["row"], batch["genes"], batch["values"], strict=True):
            found.append((row, genes[values != 0], values[values != 0]))
    found.sort(key=lambda cell: cell[0])
    rows = [row for row, _, _ in found]
    indptr = np.concatenate([[0], np.cumsum([len(genes) for _, genes, _ in found])])
    genes, values = (np.concatenate([cell[i] for cell in found]) for i in (1, 2))
    return rows, sp.csr_matrix((values, genes, indptr), (len(rows), records.n_genes))


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    cells(),
    st.sampled_from(["none", "gzip"]),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_what_goes_in_comes_out(
    adata: anndata.AnnData, compression: str, shards: int, chunk_cells: int, seed: int
) -> None:
    filled = np.flatnonzero(np.diff(adata.X.indptr))
    with tempfile.TemporaryDirectory() as folder:
        records = convert(
            adata,
            Path(folder) / "records",
            source_key="source",
            label_keys=["label"],
            shards=min(shards, adata.n_obs),
            compression=compression,
            chunk_cells=chunk_cells,
            seed=seed,
            drop_empty=True,
        )
        rows, values = read(records)
        known = records.obs()
        assert records.verify() == []
    assert rows == known["row"].tolist() == filled.tolist()
    want = adata.X.astype("f4")[filled]
    np.testing.assert_array_equal(values.indptr, want.indptr)
    np.testing.assert_array_equal(values.indices, want.indices)
    np.testing.assert_array_equal(values.data, want.data)
    assert known["cell"].tolist() == adata.obs_names[filled].tolist()
    assert known["source"].tolist() == adata.obs["source"].iloc[filled].tolist()
    labels = adata.obs["label"].astype(object).where(adata.obs["label"].notna(), None)
    assert known["label/label"].tolist() == labels.iloc[filled].tolist()
