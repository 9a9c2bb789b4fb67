"""WiSE-FT: parity, and half of the way of every expert."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.methods.task_arithmetic import TaskArithmetic
from lightning_merge.methods.ties import Ties
from lightning_merge.methods.wise_ft import WiSEFT


@pytest.mark.shared
def test_published(zoo, expected):
    base, experts, _ = zoo
    method = TaskArithmetic(scale=1.0, transforms=[WiSEFT()])
    merged = method(base, {"SUN397": experts["SUN397"]})
    for name, want in expected("wiseft_alpha0.5_SUN397").items():
        torch.testing.assert_close(merged[name], want, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", [Ties, TaskArithmetic])
def test_homogeneous_methods_scale_with_it(method, base, make_experts):
    experts = make_experts(3)
    merged = method(transforms=[WiSEFT(alpha=0.25)])(base, experts)
    want = method(scale=0.25 * method().scale)(base, experts)
    for name, tensor in want.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)


def test_bad_alpha():
    with pytest.raises(InputError, match="alpha"):
        WiSEFT(alpha=float("nan"))
