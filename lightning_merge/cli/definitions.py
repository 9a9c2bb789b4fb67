"""Functions and classes of this package, read from their source without importing them.

Importing most modules takes seconds, as they import torch and Lightning; reading the source takes
milliseconds.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import lightning_merge
from lightning_merge.core.facts import Facts, Needs


class Definition(NamedTuple):
    """A statement that defines a name, and its module."""

    module: str
    node: ast.stmt

    @property
    def doc(self) -> str:
        """The docstring; empty if there is none."""
        assert isinstance(self.node, ast.ClassDef | ast.FunctionDef)
        return ast.get_docstring(self.node) or ""

    @property
    def described(self) -> dict[str, str]:
        """The docstring's description of each argument, on one line each."""
        section = re.search(r"^Args:\n((?: .*\n?|\n)*)", self.doc, re.MULTILINE)
        found = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section[1] if section else "", re.M)
        return {name: " ".join(text.split()) for name, text in found}

    @property
    def bases(self) -> list["Definition"]:
        """The base classes defined in this package."""
        assert isinstance(self.node, ast.ClassDef)
        names = [base.id for base in self.node.bases if isinstance(base, ast.Name)]
        return [base for name in names if (base := find(self.module, name))]

    def is_a(self, name: str) -> bool:
        """Whether this is a class of that name or derives from one."""
        return getattr(self.node, "name", "") == name or any(b.is_a(name) for b in self.bases)

    @property
    def facts(self) -> Facts:
        """The facts of the class or of its nearest base class.

        Raises:
            LookupError: None of them has facts.
        """
        assert isinstance(self.node, ast.ClassDef)
        for statement in self.node.body:
            if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "facts":
                assert isinstance(statement.value, ast.Call)
                given = {str(k.arg): _fact(k.value) for k in statement.value.keywords}
                return Facts(**given)
        if not self.bases:
            raise LookupError("facts")
        return self.bases[0].facts

    @property
    def abstract(self) -> set[str]:
        """The names of the methods that subclasses have to define."""
        assert isinstance(self.node, ast.ClassDef)
        own = {f.name: f for f in self.node.body if isinstance(f, ast.FunctionDef)}
        marked = {
            name
            for name, function in own.items()
            if any(ast.unparse(d) == "abstractmethod" for d in function.decorator_list)
        }
        return set().union(*(base.abstract for base in self.bases)) - own.keys() | marked


@cache
def definitions(module: str) -> dict[str, ast.stmt]:
    """Return the statements that define or import the names of a module, by name."""
    found: dict[str, ast.stmt] = {}
    for statement in ast.parse(_file(module).read_text(encoding="utf-8")).body:
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                found[name] = statement
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = statement
            case ast.ImportFrom(names=names):
                found |= {alias.asname or alias.name: statement for alias in names}
    return found


def find(module: str, name: str) -> Definition | None:
    """Return the definition of a module's name, following imports within the package.

    Returns:
        None if another package defines the name.
    """
    node = definitions(module).get(name)
    if not isinstance(node, ast.ImportFrom):
        return None if node is None else Definition(module, node)
    if not str(node.module).startswith("lightning_merge."):
        return None
    original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    return find(str(node.module), original)


def kinds_of(package: str, kind: str) -> dict[str, Definition]:
    """Return the concrete classes of a package that derive from `kind`, by name."""
    return {name: found for name, found in sorted(_classes(package)) if _counts(name, found, kind)}


def keys_of(module: str, name: str) -> list[Any]:
    """Return the keys of the dict that a module assigns to a name, possibly inside a call."""
    found = next(n for n in ast.walk(definitions(module)[name]) if isinstance(n, ast.Dict))
    return [_constant(module, key) for key in found.keys if key is not None]


def _constant(module: str, value: ast.expr) -> Any:
    """Return a constant, written as a literal or as the name of a constant in the module."""
    if isinstance(value, ast.Name):
        assigned = definitions(module)[value.id]
        assert isinstance(assigned, ast.Assign)
        value = assigned.value
    return ast.literal_eval(value)


def _fact(value: ast.expr) -> Any:
    """Return the value of a constant, or of a union of members of `Needs`."""
    match value:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fact(left) | _fact(right)
        case ast.Attribute(value=ast.Name(id="Needs"), attr=name):
            return Needs[name]
    return ast.literal_eval(value)


def _counts(name: str, found: Definition, kind: str) -> bool:
    return name != kind and found.is_a(kind) and not found.abstract


def _classes(package: str) -> Iterator[tuple[str, Definition]]:
    for file in _file(package).parent.glob("*.py"):
        module = f"{package}.{file.stem}"
        for name, node in definitions(module).items():
            if isinstance(node, ast.ClassDef):
                yield name, Definition(module, node)


def _file(module: str) -> Path:
    """Return the source file of a module of this package."""
    _, *parts = module.split(".")
    paths = [Path(root, *parts) for root in lightning_merge.__path__]
    files = [file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")]
    return next(file for file in files if file.is_file())
