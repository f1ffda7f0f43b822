"""Download of enwik8, the first 10⁸ bytes of English Wikipedia of 2006."""

import contextlib
import os
import re
import shutil
import time
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import pooch
from tqdm import tqdm

from rnn.errors import CorpusError

URL = "https://mattmahoney.net/dc/enwik8.zip"
SHA256 = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
"""SHA-256 of the unpacked file."""

SIZE = 10**8
"""Size of the unpacked file, in bytes."""

MAX_ARCHIVE_SIZE = 2 * SIZE
"""Size above which a download is not the archive, even without compression."""

_NAME = "enwik8"
_CHUNK_SIZE = 2**20

MIRROR_ENV_VAR = "RNN_SEARCH_ENWIK8_URL"
"""Environment variable with another URL of the archive."""

_STALE_SECONDS = 3600
"""Time without a write after which a temporary folder is one of a killed process."""

_TMP_PREFIX = "enwik8."
_TMP_NAME = re.compile(r"enwik8\.[a-z0-9_]{8}")


class _BoundedProgress(tqdm):  # type: ignore[type-arg]
    """Progress bar of a download that ends it when too much is sent."""

    def __init__(self, url: str) -> None:
        super().__init__(total=MAX_ARCHIVE_SIZE, ncols=79, unit_scale=True, unit="B", leave=True)
        self._url = url

    def update(self, n: float | None = 1) -> bool | None:
        """Count bytes that were received.

        Raises:
            CorpusError: if they are more than the archive can have.
        """
        if self.n + (n or 0) > MAX_ARCHIVE_SIZE:
            raise CorpusError(
                f"enwik8 from {self._url} is not a valid archive (it has more than "
                f"{MAX_ARCHIVE_SIZE:,} bytes); set {MIRROR_ENV_VAR} to another mirror"
            )
        return super().update(n)


def fetch_enwik8() -> Path:
    """Return the path of enwik8 in the user's cache directory, downloaded on first use.

    Raises:
        CorpusError: if it cannot be downloaded or unpacked, or is not enwik8; no file is kept then.
    """
    url = os.environ.get(MIRROR_ENV_VAR, URL)
    directory = Path(pooch.os_cache("rnn-search"))
    text = directory / _NAME
    _remove_stale_folders(directory)
    if text.exists():
        return text
    retry = f"try again, or set {MIRROR_ENV_VAR} to a mirror, or pass the file's path as the corpus"
    pooch.get_logger().setLevel("WARNING")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Unpacked to a temporary folder and renamed, so that no process sees a partial file.
        with TemporaryDirectory(dir=directory, prefix=_TMP_PREFIX) as folder:
            downloader = pooch.core.choose_downloader(url, progressbar=_BoundedProgress(url))
            archive = pooch.retrieve(url, None, "enwik8.zip", folder, downloader=downloader)
            unpacked = Path(folder, _NAME)
            _unpack(Path(archive), unpacked)
            digest = pooch.file_hash(unpacked)
            if digest != SHA256:
                raise CorpusError(
                    f"enwik8 from {url} has the SHA-256 {digest}: expected {SHA256}; {retry}"
                )
            unpacked.replace(text)
    except CorpusError:
        raise
    except (BadZipFile, zlib.error, EOFError) as error:
        raise CorpusError(f"enwik8 from {url} is not a valid archive ({error}); {retry}") from error
    except Exception as error:  # raised by requests, urllib3 or the file system
        reason = str(error) if len(str(error)) < 100 else type(error).__name__
        raise CorpusError(f"enwik8 cannot be downloaded from {url} ({reason}); {retry}") from error
    return text


def _unpack(archive: Path, path: Path) -> None:
    """Unpack the text of an archive, never more than its size.

    Raises:
        BadZipFile, zlib.error, EOFError: if the archive is damaged or has another content.
    """
    with ZipFile(archive) as opened:
        members = [member for member in opened.infolist() if member.filename == _NAME]
        if not members:
            raise BadZipFile(f"it has no file {_NAME}")
        member = members[-1]
        if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED) or member.flag_bits & 1:
            raise BadZipFile("its method of compression or encryption is not supported")
        if member.file_size != SIZE:
            raise BadZipFile(f"it unpacks to {member.file_size:,} bytes, not {SIZE:,}")
        # The size is what the archive claims; reading ends there, whatever the stream holds.
        with opened.open(member) as packed, path.open("xb") as file:
            while chunk := packed.read(_CHUNK_SIZE):
                file.write(chunk)


def _remove_stale_folders(directory: Path) -> None:
    """Remove the temporary folders that killed processes left, of more than 100 MB each."""
    with contextlib.suppress(OSError):  # the cache does not exist yet
        for folder in list(directory.iterdir()):
            if not _TMP_NAME.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
                continue
            with contextlib.suppress(OSError):  # removed by another process
                written = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if time.time() - written >= _STALE_SECONDS:
                    shutil.rmtree(folder)
