"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Find the folder of reference data: $TIMECYCLE_SHARED, else ../shared beside the repository. Skips without it."""
    folder = Path(os.environ.get("TIMECYCLE_SHARED") or Path(__file__).parents[2] / "shared").resolve()
    if not folder.is_dir():
        pytest.skip(f"the reference data are not at {folder} (TIMECYCLE_SHARED says where)")
    return folder
