"""Merge the experts of a zoo into a file, with no run of Lightning around it."""

from pathlib import Path

import torch

from lightning_merge.callbacks.merge import Made
from lightning_merge.core.batch_norm import has_batch_norm
from lightning_merge.core.checkpoint import save_checkpoint
from lightning_merge.core.cost import measured
from lightning_merge.core.seeding import run_seed
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.methods.base import MergeMethod, Method, Weights
from lightning_merge.methods.network import NetworkMethod, as_they_are, save_network
from lightning_merge.methods.parts import seeded
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.heads import fitting_heads
from lightning_merge.modules.held_out import HeldOut
from lightning_merge.modules.zoo import Zoo


class ZooMerger:
    """Merges one zoo by any method.

    Args:
        encoder: architecture of the zoo.
        zoo: files, all there.
        data: the tasks, whose held-out images methods may see.
        device: what the network runs on.
        recalibrate: give BatchNorm the statistics of held-out images, where there is some.

    Raises:
        InputError: files do not fit.
    """

    def __init__(
        self,
        encoder: Encoder,
        zoo: Zoo,
        data: MergeDataModule,
        device: torch.device,
        recalibrate: bool = True,
    ) -> None:
        self.encoder, self.zoo, self.data, self.device = encoder.to(device), zoo, data, device
        self.recalibrates = recalibrate and has_batch_norm(encoder.backbone)
        self._base, self._experts = zoo.open(encoder, data.seen)
        heads = fitting_heads(zoo.heads, data, encoder)
        self._held_out = HeldOut(encoder, data, {t: head.to(device) for t, head in heads.items()})

    @torch.no_grad()
    def merge(self, method: Method, file: Path) -> Made:
        """Write what a method makes of the experts; return what it took.

        Args:
            method: a merge method, or a network method; the run's seed is added to its own.
            file: replaced if it exists.

        Raises:
            InputError: the method cannot merge them.
        """
        method = seeded(method, run_seed())
        self.encoder.load(self.zoo.base)
        given = self._held_out.resources(method)._asdict()
        about = {"method": type(method).__name__, "hyperparameters": method.described()}
        about["scope"] = "changed"
        about |= {**self.encoder.described, **self.zoo.hashes(self.data.seen)}
        if isinstance(method, NetworkMethod):
            statistics = self._held_out.recalibrate if self.recalibrates else as_they_are
            with measured(self.device) as cost:
                network = method(self._base, self._experts, **given, recalibrate=statistics)
            save_network(network, file, metadata=about)
            more = (network.extra_parameters, network.inference_cost)
            return Made(cost.seconds, cost.peak_memory, *more)
        assert isinstance(method, MergeMethod)
        with measured(self.device) as cost:
            merged: Weights = method(self._base, self._experts, **given)
        if self.recalibrates:
            merged = self._held_out.recalibrate(merged)
        save_checkpoint(self.zoo.named_as_base(merged), file, metadata=about)
        return Made(cost.seconds, cost.peak_memory)
