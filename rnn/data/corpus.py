"""Texts to train on: the running Python's own library, enwik8, or any file, as raw bytes."""

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

Bytes = npt.NDArray[np.uint8]

TokenArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""Text in symbols: bytes, or the tokens of a larger vocabulary."""

_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """A text and its split by position: the first 90% train, then 5% validation and 5% test.

    Attributes:
        name: ``stdlib``, ``enwik8``, or the path of a file.
        text: (length,) bytes, memory-mapped where they come from a file.
    """

    name: str
    text: Bytes

    @cached_property
    def sha256(self) -> str:
        """The text's SHA-256, in hexadecimal."""
        return hashlib.sha256(self.text.data).hexdigest()

    @property
    def split(self) -> tuple[int, int]:
        """The positions at which validation and test begin."""
        return len(self.text) * 90 // 100, len(self.text) * 95 // 100

    @property
    def train(self) -> Bytes:
        """The first 90%."""
        return self.text[: self.split[0]]

    @property
    def validation(self) -> Bytes:
        """The 5% after that."""
        return self.text[self.split[0] : self.split[1]]

    @property
    def test(self) -> Bytes:
        """The last 5%."""
        return self.text[self.split[1] :]


def gather_windows(text: TokenArray, starts: npt.NDArray[np.int64], length: int) -> TokenArray:
    """Gather the windows of a text that begin at the starts.

    Args:
        text: (n,) symbols.
        starts: (B,) positions, each at most n − length.
        length: of each window, in symbols.

    Returns:
        (length, B) symbols: a row a time step.
    """
    windows = np.lib.stride_tricks.sliding_window_view(text, length)[starts]  # (B, length)
    return np.ascontiguousarray(windows.T)


def load_corpus(name: str) -> Corpus:
    """Open a corpus by its name or path.

    Args:
        name: ``stdlib`` (the running Python's library sources), ``enwik8`` (downloaded on first
            use) or the path of any file.

    Raises:
        CorpusError: if the file is missing, empty or unreadable, or a download failed.
    """
    if name == "stdlib":
        return Corpus(name, np.frombuffer(b"".join(_library_sources()), dtype=np.uint8))
    if name == "enwik8":
        return _checked(Corpus(name, _map(download.enwik8())))
    path = Path(name)
    try:
        path = path.expanduser().resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError):  # a name that no file can have
        is_file = False
    if not is_file:
        raise CorpusError(
            f"corpus {name!r} is no file; allowed: stdlib, enwik8 or the path of a file; "
            "check the path"
        )
    return Corpus(str(path), _map(path))


def _checked(corpus: Corpus) -> Corpus:
    """Refuse an enwik8 in the cache that was changed after it was unpacked."""
    if corpus.sha256 != download.SHA256:
        raise CorpusError(
            f"{download.enwik8()} has the SHA-256 {corpus.sha256}; allowed: {download.SHA256}; "
            "remove the file, and it is fetched again"
        )
    return corpus


def _map(path: Path) -> Bytes:
    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except ValueError as error:  # numpy's word for a file without a byte
        raise CorpusError(f"corpus {path} is empty; take a file with text in it") from error
    except OSError as error:
        raise CorpusError(f"corpus {path} cannot be read ({error.strerror}); check it") from error


def _library_sources() -> Iterator[bytes]:
    """Yield the standard library's modules, sorted by path, tests and installed packages left out.

    What they hold together, about 10 MB of English and code, is the same for one Python.
    """
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted((path.relative_to(library).as_posix(), path) for path in library.rglob("*.py"))
    for relative, path in modules:
        if not _NOT_LIBRARY.intersection(relative.split("/")[:-1]):
            yield path.read_bytes()
