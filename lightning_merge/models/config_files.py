"""JSON files that describe a model: fields are checked, and errors name the wrong one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_merge.core.errors import InputError

Colours = tuple[float, float, float]
_MOST_PIXELS = 16384  # along a side; more must be a typing error


@dataclass(frozen=True)
class Fields:
    """The fields of a file; null and missing fields stand for defaults.

    Attributes:
        file: Name of the file, used in messages.
        values: Values by name of the field.

    Examples:
        >>> fields = Fields("config.json", {"image_size": [224, 224], "patch_size": 0})
        >>> fields.side("image_size", 32), fields.number("layer_norm_eps", 1e-5)
        (224, 1e-05)
        >>> fields.side("patch_size", 32)
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: config.json: patch_size=0: give a whole number
        from 1 to 16384
    """

    file: str
    values: Mapping[str, Any]

    def get(self, key: str, default: Any) -> Any:
        """Return a field unchecked."""
        value = self.values.get(key)
        return default if value is None else value

    def wrong(self, key: str, remedy: str) -> InputError:
        """Return the error for a field: file, name, value and remedy."""
        return InputError(f"{self.file}: {key}={self.values.get(key)!r}: {remedy}")

    def flag(self, key: str, default: bool) -> bool:
        """Return a bool; null is an error, since libraries take it as false."""
        if not isinstance(value := self.values.get(key, default), bool):
            raise self.wrong(key, "give true or false")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a finite number."""
        if not is_number(value := self.get(key, default)):
            raise self.wrong(key, "give a number")
        return float(value)

    def whole(self, key: str, default: int, most: int = _MOST_PIXELS) -> int:
        """Return a whole number, from 1 to ``most``."""
        if not _is_whole(value := self.get(key, default), most):
            raise self.wrong(key, f"give a whole number from 1 to {most}")
        return int(value)

    def side(self, key: str, default: int) -> int:
        """Return the side of a square in pixels, given as one number or as two equal ones."""
        value = self.get(key, default)
        sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value, value]
        if sides[1] != sides[0]:
            raise self.wrong(key, "only square images are supported")
        if not _is_whole(sides[0], _MOST_PIXELS):
            raise self.wrong(key, f"give a whole number from 1 to {_MOST_PIXELS}")
        return int(sides[0])

    def colours(self, key: str, default: Colours) -> Colours:
        """Return a number for each of the three colours, given as one or three."""
        value = self.get(key, default)
        numbers = list(value) if isinstance(value, (list, tuple)) else [value]
        if len(numbers) not in (1, 3) or not all(map(is_number, numbers)):
            raise self.wrong(key, "give three numbers, of red, green and blue")
        red, green, blue = map(float, numbers if len(numbers) == 3 else numbers * 3)
        return red, green, blue

    def part(self, key: str) -> Fields:
        """Return the fields of a nested mapping; empty if it is null.

        Raises:
            InputError: The value is not a mapping.
        """
        if not isinstance(value := self.get(key, {}), Mapping):
            raise self.wrong(key, "give fields by name, {...}")
        return Fields(f"{self.file}: {key}", value)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number and not a bool.

    Examples:
        >>> is_number(3), is_number(True), is_number(math.nan)
        (True, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def require_side(**sides: Any) -> None:
    """Check that every argument is the side of an image in pixels.

    Args:
        sides: Values by name.

    Raises:
        InputError: A value is not a whole number from 1 to 16384.

    Examples:
        >>> require_side(image_size=64)
        >>> require_side(image_size=0)
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: image_size=0 must be a whole number from 1 to 16384
    """
    for name, side in sides.items():
        if not isinstance(side, int) or not _is_whole(side, _MOST_PIXELS):
            raise InputError(f"{name}={side!r} must be a whole number from 1 to {_MOST_PIXELS}")


def _is_whole(value: Any, most: int) -> bool:
    return is_number(value) and value == int(value) and 1 <= value <= most


def read_fields(file: Path) -> Fields:
    """Read a JSON file.

    Raises:
        InputError: The file cannot be read, is not JSON, or does not hold a mapping.

    Examples:
        >>> file = Path("config.json")
        >>> _ = file.write_text('{"hidden_size": 768}')
        >>> read_fields(file).whole("hidden_size", 512)
        768
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON, or cut off ({error}); download it again") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{file} holds {str(content)[:40]!r} instead of fields; download it again")
    return Fields(str(file), content)
