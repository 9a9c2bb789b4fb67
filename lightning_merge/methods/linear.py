"""Methods that are linear in their scale, whose update is formed once for many scales."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.methods.base import MergeMethod, Method, Weights
from lightning_merge.methods.resources import Resources
from lightning_merge.methods.streaming import InMemory, Update, add_update, merge_each


class Direction(NamedTuple):
    """An update before its scale.

    Attributes:
        values: Its entries, or its coordinates in a basis.
        parts: The scale is divided by this number.
        basis: Matrix [out, r] by which the scaled values are multiplied, if there is one.

    Examples:
        >>> Direction(torch.tensor([2.0, 4.0]), parts=2).at(0.5, torch.float32)
        tensor([0.5000, 1.0000])
    """

    values: Tensor
    parts: int = 1
    basis: Tensor | None = None

    def at(self, scale: float, dtype: torch.dtype) -> Tensor:
        """Return the update [n] at a scale; this changes the values."""
        scaled = self.values.mul_(scale / self.parts)
        if self.basis is not None:
            scaled = self.basis @ scaled.view(self.basis.shape[1], -1)
        return scaled.to(dtype).flatten()

    def copy(self) -> "Direction":
        """Return a direction with values of its own."""
        return self._replace(values=self.values.clone())


Directing = Callable[[Span, Tensor], Direction]
"""From a span of a tensor and its task vectors [K, n] to its direction; may change these."""


class Linear(MergeMethod):
    """A method whose update is its scale times a direction that does not depend on it.

    Subclasses define `direct` in place of `plan`.

    Examples:
        >>> from lightning_merge.methods import TaskArithmetic, Ties
        >>> isinstance(TaskArithmetic(), Linear), isinstance(Ties(), Linear)
        (True, True)
    """

    scale: float

    @abstractmethod
    def direct(self, vectors: TaskVectors, resources: Resources) -> Directing:
        """Return the function from a span and its task vectors to the direction of its update."""

    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Return the function that scales the direction."""
        direct = self.direct(vectors, resources)
        return lambda span, tile: direct(span, tile).at(self.scale, tile.dtype)


def is_separable(method: Method) -> bool:
    """Return whether `Directions` merges as the method does: no subclass has changed how.

    Examples:
        >>> from lightning_merge.methods import Average, Ties
        >>> is_separable(Ties()), is_separable(Average())
        (True, False)
    """
    kind = type(method)
    if not issubclass(kind, Linear):
        return False
    return (kind.plan, kind.merge, kind._merge) == (Linear.plan, Linear.merge, Linear._merge)


class Directions:
    """The directions of all tensors, kept to merge at many scales.

    They take the memory of one network in the precision of sums, and of the tensors that no update
    changes. The weights are those of a merge by the method itself, to the bit.

    Args:
        method: The method; its own scale does not matter.
        base: Pretrained weights by name.
        experts: Task to fine-tuned weights.
        resources: What the method needs besides the weights.

    Examples:
        >>> from lightning_merge.methods import TaskArithmetic
        >>> base, experts = {"w": torch.zeros(2)}, {"a": {"w": torch.tensor([1.0, 2.0])}}
        >>> kept = Directions(TaskArithmetic(), base, experts, Resources())
        >>> kept.at(0.5)["w"], kept.at(2.0)["w"]
        (tensor([0.5000, 1.0000]), tensor([2., 4.]))
    """

    def __init__(
        self,
        method: Linear,
        base: Weights,
        experts: Mapping[str, Weights],
        resources: Resources,
    ) -> None:
        self._kept: dict[str, dict[Span, Direction]] = {}
        with torch.no_grad():
            vectors = method.task_vectors(base, experts, scope=resources.scope)
            direct = method.direct(vectors, resources)

            def keep(span: Span, tile: Tensor) -> Tensor:
                direction = direct(span, tile).copy()
                self._kept.setdefault(span.name, {})[span] = direction
                return torch.zeros_like(tile[0])

            self._vectors, self._ties = vectors, resources.ties(vectors)
            sink = InMemory(vectors.stored.layout(), vectors.device)
            merge_each(vectors, keep, sink, self._ties)
            same = {name: self._ties.get(name, name) for name in sink.tensors}
            self._others = {n: t for n, t in sink.tensors.items() if same[n] not in self._kept}

    @torch.no_grad()
    def at(self, scale: float) -> dict[str, Tensor]:
        """Return the weights merged at a scale.

        Raises:
            InputError: They are too large for their type.
        """
        vectors = self._vectors
        sink = InMemory(vectors.stored.layout(), vectors.device)
        for name in vectors.base:
            first = self._ties.get(name, name)
            if first not in self._kept:
                sink.write(name, 0, self._others[name].reshape(-1))
                continue
            for span, direction in self._kept[first].items():
                merged, _ = vectors.stored.buffers(span)
                vectors.base.read_into(first, span.start, merged)
                add_update(first, merged, direction.copy().at(scale, merged.dtype))
                sink.write(name, span.start, merged)
        return sink.tensors
