"""Features or logits of a task's images, from a network that is not trained on them."""

from collections.abc import Callable, Iterable, Iterator

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_merge.data.dataset import Batch
from lightning_merge.models.preprocess import Preprocess

Network = Callable[[Tensor], Tensor]
"""From normalised images [n, 3, s, s] to features or logits [n, ...]."""


@torch.no_grad()
def outputs(
    network: Network, preprocess: Preprocess, batches: Iterable[Batch], device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield every batch that is not empty, with what a network makes of its images.

    Args:
        network: Runs as it is, so in its own mode.
        preprocess: What normalises the images for it.
        batches: Of uint8 images.
        device: That of the network.

    Yields:
        The batch as given, and outputs [n, ...] in float32 on the device.
    """
    for batch in batches:
        if len(batch.index):  # a process whose batches have run out gets empty ones
            yield batch, network(preprocess.normalize(batch.images.to(device))).float()


def shared_logits(
    module: LightningModule,
    network: Network,
    preprocess: Preprocess,
    batches: Iterable[Batch],
    shape: tuple[int, int],
) -> Tensor:
    """Compute the logits of all images of a part, of which each process computes its share.

    Args:
        module: Its trainer's processes share the work; it says on which device.
        network: From images to logits.
        preprocess: What normalises the images for it.
        batches: Those of this process; together they have every position once.
        shape: Number of images n and of classes C.

    Returns:
        Float32 [n, C], the same in every process.
    """
    device = module.device
    logits = torch.zeros(shape, device=device)
    for batch, output in outputs(network, preprocess, batches, device):
        logits[batch.index.to(device)] = output
    return module.trainer.strategy.reduce(logits, reduce_op="sum")
