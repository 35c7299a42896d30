"""Search among very many drawn embeddings, and clusters and maps of them; see `tools/scale`.

Embeddings have 128 dimensions and are drawn: 30 types of very different size, each spread along 12
directions of its own, with noise. Times are of the processor.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

TYPES, DIMENSIONS, WIDE, QUERIES, EXACT = 30, 128, 12, 10_000, 256
_ANONYMOUS = re.compile(r"RssAnon:\s+(\d+)")


def embeddings(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [n, d] of unit length that are drawn, and their types [n]."""
    rng, types = np.random.default_rng(seed), np.random.default_rng(0)
    center = types.normal(size=(TYPES, DIMENSIONS)).astype("f4")
    shape = types.normal(size=(TYPES, WIDE, DIMENSIONS)).astype("f4") / 3
    share = 0.7 ** np.arange(TYPES)
    code = rng.choice(TYPES, n, p=share / share.sum())
    z = 0.1 * rng.standard_normal((n, DIMENSIONS), "f4") + center[code]
    for one in range(TYPES):
        own = np.flatnonzero(code == one)
        z[own] += rng.standard_normal((len(own), WIDE), "f4") @ shape[one]
    return z / np.linalg.norm(z, axis=1, keepdims=True), code


def search(n: int, folder: Path) -> dict[str, object]:
    """What the search among n embeddings takes, and how right it is."""
    from concerto_tf.metrics.approximate import ApproximateSearch

    with tempfile.TemporaryDirectory(dir=folder) as name:
        path, codes = Path(name) / "embeddings.npy", []
        kept = np.lib.format.open_memmap(path, "w+", "f4", (n, DIMENSIONS))
        for start in range(0, n, 100_000):
            part, code = embeddings(min(100_000, n - start), start + 1)
            kept[start : start + len(part)] = part
            codes.append(code)
        del kept
        code, query = np.concatenate(codes), embeddings(QUERIES + EXACT, n + 1)[0]
        cells = np.load(path, mmap_mode="r")
        with measured() as build:
            built = ApproximateSearch(cells, cosine=True).saved()
        with measured() as mapping:
            index = ApproximateSearch(cells, cosine=True, built=built)
            began = time.process_time()
            found, _ = index.search(query[:QUERIES], 15)
            took = time.process_time() - began
        # Few enough are compared with all; what they take is what measuring the recall takes.
        with measured() as exact:
            true, _ = index.search(query[:EXACT], 15)
    hits = np.mean([len(np.intersect1d(a, b)) / 15 for a, b in zip(found, true, strict=False)])
    votes = [np.eye(TYPES)[code[of[:EXACT, :5]]].sum(1).argmax(1) for of in (found, true)]
    return {
        "build_seconds": build["seconds"],
        "build_bytes": build["bytes"],
        "microseconds": round(1e6 * (took - exact["seconds"]) / QUERIES),
        "measuring_seconds": exact["seconds"],
        "exact_microseconds": round(1e6 * exact["seconds"] / EXACT),
        "recall": round(float(hits), 4),
        "labels_alike": round(float(np.mean(votes[0] == votes[1])), 4),
        "index_bytes": built.nbytes,
        "mapping_bytes": mapping["bytes"],
    }


def graph(n: int, _: Path) -> dict[str, object]:
    """What neighbours, clusters and UMAP of n embeddings in memory take."""
    from anndata import AnnData

    from concerto_tf.tasks.cluster import CLUSTER, cluster
    from concerto_tf.tasks.embed import KEY
    from concerto_tf.tasks.neighbours import neighbour_graph, umap

    z = np.empty((n, DIMENSIONS), "f4")
    for start in range(0, n, 100_000):
        part = embeddings(min(100_000, n - start), start + 1)[0]
        z[start : start + len(part)] = part
    adata, found = AnnData(obsm={KEY: z}), {}
    for name, step in (
        ("neighbours", lambda: neighbour_graph(adata, KEY, z, 0)),
        ("clusters", lambda: cluster(adata)),
        ("umap", lambda: umap(adata)),
    ):
        with measured() as took:
            step()
        found |= {f"{name}_{what}": value for what, value in took.items()}
        print(name, took, flush=True)
    return found | {"clusters": int(adata.obs[CLUSTER].nunique())}


def agreement(n: int, _: Path) -> dict[str, object]:
    """How the way of many cells agrees with the exact way on n cells."""
    from sklearn.metrics import adjusted_rand_score

    from concerto_tf.metrics import graph as ways

    z, code = embeddings(n, 1)
    z += np.random.default_rng(2).normal(0, 0.03, z.shape).astype("f4")
    took, found, near = {}, {}, {}
    for way, limit in (("exact", n), ("approximate", 0)):
        ways.EXACT_CELLS = ways.MANY_CELLS = limit
        began = time.process_time()
        made = ways.scanpy_graph(z)
        took[f"{way}_neighbours_seconds"] = round(time.process_time() - began, 1)
        began = time.process_time()
        found[way] = ways.leiden(made, 0.6, 0)
        took[f"{way}_leiden_seconds"] = round(time.process_time() - began, 1)
        near[way] = made.obsp["distances"] > 0
        if way == "exact":
            found["other seed"] = ways.leiden(made, 0.6, 1)
    pure = {}
    for way, clusters in found.items():
        counts = np.zeros((clusters.max() + 1, TYPES), int)
        np.add.at(counts, (clusters, code), 1)
        share = counts / counts.sum(1, keepdims=True)
        pure[way] = {t for t in range(TYPES) if (share[counts[:, t].argmax(), t]) > 0.5}
    return took | {
        "ari": round(adjusted_rand_score(found["exact"], found["approximate"]), 4),
        "ari_of_two_seeds": round(adjusted_rand_score(found["exact"], found["other seed"]), 4),
        "recall": round(near["exact"].multiply(near["approximate"]).sum() / near["exact"].sum(), 4),
        "clusters": {way: int(of.max() + 1) for way, of in found.items()},
        "types_found": {way: len(of) for way, of in pure.items()},
        "lost": {t: int((code == t).sum()) for t in pure["exact"] - pure["approximate"]},
    }


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Processor seconds of a block, and the largest memory meanwhile but for pages of files."""
    found: dict[str, float] = {"bytes": 0}
    over = threading.Event()

    def look() -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            found["bytes"] = max(found["bytes"], 1024 * int(_ANONYMOUS.search(status)[1]))
            if over.wait(0.05):
                return

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    began = time.process_time()
    try:
        yield found
    finally:
        found["seconds"] = round(time.process_time() - began, 1)
        over.set()
        watch.join()
