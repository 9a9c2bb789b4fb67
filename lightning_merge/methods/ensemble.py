"""The mean of the experts' outputs, which merged networks approximate."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_merge.core.checkpoints.names import match_names
from lightning_merge.core.checks import require_choice
from lightning_merge.core.facts import Facts, Needs
from lightning_merge.methods.base import Resources, Weights
from lightning_merge.methods.network import (
    NetworkMethod,
    Recalibrate,
    TaskNetwork,
    frozen,
    stacked,
)

Outputs = Literal["logits", "probabilities"]


class EnsembleNetwork(TaskNetwork):
    """A set of networks whose outputs are averaged.

    Args:
        model: Architecture of the networks.
        project: Map from its output to features.
        members: Number of networks, K.
        outputs: What is averaged.

    Examples:
        >>> network = EnsembleNetwork(nn.Linear(2, 1), lambda output: output, 3, "logits")
        >>> network.inference_cost, network.extra_parameters
        (3.0, 6)
    """

    def __init__(
        self, model: nn.Module, project: Callable[[Any], Tensor], members: int, outputs: Outputs
    ) -> None:
        super().__init__(model, project, members=members, outputs=outputs)
        self.members = nn.ModuleList(frozen(model) for _ in range(members))
        self.outputs = outputs
        self.inference_cost = float(members)

    def logits(self, task: str, images: Tensor, head: nn.Module) -> Tensor:
        """Return mean logits [n, C], or log mean probabilities."""
        outputs = torch.stack([head(self.project(member(images))) for member in self.members])
        if self.outputs == "logits":
            return outputs.mean(0)
        return outputs.log_softmax(-1).logsumexp(0) - math.log(len(outputs))

    def features(self, task: str, images: Tensor) -> Tensor:
        """Return the mean of the members' features [n, dim], whatever is averaged for answers."""
        return torch.stack([self.project(member(images)) for member in self.members]).mean(0)


@dataclass(frozen=True)
class Ensemble(NetworkMethod):
    """Mean of the experts' outputs, 1/K sum_k f(x; theta_k). Needs K passes per image.

    Every expert sees every image and is followed by the task's head. All experts count equally,
    as nothing tells which one was trained on the task.

    Reference: Wang et al. 2025, "M-Loss", section 2.2 and Table 1: "the output of the i-th
    model", whose theory averages before the softmax. Each expert keeps its own BatchNorm
    statistics, which are never recalibrated. Transforms change the experts' weights
    theta_0 + tau_k.

    Args:
        outputs: What is averaged, "logits" or "probabilities".

    Raises:
        InputError: `outputs` is unknown.

    Examples:
        >>> a, b = {"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[3.0]])}
        >>> model = nn.Linear(1, 1, bias=False)
        >>> network = Ensemble()({"weight": torch.zeros(1, 1)}, {"a": a, "b": b}, model=model)
        >>> network.logits("a", torch.tensor([[10.0]]), nn.Identity())
        tensor([[20.]])
    """

    outputs: Outputs = "logits"
    facts: ClassVar[Facts] = Facts(
        reference="Wang et al. 2025, M-Loss, section 2.2",
        needs=Needs.NETWORK,
        readings=1,
        recalibrates=False,
        work="K passes an image",
        memory="K networks",
    )

    def __post_init__(self) -> None:
        require_choice(get_args(Outputs), outputs=self.outputs)

    def make(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        given: Resources,
        recalibrate: Recalibrate,
    ) -> EnsembleNetwork:
        """Copy the weights of every expert into a network of its own."""
        model = given.network("Ensemble")
        network = EnsembleNetwork(model, given.project, len(experts), self.outputs)
        vectors = self.task_vectors(base, experts, scope=given.scope)
        members = [member.state_dict() for member in network.members]
        for own, name in match_names(model.state_dict(), vectors.base).items():
            for member, weights in zip(members, stacked(vectors, name), strict=True):
                member[own].copy_(weights)
        return network
