"""Surgery against the published implementation, and against its first step by hand."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Needs
from lightning_merge.methods import Dare, Fisher, LiNeS, LwPTV, MTies, TaskArithmetic, Ties
from lightning_merge.methods.emr import EMR
from lightning_merge.methods.ensemble import Ensemble
from lightning_merge.methods.parts import seeded
from lightning_merge.methods.surgery import Correction, Surgery


def features(net, weights, images):
    network = copy.deepcopy(net).eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        return network(images)


def corrected(network, task, images):
    return network.logits(task, images, nn.Identity())


@pytest.mark.parametrize(
    "method", [TaskArithmetic(0.5), Ties(), MTies(), TaskArithmetic(transforms=[Dare(seed=3)])]
)
def test_without_a_step_it_is_the_merged_network(net, base, make_experts, resources, method):
    experts = make_experts(3)
    network = Surgery(method, steps=0)(base, experts, **resources)
    merged = method(base, experts, **resources)
    for task, images in list(resources["batches"].items())[:4]:  # the fourth has no expert
        expected = features(net, merged, images)
        assert torch.equal(corrected(network, task, images), expected)


def test_the_first_step_of_adam_by_hand(net, base, make_experts, resources):
    """U starts at 0, so its gradient is that of |z - z_k| alone, and D has none."""
    experts, rate = make_experts(2), 0.01
    make = Surgery(TaskArithmetic(0.5), rank=3, learning_rate=rate, batch_size=8, seed=4)
    start, end = (
        Surgery(make.method, 3, steps, rate, 8, 4)(base, experts, **resources) for steps in (0, 1)
    )
    merged = TaskArithmetic(0.5)(base, experts)
    for k, (task, expert) in enumerate(experts.items()):
        images = resources["batches"][task]
        z, target = features(net, merged, images), features(net, expert, images)
        down = start.corrections[k].down.weight
        assert torch.equal(end.corrections[k].down.weight, down)
        assert down.abs().max() <= 0.5  # 1 / sqrt(4)
        gradient = -(z - target).sign().T @ (z @ down.T).relu() / z.numel()
        expected = -rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(end.corrections[k].up.weight, expected)


def test_it_brings_features_near_to_the_experts(net, base, make_experts, resources):
    experts = make_experts(2)
    network = Surgery(rank=4, steps=300, learning_rate=0.01)(base, experts, **resources)
    merged = TaskArithmetic()(base, experts)
    for task, expert in experts.items():
        images = resources["batches"][task]
        target = features(net, expert, images)
        before = (features(net, merged, images) - target).abs().mean()
        after = (corrected(network, task, images) - target).abs().mean()
        assert after < 0.5 * before


def test_a_task_does_not_depend_on_other_tasks_images(net, base, make_experts, resources):
    experts = make_experts(3)
    method = Surgery(steps=5, batch_size=4)
    one = method(base, experts, **resources)
    batches = {**resources["batches"], "task0": 2 * resources["batches"]["task0"]}
    other = method(base, experts, **{**resources, "batches": batches})
    same = [
        torch.equal(a.up.weight, b.up.weight)
        for a, b in zip(one.corrections, other.corrections, strict=True)
    ]
    assert same == [False, True, True]


def test_the_same_seed_gives_the_same_network(base, make_experts, resources):
    experts = make_experts(2)
    first, again, other = (
        Surgery(steps=5, batch_size=4, seed=seed)(base, experts, **resources).state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["corrections.0.down.weight"], other["corrections.0.down.weight"])


def test_a_seed_and_transforms_reach_the_method(net, base, make_experts, resources):
    experts = make_experts(2)
    inner = TaskArithmetic(transforms=[Dare(0.5, seed=2)])
    method = seeded(Surgery(inner, steps=0, transforms=[LwPTV(0.5)]), 3)
    network = method(base, experts, **resources)
    merged = TaskArithmetic(transforms=[LwPTV(0.5), Dare(0.5, seed=5)])(base, experts)
    for name, tensor in network.network.state_dict().items():
        assert torch.equal(tensor, merged[name])


def test_statistics_are_changed_before_features_are_seen(net, base, make_experts, resources):
    experts, asked = make_experts(2), []

    def recalibrate(weights, task=None):
        asked.append(task)
        return {**weights, "norm.running_mean": torch.ones(10)}

    method = Surgery(steps=3)
    network = method(base, experts, **resources, recalibrate=recalibrate)
    assert asked == [None]
    assert torch.equal(network.network.norm.running_mean, torch.ones(10))
    plain = method(base, experts, **resources)
    assert not torch.equal(network.corrections[0].up.weight, plain.corrections[0].up.weight)


@pytest.mark.parametrize(("rank", "number"), [(1, 1), (16, 3)])
def test_it_stores_two_thin_matrices_per_task(base, make_experts, resources, rank, number):
    network = Surgery(rank=rank, steps=0)(base, make_experts(number), **resources)
    assert network.extra_parameters == number * 2 * rank * 4  # features of width 4
    assert network.inference_cost == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"steps": -1}, "steps=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
    ],
)
def test_bad_hyperparameters_show_at_once(options, message):
    with pytest.raises(InputError, match=message):
        Surgery(**options)


@pytest.mark.parametrize("method", [EMR(), Ensemble()])
def test_a_network_cannot_be_corrected(method):
    with pytest.raises(InputError, match=f"method={type(method).__name__}: .*TaskArithmetic"):
        Surgery(method)


@pytest.mark.parametrize(
    ("method", "needs"),
    [
        (TaskArithmetic(), Needs.INPUTS_OF_EVERY_TASK),
        (MTies(), Needs.INPUTS_OF_EVERY_TASK),
        (Fisher(), Needs.INPUTS_OF_EVERY_TASK | Needs.HEADS),
        (LiNeS(Fisher()), Needs.INPUTS_OF_EVERY_TASK | Needs.HEADS),
    ],
)
def test_it_needs_what_its_method_needs(method, needs):
    assert Surgery(method).requirements().needs == needs
    assert seeded(Surgery(method), 1).requirements().needs == needs
    assert Surgery.facts.needs == Needs.INPUTS_OF_EVERY_TASK


def test_learning_that_diverges_is_an_error(base, make_experts, resources):
    with pytest.raises(InputError, match=r"learning_rate=1e\+30: .*; lower it"):
        Surgery(steps=30, learning_rate=1e30)(base, make_experts(2), **resources)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_network_and_head_in_half_precision(net, base, make_experts, resources, dtype):
    """Corrections are learned and applied in float32; features keep their type."""
    half = {n: t.to(dtype) if t.is_floating_point() else t for n, t in base.items()}
    experts, head = make_experts(2, half), nn.Linear(4, 3)
    given = {**resources, "model": copy.deepcopy(net).to(dtype)}
    method = Surgery(steps=20, learning_rate=0.01)
    network = method(half, experts, **given)
    images = resources["batches"]["task0"]
    found = network.logits("task0", images.to(dtype), copy.deepcopy(head).to(dtype))
    assert found.dtype == dtype
    wide = {
        task: {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
        for task, weights in {"base": half, **experts}.items()
    }
    expected = method(wide.pop("base"), wide, **resources).logits("task0", images, head)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    assert network.corrections[0].up.weight.dtype == torch.float32


@pytest.mark.parametrize("batches", [None, torch.zeros(4, 6), {"task0": torch.zeros(4, 6)}])
def test_images_of_every_task_are_asked_for(net, base, make_experts, batches):
    with pytest.raises(InputError, match="Surgery"):
        Surgery()(base, make_experts(2), model=net, batches=batches)


def test_what_the_method_has_learned_is_known(learned_file):
    from lightning_merge.methods import LearnedCoefficients

    inner = LearnedCoefficients(learned_file)
    assert Surgery(inner).origin() == inner.origin()
    assert inner.described() in Surgery(inner).described()


def tower(weights):
    from open_clip.transformer import QuickGELU, VisionTransformer

    network = VisionTransformer(
        image_size=32, patch_size=8, width=64, layers=4, heads=4, mlp_ratio=4.0, output_dim=32,
        act_layer=QuickGELU,
    )  # fmt: skip
    network.load_state_dict({n: weights[f"model.visual.{n}"] for n in network.state_dict()})
    return network.eval()


@pytest.mark.shared
def test_parity_with_the_published_implementation(zoo, expected, shared):
    """Output, loss and gradients on the first 16 images, with the published D and U."""
    base, experts, images = zoo
    stored = expected("surgery_MNIST")
    images = {task: images[:16] for task in experts}
    made = Surgery(TaskArithmetic(0.3), steps=0)(base, experts, model=tower(base), batches=images)
    correction = made.corrections[made.tasks.index("MNIST")]
    with torch.no_grad():
        correction.down.weight.copy_(stored["down"])
        correction.up.weight.copy_(stored["up"])
    auxiliary = load_file(shared / "fixtures" / "zoo" / "aux.safetensors")
    head = nn.Linear(32, 10)
    head.load_state_dict({n: auxiliary[f"head.MNIST.{n}"] for n in ("weight", "bias")})
    with torch.no_grad():
        logits = made.logits("MNIST", images["MNIST"], head)
        plain = made.network(images["MNIST"])
        targets = tower(experts["MNIST"])(images["MNIST"])
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(plain, stored["feat0"], **close)
    torch.testing.assert_close(logits, stored["logits"], **close)
    correction.requires_grad_(True)
    found = correction(plain)
    torch.testing.assert_close(found, stored["feat"], **close)
    torch.testing.assert_close(plain - found, stored["sub"], **close)
    loss = functional.l1_loss(found, targets)
    loss.backward()
    torch.testing.assert_close(loss, stored["loss"], **close)
    torch.testing.assert_close(correction.down.weight.grad, stored["gdown"], **close)
    torch.testing.assert_close(correction.up.weight.grad, stored["gup"], **close)


def test_correction_keeps_the_precision_of_its_weights():
    correction = Correction(4, 2)
    correction.reset(torch.Generator().manual_seed(0))
    assert correction(torch.ones(3, 4, dtype=torch.bfloat16)).dtype == torch.float32
