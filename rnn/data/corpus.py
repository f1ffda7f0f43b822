"""Corpora as raw bytes: the running Python's standard library, enwik8, or any file."""

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rnn.data import download
from rnn.errors import CorpusError

ByteArray = npt.NDArray[np.uint8]

TokenArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""Tokens of a text: bytes, or uint16 for a larger vocabulary."""

_EXCLUDED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
}


@dataclass(frozen=True)
class Corpus:
    """A text, split by position: the first 90% train, then 5% validation and 5% test.

    Attributes:
        name: ``stdlib``, ``enwik8``, or the path of a file.
        text: bytes (length,), memory-mapped if they come from a file.
    """

    name: str
    text: ByteArray

    @cached_property
    def sha256(self) -> str:
        """The text's SHA-256, in hexadecimal."""
        return hashlib.sha256(self.text.data).hexdigest()

    @property
    def split(self) -> tuple[int, int]:
        """The positions at which validation and test begin."""
        return len(self.text) * 90 // 100, len(self.text) * 95 // 100

    @property
    def train(self) -> ByteArray:
        """The first 90%."""
        return self.text[: self.split[0]]

    @property
    def validation(self) -> ByteArray:
        """The next 5%."""
        return self.text[self.split[0] : self.split[1]]

    @property
    def test(self) -> ByteArray:
        """The last 5%."""
        return self.text[self.split[1] :]


def gather_windows(text: TokenArray, starts: npt.NDArray[np.int64], length: int) -> TokenArray:
    """Gather the windows of a text that begin at given positions.

    Args:
        text: tokens (n,).
        starts: positions (B,), each at most n − length.
        length: number of tokens of a window.

    Returns:
        Tokens (length, B), one row per time step.
    """
    windows = np.lib.stride_tricks.sliding_window_view(text, length)[starts]  # (B, length)
    return np.ascontiguousarray(windows.T)


def load_corpus(name: str) -> Corpus:
    """Load a corpus by name or path.

    Args:
        name: ``stdlib`` (the sources of the running Python's standard library), ``enwik8``
            (downloaded on first use) or the path of a file.

    Raises:
        CorpusError: if the file is missing, empty or unreadable, or the download fails.
    """
    if name == "stdlib":
        return Corpus(name, np.frombuffer(b"".join(_library_sources()), dtype=np.uint8))
    if name == "enwik8":
        path = download.fetch_enwik8()
        corpus = Corpus(name, _memmap(path))
        # The file in the cache may have been changed since it was unpacked.
        if corpus.sha256 != download.SHA256:
            raise CorpusError(
                f"{path} has the SHA-256 {corpus.sha256}: expected {download.SHA256}; "
                "remove the file to download it again"
            )
        return corpus
    path = Path(name)
    try:
        path = path.expanduser().resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError):  # not a possible file name
        is_file = False
    if not is_file:
        raise CorpusError(
            f"corpus {name!r} not found: expected 'stdlib', 'enwik8' or a path to a file"
        )
    return Corpus(str(path), _memmap(path))


def _memmap(path: Path) -> ByteArray:
    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except ValueError as error:  # raised by numpy for an empty file
        raise CorpusError(f"corpus {path} is empty") from error
    except OSError as error:
        raise CorpusError(f"corpus {path} cannot be read ({error.strerror})") from error


def _library_sources() -> Iterator[bytes]:
    """Yield the standard library's modules by path, without tests and installed packages.

    Together they are about 10 MB of English and code, the same for one version of Python.
    """
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted((path.relative_to(library).as_posix(), path) for path in library.rglob("*.py"))
    for relative, path in modules:
        if not _EXCLUDED_FOLDERS.intersection(relative.split("/")[:-1]):
            yield path.read_bytes()
