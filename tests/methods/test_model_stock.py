"""Model Stock: parity, and the ratios that geometry demands."""

import math

import pytest
import torch

from lightning_merge.methods.model_stock import ModelStock


def merged(*experts, base=0.0):
    start = {"w": torch.full((len(experts[0]),), base)}
    given = {str(k): {"w": start["w"] + torch.tensor(e)} for k, e in enumerate(experts)}
    return ModelStock()(start, given)["w"] - base


@pytest.mark.shared
def test_published(zoo, expected):
    base, experts, _ = zoo
    result = ModelStock()(base, {task: experts[task] for task in ("SUN397", "Cars")})
    for name, want in expected("model_stock_2").items():
        torch.testing.assert_close(result[name], want, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 100])
def test_two_experts_at_an_angle(degrees):
    """With two, t brings the average to the foot of the perpendicular from their centre."""
    angle = math.radians(degrees)
    first, second = [3.0, 0.0], [3 * math.cos(angle), 3 * math.sin(angle)]
    cosine = math.cos(angle)
    want = 2 * cosine / (1 + cosine) * (torch.tensor(first) + torch.tensor(second)) / 2
    torch.testing.assert_close(merged(first, second, base=0.5), want, rtol=1e-5, atol=1e-6)


def test_the_cosine_of_several_is_the_mean_over_pairs():
    got = merged([1.0, 0.0], [2.0, 0.0], [0.0, 3.0])  # cosines 1, 0, 0: t = 1 / (1 + 2 / 3)
    torch.testing.assert_close(got, 0.6 * torch.tensor([1.0, 1.0]))


@pytest.mark.parametrize(
    ("experts", "want"),
    [
        ([[2.0, 1.0]], [2.0, 1.0]),
        ([[2.0, 1.0]] * 3, [2.0, 1.0]),
        ([[2.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[2.0, 0.0], [-1.0, 0.0]], [-0.5, 0.0]),  # t would be infinite
    ],
    ids=["one", "copies", "zero", "opposite"],
)
def test_edges(experts, want):
    torch.testing.assert_close(merged(*experts), torch.tensor(want))
