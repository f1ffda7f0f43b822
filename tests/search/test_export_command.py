"""The command ``python -m search.export``: it writes a whole folder or nothing."""

from pathlib import Path

import pytest
from model_fixtures import make_study

from rnn.cells.loading import load_cell
from rnn.cells.source import read_cell_source
from search.errors import ExportError
from search.export import write_folder

ROOT = Path(__file__).parents[2]


def test_model_of_a_trial_is_exported(sqlite_url, run, tmp_path):
    make_study(sqlite_url, keep={1, 2})
    directory = tmp_path / "new" / "network"
    words = ("made", str(directory), "--storage", sqlite_url, "--trial", "2")
    done = run("-m", "search.export", *words)
    assert (done.returncode, done.stdout) == (0, f"{directory}\n"), done.stderr
    names = {"network.py", "weights.pt", "tokenizer.py", "run.py", "README.md"}
    assert {path.name for path in directory.iterdir()} == names
    assert [path.name for path in directory.parent.iterdir()] == ["network"]
    readme = (directory / "README.md").read_text(encoding="utf-8")
    assert "1×16 no gates, new state" in readme
    assert "- study: made\n- trial: 2\n- validation loss: 1.9000 nats per byte\n" in readme


def test_network_of_a_users_own_cell_is_sampled_and_exported(sqlite_url, run, tmp_path):
    """By processes that have not loaded the cell, and do not see its file."""
    text = (ROOT / "examples" / "cells" / "min_gru.py").read_text("utf-8")
    (tmp_path / "mine.py").write_text(text)
    source = read_cell_source("mine.py:MinGRU", tmp_path)
    load_cell(source)
    option = {"type": "bool", "default": False}
    record = {"spec": source.spec, "sha256": source.sha256, "options": {"candidate_tanh": option}}
    space = {"cell": [source.spec], "candidate_tanh": [False, True]}
    space |= {"layers": [1], "state_size": [4, 8]}
    make_study(sqlite_url, {1}, space=space, cells={"MinGRU": record})
    (tmp_path / "mine.py").unlink()
    done = run("-m", "search.sample", "made", "--storage", sqlite_url, "--length", "20")
    assert (done.returncode, done.stderr) == (0, "")
    directory = tmp_path / "network"
    done = run("-m", "search.export", "made", str(directory), "--storage", sqlite_url)
    assert (done.returncode, done.stdout) == (0, f"{directory}\n"), done.stderr
    assert (directory / "cell.py").read_text("utf-8") == text
    assert "MinGRU(input_size=" in (directory / "network.py").read_text("utf-8")


def test_nothing_is_left_of_a_failed_export(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    empty = tmp_path / "empty"
    empty.mkdir()
    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_bytes", full)
        with pytest.raises(ExportError, match=r"cannot write .*: No space left on device"):
            write_folder(empty, {"a": b"1"})
    assert list(tmp_path.rglob("*")) == [empty]
    write_folder(empty, {"a": b"1"})
    assert (empty / "a").read_bytes() == b"1"
    for taken in (empty, empty / "a"):
        with pytest.raises(ExportError, match="exists already"):
            write_folder(taken, {"a": b"2"})
    assert (empty / "a").read_bytes() == b"1"
