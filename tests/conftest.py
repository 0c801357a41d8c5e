"""Fixtures shared by all tests: one micro base, and the folder of real data where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mp2.model.checkpoint import Base
from tests.micro import micro_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A micro base on disk, loaded."""
    return micro_base(tmp_path_factory.mktemp("base") / "micro")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the public data sets; the test is skipped where there is none."""
    root = os.environ.get("MP2_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("MP2_DATA names no folder of public data sets")
    return Path(root)
