"""Unlabelled held-out examples of a run, for BatchNorm and for methods that see inputs."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Needs
from lightning_merge.core.networks.batch_norm import (
    has_batch_norm,
    recalibrated,
    statistics_differ,
)
from lightning_merge.core.networks.joined import joined
from lightning_merge.core.seeding import generator_for, run_seed
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.methods.base import Method, Resources, Weights
from lightning_merge.models.encoder import Encoder

RECALIBRATION_BATCH = 256
"""Largest number of images per batch that updates BatchNorm statistics."""


BatchNorm = Literal["auto", "recalibrate", "average"]
"""Where the BatchNorm statistics of a merged network come from."""


def recalibrates(
    choice: BatchNorm, model: nn.Module, base: Weights, experts: Iterable[Weights]
) -> bool:
    """Return whether merged networks get BatchNorm statistics of held-out images.

    Args:
        choice: "recalibrate" if the network has BatchNorm; "average" never; "auto" if an expert
            has other statistics than the base.
        model: The network.
        base: Weights of the base under the network's names.
        experts: Weights of every expert, likewise.

    Examples:
        >>> layer = nn.BatchNorm1d(2)
        >>> base = layer.state_dict()
        >>> recalibrates("auto", layer, base, [base]), recalibrates("recalibrate", layer, base, [])
        (False, True)
    """
    if choice == "auto":
        return statistics_differ(model, base, experts)
    return choice == "recalibrate" and has_batch_norm(model)


def check_count(data: MergeDataModule) -> None:
    """Check that BatchNorm statistics can be measured on the unlabelled images of a run.

    Raises:
        InputError: There are fewer than two.

    Examples:
        >>> check_count(MergeDataModule(source="drawn", unlabelled_inputs=1))
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: data.unlabelled_inputs=1: BatchNorm statistics ...
    """
    if data.unlabelled_inputs < 2:
        raise InputError(
            f"data.unlabelled_inputs={data.unlabelled_inputs}: BatchNorm statistics need at least "
            "two images; give a hundred or more"
        )


class HeldOut:
    """Unlabelled held-out examples of every seen task: all that merging may see of the data.

    They are sampled once, with the run's seed, when they are first used.

    Args:
        encoder: The network; inputs are moved to its device.
        data: The tasks.
        heads: Frozen head of every task.

    Examples:
        >>> from lightning_merge.models import MiniViT
        >>> data = MergeDataModule(source="drawn", tasks=["drawn_hues"], unlabelled_inputs=4)
        >>> held_out = HeldOut(MiniViT(depth=1), data, heads={})
        >>> held_out.inputs["drawn_hues"].shape
        torch.Size([4, 3, 32, 32])
    """

    def __init__(
        self, encoder: Encoder, data: MergeDataModule, heads: Mapping[str, nn.Module]
    ) -> None:
        self.encoder, self.data, self.heads = encoder, data, heads

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Examples by task, [n, ...], before `Preprocess.finish` (images: uint8 [n, 3, s, s])."""
        self.data.preprocess = self.encoder.preprocess
        return self.data.unlabelled_by_task(seed=run_seed())

    def __len__(self) -> int:
        """Return the number of examples of all tasks."""
        return sum(map(len, self.inputs.values()))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all examples."""
        digest = hashlib.sha256()
        for inputs in self.inputs.values():
            digest.update(inputs.numpy().tobytes())
        return digest.hexdigest()

    def resources(self, method: Method) -> Resources:
        """Return the network and, if the method needs them, its inputs and heads."""
        given = Resources(self.encoder.backbone, project=self.encoder.project, scope="changed")
        needs = method.requirements().needs
        if Needs.INPUTS in needs:
            batches = {task: self._finished(inputs) for task, inputs in self.inputs.items()}
            given = given._replace(batches=batches)
        heads = {task: head for task, head in self.heads.items() if task in self.data.tasks}
        return given._replace(heads=heads) if Needs.HEADS in needs else given

    def recalibrate(self, weights: Weights, task: str | None = None) -> dict[str, Tensor]:
        """Return weights with BatchNorm statistics of one task's inputs, or of all tasks'."""
        inputs = joined(self.inputs.values()) if task is None else self.inputs[task]
        order = torch.randperm(len(inputs), generator=generator_for(0, "recalibrate"))
        batches = inputs[order].tensor_split(-(-len(inputs) // RECALIBRATION_BATCH))
        with torch.autocast(self._device.type, enabled=False):
            return recalibrated(self.encoder.backbone, weights, map(self._finished, batches))

    def notes(self, choice: BatchNorm | Literal["both"], recalibrate: bool) -> list[str]:
        """Return what a table says of the BatchNorm statistics of merged networks.

        Args:
            choice: The option `batch_norm`.
            recalibrate: Whether merged networks have statistics of these images.
        """
        if recalibrate:
            but = ", except where the name says that they are not recalibrated"
            return [
                f"BatchNorm statistics of merged networks are those of {len(self)} unlabelled "
                f"held-out images{but if choice == 'both' else ''}."
            ]
        kept = choice == "auto" and has_batch_norm(self.encoder.backbone)
        return ["BatchNorm statistics are the base's, which all experts have kept."] * kept

    def describe_statistics(self, recalibrate: bool) -> dict[str, str]:
        """Return the origin of BatchNorm statistics, for the metadata of merged weights."""
        if not has_batch_norm(self.encoder.backbone):
            return {}
        if not recalibrate:
            return {"batch_norm": "average"}
        return {"batch_norm": f"recalibrated on {len(self)} images of digest {self.digest}"}

    @property
    def _device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def _finished(self, inputs: Tensor) -> Tensor:
        return self.encoder.preprocess.finish(inputs.to(self._device))
