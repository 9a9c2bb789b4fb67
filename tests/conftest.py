"""Fixtures and options shared by all tests."""

import gc
import os
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each, and for what its tests start
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run tests that take minutes")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="slow: give --run-slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference outputs that lies beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("LIGHTNING_MERGE_SHARED", beside))
    if not path.is_dir():
        pytest.skip(f"no {path}: real data and reference outputs are not here")
    return path


def pytest_collection_finish() -> None:
    """Leave the libraries and the tests, which stay, out of garbage collection from now on."""
    gc.collect()
    gc.freeze()
