"""Corpora as raw bytes: the running Python's standard library, enwik8, or any file."""

import hashlib
import shutil
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from zipfile import BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from rnn.errors import CorpusError

ByteArray = npt.NDArray[np.uint8]

ENWIK8_URL = "https://mattmahoney.net/dc/enwik8.zip"
"""URL of the archive of enwik8, the first 10⁸ bytes of English Wikipedia of 2006."""

ENWIK8_SHA256 = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
"""SHA-256 of the text in it."""

_EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """A text, split by position: the first 90% train, then 5% validation and 5% test.

    Attributes:
        name: ``stdlib``, ``enwik8``, or the path of a file.
        text: bytes (length,), in memory: a mapping would change with its file.
        path: the user's file that the text was read from; None for the other corpora.
    """

    name: str
    text: ByteArray
    path: Path | None = None

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


def load_corpus(name: str, folder: Path = Path()) -> Corpus:
    """Load a corpus by name or path.

    Args:
        name: ``stdlib`` (the sources of the running Python's standard library), ``enwik8``
            (downloaded on first use) or the path of a file.
        folder: folder that a path is relative to.

    Raises:
        CorpusError: if the file is missing, empty or unreadable, or the download fails.
    """
    if name == "stdlib":
        return Corpus(name, np.frombuffer(b"".join(_library_sources()), dtype=np.uint8))
    if name == "enwik8":
        return Corpus(name, _read_file(_fetch_enwik8()))
    path = (folder.absolute() / Path(name).expanduser()).resolve()
    if not path.is_file():
        raise CorpusError(
            f"corpus {name!r} not found: expected 'stdlib', 'enwik8' or a file {path}"
        )
    return Corpus(str(path), _read_file(path), path)


def _fetch_enwik8() -> Path:
    """Return the path of enwik8 in the user's cache directory, where pooch keeps it."""
    import pooch  # here: other corpora need no library for downloads

    def download_text(url: str, output_file: str, _: object) -> None:
        """Download the archive and unpack it into the file that pooch checks and then moves."""
        with TemporaryFile() as archive:
            pooch.core.choose_downloader(url, progressbar=True)(url, archive, None)
            with ZipFile(archive).open("enwik8") as packed, Path(output_file).open("wb") as text:
                shutil.copyfileobj(packed, text)

    folder = pooch.os_cache("rnn-search")
    pooch.get_logger().setLevel("WARNING")
    try:
        path = pooch.retrieve(ENWIK8_URL, ENWIK8_SHA256, "enwik8", folder, downloader=download_text)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        reason = str(error).partition(":")[0]  # what follows are long addresses and hashes
        raise CorpusError(
            f"enwik8 cannot be downloaded from {ENWIK8_URL} ({type(error).__name__}: {reason}); "
            "try again, or pass the file's path as the corpus"
        ) from error
    return Path(path)


def _read_file(path: Path) -> ByteArray:
    """Read a file into memory, so that the text that is hashed is the one trained on.

    A memory mapping would change with the file, and kill the process where the file is truncated.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"corpus {path} cannot be read ({error.strerror})") from error
    if not content:
        raise CorpusError(f"corpus {path} is empty")
    return np.frombuffer(content, dtype=np.uint8)


def _library_sources() -> Iterator[bytes]:
    """Yield the standard library's modules by path, without tests and installed packages.

    Together they are about 10 MB of English and code, the same for one version of Python.
    """
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted((path.relative_to(library).as_posix(), path) for path in library.rglob("*.py"))
    for relative, path in modules:
        if not _EXCLUDED_FOLDERS.intersection(relative.split("/")[:-1]):
            yield path.read_bytes()
