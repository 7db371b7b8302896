"""The test suite."""

import os

CORES = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))
"""Processes or threads with which one process of pytest uses its share of the cores."""
