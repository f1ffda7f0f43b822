"""Users' own cells and tasks: their source files, and the classes that these define.

Either is named by a *spec*: ``path/to/file.py:Class``, or ``package.module:Class`` for a module
that is installed. What is executed is the text whose hash belongs to a study, not the file that it
was read from, which may have changed since or be on another machine.
"""

import hashlib
import linecache
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from rnn.errors import CellError, TaskError, UserError, find_user_line


@dataclass(frozen=True)
class CodeSource:
    """The source of a class.

    Attributes:
        kind: what the class is, in messages.
        base: class that it is derived from.
        error: exception for what is wrong with it.
        spec: where it came from, as it was given.
        name: name of the class.
        text: content of the file.
    """

    kind: ClassVar[str]
    base: ClassVar[type]
    error: ClassVar[type[UserError]]

    spec: str
    name: str
    text: str

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class CellSource(CodeSource):
    """The source of a cell."""

    kind = "cell"
    base = nn.Module
    error = CellError


class TaskSource(CodeSource):
    """The source of a task."""

    kind = "task"
    base = object
    error = TaskError


_Source = TypeVar("_Source", bound=CodeSource)

_loaded: dict[tuple[str, str, str], tuple[CodeSource, Any]] = {}
"""Source and class by its kind, the hash of the text and its name."""


def read_source(spec: str, folder: Path, kind: type[_Source]) -> _Source:
    """Read a source; nothing is executed.

    Args:
        spec: ``path/to/file.py:Class`` or ``package.module:Class``.
        folder: folder that a path is relative to.
        kind: what the class is.

    Raises:
        CellError, TaskError: if the spec is malformed, or the file is missing or not UTF-8.
    """
    path = locate_source(spec, folder, kind)
    shown = f"{kind.kind} {spec[:200]!r}"
    try:
        if not path.is_file():  # a pipe would block
            raise kind.error(f"{shown} not found: expected a file {path}; check the path")
        return kind(spec, spec.rpartition(":")[2], path.read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise kind.error(
            f"{shown} cannot be read ({error}): expected a file of text in UTF-8"
        ) from error


def locate_source(spec: str, folder: Path, kind: type[CodeSource]) -> Path:
    """Return the absolute path of the file of a spec, which need not exist.

    Raises:
        CellError, TaskError: if the spec is malformed, or there is no such module.
    """
    place, _, name = spec.rpartition(":")
    is_path = place.endswith(".py")
    if not name.isidentifier() or not (is_path or all(map(str.isidentifier, place.split(".")))):
        raise kind.error(
            f"{kind.kind} {spec[:200]!r} not understood: expected path/to/file.py:Class or "
            "package.module:Class"
        )
    return folder.absolute() / place if is_path else _find_module(spec, place, kind)


def _find_module(spec: str, module: str, kind: type[CodeSource]) -> Path:
    """Return the source file of an installed module, without importing its packages."""
    folders: Sequence[str] | None = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        specs = (finder.find_spec(name, folders) for finder in sys.meta_path)
        found = next(filter(None, specs), None)
        if found is None:
            raise kind.error(
                f"{kind.kind} {spec!r} not found (no module {name}): expected an installed module, "
                "or a path that ends in .py"
            )
        folders = found.submodule_search_locations or []
    if found is None or not str(found.origin).endswith(".py"):
        raise kind.error(
            f"{kind.kind} {spec!r} has no source file: expected {module} to be a module in Python"
        )
    return Path(str(found.origin))


def load_class(source: CodeSource) -> Any:
    """Execute a source text as a module, once per process, and register its class.

    By the name of a task, the text may have something else, such as a dataset.

    Raises:
        CellError, TaskError: if the text raises an exception, or has no such class.
    """
    key = source.kind, source.sha256, source.name
    if key not in _loaded:
        _loaded[key] = source, _find_class(source, _execute(source))
    return _loaded[key][1]


def loaded_source(name: str, sha256: str, kind: type[CodeSource] = CellSource) -> CodeSource:
    """Return the loaded source of a class with a hash.

    Raises:
        CellError, TaskError: if it is not loaded.
    """
    key = kind.kind, sha256, name
    if key not in _loaded:
        raise kind.error(
            f"{kind.kind} {name} of source {sha256[:12]} is not loaded: load its source first"
        )
    return _loaded[key][0]


def _execute(source: CodeSource) -> ModuleType:
    # The name is that of no file: pickle finds the module in sys.modules.
    name = f"{source.kind}_{source.sha256[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = filename = f"<{source.spec.rpartition(':')[0]} {source.sha256[:12]}>"
    # Tracebacks and inspect.getsource read lines from here; without a time they never expire.
    lines = source.text.splitlines(keepends=True)
    linecache.cache[filename] = len(source.text), None, lines, filename
    dtype = torch.get_default_dtype()
    try:
        # Bytes, as Python reads a file: with a byte order mark or a declared encoding.
        exec(compile(source.text.encode(), filename, "exec", dont_inherit=True), vars(module))
        if torch.get_default_dtype() != dtype:
            raise RuntimeError("torch.set_default_dtype changes the networks of other cells")
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):  # an interruption is not the file's error
            raise
        raise source.error(
            f"{source.kind} {source.spec!r} cannot be loaded: its file raises "
            f"{describe_error(error)}"
        ) from error
    finally:
        torch.set_default_dtype(dtype)
    return module


def _find_class(source: CodeSource, module: ModuleType) -> Any:
    if source.base is object and source.name in vars(module):
        return vars(module)[source.name]
    classes = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, source.base)
    }
    if source.name not in classes:
        own = [name for name, cls in classes.items() if cls.__module__ == module.__name__]
        of_base, base = (
            (" of torch.nn.Module", "(nn.Module)") if source.kind == "cell" else ("", "")
        )
        raise source.error(
            f"{source.kind} {source.spec!r}: its file has no class {source.name}{of_base}: "
            f"expected {' or '.join(own) or f'class {source.name}{base}'}"
        )
    return classes[source.name]


def describe_error(error: BaseException) -> str:
    """Return an exception's class and message in one line, and the last line of a user's file."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:199]}…"
    message = f"{type(error).__name__}{f' ({text})' if text else ''}"
    line = find_user_line(error)
    return f"{message} in line {line}" if line else message
