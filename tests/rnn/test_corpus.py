"""Corpora: the standard library, files, and enwik8 with its download."""

import hashlib
import http.server
import io
import sys
import threading
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from rnn.errors import CorpusError
from rnn.tasks.corpus import load_corpus
from rnn.tasks.text import Text
from rnn.tasks.tokenizer import Tokenizer


def assert_refused(name: str | Path, message: str) -> None:
    with pytest.raises(CorpusError, match=message) as refused:
        load_corpus(str(name))
    assert "\n" not in str(refused.value)


def test_stdlib_is_about_ten_megabytes_without_tests_and_packages():
    corpus = load_corpus("stdlib")
    assert corpus.path is None
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
    (tmp_path / "link").symlink_to("text")
    monkeypatch.chdir(tmp_path)
    for name in ("text", "link"):
        corpus = load_corpus(name)
        assert (corpus.name, corpus.path) == (str(tmp_path / "text"), tmp_path / "text")
        assert corpus.text.tobytes() == content
        assert corpus.sha256 == hashlib.sha256(content).hexdigest()
        text = Text(corpus, Tokenizer())
        splits = text.train, text.validation, text.test
        assert all(np.shares_memory(split, corpus.text) for split in splits), "in memory once"


def test_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "text").write_bytes(b"text")
    error = PermissionError(13, "Permission denied")
    monkeypatch.setattr("rnn.tasks.corpus.Path.read_bytes", Mock(side_effect=error))
    assert_refused(tmp_path / "text", r"text cannot be read \(Permission denied\)")


def test_missing_or_empty_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").touch()
    for name, message in (
        ("missing", "not found"),
        ("empty", "empty"),
        ("", "not found"),  # a folder
    ):
        assert_refused(tmp_path / name, message)


# ------------------------------------------------------------------ enwik8

TEXT = b"<mediawiki> a stand-in for the first 100,000,000 bytes </mediawiki>" * 50


def zip_archive(content: bytes, name: str = "enwik8") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serve an archive on loopback, with the cache in the test's folder."""
    if sys.platform != "linux":
        pytest.skip("the cache folder is set by XDG_CACHE_HOME")
    served = {"body": b"", "requests": 0, "cut": None}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            served["requests"] += 1
            body = served["body"]
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write((body or b"")[: served["cut"]])

        def log_message(self, *args):
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/enwik8.zip"
    monkeypatch.setattr("rnn.tasks.corpus.ENWIK8_URL", url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("rnn.tasks.corpus.ENWIK8_SHA256", hashlib.sha256(TEXT).hexdigest())
    yield served
    server.shutdown()


def cached_files(tmp_path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_enwik8_is_downloaded_once_unless_the_file_in_the_cache_changes(serve, tmp_path):
    serve["body"] = zip_archive(TEXT)
    for content, requests in ((None, 1), (None, 1), (b"junk", 2)):
        if content is not None:
            (tmp_path / "cache" / "rnn-search" / "enwik8").write_bytes(content)
        assert load_corpus("enwik8").text.tobytes() == TEXT
        assert serve["requests"] == requests
        assert cached_files(tmp_path) == ["enwik8"]


@pytest.mark.parametrize(
    ("body", "cut", "message"),
    [
        (zip_archive(TEXT[::-1]), None, "SHA256 hash .* does not match"),
        (zip_archive(TEXT, "another"), None, "no item named 'enwik8'"),
        (zip_archive(TEXT)[:-30], None, "BadZipFile: File is not a zip file"),
        (zip_archive(TEXT), 100, "ChunkedEncodingError|BadZipFile"),
        (None, None, "HTTPError: 404 Client Error"),
    ],
    ids=["text", "name", "cut short", "interrupted", "not found"],
)
def test_wrong_archive_is_refused_and_not_kept(serve, tmp_path, body, cut, message):
    serve |= {"body": body, "cut": cut}
    assert_refused("enwik8", f"cannot be downloaded from http.*{message}.*; try again")
    assert cached_files(tmp_path) == []
    serve |= {"body": zip_archive(TEXT), "cut": None}
    assert load_corpus("enwik8").text.tobytes() == TEXT
