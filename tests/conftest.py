"""Fixtures and options shared by all tests."""

import os
from pathlib import Path

import pytest
import torch


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
