import itertools

import pytest
import torch

from lightning_merge.core.dtypes import FLOAT8, common_dtype, wide_dtype
from lightning_merge.methods import Average, TaskArithmetic, Ties

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BITS = torch.arange(256, dtype=torch.uint8)  # every value of a type of 8 bits


EVERY = [*FLOATS, *sorted(FLOAT8, key=str)]


@pytest.mark.parametrize(("one", "other"), [*itertools.product(EVERY, repeat=2)])
def test_the_common_type_holds_all_values(one, other):
    common = common_dtype([one, other])
    assert common == common_dtype([other, one, other]) not in FLOAT8
    for dtype in {one, other} & FLOAT8:
        values = BITS.view(dtype).float()
        assert torch.equal(values.to(common).float().nan_to_num(7.0), values.nan_to_num(7.0))
    if not {one, other} & FLOAT8:
        assert common == torch.promote_types(one, other)


def test_sums_are_in_float32_or_wider():
    assert {wide_dtype(dtype) for dtype in [*FLOAT8, *FLOATS[:3]]} == {torch.float32}
    assert wide_dtype(torch.float64) == torch.float64


@pytest.mark.parametrize("dtype", sorted(FLOAT8, key=str), ids=str)
@pytest.mark.parametrize(
    "method", [Average(), TaskArithmetic(scale=0.5), Ties(density=0.5)], ids=str
)
@pytest.mark.parametrize("other", [None, torch.float16, torch.float32])
def test_float8_merges_as_the_same_values_in_float32_do(dtype, method, other):
    generator = torch.Generator().manual_seed(0)
    weights = [{"w": torch.randn(9, 7, generator=generator).to(dtype)} for _ in range(3)]
    weights[-1]["w"] = weights[-1]["w"].to(other or dtype)
    base, *experts = ({"w": w["w"].float()} for w in weights)
    want = method(base, dict(zip("ab", experts, strict=True)))["w"]
    found = method(weights[0], dict(zip("ab", weights[1:], strict=True)))["w"]
    assert found.dtype == (other or torch.bfloat16)
    assert torch.equal(found, want.to(found.dtype))
