"""The network in a file of torch.save: its tensors under the names of a state dict.

No class is imported, so a pickled module has no `state_dict` method to call: its names come from
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
"""Parts that training stores beside a network in order to resume."""
_ARRAY = re.compile(r"numpy\._?core\.(multiarray\._reconstruct|numeric\._frombuffer)")
_SEQUENCES = frozenset({"builtins.set", "builtins.frozenset", "collections.deque"})
_HOLDERS = (StoredTensor, Record, dict, list, tuple)


class FileContent(NamedTuple):
    """The tensors that a file holds.

    Attributes:
        network: Tensors of the network, by the names of its state dict.
        parts: All tensors by their full path, to select another part than the network.
        note: What was left out and a user should know; often empty.

    Examples:
        >>> FileContent(network={}, parts={}, note="left out: 'ema' (2 tensors)").note
        "left out: 'ema' (2 tensors)"
    """

    network: dict[str, StoredTensor]
    parts: dict[str, StoredTensor]
    note: str


def find_network(root: Any, size: int) -> FileContent:
    """Find the tensors of a network.

    They are those of the whole object or, if it is a dictionary, of its `state_dict` or its only
    part with tensors; what training stores beside it is left out. If several parts have tensors
    (model and EMA, teacher and student), all are kept, and their names begin with the part's name.
    Members of lists, tuples and sets are named by position, or by name if they are pairs of name
    and value.

    Args:
        root: The object, as `read_pickle` returns it.
        size: Bytes of its file.

    Raises:
        InputError: No tensor has a name, or two have the same one.
        ValueError: The objects contain each other endlessly.

    Examples:
        >>> from pathlib import Path
        >>> import torch
        >>> from lightning_merge.core.checkpoints.source import SourceFile
        >>> from lightning_merge.core.checkpoints.stored_tensor import Storage
        >>> _ = Path("values").write_bytes(bytes(8))
        >>> storage = Storage(SourceFile("values"), torch.float32, size=8, start=0)
        >>> weight = StoredTensor(storage, torch.float32, (2,), (1,), offset=0)
        >>> list(find_network({"state_dict": {"weight": weight}, "epoch": 3}, size=100).network)
        ['weight']
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
    return FileContent(tensors, parts, _note(tensors, taken, others, hidden))


class _Entry(NamedTuple):
    """A tensor that has a name.

    Attributes:
        name: Its full path.
        keys: The first keys of the path.
        dicts: How many containers on the path, from the first on, are plain dictionaries.
        free: How many of the keys may be removed because the tensors below have names of their own.
        training: Whether it belongs to an optimizer.
        tensor: Where it is stored.
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
    """A walk over objects, which may contain each other.

    Attributes:
        left: Steps and letters that may still be spent; the size of an honest file bounds them.
        unnamed: Objects that a state dict has no name for, with the path of each.
    """

    left: int
    unnamed: list[tuple[str, Any]] = field(default_factory=list)

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise ValueError("more objects than a checkpoint has, or one within itself")

    def named(self, root: Any) -> Iterator[_Entry]:
        """Yield tensors in containers and modules, in the order of `state_dict()`."""
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
        """Yield the members of a module's state dict: parameters, then buffers, then submodules."""
        names = state.get("_non_persistent_buffers_set")
        names = _listed(names) if isinstance(names, Record) else names
        self.spend(len(names or ()))
        passing = {name for name in names or () if isinstance(name, str)}
        yield from self._contents(state["_parameters"])
        buffers = self._contents(state.get("_buffers"))
        yield from ((key, buffer) for key, buffer in buffers if key not in passing)
        yield from self._contents(state.get("_modules"))

    def _contents(self, value: Any) -> Iterator[tuple[Any, Any]]:
        """Yield keys and values of a dictionary or sequence, or of an object that is like one."""
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
        """Return members of a sequence by position, or by name if all are pairs."""
        self.spend(len(values) if values and isinstance(values[0], (list, tuple)) else 1)
        named = values and all(isinstance(v, (list, tuple)) and len(v) == 2 for v in values)
        if named and len({v[0] for v in values if isinstance(v[0], str)}) == len(values):
            return ((name, value) for name, value in values)
        return iter(enumerate(values))

    def hidden(self) -> dict[str, int]:
        """Count the tensors and arrays that a state dict would not contain, by path."""
        counts: Counter[str] = Counter()
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
                    counts[path] += 1
                elif isinstance(value, Record):
                    queue += (value.args, value.state, value.items, value.entries)
                else:
                    queue += value.values() if isinstance(value, dict) else value
        return counts


def _listed(record: Record) -> list[Any]:
    """Return the list from which a set, a deque or an ordered dictionary is created."""
    first = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return first if isinstance(first, list) else []


def _is_sequence(value: Any) -> bool:
    """Whether members are identified by position."""
    if isinstance(value, Record):
        return bool(value.items) or str(value.kind) in _SEQUENCES
    return isinstance(value, (list, tuple))


def _is_key(key: Any, entries: dict[Any, Any]) -> bool:
    return isinstance(key, str) and key in entries


def _is_array(value: Any) -> bool:
    return isinstance(value, Record) and _ARRAY.fullmatch(str(value.kind)) is not None


def _text(key: Any) -> str | None:
    """Return a key as part of a name; None if it is an object."""
    if isinstance(key, bytes):
        with suppress(UnicodeError):
            return key.decode()
    if isinstance(key, tuple):
        parts = [_text(part) for part in key]
        return None if None in parts else ".".join(map(str, parts))
    return str(key) if isinstance(key, (str, int, float)) else None


def _choose(entries: list[_Entry]) -> tuple[list[_Entry], int]:
    """Return the network's tensors, and how many of their keys name the enclosing dictionaries."""
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
    """Whether an entry belongs to a part, at a depth of dictionaries, that only training uses."""
    inside = entry.dicts > depth and len(entry.keys) > depth + 1
    return entry.training or (inside and _TRAINING.fullmatch(entry.keys[depth]) is not None)


def _note(
    network: dict[str, StoredTensor],
    taken: tuple[str, ...],
    others: list[_Entry],
    hidden: dict[str, int],
) -> str:
    """Describe what was left out: other parts, and copies of the network kept for training."""
    parts: dict[tuple[str, ...], list[_Entry]] = defaultdict(list)
    for entry in others:
        pairs = zip(entry.keys, taken, strict=False)
        shared = [key for key, other in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        parts[entry.keys[: len(shared) + 1]].append(entry)
    left = {}
    for keys, part in parts.items():
        if _is_training(part[0], len(keys) - 1):
            copies = prefix_counts(network.keys(), [entry.name for entry in part])
            part = part if 2 * max(copies.values(), default=0) > len(network) else []
        if part:
            left[".".join(keys)] = f"{len(part)} tensor{'s' if len(part) > 1 else ''}"
    for place, count in hidden.items():
        if not _TRAINING.fullmatch(place.partition(".")[0]):
            left[place or "its attributes"] = f"{count} in objects or NumPy arrays"
    if not left:
        return ""
    left_out = enumerate_names([f"{place[:80]!r} ({what})" for place, what in left.items()], 5)
    start = f"its {'.'.join(taken)!r} is read as the network; " if taken else ""
    return f"{start}left out: {left_out}"


def _nothing(entries: list[_Entry], hidden: dict[str, int]) -> str:
    """Explain why there is no network."""
    if hidden:
        return (
            f"holds no named tensors, but {sum(hidden.values())} in objects or NumPy arrays: save "
            "model.state_dict() instead"
        )
    if any(entry.name for entry in entries):
        return (
            "holds only the state of training, such as an optimizer's, and no network: give the "
            "network's checkpoint"
        )
    return "holds no named tensors: save model.state_dict() instead"
