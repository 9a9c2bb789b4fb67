"""Surgery: a small correction of the merged network's features for each task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from lightning_merge.core.checks import require_in
from lightning_merge.core.facts import Facts, Needs
from lightning_merge.core.seeding import generator_for
from lightning_merge.methods.base import Resources, Weights
from lightning_merge.methods.network import (
    Recalibrate,
    TaskNetwork,
    check_learned,
    check_learning,
    encode,
    frozen,
    minibatches,
    own_names,
)
from lightning_merge.methods.on_top import OnTop


class Correction(nn.Module):
    """The map z - U relu(D z), initially the identity, as U is zero.

    Args:
        dim: Width of the features z.
        rank: Output width of D.

    Examples:
        >>> correction = Correction(dim=2, rank=1)
        >>> correction.reset(torch.Generator().manual_seed(0))
        >>> correction(torch.tensor([[1.0, 2.0]])).tolist()  # the identity before learning
        [[1.0, 2.0]]
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = skip_init(nn.Linear, dim, rank, bias=False)
        self.up = skip_init(nn.Linear, rank, dim, bias=False)

    def reset(self, generator: torch.Generator) -> None:
        """Sample D uniformly in +-1 / sqrt(dim), like a linear layer; set U to zero."""
        with torch.no_grad():
            sampled = torch.rand(self.down.weight.shape, generator=generator)
            bound = self.down.in_features**-0.5
            self.down.weight.copy_(sampled.mul_(2 * bound).sub_(bound))
            self.up.weight.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Correct features [n, dim]."""
        shift: Tensor = self.up(torch.relu(self.down(features.to(self.down.weight.dtype))))
        return features - shift


class CorrectedNetwork(TaskNetwork):
    """A merged network with a correction of its features for each known task.

    Args:
        model: Architecture of the merged network.
        project: Map from its output to features.
        tasks: Names of the tasks.
        dim: Width of the features, or one for each task.
        rank: Rank of the corrections.

    Examples:
        >>> model, tasks = nn.Linear(4, 4), ["a", "b"]
        >>> network = CorrectedNetwork(model, lambda output: output, tasks, dim=4, rank=1)
        >>> network.extra_parameters  # 2 tasks, 4 down and 4 up
        16
    """

    told_task = True

    def __init__(
        self,
        model: nn.Module,
        project: Callable[[Any], Tensor],
        tasks: Sequence[str],
        dim: int | Sequence[int],
        rank: int,
    ) -> None:
        dims = [dim] * len(tasks) if isinstance(dim, int) else list(dim)
        super().__init__(model, project, tasks=list(tasks), dim=dims, rank=rank)
        self.network, self.tasks = frozen(model), tuple(tasks)
        self.corrections = nn.ModuleList(Correction(width, rank) for width in dims)
        self.corrections.to(next(self.network.parameters()).device)
        self.requires_grad_(False)

    def logits(self, task: str, images: Tensor, head: nn.Module) -> Tensor:
        """See `TaskNetwork`."""
        features = self.project(self.network(images))
        if task in self.tasks:
            features = self.corrections[self.tasks.index(task)](features).to(features.dtype)
        logits: Tensor = head(features)
        return logits


@dataclass(frozen=True)
class Surgery(OnTop):
    """Correct a merged network's features: z - U_k relu(D_k z) for task k. Needs the task's name.

    D_k [rank, dim] and U_k [dim, rank] minimise the mean |z - U_k relu(D_k z) - z_k| over
    unlabelled held-out images of task k, where z_k are its expert's features. Features are computed
    once, before learning. The paper learns on the unlabelled test images. Transforms precede the
    wrapped method's own.

    Reference: Yang et al. 2024, "Representation surgery for multi-task model merging", with the
    published code's 1000 steps of Adam. There U starts at random, here at zero, so that zero steps
    leave the merged network unchanged. BatchNorm statistics are measured before the features.

    Args:
        method: Method that merges the weights.
        rank: Rank of the corrections.
        steps: Steps of Adam for each task.
        learning_rate: Learning rate of Adam.
        batch_size: Images per step.
        seed: Seed of D and of the order of the images.

    Raises:
        InputError: A value is out of bounds, the method returns a network, or (when called)
            learned weights are not finite.

    Examples:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> a, b = {"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[3.0]])}
        >>> base, one = {"weight": torch.zeros(1, 1)}, torch.ones(1, 1)
        >>> from lightning_merge.methods import TaskArithmetic
        >>> method = Surgery(TaskArithmetic(0.5), rank=2, steps=100, learning_rate=0.02)
        >>> network = method(base, {"a": a, "b": b}, model=model, batches={"a": one, "b": one})
        >>> [round(network.logits(task, one, nn.Identity()).item(), 1) for task in "ab"]
        [1.0, 3.0]
    """

    does: ClassVar[str] = "corrects one merged network's features"

    rank: int = 16
    steps: int = 1000
    learning_rate: float = 1e-3
    batch_size: int = 16
    seed: int = 0
    facts: ClassVar[Facts] = Facts(
        reference="Yang et al. 2024",
        arxiv="2402.02705",
        needs=Needs.INPUTS_OF_EVERY_TASK,
        readings=1,
        on_top=True,
        told_task=True,
        work="K + 1 passes, seconds of learning",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_learning(self.steps, self.learning_rate, self.batch_size)
        require_in("[1, inf)", rank=self.rank)

    def make(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        given: Resources,
        recalibrate: Recalibrate,
    ) -> CorrectedNetwork:
        """Merge, then learn the correction of each task in turn."""
        model, images = given.network("Surgery"), given.task_inputs("Surgery", tuple(experts))
        merged = self.merged(model, base, experts, given, recalibrate)
        expert = frozen(model)
        dims = [encode(expert, given.project, images[task][:1]).shape[1] for task in experts]
        network = CorrectedNetwork(model, given.project, tuple(experts), dims, self.rank)
        network.network.load_state_dict(merged)
        for task, correction in zip(experts, network.corrections, strict=True):
            expert.load_state_dict(own_names(model, experts[task]))
            inputs = encode(network.network, given.project, images[task])
            self._fit(task, correction, inputs, encode(expert, given.project, images[task]))
        return network

    @torch.enable_grad()
    def _fit(self, task: str, correction: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        """Fit corrected features [n, dim] to the expert's."""
        assert isinstance(correction, Correction)
        generator = generator_for(self.seed, "surgery", task)
        correction.reset(generator)
        correction.requires_grad_(True)
        optimizer = torch.optim.Adam(correction.parameters(), self.learning_rate)
        batches = minibatches(len(inputs), self.batch_size, generator)
        for _, rows in zip(range(self.steps), batches, strict=False):
            optimizer.zero_grad()
            functional.l1_loss(correction(inputs[rows]), targets[rows]).backward()
            optimizer.step()
        correction.requires_grad_(False)
        check_learned(correction, self.learning_rate)
