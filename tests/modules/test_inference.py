"""Outputs of a network over batches, against one pass and a formula."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_merge.data.dataset import Batch
from lightning_merge.modules.inference import outputs, shared_logits

CPU = torch.device("cpu")
HALVES = SimpleNamespace(finish=lambda images: images.double() / 2)
"""A preprocessing whose results double precision holds exactly."""


@pytest.fixture
def network():
    """2 x + 1 summed over each image, by a layer whose weights want gradients."""
    layer = nn.Linear(12, 1).double()
    nn.init.constant_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 1.0)
    return nn.Sequential(nn.Flatten(), layer)


def batches(order):
    images = torch.arange(5 * 12, dtype=torch.uint8).view(5, 3, 2, 2)
    parts = [torch.tensor(part, dtype=torch.long) for part in order]
    return images, [Batch(images[part], part, part) for part in parts]


def test_outputs_are_of_every_image_in_float32_without_gradient(network):
    images, parts = batches([[3, 1], [], [0]])
    found = list(outputs(network, HALVES, parts, CPU))
    assert [batch.index.tolist() for batch, _ in found] == [[3, 1], [0]]
    for batch, output in found:
        assert (output.dtype, output.requires_grad) == (torch.float32, False)
        expected = images[batch.index].flatten(1).sum(1, dtype=torch.float32) + 1
        assert torch.equal(output[:, 0], expected)
    assert torch.is_grad_enabled()


def test_each_process_gives_its_share_and_gets_the_sum(network):
    """Two processes, of which the second has one batch less."""
    images, first = batches([[4, 2], [0]])
    _, second = batches([[1, 3], []])
    shares = []

    def reduce(logits, reduce_op):
        assert reduce_op == "sum"
        shares.append(logits)
        return logits

    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=reduce))
    module = SimpleNamespace(device=CPU, trainer=trainer)
    for own in (first, second):
        shared_logits(module, network, HALVES, own, (5, 1))
    assert [part.squeeze(1).ne(0).tolist() for part in shares] == [
        [True, False, True, False, True],
        [False, True, False, True, False],
    ]
    expected = images.flatten(1).sum(1, keepdim=True, dtype=torch.float32) + 1
    assert torch.equal(sum(shares), expected)
