"""Training on a GPU: recorded steps, repetition, removal, resumption, and the CPU's results.

``pytest -m gpu tests/rnn`` needs PyTorch, numpy and pytest alone. Without the marker the same tests
run on the processor, with a stand-in for the graph.
"""

import contextlib
import gc
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from graph_stand_in import StandInRecorder, refuse_reading
from network_configs import assert_close as assert_tensors_close
from user_cells import cell_config

from rnn.config import (
    BASELINE_CELLS,
    OPTIMIZERS,
    BaselineConfig,
    GatedConfig,
    OptimizerConfig,
    TrialConfig,
)
from rnn.models.bptt_network import BPTTNetwork
from rnn.models.cell_network import CellNetwork, supports_lockstep
from rnn.stacked.network import NetworkStack
from rnn.training.devices import available_memory
from rnn.training.evaluation import compute_eval_losses, select_eval_windows
from rnn.training.graph import WARMUP_STEPS, CudaGraphRecorder, GraphRunner
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.precision import check_precision

CPU = torch.device("cpu")

TEXT = np.frombuffer(b"It was the best of times, it was the worst of times. " * 30, np.uint8)

TRAIN_CONFIG = TrainConfig(
    steps=20,
    batch_size=6,
    sequence_length=9,
    log_every=2,
    smoothing=0.9,
    seed=3,
    average_fraction=0.5,
)

RATE = OptimizerConfig(learning_rate=0.01)

STACK = [
    TrialConfig(GatedConfig(False, True, False, True, True, "new", 2, 8), optimizer=RATE),
    TrialConfig(GatedConfig(True, True, True, True, True, "both", 2, 8), optimizer=RATE),
    TrialConfig(GatedConfig(False, False, False, False, False, "old", 2, 8), optimizer=RATE),
    TrialConfig(GatedConfig(True, False, False, False, True, "old", 2, 8), optimizer=RATE),
]

# Every optimizer, with and without clipping.
DIFFERENT = [
    config._replace(optimizer=OptimizerConfig(name, 0.01, 0.9, 0.99, 0.01, gradient_clipping=limit))
    for config, name, limit in zip(STACK, OPTIMIZERS, (0.1, 0.1, 0.1, 0.0), strict=True)
]

ELMAN, GRU, LSTM = (
    [TrialConfig(BaselineConfig(cell, 2, 8), optimizer=RATE)] for cell in BASELINE_CELLS
)

WINDOWS = {
    f"{config.architecture.label} bptt": [config._replace(bptt_steps=3)]
    for config in (STACK[1], *GRU, *LSTM)
}

PRECISIONS = [
    "fp64",
    "bf16",
    *(pytest.param(each, marks=pytest.mark.gpu) for each in ("fp32", "tf32")),
]

TOLERANCES = {"fp64": 1e-9, "fp32": 1e-4, "tf32": 0.01, "bf16": 0.02}
"""Largest relative difference of a smoothed loss between devices, or in stacks of other sizes."""


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """A GPU, or the processor, which then runs a GPU's operations and a stand-in for its graphs."""
    if request.param == "cuda":
        return torch.device("cuda:0")
    recorder = StandInRecorder()
    monkeypatch.setattr("rnn.training.step.find_recorder", lambda device: recorder)

    def backward_embedding(stack, tokens, d):
        torch.sum(d, 1, keepdim=True, out=stack._embedding.bias_grad)
        stack._add_rows_by_product(tokens, d)

    monkeypatch.setattr(NetworkStack, "_backward_embedding", backward_embedding)
    monkeypatch.setattr("rnn.stacked.network.padding_pays", lambda device, state_size: True)
    return CPU


@pytest.fixture
def without_graph(monkeypatch):
    """Run every step."""

    def apply():
        monkeypatch.setattr("rnn.training.step.find_recorder", lambda device: None)

    return apply


@pytest.fixture
def plain_processor(device, monkeypatch):
    """Return the processor, as it trains without a GPU."""

    def undo():
        monkeypatch.undo()
        return CPU

    return undo


def begin(configs, device, precision="fp32", states=None):
    """Begin a training, or resume it from states by config."""
    check_precision(precision, device)
    weights = {config: state.weights for config, state in (states or {}).items()}
    architecture = configs[0].architecture
    if isinstance(architecture, GatedConfig) and configs[0].bptt_steps == 1:
        network = NetworkStack(
            configs, 1, precision, device=device, weights=weights, static_graph=True
        )
    else:
        is_built_in = isinstance(architecture, GatedConfig | BaselineConfig)
        network_class = BPTTNetwork if is_built_in else CellNetwork
        network = network_class(configs, 1, precision, device=device, weights=weights)
    return TrainLoop(network, TEXT, TRAIN_CONFIG, states)


def train(configs, device, precision="fp32", on_step=lambda run: None):
    run = begin(configs, device, precision)
    list(run.train(lambda: on_step(run)))
    return run


def is_recorded(run):
    runner = run._train_step.graph_runner
    return runner is not None and runner.is_recorded


def curves(run):
    return {
        config: list(curve.values()) for config, curve in zip(run.configs, run.curves, strict=True)
    }


def assert_equal(run, other):
    assert run.curves == other.curves
    for name in ("values", "full_grads"):
        assert torch.equal(
            getattr(run.stack.parameters, name), getattr(other.stack.parameters, name)
        )
    for one, two in zip(run._train_step.states, other._train_step.states, strict=True):
        assert torch.equal(one, two)


def assert_close(run, other, precision="fp32"):
    expected = curves(other)
    for config, losses in curves(run).items():
        assert losses == pytest.approx(expected[config], rel=TOLERANCES[precision])


each_training = pytest.mark.parametrize(
    "configs",
    [STACK[:1], STACK, DIFFERENT, ELMAN, GRU, LSTM, *WINDOWS.values()],
    ids=["alone", "stack", "optimizers", "elman", "gru", "lstm", *WINDOWS],
)


@pytest.mark.parametrize("precision", PRECISIONS)
@each_training
def test_recorded_step_equals_one_that_is_run(device, without_graph, configs, precision):
    recorded = train(configs, device, precision)
    assert is_recorded(recorded)
    without_graph()
    expected = train(configs, device, precision)
    assert not is_recorded(expected)
    assert_equal(recorded, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "configs",
    [STACK, DIFFERENT, GRU, LSTM, *WINDOWS.values()],
    ids=["stack", "optimizers", "gru", "lstm", *WINDOWS],
)
def test_device_trains_as_the_processor_does(device, plain_processor, configs, precision):
    run = train(configs, device, precision)
    expected = train(configs, plain_processor(), "fp32" if precision == "tf32" else precision)
    assert_close(run, expected, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@each_training
def test_training_repeats_bit_for_bit(device, configs, precision):
    assert_equal(train(configs, device, precision), train(configs, device, precision))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("configs", [STACK, DIFFERENT], ids=["stack", "optimizers"])
@pytest.mark.parametrize("step", [WARMUP_STEPS, 11])
def test_networks_are_removed_from_a_recorded_stack(device, configs, precision, step):
    earlier = []

    def remove(run):
        if run.step == step:
            earlier.append(weakref.ref(run._train_step))
            run.remove_configs(configs[1:3])

    shrunk = train(configs, device, precision, remove)
    assert len(shrunk.configs) == 2
    assert is_recorded(shrunk)
    assert earlier[0]() is None, "memory may not suffice for both stacks"
    assert_close(shrunk, train(configs, device, precision), precision)
    assert_equal(shrunk, train(configs, device, precision, remove))


def test_memory_of_a_stack_is_freed_when_networks_are_removed(device):
    if device.type == "cpu":
        pytest.skip("the processor's memory is that of the whole process")

    def free():
        gc.collect()
        torch.cuda.synchronize(device)
        return available_memory(device)

    def remove(run):
        if run.step == 11:
            run.remove_configs(STACK[:3])

    before = free()
    assert is_recorded(train(STACK, device, on_step=remove))
    assert before - free() < 64 * 2**20, "libraries keep some for themselves"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("step", [2, 14])
@each_training
def test_training_resumes_bit_for_bit(device, configs, precision, step):
    run = begin(configs, device, precision)
    list(zip(run.train(), range(step // 2), strict=False))  # at a log point
    states = {config: run.train_state(config) for config in run.configs}
    resumed = begin(configs, device, precision, states)
    list(resumed.train())
    assert_equal(resumed, train(configs, device, precision))


@pytest.mark.parametrize("starts_on", ["device", "processor"])
@pytest.mark.parametrize("configs", [STACK, DIFFERENT, LSTM], ids=["stack", "optimizers", "lstm"])
def test_training_resumes_on_another_device(device, configs, starts_on):
    first, second = (device, CPU) if starts_on == "device" else (CPU, device)
    run = begin(configs, first, "fp64")
    list(zip(run.train(), range(5), strict=False))
    states = {config: run.train_state(config) for config in run.configs}
    resumed = begin(configs, second, "fp64", states)
    list(resumed.train())
    assert_close(resumed, train(configs, CPU, "fp64"), "fp64")


@pytest.mark.parametrize("configs", [STACK, LSTM], ids=["stack", "lstm"])
def test_evaluation_between_two_steps_changes_nothing(device, plain_processor, configs):
    windows = select_eval_windows(TEXT, 4 * TRAIN_CONFIG.batch_size, 20)
    losses = []

    def evaluate(run):
        if run.step == 11:
            losses.append(compute_eval_losses(run.stack, windows))

    evaluated = train(configs, device, "fp64", evaluate)
    assert_equal(evaluated, train(configs, device, "fp64"))
    train(configs, plain_processor(), "fp64", evaluate)
    assert len(losses[0]) == len(configs)
    torch.testing.assert_close(losses[0].cpu(), losses[1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("count", [1, 3])
def test_own_cells_train_as_on_the_processor(device, plain_processor, count, precision):
    architecture = cell_config("MinGRU", layers=2, state_size=8)
    assert supports_lockstep(architecture, precision, device)
    configs = [TrialConfig(architecture, replicate, optimizer=RATE) for replicate in range(count)]
    run = train(configs, device, precision)
    assert not is_recorded(run), "a cell may do what a graph cannot"
    assert_close(run, train(configs, plain_processor(), precision), precision)


def test_averaged_weights_are_those_of_the_processor(device, plain_processor):
    run = train(STACK, device, "fp64")
    run.swap_in_averaged_weights()
    expected = train(STACK, plain_processor(), "fp64")
    expected.swap_in_averaged_weights()
    for config in STACK:
        averages = [
            each.stack.parameters.extract(each.configs.index(config), each.stack.parameters.values)
            for each in (run, expected)
        ]
        assert_tensors_close(*averages, rtol=1e-7, atol=1e-9)


def test_learning_rate_can_change_after_the_recording(device, without_graph):
    def decay(run):
        run._train_step.optimizer.learning_rate_factor = 1.0 if run.step < 8 else 1 / run.step

    recorded = train(STACK, device, "fp64", decay)
    assert is_recorded(recorded)
    without_graph()
    assert_equal(recorded, train(STACK, device, "fp64", decay))
    assert recorded.curves != train(STACK, device, "fp64").curves


# ------------------------------------------------------------------ the runner and the stand-in


class Failing(StandInRecorder):
    """A device that runs work and cannot record it."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def record(self, work):
        raise self.error


def test_step_that_cannot_be_recorded_is_run(monkeypatch):
    expected = train(STACK, CPU)
    recorder = Failing(RuntimeError("operation not permitted\nDetails"))
    monkeypatch.setattr("rnn.training.step.find_recorder", lambda device: recorder)
    with pytest.warns(RuntimeWarning, match=r"\(operation not permitted\): it runs") as warned:
        run = train(STACK, CPU)
    assert len(warned) == 1
    assert not is_recorded(run)
    assert_equal(run, expected)


def test_lack_of_memory_in_a_recording_ends_the_training(monkeypatch):
    """The worker then trains fewer networks together."""
    recorder = Failing(torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr("rnn.training.step.find_recorder", lambda device: recorder)
    run = begin(STACK, CPU)
    with pytest.raises(torch.OutOfMemoryError):
        list(run.train())
    assert run.step == WARMUP_STEPS


def run_often(work):
    runner = GraphRunner(StandInRecorder())
    for _ in range(WARMUP_STEPS + 3):
        runner.run(work)


def test_stand_in_runs_work_once_a_call():
    count = torch.zeros(())
    run_often(lambda: count.add_(1))
    assert count == WARMUP_STEPS + 3


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: torch.tensor([1.0, 2.0]),
    ],
    ids=["item", "tolist", "mask", "nonzero", "cpu", "numbers"],
)
def test_stand_in_refuses_what_a_recording_does_not_allow(read):
    x = torch.ones(3)
    with pytest.warns(RuntimeWarning, match=r"cannot be recorded .*(reads|copies)"):
        run_often(lambda: read(x))
    with refuse_reading(), pytest.raises(RuntimeError, match="reads"):
        x.tolist()


def test_stand_in_notices_memory_that_was_freed():
    memory = [torch.zeros(3)]
    runner = GraphRunner(StandInRecorder())
    for _ in range(WARMUP_STEPS + 1):
        runner.run(lambda: memory[0].add_(1))
    memory[0] = memory[0].clone()
    with pytest.raises(RuntimeError, match="has been freed"):
        runner.run(lambda: memory[0].add_(1))


def test_streams_that_share_tokens_cannot_be_recorded(device):
    """Shows that a step whose operations depend on the text would be noticed."""
    stack = NetworkStack(STACK, 1, device=device, static_graph=False)
    run = TrainLoop(stack, TEXT, replace(TRAIN_CONFIG, average_fraction=0.0))
    run._train_step.graph_runner = GraphRunner(StandInRecorder())
    if device.type == "cpu":
        with pytest.warns(RuntimeWarning, match="bincount reads a computed number"):
            list(run.train())


# ------------------------------------------------------------------ how CUDA is called


class FakeCuda:
    """Stands for ``torch.cuda`` in the recorder: streams that note what they wait for.

    Attributes:
        current: the stream that is selected.
        calls: what was done, in order.
    """

    def __init__(self, monkeypatch):
        fake = self
        self.calls = []
        self.error = None

        class Stream:
            def __init__(self, name):
                self.name = name

            def wait_stream(self, other):
                fake.calls.append(f"{self.name} waits for {other.name}")

        self.current = Stream("default")
        self.side = Stream("side")

        @contextlib.contextmanager
        def select(stream):
            before, self.current = self.current, stream
            yield
            self.current = before  # as in PyTorch, not after an error

        @contextlib.contextmanager
        def restore(stream):
            before, self.current = self.current, stream
            try:
                yield
            finally:
                self.current = before

        @contextlib.contextmanager
        def record(graph, stream):
            assert not gc.isenabled()
            with select(stream):
                fake.calls.append(f"record on {stream.name}")
                yield
                if self.error is not None:
                    raise self.error

        monkeypatch.setattr("rnn.training.graph._side_stream", lambda device: self.side)
        for name, value in {
            "device": lambda device: contextlib.nullcontext(),
            "current_stream": lambda: self.current,
            "stream": restore,
            "graph": record,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: fake.calls.append("replay")),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def work(self):
        self.calls.append(f"work on {self.current.name}")


def test_step_is_recorded_on_the_stream_that_it_was_warmed_up_on(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    runner = GraphRunner(CudaGraphRecorder(torch.device("cuda:0")))
    for _ in range(WARMUP_STEPS + 2):
        runner.run(cuda.work)
    warm_up = ["side waits for default", "work on side", "default waits for side"]
    recording = ["record on side", "work on side", "replay"]
    assert cuda.calls == [*warm_up * WARMUP_STEPS, *recording, "replay"]


def test_failed_recording_leaves_stream_and_garbage_collection_as_they_were(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    cuda.error = RuntimeError("operation failed due to a previous error during capture")
    runner = GraphRunner(CudaGraphRecorder(torch.device("cuda:0")))
    for _ in range(WARMUP_STEPS):
        runner.run(cuda.work)
    with pytest.warns(RuntimeWarning, match="cannot be recorded"):
        runner.run(cuda.work)
    assert cuda.current.name == "default"
    assert gc.isenabled()
    assert cuda.calls[-3:] == ["side waits for default", "work on side", "default waits for side"]
    assert "replay" not in cuda.calls
