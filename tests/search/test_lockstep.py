"""Which trials train together, on which device and threads, and by which settings."""

import multiprocessing
import re
import signal
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from hooks import HANG_TIMEOUT
from test_worker import SETTINGS, work
from threadpoolctl import ThreadpoolController, threadpool_info
from user_cells import cell_config

from rnn.autograd import AutogradStack
from rnn.config import GatedOptions, TrialConfig
from rnn.network import estimate_memory
from rnn.training.devices import assign_devices
from rnn.training.loop import TrainLoop
from search.worker import cpu_budget, lockstep
from search.worker.cpu_budget import ThreadBudget
from search.worker.lockstep import auto_lockstep

TRAINING = [setting for setting in SETTINGS if not setting.startswith("space.")]

SWITCHES = """
input_gate = [false]
output_gate = [false]
state_gate = [true]
residual = [true]
forget_gate = [false, true]
state_source = ["new"]
layers = [2]
state_size = [4]
"""

GATED = f"precision = 'fp32'\n[space]{SWITCHES}"

BRANCHING = """

class Branching(MinGRU):
    def forward(self, x, state):
        if not state.isfinite().all():  # vmap cannot branch on data
            raise ValueError("diverged")
        return super().forward(x, state)
"""


@pytest.fixture
def study(tmp_path):
    example = (ROOT / "examples" / "cells" / "min_gru.py").read_text()
    (tmp_path / "cells.py").write_text(example + BRANCHING)

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
    "batch_size": [4, 6],
    "sequence_length": [8, 5],
    "smoothing": [0.5, 0.25],
    "schedule": ["constant", "cosine"],
    "bptt_steps": [1, 2],
}
"""Settings of the train loop, one of the optimizer and one of the engine, and two values each."""

OFTEN = ("batch_size", "bptt_steps")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.extended] * (x not in OFTEN)) for x in VARIED]
)
def test_trial_trains_by_its_own_settings(sqlite_url, text, study, name):
    """As the trial of a study in which that setting is the same for all."""
    values = VARIED[name]
    varied = study(f"{GATED}[space.training]\n{name} = {values}\n")
    joined, _ = work(sqlite_url, text, TRAINING, study=varied, lockstep=1)
    assert len(joined.study.trials) == 4
    found, plain = results(joined), study(GATED)
    losses = set()
    for value in values:
        settings = [*TRAINING, f"training.{name}={value!r}"]
        fixed, _ = work(sqlite_url, text, settings, study=plain, lockstep=1, name=f"fixed {value}")
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
        assert not isinstance(stack, AutogradStack), "gated networks are compared on one text"
        batch_sizes = {dict(config.varied)["batch_size"] for config in stack.configs}
        assert batch_sizes == {train_config.batch_size}
    alone, _ = work(sqlite_url, text, TRAINING, study=path, name="alone", lockstep=1)
    others = results(alone)
    for params, result in results(together).items():
        assert result == pytest.approx(others[params], rel=1e-5)


UNION = f"""
precision = "fp32"

[[space]]
cell = ["gated", "lstm"]
block = ["plain", "residual"]
{SWITCHES}
training.learning_rate = [0.001, 0.02]

[[space]]
cell = ["cells.py:MinGRU", "cells.py:Branching"]
candidate_tanh = [false, true]
block = ["residual"]
layers = [1]
state_size = [4]
training.learning_rate = [0.001, 0.02, 0.03]
"""


def test_union_of_cells_trains_each_kind_in_its_own_stacks(
    sqlite_url, text, study, stacks, monkeypatch
):
    monkeypatch.setattr("search.networks.check_cells", lambda *_: None)
    path = study(UNION)
    joined, said = work(sqlite_url, text, TRAINING, study=path)
    assert len(joined.study.trials) == 2 * (4 + 2) + 6 + 6
    sizes = {}
    for stack, _ in stacks:
        architecture = stack.configs[0].architecture
        kind = f"{architecture.cell}, {architecture.block}"
        sizes.setdefault(kind, []).append(len(stack.configs))
        if kind != "gated, plain":
            assert isinstance(stack, AutogradStack)
            assert len({config.architecture for config in stack.configs}) == 1
    assert sizes == {
        "gated, plain": [4],
        "gated, residual": [2, 2],  # by autograd, each architecture alone
        "lstm, plain": [2],
        "lstm, residual": [2],
        "MinGRU, residual": [3, 3],
        "Branching, residual": [1] * 6,
    }
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


CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def all_options(state_size, layers=2):
    return TrialConfig(GatedOptions.of_largest().network(layers, state_size))


PLAIN = TrialConfig(GatedOptions(False, False, False, False, False, "new").network(3, 32))


@pytest.mark.parametrize(
    ("library", "threads", "config", "batch_size", "expected"),
    [
        (True, 1, all_options(32, 1), 256, 8),
        (True, 12, all_options(32, 1), 256, 12),
        (True, 50, all_options(32, 1), 256, 32),
        # As without a compiler: small networks in lockstep, large ones alone.
        (False, 1, all_options(32, 1), 256, 32),
        (False, 1, all_options(64), 32, 32),
        (False, 1, all_options(64), 256, 1),
        (False, 1, TrialConfig(cell_config("TorchGRU", 1, 8)), 8, 1),
    ],
)
def test_cpu_trains_small_networks_in_lockstep(
    monkeypatch, library, threads, config, batch_size, expected
):
    monkeypatch.setattr(lockstep, "pays_off", lambda *args: library)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert auto_lockstep(config, batch_size, "fp32", CPU) == expected


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_lockstep_size_is_limited_by_memory(monkeypatch, device):
    size = estimate_memory(all_options(32, 3), 256, "fp32")
    for memory, expected in ((10 * size, 8), (1, 1)):
        monkeypatch.setattr(lockstep, "available_memory", lambda device, memory=memory: memory)
        assert auto_lockstep(PLAIN, 256, "fp32", device) == expected


def test_workers_of_a_machine_share_its_gpus(monkeypatch):
    assert assign_devices("auto", 3) == ["auto"] * 3 or torch.cuda.device_count() > 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda"):
        assert assign_devices(name, 5) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]
    assert assign_devices("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert assign_devices("cpu", 2) == ["cpu", "cpu"]


# ------------------------------------------------------------------ threads


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(cpu_budget, "cores", lambda: 8)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("eight_cores")
def test_workers_share_all_cores_and_reclaim_those_of_ended_workers(tmp_path):
    with ThreadBudget(folder=tmp_path) as one:
        with ThreadBudget(folder=tmp_path) as two, ThreadBudget(folder=tmp_path) as three:
            assert sorted(w.thread_count() for w in (one, two, three)) == [2, 3, 3]
        assert one.thread_count() == 8


@pytest.mark.usefixtures("eight_cores")
def test_fixed_thread_count_is_kept_and_subtracted_for_others(tmp_path):
    with ThreadBudget(folder=tmp_path) as one, ThreadBudget(3, folder=tmp_path) as fixed:
        assert (one.thread_count(), fixed.thread_count()) == (5, 3)
        with ThreadBudget(20, folder=tmp_path):
            assert one.thread_count() == 1, "a share is at least one thread"


def hold(folder, ready) -> None:
    with ThreadBudget(folder=folder):
        ready.set()
        signal.pause()


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.extended
def test_cores_of_a_killed_worker_go_to_the_others(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready))
    other.start()
    assert ready.wait(HANG_TIMEOUT)
    with ThreadBudget(folder=tmp_path) as one:
        assert one.thread_count() == 4
        other.kill()
        other.join()
        assert one.thread_count() == 8
        assert len(list(tmp_path.iterdir())) == 1, "the file of the killed worker is removed"


def put_open_folder(place):
    place.mkdir()
    place.chmod(0o777)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize("put", [put_open_folder, Path.touch])
def test_unusable_folder_is_left_alone_and_the_worker_trains_as_if_alone(tmp_path, caplog, put):
    """Another user has put something else in its place."""
    place = tmp_path / "workers"
    put(place)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with ThreadBudget(folder=place) as one, ThreadBudget(3, folder=place) as fixed:
        assert (one.apply(), fixed.apply()) == (8, 3)
        one.release()
        assert one.apply() == 8
    (warning,) = caplog.messages  # none of the worker that does not share
    assert str(place) in warning
    assert "--threads" in warning
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def numpy_blas_threads():
    (library,) = (each for each in threadpool_info() if "numpy" in each["filepath"])
    return library["num_threads"]


@pytest.mark.usefixtures("eight_cores")
def test_numpy_uses_one_thread_and_pytorch_its_share(tmp_path):
    """Its predictions run while PyTorch trains."""
    with ThreadpoolController().limit(limits=4, user_api="blas"):
        assert numpy_blas_threads() == 4
        with ThreadBudget(3, folder=tmp_path) as budget:
            assert numpy_blas_threads() == 1
            assert budget.apply() == torch.get_num_threads() == 3
            # OpenMP's threads, and those of matrix products where MKL computes them.
            info = torch.__config__.parallel_info()
            assert set(re.findall(r"(?:omp|mkl)_get_max_threads\(\) : (\d+)", info)) == {"3"}
        assert numpy_blas_threads() == 4
