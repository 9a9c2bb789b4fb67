"""The merge command for methods that run the network on images; its imports are slow."""

import json
from typing import Any

from lightning_merge.cli.merge import merge_files, no_resources
from lightning_merge.core.checkpoints.checkpoint import Checkpoint, spelled_as
from lightning_merge.core.device import run_device
from lightning_merge.core.errors import InputError, warn
from lightning_merge.core.facts import Needs
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.methods.base import MergeMethod, Resources
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.heads import HeadFiles, fitting_heads, open_heads
from lightning_merge.modules.held_out import HeldOut


def merge(
    experts: dict[str, str],
    encoder: Encoder | None = None,
    data: MergeDataModule | None = None,
    heads: HeadFiles | None = None,
    device: str | None = None,
    **options: Any,
) -> None:
    """Merge fine-tuned experts of one base into one checkpoint.

    Args:
        experts: File of each expert by task, as in --experts.mnist F --experts.cars F.
        encoder: Network that the weights belong to, for methods that run it.
        data: Tasks whose held-out images are shown to methods that need images; only tasks with
            an expert are used.
        heads: File of the tasks' frozen heads, or one for each, for methods that need them.
        device: Device to run the network on, such as cpu or cuda:1; by default a CUDA GPU if
            there is one.
        options: See `merge_files`.
    """
    network_device = run_device(device)

    def resources(method: MergeMethod, base: Checkpoint) -> tuple[Resources, dict[str, str]]:
        needs = method.requirements().needs
        if not needs:
            print(f"{type(method).__name__} needs nothing but weights: no image is looked at")
            return no_resources(method, base)
        with_heads = Needs.HEADS in needs
        if encoder is None or data is None or (with_heads and heads is None):
            return no_resources(method, base)
        _check_names(encoder, base)
        data.only(experts)
        if without := [task for task in experts if task not in data.tasks]:
            warn(
                f"data.root={data.source.root!r} has no images of {', '.join(without)}: "
                f"{type(method).__name__} sees none of its inputs"
            )
        if heads is not None:
            open_heads(heads, data.tasks)  # reject a wrong file before loading the images
        data.preprocess = encoder.preprocess
        data.load(test=False)
        found = fitting_heads(heads, data, encoder) if heads is not None and with_heads else {}
        on_device = {task: head.to(network_device) for task, head in found.items()}
        held_out = HeldOut(encoder.to(network_device), data, on_device)
        counts = {task: len(images) for task, images in held_out.inputs.items()}
        about = {"images": json.dumps(counts), "images_sha256": held_out.digest}
        about["device"] = str(network_device)
        return held_out.resources(method), about

    merge_files(resources=resources, experts=experts, **options)


def _check_names(encoder: Encoder, base: Checkpoint) -> None:
    """Raise InputError if the encoder names tensors as another library than the base's file."""
    if spelled_as(base, encoder.backbone.state_dict()) is not base:
        raise InputError(
            f"encoder={type(encoder).__name__} names its tensors as another library than the base "
            f"{base.path} does, whose names the output has: give the encoder of that library "
            "(OpenClipEncoder or TransformersEncoder), or a base with the other names"
        )
