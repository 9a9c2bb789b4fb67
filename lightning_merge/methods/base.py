"""What all methods share: transforms, the streaming loop, and the registry of subclasses."""

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lightning_merge.core.errors import InputError
from lightning_merge.core.task_vectors import TaskVectors, is_merged, wide
from lightning_merge.core.validate import check_experts

Weights = Mapping[str, Tensor]
Batches = Tensor | Iterable[Tensor]
Update = Callable[[str, Tensor], Tensor]
"""From a tensor's name and task vectors [K, *shape] to the merged update [*shape]."""


class Resources(NamedTuple):
    """What a method may use beside the weights; each method says what it needs."""

    model: nn.Module | None = None
    batches: Batches | None = None

    def network(self, method: str) -> nn.Module:
        """The model; an InputError that names the method if there is none."""
        if self.model is None:
            raise InputError(f"model=None: {method} runs the network; pass model=encoder")
        return self.model

    def inputs(self, method: str) -> Tensor:
        """All batches as one tensor [n, ...] of the model's device and floating type.

        Raises:
            InputError: There are no batches, or they are empty or no tensors.
        """
        given = [self.batches] if isinstance(self.batches, Tensor) else list(self.batches or ())
        if not all(isinstance(batch, Tensor) for batch in given):
            kinds = sorted({type(batch).__name__ for batch in given})
            raise InputError(f"batches: {method} wants tensors of inputs, not {', '.join(kinds)}")
        if not sum(len(batch) for batch in given):
            raise InputError(f"batches: {method} got no inputs; pass batches=images, e.g. 128")
        inputs = torch.cat(given)
        parameter = next(self.network(method).parameters(), inputs)
        return inputs.to(parameter if inputs.is_floating_point() else parameter.device)


class Transform(ABC):
    """Maps task vectors to task vectors, in front of any method's combination.

    Subclasses are frozen dataclasses whose fields are the hyperparameters.
    """

    reference: ClassVar[str] = ""
    needs: ClassVar[str] = "nothing"

    @abstractmethod
    def __call__(self, vectors: TaskVectors) -> TaskVectors:
        """Return a lazy view of transformed task vectors, after a planning pass if needed."""


class MergeMethod(ABC):
    """Merges experts of one base; subclasses are frozen dataclasses with the hyperparameters.

    A subclass defines `plan`, which may read the task vectors once or more (a global
    threshold, a ranking of layers) and returns the function that merges one tensor. The
    loop in `stream` does the rest, for every method, so that merging in memory and out of
    core give the same bits. Integer tensors are copied from the base, BatchNorm's running
    statistics averaged over the experts; all sums are in float32 or wider, and every merged
    tensor has the base's type.
    """

    transforms: Sequence[Transform]
    reference: ClassVar[str] = ""
    needs: ClassVar[str] = "nothing"

    @abstractmethod
    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Return the function from (name, task vectors [K, *shape]) to the update [*shape].

        It must not change the stack it is given.
        """

    def __call__(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        *,
        model: nn.Module | None = None,
        batches: Batches | None = None,
    ) -> dict[str, Tensor]:
        """Merge the experts into one set of weights.

        Args:
            base: Pretrained weights by name.
            experts: Task to fine-tuned weights, of the base's names and shapes.
            model: The network, for methods that run it; it comes back unchanged.
            batches: Unlabelled inputs of the model, for methods that need them.

        Returns:
            Merged weights under the base's names, in its types. Inputs are not changed.

        Raises:
            InputError: Base and experts do not fit, have NaN or infinite values, or
                something that the method needs is missing.
        """
        return dict(self.stream(base, experts, model=model, batches=batches))

    @torch.no_grad()
    def stream(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        *,
        model: nn.Module | None = None,
        batches: Batches | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, merged tensor) in the base's order, the same as `__call__` returns.

        Input is checked and the plan made before this returns; from then on one tensor of
        every expert is in memory at a time.
        """
        vectors = self.task_vectors(base, experts)
        return merge_each(vectors, self.plan(vectors, Resources(model, batches)))

    @torch.no_grad()
    def task_vectors(self, base: Weights, experts: Mapping[str, Weights]) -> TaskVectors:
        """Check the input and return its task vectors after this method's transforms."""
        check_experts(base, experts, minimum=1, finite=False)  # values: when they are read
        vectors = TaskVectors(base, experts)
        for transform in self.transforms:
            vectors = transform(vectors)
        return vectors


@torch.no_grad()
def merge_each(vectors: TaskVectors, update: Update) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the base merged, in its type: read one stack, merge, forget."""
    for name, stored in vectors.base.items():
        yield name, merge_one(vectors, name, update).to(stored.dtype)


def merge_one(vectors: TaskVectors, name: str, update: Update) -> Tensor:
    """One tensor updated, averaged or copied as its kind asks; not yet rounded to its type."""
    stored = vectors.base[name]
    if is_merged(name, stored.dtype):
        return wide(stored) + update(name, vectors[name])
    if stored.is_floating_point():  # a running statistic
        return vectors.stack(name).mean(0)
    return stored.clone()


Kind = TypeVar("Kind")


def registered(kind: type[Kind]) -> dict[str, type[Kind]]:
    """Concrete subclasses of `MergeMethod` or `Transform` by name, sorted.

    Every module of this package is imported first; classes that a user has defined and
    imported are found as well.
    """
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__, f"{__package__}."):
        importlib.import_module(module.name)
    found: dict[str, type[Kind]] = {}
    queue = list(kind.__subclasses__())
    while queue:
        cls = queue.pop()
        queue.extend(cls.__subclasses__())
        if not inspect.isabstract(cls):
            found[cls.__name__] = cls
    return dict(sorted(found.items()))
