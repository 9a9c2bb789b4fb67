"""Recentring: heads of class means whose centre follows the merged network's features."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from lightning_merge.core.facts import Facts, Needs
from lightning_merge.methods.base import Resources, Weights
from lightning_merge.methods.network import (
    Recalibrate,
    TaskNetwork,
    encode,
    frozen,
)
from lightning_merge.methods.on_top import OnTop


class RecentredNetwork(TaskNetwork):
    """A merged network that gives the heads of known tasks another centre.

    Args:
        model: Architecture of the merged network.
        project: Map from its output to features.
        tasks: Names of the tasks.
        dims: Width of the features of each task.

    Examples:
        >>> network = RecentredNetwork(nn.Linear(4, 2), lambda output: output, ["a"], [2])
        >>> network.extra_parameters
        2
    """

    def __init__(
        self,
        model: nn.Module,
        project: Callable[[Any], Tensor],
        tasks: Sequence[str],
        dims: Sequence[int],
    ) -> None:
        super().__init__(model, project, tasks=list(tasks), dims=list(dims))
        self.network, self.tasks = frozen(model), tuple(tasks)
        device = next(self.network.parameters()).device
        for place, dim in enumerate(dims):
            self.register_buffer(f"centre{place}", torch.zeros(dim, device=device))

    def centre(self, task: str) -> Tensor:
        """Return the centre of a known task, [dim]."""
        return self.get_buffer(f"centre{self.tasks.index(task)}")

    def logits(self, task: str, images: Tensor, head: nn.Module) -> Tensor:
        """See `TaskNetwork`."""
        features = self.project(self.network(images))
        if task not in self.tasks or not isinstance(getattr(head, "centre", None), Tensor):
            return head(features)  # type: ignore[no-any-return]
        centre = self.centre(task).to(head.centre)  # type: ignore[arg-type]
        return functional_call(head, {"centre": centre}, (features,))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Recentre(OnTop):
    """Move the centre of every task's head to where merging has moved the features.

    A head of class means subtracts the mean of the base's normalised features. Merging moves that
    mean, and with two classes a moved mean is a moved threshold. The centre of a task becomes the
    mean of the merged network's normalised features over unlabelled held-out inputs of the task,
    as BatchNorm statistics are measured anew. Heads of other kinds stay as they are, and so do
    several heads side by side (joint labels). Transforms precede the wrapped method's own.

    Reference: our own, after re-estimated BatchNorm statistics (Jordan et al. 2023, "REPAIR").

    Args:
        method: Method that merges the weights.

    Raises:
        InputError: The method returns a network.

    Examples:
        >>> model, inputs = nn.Identity(), torch.tensor([[3.0, 4.0], [1.0, 0.0]])
        >>> model.register_parameter("weight", nn.Parameter(torch.zeros(1)))
        >>> base = {"weight": torch.zeros(1)}
        >>> from lightning_merge.methods import TaskArithmetic
        >>> method, batches = Recentre(TaskArithmetic(0.5)), {"a": inputs, "b": inputs}
        >>> network = method(base, {"a": base, "b": base}, model=model, batches=batches)
        >>> network.centre("a")
        tensor([0.8000, 0.4000])
    """

    does: ClassVar[str] = "moves the heads' centres for one merged network"

    facts: ClassVar[Facts] = Facts(
        reference="our own, after Jordan et al. 2023",
        arxiv="2211.08403",
        needs=Needs.INPUTS_OF_EVERY_TASK,
        readings=0,
        on_top=True,
        work="1 pass over own inputs",
    )

    def make(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        given: Resources,
        recalibrate: Recalibrate,
    ) -> RecentredNetwork:
        """Merge, then measure the mean feature of every task."""
        model, inputs = given.network("Recentre"), given.task_inputs("Recentre", tuple(experts))
        merged = frozen(model)
        merged.load_state_dict(self.merged(model, base, experts, given, recalibrate))
        centres = [
            functional.normalize(encode(merged, given.project, inputs[task]), dim=-1).mean(0)
            for task in experts
        ]
        network = RecentredNetwork(
            merged, given.project, tuple(experts), [len(centre) for centre in centres]
        )
        for task, centre in zip(experts, centres, strict=True):
            network.centre(task).copy_(centre)
        return network
