"""Two hosts in network namespaces: training and conversion over a link that can fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from concerto_tf.models import load_model
from concerto_tf.records import Records, convert
from concerto_tf.tasks.training.callbacks import saved_rounds

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 23456


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Hosts:
    """Two network namespaces with a slow cable between them, and what runs on them."""

    def __init__(self) -> None:
        self.names = [f"concerto{os.getpid()}{end}" for end in "ab"]
        self._started: list[subprocess.Popen[str]] = []

    def begin(self) -> None:
        a, b = self.names
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", "va", "netns", a, "type", "veth", "peer", "name", "vb", "netns", b)
        for name, end, address in zip(self.names, ("va", "vb"), ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            for device in ("lo", end):
                ip("-n", name, "link", "set", device, "up")
            slow = "tbf rate 20mbit burst 32kbit latency 400ms".split()
            subprocess.run(
                ["tc", "-n", name, "qdisc", "add", "dev", end, "root", *slow],
                check=True,
                capture_output=True,
            )

    def cable(self, state: str) -> None:
        """Plugs it in, `"up"`, or out, `"down"`."""
        ip("-n", self.names[1], "link", "set", "vb", state)

    def start(self, host: int, *arguments: Any, **environment: str) -> subprocess.Popen[str]:
        """A Python command line on one of them."""
        line = ["ip", "netns", "exec", self.names[host], sys.executable, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        process = subprocess.Popen(line, text=True, env=given, cwd=ROOT, **pipes)
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    try:
        made.begin()
    except (OSError, subprocess.CalledProcessError) as error:
        made.end()
        pytest.skip(f"no network namespaces can be made here: {error}")
    yield made
    made.end()


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(0.7, (160, 40)).astype("float32"))
    donor = np.where(rng.random(160) < 0.3, "small", "large")
    names = [f"AB{i}C" for i in range(40)]
    adata = AnnData(counts, pd.DataFrame({"donor": donor}, index=map(str, range(160))))
    adata.var_names = names
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def records(cells: Path) -> Records:
    return convert(cells, cells.parent / "records", source_key="donor", shards=3)


def train(
    start: Callable[..., Any], places: tuple[str, ...], records: Records, out: Path, epochs: int
) -> list[subprocess.Popen[str]]:
    """The same command on all workers."""
    line = ["train", records.path, "-o", out, "--strategy", "multiworker", "--genes", "all"]
    options = ["--epochs", epochs, "--batch-size", 32, "--quiet"]
    found = []
    for index in range(2):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": places}, "task": task})
        arguments = ["-m", "concerto_tf.cli", *line, *options]
        found.append(start(index, *arguments, TF_CONFIG=config))
    return found


def ended(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str]:
    _, said = process.communicate(timeout=seconds)
    return process.returncode, said


def wait_for(found: Callable[[], bool], processes: list[subprocess.Popen[str]]) -> None:
    limit = time.monotonic() + 180
    while not found():
        assert all(process.poll() is None for process in processes), ended(processes[0])
        assert time.monotonic() < limit
        time.sleep(0.01)


def embedded(out: Path, records: Records) -> np.ndarray:
    model = load_model(out)
    return model.embed(records.dataset(40, sources=model.sources))


def test_training_over_two_hosts_is_that_of_one_and_outlives_its_cable(
    hosts: Hosts, records: Records, tmp_path: Path
) -> None:
    places = tuple(f"{address}:{PORT}" for address in ADDRESSES)
    both = (f"127.0.0.1:{PORT}", f"127.0.0.1:{PORT + 1}")
    undisturbed = train(
        lambda _, *a, **e: hosts.start(0, *a, **e), both, records, tmp_path / "one", 60
    )
    assert [ended(process) for process in undisturbed] == [(0, "")] * 2
    out = tmp_path / "two"
    workers = train(hosts.start, places, records, out, 60)
    wait_for(lambda: saved_rounds(out / "checkpoint") >= 2, workers)
    hosts.cable("down")
    began = time.monotonic()
    for process in workers:
        code, said = ended(process)
        assert code == 130 and "on all workers to continue" in said
    assert time.monotonic() - began < 240 and not (out / "model.keras").exists()
    hosts.cable("up")
    assert [ended(process) for process in train(hosts.start, places, records, out, 60)] == [
        (0, "")
    ] * 2
    np.testing.assert_allclose(
        embedded(out, records), embedded(tmp_path / "one", records), atol=1e-5
    )


def test_conversion_by_workers_on_two_hosts_goes_on_without_one(
    hosts: Hosts, cells: Path, records: Records, tmp_path: Path
) -> None:
    address = f"tcp://{ADDRESSES[0]}:{PORT}"
    scheduler = ["-m", "distributed.cli.dask_scheduler", "--host", ADDRESSES[0], "--port", PORT]
    hosts.start(0, *scheduler, "--no-dashboard")
    for host in range(2):
        worker = ["-m", "distributed.cli.dask_worker", address, "--nworkers", 1, "--no-dashboard"]
        hosts.start(host, *worker, "--no-nanny", "--death-timeout", 120)
    code = (
        "import time\n"
        "from pathlib import Path\n"
        "from distributed import Client\n"
        "from concerto_tf.records import convert\n"
        f"client = Client({address!r})\n"
        "client.wait_for_workers(2)\n"
        "def told(done, total):\n"
        "    print(done, flush=True)\n"
        f"    while not Path({str(tmp_path / 'cut')!r}).exists():\n"
        "        time.sleep(0.01)\n"
        f"convert({str(cells)!r}, {str(tmp_path / 'records')!r}, source_key='donor', shards=3,\n"
        "        chunk_cells=8, dask=client, progress=told)\n"
    )
    caller = hosts.start(0, "-c", code)
    assert caller.stdout is not None
    assert int(caller.stdout.readline()) < 160
    hosts.cable("down")
    (tmp_path / "cut").touch()
    status, said = ended(caller)
    assert status == 0, said
    whole = convert(cells, tmp_path / "here", source_key="donor", shards=3, chunk_cells=8)
    for path in sorted(whole.path.iterdir()):
        assert (tmp_path / "records" / path.name).read_bytes() == path.read_bytes(), path.name
    shutil.rmtree(tmp_path / "records")
