"""Heads as they are published with task vectors: whole modules of a class that is not here."""

import sys
import types
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class ClassificationHead(nn.Linear):
    """A linear layer over features of norm 1, as the publishers' code defines it."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, normalize: bool = True) -> None:
        super().__init__(weight.shape[1], weight.shape[0])
        self.normalize = normalize
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.clone())

    def forward(self, features: Tensor) -> Tensor:
        if self.normalize:
            features = features / features.norm(dim=-1, keepdim=True)
        return super().forward(features)


def publish(module: nn.Module, path: Path, *, legacy: bool = False) -> str:
    """Save a whole module under the publishers' name of its class, which then is gone."""
    home = types.ModuleType("src.modeling")
    setattr(home, type(module).__name__, type(module))
    before, type(module).__module__ = type(module).__module__, "src.modeling"
    sys.modules |= {"src": types.ModuleType("src"), "src.modeling": home}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Couldn't retrieve source code")
            torch.save(module, path, _use_new_zipfile_serialization=not legacy)
    finally:
        type(module).__module__ = before
        del sys.modules["src"], sys.modules["src.modeling"]
    return str(path)
