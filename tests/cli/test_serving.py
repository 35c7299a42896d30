"""What `concerto serve` says where it cannot serve."""

from __future__ import annotations

import importlib.util

import pytest


def test_arguments(concerto, tmp_path) -> None:
    concerto("serve", tmp_path, "--port", 70000).mendable("port", "between 0 and 65535")
    concerto("serve", tmp_path, "--max-cells", 0).mendable("1 or more (--max-cells N)")


@pytest.mark.skipif(importlib.util.find_spec("kserve") is not None, reason="kserve is installed")
def test_what_to_install(concerto, tmp_path) -> None:
    concerto("serve", tmp_path).mendable("pip install 'concerto_tf[serve]'")
