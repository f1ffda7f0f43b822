"""The one corpus that is fetched: enwik8, the first 10⁸ bytes of English Wikipedia of 2006."""

import hashlib
import os
import zlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import pooch

from rnn.errors import CorpusError

ARCHIVE = "http://mattmahoney.net/dc/enwik8.zip"
SHA256 = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
"""Of the unpacked file."""

MIRROR_ENV_VAR = "RNN_SEARCH_ENWIK8_URL"
"""The environment variable that names another place to fetch the archive from."""


def enwik8() -> Path:
    """Return the unpacked enwik8 in the user's cache directory, fetched on first use.

    Raises:
        CorpusError: if it cannot be fetched or unpacked, or is not enwik8; nothing is kept then.
    """
    url = os.environ.get(MIRROR_ENV_VAR, ARCHIVE)
    directory = Path(pooch.os_cache("rnn-search"))
    text = directory / "enwik8"
    if text.exists():
        return text
    retry = f"try again, or name a mirror in {MIRROR_ENV_VAR} or the file's path as the corpus"
    try:
        pooch.get_logger().setLevel("WARNING")  # what it says, an error says, in one line
        archive = Path(
            pooch.retrieve(url, None, f"enwik8.{os.getpid()}.zip", directory, progressbar=True)
        )
    except Exception as error:  # whatever requests, urllib3 and the file system raise
        reason = str(error) if len(str(error)) < 100 else type(error).__name__
        raise CorpusError(f"enwik8 cannot be fetched from {url} ({reason}); {retry}") from error
    # Unpacked beside and renamed, so that another process never sees half a file.
    partial = directory / f"enwik8.{os.getpid()}.part"
    try:
        digest = _unpack(archive, partial)
        if digest != SHA256:
            raise CorpusError(
                f"enwik8 from {url} has the SHA-256 {digest}; allowed: {SHA256}; {retry}"
            )
        partial.replace(text)
    except (BadZipFile, zlib.error, KeyError, EOFError, OSError) as error:
        raise CorpusError(f"enwik8 from {url} is no sound archive ({error}); {retry}") from error
    finally:
        partial.unlink(missing_ok=True)
        archive.unlink(missing_ok=True)
    return text


def _unpack(archive: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with ZipFile(archive) as packed, packed.open("enwik8") as source, target.open("wb") as out:
        while block := source.read(1 << 20):
            digest.update(block)
            out.write(block)
    return digest.hexdigest()
