"""Patterns of tensor names, as accepted by `--ignore`."""

import glob
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterator

_MOST_LEVELS = 100  # of a name that are considered
_FEW = 4  # names or patterns that are easy to type
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})  # of YAML


def level_starts(name: str) -> Iterator[int]:
    """Yield the position at which each level of a name begins.

    Examples:
        >>> list(level_starts("model.fc.weight"))
        [0, 6, 9]
    """
    start = 0
    for _ in range(_MOST_LEVELS):
        yield start
        start = name.find(".", start) + 1
        if not start:
            break


def ignore_option(names: Collection[str], others: Collection[str] = ()) -> str:
    """Return the option of `merge` that excludes some tensors and no others.

    Args:
        names: The tensors to exclude; many are covered by patterns if a few suffice, otherwise only
            the first ones are listed.
        others: Names that no pattern may cover.

    Examples:
        >>> ignore_option([f"head.{i}.weight" for i in range(9)], others=["body.weight"])
        "--ignore '[head.*]'"
    """
    chosen: list[str] = []
    left = list(names)
    taken = {pattern for name in others for pattern in _covering(name)}
    while len(names) > _FEW and left and len(chosen) < _FEW:
        counts = Counter(p for name in left for p in _covering(name) if p not in taken)
        if not counts:
            break
        chosen.append(max(counts, key=lambda pattern: (counts[pattern], -len(pattern))))
        left = [name for name in left if chosen[-1] not in _covering(name)]
    if not left:
        return option(chosen)
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return option([glob.escape(name) for name in [*names][:_FEW]]) + more


def option(patterns: Collection[str]) -> str:
    r"""Return the option of `merge` with these patterns, quoted for a shell.

    Args:
        patterns: For tensor names.

    Examples:
        >>> option(["head.*", "*.bias"])
        '--ignore \'[head.*, "*.bias"]\''
    """
    return f"--ignore {shlex.quote('[' + ', '.join(map(_in_yaml, patterns)) + ']')}"


def _covering(name: str) -> set[str]:
    """Return patterns that cover a name: by its first levels, by its last ones, and itself."""
    inner = [start for start in level_starts(name) if start]
    first = {f"{glob.escape(name[:start])}*" for start in inner}
    return first | {f"*.{glob.escape(name[start:])}" for start in inner} | {glob.escape(name)}


def _in_yaml(pattern: str) -> str:
    """Return a pattern as an item of a YAML list."""
    plain = re.fullmatch(r"[A-Za-z_][\w.*?/-]*", pattern) and pattern.lower() not in _WORDS
    quoted = pattern.replace("'", "''")
    return pattern if plain else f"'{quoted}'" if {'"', "\\"} & {*pattern} else f'"{pattern}"'
