"""StatsMergeLearner: where it starts, what it may return, and that it learns."""

import math

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.learner import StatsMergeLearner

KINDS = ("mlp2", "mlp4", "transformer2", "free")
K, L, F = 3, 5, 6


@pytest.fixture
def features():
    return torch.randn(K, L, F, generator=torch.Generator().manual_seed(0))


def trained(learner, steps=1):
    """The learner after a few steps towards random coefficients."""
    goal = torch.randn(K, L, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(learner.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (learner() * goal).sum().backward()
        optimizer.step()
    return learner


@pytest.mark.parametrize(
    ("normalize", "options", "start"),
    [("none", {"prior": -1.5}, -1.5), ("softmax", {}, 1 / K), ("clamp", {"prior": 0.7}, 0.7)],
)
@pytest.mark.parametrize("level", ["layer", "task"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_exactly_at_the_prior(features, kind, level, normalize, options, start):
    learner = StatsMergeLearner(features, kind, level, normalize, hidden=8, **options)
    assert torch.equal(learner(), torch.full((K, L), start))


def test_the_prior_is_that_of_task_arithmetic_unless_another_is_given(features):
    assert torch.equal(StatsMergeLearner(features)(), torch.full((K, L), 0.3))


@pytest.mark.parametrize("kind", KINDS)
def test_softmax_is_a_point_of_the_simplex(features, kind):
    learner = StatsMergeLearner(features, kind, normalize="softmax", hidden=8)
    values = trained(learner, 3)()
    assert values.std() > 0
    assert values.min() > 0
    torch.testing.assert_close(values.sum(0), torch.ones(L))


@pytest.mark.parametrize("kind", KINDS)
def test_clamp_cuts_off_what_the_same_network_gives_without(features, kind):
    torch.manual_seed(0)
    plain = StatsMergeLearner(features, kind, hidden=8)
    optimizer = torch.optim.Adam(plain.parameters(), 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (plain() - torch.linspace(-3, 4, K * L).view(K, L)).square().sum().backward()
        optimizer.step()
    clamped = StatsMergeLearner(features, kind, normalize="clamp", hidden=8)
    clamped.load_state_dict(plain.state_dict())
    assert plain().min() < 0
    assert plain().max() > 1
    assert torch.equal(clamped(), plain().clamp(0, 1))


def test_clamp_passes_the_gradient_inside_and_none_outside(features):
    learner = StatsMergeLearner(features, "free", normalize="clamp", prior=0.3)
    raw = torch.linspace(-1, 1.5, K * L).view(K, L, 1)
    (values,) = learner.parameters()
    values.data.copy_(raw)
    learner().sum().backward()
    inside = (raw + 0.3 > 0) & (raw + 0.3 < 1)
    assert 0 < inside.sum() < K * L
    assert torch.equal(values.grad, inside.float())


@pytest.mark.parametrize("kind", KINDS)
def test_one_coefficient_per_task_is_the_same_for_all_layers(features, kind):
    values = trained(StatsMergeLearner(features, kind, "task", hidden=8), 3)()
    assert values.shape == (K, L)
    assert torch.equal(values, values[:, :1].expand(K, L))
    assert values[:, 0].std() > 0


def test_the_free_control_has_one_parameter_per_coefficient(features):
    def count(level):
        learner = StatsMergeLearner(features, "free", level)
        return sum(p.numel() for p in learner.parameters())

    assert (count("layer"), count("task")) == (K * L, K)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_every_parameter_after_one_step(features, kind):
    torch.manual_seed(0)
    learner = trained(StatsMergeLearner(features, kind, hidden=8), 2)
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_coefficients_follow_from_the_statistics_alone(features):
    """The network is shared: the same statistics give the same coefficient."""
    features[1, 2] = features[0, 4]
    values = trained(StatsMergeLearner(features, "mlp2", hidden=8), 3)()
    torch.testing.assert_close(values[1, 2], values[0, 4])


def test_the_features_are_not_in_checkpoints(features):
    assert not any("features" in name for name in StatsMergeLearner(features).state_dict())


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"hidden": 0}, "hidden=0"),
        ({"kind": "transformer2", "hidden": 6}, "hidden=6"),
        ({"prior": math.nan}, "prior=nan"),
        (
            {"prior": 0.1, "normalize": "softmax"},
            "prior=0.1 has no effect with normalize='softmax'",
        ),
        (
            {"prior": 0.0, "normalize": "clamp"},
            "prior=0.0 has a zero gradient with normalize='clamp'",
        ),
        (
            {"prior": 1.0, "normalize": "clamp"},
            "prior=1.0 has a zero gradient with normalize='clamp'",
        ),
    ],
)
def test_a_bad_option_is_named(features, options, names):
    with pytest.raises(InputError, match=names):
        StatsMergeLearner(features, **options)
