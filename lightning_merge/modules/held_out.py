"""The unlabelled held-out images of a run: for methods that see images, and for BatchNorm."""

import hashlib
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_merge.core.facts import Needs
from lightning_merge.core.networks.batch_norm import recalibrated
from lightning_merge.core.seeding import generator_for, run_seed
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.methods.base import Method, Resources, Weights
from lightning_merge.models.encoder import Encoder

RECALIBRATION_BATCH = 256
"""Images of a batch that gives BatchNorm statistics, at most."""


class HeldOut:
    """What merging may see of the data: some unlabelled held-out images of every seen task.

    They are sampled once, by the run's seed, when they are first asked for.

    Args:
        encoder: The network; its device is that of the images.
        data: The tasks.
        heads: Frozen head of every task.
    """

    def __init__(
        self, encoder: Encoder, data: MergeDataModule, heads: Mapping[str, nn.Module]
    ) -> None:
        self.encoder, self.data, self.heads = encoder, data, heads

    @cached_property
    def images(self) -> dict[str, Tensor]:
        """Task -> uint8 [n, 3, s, s]."""
        self.data.preprocess = self.encoder.preprocess
        return self.data.unlabelled_by_task(seed=run_seed())

    def __len__(self) -> int:
        """Return the number of images of all tasks."""
        return sum(map(len, self.images.values()))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all images."""
        digest = hashlib.sha256()
        for images in self.images.values():
            digest.update(images.numpy().tobytes())
        return digest.hexdigest()

    def resources(self, method: Method) -> Resources:
        """Return the network and, for a method that needs them, normalised images and heads."""
        given = Resources(self.encoder.backbone, project=self.encoder.project, scope="changed")
        needs = method.requirements().needs
        if Needs.IMAGES in needs:
            batches = {task: self._normal(images) for task, images in self.images.items()}
            given = given._replace(batches=batches)
        return given._replace(heads=dict(self.heads)) if Needs.HEADS in needs else given

    def recalibrate(self, weights: Weights, task: str | None = None) -> dict[str, Tensor]:
        """Return weights with BatchNorm statistics of a task's images, or of all tasks' mixed."""
        images = torch.cat([*self.images.values()]) if task is None else self.images[task]
        order = torch.randperm(len(images), generator=generator_for(0, "recalibrate"))
        batches = images[order].tensor_split(-(-len(images) // RECALIBRATION_BATCH))
        with torch.autocast(self._device.type, enabled=False):
            return recalibrated(self.encoder.backbone, weights, map(self._normal, batches))

    @property
    def _device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def _normal(self, images: Tensor) -> Tensor:
        return self.encoder.preprocess.normalize(images.to(self._device))
