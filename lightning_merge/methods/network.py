"""Base classes of methods that return a network instead of one set of weights."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.checkpoints.names import match_names
from lightning_merge.core.checks import require_in
from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Facts, Needs
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.methods.base import (
    Batches,
    Method,
    Resources,
    Scope,
    Weights,
    identity,
    registered,
)

ENCODED = 64
"""Number of images encoded at a time when features are kept."""


class Recalibrate(Protocol):
    """A function that measures BatchNorm statistics on images of one task or of all.

    Examples:
        >>> class Reset:
        ...     def __call__(self, weights, task=None):
        ...         return {n: t * 0 if n.endswith("mean") else t for n, t in weights.items()}
        >>> reset: Recalibrate = Reset()
        >>> reset({"bn.running_mean": torch.tensor([3.0]), "fc.weight": torch.tensor([2.0])})
        {'bn.running_mean': tensor([0.]), 'fc.weight': tensor([2.])}
    """

    def __call__(self, weights: Weights, task: str | None = None) -> Weights:
        """Return the weights with new statistics, under the model's names."""


def keep_statistics(weights: Weights, task: str | None = None) -> Weights:
    """Return the weights unchanged.

    Examples:
        >>> keep_statistics({"bn.running_mean": torch.tensor([3.0])}, "cars")
        {'bn.running_mean': tensor([3.])}
    """
    return weights


class TaskNetwork(nn.Module, ABC):
    """A network whose output may depend on the task; it is frozen and always in eval mode.

    The state dict holds all tensors. The model's architecture and the options, which must be
    JSON-serialisable, are enough to rebuild the network.

    Args:
        model: Network of the merged architecture.
        project: Map from the model's output to the heads' input.
        options: Other arguments of the subclass.

    Attributes:
        inference_cost: Cost of an image in passes of the model.
        told_task: Whether the features depend on the task's name.

    Examples:
        >>> class Plain(TaskNetwork):
        ...     def __init__(self, model, project=identity):
        ...         super().__init__(model, project)
        ...         self.network = frozen(model)
        ...
        ...     def logits(self, task, images, head):
        ...         return head(self.project(self.network(images)))
        >>> network = Plain(nn.Linear(2, 3))
        >>> network.inference_cost, network.extra_parameters
        (1.0, 0)
    """

    inference_cost: float = 1.0
    told_task: ClassVar[bool] = False

    def __init__(self, model: nn.Module, project: Callable[[Any], Tensor], **options: Any) -> None:
        super().__init__()
        self.project, self.options = project, options
        self._of_one = sum(map(_numbers, model.state_dict().values()))

    def train(self, mode: bool = True) -> "TaskNetwork":
        """Stay in eval mode, whatever `mode` says."""
        return super().train(False)

    @abstractmethod
    def logits(self, task: str, images: Tensor, head: nn.Module) -> Tensor:
        """Map a task's images [n, ...] to logits [n, C].

        Args:
            task: Name of the task, which need not be a merged one.
            images: Inputs as the model takes them.
            head: The task's head, from features to logits.
        """

    def features(self, task: str, images: Tensor) -> Tensor:
        """Map a task's images [n, ...] to the features [n, dim] that its head gets."""
        return self.logits(task, images, nn.Identity())

    @property
    def extra_parameters(self) -> int:
        """Stored numbers in excess of one network; 32 bits of masks count as one number."""
        return sum(map(_numbers, self.state_dict().values())) - self._of_one


def _numbers(tensor: Tensor) -> int:
    """Return how many numbers a tensor stores; bytes are packed masks."""
    return -(-tensor.numel() // 4) if tensor.dtype == torch.uint8 else tensor.numel()


class NetworkMethod(Method):
    """A method that merges experts of one base into a network.

    Unlike a `MergeMethod`, it returns a module, since its weights depend on the task or the input
    or are several sets. It therefore needs the model and does not stream. Subclasses are frozen
    dataclasses.

    Examples:
        >>> from lightning_merge.methods import Ensemble
        >>> model, weights = nn.Linear(1, 1, bias=False), {"weight": torch.ones(1, 1)}
        >>> network = Ensemble()(weights, {"a": weights, "b": weights}, model=model)
        >>> network.inference_cost, network.logits("a", torch.tensor([[5.0]]), nn.Identity())
        (2.0, tensor([[5.]]))
    """

    facts: ClassVar[Facts] = Facts(needs=Needs.NETWORK)

    @abstractmethod
    def make(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        given: Resources,
        recalibrate: Recalibrate,
    ) -> TaskNetwork:
        """Build the network; subclasses define this. Gradients are disabled."""

    def check(self, model: nn.Module) -> None:
        """Check the architecture.

        Raises:
            InputError: The method does not support it.
        """

    def __call__(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        *,
        model: nn.Module | None = None,
        batches: Batches | Mapping[str, Batches] | None = None,
        heads: Mapping[str, nn.Module] | None = None,
        project: Callable[[Any], Tensor] = identity,
        scope: Scope = "all",
        recalibrate: Recalibrate = keep_statistics,
    ) -> TaskNetwork:
        """Merge the experts into a network.

        Args:
            base: Pretrained weights by name.
            experts: Task to fine-tuned weights, of the base's names and shapes.
            model: Network that fits the weights; it is left unchanged.
            batches: Unlabelled inputs by task, for methods that need them.
            heads: Frozen head of every task, for methods that need them.
            project: Map from the model's output to the heads' input.
            scope: Which tensors count in sums, ranks and quantiles, see `MergeMethod`.
            recalibrate: Function that measures BatchNorm statistics, if the network has any.

        Returns:
            A frozen network on the model's device.

        Raises:
            InputError: Base and experts do not fit or have NaN or infinite values, or a resource
                that the method needs is missing.
        """
        resources = Resources(model, batches, heads, project, scope)
        return self.merge(base, experts, resources, recalibrate)

    @torch.no_grad()
    def merge(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        resources: Resources,
        recalibrate: Recalibrate = keep_statistics,
    ) -> TaskNetwork:
        """Merge the experts into a network, see `__call__`."""
        self.check(resources.network(type(self).__name__))
        return self.make(base, experts, resources, recalibrate).eval()


def own_names(model: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """Return the weights of the model's state dict, under its names.

    Examples:
        >>> own_names(nn.Linear(1, 1, bias=False), {"encoder.fc.weight": torch.ones(1, 1)})
        {'weight': tensor([[1.]])}
    """
    stored = match_names(model.state_dict(), weights)
    return {own: weights[name] for own, name in stored.items()}


def stacked(vectors: TaskVectors, name: str) -> Tensor:
    """Return a tensor of every expert, [K, *shape], after the transforms of its task vector.

    Raises:
        InputError: A value is NaN or infinite.

    Examples:
        >>> experts = {"a": {"w": torch.tensor([1.0])}, "b": {"w": torch.tensor([2.0])}}
        >>> stacked(TaskVectors({"w": torch.zeros(1)}, experts), "w")
        tensor([[1.],
                [2.]])
    """
    if vectors.base.dtype(name).is_floating_point:
        return vectors.weights(name)
    return torch.stack([expert[name] for expert in vectors.stored.experts.values()])


def frozen(model: nn.Module) -> nn.Module:
    """Return a copy of a network in eval mode without gradients.

    Examples:
        >>> copy = frozen(nn.Linear(1, 1))
        >>> copy.training, copy.weight.requires_grad
        (False, False)
    """
    return deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def encode(network: nn.Module, project: Callable[[Any], Tensor], images: Tensor) -> Tensor:
    """Return the features [n, dim] of images [n, ...], in float32.

    Examples:
        >>> encode(nn.ReLU(), identity, torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2.]])
    """
    return torch.cat([project(network(part)).float() for part in images.split(ENCODED)])


def minibatches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches of size min(size, count) endlessly, every sample once per round.

    Examples:
        >>> batches = minibatches(4, 2, torch.Generator().manual_seed(0))
        >>> sorted(next(batches).tolist() + next(batches).tolist())
        [0, 1, 2, 3]
    """
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        if len(waiting) < min(size, count):
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


def save_network(network: TaskNetwork, path: Path, *, metadata: Mapping[str, str]) -> Path:
    """Write everything that `load_network` needs except the model's architecture.

    Examples:
        >>> from lightning_merge.methods import Ensemble
        >>> model, weights = nn.Linear(1, 1, bias=False), {"weight": torch.ones(1, 1)}
        >>> network = Ensemble()(weights, {"a": weights, "b": weights}, model=model)
        >>> file = save_network(network, Path("network.safetensors"), metadata={"seed": "0"})
        >>> open_checkpoint(file).metadata["network"]
        'EnsembleNetwork'
    """
    made = {"network": type(network).__name__, "options": json.dumps(network.options)}
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    return save_checkpoint(state, path, metadata={**metadata, **made})


def holds_network(path: str | Path) -> bool:
    """Return whether a file was written by `save_network`, not as weights.

    Examples:
        >>> file = save_checkpoint({"weight": torch.ones(1, 1)}, "weights.safetensors", metadata={})
        >>> holds_network(file)
        False
    """
    return "network" in open_checkpoint(path).metadata


def load_network(
    path: str | Path, model: nn.Module, project: Callable[[Any], Tensor] = identity
) -> TaskNetwork:
    """Load a network from a file, on the CPU or the model's device.

    Args:
        path: File that `save_network` wrote.
        model: A network of the merged architecture; it is left unchanged.
        project: Map from the model's output to the heads' input.

    Raises:
        InputError: The file cannot be read or does not fit the model.

    Examples:
        >>> from lightning_merge.methods import Ensemble
        >>> model, weights = nn.Linear(1, 1, bias=False), {"weight": torch.ones(1, 1)}
        >>> network = Ensemble()(weights, {"a": weights, "b": weights}, model=model)
        >>> file = save_network(network, Path("network.safetensors"), metadata={})
        >>> load_network(file, model).logits("a", torch.tensor([[5.0]]), nn.Identity())
        tensor([[5.]])
    """
    stored = open_checkpoint(path)
    kinds = registered(TaskNetwork)  # type: ignore[type-abstract]
    try:
        kind: Any = kinds[stored.metadata["network"]]
        network: TaskNetwork = kind(model, project, **json.loads(stored.metadata["options"]))
        network.load_state_dict({name: stored[name] for name in stored})
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as fault:
        raise InputError(
            f"{path} does not hold a network of {type(model).__name__} ({fault}); give a file "
            f"that {', '.join(_makers())} wrote for this architecture"
        ) from fault
    return network.eval()


def _makers() -> list[str]:
    """Return the names of all network methods."""
    return [*registered(NetworkMethod)]  # type: ignore[type-abstract]


def check_learning(steps: int, learning_rate: float, batch_size: int) -> None:
    """Check the hyperparameters of methods that learn part of their network.

    Raises:
        InputError: One is out of bounds; names it and its value.

    Examples:
        >>> check_learning(steps=100, learning_rate=0.0, batch_size=16)
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: learning_rate=0.0 must be above 0
    """
    require_in("[0, inf)", steps=steps)
    require_in("[1, inf)", batch_size=batch_size)
    require_in("(0, inf)", learning_rate=learning_rate)


def check_learned(learned: nn.Module, learning_rate: float) -> None:
    """Check that learned parameters are finite.

    Raises:
        InputError: A parameter is NaN or infinite.

    Examples:
        >>> layer = nn.Linear(1, 1)
        >>> _ = nn.init.constant_(layer.weight, float("nan"))
        >>> check_learned(layer, learning_rate=10.0)
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: learning_rate=10.0: the learned weights
        are NaN or infinite; lower it
    """
    if not all(bool(parameter.isfinite().all()) for parameter in learned.parameters()):
        raise InputError(
            f"learning_rate={learning_rate}: the learned weights are NaN or infinite; lower it"
        )
