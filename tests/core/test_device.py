"""Devices by name."""

import pytest
import torch

from lightning_merge.core.device import run_device
from lightning_merge.core.errors import InputError


def test_a_gpu_is_taken_where_there_is_one():
    assert run_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert run_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99", "hpu"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(InputError, match=f"device='{name}': .*; use cpu, or cuda if there"):
        run_device(name)
