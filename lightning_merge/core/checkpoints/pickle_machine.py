"""A pickle machine that imports nothing and calls nothing.

A pickle is a program: its opcodes may name any function and call it, and Python's unpickler
obeys. This machine decodes the opcodes with `pickletools`, which only reads, and interprets them
over plain containers. A name stays a `Symbol` and an object of any class becomes a `Record` of its
state; both are inert. The few calls that yield tensors are passed to functions of the reader
(`rebuild`); a call that could do anything but create an object is refused. Only data spelled out
in the file is stored, so memory stays proportional to its size.
"""

import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # Python 2 names, used up to protocol 2
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from lightning_merge.core.errors import InputError

_MARK = object()
_MOST_STEPS = 5_000_000  # of one pickle; a tensor takes about forty
_MOST_PARTS = 8  # of a key that is a tuple

# Constructors of plain values that `_names_third_party_class` would refuse. They become records,
# like any other object.
_BUILTINS = ("bytearray", "complex", "dict", "frozenset", "list", "object", "range", "set", "tuple")
_PATHS = ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
_MAKERS: dict[str, tuple[str, ...]] = {
    "_codecs": ("encode",),
    "argparse": ("Namespace",),
    "builtins": _BUILTINS,
    "collections": ("Counter", "OrderedDict", "defaultdict", "deque"),
    "copyreg": ("_reconstructor",),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "functools": ("partial",),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.numeric": ("_frombuffer",),
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "torch": ("device",),
    "torch.jit._pickle": ("build_boollist", "build_doublelist", "build_intlist"),
    "types": ("SimpleNamespace",),
    "uuid": ("UUID",),
}
_PLAIN = frozenset(f"{module}.{name}" for module, names in _MAKERS.items() for name in names)


@dataclass(frozen=True, slots=True)
class Symbol:
    """The dotted name of a class or function, which is never looked up.

    Examples:
        >>> str(Symbol("torch", "device"))
        'torch.device'
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Record:
    """What a file says about an object: its class, arguments, state and items, all inert.

    Examples:
        >>> Record(Symbol("argparse", "Namespace"), state={"lr": 0.1}).state["lr"]
        0.1
    """

    kind: Symbol
    args: tuple = ()
    state: Any = None
    items: list = field(default_factory=list)
    entries: dict = field(default_factory=dict)


class OtherKey:
    """A stand-in for a dictionary key that is not hashed: an object, a huge number, nested tuples.

    Examples:
        >>> import io, pickle
        >>> content = read_pickle(io.BytesIO(pickle.dumps({(1, (2, 3)): "nested", "plain": 4})))
        >>> [isinstance(key, OtherKey) for key in content]
        [True, False]
    """


Rebuild = Mapping[str, Callable[..., Any]]


def read_pickle(
    file: BinaryIO,
    rebuild: Rebuild | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Read one pickle, from the position of `file` to the pickle's end, without running anything.

    Args:
        file: A file open for reading in binary mode.
        rebuild: The calls to honour, by dotted name of the callee.
        persistent: Resolves a persistent id (used for torch's storages).

    Returns:
        Containers and constants as they are, everything else as `Symbol` and `Record`.

    Raises:
        InputError: The pickle calls something that is not known to be harmless.
        Exception: Of many kinds if the file is damaged; the caller translates it.

    Examples:
        >>> import io, pickle
        >>> class Hostile:
        ...     def __reduce__(self):
        ...         return print, ("this never runs",)
        >>> read_pickle(io.BytesIO(pickle.dumps(Hostile())))
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: asks to call 'builtins.print' when it is read...
    """
    machine = _Machine(rebuild or {}, persistent or _no_persistent)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        machine.step(opcode.name, argument)
        if count > _MOST_STEPS:  # an empty dictionary takes one byte there, and 64 here
            raise ValueError("more objects than a checkpoint has")
    return machine.stack[-1]


def _no_persistent(key: Any) -> Any:
    raise InputError("refers to data outside the file: save it again with torch.save")


class _Machine:
    """Stack, memo and the meaning of each opcode (`pickletools` documents them)."""

    def __init__(self, rebuild: Rebuild, persistent: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.rebuild = rebuild
        self.persistent = persistent

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise InputError(f"uses the pickle opcode {opcode}: save it again with torch.save")

    def since_mark(self) -> list[Any]:
        """Remove and return the values above the topmost mark of the stack."""
        index = len(self.stack) - 1
        while self.stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise ValueError("pickle without a mark")
        values = self.stack[index + 1 :]
        del self.stack[index:]
        return values

    def take(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        if len(values) < count or _MARK in values:
            raise ValueError("pickle with too short a stack")
        del self.stack[-count:]
        return values

    def call(self, function: Any, arguments: Any) -> Any:
        """Return the stand-in for a call; the module's docstring says which calls are refused."""
        if not isinstance(function, Symbol) or not isinstance(arguments, tuple):
            raise InputError("calls something without a name: it is damaged or hostile")
        name = str(function)
        if name in self.rebuild:
            return self.rebuild[name](*arguments)
        if name == "torch._tensor._rebuild_from_type_v2":
            return self.call(arguments[0], arguments[2])  # a subclass of Tensor: its content
        if name == "collections.OrderedDict" and not arguments:
            return {}
        if name == "_codecs.encode" and isinstance(arguments[0], str) and arguments[1] == "latin1":
            return arguments[0].encode("latin1")  # bytes, as protocol 2 spells them
        if name in _PLAIN or _names_third_party_class(function):
            return Record(function, arguments)
        raise InputError(
            f"asks to call '{name}' when it is read. Nothing in a file is ever executed here. "
            "If you trust its author, load it where it was made and save model.state_dict()"
        )

    def build(self) -> None:
        target, state = self.stack[-2], self.take(1)[0]
        if isinstance(target, Record):
            target.state = state

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        (target.items if isinstance(target, Record) else target).extend(values)

    def update(self, values: list[Any]) -> None:
        """Insert pairs; hashing arbitrary keys, which may be deeply nested, could crash Python."""
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Record) else target
        for key, value in zip(values[::2], values[1::2], strict=True):
            entries[key if _is_simple(key) else OtherKey()] = value

    def make_dict(self) -> None:
        values = self.since_mark()
        self.push({})
        self.update(values)

    def make_object(self) -> None:
        function, *arguments = self.since_mark()
        self.push(self.call(function, tuple(arguments)))

    def push(self, value: Any) -> None:
        self.stack.append(value)


def _names_third_party_class(symbol: Symbol) -> bool:
    """Whether calling `symbol` would create an object, as far as its name can tell.

    Enumerations, settings and the like are pickled as calls of their class and become records.
    Refusing the rest adds no protection (no call is ever made) but tells the user that the file is
    hostile; from the standard library, only `_MAKERS` pass.
    """
    root = symbol.module.partition(".")[0]
    return root not in sys.stdlib_module_names and symbol.name.rpartition(".")[2][:1].isupper()


def _is_simple(key: Any) -> bool:
    """Whether a key, or each of the few parts of a tuple, can be hashed quickly."""
    if isinstance(key, tuple):
        few = len(key) <= _MOST_PARTS and not any(isinstance(part, tuple) for part in key)
        return few and all(map(_is_simple, key))
    if isinstance(key, int):
        return key.bit_length() < 64
    return key is None or isinstance(key, (str, float, bytes, Symbol))


def _symbol(module: Any, name: Any) -> Symbol:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("pickle with a name that is not text")
    if not module.isprintable() or not name.isprintable():  # may become part of a message
        raise ValueError("pickle with a name that is not printable")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return Symbol(module, name)


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,  # only the members of sets matter
    "MARK": lambda: _MARK,
}
# Opcodes that push their own argument: numbers, text and bytes.
_LITERALS = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg and not opcode.stack_before
    if opcode.stack_after not in ([], [pickletools.anyobject])
)
_ACTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "PUT": lambda m, key: m.memo.__setitem__(key, m.stack[-1]),
    "BINPUT": lambda m, key: m.memo.__setitem__(key, m.stack[-1]),
    "LONG_BINPUT": lambda m, key: m.memo.__setitem__(key, m.stack[-1]),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "GET": lambda m, key: m.push(m.memo[key]),
    "BINGET": lambda m, key: m.push(m.memo[key]),
    "LONG_BINGET": lambda m, key: m.push(m.memo[key]),
    "LIST": lambda m, _: m.push(m.since_mark()),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.take(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.take(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.take(3))),
    "FROZENSET": lambda m, _: m.push(m.since_mark()),
    "DICT": lambda m, _: m.make_dict(),
    "APPEND": lambda m, _: m.extend(m.take(1)),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "ADDITEMS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.update(m.take(2)),
    "SETITEMS": lambda m, _: m.update(m.since_mark()),
    "GLOBAL": lambda m, name: m.push(_symbol(*name.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: m.push(_symbol(*m.take(2))),
    "INST": lambda m, name: m.push(m.call(_symbol(*name.split(" ", 1)), tuple(m.since_mark()))),
    "OBJ": lambda m, _: m.make_object(),
    "REDUCE": lambda m, _: m.push(m.call(*m.take(2))),
    "NEWOBJ": lambda m, _: m.push(Record(*m.take(2))),
    "NEWOBJ_EX": lambda m, _: m.push(Record(*m.take(3)[:2])),
    "BUILD": lambda m, _: m.build(),
    "PERSID": lambda m, key: m.push(m.persistent(key)),
    "BINPERSID": lambda m, _: m.push(m.persistent(m.take(1)[0])),
}
