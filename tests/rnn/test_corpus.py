"""Corpora: the standard library, files, and enwik8 with its download."""

import hashlib
import http.server
import io
import os
import re
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rnn.data import download
from rnn.data.corpus import Corpus, gather_windows, load_corpus
from rnn.data.tokenizer import ByteTokenizer, TokenCorpus
from rnn.errors import CorpusError


def test_stdlib_is_about_ten_megabytes_without_tests_and_packages():
    corpus = load_corpus("stdlib")
    assert 5e6 < len(corpus.text) < 20e6
    assert corpus.sha256 == load_corpus("stdlib").sha256
    text = corpus.text.tobytes()
    assert b"class OrderedDict" in text
    assert b"class TestCase" in text  # unittest is part of the library, its tests are not
    assert b"site-packages/optuna" not in text
    assert b"import torch.nn" not in text


def test_file_is_read_as_raw_bytes_and_named_by_its_absolute_path(tmp_path, monkeypatch):
    content = bytes(range(256)) * 100
    (tmp_path / "text").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    corpus = load_corpus("text")
    assert corpus.name == str(tmp_path / "text")
    assert corpus.text.tobytes() == content
    assert corpus.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_text_of_a_file_is_in_memory_once_from_the_hash_to_the_tokens(tmp_path):
    def private_megabytes() -> float:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024

    path = tmp_path / "text"
    path.write_bytes(bytes(range(256)) * 2**18)  # 64 MiB
    before = private_megabytes()
    corpus = load_corpus(str(path))
    assert len(corpus.sha256) == 64
    text = TokenCorpus(corpus, ByteTokenizer())
    for split in (text.train, text.validation, text.test):
        assert np.shares_memory(split, corpus.text)
    assert private_megabytes() - before < 100
    path.write_bytes(b"other")
    assert corpus.text[:256].tobytes() == bytes(range(256))


def test_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "text"
    path.write_bytes(b"text" * 100)
    status = os.fstat

    def append_and_read_status(descriptor):
        before = status(descriptor)
        with path.open("ab") as file:
            file.write(b"more")
        return before

    monkeypatch.setattr("rnn.data.corpus.os.fstat", append_and_read_status)
    with pytest.raises(CorpusError, match="changed while it was read") as refused:
        load_corpus(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_file_larger_than_the_memory_is_refused(tmp_path):
    import resource

    path = tmp_path / "text"
    path.touch()
    os.truncate(path, 2**36)  # takes no space on the disk
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**36, limits[1]))
    try:
        with pytest.raises(CorpusError, match="of 68,719,476,736 bytes does not fit into memory"):
            load_corpus(str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_change_of_a_file_is_described(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"text" * 100)
    file = load_corpus(str(path)).file
    assert file.describe_change() == ""
    os.utime(path, ns=(0, 0))
    assert file.describe_change() == "was modified or replaced"
    path.write_bytes(b"text")
    assert file.describe_change() == "was changed from 400 to 4 bytes"
    path.unlink()
    assert file.describe_change() == "was removed"
    assert load_corpus("stdlib").file is None


def test_link_that_leads_to_another_file_is_a_change(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(b"abcd" * 100)
    link = tmp_path / "link"
    link.symlink_to("first")
    corpus = load_corpus(str(link))
    assert corpus.name == str(tmp_path / "first")
    assert corpus.file.describe_change() == ""
    link.unlink()
    link.symlink_to("second")
    assert corpus.file.path == link
    assert corpus.file.describe_change() == "was modified or replaced"


def test_split_is_by_position():
    corpus = Corpus("numbers", np.arange(200, dtype=np.uint8))
    assert corpus.split == (180, 190)
    joined = np.concatenate([corpus.train, corpus.validation, corpus.test])
    assert np.array_equal(joined, corpus.text)


def test_missing_or_empty_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").touch()
    for name, message in (
        ("missing", "not found"),
        ("empty", "empty"),
        ("", "is not a regular file"),
        ("a" * 999, "not found"),
        ("\0", "not found"),
    ):
        with pytest.raises(CorpusError, match=message) as refused:
            load_corpus(str(tmp_path / name))
        assert "\n" not in str(refused.value)


def test_gathered_windows_are_columns():
    text = np.arange(50, dtype=np.uint8)
    windows = gather_windows(text, np.array([3, 40]), 5)
    assert windows.tolist() == [[3, 40], [4, 41], [5, 42], [6, 43], [7, 44]]
    assert windows.dtype == np.uint8


# ------------------------------------------------------------------ enwik8

TEXT = b"<mediawiki> a stand-in for the first 100,000,000 bytes </mediawiki>" * 50


def zip_archive(content: bytes, name: str = "enwik8", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serve an archive on loopback, with the cache in the test's folder."""
    served = {"body": b"", "requests": 0}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            served["requests"] += 1
            body = served["body"]
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(download.MIRROR_ENV_VAR, f"http://127.0.0.1:{server.server_port}/enwik8.zip")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "SHA256", hashlib.sha256(TEXT).hexdigest())
    monkeypatch.setattr(download, "SIZE", len(TEXT))
    yield served
    server.shutdown()


def cached_files(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("enwik8*"))


@pytest.mark.skipif(sys.platform != "linux", reason="the cache folder is set by XDG_CACHE_HOME")
def test_enwik8_is_downloaded_once(serve, tmp_path):
    serve["body"] = zip_archive(TEXT)
    assert load_corpus("enwik8").text.tobytes() == TEXT
    assert load_corpus("enwik8").text.tobytes() == TEXT
    assert serve["requests"] == 1
    assert cached_files(tmp_path) == ["enwik8"]


@pytest.mark.skipif(sys.platform != "linux", reason="the cache folder is set by XDG_CACHE_HOME")
def test_pipe_in_the_cache_is_refused(serve):
    serve["body"] = zip_archive(TEXT)
    path = download.fetch_enwik8()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorpusError, match="enwik8 is not a regular file"):
        load_corpus("enwik8")


def test_changed_enwik8_in_the_cache_is_refused(serve, tmp_path):
    serve["body"] = zip_archive(TEXT)
    load_corpus("enwik8")
    (path,) = (tmp_path / "cache").rglob("enwik8")
    path.write_bytes(b"junk" * 100)
    with pytest.raises(CorpusError, match="remove the file to download it again"):
        load_corpus("enwik8")


def damaged(archive: bytes) -> bytes:
    """Overwrite a part of the compressed stream."""
    return archive[:50] + b"\xff" * 20 + archive[70:]


def test_endless_download_is_ended_and_not_kept(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_ARCHIVE_SIZE", 10_000)
    serve["body"] = bytes(10**7)
    with pytest.raises(CorpusError, match="more than 10,000 bytes") as refused:
        load_corpus("enwik8")
    assert "\n" not in str(refused.value)
    assert cached_files(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (zip_archive(TEXT[::-1]), "has the SHA-256"),
        (zip_archive(b"another text"), r"it unpacks to 12 bytes, not \d"),
        (zip_archive(TEXT, method=zipfile.ZIP_LZMA), "compression or encryption is not supported"),
        (zip_archive(TEXT, "another"), "not a valid archive"),
        (zip_archive(TEXT)[:-30], "not a valid archive"),
        (damaged(zip_archive(TEXT)), "not a valid archive"),
        (b"<html>try again later</html>", "not a valid archive"),
        (None, "cannot be downloaded"),
    ],
    ids=["text", "size", "method", "name", "cut short", "damaged", "no archive", "not found"],
)
def test_wrong_archive_is_refused_and_not_kept(serve, tmp_path, body, message):
    serve["body"] = body
    with pytest.raises(CorpusError, match=message) as refused:
        load_corpus("enwik8")
    assert "\n" not in str(refused.value)
    assert cached_files(tmp_path) == []
    serve["body"] = zip_archive(TEXT)
    assert load_corpus("enwik8").text.tobytes() == TEXT


@pytest.mark.parametrize("is_claimed", [True, False])
def test_archive_that_unpacks_to_much_more_is_not_unpacked(
    serve, tmp_path, monkeypatch, is_claimed
):
    size = 30_000_000
    body = zip_archive(bytes(size))
    if not is_claimed:  # both of its headers state the expected size
        body = body.replace(size.to_bytes(4, "little"), len(TEXT).to_bytes(4, "little"))
    serve["body"] = body
    written = []
    unpack = download._unpack

    def measure(archive, path):
        try:
            unpack(archive, path)
        finally:
            written.append(path.stat().st_size if path.exists() else 0)

    monkeypatch.setattr(download, "_unpack", measure)
    with pytest.raises(CorpusError, match="not a valid archive"):
        load_corpus("enwik8")
    assert written[0] <= len(TEXT)
    assert cached_files(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the cache folder is set by XDG_CACHE_HOME")
def test_folders_of_killed_downloads_are_removed_by_the_next_start(serve, tmp_path):
    serve["body"] = zip_archive(TEXT)
    load_corpus("enwik8")
    cache = download.fetch_enwik8().parent
    old, young, slow = (cache / f"enwik8.{name}" for name in ("k1lled_0", "k1lled_1", "k1lled_2"))
    foreign = [cache / "enwik8.mine", cache / "enwik8.k1lled_0.zip", cache / "other.k1lled_0"]
    for folder in (old, young, slow, *foreign):
        folder.mkdir()
        (folder / "enwik8.zip").touch()
    hours_ago = time.time() - 7200
    for path in (*(folder / "enwik8.zip" for folder in (old, *foreign)), old, slow, *foreign):
        os.utime(path, (hours_ago, hours_ago))  # the slow one still writes its file
    load_corpus("enwik8")
    assert {*cache.iterdir()} == {young, slow, *foreign, cache / "enwik8"}


def test_sha256_is_that_of_enwik8():
    assert download.SHA256 == "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
