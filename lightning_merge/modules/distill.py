"""Distillation of an expert into another architecture, so that it can be merged with others."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_merge.core.checkpoints.digests import file_hash
from lightning_merge.core.checks import require_choice, require_in
from lightning_merge.data.dataset import Batch, TaskInputs
from lightning_merge.data.order import loader
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.finetune import FineTune
from lightning_merge.modules.heads import (
    HeadFiles,
    check_heads,
    fitting_heads,
    head_files,
    heads_hash,
)
from lightning_merge.modules.inference import shared_logits


@dataclass(frozen=True)
class Teacher:
    """A trained expert: an encoder, its weights, and the heads it was trained with.

    Args:
        encoder: Architecture, with its own preprocessing.
        weights: File of the backbone's weights.
        heads: File with a head for every distilled task, or one file per task.

    Examples:
        >>> from lightning_merge.models import MiniResNet
        >>> teacher = Teacher(MiniResNet(), "teacher.safetensors", "head_{task}.pt")
        >>> head_files(teacher.heads, ["cars", "pets"])
        ['head_cars.pt', 'head_pets.pt']
    """

    encoder: Encoder
    weights: str
    heads: HeadFiles


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 0.7,
    temperature: float = 4.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return a CE(y, p) + (1 - a) T^2 KL(q_T || p_T), averaged over images.

    p = softmax(student), p_T = softmax(student / T), q_T = softmax(teacher / T) (Hinton et al.
    2015, "Distilling the Knowledge in a Neural Network", section 2; StatsMerging, "Heterogeneous
    architectures"). T^2 keeps the size of the second gradient whatever the temperature.

    Args:
        student: Logits [n, C]; only they receive gradients.
        teacher: Logits [n, C].
        labels: Classes y [n].
        alpha: Weight a of the cross-entropy, in [0, 1].
        temperature: Temperature T, above 0.
        label_smoothing: Label smoothing of the cross-entropy.

    Examples:
        >>> import torch
        >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> distillation_loss(student, teacher, torch.tensor([0]), alpha=1.0)  # labels only
        tensor(0.1269)
    """
    hard = F.cross_entropy(student, labels, label_smoothing=label_smoothing)
    soft = F.kl_div(
        (student / temperature).log_softmax(1),
        (teacher.detach() / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    return alpha * hard + (1 - alpha) * temperature**2 * soft


class Distill(FineTune):
    """Distillation of a teacher of any architecture into a student.

    The student is trained as in `FineTune`, with frozen heads and the loss `distillation_loss`.
    Students must start from one base to be merged. The teacher predicts once per run, on the
    training images without augmentation, with its own preprocessing. With `labels` "teacher" its
    most likely class replaces the true one, which then enters no loss.

    Args:
        encoder: Architecture of the student.
        output: File that receives the student's backbone.
        teacher: Expert to learn from.
        heads: File of the student's frozen heads, or one file per task.
        alpha: Weight of the cross-entropy; the divergence has weight 1 - alpha.
        temperature: Temperature of the divergence.
        labels: Labels of the cross-entropy.
        options: Options of `FineTune`.

    Raises:
        InputError: An option is out of range, files do not fit, or see `FineTune`.

    Examples:
        >>> from lightning_merge.models import MiniResNet, MiniViT
        >>> teacher = Teacher(MiniResNet(), "teacher.safetensors", "teacher_heads.safetensors")
        >>> module = Distill(MiniViT(depth=1), "cars.safetensors", teacher, "heads.safetensors")
        >>> module.input_files(["cars"])
        ['heads.safetensors', 'teacher.safetensors', 'teacher_heads.safetensors']
    """

    def __init__(
        self,
        encoder: Encoder,
        output: str,
        teacher: Teacher,
        heads: HeadFiles,
        alpha: float = 0.7,
        temperature: float = 4.0,
        labels: Literal["teacher", "true"] = "teacher",
        **options: Any,
    ) -> None:
        require_in("[0, 1]", alpha=alpha)
        require_in("(0, inf)", temperature=temperature)
        require_choice(("teacher", "true"), labels=labels)
        super().__init__(encoder, output, heads=heads, **options)
        self.teacher = teacher  # in a dataclass, so not part of the module's state
        self.alpha, self.temperature, self.labels = alpha, temperature, labels
        self.teacher_logits: dict[str, Tensor] = {}

    def check(self, trainer: Trainer, tasks: Sequence[str], stage: str) -> None:
        """Check what is possible before any file is opened.

        Raises:
            InputError: As `FineTune.check`, or the teacher's heads are missing.
        """
        super().check(trainer, tasks, stage)
        check_heads("model.teacher.heads", self.teacher.heads, tasks)

    def input_files(self, tasks: Sequence[str]) -> list[str]:
        """Return the files of student and teacher."""
        heads = head_files(self.teacher.heads, tasks)
        return [*super().input_files(tasks), self.teacher.weights, *heads]

    def hashes(self) -> dict[str, str]:
        """Return the hashes of the files of student and teacher."""
        return {
            **super().hashes(),
            "teacher": file_hash(self.teacher.weights),
            "teacher/heads": heads_hash(self.teacher.heads, self.data.tasks),
        }

    def hyperparameters(self) -> dict[str, Any]:
        """Return the options of the training, for the metadata of the weights' file."""
        own = {name: getattr(self, name) for name in ("alpha", "temperature", "labels")}
        return {**super().hyperparameters(), **own}

    def prepare(self, stage: str) -> None:
        """Load the teacher and check that its heads fit, before training."""
        super().prepare(stage)
        if stage == "fit":
            self.teacher.encoder.load(self.teacher.weights)
            fitting_heads(self.teacher.heads, self.data, self.teacher.encoder)

    def on_fit_start(self) -> None:
        """Compute the teacher's logits of every training image, once."""
        encoder = self.teacher.encoder.to(self.device).eval()
        heads = fitting_heads(self.teacher.heads, self.data, encoder)
        for task in self.data.seen:
            head = heads[task].to(self.device)
            images = self.data.inputs(task, self.data.fit_on)
            self.teacher_logits[task] = shared_logits(
                self,
                nn.Sequential(encoder, head),
                encoder.preprocess,
                self._seen_by(encoder, images),
                (len(images), head.num_classes),
            )
        encoder.cpu()

    def _seen_by(self, encoder: Encoder, images: TaskInputs) -> DataLoader[Batch]:
        """Return this process's batches of the same images, prepared for another encoder."""
        own = self.data.kept.prepared_for(encoder.preprocess, images)
        size, workers = self.data.eval_batch_size, self.data.num_workers
        batches = loader(own, size, num_workers=workers, ranks=self.ranks)
        own.prepare(chain(*batches.sampler))
        return batches

    def summed_loss(self, task: str, logits: Tensor, batch: Batch) -> Tensor:
        """Return the summed loss of one task's images."""
        teacher = self.teacher_logits[task][batch.index]
        labels = batch.labels if self.labels == "true" else teacher.argmax(1)
        options = (self.alpha, self.temperature, self.label_smoothing)
        return len(labels) * distillation_loss(logits, teacher, labels, *options)
