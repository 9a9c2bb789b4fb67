"""Fisher merging: gradients of single samples one by one, and the published outputs."""

import pytest
import torch
from test_regmean import PublishedNet
from tiny_networks import NETWORKS, TIED, features, loaded, tied_zoo, zoo_of
from torch import nn
from torch.nn import functional

from lightning_merge.core.errors import InputError
from lightning_merge.core.seeding import uniform_numbers
from lightning_merge.methods.average import Average
from lightning_merge.methods.fisher import Fisher


def weighted_labels(probabilities, labels, number):
    """Pairs of a label and its weight."""
    if labels == "expected":
        return list(enumerate(probabilities.tolist()))
    if labels == "predicted":
        return [(int(probabilities.argmax()), 1.0)]
    label = 0
    while label < len(probabilities) - 1 and number >= probabilities[: label + 1].sum():
        label += 1
    return [(label, 1.0)]


def information(network, head, images, labels="expected", numbers=None):
    """The diagonal by its definition: a backward pass per sample and label."""
    total = {name: torch.zeros_like(t) for name, t in network.named_parameters()}
    for index, image in enumerate(images):
        scores = head(features(network(image[None])))[0].log_softmax(-1)
        number = 0.0 if numbers is None else float(numbers[index])
        for label, weight in weighted_labels(scores.detach().exp(), labels, number):
            network.zero_grad()
            scores[label].backward(retain_graph=True)
            for name, parameter in network.named_parameters():
                if parameter.grad is not None:
                    total[name] += weight * parameter.grad.square() / len(images)
    return total


def weighted_mean(fisher, experts, epsilon=1e-6, normalize=False):
    """sum_k F_k theta_k / sum_k F_k; names without information are averaged."""
    merged = Average()(experts[0], {str(k): expert for k, expert in enumerate(experts)})
    scales = [1.0] * len(fisher)
    if normalize:
        norms = [torch.cat([t.flatten() for t in f.values()]).norm() for f in fisher]
        scales = [1 / (norm + epsilon) for norm in norms]
    for name in fisher[0]:
        weights = [s * (f[name] + epsilon) for s, f in zip(scales, fisher, strict=True)]
        products = [w * e[name] for w, e in zip(weights, experts, strict=True)]
        merged[name] = sum(products) / sum(weights)
    return merged


def assert_merged(got, want, **tolerance):
    for name, tensor in want.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(got[name], tensor, msg=name, **tolerance)


@pytest.mark.shared
def test_published_exact_diagonal(language_zoo, expected):
    base, experts, batches = language_zoo
    heads = {task: nn.Identity() for task in experts}
    merged = Fisher()(base, experts, model=PublishedNet(), batches=batches, heads=heads)
    want = expected("fisher_exact_diag_unnormalised")
    assert_merged(merged, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_one_by_one(kind):
    model, base, experts = zoo_of(kind, 2)
    size = 32 if kind == "resnet" else 16
    batches = {task: torch.randn(3, 3, size, size) for task in experts}
    width = features(model(batches["task0"])).shape[-1]
    heads = {task: nn.Linear(width, 2 + k) for k, task in enumerate(experts)}
    merged = Fisher()(base, experts, model=model, batches=batches, heads=heads, project=features)
    fisher = [
        information(loaded(model, weights), heads[task], batches[task])
        for task, weights in experts.items()
    ]
    want = weighted_mean(fisher, list(experts.values()))
    assert_merged(merged, want, rtol=1e-3, atol=2e-5)


class ChannelsLast(nn.Module):
    """A network that asks for memory formats, which `vmap` does not have."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        x = x.contiguous(memory_format=torch.channels_last)
        assert x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous()
        return self.net(x.to(x.dtype, memory_format=torch.channels_last))


def test_a_network_may_ask_for_memory_formats():
    model, base, experts = zoo_of("resnet", 2)
    named = [{f"net.{n}": t for n, t in weights.items()} for weights in (base, *experts.values())]
    batches = {task: torch.randn(3, 3, 32, 32) for task in experts}
    heads = {task: nn.Linear(8, 3) for task in experts}
    given = {"batches": batches, "heads": heads}
    plain = Fisher()(base, experts, model=model, **given)
    moved = dict(zip(experts, named[1:], strict=True))
    last = Fisher()(named[0], moved, model=ChannelsLast(model), **given)
    assert_merged({n.removeprefix("net."): t for n, t in last.items()}, plain)


def test_a_tied_weight_has_one_gradient(resources):
    model, base, experts = tied_zoo(3)
    merged = Fisher()(base, experts, **resources | {"model": model})
    fisher = [
        information(loaded(model, weights), resources["heads"][task], resources["batches"][task])
        for task, weights in experts.items()
    ]
    want = weighted_mean(fisher, list(experts.values()))
    assert_merged(merged, want | {TIED[1]: want[TIED[0]]}, rtol=1e-3, atol=2e-5)


class Overflowing(nn.Linear):
    """A head whose logits are NaN or infinite."""

    def forward(self, x):
        return super().forward(x) * self.factor


class Blind(nn.Linear):
    """A head whose logits are NaN, but not their gradients."""

    def forward(self, x):
        return functional.threshold(super().forward(x), 1e9, float("nan"))


class Steep(nn.Linear):
    """A head with ordinary logits and infinite gradients."""

    def forward(self, x):
        return (super().forward(x) * 0).sqrt() + super().forward(x)


@pytest.mark.parametrize("kind", [Blind, Steep, 1e39, float("nan")])
@pytest.mark.parametrize("normalize", [False, True])
def test_information_that_is_not_finite_names_the_task(
    kind, normalize, base, make_experts, resources
):
    head = Overflowing(4, 3) if isinstance(kind, float) else kind(4, 3)
    head.factor = kind
    heads = resources["heads"] | {"task1": head}
    with pytest.raises(InputError, match=r"(?s)task1.*NaN or infinite"):
        Fisher(normalize=normalize)(base, make_experts(3), **resources | {"heads": heads})


@pytest.mark.parametrize("labels", ["expected", "predicted", "sampled"])
@pytest.mark.parametrize("options", [{}, {"epsilon": 0.0}, {"normalize": True}])
def test_labels_and_options(labels, options, net, base, make_experts, resources):
    experts = make_experts(3)
    merged = Fisher(labels=labels, seed=3, **options)(base, experts, **resources)
    fisher = [
        information(
            loaded(net, weights),
            resources["heads"][task],
            resources["batches"][task],
            labels,
            uniform_numbers(0, 8, 3, task),
        )
        for task, weights in experts.items()
    ]
    want = weighted_mean(fisher, list(experts.values()), **options)
    assert_merged(merged, want, rtol=1e-4, atol=1e-5)


def test_samples_are_kept_apart_in_any_number(base, make_experts, resources, monkeypatch):
    experts = make_experts(2)
    want = Fisher()(base, experts, **resources)
    monkeypatch.setattr("lightning_merge.core.networks.fisher._ENTRIES", 1)
    assert_merged(Fisher()(base, experts, **resources), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_without_information_it_averages(epsilon, base, make_experts, resources):
    """A text tower beside the network; a head that is blind, so that all gradients are zero."""
    base = base | {"text.weight": torch.ones(2, 2)}
    heads = {task: nn.Linear(4, 3) for task in ("task0", "task1")}
    for head in heads.values():
        nn.init.zeros_(head.weight)
    experts = make_experts(2, base)
    merged = Fisher(epsilon=epsilon)(base, experts, **resources | {"heads": heads})
    assert_merged(merged, Average()(base, experts), rtol=0, atol=1e-6)


def test_the_surer_expert_wins(base, make_experts, resources):
    experts = make_experts(2)
    heads = {task: nn.Linear(4, 3) for task in experts}
    nn.init.zeros_(heads["task1"].weight)
    merged = Fisher(epsilon=0.0)(base, experts, **resources | {"heads": heads})
    for name in ("stem.weight", "norm.weight", "norm.bias", "fc2.weight", "scale"):
        torch.testing.assert_close(merged[name], experts["task0"][name], rtol=0, atol=1e-6)


def test_one_expert_merges_to_itself(base, make_experts, resources):
    experts = make_experts(1)
    assert_merged(Fisher()(base, experts, **resources), experts["task0"], rtol=0, atol=5e-7)


@pytest.mark.parametrize("kind", ["open_clip", "resnet"])
def test_the_model_comes_back_unchanged(kind):
    model, base, experts = zoo_of(kind, 2)
    model.train()
    modes, size = [module.training for module in model.modules()], 32 if kind == "resnet" else 16
    batches = {task: torch.randn(2, 3, size, size) for task in experts}
    heads = {task: nn.Linear(8, 2).train() for task in experts}
    Fisher()(base, experts, model=model, batches=batches, heads=heads)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(t, base[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for net in (model, *heads.values()) for p in net.parameters())
    assert all(head.training for head in heads.values())
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("options", "resource", "message"),
    [
        ({"labels": "true"}, {}, "labels"),
        ({"epsilon": float("nan")}, {}, "epsilon"),
        ({}, {"model": None}, "model=None"),
        ({}, {"heads": None}, "heads"),
        ({}, {"batches": torch.ones(3, 6)}, "batches"),
        ({}, {"batches": {f"task{k}": torch.ones(3, 7) for k in (0, 1)}}, r"shape \[n, 7\]"),
    ],
)
def test_bad_input(options, resource, message, base, make_experts, resources):
    with pytest.raises(InputError, match=message):
        Fisher(**options)(base, make_experts(2), **resources | resource)
