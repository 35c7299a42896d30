"""The state of finished work is harmed: it is made again, or named with what to do."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

from concerto_tf import InputError, run, train
from concerto_tf.cli import main

RUN = {"epochs": 1, "label_key": "kind"}


@pytest.fixture(scope="module")
def finished(cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cells and a finished run of them. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    cells.write_h5ad(folder / "cells.h5ad")
    run(folder / "cells.h5ad", folder / "run", **RUN)
    return folder


def harms(path: Path) -> list[Callable[[], Any]]:
    content = path.read_bytes()
    middle = len(content) // 2

    def flip() -> None:
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])

    return [
        lambda: os.truncate(path, 0),
        lambda: os.truncate(path, middle),
        flip,
        path.unlink,
        lambda: path.write_bytes(b"{}"),
    ]


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands keep messages to themselves, also after their end."""
    monkeypatch.setattr(logging.getLogger("concerto_tf"), "propagate", True)


# Which harms by default, as each is one run or two; all of them where slow tests are asked for.
STATE = {"run.json": [0, 3], "metrics.json": [2], "result.h5ad": [1]}


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        *STATE.items(),
        *(pytest.param(name, range(5), marks=pytest.mark.slow, id=f"{name}-all") for name in STATE),
    ],
)
def test_state_of_a_run_is_made_again(
    name: str, numbers: Sequence[int], finished: Path, tmp_path: Path, caplog, count: Callable
) -> None:
    """Model and records are whole, so the same figures come again, and at little cost."""
    told = {
        key: value
        for key, value in json.loads((finished / "run" / "metrics.json").read_text()).items()
        if not key.startswith(("seconds", "peak"))
    }
    clusters = anndata.read_h5ad(finished / "run" / "result.h5ad").obs["concerto_cluster"]
    out = tmp_path / "run"
    for number in numbers:
        shutil.copytree(finished / "run", out, dirs_exist_ok=True)
        model = (out / "model" / "training.json").read_bytes()
        harms(out / name)[number]()
        caplog.clear()
        if name == "run.json" and number == 3:
            with pytest.raises(InputError, match="is not empty and holds no run"):
                run(finished / "cells.h5ad", out, **RUN)
            continue
        found = run(finished / "cells.h5ad", out, **RUN)
        assert {key: found[key] for key in told} == told
        again = anndata.read_h5ad(out / "result.h5ad").obs["concerto_cluster"]
        assert (again == clusters).all() and (out / "model" / "training.json").read_bytes() == model
        assert number == 3 or "damaged, and made again" in caplog.text or "is not as" in caplog.text
        count("noticed")
        stamp = (out / "result.h5ad").stat().st_mtime_ns
        run(finished / "cells.h5ad", out, **RUN)
        assert (out / "result.h5ad").stat().st_mtime_ns == stamp


def test_what_somebody_changed_in_a_result_is_kept(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    mine = anndata.read_h5ad(out / "result.h5ad")
    mine.obs["mine"] = np.arange(mine.n_obs)
    mine.write_h5ad(out / "result.h5ad")
    run(finished / "cells.h5ad", out, **RUN)
    assert "mine" in anndata.read_h5ad(out / "result.changed.h5ad").obs
    assert "mine" not in anndata.read_h5ad(out / "result.h5ad").obs


def test_new_clusters_of_a_run_are_its_result(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    assert main(["cluster", str(out), "--resolution", "2", "--quiet"]) == 0
    clusters = anndata.read_h5ad(out / "result.h5ad").obs["concerto_cluster"]
    run(finished / "cells.h5ad", out, **RUN)
    assert (anndata.read_h5ad(out / "result.h5ad").obs["concerto_cluster"] == clusters).all()
    assert not list(out.glob("*.changed*"))


@pytest.mark.parametrize("numbers", [[2], pytest.param(range(5), marks=pytest.mark.slow)])
def test_state_of_a_training(
    numbers: Sequence[int], finished: Path, tmp_path: Path, capsys, count: Callable
) -> None:
    out, records = tmp_path / "model", str(finished / "run" / "records")
    train(records, out, epochs=1)
    line = ["train", records, "-o", str(out), "--epochs", "1", "--quiet"]
    whole = tmp_path / "whole"
    shutil.copytree(out, whole)
    for name, codes in {"training.json": {0, 2}, "model.keras": {0}}.items():
        for number in numbers:
            shutil.copytree(whole, out, dirs_exist_ok=True)
            harms(out / name)[number]()
            code = main(line)
            said = capsys.readouterr().err
            assert code in codes and "Traceback" not in said, (name, number, said)
            if code == 2:
                assert "training.json: is damaged" in said or "holds no model" in said
                assert "remove" in said or "name another folder" in said
            count("noticed" if code else "harmless")
        shutil.rmtree(out)


@pytest.mark.parametrize("n", [0, pytest.param(5, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_begun_anew(
    n: int, finished: Path, tmp_path: Path, caplog, count: Callable
) -> None:
    """What cannot be read is said, and the training ends as undisturbed."""
    records = finished / "run" / "records"
    whole = train(records, tmp_path / "whole", epochs=4, batch_size=30)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total * 0.7:
            raise Stop

    with pytest.raises(Stop):
        train(records, tmp_path / "stopped", epochs=4, batch_size=30, progress=stop)
    path = Path("checkpoint") / "training.npz"
    rng = np.random.default_rng(0)
    size = (tmp_path / "stopped" / path).stat().st_size
    places = [size // 2, None, 0, *rng.integers(0, size, n)]
    for number, at in enumerate(places[: n + 1]):
        out = Path(shutil.copytree(tmp_path / "stopped", tmp_path / f"out{number}"))
        if at is None:
            os.truncate(out / path, 0)
        else:
            content = bytearray((out / path).read_bytes())
            content[at] ^= 16
            (out / path).write_bytes(content)
        caplog.clear()
        model = train(records, out, epochs=4, batch_size=30)
        for one, other in zip(model.get_weights(), whole.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        assert number > 2 or "the training begins anew" in caplog.text
        count("noticed")
