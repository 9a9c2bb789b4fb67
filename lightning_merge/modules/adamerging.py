"""AdaMerging: coefficients that minimise the entropy of the merged network's predictions."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_merge.core.checks import require_in
from lightning_merge.core.facts import Facts, Needs
from lightning_merge.core.networks.losses import entropy
from lightning_merge.core.vectors.learner import PRIOR, Level, StatsMergeLearner
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.data.dataset import Batch
from lightning_merge.methods.base import Transform
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.coefficients import CoefficientModule
from lightning_merge.modules.held_out import BatchNorm
from lightning_merge.modules.zoo import Zoo


class AdaMerging(CoefficientModule):
    """Coefficients clamp(c, 0, 1) that minimise the mean entropy of the merged predictions.

    Neither true labels nor a teacher's are used. The paper sums the losses of the tasks; here they
    are averaged, which makes no difference to Adam. With the callback `TrimTaskVectors` this is
    AdaMerging++.

    Reference: Yang et al. 2024, "AdaMerging", equations 2 to 4.

    Args:
        encoder: Architecture of the base and the experts.
        zoo: Files of base, experts and heads.
        name: Name of the merged network in tables and files.
        level: One coefficient per task and layer, or per task.
        prior: Coefficient at the start, between 0 and 1.
        learning_rate: Learning rate of Adam.
        transductive: Learn from the unlabelled test examples, as published, instead of held-out
            images. Every table marks the result, as it does not estimate accuracy on new images.
        transforms: Applied to the task vectors before learning.
        offload: Keep the task vectors in the host's memory.
        batch_norm: See `CoefficientModule`.

    Raises:
        InputError: An option is out of range or files do not fit.

    Examples:
        >>> from lightning_merge.models import MiniViT
        >>> zoo = Zoo("base.safetensors", "{task}.safetensors", "heads.safetensors")
        >>> module = AdaMerging(MiniViT(depth=1), zoo, level="task", prior=0.5)
        >>> experts = {"cars": {"w": torch.ones(2)}, "pets": {"w": -torch.ones(2)}}
        >>> vectors = TaskVectors({"w": torch.zeros(2)}, experts)
        >>> module.make_learner(vectors)().tolist()
        [[0.5], [0.5]]
    """

    end_counts: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        reference="Yang et al. 2024, AdaMerging",
        arxiv="2310.02575",
        needs=Needs.INPUTS_OF_EVERY_TASK | Needs.HEADS,
        readings=1,
        work="training of the coefficients",
        memory="all task vectors and a merged network",
    )

    def __init__(
        self,
        encoder: Encoder,
        zoo: Zoo,
        name: str = "adamerging",
        level: Level = "layer",
        prior: float = PRIOR,
        learning_rate: float = 1e-3,
        transductive: bool = False,
        transforms: Sequence[Transform] = (),
        offload: bool = False,
        batch_norm: BatchNorm | Literal["both"] = "auto",
    ) -> None:
        super().__init__(encoder, zoo, name, level, transforms, offload, batch_norm)
        require_in("[0, inf]", learning_rate=learning_rate)
        self._learner(1, 1, level, prior)  # refuses a prior out of range before long work
        self.prior, self.learning_rate, self.transductive = prior, learning_rate, transductive

    def hyperparameters(self) -> dict[str, Any]:
        """Return the options of the learning, for the metadata of its files."""
        own = ("level", "prior", "learning_rate", "transductive")
        return {**{name: getattr(self, name) for name in own}, **super().hyperparameters()}

    def make_learner(self, vectors: TaskVectors) -> StatsMergeLearner:
        """Return the coefficients as free parameters, independent of the weights."""
        return self._learner(len(vectors), len(vectors.names), self.level, self.prior)

    @staticmethod
    def _learner(tasks: int, layers: int, level: Level, prior: float) -> StatsMergeLearner:
        blind = torch.zeros(tasks, layers, 1)
        return StatsMergeLearner(blind, kind="free", level=level, normalize="clamp", prior=prior)

    def task_loss(self, task: str, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean entropy of one task's predictions."""
        return entropy(logits).mean()

    def configure_optimizers(self) -> Any:
        """Return Adam."""
        return torch.optim.Adam(self.learner.parameters(), self.learning_rate)
