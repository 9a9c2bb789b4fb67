"""Activations of models, which weights alone do not tell: GELU or QuickGELU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lightning_merge.core.checkpoints.activation import activation_of, named
from lightning_merge.core.errors import InputError, warn

_WORDS = {"quick_gelu": "QuickGELU", "gelu": "GELU"}


@dataclass(frozen=True)
class Activation:
    """The activation of a model, between the two layers of an MLP.

    Attributes:
        kind: ``quick_gelu``, ``gelu`` or another name that transformers uses.
        model: Argument that selects the model, such as ``name='ViT-B-32'``.
        other: Argument that selects the model with the other activation; empty if there is none.
        settle: How to specify the activation of the weights; empty if it is known.

    Examples:
        >>> import torch
        >>> from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
        >>> weights = {"class_embedding": torch.zeros(4)}
        >>> file = save_checkpoint(weights, "vit.safetensors", metadata={"activation": "gelu"})
        >>> model = Activation("quick_gelu", "name='ViT-B-32-quickgelu'", "name='ViT-B-32'")
        >>> model.check(file)
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: name='ViT-B-32-quickgelu' has QuickGELU, but
        weights=vit.safetensors were trained with GELU: use name='ViT-B-32'
    """

    kind: str
    model: str
    other: str = ""
    settle: str = ""

    def check(self, source: str | Path) -> None:
        """Compare with the activation that a checkpoint records; warn if it is unknown.

        Raises:
            InputError: The checkpoint was trained with another activation.
        """
        own, told = _WORDS.get(self.kind, self.kind), activation_of(source)
        if told is not None and told != self.kind:
            remedy = f": use {self.other}" if self.other else ""
            raise InputError(
                f"{self.model} has {own}, but weights={source} were trained with "
                f"{_WORDS.get(told, told)}{remedy}"
            )
        if told is None and self.settle and self.other:
            warn(
                f"{self.model} has {own}, and nothing says whether the weights were trained with "
                f"it: they fit {self.other}, too, and OpenAI's need QuickGELU. To settle it, "
                f"{self.settle}"
            )


def activation_in(module: nn.Module) -> str | None:
    """Return the activation of a network's modules if it is GELU or QuickGELU.

    Examples:
        >>> activation_in(nn.Sequential(nn.Linear(2, 2), nn.GELU()))
        'gelu'
    """
    return named({type(part).__name__ for part in module.modules()})
