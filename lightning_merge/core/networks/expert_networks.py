"""One network with the weights of one expert or another."""

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
    """The floating-point state of a network for every expert, read when it is asked for.

    Args:
        model: The network; it is not changed.
        vectors: Task vectors; the experts are those that they stand for.

    Attributes:
        ties: Names of the network's floating-point tensors to the first name of the same tensor.
        stored: Those first names to the stored names.
        merged: Those of them that have task vectors.
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
        """Run the network as it is on one input.

        Raises:
            InputError: It does not take inputs of that shape.
        """
        with input_errors(inputs), evaluating(self.model):
            self.model(inputs[:1])

    def applied(self, names: Iterable[str], inputs: Tensor) -> set[str]:
        """Those of the named tensors that the network, as it is, multiplies its inputs with."""
        applied: set[str] = set()
        own = {name: self._own[name] for name in names}
        with evaluating(self.model), LinearInputs(own, lambda name, rows: applied.add(name)):
            run_with(self.model, own, inputs)
        return applied

    def stacks(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors of all experts, [K, *shape], BatchNorm statistics included."""
        return {name: self._stack(name) for name in names}

    def expert(self, index: int) -> dict[str, Tensor]:
        """All tensors of one expert, in the network's types and on its device."""
        read = self.vectors.expert
        return {name: self.like(name, read(own, index)) for name, own in self.stored.items()}

    def average(self) -> dict[str, Tensor]:
        """All tensors averaged, as experts are where a method says nothing else."""
        return {name: self.like(name, mean_of(self._stack(name))) for name in self.stored}

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """Return a copy in the type, layout and place of the network's tensor of that name."""
        return torch.empty_like(self._own[name]).copy_(tensor)

    def task_vectors(self, name: str) -> Tensor:
        """Return the task vectors of the named tensor, [K, *shape]."""
        return self.vectors[self.stored[name]]

    def task_vector(self, name: str, index: int) -> Tensor:
        """One expert's task vector of the named tensor, [*shape]; see `TaskVectors.expert`."""
        return self.vectors.of_expert(self.stored[name], index)

    def base(self, name: str) -> Tensor:
        """Return the base's tensor in the precision of all sums."""
        return wide(self.vectors.base[self.stored[name]])

    def _stack(self, name: str) -> Tensor:
        return self.vectors.weights(self.stored[name])


def mean_of(stack: Tensor) -> Tensor:
    """Mean of a stack [K, ...] over the experts, as the average of weights has it."""
    return sum_tasks(stack).div_(len(stack))


def run_with(model: nn.Module, state: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Call a network with other tensors; those that it ties stay tied."""
    return functional_call(model, state, (inputs,))
