"""Studies on datasets of PyTorch: how items become a task, what is stored and what is refused."""

import numpy as np
import pytest
from helpers import join_study
from invocation import invoke_command, refused

import rnn_search
from rnn.errors import TaskError, UserError
from rnn.tasks.task import SPLITS
from search.cells_tasks import load_task_of

FILE = """
from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset


class Items(Dataset):
    def __init__(self, *, count: int = 40, folder=None):
        rng = np.random.default_rng(0)
        self.y = rng.integers(3, size=count)
        self.x = rng.normal(self.y[:, None, None], 1, (count, 6, 2)).astype("float32")

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return torch.from_numpy(self.x[index]), int(self.y[index])


items = Items()
parts = [range(30), range(30, 36), range(36, 40)]
train, validation, test = (Subset(items, part) for part in parts)
listed = [train, validation, test]
named = {"validation": validation, "test": test, "train": train}


def fewer(count: int = 20) -> Items:
    return Items(count=count)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(items)


class Endless(Items):
    __len__ = None


class Large(Items):
    def __len__(self):
        return 10**12


class Ragged(Items):
    def __getitem__(self, index):
        return self.x[index, : 6 - index // 5], 0


class Mixed(Items):
    def __getitem__(self, index):
        return self.x[index], index if index < 20 else 0.5


class Gap(Items):
    def __getitem__(self, index):
        return np.where(self.x[index] == self.x[32, 1, 1], np.nan, self.x[index]), 0


class Unpaired(Items):
    def __getitem__(self, index):
        return {"x": self.x[index], "y": 0}


class Failing(Items):
    def __getitem__(self, index):
        return self.x[index], self.missing


class Shuffled(Items):
    def __getitem__(self, index):
        return torch.rand(6, 2), 0


image = TensorDataset(torch.zeros(20, 6, 2, 2), torch.zeros(20))
matrix = TensorDataset(torch.zeros(20, 6, 2), torch.zeros(20, 4, 3))
masked = TensorDataset(torch.zeros(20, 6, 2), torch.full((20, 6), -100))
same = TensorDataset(torch.zeros(40, 6, dtype=torch.int), torch.zeros(40, dtype=torch.int))
few = Subset(items, range(9))
pair = train, validation
holes = {"train": train, "validation": Subset(items, []), "test": test}
unknown = {"train": train, "val": validation}
number = 3


def given(count):
    return Items()
"""

STUDY = {
    "space": {"cell": ["elman", "gru"], "layers": [1], "state_size": [4]},
    "training": {"steps": 36, "log_every": 12, "batch_size": 4, "bptt_steps": "sequence"},
    "precision": "fp32",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "data.py").write_text(FILE)
    monkeypatch.setattr("search.task_check._MAX_UPDATES", 2)  # of the floors
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unchecked(monkeypatch):
    """Create studies without a check of their tasks."""
    monkeypatch.setattr("search.task_check.check_task", lambda *_: (None, ""))


def load(name, folder, **options):
    return load_task_of(f"data.py:{name}", options, folder)


def draw(task):
    """Return training and held-out batches."""
    built = task.build_sequences()
    return [built.train_batch(0, 0, 0, 8, 0), *(built.held_out(split, 1) for split in SPLITS[1:])]


def require_equal(task, other):
    for batch, expected in zip(draw(task), draw(other), strict=True):
        for part, expected_part in zip(batch[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(part, expected_part)


def save_archive(folder, items, **arrays):
    np.savez(folder / "items.npz", x=items.x, y=items.y, **arrays)
    return load_task_of("sequences:items.npz", {}, folder)


def test_networks_learn_from_a_dataset_what_they_learn_from_its_arrays(folder, unchecked):
    place = {"storage": "sqlite:///studies.db", "device": "cpu"}
    dataset = {"task": {"source": "data.py:items"}}
    study = rnn_search.run(STUDY | dataset, name="dataset", **place)
    record = study.config.task_record
    assert (record.name, record.inputs, record.outputs, record.steps) == ("items", 2, 3, 6)
    assert (record.loss, record.predicts_classes) == ("cross-entropy", True)

    save_archive(folder, load("items", folder).definition.__wrapped__())
    archive = {"task": {"source": "sequences:items.npz"}}
    expected = rnn_search.run(STUDY | archive, name="archive", **place)
    columns = ["cell", "value", "validation_accuracy"]
    assert sorted(study.results["cell"]) == ["elman", "gru"]
    assert study.results[columns].equals(expected.results[columns])


def test_a_dataset_has_a_fixed_split_or_three_parts(folder):
    items = load("items", folder).definition.__wrapped__()
    single = save_archive(folder, items)
    split = save_archive(folder, items, split=np.repeat([0, 1, 2], [30, 6, 4]))
    for name in ("items", "Items"):
        require_equal(load(name, folder), single)
    require_equal(load("listed", folder), split)
    assert [batch.inputs.shape[1] for batch in draw(load("named", folder))] == [8, 6, 4]
    require_equal(load("fewer", folder, count=40), single)


@pytest.mark.parametrize(
    ("item", "sizes", "loss"),
    [
        ("np.arange(5) + index, index % 3", (24, 3, True, True), "cross-entropy"),
        ("[index] * 5, [index % 2] * 5", (20, 2, True, True), "cross-entropy"),
        ("[index / 2] * 5, True", (1, 2, False, True), "cross-entropy"),
        ("[[0.5, index]] * 5, torch.ones(5, 3)", (2, 3, False, False),
         "standardized squared error"),
        ("[index / 2] * 5, 0.5", (1, 1, False, False), "standardized squared error"),
        ("np.full((5, 4), index), [0.5, 1.5]", (4, 2, False, False),
         "standardized squared error"),
    ],
)  # fmt: skip
def test_items_tell_what_is_read_and_predicted(item, sizes, loss, folder):
    code = f"\n\nclass Mine(Items):\n    def __getitem__(self, index):\n        return {item}\n"
    (folder / "data.py").write_text(FILE.replace("count: int = 40", "count: int = 20") + code)
    record = load("Mine", folder).record
    found = record.inputs, record.outputs, record.reads_tokens, record.predicts_classes
    assert found == sizes
    assert (record.loss, record.steps) == (loss, 5)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Stream", "task Stream: dataset is of class Stream: expected a map-style Dataset"),
        ("Endless", "task Endless cannot be built: its code raises TypeError ("),
        ("Large", "GiB of memory, as its dataset is read as a whole"),
        ("Ragged", "task Ragged: dataset[5] has x of shape (5, 2) and dtype float32: expected (6,"),
        ("Mixed", "dataset[20] has y of shape () and dtype float64: expected () and int64, as in"),
        ("Gap", "task Gap, items (x, y) of dataset: x[32, 1, 1] is nan: expected a finite number"),
        ("Unpaired", "task Unpaired: dataset[0] is of class dict: expected a pair (x, y)"),
        ("Failing", "raises AttributeError ('Failing' object has no attribute 'missing') in line"),
        ("image", "x has shape (20, 6, 2, 2) and dtype float32: expected (N, T) or (N, T, d)"),
        ("matrix", "y has shape (20, 4, 3) and dtype float32: expected (N,) or (N, 6)"),
        ("masked", "y[0, 0] is -100: expected 0 to 99999"),
        ("few", "task few: datasets of [9] items: expected 10 or more in each"),
        ("pair", "task pair: dataset is of class tuple: expected a map-style Dataset"),
        ("holes", "task holes: datasets of [30, 0, 4] items: expected 1 or more in each"),
        ("unknown", "has the datasets train, val: expected train, validation and test"),
        ("number", "task number: dataset is of class int: expected a map-style Dataset"),
        ("given", "option count of task given has no annotation"),
        ("none", "its file has no class none: expected Items or"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(name, line, folder):
    with refused(TaskError, line):
        load(name, folder)


def test_worker_whose_dataset_differs_is_refused(folder, unchecked):
    (folder / "data.py").write_text(
        f"{FILE}\n\ndef stored(folder=None):\n"
        '    return TensorDataset(torch.tensor(np.load(folder / "x.npy")), torch.arange(20))\n'
    )
    (folder / "study.toml").write_text(
        '[task]\nsource = "data.py:stored"\n[space]\ncell = ["gru"]\nlayers = [1]\n'
        'state_size = [4]\n[training]\nsteps = 5\nlog_every = 5\nbptt_steps = "sequence"\n'
    )
    rng = np.random.default_rng(0)
    np.save("x.npy", rng.normal(size=(20, 5)))
    url = "sqlite:///studies.db"
    join_study("study.toml", url).storage.close()
    join_study("study.toml", url).storage.close()
    np.save("x.npy", rng.normal(size=(20, 5)))
    with refused(UserError, "task.data_sha256: '"):
        join_study("study.toml", url)


def test_default_option_of_a_dataset_is_no_second_task(folder, unchecked):
    task = ["data.py:fewer", {"source": "data.py:fewer", "count": 20}]
    settings = STUDY | {"space": STUDY["space"] | {"task": task}}
    with refused(TaskError, "tasks fewer and fewer(count=20) are the same, by the defaults"):
        rnn_search.run(settings, name="twice", storage="sqlite:///studies.db", device="cpu")


@pytest.mark.extended
def test_check_measures_the_floors_of_a_dataset(folder):
    done = invoke_command("check", "data.py:items", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "passed: the same sequences are drawn in a new process" in done.stdout
    assert "small network without memory: loss" in done.stdout
    assert done.stdout.endswith(
        "items passed all checks: 6 steps, each reads 2 numbers and predicts one of 3 classes; "
        "options: none\n"
    )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("same", "share a sequence: expected different sequences in each split, without dup"),
        pytest.param(
            "Shuffled",
            "in a new process: expected random numbers from rng alone, or of a fixed seed",
            marks=pytest.mark.extended,
        ),
    ],
)
def test_check_refuses_a_dataset_that_would_mislead(name, line, folder):
    done = invoke_command("check", f"data.py:{name}", cwd=folder)
    assert done.returncode == 2
    assert line in done.stderr
