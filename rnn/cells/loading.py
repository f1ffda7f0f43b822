"""Execution of cells' source texts, and the classes that they define.

What is executed is the text whose hash belongs to a study, not the file that it was read from,
which may have changed since or be on another machine.
"""

import linecache
import sys
import threading
from types import ModuleType

import torch
from torch import nn

from rnn.cells.options import cell_options
from rnn.cells.source import CellSource
from rnn.config import CellConfig
from rnn.errors import CellError

_loaded: dict[tuple[str, str], tuple[CellSource, type[nn.Module]]] = {}
"""Source and class by the hash of the text and the name of the class."""

_lock = threading.RLock()


def load_cell(source: CellSource) -> type[nn.Module]:
    """Execute a cell's source text as a module, once per process, and register its class.

    Raises:
        CellError: if the text raises an exception, has no such class, or the class is not an
            ``nn.Module`` with options as :func:`rnn.cells.options.cell_options` reads them.
    """
    key = source.sha256, source.name
    with _lock:
        if key not in _loaded:
            cls = _find_class(source, _execute(source))
            cell_options(cls)
            _loaded[key] = source, cls
        return _loaded[key][1]


def cell_class(config: CellConfig) -> type[nn.Module]:
    """Return the class of a network's cell.

    Raises:
        CellError: if it is not loaded.
    """
    return _find_loaded(config)[1]


def loaded_source(config: CellConfig) -> CellSource:
    """Return the source of a network's cell.

    Raises:
        CellError: if it is not loaded.
    """
    return _find_loaded(config)[0]


def _find_loaded(config: CellConfig) -> tuple[CellSource, type[nn.Module]]:
    found = _loaded.get((config.sha256, config.cell))
    if found is None:
        raise CellError(
            f"cell {config.cell} of source {config.sha256[:12]} is not loaded: load its source "
            "first"
        )
    return found


def _execute(source: CellSource) -> ModuleType:
    # The name is that of no file: pickle finds the module in sys.modules.
    name = f"cell_{source.sha256[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    filename = f"<{source.spec.rpartition(':')[0]} {source.sha256[:12]}>"
    code = source.compile(filename)
    module = ModuleType(name)
    module.__file__ = filename
    # Tracebacks and inspect.getsource read lines from here; without a time they never expire.
    lines = source.text.splitlines(keepends=True)
    linecache.cache[filename] = len(source.text), None, lines, filename
    sys.modules[name] = module
    dtype = torch.get_default_dtype()
    try:
        exec(code, module.__dict__)  # type: ignore[arg-type]
        if torch.get_default_dtype() != dtype:
            raise RuntimeError("torch.set_default_dtype changes the networks of other cells")
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise CellError(
            f"cell {source.spec!r} cannot be loaded: its file raises {describe_error(error)}"
        ) from error
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        torch.set_default_dtype(dtype)
    return module


def _find_class(source: CellSource, module: ModuleType) -> type[nn.Module]:
    found = vars(module).get(source.name)
    if found is None:
        classes = [
            name
            for name, value in vars(module).items()
            if _is_module_class(value) and value.__module__ == module.__name__
        ]
        more = [f"{len(classes) - 10} others"] if len(classes) > 10 else []
        listed = " or ".join([*classes[:10], *more])
        expected = f"expected {listed}" if classes else "it has no nn.Module"
        raise CellError(f"cell {source.spec!r}: its file has no class {source.name}, {expected}")
    if not _is_module_class(found):
        raise CellError(
            f"cell {source.spec!r}: {source.name} is not a class of torch.nn.Module: expected "
            f"class {source.name}(nn.Module)"
        )
    cls: type[nn.Module] = found
    return cls


def _is_module_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module)


def describe_error(error: BaseException) -> str:
    """Return an exception's class and message in one line, and the last line of a cell in it."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:199]}…"
    message = f"{type(error).__name__}{f' ({text})' if text else ''}"
    line, traceback = 0, error.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if str(module).startswith("cell_"):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f"{message} in line {line}" if line else message
