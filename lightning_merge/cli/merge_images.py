"""The merge command for methods that run the network on images; it imports far more."""

from typing import Any

from lightning_merge.cli.merge import merge_files, no_resources
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.methods.base import MergeMethod, Resources
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.base import fitting_heads
from lightning_merge.modules.held_out import HeldOut


def merge(
    encoder: Encoder | None = None,
    data: MergeDataModule | None = None,
    heads: str | None = None,
    **options: Any,
) -> None:
    """Merge fine-tuned experts of one base into one checkpoint.

    Args:
        encoder: network of the weights, for methods that run it.
        data: tasks whose held-out images methods that need images may see.
        heads: file of the tasks' frozen heads, for methods that need them.
        options: see `merge_files`.
    """

    def resources(method: MergeMethod) -> Resources:
        if method.needs == "nothing" or encoder is None or data is None:
            return no_resources(method)
        data.preprocess = encoder.preprocess
        data.load(test=False)
        found = {} if heads is None else fitting_heads(heads, data, encoder)
        return HeldOut(encoder, data, found).resources(method)

    merge_files(resources=resources, **options)
