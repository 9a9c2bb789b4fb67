"""Methods made of parts: transforms and a wrapped method."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from lightning_merge.core.checkpoints.digests import code_of
from lightning_merge.methods.base import Method, Transform

Part = TypeVar("Part")
"""A method or a transform."""
Made = TypeVar("Made", bound=Method)


def with_transforms(method: Made, transforms: Sequence[Transform]) -> Made:
    """Return the method with transforms added before its own.

    Examples:
        >>> from lightning_merge.methods import Average, WiSEFT
        >>> with_transforms(Average(), [WiSEFT(0.5)])
        Average(transforms=(WiSEFT(alpha=0.5),))
    """
    return replace(method, transforms=(*transforms, *method.transforms))  # type: ignore[type-var]


def parts(method: Any) -> Iterator[Any]:
    """Yield the parts of a method: transforms, the wrapped method, and their parts.

    Examples:
        >>> from lightning_merge.methods import Average, Dare, LiNeS, WiSEFT
        >>> list(parts(LiNeS(Average(transforms=[Dare()]), transforms=[WiSEFT()])))
        [WiSEFT(alpha=0.5), Average(transforms=[Dare(drop=0.9, seed=0)]), Dare(drop=0.9, seed=0)]
    """
    inner = getattr(method, "method", None)
    held = [*getattr(method, "transforms", ()), *([inner] if isinstance(inner, Method) else [])]
    for part in held:
        yield part
        yield from parts(part)


def hyperparameters(method: Any) -> set[str]:
    """Return the hyperparameters of a method and of its parts, such as `LwPTV.prune_ratio`.

    Parts of the same class cannot be told apart and are left out.

    Examples:
        >>> from lightning_merge.methods import TaskArithmetic, WiSEFT
        >>> sorted(hyperparameters(TaskArithmetic(transforms=[WiSEFT()])))
        ['WiSEFT.alpha', 'scale', 'transforms']
    """
    kinds = Counter(type(part).__name__ for part in parts(method))
    alone = [part for part in parts(method) if kinds[type(part).__name__] == 1]
    of_parts = {f"{type(part).__name__}.{field.name}" for part in alone for field in fields(part)}
    return {field.name for field in fields(method)} | of_parts


def with_values(method: Part, values: Mapping[str, Any]) -> Part:
    """Return the method with other hyperparameters.

    Args:
        method: Method with the remaining hyperparameters.
        values: New values by name, see `hyperparameters`.

    Examples:
        >>> from lightning_merge.methods import TaskArithmetic, WiSEFT
        >>> method = TaskArithmetic(transforms=[WiSEFT()])
        >>> with_values(method, {"scale": 0.2, "WiSEFT.alpha": 0.9})
        TaskArithmetic(transforms=(WiSEFT(alpha=0.9),), scale=0.2)
    """

    def of(kind: str) -> dict[str, Any]:
        named = ((name.rpartition("."), value) for name, value in values.items())
        return {field: value for (owner, _, field), value in named if owner == kind}

    def changed(part: Any) -> Any:
        return replace(_holding(part, changed), **of(type(part).__name__))

    return _holding(replace(method, **of("")), changed)  # type: ignore[type-var]


def seeded(method: Part, seed: int) -> Part:
    """Return the method or transform with a run's seed added to all its seeds.

    Examples:
        >>> from lightning_merge.methods import Dare
        >>> seeded(Dare(seed=1), 41).seed
        42
    """
    own = {"seed": method.seed + seed} if hasattr(method, "seed") else {}
    held = _holding(method, lambda part: seeded(part, seed))
    return replace(held, **own)  # type: ignore[type-var]


def _holding(method: Part, changed: Callable[[Any], Any]) -> Part:
    """Return the method with `changed` applied to its direct parts."""
    changes: dict[str, Any] = {}
    if transforms := getattr(method, "transforms", ()):
        changes["transforms"] = tuple(changed(transform) for transform in transforms)
    if isinstance(inner := getattr(method, "method", None), Method):
        changes["method"] = changed(inner)
    return replace(method, **changes) if changes else method  # type: ignore[type-var]


def identified(method: Made, seed: int) -> tuple[Made, dict[str, str]]:
    """Return a method with a run's seed, and what tells it from others in metadata.

    Args:
        method: Method as configured.
        seed: Seed of the run, see `seeded`.

    Returns:
        The seeded method, and its class, hyperparameters and own code.

    Examples:
        >>> from lightning_merge.methods import TaskArithmetic
        >>> _, about = identified(TaskArithmetic(0.3), seed=0)
        >>> about
        {'method': 'TaskArithmetic', 'hyperparameters': 'TaskArithmetic(scale=0.3, transforms=())'}
    """
    method = seeded(method, seed)
    whole = [method, *parts(method)]
    described = {"method": type(method).__name__, "hyperparameters": method.described()}
    return method, {**described, **code_of(*whole)}
