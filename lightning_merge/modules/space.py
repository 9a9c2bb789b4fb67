"""Search space of the hyperparameters of a merge method."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from lightning_merge.core.errors import InputError
from lightning_merge.methods.base import Method
from lightning_merge.methods.parts import parts, with_values

COMBINATIONS = 1000
"""Largest number of combinations in which an end of a range is checked."""


@dataclass(frozen=True)
class Range:
    """Values of one hyperparameter: an interval, or a list of choices.

    Args:
        low: Least value.
        high: Greatest value; an integer hyperparameter is sampled in integers.
        log: Sample on a logarithmic scale.
        choices: The values themselves, of any kind that a config accepts: numbers, words, null,
            lists, whole transforms.

    Examples:
        >>> Range.of("scale", {"low": 0.1, "high": 1.0, "log": True}).high
        1.0
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: list[Any] | None = None

    @classmethod
    def of(cls, name: str, given: Any) -> "Range":
        """Convert a range of a config: a list of choices, or a mapping of the fields above.

        Args:
            name: Name of the hyperparameter.
            given: Range from the config.

        Raises:
            InputError: The range is neither, or a value has a wrong type.
        """
        given = {"choices": given} if isinstance(given, list) else given
        known = {field.name for field in fields(cls)}
        if not isinstance(given, Mapping) or not given or not set(given) <= known:
            raise InputError(
                f"space.{name}={given!r} is not a range; give {{low: 0.1, high: 1.0}}, with log: "
                "true for a logarithmic scale, or a list of choices"
            )
        for end in ("low", "high"):
            value = given.get(end, 0)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(
                    f"space.{name}: {end}={value!r} is not a number; give one, or choices"
                )
        return cls(**given)


class Space:
    """A merge method with ranges for some of its hyperparameters.

    A name is that of a field of the method, such as ``scale``, or of one of its parts, such as
    ``LwPTV.prune_ratio``.

    Args:
        method: Method with the values of all hyperparameters that have no range.
        ranges: Name of a hyperparameter -> its values.

    Attributes:
        distributions: Name -> distribution of its values; choices are sampled as texts.

    Raises:
        InputError: A name is unknown, a range is not valid, or an end of a range or a choice is
            out of the method's bounds whatever the others are.

    Examples:
        >>> from lightning_merge.methods import TaskArithmetic
        >>> space = Space(TaskArithmetic(), {"scale": Range(choices=[0.2, 0.4])})
        >>> [space.method_at(point).scale for point in space.points(limit=10)]
        [0.2, 0.4]
    """

    def __init__(self, method: Method, ranges: Mapping[str, Range]) -> None:
        if not ranges:
            raise InputError(
                "space is empty: give a hyperparameter and its range, such as "
                "--space '{scale: {low: 0.05, high: 1.0, log: true}}'"
            )
        self.method = method
        self._choices: dict[str, dict[str, Any]] = {}
        self.distributions: dict[str, BaseDistribution] = {
            name: self._distribution(name, chosen) for name, chosen in ranges.items()
        }
        if nested := [name for name in ranges if "." in name and "transforms" in ranges]:
            raise InputError(
                f"space.{nested[0]} is part of transforms, which are chosen, too; give only one"
            )
        self._check_ends()

    def method_at(self, point: Mapping[str, Any]) -> Method:
        """Return the method with the hyperparameters of a point.

        Args:
            point: Name -> number, or text of a choice.

        Raises:
            InputError: The combination is out of bounds.
        """
        values = {n: self._choices[n][v] if n in self._choices else v for n, v in point.items()}
        return with_values(self.method, values)

    def given(self) -> dict[str, Any] | None:
        """Return the method's own point, or None if it is outside the space."""
        point = {}
        for name, distribution in cast(dict[str, Any], self.distributions).items():
            owner, field = self._owner(name)
            value = getattr(owner, field)
            if name in self._choices:
                value = next((k for k, v in self._choices[name].items() if v == value), None)
            elif value is not None and not distribution.low <= value <= distribution.high:
                value = None
            point[name] = value
        return None if None in point.values() else point

    def points(self, limit: int) -> list[dict[str, Any]] | None:
        """Return all points; None if there are more than `limit` or infinitely many."""
        values = [self._values(name) for name in self.distributions]
        if any(v is None for v in values) or math.prod(len(v or ()) for v in values) > limit:
            return None
        every = itertools.product(*cast(list[Sequence[Any]], values))
        return [dict(zip(self.distributions, point, strict=True)) for point in every]

    def _values(self, name: str) -> Sequence[Any] | None:
        match self.distributions[name]:
            case CategoricalDistribution(choices=choices):
                return choices
            case IntDistribution(low=low, high=high):
                return range(low, high + 1)
        return None

    def _owner(self, name: str) -> tuple[Any, str]:
        """Return the owner of a hyperparameter, the method or a part, and the field's name."""
        kind, _, field = name.rpartition(".")
        owners = [part for part in parts(self.method) if type(part).__name__ == kind]
        if kind and len(owners) != 1:
            kinds = ", ".join(type(part).__name__ for part in parts(self.method))
            raise InputError(
                f"space.{name}: {kind} must name exactly one part; the method has {kinds}"
            )
        owner = owners[0] if kind else self.method
        known = [f.name for f in fields(owner)]  # type: ignore[arg-type]
        if field not in known:
            raise InputError(
                f"space.{name}: {type(owner).__name__} has no hyperparameter {field!r}; "
                f"it has {', '.join(known)}"
            )
        return owner, field

    def _distribution(self, name: str, chosen: Range) -> BaseDistribution:
        owner, field = self._owner(name)
        hint = get_type_hints(type(owner))[field]
        if chosen.choices is not None:
            if chosen != Range(choices=chosen.choices):
                raise InputError(f"space.{name}: give either choices or low and high")
            self._choices[name] = {str(v): _checked(name, v, hint) for v in chosen.choices}
            if len(self._choices[name]) < max(1, len(chosen.choices)):
                raise InputError(f"space.{name}.choices={chosen.choices}: give each value once")
            return CategoricalDistribution(list(self._choices[name]))
        return _interval(name, chosen, {hint, *get_args(hint)})

    def _ends(self, name: str) -> Sequence[Any]:
        """Return all choices, or both ends of an interval."""
        distribution = self.distributions[name]
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices
        return [distribution.low, distribution.high]  # type: ignore[attr-defined]

    def _check_ends(self) -> None:
        """Raise InputError for an end that is not valid with any ends of the others."""
        ends = {name: self._ends(name) for name in self.distributions}
        for name, own in ends.items():
            for value in own:
                every = itertools.product(*({**ends, name: [value]}).values())
                points = (dict(zip(ends, point, strict=True)) for point in every)
                faults = map(self._fault, itertools.islice(points, COMBINATIONS))
                first = next(faults)
                if first is not None and all(fault is not None for fault in faults):
                    raise InputError(f"space.{name}: {first}")

    def _fault(self, point: Mapping[str, Any]) -> InputError | None:
        try:
            self.method_at(point)
        except InputError as fault:
            return fault
        return None


def _interval(name: str, chosen: Range, kinds: set[Any]) -> BaseDistribution:
    """Return the distribution of an interval for a hyperparameter of the given types."""
    low, high = chosen.low, chosen.high
    if low is None or high is None:
        raise InputError(f"space.{name}: give low and high, or choices")
    if not kinds & {int, float}:
        raise InputError(f"space.{name} is not numeric; give choices")
    if not -math.inf < low <= high < math.inf:
        raise InputError(
            f"space.{name}: low={low}, high={high} is not an interval; give low <= high"
        )
    if chosen.log and low <= 0:
        raise InputError(f"space.{name}: low={low} with log: true; give a positive low")
    if float in kinds:
        return FloatDistribution(low, high, log=chosen.log)
    if low != int(low) or high != int(high):
        raise InputError(f"space.{name}: low={low}, high={high} must be integers")
    return IntDistribution(int(low), int(high), log=chosen.log)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Convert a choice to the type of the hyperparameter."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--choice", type=hint)
    try:
        return parser.instantiate_classes(parser.parse_object({"choice": value})).choice
    except (ArgumentError, ValueError) as fault:
        raise InputError(f"space.{name}.choices: {value!r} is not a valid value: {fault}") from None
