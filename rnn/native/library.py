"""The C library: compiled once on a machine, for its CPU, and loaded.

A compiler is not required: without one, or if ``RNN_SEARCH_NATIVE=0`` is set, PyTorch computes the
same.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from rnn.config import GatedOptions, Precision
from rnn.network import network_shapes

SWITCH = "RNN_SEARCH_NATIVE"
"""Environment variable that switches the library off if it is 0."""

_EVERY_OPTION = GatedOptions.of_largest()

MAPS = [
    name.removeprefix("layers.0.")
    for name in network_shapes(_EVERY_OPTION.network(layers=1, state_size=1)).linear_maps
    if name.startswith("layers.0.")
]
"""Linear maps of a layer: the fields of struct Layer."""

OPTIONS = [
    name
    for name in dir(_EVERY_OPTION)
    if isinstance(getattr(_EVERY_OPTION, name), bool) and name not in MAPS
]
"""Boolean attributes of a config but whether it has a map: fields of struct Network."""

_FOLDER = Path(__file__).parent
_SOURCES = ("step.c", "scan.c", "sequence.c")
# -ffast-math gains nothing, since the sums of the softmax are written side by side; -funroll-loops
# makes networks of 256 states a fifth slower.
_FLAGS = [
    f"-DMAPS={','.join(MAPS)}",
    f"-DOPTIONS={','.join(OPTIONS)}",
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
]
_THREADS = ["-fopenmp"]

_FUNCTIONS = {
    "rnn_step": (ctypes.c_int, ctypes.c_void_p),
    "rnn_scratch_size": (ctypes.c_int64, ctypes.c_void_p),
    "rnn_packed_size": (ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
    "rnn_sequence": (ctypes.c_int, ctypes.c_void_p, ctypes.c_int),
    # The same in each library, whatever its precision:
    "rnn_scan_float": (None, ctypes.c_void_p),
    "rnn_scan_double": (None, ctypes.c_void_p),
    "rnn_scan_gradient_float": (None, ctypes.c_void_p),
    "rnn_scan_gradient_double": (None, ctypes.c_void_p),
}
"""Types of the result and the arguments of each function."""


def load_library(precision: Precision) -> ctypes.CDLL | None:
    """Load the library for a precision, compiled before or now; None if there is none."""
    return _load(precision)[0]


def library_error(precision: Precision) -> str | None:
    """Return in one line why a precision has no library, if it could have one."""
    return _load(precision)[1]


@cache
def _load(precision: Precision) -> tuple[ctypes.CDLL | None, str | None]:
    supported = precision == "fp32" or (precision == "bf16" and _multiplies_bf16())
    if not supported or os.environ.get(SWITCH) == "0":
        return None, None
    try:
        return _open(_compiled(_definitions(precision))), None
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
        return None, _describe(error)


def _open(path: Path) -> ctypes.CDLL:
    """Open a compiled library and declare its functions."""
    library = ctypes.CDLL(str(path))
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def _multiplies_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported())


@cache
def multiplies_tiles() -> bool:
    """Return whether the CPU has AMX for bfloat16, and the system lets this process use it."""
    return bool(torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())


def _definitions(precision: Precision) -> list[str]:
    if precision == "fp32":
        return []
    return ["-DBF16"] if multiplies_tiles() else ["-DBF16", "-DNO_AMX"]


def _compiled(definitions: Sequence[str]) -> Path:
    """Return the compiled library, from the user's cache if it is there."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        raise FileNotFoundError(f"no C compiler {' '.join(compiler)!r}: install one, or set CC")
    name = f"native-{_identity(compiler, definitions)}.so"
    try:
        cached = _cache_folder() / name
        if cached.is_file():
            return cached
        cached.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A folder of its own, from which the finished file is moved: several workers may compile.
        with tempfile.TemporaryDirectory(dir=cached.parent, prefix="native-") as folder:
            return _compile(compiler, definitions, Path(folder) / name).replace(cached)
    except (OSError, RuntimeError):  # the user has no home, or one that cannot be written to
        # Nobody else can write to it. It is removed at the end of the process.
        _temporary.append(tempfile.TemporaryDirectory(prefix="rnn-search-"))
        return _compile(compiler, definitions, Path(_temporary[-1].name) / name)


def _cache_folder() -> Path:
    """Return the folder of this user's caches (XDG Base Directory Specification)."""
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path.home() / ".cache") / "rnn-search"


_temporary: list["tempfile.TemporaryDirectory[str]"] = []


def _compile(compiler: Sequence[str], definitions: Sequence[str], target: Path) -> Path:
    sources = [str(_FOLDER / source) for source in _SOURCES]
    for threads in (_THREADS, []):  # not every compiler has OpenMP
        command = [*compiler, *_FLAGS, *threads, *definitions, *sources, "-o", str(target), "-lm"]
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",  # compilers print paths and translated messages in any encoding
            check=False,
        )
        if result.returncode == 0:
            with target.open("rb") as file:
                os.fsync(file.fileno())  # a part of a library, as after a power cut, would crash
            return target
    raise subprocess.CalledProcessError(result.returncode, command, result.stdout, result.stderr)


def _identity(compiler: Sequence[str], definitions: Sequence[str]) -> str:
    """Return digits that change with the source, the way to compile it, and the kind of CPU."""
    digest = hashlib.sha256(repr((compiler, _FLAGS, _THREADS, definitions, _cpu())).encode())
    for source in sorted([*_FOLDER.glob("*.c"), *_FOLDER.glob("*.h")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    """Return what identifies the instructions of this CPU: folders may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(kinds)])


def _describe(error: Exception) -> str:
    """Return an error in one line: of a compiler that fails, the first of its messages."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or "").splitlines()
        messages = [line for line in lines if "error" in line or "failed" in line]
        return (
            f"{error.cmd[0]} failed: {messages[0] if messages else f'exit code {error.returncode}'}"
        )
    return str(error)
