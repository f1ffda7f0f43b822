"""Trials whose training settings and cells differ: which train together, and by which settings."""

import pytest
from test_worker import SETTINGS, work

from rnn.autograd import AutogradStack
from rnn.training.loop import TrainLoop

TRAINING = [setting for setting in SETTINGS if not setting.startswith("space.")]

GATED = """
precision = "fp32"

[space]
input_gate = [false]
output_gate = [false]
state_gate = [true]
residual = [true]
forget_gate = [false, true]
state_source = ["new"]
layers = [2]
state_size = [4]
"""

CELLS = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, input_size: int, state_size: int, *, norm: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size + state_size, state_size)
        self.norm = norm

    def forward(self, x, state):
        state = self.linear(torch.cat((x, state), 1)).tanh()
        return (state / 2 if self.norm else state), state


class Branching(Small):
    def forward(self, x, state):
        if not state.isfinite().all():  # vmap cannot branch on data
            raise ValueError("diverged")
        return super().forward(x, state)
"""


@pytest.fixture
def study(tmp_path):
    """Return a function that writes a study file and returns its path."""
    (tmp_path / "cells.py").write_text(CELLS)

    def write(content):
        path = tmp_path / "mixed.toml"
        path.write_text(content)
        return str(path)

    return write


@pytest.fixture
def stacks(monkeypatch):
    """Sets of configs that were trained together: (TrialConfig, …) and train config for each."""
    seen = []

    class Spied(TrainLoop):
        def __init__(self, stack, text, train_config, *states):
            seen.append((stack, train_config))
            super().__init__(stack, text, train_config, *states)

    monkeypatch.setattr("search.worker.trainer.TrainLoop", Spied)
    return seen


def results(joined):
    """Return each trial's curve and losses by its parameters."""
    return {
        frozenset(trial.params.items()): trial.intermediate_values
        | {name: trial.user_attrs[name] for name in ("training_loss", "validation_loss")}
        for trial in joined.study.trials
    }


VARIED = {
    "learning_rate": [0.001, 0.02],
    "batch_size": [4, 6],
    "sequence_length": [8, 5],
    "smoothing": [0.5, 0.25],
    "optimizer": ["sgd", "adam"],
    "momentum": [0.0, 0.5],
    "gradient_clipping": [0.0, 0.1],
    "schedule": ["constant", "cosine"],
    "warmup_steps": [0, 3],
    "bptt_steps": [1, 2],
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.extended] * (name not in ("batch_size", "bptt_steps"))
        )
        for name in VARIED
    ],
)
def test_trial_trains_by_its_own_settings(sqlite_url, text, study, name):
    """As the trial of a study in which that setting is the same for all."""
    values = VARIED[name]
    optimizer = ["training.optimizer='sgd'"] if name == "momentum" else []
    varied = study(f"{GATED}[space.training]\n{name} = {values}\n")
    joined, _ = work(sqlite_url, text, [*TRAINING, *optimizer], study=varied, lockstep=1)
    assert len(joined.study.trials) == 4
    found, plain = results(joined), study(GATED)
    losses = set()
    for value in values:
        setting = f"training.{name}={value!r}"
        fixed, _ = work(
            sqlite_url, text, [*TRAINING, *optimizer, setting], study=plain, lockstep=1,
            name=f"fixed {value}",
        )  # fmt: skip
        for params, result in results(fixed).items():
            assert found[params | {(name, value)}] == result
            losses.add(result["training_loss"])
    assert len(losses) == 4, "the setting changes the training"


def test_gated_networks_of_several_optimizers_and_switches_train_together(
    sqlite_url, text, study, stacks
):
    path = study(
        f"{GATED}[space.training]\nlearning_rate = [0.001, 0.02]\noptimizer = ['adam', 'sgd']\n"
        "momentum = [0.0, 0.5]\nbatch_size = [4, 6]\n"
    )
    together, _ = work(sqlite_url, text, TRAINING, study=path, lockstep=100)
    assert len(together.study.trials) == 24
    assert [len(stack.configs) for stack, _ in stacks] == [12, 12]
    for stack, train_config in stacks:
        assert not stack.separate_texts, "gated networks are compared on one text"
        batch_sizes = {dict(config.varied)["batch_size"] for config in stack.configs}
        assert batch_sizes == {train_config.batch_size}
    alone, _ = work(sqlite_url, text, TRAINING, study=path, name="alone", lockstep=1)
    others = results(alone)
    for params, result in results(together).items():
        assert result == pytest.approx(others[params], rel=1e-5)


UNION = """
precision = "fp32"

[[space]]
cell = ["gated", "lstm"]
input_gate = [false]
output_gate = [false]
state_gate = [true]
residual = [true]
forget_gate = [false, true]
state_source = ["new"]
layers = [2]
state_size = [4]
training.learning_rate = [0.001, 0.02]

[[space]]
cell = ["cells.py:Small", "cells.py:Branching"]
norm = [false, true]
layers = [1]
state_size = [4]
training.learning_rate = [0.001, 0.02, 0.03]
"""


def test_union_of_cells_trains_each_kind_in_its_own_stacks(sqlite_url, text, study, stacks):
    path = study(UNION)
    joined, said = work(sqlite_url, text, TRAINING, study=path)
    assert len(joined.study.trials) == 4 + 2 + 6 + 6
    sizes = {}
    for stack, _ in stacks:
        cell = getattr(stack.configs[0].architecture, "cell", "gated")
        sizes.setdefault(cell, []).append(len(stack.configs))
        if cell != "gated":
            assert isinstance(stack, AutogradStack)
            assert len({config.architecture for config in stack.configs}) == 1
    assert sizes == {"gated": [4], "lstm": [2], "Small": [3, 3], "Branching": [1] * 6}
    (line,) = [line for line in said if "one at a time" in line]
    assert line.startswith("cell Branching cannot be trained in lockstep (torch.vmap: ")
    assert line.endswith("): its trials are trained one at a time")
    alone, said = work(sqlite_url, text, TRAINING, study=path, name="alone", lockstep=1)
    assert not any("one at a time" in line for line in said)
    others = results(alone)
    for params, result in results(joined).items():
        assert result == pytest.approx(others[params], rel=1e-4)


def test_worker_says_once_why_small_networks_train_slowly(sqlite_url, text, study, monkeypatch):
    obstacle = "no C compiler 'cc': install one, or set CC"
    monkeypatch.setattr("search.worker.lockstep.library_obstacle", lambda *args: obstacle)
    _, said = work(sqlite_url, text, TRAINING, study=study(GATED), lockstep=1)
    assert [line for line in said if "networks" in line] == [
        "small networks train without the library in C, at a fifth to half of the speed "
        f"({obstacle})"
    ]
