"""What a merged network costs to keep beside its base."""

from pathlib import Path

import torch

from lightning_merge.evaluation.candidates import Candidate
from lightning_merge.methods.network import holds_network
from lightning_merge.models.encoder import Encoder


def update_bytes(candidate: Candidate, base: Candidate | None, encoder: Encoder) -> int | None:
    """Return the bytes of all values of merged weights that differ from the base's.

    A value takes as many bytes as in the file. Where it stands is not counted, nor is it in LwPTV's
    table 15. Statistics of BatchNorm count like weights.

    Args:
        candidate: A merged network.
        base: The reference `base` of the same comparison, if there is one.
        encoder: Architecture of both.

    Returns:
        The bytes; None for references, and for networks with several sets of weights.

    Examples:
        >>> from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
        >>> from lightning_merge.models import MiniViT
        >>> encoder = MiniViT(depth=1)
        >>> weights = {name: t.clone() for name, t in encoder.backbone.state_dict().items()}
        >>> base = Candidate("base", save_checkpoint(weights, Path("base.safetensors")), bound=True)
        >>> weights["blocks.0.norm1.bias"][:3] += 1
        >>> merged = Candidate("merged", save_checkpoint(weights, Path("merged.safetensors")))
        >>> update_bytes(merged, base, encoder)  # three numbers of float32
        12
    """
    if candidate.bound or base is None or not isinstance(candidate.weights, Path):
        return None
    if holds_network(candidate.weights):
        return None
    assert isinstance(base.weights, Path)
    merged, before = (encoder.fitting(str(file)) for file in (candidate.weights, base.weights))
    total = 0
    for name in before:
        value = merged[name]
        if value.is_floating_point():
            wide = torch.promote_types(value.dtype, before[name].dtype)
            changed = value.to(wide) != before[name].to(wide)
            total += int(changed.sum()) * value.element_size()
    return total
