"""What README and docs/ say is true of the commands, the links, the names and the snippets in them.

Tutorials (blocks that begin with ```{code-cell}) are executed by `tools/docs`.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.cli import main
from concerto_tf.cli.arguments import make_parser

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(set(DOCS.rglob("*.md")) - set(DOCS.rglob("_build/**/*.md")))]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
#: Commands that other tests run: over processes, on data of scanpy, until they are stopped.
ELSEWHERE = ("multiworker", "concerto demo", "concerto serve")

#: Snippets that are no whole program, or need a server that answers (tests/serve) or the hub.
NOT_ALONE = ("raise InputError", "tritonclient", "owner/blood")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fenced(page: Path, language: str) -> list[str]:
    """The blocks of a page in a language."""
    return [text for name, text in FENCED.findall(page.read_text("utf-8")) if name == language]


def lines(page: Path) -> list[str]:
    """The lines of the shell blocks of a page that call `concerto`."""
    blocks = [block.replace("\\\n", " ") for block in fenced(page, "sh")]
    called = [line for block in blocks for line in block.splitlines()]
    return [line for line in called if "concerto" in shlex.split(line, comments=True)]


def arguments_of(line: str) -> list[str]:
    """The arguments of `concerto` in a line."""
    words = shlex.split(line, comments=True)
    return words[words.index("concerto") + 1 :]


def test_there_are_commands_to_check() -> None:
    assert sum(len(lines(page)) for page in PAGES) > 40


@every_page
def test_commands_are_understood(page: Path) -> None:
    for line in lines(page):
        # ends the test with SystemExit where it is not
        make_parser().parse_args(arguments_of(line))


def test_batch_script_is_understood() -> None:
    script = ROOT / "examples" / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    called = [line for line in script.read_text("utf-8").splitlines() if "concerto run" in line]
    line = called[-1].rpartition("||")[0].replace('"$1"', "cells.h5ad").replace('"$2"', "result")
    assert make_parser().parse_args(arguments_of(line)).output == "result"


@pytest.mark.parametrize(("code", "queued"), [(0, ""), (2, ""), (130, "requeue 7")])
def test_batch_script_is_queued_again(code: int, queued: str, tmp_path: Path) -> None:
    """With stand-ins for SLURM's programs and for `concerto`."""
    stand_ins = {
        "srun": 'shift; exec "$@"',
        "concerto": f'test "$*" = "run cells.h5ad -o result" && exit {code}',
        "scontrol": 'echo "$@"',
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_ID": "7"}
    ran = subprocess.run(
        ["bash", ROOT / "examples" / "slurm.sh", "cells.h5ad", "result"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **slurm},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout.strip()) == (code, queued), ran.stderr


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    prose = FENCED.sub("", page.read_text("utf-8"))
    for target in LINK.findall(prose):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_public_name_is_documented() -> None:
    """By its last part: what is at the top as well is documented where it lives."""
    pages = "".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"auto(?:function|class):: ([\w.]+)", pages))
    names = (ROOT / "tests" / "data" / "api.txt").read_text("utf-8").split()
    plain = {"__version__", "METHODS", "DEFAULT", "Batch", "pl"}  # neither functions nor classes
    assert {name.rpartition(".")[2] for name in names} - plain == documented


def test_every_floor_is_in_the_architecture() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / "setup.cfg", "utf-8")
    floors = re.findall(r"\w+", contracts["importlinter:contract:floors"]["layers"])
    page = (DOCS / "developer" / "architecture.md").read_text("utf-8")
    table = page.split("## Floors")[1].split("## ")[0]
    assert {name for name in floors if name[0] != "_"} <= set(re.findall(r"`(\w+)`", table))


def test_every_command_is_listed() -> None:
    parser = make_parser()
    names = next(a.choices for a in parser._actions if isinstance(a.choices, dict))
    page = (DOCS / "commands.md").read_text("utf-8")
    assert [name for name in names if f"`concerto {name}" not in page] == []


def test_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def make_cells(n: int, seed: int, proteins: bool = False) -> AnnData:
    """Cells that have what the pages ask of theirs."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    profiles = np.random.default_rng(9).gamma(0.4, 3.0, (3, 120))
    counts = rng.poisson(profiles[kind] * 2).astype("f4")
    counts[:, 0] += 1
    names = ["PDCD1", "TIGIT", "LAG3", "CD3D", "LYZ", *(f"AB{i}C" for i in range(115))]
    donor = np.arange(n) % 6
    obs = {
        "cell_type": np.array(["B", "NK", "T"])[kind],
        "coarse": np.where(kind == 0, "B", "other"),
        "lineage": np.where(kind == 0, "B", "other"),
        "group": np.array(["Group1", "Group2", "Group3"])[kind],
        "path": np.array(["Path1", "Path2", "Path3"])[kind],
        "batch": np.array(["Batch1", "Batch2"])[donor % 2],
        "donor": [f"donor{i}" for i in donor],
        "treatment": np.where(donor < 3, "drug", "control"),
    }
    cells = AnnData(counts, pd.DataFrame(obs, [f"cell{seed}-{i}" for i in range(n)]))
    cells.var_names = names
    if proteins:
        values = rng.poisson(kind[:, None] * [3, 1, 0] + 2)
        cells.obsm["protein"] = pd.DataFrame(values, cells.obs_names, ["CD3", "CD19", "CD14"])
    return cells


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files, records and models that the pages begin with."""
    import concerto_tf

    folder = tmp_path_factory.mktemp("workspace")
    for seed, name in enumerate(["cells", "new-cells", "day0", "day7", "rna-only"]):
        make_cells(240, seed).write_h5ad(folder / f"{name}.h5ad")
    make_cells(240, 9, proteins=True).write_h5ad(folder / "citeseq.h5ad")
    genes = concerto_tf.load_model("human-blood").encoder.modality_inputs[0].symbols
    counts = np.random.default_rng(5).poisson(0.1, (50, len(genes))).astype("f4")
    AnnData(counts, var=pd.DataFrame(index=list(genes))).write_h5ad(folder / "blood.h5ad")
    concerto_tf.run(folder / "cells.h5ad", folder / "result", label_key="cell_type")
    records = concerto_tf.convert(
        folder / "cells.h5ad", folder / "records", label_keys=["cell_type", "coarse", "lineage"]
    )
    model = concerto_tf.train(records, folder / "model", genes="all")
    concerto_tf.finetune(model, records, folder / "model-types", label_key="cell_type", epochs=5)
    concerto_tf.export(folder / "model", folder / "served")
    return folder


@pytest.fixture
def here(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder."""
    copy = tmp_path / "workspace"
    shutil.copytree(workspace, copy)
    monkeypatch.chdir(copy)
    return copy


def run_line(line: str) -> None:
    """Runs `concerto` as a line says; what it is to write is not there yet."""
    arguments = arguments_of(line)
    if "--preset" in arguments:
        arguments += ["--epochs", "1"]  # the papers take up to a thousand
    if "-o" in arguments:
        out = Path(arguments[arguments.index("-o") + 1])
        if out.is_dir():
            shutil.rmtree(out)
        out.unlink(missing_ok=True)
    assert main(arguments) == 0, line


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if lines(p)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_commands_run(page: Path, here: Path) -> None:
    if page.name == "extending.md":
        return  # its package is installed and called in tests/cli/test_extending.py
    for line in lines(page):
        if not any(word in line for word in ELSEWHERE):
            run_line(line)


@pytest.mark.slow
def test_snippets_run(here: Path) -> None:
    """README's is `examples/quickstart.py`, and the modules of extending.md are in examples/."""
    import tensorflow as tf

    from concerto_tf.layers import RandomMask
    from concerto_tf.models.dense.mlp import MLP

    @tf.keras.utils.register_keras_serializable(package="documentation")
    class MyLoss(tf.keras.losses.Loss):
        def __init__(self, margin: float = 1.0, name: str = "my_loss", **kwargs: Any) -> None:
            super().__init__(name=name, **kwargs)
            self.margin = margin

        def call(self, y_true: Any, y_pred: Any) -> Any:
            return tf.nn.relu(self.margin - tf.reduce_sum(y_true * y_pred, -1))

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "margin": self.margin}

    yours = {"my_augmentation": RandomMask(0.5), "my_encoder": MLP([8]), "MyLoss": MyLoss}
    examples = {path.read_text("utf-8") for path in (ROOT / "examples").rglob("*.py")}
    ran = 0
    for page in sorted(DOCS.rglob("*.md")):
        for block in fenced(page, "python"):
            if block not in examples and not any(word in block for word in NOT_ALONE):
                shutil.rmtree("records", ignore_errors=True)
                shutil.rmtree("model", ignore_errors=True)
                exec(compile(block, page.name, "exec"), dict(yours))
                ran += 1
    assert ran >= 4
