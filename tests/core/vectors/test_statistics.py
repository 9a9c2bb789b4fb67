"""Weight statistics against torch.linalg and plain moments."""

import pytest
import torch

from lightning_merge.core.vectors.statistics import (
    FEATURES,
    feature_names,
    layer_statistics,
    standardize,
    top_singular_values,
    weight_statistics,
)


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(), (5,), (6, 4), (4, 6), (1, 7), (2, 9), (8, 3, 2, 2), (0, 3)])
def test_all_features_of_any_shape(shape):
    stacked = draw(4, *shape) + 0.5
    features = weight_statistics(stacked)
    assert features.shape == (4, 6)
    for row, weight in zip(features, stacked, strict=True):
        flat = weight.flatten() if weight.numel() else torch.zeros(1)
        sigma = torch.linalg.svdvals(weight.flatten(1) if weight.dim() > 1 else flat[None])
        sigma = torch.cat([sigma, torch.zeros(3)])[:3]
        want = torch.stack([flat.mean(), flat.var(correction=0), flat.norm(), *sigma])
        torch.testing.assert_close(row, want, rtol=1e-5, atol=1e-6)


def test_features_are_selected_and_named_in_order():
    features = ("norm", "singular_values", "mean")
    assert feature_names(2, features) == ["norm", "sigma_1", "sigma_2", "mean"]
    assert feature_names() == ["mean", "variance", "norm", "sigma_1", "sigma_2", "sigma_3"]
    stacked = draw(3, 5, 4)
    everything = weight_statistics(stacked, rank=2, features=FEATURES)
    assert torch.equal(weight_statistics(stacked, 2, features), everything[:, [2, 3, 4, 0]])


@pytest.mark.parametrize("shape", [(40, 40), (30, 200), (200, 30), (2, 50, 60)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_gram_matrix_gives_the_singular_values_of_an_svd(shape, scale):
    matrix = scale * draw(*shape)
    want = torch.linalg.svdvals(matrix.double())[..., :5]
    torch.testing.assert_close(top_singular_values(matrix, 5), want, rtol=1e-12, atol=0)


def test_layers_are_stacked_and_standardised():
    stacks = [draw(3, 4, 5), 2 + draw(3, 6), draw(3)]
    features = layer_statistics(stacks)
    assert features.shape == (3, 3, 6)
    assert torch.equal(features[:, 1], weight_statistics(stacks[1]))
    standard = standardize(features)
    torch.testing.assert_close(standard.mean((0, 1)), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(standard.std((0, 1), correction=0), torch.ones(6))
    assert standardize(torch.full((2, 3, 1), 7.0)).abs().max() == 0
