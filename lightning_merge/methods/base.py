"""Base classes of methods and transforms, and the registry of their subclasses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Facts
from lightning_merge.core.subclasses import Kind, concrete
from lightning_merge.core.vectors.scope import Kind as Scope
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.validate import check_experts
from lightning_merge.methods.resources import Batches, Resources, identity
from lightning_merge.methods.streaming import InMemory, Sink, Update, merge_each

Weights = Mapping[str, Tensor]


class Origin(NamedTuple):
    """What a method learned before merging, and from which tasks; empty for most methods.

    Attributes:
        tasks: Tasks that it learned from.
        transductive: Whether it saw their unlabelled test examples.
        note: Caveat for readers of its numbers.

    Examples:
        >>> from lightning_merge.methods import Ties
        >>> Ties().origin() == Origin()
        True
        >>> Origin(("cars", "digits"), transductive=True).tasks
        ('cars', 'digits')
    """

    tasks: tuple[str, ...] = ()
    transductive: bool = False
    note: str = ""


class Transform(ABC):
    """A map from task vectors to task vectors, applied before any method.

    Subclasses are frozen dataclasses whose fields are the hyperparameters.

    Examples:
        >>> class Halve(Transform):
        ...     def __call__(self, vectors):
        ...         return vectors.map(lambda span, tile: tile / 2)
        >>> vectors = TaskVectors({"w": torch.zeros(2)}, {"cars": {"w": torch.tensor([1.0, 4.0])}})
        >>> Halve()(vectors)["w"]
        tensor([[0.5000, 2.0000]])
    """

    facts: ClassVar[Facts] = Facts(readings=0, on_top=True)

    @abstractmethod
    def __call__(self, vectors: TaskVectors) -> TaskVectors:
        """Return a lazy view of transformed task vectors, after a planning pass if needed."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to merge experts, into weights (`MergeMethod`) or a network (`NetworkMethod`).

    Args:
        transforms: Applied to the task vectors first, in order.

    Attributes:
        facts: What holds for every instance; `requirements` describes a single one.

    Examples:
        >>> from lightning_merge.methods import ModelStock, WiSEFT
        >>> method = ModelStock(transforms=[WiSEFT(0.8)])
        >>> method.described(), method.requirements().readings
        ('ModelStock(transforms=(WiSEFT(alpha=0.8),))', 2)
    """

    transforms: Sequence[Transform] = ()
    facts: ClassVar[Facts] = Facts()

    @abstractmethod
    def merge(self, base: Weights, experts: Mapping[str, Weights], resources: Resources) -> Any:
        """Merge the experts; calling the method does the same, with separate resources."""

    def requirements(self) -> Facts:
        """Return the facts for these hyperparameters, including those of a wrapped method."""
        return self.facts

    def origin(self) -> Origin:
        """Return what the method learned before merging."""
        return Origin()

    def check_transforms(self) -> None:
        """Check that the transforms are a sequence of transforms.

        Raises:
            InputError: They are something else.
        """
        given = self.transforms
        if not isinstance(given, Sequence) or not all(isinstance(t, Transform) for t in given):
            raise InputError(
                f"transforms={given!r}: give a list of transforms, for example [LwPTV()]"
            )

    @torch.no_grad()
    def task_vectors(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        jobs: int = 1,
        scope: Scope = "all",
    ) -> TaskVectors:
        """Check the input and return its task vectors after this method's transforms."""
        self.check_transforms()
        # Values are checked when they are read.
        whole = check_experts(base, experts, minimum=1, finite=False)
        vectors = TaskVectors(base, whole, jobs, scope)
        for transform in self.transforms:
            vectors = transform(vectors)
        return vectors.whole() if self.requirements().whole else vectors

    def described(self) -> str:
        """Return the method and its hyperparameters, as written into files."""
        values = {field.name: getattr(self, field.name) for field in _ordered_fields(self)}
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        parts = (
            f"{k}={v.described() if isinstance(v, Method) else repr(v)}" for k, v in plain.items()
        )
        return f"{type(self).__name__}({', '.join(parts)})"


def brief(given: Any) -> str:
    """Return a readable form of a method or transform: what differs from its defaults.

    Examples:
        >>> from lightning_merge.methods import LwPTV, Ties
        >>> brief(Ties(density=0.5, scale=1.0, transforms=[LwPTV()]))
        'Ties(density=0.5, transforms=[LwPTV()])'
    """
    if isinstance(given, Sequence) and not isinstance(given, str):
        return f"[{', '.join(map(brief, given))}]"
    if not isinstance(given, (Method, Transform)):
        return repr(given)
    values = {field.name: getattr(given, field.name) for field in _ordered_fields(given)}
    defaults = {f.name: _default(f) for f in fields(given)}  # type: ignore[arg-type]
    told = (f"{k}={brief(v)}" for k, v in values.items() if v != defaults[k] and v not in ([], ()))
    return f"{type(given).__name__}({', '.join(told)})"


def _ordered_fields(given: Any) -> list[Field[Any]]:
    """Return the fields of a method or transform in the order of its signature."""
    return sorted(fields(given), key=lambda field: bool(field.kw_only))


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


class MergeMethod(Method):
    """A method that merges experts of one base into one set of weights.

    Subclasses are frozen dataclasses whose fields are the hyperparameters. They define `plan`,
    which may read the task vectors (for a global threshold or a ranking of layers) and returns
    the function that merges one tile. One loop does the rest for every method, so merging in
    memory or out of core, in one process or several, gives the same bits.

    BatchNorm's running statistics are averaged over the experts; integer tensors and tensors that
    no expert has changed are copied from the base. All sums are in float32 or wider, and the
    result has the types of `StoredExperts.layout`. Tied tensors, which the model shares or which
    are equal in the base and all experts, all get the merged value of the first; an expert may
    lack the others.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Largest(MergeMethod):
        ...     scale: float = 1.0
        ...
        ...     def plan(self, vectors, resources):
        ...         return lambda span, tile: tile.amax(0) * self.scale
        >>> experts = {"a": {"w": torch.tensor([1.0, 0.0])}, "b": {"w": torch.tensor([0.0, 3.0])}}
        >>> Largest(scale=2.0)({"w": torch.zeros(2)}, experts)["w"]
        tensor([2., 6.])
    """

    @abstractmethod
    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Return the function from a span and its task vectors [K, n] to the update [n].

        The function may change its tile. It is called in several processes, but for all tiles of
        one tensor in order and in the same process.
        """

    def __call__(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        *,
        model: nn.Module | None = None,
        batches: Batches | Mapping[str, Batches] | None = None,
        heads: Mapping[str, nn.Module] | None = None,
        project: Callable[[Any], Tensor] = identity,
        scope: Scope = "all",
    ) -> dict[str, Tensor]:
        """Merge the experts into one set of weights.

        Args:
            base: Pretrained weights by name.
            experts: Task to fine-tuned weights, of the base's names and shapes.
            model: The network, for methods that run it and to keep tied weights tied; it is left
                unchanged.
            batches: Unlabelled inputs of the model, for methods that need them; by task for
                methods that need inputs of every task.
            heads: Frozen head of every task, for methods that need them.
            project: Map from the model's output to the heads' input.
            scope: Which tensors count in sums, ranks and quantiles: "all", as in published code,
                or those that an expert has "changed", the default of the commands.

        Returns:
            Merged weights under the base's names, with the types of `StoredExperts.layout`.
            Inputs are not changed.

        Raises:
            InputError: Base and experts do not fit or have NaN or infinite values, or a resource
                that the method needs is missing.
        """
        return self.merge(base, experts, Resources(model, batches, heads, project, scope))

    @torch.no_grad()
    def merge(
        self, base: Weights, experts: Mapping[str, Weights], resources: Resources
    ) -> dict[str, Tensor]:
        """Merge the experts into one set of weights, see `__call__`."""
        vectors = self.task_vectors(base, experts, scope=resources.scope)
        sink = InMemory(vectors.stored.layout(), vectors.device)
        self._merge(vectors, resources, sink)
        return sink.tensors

    @torch.no_grad()
    def merge_to(
        self,
        sink: Sink,
        base: Weights,
        experts: Mapping[str, Weights],
        resources: Resources,
        jobs: int = 1,
    ) -> None:
        """Merge out of core, writing the merged tensors to a sink tile by tile.

        The tiles of one tensor arrive in order, the tensors in any order. Memory holds a few tiles
        of every expert and the method's plan. The number of processes, `jobs`, does not change
        the result. See `__call__` for the other arguments.
        """
        self._merge(self.task_vectors(base, experts, jobs, resources.scope), resources, sink)

    def _merge(self, vectors: TaskVectors, resources: Resources, sink: Sink) -> None:
        """Plan and merge; overridden where the plan already merges tensors."""
        update, ties = self.plan(vectors, resources), resources.ties(vectors)
        merge_each(vectors, update, sink, ties)


def registered(kind: type[Kind]) -> dict[str, type[Kind]]:
    """Find the concrete subclasses of `MergeMethod`, `Transform` or another kind, by name.

    Every module of this package is imported first; classes that a user has defined and
    imported are found as well.

    Examples:
        >>> "Ties" in registered(MergeMethod), "LwPTV" in registered(Transform)
        (True, True)
    """
    return concrete(kind, __package__)
