"""Classification heads, one for each task and frozen while merging."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_merge.core.errors import InputError

AnyHead = TypeVar("AnyHead", bound="Head")


class Head(nn.Module):
    """A map from features [n, dim] to logits [n, C]; subclasses register ``weight`` [C, dim].

    A head starts frozen, as merging needs it; ``head.requires_grad_(True)`` makes it trainable.

    Attributes:
        classes: Names of the classes, in the order of the logits; None if unknown.
        published: Whether it comes from a file without names, ordered by the data set's labels.
        by_class: Names of the tensors with one row per class.

    Examples:
        >>> class Sums(Head):
        ...     def forward(self, features):
        ...         return features @ self.weight.T
        >>> head = Sums(torch.tensor([[1.0, 1.0], [2.0, 0.0]])).named(["sum", "twice"])
        >>> head.dim, head.arranged([1, 0], ["twice", "sum"])(torch.tensor([[3.0, 4.0]]))
        (2, tensor([[6., 7.]]))
    """

    weight: nn.Parameter
    classes: tuple[str, ...] | None = None
    published: bool = False
    by_class: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        if weight.ndim != 2:
            raise InputError(f"weight of shape {list(weight.shape)}: a head needs [classes, dim]")
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return self.weight.shape[0]

    @property
    def dim(self) -> int:
        """The width of the features."""
        return self.weight.shape[1]

    def named(self: AnyHead, classes: Sequence[str] | None) -> AnyHead:
        """Set the class names, in the order of the logits, and return this head.

        Raises:
            InputError: The number of names is not that of classes, or a name is repeated.
        """
        if classes is not None and not len(set(classes)) == len(classes) == self.num_classes:
            raise InputError(f"classes={list(classes)}: give {self.num_classes} different names")
        self.classes = None if classes is None else tuple(classes)
        return self

    def arranged(self: AnyHead, rows: Sequence[int], classes: Sequence[str]) -> AnyHead:
        """Return a head with its logits reordered.

        Args:
            rows: Index in this head of each class of the new head.
            classes: Names of the new head's classes.
        """
        head = copy.deepcopy(self)
        for name in self.by_class:
            getattr(head, name).data = getattr(self, name).data[list(rows)]
        return head.named(classes)


class CosineHead(Head):
    """Cosine similarity with one direction for each class.

    ``logits = scale * normalize(normalize(features) - centre) @ weight.T``

    Args:
        weight: Directions of the classes [C, dim], rows of norm 1.
        scale: Factor of the cosines (CLIP: exp of its logit scale, about 100).
        centre: Vector [dim] subtracted from the normalised features; zeros by default.

    Examples:
        >>> CosineHead(torch.eye(2), scale=10.0)(torch.tensor([[3.0, 4.0]]))
        tensor([[6., 8.]])
    """

    scale: Tensor
    centre: Tensor

    def __init__(self, weight: Tensor, scale: float | Tensor, centre: Tensor | None = None) -> None:
        super().__init__(weight)
        centre = weight.new_zeros(weight.shape[1]) if centre is None else centre.detach().clone()
        if centre.shape != weight.shape[1:]:
            raise InputError(f"centre of shape {list(centre.shape)}: give [{weight.shape[1]}]")
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
        bias: [C]; zeros by default.

    Examples:
        >>> LinearHead(torch.eye(2), bias=torch.tensor([1.0, 0.0]))(torch.tensor([[3.0, 4.0]]))
        tensor([[4., 4.]])
    """

    by_class: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight)
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
        if bias.shape != weight.shape[:1]:
            raise InputError(f"bias of shape {list(bias.shape)}: give [{weight.shape[0]}]")
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [n, C] of features [n, dim]."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)


class NormalizedLinearHead(LinearHead):
    """An affine map of normalised features: ``logits = normalize(features) @ weight.T + bias``.

    Heads published with task vectors (Ilharco et al. 2023) have this form: the rows of ``weight``
    are text embeddings times exp of CLIP's logit scale.

    Examples:
        >>> NormalizedLinearHead(100 * torch.eye(2))(torch.tensor([[3.0, 4.0]]))
        tensor([[60.0000, 80.0000]])
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [n, C] of features [n, dim]."""
        return super().forward(F.normalize(features.to(self.weight.dtype), dim=-1))


class DenseHead(LinearHead):
    """A layer, an activation and an affine map, as encoders of text are fine-tuned with.

    ``logits = activation(features @ dense_weight.T + dense_bias) @ weight.T + bias``; subclasses
    have the activation.

    Args:
        weight: [C, dim].
        bias: [C].
        dense_weight: [dim, dim].
        dense_bias: [dim].

    Examples:
        >>> head = ReLUHead(torch.eye(2), torch.zeros(2), -torch.eye(2), torch.ones(2))
        >>> head(torch.tensor([[3.0, 0.5]]))
        tensor([[0.0000, 0.5000]])
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, dense_weight: Tensor, dense_bias: Tensor
    ) -> None:
        super().__init__(weight, bias)
        wanted = (weight.shape[1], weight.shape[1])
        if dense_weight.shape != wanted or dense_bias.shape != wanted[:1]:
            raise InputError(
                f"dense_weight of shape {list(dense_weight.shape)}: give {list(wanted)}"
            )
        self.dense_weight = nn.Parameter(dense_weight.detach().clone(), requires_grad=False)
        self.dense_bias = nn.Parameter(dense_bias.detach().clone(), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [n, C] of features [n, dim]."""
        hidden = F.linear(features.to(self.weight.dtype), self.dense_weight, self.dense_bias)
        return super().forward(self.activate(hidden))

    def activate(self, hidden: Tensor) -> Tensor:
        """Return what stands between the two layers, [n, dim]."""
        raise NotImplementedError


class TanhHead(DenseHead):
    """The head of RoBERTa and its relatives, see `DenseHead`.

    Examples:
        >>> one, zero = torch.ones(1, 1), torch.zeros(1)
        >>> TanhHead(one, zero, one, zero)(torch.ones(1, 1))
        tensor([[0.7616]])
    """

    def activate(self, hidden: Tensor) -> Tensor:
        """Return the hyperbolic tangent."""
        return hidden.tanh()


class GELUHead(DenseHead):
    """The head of DeBERTa and ELECTRA, see `DenseHead`.

    Examples:
        >>> one, zero = torch.ones(1, 1), torch.zeros(1)
        >>> GELUHead(one, zero, one, zero)(torch.ones(1, 1))
        tensor([[0.8413]])
    """

    def activate(self, hidden: Tensor) -> Tensor:
        """Return GELU."""
        return F.gelu(hidden)


class ReLUHead(DenseHead):
    """The head of DistilBERT, see `DenseHead`.

    Examples:
        >>> one, zero = torch.ones(1, 1), torch.zeros(1)
        >>> ReLUHead(one, zero, one, zero)(torch.ones(1, 1))
        tensor([[1.]])
    """

    def activate(self, hidden: Tensor) -> Tensor:
        """Return the positive part."""
        return hidden.relu()


def class_mean_head(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    scale: float = 20.0,
    classes: Sequence[str] | None = None,
) -> CosineHead:
    """Build a head from the mean direction of each class.

    The centre is the mean of all normalised features; the row of a class is the normalised
    mean of its normalised, centred features.

    Args:
        features: [n, dim].
        labels: Classes [n], in 0 .. num_classes - 1.
        num_classes: C.
        scale: Factor of the cosines.
        classes: Names of the classes.

    Raises:
        InputError: A class has no sample, or labels do not fit features or num_classes.

    Examples:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> class_mean_head(features, torch.tensor([0, 1]), 2, scale=10.0)(features)
        tensor([[ 10., -10.],
                [-10.,  10.]])
    """
    _check_labels(features, labels, num_classes)
    units = F.normalize(features.detach().float(), dim=-1)
    centre = units.mean(dim=0)
    sums = centre.new_zeros(num_classes, units.shape[1])
    sums.index_add_(0, labels, F.normalize(units - centre, dim=-1))
    return CosineHead(F.normalize(sums, dim=-1), scale, centre).named(classes)


def linear_probe_head(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    strength: float = 1.0,
    classes: Sequence[str] | None = None,
) -> LinearHead:
    """Fit a linear head to features by logistic regression.

    Args:
        features: [n, dim].
        labels: Classes [n], in 0 .. num_classes - 1.
        num_classes: C, at least 2.
        strength: Inverse of the L2 penalty (scikit-learn's C).
        classes: Names of the classes.

    Raises:
        InputError: A class has no sample, or labels do not fit features or num_classes.

    Examples:
        >>> features = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> head = linear_probe_head(features, labels, 2, classes=["left", "right"])
        >>> [head.classes[index] for index in head(torch.tensor([[-3.0], [3.0]])).argmax(1)]
        ['left', 'right']
    """
    from sklearn.linear_model import LogisticRegression

    _check_labels(features, labels, num_classes)
    fit = LogisticRegression(C=strength, max_iter=1000)
    fit.fit(features.detach().float().cpu().numpy(), labels.cpu().numpy())
    weight, bias = torch.from_numpy(fit.coef_), torch.from_numpy(fit.intercept_)
    if num_classes == 2:  # scikit-learn keeps the second class alone
        weight, bias = (torch.cat([torch.zeros_like(t), t]) for t in (weight, bias))
    return LinearHead(weight.float(), bias.float()).named(classes)


def _check_labels(features: Tensor, labels: Tensor, num_classes: int) -> None:
    """Check that every class has a label, and that labels fit features and classes.

    Raises:
        InputError: They do not; names the argument.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        shapes = f"{list(features.shape)} and {list(labels.shape)}"
        raise InputError(f"features and labels of shapes {shapes}: give [n, dim] and [n]")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        wrong = f"labels from {int(labels.min())} to {int(labels.max())}"
        raise InputError(f"{wrong}: num_classes={num_classes} allows 0 to {num_classes - 1}")
    counts = torch.bincount(labels, minlength=num_classes)
    if empty := (counts == 0).nonzero().flatten().tolist():
        raise InputError(f"no sample of class {empty}: give at least one of each class")
