"""StatsMerging: coefficients from statistics of the weights, learned from the experts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_merge.core.checks import require_in
from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Facts, Needs
from lightning_merge.core.networks.losses import entropy
from lightning_merge.core.vectors.learner import PRIOR, Kind, Level, Normalize, StatsMergeLearner
from lightning_merge.core.vectors.statistics import (
    FEATURES,
    Feature,
    feature_names,
    standard_statistics,
)
from lightning_merge.core.vectors.task_vectors import TaskVectors, wide
from lightning_merge.data.dataset import Batch
from lightning_merge.methods.base import Transform
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.coefficients import CoefficientModule
from lightning_merge.modules.held_out import BatchNorm
from lightning_merge.modules.inference import shared_logits
from lightning_merge.modules.zoo import Zoo


def by_confidence(logits: Tensor, start: float, stop: float) -> Tensor:
    """Return the positions of predictions between two shares, by rising entropy.

    Args:
        logits: Logits of a teacher, [n, C].
        start: Share of the most certain predictions to leave out.
        stop: Share at which to end; adjacent ranges do not overlap.

    Returns:
        Positions, int64, at least one.

    Examples:
        >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
        >>> by_confidence(logits, 0.0, 0.5)
        tensor([1, 3])
    """
    order = entropy(logits).argsort(stable=True).cpu()
    first, last = int(start * len(order)), int(stop * len(order))
    return order[min(first, len(order) - 1) : max(last, first + 1)]


class StatsMerging(CoefficientModule):
    """Coefficients of a StatsMergeLearner trained by distillation (StatsMerging, section 3).

    Expert k labels the held-out examples of task k once. The network that is merged by the
    learner's coefficients is trained to agree, with frozen heads. True labels are used only if
    `loss` is "labels".

    Args:
        encoder: Architecture of the base and the experts.
        zoo: Files of base, experts and heads.
        name: Name of the merged network in tables and files.
        learner: "mlp2", "mlp4", "transformer2", or the control "free" without statistics.
        level: One coefficient per task and layer, or per task.
        statistics_of: Weights of the experts (the paper) or their task vectors.
        features: Which statistics the learner sees.
        rank: Number of singular values.
        normalize: "softmax" makes a layer's coefficients sum to 1.
        prior: Coefficient at the start.
        hidden: Width of the learner.
        loss: Cross-entropy with the teacher's hard label, KL divergence from its soft label, or
            (an ablation with labels) cross-entropy with the true label.
        learning_rate: Learning rate of Adam.
        step_size: Epochs between drops of the learning rate.
        gamma: Factor of each drop.
        confidence: Range of a task's images to train on, as two shares of them sorted by the
            entropy of the teacher's predictions: (0, 0.33) has low, (0.67, 1) high label noise
            (A.5.3; the paper's thirds divide the range of entropies, ours the images).
        transforms: Applied to the task vectors before learning.
        offload: Keep the task vectors in the host's memory.
        batch_norm: See `CoefficientModule`.

    Raises:
        InputError: An option is out of range or files do not fit.

    Examples:
        >>> from lightning_merge.models import MiniViT
        >>> zoo = Zoo("base.safetensors", "{task}.safetensors", "heads.safetensors")
        >>> module = StatsMerging(MiniViT(depth=1), zoo, prior=0.5)
        >>> experts = {"cars": {"w": torch.ones(2)}, "pets": {"w": -torch.ones(2)}}
        >>> vectors = TaskVectors({"w": torch.zeros(2)}, experts)
        >>> module.make_learner(vectors)().shape  # coefficients of two tasks and one tensor
        torch.Size([2, 1])
    """

    end_counts: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        reference="StatsMerging 2025",
        needs=Needs.INPUTS_OF_EVERY_TASK | Needs.HEADS,
        readings=3,
        work="training of a small network that sees statistics of the weights",
        memory="all task vectors and a merged network",
    )

    def __init__(
        self,
        encoder: Encoder,
        zoo: Zoo,
        name: str = "sml",
        learner: Kind = "mlp2",
        level: Level = "layer",
        statistics_of: Literal["experts", "task_vectors"] = "experts",
        features: Sequence[Feature] = FEATURES,
        rank: int = 3,
        normalize: Normalize = "none",
        prior: float = PRIOR,
        hidden: int = 64,
        loss: Literal["hard", "soft", "labels"] = "hard",
        learning_rate: float = 1e-3,
        step_size: int = 100,
        gamma: float = 0.1,
        confidence: tuple[float, float] = (0.0, 1.0),
        transforms: Sequence[Transform] = (),
        offload: bool = False,
        batch_norm: BatchNorm | Literal["both"] = "auto",
    ) -> None:
        _check_statistics(features, rank)
        _check_confidence(confidence)
        super().__init__(encoder, zoo, name, level, transforms, offload, batch_norm)
        self.statistics_of, self.statistics, self.rank = statistics_of, tuple(features), rank
        self.learner_options: dict[str, Any] = {
            "kind": learner, "level": level, "normalize": normalize, "prior": prior,
            "hidden": hidden,
        }  # fmt: skip
        require_in("[0, inf]", learning_rate=learning_rate, gamma=gamma)
        require_in("[1, inf)", step_size=step_size)
        # Refuses an option out of range now, not after experts were made.
        StatsMergeLearner(torch.zeros(2, 1, 1), **self.learner_options)
        self.loss, self.learning_rate, self.confidence = loss, learning_rate, tuple(confidence)
        self.step_size, self.gamma = step_size, gamma
        labelled = Needs.LABELS in self.requirements().needs
        self.note = "fitted on true labels of held-out examples" if labelled else ""
        self.teacher_logits: dict[str, Tensor] = {}

    def hyperparameters(self) -> dict[str, Any]:
        """Return the options of the learning, for the metadata of its files."""
        own = ("loss", "learning_rate", "step_size", "gamma", "confidence")
        options = {name: getattr(self, name) for name in own}
        return {**self.describe_learner(), **options, **super().hyperparameters()}

    def describe_learner(self) -> dict[str, Any]:
        """Return the options to build the learner for other experts."""
        seen = {"features": list(self.statistics), "rank": self.rank}
        return {**self.learner_options, **seen, "statistics_of": self.statistics_of}

    def requirements(self) -> Facts:
        """Return the facts; `loss` "labels" needs true labels, too."""
        more = Needs.LABELS if self.loss == "labels" else Needs.NOTHING
        return replace(self.facts, needs=self.facts.needs | more)

    def make_learner(self, vectors: TaskVectors) -> StatsMergeLearner:
        """Return the learner on the standardised statistics of every task and layer."""
        seen = standard_statistics(vectors, self.statistics_of, self.rank, self.statistics)
        return StatsMergeLearner(seen, **self.learner_options)

    def on_fit_start(self) -> None:
        """Let every expert label its task's images once, and select images by confidence."""
        super().on_fit_start()
        everything = self.confidence == (0, 1)
        if self.loss != "labels" or not everything:
            self.teacher_logits = {task: self._teach(task) for task in self.data.seen}
        if not everything:
            for task, logits in self.teacher_logits.items():
                self.data.restrict(task, by_confidence(logits, *self.confidence))

    def _teach(self, task: str) -> Tensor:
        """Return the logits [n, C] of a task's expert for its coefficient images."""
        expert = {
            name: (wide(tensor) if tensor.is_floating_point() else tensor).to(self.device)
            for name, tensor in self.experts[task].items()
        }
        return shared_logits(
            self,
            lambda images: self.heads[task](self.encoder.functional(expert, images)),
            self.preprocess,
            self.data.shares(task, "coefficients"),
            (len(self.data.inputs(task, "coefficients")), len(self.data.classes[task])),
        )

    def task_loss(self, task: str, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of the merged network against a task's teacher."""
        if self.loss == "labels":
            return F.cross_entropy(logits, batch.labels)
        teacher = self.teacher_logits[task][batch.index]
        if self.loss == "hard":
            return F.cross_entropy(logits, teacher.argmax(1))
        return F.kl_div(
            logits.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True
        )

    def configure_optimizers(self) -> Any:
        """Return Adam whose learning rate drops every `step_size` epochs."""
        optimizer = torch.optim.Adam(self.learner.parameters(), self.learning_rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, self.step_size, self.gamma)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def _check_statistics(features: Sequence[Feature], rank: int) -> None:
    """Refuse statistics that leave nothing to learn from."""
    require_in("[0, inf)", rank=rank)
    if not feature_names(rank, features) or len(set(features)) < len(features):
        raise InputError(
            f"features={list(features)} with rank={rank}: name at least one of "
            f"{', '.join(FEATURES)}, each once; rank=0 has no singular values"
        )


def _check_confidence(confidence: tuple[float, float]) -> None:
    """Refuse a range that is not two rising shares."""
    if not 0 <= confidence[0] < confidence[1] <= 1:
        raise InputError(f"confidence={list(confidence)}: give two shares with 0 <= from < to <= 1")
