"""A small network with every kind of tensor, experts of it, and the reference zoo."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
from lightning_merge.core.checkpoints.names import is_statistic
from lightning_merge.core.vectors.learner import StatsMergeLearner
from lightning_merge.core.vectors.scope import is_merged
from lightning_merge.core.vectors.statistics import FEATURES, feature_names

STATISTICS = {"features": list(FEATURES), "rank": 3, "statistics_of": "experts"}
LEARNER = {
    "kind": "mlp2", "level": "layer", "normalize": "none", "prior": 0.3, "hidden": 8, **STATISTICS,
}  # fmt: skip


class TinyNet(nn.Module):
    """Two activated linear layers; matrices, vectors, a scalar, an empty tensor, buffers."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.stem = nn.Linear(6, 10)
        self.norm = nn.BatchNorm1d(10)
        self.fc1 = nn.Linear(10, 16)
        self.act1 = nn.GELU()
        self.fc2 = nn.Linear(16, 12, bias=False)
        self.act2 = nn.Tanh()
        self.head = nn.Linear(12, 4)
        self.register_buffer("steps", torch.arange(3))

    def forward(self, x):
        x = self.act1(self.fc1(self.norm(self.stem(x)) * self.scale))
        return self.head(self.act2(self.fc2(x)))


def noisy_expert(base, seed, size=0.1):
    """The base with noise on floating-point tensors and other counts of batches."""
    generator = torch.Generator().manual_seed(seed)
    noise = {n: torch.randn(t.shape, generator=generator) for n, t in base.items()}
    more = {name: seed + 1 if is_statistic(name) else 0 for name in base}
    return {
        name: t + (size * noise[name]).to(t.dtype) if t.is_floating_point() else t + more[name]
        for name, t in base.items()
    }


@pytest.fixture
def net():
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def base(net):
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


@pytest.fixture
def make_experts(base):
    """Function of a number K and a base: K experts."""

    def make(number, of=base):
        return {f"task{k}": noisy_expert(of, k) for k in range(number)}

    return make


@pytest.fixture
def resources(net):
    """What methods may need beside weights, as keyword arguments."""
    generator = torch.Generator().manual_seed(1)
    tasks = [f"task{k}" for k in range(20)]
    heads = {task: nn.Linear(4, 3) for task in tasks}
    batches = {task: torch.randn(8, 6, generator=generator) for task in tasks}
    return {"model": net, "batches": batches, "heads": heads}


@pytest.fixture(scope="session")
def save_learned(tmp_path_factory):
    """Function that writes what a run has learned: save_learned(tasks, layers, learner=...)."""

    def save(tasks, layers, learner=LEARNER, scale=1.0):
        generator = torch.Generator().manual_seed(2)
        tensors = {"coefficients": torch.rand(len(tasks), len(layers), generator=generator)}
        metadata = {"tasks": json.dumps(tasks), "layers": json.dumps(layers)}
        metadata["final_scale"] = repr(scale)
        if learner:
            options = {k: v for k, v in learner.items() if k not in STATISTICS}
            width = len(feature_names(learner["rank"], learner["features"]))
            state = StatsMergeLearner(torch.zeros(1, 1, width), **options).state_dict()
            for name, tensor in state.items():
                tensors[f"learner.{name}"] = 0.3 * torch.randn(tensor.shape, generator=generator)
            metadata["learner"] = json.dumps(learner)
        path = tmp_path_factory.mktemp("learned") / "coefficients.safetensors"
        return str(save_checkpoint(tensors, path, metadata=metadata))

    return save


@pytest.fixture(scope="session")
def learned_file(save_learned):
    """A file of coefficients of the tiny network, for up to 20 experts."""
    layers = [name for name, t in TinyNet().state_dict().items() if is_merged(name, t.dtype)]
    return save_learned([f"task{k}" for k in range(20)], layers)


@pytest.fixture(scope="session")
def zoo(shared):
    """Base, experts by task, and images of the reference zoo."""
    folder = shared / "fixtures" / "zoo"
    order = (folder / "key_order.txt").read_text().split()
    pretrained = load_file(folder / "pretrained.safetensors")
    experts = {
        path.stem.rsplit("_", 1)[1]: load_file(path) for path in sorted(folder.glob("expert_*"))
    }
    images = load_file(folder / "aux.safetensors")["images"]
    return {name: pretrained[name] for name in order}, experts, images


@pytest.fixture(scope="session")
def expected(shared):
    """Function that loads a reference output by name."""
    return lambda name: load_file(shared / "fixtures" / "expected" / f"{name}.safetensors")


@pytest.fixture(scope="session")
def language_zoo(expected):
    """Base, experts and inputs by task of the references of code for language models."""
    tensors = expected("mergelm_inputs")

    def under(prefix):
        parts = {n: t for n, t in tensors.items() if n.startswith(prefix)}
        return {n.removeprefix(prefix): t for n, t in parts.items()}

    batches = {f"m{k}": x.flatten(0, 1) for k, x in enumerate(tensors["X"])}
    return under("base."), {task: under(f"{task}.") for task in batches}, batches
