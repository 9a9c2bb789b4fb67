"""The network in what a file of torch.save holds: its tensors, by the names of a state dict.

A pickled module has no `state_dict` to call here, as no class is imported: its names are found in
the records of its attributes, and its tensors stay in the file.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

from lightning_merge.core.checkpoints.names import enumerate_names, prefix_counts
from lightning_merge.core.checkpoints.pickle_machine import Record, Symbol
from lightning_merge.core.checkpoints.stored_tensor import StoredTensor
from lightning_merge.core.errors import InputError

_MOST_STEPS = 1 << 24
_DEEPEST = 8  # dictionaries around a network
_TRAINING = re.compile(
    r"(\w+_)?optim(izer)?(s|_\w+)?|(\w+_)?opt(_state)?|(\w+_)?rng(_\w+)?|random_state\w*"
    r"|lr_schedulers?|loops|callbacks"
)
"""What training keeps beside a network in order to go on."""
_ARRAY = re.compile(r"numpy\._?core\.(multiarray\._reconstruct|numeric\._frombuffer)")
_SEQUENCES = frozenset({"builtins.set", "builtins.frozenset", "collections.deque"})
_HOLDERS = (StoredTensor, Record, dict, list, tuple)


class Found(NamedTuple):
    """What a file holds.

    Attributes:
        network: Its tensors, by the names of its state dict.
        parts: All tensors by their whole path, for who wants another part than the network.
        note: What was left out, as far as a user should know; often nothing.
    """

    network: dict[str, StoredTensor]
    parts: dict[str, StoredTensor]
    note: str


def find_network(root: Any, size: int) -> Found:
    """Find the tensors of a network.

    They are those of the whole object or, where that is a dictionary, of its `state_dict` or its
    only part with tensors; what training keeps beside it is left out. Where several parts have
    tensors (model and EMA, teacher and student), all stay, and their names begin with the part's.
    Members of lists, tuples and sets are called by their place, or by their names where they are
    pairs of name and value.

    Args:
        root: The object, as `read_pickle` gives it.
        size: Bytes of its file.

    Raises:
        InputError: No tensor has a name, or two have the same.
        ValueError: The objects hold each other without end.
    """
    search = _Search(2 * min(size, _MOST_STEPS) + (1 << 16))
    entries = list(search.named(root))
    hidden = search.hidden()
    network, depth = _choose(entries)
    if not network or any(not entry.name for entry in network):
        raise InputError(_nothing(entries, hidden))
    taken = network[0].keys[:depth]
    start = len("".join(f"{key}." for key in taken))
    tensors = {entry.name[start:]: entry.tensor for entry in network}
    if len(tensors) < len(network):
        counts = Counter(entry.name for entry in network)
        twice = [name for name, count in counts.items() if count > 1]
        raise InputError(f"holds two tensors called {enumerate_names(twice, 3)}: rename one")
    kept = {entry.name for entry in network}
    others = [entry for entry in entries if entry.name not in kept]
    parts = {entry.name: entry.tensor for entry in entries}
    return Found(tensors, parts, _note(tensors, taken, others, hidden))


class _Entry(NamedTuple):
    """A tensor that has a name.

    Attributes:
        name: Its whole path.
        keys: The first keys of the path.
        dicts: How many of the containers on the path are plain dictionaries, from the first on.
        free: How many of these keys may be taken off: what they lead to has names of its own.
        training: Whether it is of an optimizer.
        tensor: Where it lies.
    """

    name: str
    keys: tuple[str, ...]
    dicts: int
    free: int
    training: bool
    tensor: StoredTensor


class _Level(NamedTuple):
    """A container on the path to tensors; see `_Entry`."""

    key: str
    children: Iterator[tuple[Any, Any]]
    dicts: int = 0
    free: int = 0
    training: bool = False


@dataclass(slots=True)
class _Search:
    """A walk over objects, which may hold each other.

    Attributes:
        left: Steps and letters that may still be spent; an honest file spells out what it holds,
            so that its size is enough.
        unnamed: What a state dict has no name for, with the place of each.
    """

    left: int
    unnamed: list[tuple[str, Any]] = field(default_factory=list)

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise ValueError("more objects than a checkpoint has, or one within itself")

    def named(self, root: Any) -> Iterator[_Entry]:
        """Tensors in containers and modules, in the order of `state_dict()`."""
        if isinstance(root, StoredTensor):
            yield _Entry("", (), 0, 0, False, root)
        levels = [self._level([], "", root)]
        while levels:
            child = next(levels[-1].children, None)
            self.spend(1)
            if child is None:
                levels.pop()
            elif isinstance(child[1], _HOLDERS):
                key, value = _text(child[0]), child[1]
                if key is None or _is_array(value):
                    self.unnamed.append((self._path(levels, key or "?"), value))
                elif isinstance(value, StoredTensor):
                    keys = (*(level.key for level in levels[1 : _DEEPEST + 1]), key)
                    yield _Entry(self._path(levels, key), keys, *levels[-1][2:], value)
                else:
                    levels.append(self._level(levels, key, value))

    def _level(self, around: list[_Level], key: str, value: Any) -> _Level:
        depth, is_dict = len(around), isinstance(value, dict)
        dicts, free, training = around[-1][2:] if around else (0, 0, False)
        if dicts == depth and not _is_sequence(value):
            dicts, free = depth + is_dict, depth
        training = training or (is_dict and "param_groups" in value and "state" in value)
        if not isinstance(value, Record):
            return _Level(key, self._contents(value), dicts, free, training)
        state = value.state if isinstance(value.state, dict) else {}
        if "_parameters" in state:
            children = self._of_module(state)
        elif isinstance(value.kind, Symbol) and value.kind.module.startswith("__torch__"):
            children = (item for item in state.items() if not isinstance(item[1], (list, tuple)))
        else:
            children = self._contents(value)
            rest = value.args[1:] if _listed(value) else value.args
            self.unnamed.append((self._path(around, key), [rest, value.state]))
        return _Level(key, children, dicts, free, training)

    def _path(self, levels: list[_Level], key: str) -> str:
        path = ".".join([*(level.key for level in levels[1:]), key])
        self.spend(len(path) + len(levels))
        return path

    def _of_module(self, state: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
        """Yield what the state dict of a module has: parameters, then buffers, then modules."""
        names = state.get("_non_persistent_buffers_set")
        names = _listed(names) if isinstance(names, Record) else names
        self.spend(len(names or ()))
        passing = {name for name in names or () if isinstance(name, str)}
        yield from self._contents(state["_parameters"])
        buffers = self._contents(state.get("_buffers"))
        yield from ((key, buffer) for key, buffer in buffers if key not in passing)
        yield from self._contents(state.get("_modules"))

    def _contents(self, value: Any) -> Iterator[tuple[Any, Any]]:
        """Keys and values of a dictionary or sequence, or of an object that is like one."""
        if isinstance(value, dict):
            yield from value.items()
        elif isinstance(value, (list, tuple)):
            yield from self._members(value)
        elif isinstance(value, Record):
            pairs = self._members(_listed(value))
            yield from (pair for pair in pairs if not _is_key(pair[0], value.entries))
            yield from self._members(value.items)
            yield from value.entries.items()

    def _members(self, values: list[Any] | tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
        """Members of a sequence by their place, or by their names if all are pairs of two."""
        self.spend(len(values) if values and isinstance(values[0], (list, tuple)) else 1)
        named = values and all(isinstance(v, (list, tuple)) and len(v) == 2 for v in values)
        if named and len({v[0] for v in values if isinstance(v[0], str)}) == len(values):
            return ((name, value) for name, value in values)
        return iter(enumerate(values))

    def hidden(self) -> dict[str, int]:
        """How many tensors and arrays lie where a state dict has none, by the place of each."""
        found: Counter[str] = Counter()
        seen: set[int] = set()
        for path, root in self.unnamed:
            queue = [root]
            while queue:
                value = queue.pop()
                self.spend(1)
                if not isinstance(value, _HOLDERS) or id(value) in seen:
                    continue
                seen.add(id(value))
                if isinstance(value, StoredTensor) or _is_array(value):
                    found[path] += 1
                elif isinstance(value, Record):
                    queue += (value.args, value.state, value.items, value.entries)
                else:
                    queue += value.values() if isinstance(value, dict) else value
        return found


def _listed(record: Record) -> list[Any]:
    """Return the list that a set, a queue or an ordered dictionary is made from."""
    first = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return first if isinstance(first, list) else []


def _is_sequence(value: Any) -> bool:
    """Whether members are known by their place."""
    if isinstance(value, Record):
        return bool(value.items) or str(value.kind) in _SEQUENCES
    return isinstance(value, (list, tuple))


def _is_key(key: Any, entries: dict[Any, Any]) -> bool:
    return isinstance(key, str) and key in entries


def _is_array(value: Any) -> bool:
    return isinstance(value, Record) and _ARRAY.fullmatch(str(value.kind)) is not None


def _text(key: Any) -> str | None:
    """Return a key as a part of names; None if it is an object."""
    if isinstance(key, bytes):
        with suppress(UnicodeError):
            return key.decode()
    if isinstance(key, tuple):
        parts = [_text(part) for part in key]
        return None if None in parts else ".".join(map(str, parts))
    return str(key) if isinstance(key, (str, int, float)) else None


def _choose(entries: list[_Entry]) -> tuple[list[_Entry], int]:
    """Return the network's tensors, and how many of their keys name the dictionaries around it."""
    network = [entry for entry in entries if not entry.training]
    for depth in range(_DEEPEST):
        parts: dict[str, list[_Entry]] = defaultdict(list)
        for entry in network:
            if not _is_training(entry, depth):
                parts[entry.keys[depth] if entry.keys else ""].append(entry)
        network = [entry for part in parts.values() for entry in part]
        name = "state_dict" if "state_dict" in parts or len(parts) != 1 else next(iter(parts))
        if name not in parts or parts[name][0].free <= depth:
            return network, depth
        network = parts[name]
    return network, _DEEPEST


def _is_training(entry: _Entry, depth: int) -> bool:
    """Whether an entry is of a part, at some depth of dictionaries, that serves training alone."""
    inside = entry.dicts > depth and len(entry.keys) > depth + 1
    return entry.training or (inside and _TRAINING.fullmatch(entry.keys[depth]) is not None)


def _note(
    network: dict[str, StoredTensor],
    taken: tuple[str, ...],
    others: list[_Entry],
    hidden: dict[str, int],
) -> str:
    """Return what was left out: other parts, and copies of the network in what training keeps."""
    parts: dict[tuple[str, ...], list[_Entry]] = defaultdict(list)
    for entry in others:
        pairs = zip(entry.keys, taken, strict=False)
        shared = [key for key, other in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        parts[entry.keys[: len(shared) + 1]].append(entry)
    told = {}
    for keys, part in parts.items():
        if _is_training(part[0], len(keys) - 1):
            copies = prefix_counts(network.keys(), [entry.name for entry in part])
            part = part if 2 * max(copies.values(), default=0) > len(network) else []
        if part:
            told[".".join(keys)] = f"{len(part)} tensor{'s' if len(part) > 1 else ''}"
    for place, count in hidden.items():
        if not _TRAINING.fullmatch(place.partition(".")[0]):
            told[place or "its attributes"] = f"{count} in objects or NumPy arrays"
    if not told:
        return ""
    left_out = enumerate_names([f"{place[:80]!r} ({what})" for place, what in told.items()], 5)
    start = f"its {'.'.join(taken)!r} is read as the network; " if taken else ""
    return f"{start}left out: {left_out}"


def _nothing(entries: list[_Entry], hidden: dict[str, int]) -> str:
    """Why there is no network."""
    if hidden:
        return (
            f"holds no named tensors, but {sum(hidden.values())} in objects or NumPy arrays: save "
            "model.state_dict()"
        )
    if any(entry.name for entry in entries):
        return "holds what training keeps, such as an optimizer's state, and no network"
    return "holds no named tensors: save model.state_dict()"
