"""What runs on the strict device, and comes out as on the CPU; collected by test_devices.py."""

import copy
import json

import pytest
import torch
from strict import DEVICE
from tiny_zoo import *  # noqa: F403
from tiny_zoo import ENCODER, TASKS
from torch import nn

from lightning_merge.callbacks import MergeCallback, MTiesMerge, PruneTaskVectors
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.facts import Needs
from lightning_merge.core.networks.affine import affine_layers
from lightning_merge.core.networks.batch_norm import has_batch_norm
from lightning_merge.core.networks.mergeability import mergeability
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.methods import EMR, RegMean, Surgery, TaskArithmetic
from lightning_merge.methods.base import MergeMethod, Transform, registered
from lightning_merge.methods.network import NetworkMethod
from lightning_merge.models import MiniResNet, MiniViT
from lightning_merge.modules import AdaMerging, Distill, Evaluate, FineTune, StatsMerging
from lightning_merge.modules.compare import compare
from lightning_merge.modules.distill import Teacher

NAMES = ("a", "b", "c")
RESNET = {"image_size": 8, "channels": [4, 6, 6, 16]}
ENCODERS = {"vit": lambda: MiniViT(**ENCODER), "resnet": lambda: MiniResNet(**RESNET)}
FEW_STEPS = {"Surgery": {"steps": 3, "batch_size": 4}, "WEMoE": {"steps": 3, "batch_size": 4}}
METHODS = {
    name: kind(**FEW_STEPS.get(name, {}))
    for name, kind in {**registered(MergeMethod), **registered(NetworkMethod)}.items()
    if name != "LearnedCoefficients"  # it takes a file, and adds up as task arithmetic
} | {name: TaskArithmetic(transforms=[kind()]) for name, kind in registered(Transform).items()}


def test_the_device_refuses_what_a_gpu_refuses():
    here, host = torch.ones(2, 2, device=DEVICE), torch.ones(2, 2)
    for mix in (torch.add, torch.matmul, torch.equal, lambda a, b: torch.stack([a, b])):
        with pytest.raises(RuntimeError, match="device"):
            mix(here, host)
    assert torch.equal((here + 1).cpu(), host + 1)
    here[:, 0] = host[:, 0] * 3
    assert here[torch.tensor([1])].cpu().tolist() == [[3, 1]]
    here[torch.tensor([0])] = 5.0
    assert here.cpu().tolist() == [[5, 5], [3, 1]]
    with pytest.raises(RuntimeError, match="device"):
        host[torch.tensor([1], device=DEVICE)]


def at(device, value):
    """Tensors and modules of a nested mapping, elsewhere."""
    if isinstance(value, dict):
        return {name: at(device, part) for name, part in value.items()}
    return copy.deepcopy(value).to(device)


@pytest.fixture(scope="module", params=ENCODERS)
def case(request):
    torch.manual_seed(0)
    encoder = ENCODERS[request.param]().eval()
    base = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    experts = {
        task: {
            n: t + 0.1 * torch.rand(t.shape) if t.is_floating_point() else t
            for n, t in base.items()
        }
        for task in NAMES
    }
    batches = {task: torch.randn(6, 3, 8, 8) for task in NAMES}
    heads = {task: nn.Linear(encoder.dim, 3).requires_grad_(False) for task in NAMES}
    return encoder, base, experts, batches, heads


def made(case, method, weights, network):
    """What a method makes of weights on one device and a network on another; on the CPU."""
    encoder, base, experts, batches, heads = case
    encoder, heads = at(network, encoder), at(network, heads)
    given = {"model": encoder.backbone, "project": encoder.project}
    if Needs.INPUTS in method.requirements().needs:
        given |= {"batches": at(network, batches), "heads": heads}
    found = method(at(weights, base), at(weights, experts), **given)
    if isinstance(method, NetworkMethod):
        logits = {t: found.logits(t, batches[t].to(network), heads[t]) for t in NAMES}
        assert all(t.device.type == network.type for t in found.state_dict().values())
        return {**at("cpu", logits), **at("cpu", dict(found.state_dict()))}
    assert all(t.device.type == weights.type for t in found.values())
    return at("cpu", found)


@pytest.mark.parametrize("weights", ["cpu", "strict:0"])
@pytest.mark.parametrize("name", METHODS)
def test_methods_make_the_same(case, name, weights):
    method = METHODS[name]
    if name == "WEMoE" and has_batch_norm(case[0].backbone):
        pytest.skip("a ResNet has no MLPs to route")
    want = made(case, method, torch.device("cpu"), torch.device("cpu"))
    got = made(case, method, torch.device(weights), DEVICE)
    assert set(got) == set(want)
    for part, tensor in want.items():
        torch.testing.assert_close(got[part], tensor, rtol=1e-3, atol=1e-4, msg=part)


def test_m_loss_is_the_same(case):
    encoder, base, experts, batches, _ = case
    images = torch.cat([*batches.values()])
    want = mergeability(base, experts, encoder.backbone, images)
    got = mergeability(base, experts, at(DEVICE, encoder).backbone, images)
    torch.testing.assert_close(got.pairwise, want.pairwise, rtol=1e-4, atol=1e-6)


MODULES = {
    "adamerging": (AdaMerging, {"level": "task"}),
    "sml": (StatsMerging, {"hidden": 8}),
    "transformer": (StatsMerging, {"hidden": 8, "learner": "transformer2"}),
    "softly taught": (StatsMerging, {"learner": "free", "loss": "soft"}),
    "offloaded": (StatsMerging, {"learner": "free", "offload": True}),
}
CALLBACKS = {
    "none": lambda: [],
    "merges": lambda: [
        MergeCallback(TaskArithmetic(), "sum", grid={"scale": [0.1, 0.3]}),
        MergeCallback(RegMean()),
        MergeCallback(EMR()),
        MergeCallback(Surgery(TaskArithmetic(), steps=2)),
        MTiesMerge(),
    ],
    "pruned": lambda: [PruneTaskVectors()],
}


@pytest.mark.parametrize("callbacks", CALLBACKS)
@pytest.mark.parametrize("name", MODULES)
def test_learning_ends_with_what_its_coefficients_say(
    trainer, encoder, zoo, data, files, tmp_path, name, callbacks
):
    kind, options = MODULES[name]
    module = kind(encoder, zoo, **options)
    runner = trainer(callbacks=CALLBACKS[callbacks]())
    runner.fit(module, datamodule=data)
    assert runner.strategy.root_device == DEVICE
    learned = open_checkpoint(tmp_path / "run" / "coefficients.safetensors")["coefficients"]
    merged = open_checkpoint(module.candidates[module.name].weights)
    if callbacks != "pruned":
        base = open_checkpoint(files.base)
        experts = [open_checkpoint(files.expert[task]) for task in TASKS]
        for column, layer in enumerate(module.stacked.names):
            update = sum(
                c * (e[layer] - base[layer])
                for c, e in zip(learned[:, column], experts, strict=True)
            )
            torch.testing.assert_close(merged[layer], base[layer] + update, rtol=1e-4, atol=1e-5)
    evaluate = Evaluate(encoder, files.heads, files.base)
    found = compare(trainer(), evaluate, data, module.candidates, tmp_path / "run", seed=0)
    assert set(found.candidates) == set(module.candidates)
    assert found.versions["device"] == str(DEVICE)


def test_experts_and_students(trainer, root, files, tmp_path):
    expert, student = (str(tmp_path / f"{name}.safetensors") for name in ("expert", "student"))
    for output in (expert, student):
        torch.manual_seed(0)
        if output == expert:
            module = FineTune(MiniViT(**ENCODER), output, heads=files.heads)
        else:
            teacher = Teacher(MiniViT(**ENCODER), expert, files.heads)
            module = Distill(MiniResNet(**RESNET), output, teacher, files.heads)
        data = MergeDataModule(str(root), tasks=list(TASKS), fit_on="train", batch_size=8)
        trainer(max_epochs=1).fit(module, datamodule=data)
        assert all(tensor.isfinite().all() for tensor in open_checkpoint(output).values())


class Leaning(nn.Module):
    """An activation with a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("slope", torch.tensor([1.5]))

    def forward(self, x):
        return x * torch.sigmoid(self.slope * x)


@pytest.mark.parametrize("device", ["cpu", "strict:0"])
def test_activations_are_known_by_what_they_do_there(device):
    net = nn.Sequential(nn.Linear(3, 4), Leaning()).to(device)
    found = affine_layers(net, torch.ones(2, 3, device=device))
    assert [layer.names for layer in found] == [("0",)]


@pytest.fixture
def on_device(run, files, root):
    """Run a command on the experts, its network on the device."""

    def call(command, *options):
        experts = [word for task in TASKS for word in (f"--experts.{task}", files.expert[task])]
        encoder = [word for name, value in ENCODER.items() for word in (f"--encoder.{name}", value)]
        return run(
            command, "--base", files.base, *experts, "--encoder", "MiniViT", *encoder,
            "--data.root", root, "--device", "strict", *options,
        )  # fmt: skip

    return call


@pytest.mark.parametrize("method", ["RegMean", "MTies", "Fisher"])
def test_the_merge_command_takes_a_device(on_device, files, tmp_path, method):
    output = tmp_path / "merged.safetensors"
    done = on_device("merge", "--output", output, "--method", method, "--heads", files.heads)
    assert done.code == 0, done.err
    merged = open_checkpoint(output)
    assert set(merged) == set(open_checkpoint(files.base))
    assert merged.metadata["device"] == "strict"


def test_the_mergeability_command_takes_a_device(on_device, tmp_path):
    done = on_device("mergeability", "--output", tmp_path / "found")
    assert done.code == 0, done.err
    assert " s on strict:0" in done.out
    assert (
        json.loads((tmp_path / "found" / "mergeability.json").read_text())["device"] == "strict:0"
    )
