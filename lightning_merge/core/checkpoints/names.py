"""Tensor names: what they denote, and how two spellings of the same names correspond."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from lightning_merge.core.checkpoints.patterns import level_starts, option
from lightning_merge.core.errors import InputError

_STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})
# Wrappers insert a level of their own, at the front or in the middle of a name.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_MOST_PLACES = 64  # of one ending; more frequent endings carry no information


def is_statistic(name: str) -> bool:
    """Whether `name` is a running statistic of a BatchNorm layer: a buffer, never merged.

    Examples:
        >>> is_statistic("bn1.running_mean"), is_statistic("bn1.weight")
        (True, False)
    """
    return name.rpartition(".")[2] in _STATISTICS


def composed(name: str) -> str:
    r"""Return a name in Unicode's composed form (NFC); macOS writes the decomposed form.

    Examples:
        >>> len("e\u0301"), len(composed("e\u0301"))
        (2, 1)
    """
    return unicodedata.normalize("NFC", name)


def enumerate_names(names: Collection[str], limit: int = 20) -> str:
    """Return the first `limit` names, comma separated, and how many more there are.

    Examples:
        >>> enumerate_names(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    shown = ", ".join(list(names)[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def match_names(names: Iterable[str], checkpoint: Mapping[str, object]) -> dict[str, str]:
    """Map each wanted name to the stored name of the same tensor.

    Stored names may be the wanted ones under a common prefix (`model.visual.`,
    `encoder.backbone.`, `state_dict.`, ...), the wanted ones without their own common prefix, or
    with one prefix replaced by the other; levels of wrappers (`module`, `_orig_mod`, ...) are
    ignored. There is no list of known prefixes: a prefix is accepted if *every* wanted name is
    stored under it. The same spelling takes precedence over any prefix, and keeping the wanted
    prefix over dropping it.

    Args:
        names: The wanted names, for instance those of an encoder's state dict.
        checkpoint: Mapping from the stored names; other stored names are ignored.

    Returns:
        Wanted name -> stored name, in the order of `names`.

    Raises:
        InputError: Names are missing (the message counts them), or several prefixes fit (it lists
            them).

    Examples:
        >>> match_names(["fc.weight"], {"model.fc.weight": 0, "step": 0})
        {'fc.weight': 'model.fc.weight'}
    """
    wanted = _unwrap(dict.fromkeys(names))
    stored = {bare: name for name, bare in _unwrap(checkpoint).items()}
    if not wanted:
        return {}
    spelling = _fitting(wanted, stored)
    if spelling is None:
        raise InputError(_missing(wanted, stored))
    return {name: stored[spelling.of_file(bare)] for name, bare in wanted.items()}


def align_names(
    names: Collection[str], stored: Collection[str], ignored: Collection[str] = ()
) -> dict[str, str]:
    """Respell stored names like the wanted ones if most of both agree apart from a prefix.

    Unlike in `match_names`, names may be missing or left over. Those left over lose the prefix as
    well if the wanted names have none of their own.

    Args:
        names: The wanted names.
        stored: The names of a checkpoint.
        ignored: Stored names that do not influence the spelling.

    Returns:
        Stored name -> its new spelling.

    Raises:
        InputError: Several prefixes fit equally well; the message lists them.

    Examples:
        >>> align_names(["a.w", "b.w"], ["model.a.w", "model.b.w", "model.head.w"])
        {'model.a.w': 'a.w', 'model.b.w': 'b.w', 'model.head.w': 'head.w'}
    """
    wanted = {bare: name for name, bare in _unwrap(names).items()}
    short = _unwrap(stored)
    places = {bare: name for name, bare in short.items() if name not in ignored}
    if set(names) == set(places.values()):
        return {name: name for name in stored}
    spelling = _fitting(_unwrap(names), places) or _closest(wanted, places)
    new = {name: wanted.get(spelling.wanted(bare) or "", "") for name, bare in short.items()}
    taken = set(new.values())
    for name, bare in short.items():
        if not new[name]:
            rest = "" if spelling.own else spelling.wanted(bare) or ""
            free = [s for s in (rest, name) if s not in taken and (s == name or s not in short)]
            new[name] = next(filter(None, free), "")
            if not new[name] and name not in ignored:
                raise InputError(_ambiguous([spelling.prefix, ""]))
            taken.add(new[name])
    return new


class _Spelling(NamedTuple):
    """Names that begin with `own` are stored with `prefix` instead."""

    own: str
    prefix: str

    def of_file(self, wanted: str) -> str:
        """Return the stored name of a wanted one."""
        return self.prefix + wanted.removeprefix(self.own)

    def wanted(self, stored: str) -> str | None:
        """Return the wanted name of a stored one if it has the prefix."""
        if not stored.startswith(self.prefix):
            return None
        return self.own + stored.removeprefix(self.prefix)


def _fitting(wanted: Mapping[str, str], stored: Mapping[str, str]) -> _Spelling | None:
    """Return the spelling in which all wanted names are stored, if there is one.

    Args:
        wanted: Names -> the names without wrappers.
        stored: Stored names without wrappers -> the full ones.
    """
    for own in _common_prefixes(list(wanted.values())):
        rests = {bare[len(own) :] for bare in wanted.values()}
        counts = prefix_counts(rests, stored)
        fitting = [prefix for prefix, count in counts.items() if count == len(wanted)]
        if own in fitting:
            return _Spelling(own, own)
        if len(fitting) > 1:
            raise InputError(_ambiguous(fitting))
        if fitting:
            return _Spelling(own, fitting[0])
    return None


def _closest(wanted: Collection[str], stored: Collection[str]) -> _Spelling:
    """Return the spelling in which most names agree; unchanged if fewer than half agree.

    Each wanted name votes for the prefixes under which its longest known ending is stored.
    """
    places: dict[str, list[str]] = defaultdict(list)
    for name in stored:
        for start in level_starts(name):
            places[name[start:]].append(name[:start])
    votes: Counter[_Spelling] = Counter()
    for name in wanted:
        ending = next((start for start in level_starts(name) if name[start:] in places), None)
        if ending is not None and len(places[name[ending:]]) <= _MOST_PLACES:
            votes.update(_Spelling(name[:ending], prefix) for prefix in places[name[ending:]])
    same, least = _Spelling("", ""), min(len(wanted), len(stored)) / 2
    votes = Counter(
        {
            spelling: count
            for spelling, count in votes.items()
            if count >= (max(2, len(wanted) / 2) if spelling.own else least)
        }
    )
    best = [spelling for spelling, count in votes.items() if count == max(votes.values())]
    if same in best or not best:
        return same
    whole = [spelling for spelling in best if not spelling.own] or best
    if len({spelling.prefix for spelling in whole}) > 1:
        raise InputError(_ambiguous([spelling.prefix for spelling in whole]))
    if len(whole) > 1:
        raise InputError(_ambiguous([spelling.own for spelling in whole], "base"))
    return whole[0]


def _unwrap(names: Iterable[str]) -> dict[str, str]:
    """Return each name without levels of wrappers; unchanged if two would become equal."""
    names = list(names)
    bare = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names]
    return dict(zip(names, bare if len(set(bare)) == len(names) else names, strict=True))


def common_prefix(names: Collection[str]) -> str:
    """Return the levels that all names begin with, such as `visual.`.

    Args:
        names: At least one; a single name has all its levels but the last as prefix.

    Examples:
        >>> common_prefix(["visual.conv1.weight", "visual.proj"])
        'visual.'
    """
    if len(names) == 1:
        (name,) = names
        return name[: name.rfind(".") + 1]
    return [*_common_prefixes(list(names))][-1]


def _common_prefixes(names: list[str]) -> Iterator[str]:
    """Yield the prefixes that all names share, by whole levels, from empty to longest."""
    yield ""
    if len(names) < 2:  # in a single name, a prefix cannot be told from the rest
        return
    first, last = min(names).split("."), max(names).split(".")
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
        yield ".".join(first[:shared]) + "."


def prefix_counts(rests: Collection[str], stored: Iterable[str]) -> Counter[str]:
    """Count how many of `rests` are stored under each prefix.

    Args:
        rests: A set of names without a prefix.
        stored: Names with or without one.

    Examples:
        >>> prefix_counts({"w", "b"}, ["model.w", "model.b", "ema.w"])
        Counter({'model.': 2, 'ema.': 1})
    """
    return Counter(
        name[:start] for name in stored for start in level_starts(name) if name[start:] in rests
    )


def _ambiguous(prefixes: Collection[str], of: str = "NAME") -> str:
    first, *others = dict.fromkeys(prefixes)
    patterns = [f"{prefix}*" for prefix in others if prefix]
    return (
        f"{'the base has the' if of == 'base' else 'its'} names under several prefixes: "
        f"{enumerate_names([*map(repr, prefixes)], 5)}. Choose one, as in --prefix.{of} {first} of "
        f"merge or open_checkpoint(path, prefix={first!r}), or exclude the others, as in "
        f"{option(patterns)}"
    )


def _missing(wanted: Mapping[str, str], stored: Mapping[str, str]) -> str:
    spelling = _closest(wanted.values(), stored)
    missing = [name for name, bare in wanted.items() if spelling.of_file(bare) not in stored]
    matched = {spelling.of_file(bare) for bare in wanted.values()}
    over = [stored[b] for b in stored if b.startswith(spelling.prefix) and b not in matched]
    own, prefix = spelling
    place = f"{prefix!r}" + (f" in place of {own!r}" if own else "")
    where = f" (with {place} in front of their names)" if prefix != own else ""
    left = (
        f"Left over in the file: {enumerate_names(over, 3)}"
        if prefix and over
        else f"The file holds {len(stored)}: {enumerate_names(list(stored.values()), 3)}"
    )
    return (
        f"{len(missing)} of {len(wanted)} tensors are missing{where}: {enumerate_names(missing)}. "
        f"{left}. Give a checkpoint of the same architecture, the encoder it belongs to, or the "
        "prefix of its names"
    )
