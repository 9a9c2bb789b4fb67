"""Classification heads: frozen while merging, one for each task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_merge.core.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError


class Head(nn.Module):
    """A map from features [n, dim] to logits [n, C]; subclasses register ``weight`` [C, dim].

    A head is born frozen, as merging needs it: ``head.requires_grad_(True)`` trains it.
    """

    weight: nn.Parameter

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        if weight.ndim != 2:
            raise InputError(f"weight of shape {list(weight.shape)}: a head needs [classes, dim].")
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return self.weight.shape[0]

    @property
    def dim(self) -> int:
        """The width of the features."""
        return self.weight.shape[1]


class CosineHead(Head):
    """Cosine similarity with one direction for each class.

    ``logits = scale * normalize(normalize(features) - centre) @ weight.T``

    Args:
        weight: Directions of the classes [C, dim], rows of norm 1.
        scale: What the cosines are multiplied by (CLIP: exp of its logit scale, about 100).
        centre: Common part [dim] taken off the normalised features, or nothing.
    """

    scale: Tensor
    centre: Tensor

    def __init__(self, weight: Tensor, scale: float | Tensor, centre: Tensor | None = None) -> None:
        super().__init__(weight)
        centre = weight.new_zeros(weight.shape[1]) if centre is None else centre.detach().clone()
        if centre.shape != weight.shape[1:]:
            raise InputError(f"centre of shape {list(centre.shape)}: give [{weight.shape[1]}].")
        self.register_buffer("scale", torch.as_tensor(scale, dtype=weight.dtype).detach().clone())
        self.register_buffer("centre", centre)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [n, C] of features [n, dim]."""
        directions = F.normalize(features.to(self.weight.dtype), dim=-1) - self.centre
        return self.scale * F.linear(F.normalize(directions, dim=-1), self.weight)


class LinearHead(Head):
    """An affine map: ``logits = features @ weight.T + bias``.

    Args:
        weight: [C, dim].
        bias: [C], or nothing for zeros.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight)
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
        if bias.shape != weight.shape[:1]:
            raise InputError(f"bias of shape {list(bias.shape)}: give [{weight.shape[0]}].")
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [n, C] of features [n, dim]."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)


def class_mean_head(
    features: Tensor, labels: Tensor, num_classes: int, scale: float = 20.0
) -> CosineHead:
    """Build a head from the mean direction of each class.

    The centre is the mean of all normalised features; the row of a class is the normalised
    mean of its normalised, centred features.

    Args:
        features: [n, dim].
        labels: Classes [n], in 0 .. num_classes - 1.
        num_classes: C.
        scale: What the cosines are multiplied by.

    Raises:
        InputError: If a class has no sample, or labels do not fit features or num_classes.
    """
    _check_labels(features, labels, num_classes)
    units = F.normalize(features.detach().float(), dim=-1)
    centre = units.mean(dim=0)
    sums = centre.new_zeros(num_classes, units.shape[1])
    sums.index_add_(0, labels, F.normalize(units - centre, dim=-1))
    return CosineHead(F.normalize(sums, dim=-1), scale, centre)


def linear_probe_head(
    features: Tensor, labels: Tensor, num_classes: int, strength: float = 1.0
) -> LinearHead:
    """Fit a linear head to features by logistic regression.

    Args:
        features: [n, dim].
        labels: Classes [n], in 0 .. num_classes - 1.
        num_classes: C, at least 2.
        strength: Inverse of the L2 penalty (scikit-learn's C).

    Raises:
        InputError: If a class has no sample, or labels do not fit features or num_classes.
    """
    from sklearn.linear_model import LogisticRegression

    _check_labels(features, labels, num_classes)
    fit = LogisticRegression(C=strength, max_iter=1000)
    fit.fit(features.detach().float().cpu().numpy(), labels.cpu().numpy())
    weight, bias = torch.from_numpy(fit.coef_), torch.from_numpy(fit.intercept_)
    if num_classes == 2:  # scikit-learn keeps the second class alone
        weight, bias = (torch.cat([torch.zeros_like(t), t]) for t in (weight, bias))
    return LinearHead(weight.float(), bias.float())


def _check_labels(features: Tensor, labels: Tensor, num_classes: int) -> None:
    """Raise InputError unless the labels name every class at least once, and nothing else."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        shapes = f"{list(features.shape)} and {list(labels.shape)}"
        raise InputError(f"features and labels of shapes {shapes}: give [n, dim] and [n].")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        wrong = f"labels from {int(labels.min())} to {int(labels.max())}"
        raise InputError(f"{wrong}: num_classes={num_classes} allows 0 to {num_classes - 1}.")
    counts = torch.bincount(labels, minlength=num_classes)
    if empty := (counts == 0).nonzero().flatten().tolist():
        raise InputError(f"no sample of class {empty}: give at least one of each class.")


def save_heads(
    heads: Mapping[str, Head], path: str | Path, *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write the heads of all tasks into one safetensors file.

    Tensors are named ``task/weight`` and so on; the metadata entry ``heads`` is a JSON mapping
    from task to class name, beside whatever ``metadata`` adds.

    Returns:
        The path written.
    """
    kinds = {task: type(head).__name__ for task, head in heads.items()}
    if unknown := sorted(set(kinds.values()) - set(_KINDS)):
        raise InputError(f"heads of type {unknown}: only {sorted(_KINDS)} can be saved.")
    tensors = {
        f"{task}/{name}": tensor.detach().cpu().contiguous()
        for task, head in heads.items()
        for name, tensor in head.state_dict().items()
    }
    described = {**(metadata or {}), "heads": json.dumps(kinds)}
    return save_checkpoint(tensors, path, metadata=described)


def load_heads(path: str | Path) -> dict[str, Head]:
    """Read what :func:`save_heads` wrote: frozen heads by task, in their saved order.

    Raises:
        InputError: If the file is missing, unreadable, or not one of heads.
    """
    checkpoint = open_checkpoint(path)
    if "heads" not in checkpoint.metadata:
        raise InputError(f"{path} holds no heads: give a file written by save_heads.")
    kinds: dict[str, str] = json.loads(checkpoint.metadata["heads"])
    heads: dict[str, Head] = {}
    for task, kind in kinds.items():
        start = f"{task}/"
        state = {n.removeprefix(start): checkpoint[n] for n in checkpoint if n.startswith(start)}
        heads[task] = _KINDS[kind](**state)
    return heads


_KINDS: dict[str, type[Head]] = {"CosineHead": CosineHead, "LinearHead": LinearHead}
