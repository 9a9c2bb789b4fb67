"""Losses against torch.distributions."""

import torch

from lightning_merge.core.networks.losses import entropy


def test_entropy_is_that_of_torch_distributions():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 4
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), expected)
