"""Resources of methods besides weights: a network, unlabelled inputs, heads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_merge.core.checkpoints.names import match_names
from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.joined import joined
from lightning_merge.core.networks.tracing import tied_names
from lightning_merge.core.vectors.scope import Kind as Scope
from lightning_merge.core.vectors.task_vectors import TaskVectors

Batches = Tensor | Iterable[Tensor]


def identity(output: Any) -> Tensor:
    """Return the model's output as features.

    Examples:
        >>> import torch
        >>> identity(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    return output


class Resources(NamedTuple):
    """Resources of a method besides the weights; its facts say which it needs.

    Attributes:
        model: The network; its state dict has the names of the weights, perhaps without a prefix.
        batches: Unlabelled inputs of the model: a tensor [n, ...], several tensors, or either by
            task.
        heads: Frozen head of every task, from features [n, dim] to logits [n, C].
        project: Map from the model's output to features [n, dim].
        scope: Which tensors count in sums, ranks and quantiles: "all", as in published code, or
            those that an expert has "changed", regardless of what else the files hold.

    Examples:
        >>> import torch
        >>> batches = {"cars": [torch.ones(1, 1), torch.zeros(1, 1)]}
        >>> resources = Resources(nn.Linear(1, 1), batches)
        >>> resources.task_inputs("RegMean", ["cars"])
        {'cars': tensor([[1.],
                [0.]])}
        >>> resources.head("Fisher", "cars")
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: heads: Fisher needs the head of 'cars'; pass
        heads={task: head}
    """

    model: nn.Module | None = None
    batches: Batches | Mapping[str, Batches] | None = None
    heads: Mapping[str, nn.Module] | None = None
    project: Callable[[Any], Tensor] = identity
    scope: Scope = "all"

    def network(self, method: str) -> nn.Module:
        """Return the model.

        Raises:
            InputError: There is none; names the method.
        """
        if self.model is None:
            raise InputError(f"model=None: {method} runs the network; pass model=encoder")
        return self.model

    def ties(self, vectors: TaskVectors) -> dict[str, str]:
        """Return a map from each tied tensor's name to the first name of the tensor.

        Tied are tensors equal in the base and all experts, and tensors that the model shares, even
        if an expert's file has different copies.
        """
        tied = {} if self.model is None else tied_names(self.model)
        if self.model is None or all(name == first for name, first in tied.items()):
            return vectors.ties
        ties = dict(vectors.ties)
        own = [name for name, t in self.model.state_dict().items() if t.is_floating_point()]
        with suppress(InputError):  # a model of other weights, for a method that does not run it
            stored = match_names(own, vectors.base)
            ties |= {stored[name]: stored[tied[name]] for name in own if tied[name] != name}
        return {name: vectors.ties.get(first, first) for name, first in ties.items()}

    def inputs(self, method: str, tasks: Sequence[str]) -> Tensor:
        """Return the inputs as one tensor [n, ...] of the model's device and floating type.

        Inputs given by task are restricted to `tasks`.

        Raises:
            InputError: There are no batches, or they are empty or not tensors.
        """
        if not isinstance(self.batches, Mapping):
            return self._joined(method, self.batches)
        known = [task for task in tasks if task in self.batches]
        if not known:
            raise InputError(
                f"batches: {method} got inputs of {', '.join(self.batches) or 'no task'}, but not "
                f"of {', '.join(tasks)}; pass some, or batches=inputs"
            )
        return joined(self._joined(method, self.batches[task]) for task in known)

    def task_inputs(self, method: str, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return the inputs of each task as a tensor, like `inputs`.

        Raises:
            InputError: They are not given by task, or a task has none.
        """
        if not isinstance(self.batches, Mapping):
            raise InputError(
                f"batches: {method} needs inputs of every task; pass batches={{task: inputs}}"
            )
        if missing := [task for task in tasks if task not in self.batches]:
            raise InputError(
                f"batches: {method} got no inputs of {', '.join(missing)}, only of "
                f"{', '.join(self.batches)}; add them"
            )
        return {task: self._joined(method, self.batches[task]) for task in tasks}

    def head(self, method: str, task: str) -> nn.Module:
        """Return the head of a task.

        Raises:
            InputError: There is none; names the method.
        """
        if task not in (self.heads or {}):
            raise InputError(
                f"heads: {method} needs the head of {task!r}; pass heads={{task: head}}"
            )
        return self.heads[task]  # type: ignore[index]

    def _joined(self, method: str, batches: Batches | None) -> Tensor:
        """Concatenate batches into one tensor."""
        given = [batches] if isinstance(batches, Tensor) else list(batches or ())
        if not all(isinstance(batch, Tensor) for batch in given):
            kinds = sorted({type(batch).__name__ for batch in given})
            raise InputError(f"batches: {method} needs tensors of inputs, not {', '.join(kinds)}")
        if not sum(len(batch) for batch in given):
            raise InputError(f"batches: {method} got no inputs; pass batches=inputs, e.g. 128")
        inputs = joined(given)
        if not bool(inputs.isfinite().all()):
            raise InputError(f"batches: {method} got NaN or infinite inputs; leave them out")
        parameter = next(self.network(method).parameters(), inputs)
        return inputs.to(parameter if inputs.is_floating_point() else parameter.device)
