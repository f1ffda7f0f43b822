"""The check of a task refuses what would make results worthless, and measures its floors."""

from pathlib import Path

import pytest
from invocation import refused

from rnn.errors import TaskError
from search import task_check
from search.task_check import certify_task
from search.tasks import load_task_of

SUMS = """
import numpy as np
import torch

calls = []


class Sums:
    input_size = 1
    output_size = 1

    def sample(self, split, rng, count, length=None):
        values = rng.random((count, 6, 1))
        {body}
        return {{"inputs": values, "targets": targets}}

    {method}
"""

RUNNING = "targets = values.cumsum(1)"


def load(folder: Path, body: str = RUNNING, method: str = ""):
    (folder / "mine.py").write_text(SUMS.format(body=body, method=method))
    return load_task_of("mine.py:Sums", {}, folder)


@pytest.mark.parametrize(
    ("body", "method", "line"),
    [
        ("values = np.random.random(values.shape); " + RUNNING, "", "draws other sequences when"),
        (f"calls.append(1); values = values + len(calls); {RUNNING}", "", "draws other sequences"),
        (f"values = np.arange(6.0).repeat(count).reshape(6, count, 1).swapaxes(0, 1); {RUNNING}",
         "", "the splits train and validation share a sequence"),
        (f"values = np.random.default_rng(len(split)).random(values.shape) + (split == 'test'); "
         f"values = values if split == 'train' else np.ones_like(values); {RUNNING}",
         "", "the splits validation and test share a sequence"),
        (RUNNING, "def loss(self, outputs, targets): return (outputs - targets).square().mean()",
         "loss of task Sums returns ()"),
        (RUNNING, "def loss(self, outputs, targets): raise KeyError('fault')",
         "loss of task Sums raises KeyError ('fault') in line"),
        (RUNNING, "def loss(self, outputs, targets): return (outputs - targets.mean())[:, 0]",
         "depends on the other targets"),
        (RUNNING, "def loss(self, outputs, targets): return (outputs * 0 - targets).log()[:, 0]",
         "is not finite or not differentiable"),
        (f"values = values + hash('a') % 1000; {RUNNING}", "", "in a new process"),
    ],
    ids=["global", "kept", "train", "held-out", "mean", "raises", "others", "log", "hash"],
)  # fmt: skip
def test_task_that_would_mislead_is_refused(tmp_path, body, method, line):
    with refused(TaskError, line):
        certify_task(load(tmp_path, body, method), 16)


def test_fault_of_the_program_is_not_blamed_on_the_task(tmp_path, monkeypatch):
    monkeypatch.setattr(task_check, "_require_same_in_new_process", lambda *_: None)
    monkeypatch.setattr(task_check, "measure_floors", lambda *_: {}["fault"])
    with pytest.raises(KeyError):
        certify_task(load(tmp_path), 16)


def test_floors_tell_whether_memory_is_needed(tmp_path, monkeypatch):
    """The sum so far needs memory, the input itself does not and is its last value."""
    monkeypatch.setattr(task_check, "_MAX_UPDATES", 60)
    monkeypatch.setattr(task_check, "_require_same_in_new_process", lambda *_: None)
    passed = []
    floors, memory = certify_task(load(tmp_path), 64, passed.append)
    assert memory.startswith("the task needs memory")
    assert len(passed) == 5
    assert floors.recurrent["loss"] < floors.memoryless["loss"] / 2
    assert floors.constant["loss"] > floors.memoryless["loss"]
    assert floors.constant.keys() == {"loss", "mae"}
    floors, memory = certify_task(load(tmp_path, "targets = values"), 64)
    assert "gained nothing from its memory" in memory
    assert floors.last_value == {"loss": 0, "mae": 0}
