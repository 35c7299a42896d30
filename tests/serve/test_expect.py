"""`concerto serve --expect` looks at the model that is served, also that of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from concerto_tf import InputError, load_model
from concerto_tf.cli.arguments import make_parser
from concerto_tf.cli.given import expected
from concerto_tf.models.fingerprint import fingerprint
from concerto_tf.serve.answers import Answers


@pytest.mark.parametrize("folder", [".", "model"], ids=["run", "model"])
def test_folder_of_a_run(model, tmp_path: Path, folder: str) -> None:
    shutil.copytree(model.folder, tmp_path / "run" / "model")
    served = tmp_path / "run" / folder
    right = fingerprint(load_model(model.folder))

    def expect(print_: str) -> None:
        expected(make_parser().parse_args(["serve", str(served), "--expect", print_]))

    expect(right[:16])
    with pytest.raises(InputError, match="its fingerprint is"):
        expect(right[::-1])
    assert Answers(served, k=3).signatures  # the same folder is served
