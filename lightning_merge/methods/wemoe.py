"""WEMoE: routers mix the MLPs' task vectors for each input."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import skip_init
from torch.utils.checkpoint import checkpoint

from lightning_merge.core.checkpoints.names import match_names
from lightning_merge.core.checks import require_finite
from lightning_merge.core.dtypes import wide_dtype
from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Facts, Needs
from lightning_merge.core.networks.losses import entropy
from lightning_merge.core.networks.mlps import find_mlps, has_mlps, join_mlp
from lightning_merge.core.networks.padding import tokens_of
from lightning_merge.core.seeding import generator_for
from lightning_merge.core.vectors.task_vectors import flatten_tasks
from lightning_merge.methods.base import Resources, Weights
from lightning_merge.methods.network import (
    NetworkMethod,
    Recalibrate,
    TaskNetwork,
    check_learned,
    check_learning,
    frozen,
    minibatches,
    own_names,
)
from lightning_merge.methods.task_arithmetic import TaskArithmetic


class RoutedMLP(nn.Module):
    """An MLP with weights theta_0 + sum_k r_k(x) tau_k for each sample x.

    r(x) [K] is the mean over the sample's tokens of W_2 relu(W_1 t + b_1) + b_2, always in float32
    or wider, as Adam's steps are too small for half precision. Padding of texts takes no part.

    Args:
        mlp: MLP of the base.
        width: Width of the tokens.
        experts: Number of task vectors, K.
        batch_dim: Dimension of the input that indexes samples.

    Examples:
        >>> mlp = RoutedMLP(nn.Linear(1, 1, bias=False), width=1, experts=2)
        >>> mlp.reset(0.25, torch.Generator().manual_seed(0))
        >>> _ = mlp.mlp.weight.data.fill_(1.0), mlp.vectors.copy_(torch.tensor([[2.0], [4.0]]))
        >>> round(mlp(torch.tensor([[[1.0]]])).item(), 2)  # about 1 + 0.25 * (2 + 4)
        2.5
    """

    vectors: Tensor

    def __init__(self, mlp: nn.Module, width: int, experts: int, batch_dim: int = 0) -> None:
        super().__init__()
        self.mlp, self.batch_dim = mlp, batch_dim
        self.sizes = {name: p.shape for name, p in mlp.named_parameters()}
        first = next(mlp.parameters())
        count = sum(shape.numel() for shape in self.sizes.values())
        self.register_buffer("vectors", torch.zeros(experts, count).to(first))
        fc1, fc2 = skip_init(nn.Linear, width, width), skip_init(nn.Linear, width, experts)
        self.gate = nn.Sequential(fc1, nn.ReLU(), fc2).to(first.device, wide_dtype(first.dtype))

    @torch.no_grad()
    def reset(self, prior: float, generator: torch.Generator) -> None:
        """Draw W_1 and W_2 from N(0, 0.01^2), and set b_1 to 0 and b_2 to the prior."""
        for layer, bias in ((self.gate[0], 0.0), (self.gate[2], prior)):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(0.01 * torch.randn(layer.weight.shape, generator=generator))
            layer.bias.fill_(bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the MLP's output for the tokens [..., width] of samples.

        Samples are processed K at a time, so that their weights take no more memory than the task
        vectors.
        """
        samples = tokens.movedim(self.batch_dim, 0)
        some, there = samples.split(len(self.vectors)), tokens_of(samples)
        masks = repeat(None) if there is None else there.split(len(self.vectors))
        outputs = [self._recomputed(*part) for part in zip(some, masks, strict=False)]
        return torch.cat(outputs).movedim(0, self.batch_dim)

    def _recomputed(self, samples: Tensor, there: Tensor | None) -> Tensor:
        """Run `_routed`, recomputing the samples' weights in the backward pass."""
        if not torch.is_grad_enabled():
            return self._routed(samples, there)
        out: Tensor = checkpoint(self._routed, samples, there, use_reentrant=False)
        return out

    def _routed(self, samples: Tensor, there: Tensor | None) -> Tensor:
        """Merge the MLP for each of the samples [n, ..., width] and apply it."""
        tokens = samples.to(self.gate[0].weight.dtype)  # type: ignore[union-attr,arg-type]
        rates = self.gate(tokens).flatten(1, -2)
        if there is None:
            weights = rates.mean(1)
        else:
            weights = rates.where(there.unsqueeze(-1), 0).sum(1) / there.sum(1, keepdim=True)
        with torch.autocast(samples.device.type, enabled=False):
            updates = weights.to(self.vectors.dtype) @ self.vectors
        parts = updates.split([shape.numel() for shape in self.sizes.values()], 1)
        base = dict(self.mlp.named_parameters())
        merged = {
            name: base[name] + part.unflatten(1, shape)
            for (name, shape), part in zip(self.sizes.items(), parts, strict=True)
        }
        out: Tensor = vmap(partial(functional_call, self.mlp))(merged, (samples,))
        return out


class RoutedNetwork(TaskNetwork):
    """A merged network with routed MLPs, which needs no task name.

    Args:
        model: Architecture of the merged network.
        project: Map from its output to features.
        experts: Number of task vectors, K.
        blocks: Name of each MLP to the width and number of an image's tokens, as by `find_mlps`.
        batch_dim: Dimension of the MLPs' inputs that indexes images.

    Examples:
        >>> from collections import OrderedDict
        >>> mlp = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> model = nn.Sequential(nn.Sequential(OrderedDict(mlp=mlp)))
        >>> network = RoutedNetwork(model, lambda output: output, 3, {"0.mlp": (2, 5)}, batch_dim=0)
        >>> [(name, tuple(mlp.vectors.shape)) for name, mlp in network.routed()]
        [('0.mlp', (3, 12))]
    """

    def __init__(
        self,
        model: nn.Module,
        project: Callable[[Any], Tensor],
        experts: int,
        blocks: Mapping[str, tuple[int, int]],
        batch_dim: int,
    ) -> None:
        plain = {name: list(sizes) for name, sizes in blocks.items()}
        super().__init__(model, project, experts=experts, blocks=plain, batch_dim=batch_dim)
        self.network = frozen(model)
        self.blocks = {name: (width, tokens) for name, (width, tokens) in plain.items()}
        self.places = {}
        for name, (width, _) in self.blocks.items():
            self.places[name] = join_mlp(self.network, name)
            mlp = self.network.get_submodule(name)
            self.network.set_submodule(name, RoutedMLP(mlp, width, experts, batch_dim))
        self.requires_grad_(False)

    def routed(self) -> Iterator[tuple[str, RoutedMLP]]:
        """Yield the routed MLPs by their names in the model."""
        for name in self.blocks:
            mlp = self.network.get_submodule(name)
            assert isinstance(mlp, RoutedMLP)
            yield name, mlp

    @property
    def inference_cost(self) -> float:  # type: ignore[override]
        """Multiplications by weights relative to one pass, which takes d per token.

        Routers add theirs per token; merging adds K per parameter of an MLP and image.
        """
        tokens = max(tokens for _, tokens in self.blocks.values())
        more = 0
        for name, mlp in self.routed():
            gate = sum(parameter.numel() for parameter in mlp.gate.parameters())
            more += self.blocks[name][1] * gate + mlp.vectors.numel()
        return 1 + more / (tokens * self._of_one)

    def logits(self, task: str, images: Tensor, head: nn.Module) -> Tensor:
        """See `TaskNetwork`."""
        logits: Tensor = head(self.project(self.network(images)))
        return logits


@dataclass(frozen=True)
class WEMoE(NetworkMethod):
    """Weight-ensembling mixture of experts: MLPs theta_0 + sum_k r_k(x) tau_k for each image x.

    All other tensors are merged by task arithmetic. A router r in front of every MLP is learned
    by minimising the mean entropy of the predictions on unlabelled held-out images of every task
    (the paper uses the test images); all else is frozen. It needs no task name.

    MLPs are modules `mlp` of numbered blocks with at least two linear layers: `resblocks.N.mlp` of
    open_clip, `blocks.N.mlp` of timm, `layers.N.mlp` of transformers; `layer.N.intermediate` and
    `layer.N.output.dense` of BERT and its kin; `DenseReluDense` of T5. MLPs that images do not pass
    through, such as a text tower's, are merged like all other tensors. BatchNorm layers elsewhere
    have the statistics of the network merged by task arithmetic.

    Reference: Tang et al. 2024, "Merging multi-task models via weight-ensembling mixture of
    experts", with the routers of two layers and the learning rate of FusionBench's code.

    Args:
        scale: Factor of task arithmetic, outside the MLPs.
        prior: Initial output of every router.
        steps: Steps of Adam.
        learning_rate: Learning rate of Adam.
        batch_size: Images of each task per step.
        seed: Seed of the routers' weights and of the order of the images.

    Raises:
        InputError: A value is out of bounds, the model has no such MLP, or learned weights are not
            finite.

    Examples:
        >>> from collections import OrderedDict
        >>> mlp = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> model = nn.Sequential(nn.Sequential(OrderedDict(mlp=mlp)))
        >>> base = {name: torch.ones(1, 1) for name in model.state_dict()}
        >>> a = {name: torch.full((1, 1), 3.0) for name in base}
        >>> resources = {"batches": {"a": torch.ones(1, 1, 1)}, "heads": {"a": nn.Identity()}}
        >>> network = WEMoE(prior=0.5, steps=0)(base, {"a": a}, model=model, **resources)
        >>> network.logits("a", torch.ones(1, 1, 1), nn.Identity()).round(decimals=1)  # 2 * 2
        tensor([[[4.]]])
    """

    scale: float = 0.3
    prior: float = 0.3
    steps: int = 1000
    learning_rate: float = 1e-4
    batch_size: int = 16
    seed: int = 0
    facts: ClassVar[Facts] = Facts(
        reference="Tang et al. 2024",
        arxiv="2402.00433",
        needs=Needs.INPUTS_OF_EVERY_TASK | Needs.HEADS,
        readings=2,
        work="`steps` forward and backward passes a task",
        memory="K task vectors of all MLPs",
    )

    def __post_init__(self) -> None:
        require_finite(scale=self.scale, prior=self.prior)
        check_learning(self.steps, self.learning_rate, self.batch_size)

    def check(self, model: nn.Module) -> None:
        """Check that there are MLPs to route.

        Raises:
            InputError: There are none.
        """
        if not has_mlps(model):
            raise InputError(
                f"model={type(model).__name__}: WEMoE routes MLPs of Transformer blocks, such as "
                "blocks.0.mlp, and it has none; choose another method"
            )

    def make(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        given: Resources,
        recalibrate: Recalibrate,
    ) -> RoutedNetwork:
        """Merge, add a router before each MLP, and train the routers."""
        model, images = given.network("WEMoE"), given.task_inputs("WEMoE", tuple(experts))
        heads = {task: given.head("WEMoE", task) for task in experts}
        blocks, batch_dim = find_mlps(model, next(iter(images.values()))[:1])
        method = TaskArithmetic(self.scale, transforms=self.transforms)
        merged = recalibrate(own_names(model, method.merge(base, experts, given)))
        vectors = method.task_vectors(base, experts, scope=given.scope)
        stored = match_names(model.state_dict(), vectors.base)
        network = RoutedNetwork(model, given.project, len(experts), blocks, batch_dim)
        state = network.network.state_dict()
        inside = {own for places in network.places.values() for own in places}
        for own in merged.keys() - inside:
            state[own].copy_(merged[own])
        for name, mlp in network.routed():
            names = [stored[own] for own in network.places[name]]
            for own, parameter in zip(names, mlp.mlp.parameters(), strict=True):
                parameter.copy_(base[own])
            mlp.vectors.copy_(torch.cat([flatten_tasks(vectors[own]) for own in names], 1))
            mlp.reset(self.prior, generator_for(self.seed, "wemoe", name))
        self._fit(network, images, heads)
        return network

    @torch.enable_grad()
    def _fit(
        self,
        network: RoutedNetwork,
        images: Mapping[str, Tensor],
        heads: Mapping[str, nn.Module],
    ) -> None:
        """Train the routers, accumulating the gradients of all tasks in each step."""
        gates = nn.ModuleList(mlp.gate for _, mlp in network.routed()).requires_grad_(True)
        learned = [*gates.parameters()]
        optimizer = torch.optim.Adam(learned, self.learning_rate)
        batches = {
            task: minibatches(len(own), self.batch_size, generator_for(self.seed, "wemoe", task))
            for task, own in images.items()
        }
        for _ in range(self.steps):
            optimizer.zero_grad()
            for task, own in images.items():
                logits = network.logits(task, own[next(batches[task])], heads[task])
                loss = entropy(logits.float()).mean() / len(images)
                loss.backward(inputs=learned)  # not the heads'
            optimizer.step()
        gates.requires_grad_(False)
        check_learned(gates, self.learning_rate)
