"""Values that are stored in a narrower type than they were computed in."""

import math

import pytest
import torch

from lightning_merge.core.checkpoints.flat import check_fits
from lightning_merge.core.checkpoints.writer import CheckpointWriter
from lightning_merge.core.errors import InputError
from lightning_merge.methods.streaming import InMemory

NARROW = [
    (torch.float32, torch.float16, 7e4),
    (torch.float32, torch.bfloat16, 3.4e38),
    (torch.float64, torch.float32, 1e39),
    (torch.bfloat16, torch.float16, 1e5),
    (torch.float32, torch.float8_e5m2, 1e5),
]
TYPES = pytest.mark.parametrize(("wide", "narrow", "value"), NARROW)


@TYPES
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("position", [0, 2])
def test_a_number_that_would_become_infinite(wide, narrow, value, sign, position):
    values = torch.ones(3, dtype=wide)
    values[position] = sign * value
    assert not values.to(narrow).isfinite().all()
    kind = str(narrow).removeprefix("torch.")
    with pytest.raises(InputError, match=rf"^w: a value of .* is too large for {kind}.*wider"):
        InMemory({"w": (narrow, (3,))}).write("w", 0, values)


@pytest.mark.parametrize("size", [None, 1])
def test_nothing_is_left_of_a_file_that_would_hold_one(size, tmp_path):
    with (
        pytest.raises(InputError, match="too large for float16"),
        CheckpointWriter(tmp_path / "x", {"w": (torch.float16, (3,))}, max_shard_size=size) as file,
    ):
        file.write("w", 0, torch.tensor([1.0, -1e5, 2.0]))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@TYPES
def test_what_fits_is_rounded(wide, narrow, value):
    most = 0.9 * torch.finfo(narrow).max
    values = torch.tensor([most, -most, 0.1], dtype=wide)
    sink = InMemory({"w": (narrow, (3,))})
    sink.write("w", 0, values)
    assert torch.equal(sink.tensors["w"].float(), values.to(narrow).float())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_already_is_nobodys_fault(value):
    values = torch.tensor([value, 1.0, 65510.0])  # the last one is rounded down
    check_fits("w", values, values.half())
    values = torch.tensor([value, 7e4])
    with pytest.raises(InputError, match=r"value of 7e\+04 "):
        check_fits("w", values, values.half())
