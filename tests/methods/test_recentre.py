import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_merge.core.errors import InputError
from lightning_merge.methods import EMR, Average, Recentre
from lightning_merge.models import CosineHead, LinearHead, class_mean_head


@pytest.fixture
def zoo():
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(6, 4)

    def weights():
        shapes = {name: t.shape for name, t in model.state_dict().items()}
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    base, experts = weights(), {"a": weights(), "b": weights()}
    inputs = {task: torch.randn(50, 6, generator=generator) for task in experts}
    return model, base, experts, inputs


def test_the_centre_is_the_mean_direction_of_the_merged_features(zoo):
    model, base, experts, inputs = zoo
    network = Recentre(Average())(base, experts, model=model, batches=inputs)
    merged = Average()(base, experts)
    for task, own in inputs.items():
        features = F.linear(own, merged["weight"], merged["bias"])
        torch.testing.assert_close(network.centre(task), F.normalize(features, dim=1).mean(0))


def test_a_head_made_from_the_merged_features_needs_no_recentring(zoo):
    model, base, experts, inputs = zoo
    network = Recentre(Average())(base, experts, model=model, batches=inputs)
    features = network.network(inputs["a"])
    head = class_mean_head(features, torch.arange(50) % 2, 2)
    torch.testing.assert_close(network.logits("a", inputs["a"], head), head(features))
    moved = CosineHead(head.weight, head.scale, head.centre + 1)
    assert not torch.allclose(moved(features), head(features))
    torch.testing.assert_close(network.logits("a", inputs["a"], moved), head(features))


def test_other_tasks_and_heads_are_left_alone(zoo):
    model, base, experts, inputs = zoo
    network = Recentre(Average())(base, experts, model=model, batches=inputs)
    features = network.network(inputs["a"])
    head = CosineHead(torch.eye(4), 1.0, torch.ones(4))
    assert torch.equal(network.logits("new", inputs["a"], head), head(features))
    linear = LinearHead(torch.eye(4))
    assert torch.equal(network.logits("a", inputs["a"], linear), linear(features))
    assert torch.equal(network.features("a", inputs["a"]), features)


def test_a_network_cannot_be_recentred():
    with pytest.raises(InputError, match="method=EMR: Recentre moves the heads' centres"):
        Recentre(EMR())
