"""Names: what kind of tensor they denote, and how two spellings of one thing correspond."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from lightning_merge.core.errors import InputError

_STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})
# Wrappers put a level of their own into a name, at its front or in the middle.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_MOST_LEVELS = 100  # of a name that are looked at


def is_statistic(name: str) -> bool:
    """Whether `name` is a running statistic of a BatchNorm layer: a buffer, never merged."""
    return name.rpartition(".")[2] in _STATISTICS


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS writes the same name decomposed."""
    return unicodedata.normalize("NFC", name)


def enumerate_names(names: Collection[str], limit: int = 20) -> str:
    """The first `limit` names, comma separated, and how many more there are."""
    shown = ", ".join(list(names)[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def match_names(names: Iterable[str], checkpoint: Mapping[str, object]) -> dict[str, str]:
    """Map each wanted name to the stored name of the same tensor.

    Stored names may be the wanted ones under a common prefix (`model.visual.`,
    `encoder.backbone.`, `state_dict.`, ...), or the wanted ones less their own common prefix,
    or one prefix in place of the other; levels of wrappers (`module`, `_orig_mod`, ...) do not
    count. No prefix is known by name: one is accepted when *every* wanted name is stored under
    it. The same spelling wins over any prefix, and keeping the wanted prefix over dropping it.

    Args:
        names: the wanted names, for instance those of an encoder's state dict.
        checkpoint: mapping from the stored names; what else it stores is ignored.

    Returns:
        Wanted name -> stored name, in the order of `names`.

    Raises:
        InputError: names are missing (all are counted), or several prefixes fit (all are named).
    """
    wanted = _unwrap(dict.fromkeys(names))
    stored = {bare: name for name, bare in _unwrap(checkpoint).items()}
    closest: tuple[list[str], str, str] = (list(wanted), "", "")
    for own in _common_prefixes(list(wanted.values())):
        rests = {name: bare[len(own) :] for name, bare in wanted.items()}
        counts = prefix_counts(set(rests.values()), stored)
        fitting = [prefix for prefix, count in counts.items() if count == len(wanted)]
        if own in fitting:
            fitting = [own]
        if len(fitting) > 1:
            raise InputError(_ambiguous(rests, fitting, stored))
        if fitting:
            return {name: stored[fitting[0] + rest] for name, rest in rests.items()}
        for prefix, _ in counts.most_common(1):
            missing = [name for name, rest in rests.items() if prefix + rest not in stored]
            closest = min(closest, (missing, own, prefix), key=lambda found: len(found[0]))
    if not wanted:
        return {}
    raise InputError(_missing(*closest, list(wanted), stored))


def _unwrap(names: Iterable[str]) -> dict[str, str]:
    """Name -> the name without levels of wrappers; unchanged where two would become one."""
    names = list(names)
    bare = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names]
    return dict(zip(names, bare if len(set(bare)) == len(names) else names, strict=True))


def common_prefix(names: Collection[str]) -> str:
    """The levels in front of which all names begin alike, such as `visual.`; of one its own."""
    if len(names) == 1:
        (name,) = names
        return name[: name.rfind(".") + 1]
    return [*_common_prefixes(list(names))][-1]


def _common_prefixes(names: list[str]) -> Iterator[str]:
    """The prefixes that all names share, by whole levels, shortest (the empty one) first."""
    yield ""
    if len(names) < 2:  # one name alone has no prefix apart from its own meaning
        return
    first, last = min(names).split("."), max(names).split(".")
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
        yield ".".join(first[:shared]) + "."


def prefix_counts(rests: Collection[str], stored: Iterable[str]) -> Counter[str]:
    """How many of `rests`, a set, are stored under each prefix."""
    return Counter(
        name[:start] for name in stored for start in _starts(name) if name[start:] in rests
    )


def _starts(name: str) -> Iterator[int]:
    """Where the levels of a name begin."""
    start = 0
    for _ in range(_MOST_LEVELS):
        yield start
        start = name.find(".", start) + 1
        if not start:
            break


def _ambiguous(rests: dict[str, str], prefixes: list[str], stored: dict[str, str]) -> str:
    name, rest = next(iter(rests.items()))
    choices = enumerate_names([f"'{stored[prefix + rest]}'" for prefix in prefixes], 5)
    return (
        f"'{name}' and the names beside it are stored more than once: as {choices}. "
        "Say which by its prefix: open_checkpoint(path, prefix=...)"
    )


def _missing(
    missing: list[str], own: str, prefix: str, wanted: list[str], stored: dict[str, str]
) -> str:
    where = f" (read under '{prefix}' for '{own}')" if prefix != own else ""
    return (
        f"{len(missing)} of {len(wanted)} tensors are missing{where}: {enumerate_names(missing)}. "
        f"Stored are {len(stored)}: {enumerate_names(list(stored.values()), 3)}. "
        "Give a checkpoint of the same architecture, or the prefix its names have"
    )
