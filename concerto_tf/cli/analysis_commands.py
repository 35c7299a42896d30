"""The commands that need no model: they work on embeddings, on counts, or simulate cells.

One function per command, as in `concerto_tf.cli.commands`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from concerto_tf._paths import as_path
from concerto_tf.cli import given
from concerto_tf.cli.output import say, table
from concerto_tf.cli.progress import Reporter
from concerto_tf.errors import InputError


def cluster(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.cluster import cluster
    from concerto_tf.tasks.io.run_folder import RESULT, is_run

    output = options.output
    if output is None:
        if not is_run(options.input):
            raise InputError(f"{options.input}: is no folder of a run; name a file to write", "out")
        output = as_path(options.input) / RESULT
    adata = cluster(
        options.input,
        options.output,
        **given.same(options, "rep algorithm resolution n_clusters seed runs"),
        clusterings=None if options.clusterings is None else given.names(options.clusterings),
    )
    sizes = adata.obs["concerto_cluster"].value_counts()
    found = {"cells": adata.n_obs, "clusters": len(sizes), "output": str(output)}
    say(options, table(found))
    return found


def evaluate(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.evaluate import evaluate

    found = evaluate(options.input, **given.same(options, "label_key source_key rep seed"))
    say(options, table(found))
    return found


def score(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.score import score

    scores = score(
        options.input, options.genes, options.output, name=options.name, layer=options.layer
    )
    found = {
        "cells": len(scores),
        "sets": {name: f"mean {values.mean():.3f}" for name, values in scores.items()},
        "missing genes": scores.attrs["missing"],
        "output": str(options.output),
    }
    say(options, table(found))
    return found


def pseudotime(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.pseudotime import PSEUDOTIME, pseudotime

    adata = pseudotime(
        options.input,
        options.root,
        options.output,
        **given.same(options, "groupby rep figure seed"),
    )
    found = {
        "cells": adata.n_obs,
        "root": str(adata.obs_names[adata.uns["iroot"]]),
        "unconnected": int(adata.obs[PSEUDOTIME].isna().sum()),
        "output": str(options.output),
    }
    say(options, table(found))
    return found


def compare(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.compare import SUMMARY, compare

    names = "condition control label_key sample_key sets layer alpha log_fold_change min_cells"
    names += " figure_format"
    compare(options.input, options.output, **given.same(options, names))
    found = json.loads((as_path(options.output) / SUMMARY).read_text("utf-8"))
    shown = ("cells", "conditions", "tested_on", "tested", "significant")
    report = str(as_path(options.output) / "report.html")
    told = {key: found[key] for key in shown} | {"report": report}
    say(options, table(told), f"tables: {options.output}")
    return found | {"report": report}


def simulate(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.simulate import parameters, simulate

    names = "cells genes groups sizes batches batch_scale de_prob de_scale dropout_mid"
    names += " dropout_shape counts paths path_from seed"
    asked = given.same(options, names)
    params = parameters(**{key: value for key, value in asked.items() if value is not None})
    with Reporter(options.quiet) as progress:
        simulate(
            params,
            options.output,
            **given.same(options, "shards compression workers overwrite"),
            progress=progress.stage("simulate"),
        )
    found = {
        "cells": params.n_cells,
        "genes": params.n_genes,
        "paths" if params.paths else "groups": params.n_groups,
        "batches": params.n_batches,
        "output": str(options.output),
    }
    say(options, table(found))
    return found
