"""Registries of classes that users choose by name: the subclasses of a base class."""

import inspect
import pkgutil
from importlib import import_module
from typing import TypeVar

Kind = TypeVar("Kind")


def concrete(kind: type[Kind], package: str | None = None) -> dict[str, type[Kind]]:
    """Return all direct and indirect subclasses of a class that are not abstract.

    Args:
        kind: The base class.
        package: Import all modules of this package first. Classes that a user has defined and
            imported are found as well.

    Returns:
        The classes by name, sorted.

    Examples:
        >>> class Animal: ...
        >>> class Dog(Animal): ...
        >>> class Cat(Animal): ...
        >>> list(concrete(Animal))
        ['Cat', 'Dog']
    """
    if package is not None:
        for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            import_module(module.name)
    classes: dict[str, type[Kind]] = {}
    queue = list(kind.__subclasses__())
    while queue:
        cls = queue.pop()
        queue.extend(cls.__subclasses__())
        if not inspect.isabstract(cls):
            classes[cls.__name__] = cls
    return dict(sorted(classes.items()))
