from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.reporting import Runs


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)
