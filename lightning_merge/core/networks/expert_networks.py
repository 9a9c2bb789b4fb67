"""One network with the weights of any expert."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_merge.core.checkpoints.names import match_names
from lightning_merge.core.networks.linear_inputs import LinearInputs
from lightning_merge.core.networks.tracing import evaluating, input_errors, tied_names
from lightning_merge.core.vectors.scope import is_merged
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks, wide


class ExpertNetworks:
    """The floating-point state of a network for every expert, read on demand.

    Args:
        model: The network; it is not changed.
        vectors: Task vectors of the experts.

    Attributes:
        ties: Names of the network's floating-point tensors to the first name of the same tensor.
        stored: Those first names to the stored names.
        merged: The first names of tensors that have task vectors.

    Examples:
        >>> base = {"weight": torch.zeros(1, 2)}
        >>> experts = {"mnist": {"weight": torch.ones(1, 2)}, "cars": base}
        >>> networks = ExpertNetworks(nn.Linear(2, 1, bias=False), TaskVectors(base, experts))
        >>> run_with(networks.model, networks.expert(0), torch.ones(1, 2)).item()
        2.0
    """

    def __init__(self, model: nn.Module, vectors: TaskVectors) -> None:
        self.model, self.vectors = model, vectors
        own = {n: t.detach() for n, t in model.state_dict().items() if t.is_floating_point()}
        self.ties = {n: first for n, first in tied_names(model).items() if n in own}
        self._own = {n: own[n] for n, first in self.ties.items() if n == first}
        self.stored = match_names(self._own, vectors.base)
        base = vectors.base
        self.merged = [n for n, s in self.stored.items() if is_merged(s, base.dtype(s))]

    def check(self, inputs: Tensor) -> None:
        """Run the network with its own weights on one input.

        Raises:
            InputError: It does not accept inputs of that shape.
        """
        with input_errors(inputs), evaluating(self.model):
            self.model(inputs[:1])

    def applied(self, names: Iterable[str], inputs: Tensor) -> set[str]:
        """Return which of the named tensors the unchanged network applies to inputs."""
        applied: set[str] = set()
        own = {name: self._own[name] for name in names}
        with evaluating(self.model), LinearInputs(own, lambda name, rows: applied.add(name)):
            run_with(self.model, own, inputs)
        return applied

    def stacks(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors of all experts, [K, *shape], including BatchNorm statistics."""
        return {name: self._stack(name) for name in names}

    def expert(self, index: int) -> dict[str, Tensor]:
        """Return all tensors of one expert, in the network's types and on its device."""
        read = self.vectors.expert
        return {name: self.like(name, read(own, index)) for name, own in self.stored.items()}

    def average(self) -> dict[str, Tensor]:
        """Return the mean of all experts' tensors, in the network's types and on its device."""
        return {name: self.like(name, mean_of(self._stack(name))) for name in self.stored}

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """Return a copy in the type, layout and device of the network's tensor of that name."""
        return torch.empty_like(self._own[name]).copy_(tensor)

    def task_vectors(self, name: str) -> Tensor:
        """Return the task vectors of the named tensor, [K, *shape]."""
        return self.vectors[self.stored[name]]

    def task_vector(self, name: str, index: int) -> Tensor:
        """Return one expert's task vector of the named tensor, [*shape]."""
        return self.vectors.of_expert(self.stored[name], index)

    def base(self, name: str) -> Tensor:
        """Return the base's tensor in the precision used for sums."""
        return wide(self.vectors.base[self.stored[name]])

    def _stack(self, name: str) -> Tensor:
        return self.vectors.weights(self.stored[name])


def mean_of(stack: Tensor) -> Tensor:
    """Return the mean of a stack [K, ...] over the experts, in the order of weight averaging.

    Examples:
        >>> mean_of(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([2., 3.])
    """
    return sum_tasks(stack).div_(len(stack))


def run_with(model: nn.Module, state: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Call a network with other tensors; tied tensors stay tied.

    Examples:
        >>> run_with(nn.Linear(2, 1, bias=False), {"weight": torch.ones(1, 2)}, torch.ones(3, 2))
        tensor([[2.], [2.], [2.]])
    """
    return functional_call(model, state, (inputs,))
