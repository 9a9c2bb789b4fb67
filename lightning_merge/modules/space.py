"""What hyperparameters of a merge method there are to choose from."""

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
"""Ends of the other ranges that an end of a range is tried with, at most."""


@dataclass(frozen=True)
class Range:
    """Values of one hyperparameter: an interval, or a list of choices.

    Args:
        low: Least value.
        high: Greatest value; whole numbers are sampled where the hyperparameter is one.
        log: Draw on a logarithmic scale, for what varies by factors.
        choices: The values themselves, of any kind that the hyperparameter has in a config:
            numbers, words, null, lists, whole transforms.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: list[Any] | None = None

    @classmethod
    def of(cls, name: str, given: Any) -> "Range":
        """Return what a config says: a list of choices, or a mapping of the fields above.

        Args:
            name: Of the hyperparameter.
            given: Its range.

        Raises:
            InputError: It is neither, or has something of a wrong kind.
        """
        given = {"choices": given} if isinstance(given, list) else given
        known = {field.name for field in fields(cls)}
        if not isinstance(given, Mapping) or not given or not set(given) <= known:
            raise InputError(
                f"space.{name}={given!r} is no range: give {{low: 0.1, high: 1.0}}, with log: true "
                "for what varies by factors, or a list of choices"
            )
        for end in ("low", "high"):
            value = given.get(end, 0)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"space.{name}: {end}={value!r} is no number; give choices")
        return cls(**given)


class Space:
    """A merge method with ranges for some of its hyperparameters.

    A name is that of a field of the method, such as ``scale``, or of a part that it holds,
    such as ``LwPTV.prune_ratio``.

    Args:
        method: Gives all hyperparameters that have no range.
        ranges: Name of a hyperparameter -> its values.

    Attributes:
        distributions: Name -> what values are sampled from; choices are sampled by their texts.

    Raises:
        InputError: A name is unknown, a range is none, or an end of a range or a choice is out
            of the method's bounds whatever the others are.
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
            raise InputError(f"space.{nested[0]}: the transforms are chosen, too; give one of both")
        self._check_ends()

    def method_at(self, point: Mapping[str, Any]) -> Method:
        """Return the method with the hyperparameters of a point.

        Args:
            point: Name -> number, or text of a choice.

        Raises:
            InputError: They are out of bounds together.
        """
        values = {n: self._choices[n][v] if n in self._choices else v for n, v in point.items()}
        return with_values(self.method, values)

    def given(self) -> dict[str, Any] | None:
        """Return the method's own point, if it lies in the space."""
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
        """Return all points; None where they are more than `limit`, or without number."""
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
        """Return what has a hyperparameter, the method or a part of it, and the field's name."""
        kind, _, field = name.rpartition(".")
        owners = [part for part in parts(self.method) if type(part).__name__ == kind]
        if kind and len(owners) != 1:
            kinds = [type(part).__name__ for part in parts(self.method)]
            raise InputError(f"space.{name}: there is not one part {kind}, but {kinds}")
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
                raise InputError(f"space.{name}: give either choices, or low and high")
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
        """Raise InputError for an end that goes with none of the others' ends."""
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
    """Return the distribution of an interval of a hyperparameter of some types."""
    low, high = chosen.low, chosen.high
    if low is None or high is None:
        raise InputError(f"space.{name}: give low and high, or choices")
    if not kinds & {int, float}:
        raise InputError(f"space.{name}: it is no number; give choices")
    if not -math.inf < low <= high < math.inf:
        raise InputError(f"space.{name}: low={low}, high={high} is no interval; give low <= high")
    if chosen.log and low <= 0:
        raise InputError(f"space.{name}: low={low} with log: true; give a positive one")
    if float in kinds:
        return FloatDistribution(low, high, log=chosen.log)
    if low != int(low) or high != int(high):
        raise InputError(f"space.{name}: low={low}, high={high}: it is a whole number; give two")
    return IntDistribution(int(low), int(high), log=chosen.log)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return a choice as the type that the hyperparameter has."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--choice", type=hint)
    try:
        return parser.instantiate_classes(parser.parse_object({"choice": value})).choice
    except (ArgumentError, ValueError) as fault:
        raise InputError(
            f"space.{name}.choices: {value!r} is none of its values: {fault}"
        ) from None
