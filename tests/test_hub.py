"""Models in folders for the Hugging Face hub, and from one: on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from concerto_tf import hub
from concerto_tf.errors import InputError
from concerto_tf.records import convert
from concerto_tf.tasks.embed import embed
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.map import map as map_to
from concerto_tf.tasks.train import train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cells() -> AnnData:
    counts = np.random.default_rng(0).poisson(2.0, (60, 20)).astype("float32")
    counts[:, 0] += 1
    cells = AnnData(counts)
    cells.obs["type"] = ["B", "T"] * 30
    return cells


@pytest.fixture(scope="module")
def model(cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    records = convert(cells, folder / "records", label_keys=["type"])
    how = {"method": "contrastive-sc", "options": {"backbone": (8, 4), "components": 0}}
    trained = train(records, folder / "model", epochs=1, **how)
    finetune(trained, records, folder / "fine", label_key="type", epochs=1)
    return folder / "model"


def metadata(card: str) -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(card.split("---\n")[1])


def test_a_training_leaves_a_card(model: Path) -> None:
    card = (model / "MODEL_CARD.md").read_text("utf-8")
    data = json.loads((model / "training.json").read_text())["data"]
    assert data["sha256"] in card and "| cells | 60 |" in card and "ContrastiveSC" in card
    told = metadata(card)
    assert told["library_name"] == "concerto_tf" and told["pipeline_tag"] == "feature-extraction"
    assert {"license", "tags"} <= set(told) and "model-index" not in told
    for part in ("Intended use", "Limits", "Training data", "Training", "Metrics", "Licence"):
        assert f"\n## {part}\n" in card


def test_the_card_of_labels_has_their_scores(model: Path) -> None:
    folder = model.parent / "fine"
    told = metadata((folder / "MODEL_CARD.md").read_text("utf-8"))
    (result,) = told["model-index"][0]["results"]
    held = json.loads((folder / "training.json").read_text())["calibration"]
    scores = {one["type"]: one["value"] for one in result["metrics"]}
    assert scores == {"accuracy": held["accuracy"], "f1": held["macro_f1"]}


def test_to_a_folder_and_back(model: Path, cells: AnnData, tmp_path: Path) -> None:
    map_to(model, cells, reference=cells, label_key="type")
    folder = hub.save_to(model, tmp_path / "blood")
    named = {path.name for path in folder.iterdir()}
    assert named == {"model.keras", "README.md", "training.json", "reference"}
    assert "| cells | 60 |" in (folder / "README.md").read_text("utf-8")
    again = hub.from_pretrained(folder)
    np.testing.assert_array_equal(embed(again, cells), embed(model, cells))
    assert len(map_to(folder, cells, label_key="type")) == 60  # the reference came along
    with pytest.raises(InputError, match="is there already"):
        hub.save_to(model, folder)
    with pytest.raises(InputError, match="there is no such folder"):
        hub.from_pretrained(tmp_path / "nothing")


# --- names that are remote --------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def endpoint(model: Path, tmp_path: Path) -> Iterator[str]:
    """As much of the hub as a download asks for, with one model."""
    folder = hub.save_to(model, tmp_path / "served")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer()

        def answer(self, body: bool = True) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            headers, content = {"content-type": "application/json"}, b'{"error": "Not found"}'
            status = 404
            if path.startswith("/api/models/lab/blood/tree/"):
                listed = [
                    {"type": "file", "path": name, "size": len(of), "oid": git_id(of)}
                    for name, of in files.items()
                ]
                status, content = 200, json.dumps(listed).encode()
            elif path.startswith("/api/models/lab/blood"):
                told = {"id": "lab/blood", "sha": COMMIT, "private": False}
                told["siblings"] = [{"rfilename": name} for name in files]
                status, content = 200, json.dumps(told).encode()
            elif path.startswith("/lab/blood/resolve/") and name in files:
                status, content = 200, files[name]
                headers |= {"etag": f'"{git_id(content)}"', "x-repo-commit": COMMIT}
            self.send_response(status)
            for key, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(key, value)
            if status == 404:
                self.send_header("x-error-code", "RepoNotFound")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs the extra hub"
)
def test_a_name_is_downloaded(endpoint: str, tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    code = """
        import sys
        from concerto_tf import InputError, hub
        print(hub.from_pretrained("lab/blood").embedding_dim)
        try:
            hub.from_pretrained("lab/nothing")
        except InputError as error:
            print(error)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    width, error = ran.stdout.splitlines()
    assert width == "4" and "lab/nothing: cannot be had from the hub" in error


@pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is not None, reason="the extra hub is installed"
)
def test_what_to_install() -> None:
    with pytest.raises(InputError, match=r"pip install 'concerto_tf\[hub\]'"):
        hub.from_pretrained("lab/blood")
