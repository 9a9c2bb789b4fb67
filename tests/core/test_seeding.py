"""Seeds from names."""

import torch

from lightning_merge.core.seeding import generator_for


def test_same_names_same_numbers_and_only_those():
    draws = [
        torch.rand(4, generator=generator_for(seed, *names)).tolist()
        for seed, *names in [(0, "a", "b"), (0, "a", "b"), (1, "a", "b"), (0, "b", "a"), (0, "ab")]
    ]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 4
