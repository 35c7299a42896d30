"""`tools/lower-bounds.txt` installs exactly the lower bounds that `setup.cfg` states."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Keras 2 for TensorFlow 2.21 cannot be installed beside the lowest TensorFlow, nor can what serves
# and its client: their protobufs differ.
ELSEWHERE = {"tf_keras", "kserve", "tritonclient"}


def test_lower_bounds_are_those_of_setup_cfg() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    stated = "\n".join(
        [config["options"]["install_requires"], *config["options.extras_require"].values()]
    )
    bounds = dict(re.findall(r"^([\w-]+)(?:\[[\w-]+\])?>=([\d.]+)", stated, re.MULTILINE))
    file = (ROOT / "tools" / "lower-bounds.txt").read_text(encoding="utf-8")
    installed = dict(re.findall(r"^([\w-]+)==([\d.]+)$", file, re.MULTILINE))
    assert len(installed) > 10
    assert installed == {name: bound for name, bound in bounds.items() if name not in ELSEWHERE}
