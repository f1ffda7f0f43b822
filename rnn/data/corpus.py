"""Corpora as raw bytes: the running Python's standard library, enwik8, recall:D, or any file."""

import hashlib
import os
import stat
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rnn.data.recall import RECALL, generate_recall, parse_distance
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
class CorpusFile:
    """The file that a text was read from, as it was then.

    Attributes:
        path: absolute path of the file, or of a link to it.
        device: number of its device.
        inode: number of its inode.
        size: number of bytes.
        mtime_ns: time of its last modification, in nanoseconds.
    """

    path: Path
    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def from_status(cls, path: Path, status: os.stat_result) -> "CorpusFile":
        """Return the file with a given status."""
        return cls(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def describe_change(self) -> str:
        """Describe how the file has changed; return "" if it has not, or cannot be looked at."""
        try:
            now = CorpusFile.from_status(self.path, self.path.stat())
        except (FileNotFoundError, NotADirectoryError):
            return "was removed"
        except OSError:  # such as a network file system that is unavailable for a while
            return ""
        if now.size != self.size:
            return f"was changed from {self.size:,} to {now.size:,} bytes"
        return "was modified or replaced" if now != self else ""


@dataclass(frozen=True)
class Corpus:
    """A text, split by position: the first 90% train, then 5% validation and 5% test.

    Attributes:
        name: ``stdlib``, ``enwik8``, ``recall:D``, or the path of a file.
        text: bytes (length,), in memory: a mapping would change with its file.
        file: file that the text was read from; None for ``stdlib`` and ``recall:D``.
        recall_distance: D of ``recall:D``; None for other corpora.
    """

    name: str
    text: ByteArray
    file: CorpusFile | None = None
    recall_distance: int | None = None

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


def load_corpus(name: str, folder: Path = Path()) -> Corpus:
    """Load a corpus by name or path.

    Args:
        name: ``stdlib`` (the sources of the running Python's standard library), ``enwik8``
            (downloaded on first use), ``recall:D`` (:mod:`rnn.data.recall`) or the path of a file.
        folder: folder that a path is relative to.

    Raises:
        CorpusError: if the distance D is not valid, the file is missing, empty, unreadable, not a
            regular file, larger than the memory or changed while it is read, or the download fails.
    """
    if name == "stdlib":
        return Corpus(name, np.frombuffer(b"".join(_library_sources()), dtype=np.uint8))
    if (distance := parse_distance(name)) is not None:
        return Corpus(f"{RECALL}{distance}", generate_recall(distance), recall_distance=distance)
    if name == "enwik8":
        from rnn.data import download  # here: other corpora need no library for downloads

        path = download.fetch_enwik8()
        if not path.is_file():  # a pipe would block
            raise CorpusError(f"{path} is not a regular file: remove it to download enwik8")
        corpus = _read_file(name, path)
        # The file in the cache may have been changed since it was unpacked.
        if corpus.sha256 != download.SHA256:
            raise CorpusError(
                f"{path} has the SHA-256 {corpus.sha256}: expected {download.SHA256}; "
                "remove the file to download it again"
            )
        return corpus
    path = folder.absolute() / name
    try:
        path = folder.absolute() / Path(name).expanduser()
        mode = path.stat().st_mode
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # also for names that no file can have
        raise CorpusError(
            f"corpus {name!r} not found: expected 'stdlib', 'enwik8', 'recall:D' or a file {path}"
        ) from error
    # Checked before the file is opened: a pipe would block, a device might never end.
    if not stat.S_ISREG(mode):
        raise CorpusError(
            f"corpus {path} is not a regular file: expected 'stdlib', 'enwik8' or a path to one"
        )
    return _read_file(str(resolved), path)  # not the resolved path: a link may change


def _read_file(name: str, path: Path) -> Corpus:
    """Read a corpus file into memory, so that the text that is hashed is the one trained on."""
    try:
        with path.open("rb", buffering=0) as file:
            before = CorpusFile.from_status(path, os.fstat(file.fileno()))
            content = file.read()
            after = CorpusFile.from_status(path, os.fstat(file.fileno()))
    except OSError as error:
        raise CorpusError(f"corpus {path} cannot be read ({error.strerror})") from error
    except MemoryError as error:
        raise CorpusError(
            f"corpus {path} of {before.size:,} bytes does not fit into memory: use a shorter text"
        ) from error
    if before != after:
        raise CorpusError(f"corpus {path} changed while it was read: wait until it is complete")
    if not content:
        raise CorpusError(f"corpus {path} is empty")
    return Corpus(name, np.frombuffer(content, dtype=np.uint8), before)


def _library_sources() -> Iterator[bytes]:
    """Yield the standard library's modules by path, without tests and installed packages.

    Together they are about 10 MB of English and code, the same for one version of Python.
    """
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted((path.relative_to(library).as_posix(), path) for path in library.rglob("*.py"))
    for relative, path in modules:
        if not _EXCLUDED_FOLDERS.intersection(relative.split("/")[:-1]):
            yield path.read_bytes()
