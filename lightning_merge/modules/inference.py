"""Features or logits of a task's images, without gradients."""

from collections.abc import Callable, Iterable, Iterator

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_merge.data.dataset import Batch
from lightning_merge.models.preprocess import Preprocess

Network = Callable[[Tensor], Tensor]
"""Function from normalised images [n, 3, s, s] to features or logits [n, ...]."""


@torch.no_grad()
def outputs(
    network: Network, preprocess: Preprocess, batches: Iterable[Batch], device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield every batch that is not empty, with the network's outputs for its images.

    Args:
        network: The network, in the mode in which it should run.
        preprocess: Preprocessing that normalises the images for the network.
        batches: Batches of uint8 images.
        device: Device of the network.

    Yields:
        The unchanged batch, and outputs [n, ...] in float32 on the device.

    Examples:
        >>> from lightning_merge.models import ImagePreprocess
        >>> images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        >>> batch = Batch(images, labels=torch.tensor([0, 1]), index=torch.arange(2))
        >>> preprocess = ImagePreprocess(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> cpu = torch.device("cpu")
        >>> [(_, means)] = outputs(lambda x: x.mean((2, 3)), preprocess, [batch], cpu)
        >>> means.tolist()
        [[-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]]
    """
    for batch in batches:
        if len(batch.index):  # a process without a batch left gets an empty one
            yield batch, network(preprocess.finish(batch.inputs.to(device))).float()


def shared_logits(
    module: LightningModule,
    network: Network,
    preprocess: Preprocess,
    batches: Iterable[Batch],
    shape: tuple[int, int],
) -> Tensor:
    """Compute the logits of all images of a part; every process computes its share.

    Args:
        module: Module whose device is used and whose trainer's processes share the work.
        network: Function from images to logits.
        preprocess: Preprocessing that normalises the images for the network.
        batches: Batches of this process; those of all processes have every position once.
        shape: Number of images, n, and of classes, C.

    Returns:
        Float32 [n, C], the same in every process.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_merge.models import ImagePreprocess
        >>> module = LightningModule()
        >>> module.trainer = Trainer(accelerator="cpu", logger=False)
        >>> images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
        >>> batch = Batch(images, labels=torch.tensor([0, 0]), index=torch.tensor([1, 0]))
        >>> preprocess = ImagePreprocess(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> shared_logits(module, lambda x: x.mean((2, 3)), preprocess, [batch], (2, 3)).tolist()
        [[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]
    """
    device = module.device
    logits = torch.zeros(shape, device=device)
    for batch, output in outputs(network, preprocess, batches, device):
        logits[batch.index.to(device)] = output
    return module.trainer.strategy.reduce(logits, reduce_op="sum")
