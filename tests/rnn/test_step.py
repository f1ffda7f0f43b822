"""A training step can be captured once as a graph and replayed."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rnn.config import OPTIMIZERS, GatedConfig, OptimizerConfig, TrialConfig
from rnn.stacked.network import NetworkStack
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.step import WARMUP_STEPS, TrainStep

TEXT = np.frombuffer(b"It was the best of times, it was the worst of times. " * 30, np.uint8)
TRAIN_CONFIG = TrainConfig(
    steps=20,
    batch_size=6,
    sequence_length=9,
    log_every=2,
    smoothing=0.9,
    seed=3,
)
OPTIMIZER = OptimizerConfig(learning_rate=0.01)
CONFIGS = [
    TrialConfig(GatedConfig(False, True, False, True, True, "new", 2, 8), optimizer=OPTIMIZER),
    TrialConfig(GatedConfig(True, True, True, True, True, "both", 2, 8), optimizer=OPTIMIZER),
    TrialConfig(GatedConfig(False, False, False, False, False, "old", 2, 8), optimizer=OPTIMIZER),
    TrialConfig(GatedConfig(True, False, False, False, True, "old", 2, 8), optimizer=OPTIMIZER),
]

# Every optimizer, with and without clipping.
DIFFERENT = [
    config._replace(optimizer=OptimizerConfig(name, 0.01, 0.9, 0.99, 0.01, gradient_clipping=limit))
    for config, name, limit in zip(CONFIGS, OPTIMIZERS, (0.0, 0.1, 0.1, 0.1), strict=True)
]


class Graph(TorchDispatchMode):
    """Captures operations and the memory they use, as a CUDA graph does.

    A replay runs no Python code of the work. It gives the right results only if the work is the
    same operations on the same memory in every call. Reading a computed number, which capture does
    not allow, is an error here too.
    """

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "unique2", "is_nonzero", "bincount"):
            raise RuntimeError(f"{name} reads a computed number")
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, result in self.operations:
            repeated = function(*args, **kwargs)
            for old, new in zip(tensors(result), tensors(repeated), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors(result):
    if isinstance(result, torch.Tensor):
        return [result]
    parts = result if isinstance(result, tuple | list) else []
    return [part for part in parts if isinstance(part, torch.Tensor)]


def train(configs, precision, static_graph):
    stack = NetworkStack(configs, 1, precision, static_graph=static_graph)
    run = TrainLoop(stack, TEXT, TRAIN_CONFIG)
    list(run.train())
    return run


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
@pytest.mark.parametrize(
    "configs", [CONFIGS[:1], CONFIGS, DIFFERENT], ids=["single", "stack", "optimizers"]
)
def test_replayed_step_equals_an_executed_one(monkeypatch, configs, precision):
    graphs = []

    class GraphRunner:
        """Runs work as :class:`rnn.training.step.CudaGraphRunner` does."""

        def __init__(self):
            self.calls, self.graph = 0, None

        def run(self, work):
            self.calls += 1
            if self.calls <= WARMUP_STEPS:
                work()
            elif self.calls == WARMUP_STEPS + 1:
                with Graph() as self.graph:
                    work()
                graphs.append(self.graph)
            else:
                self.graph.replay()

    class ReplayedStep(TrainStep):
        def __init__(self, *args):
            super().__init__(*args)
            self._graph_runner = GraphRunner()

    expected = train(configs, precision, static_graph=True)
    monkeypatch.setattr("rnn.training.loop.TrainStep", ReplayedStep)
    replayed = train(configs, precision, static_graph=True)
    assert len(graphs) == 1
    assert replayed.curves == expected.curves
    assert torch.equal(replayed.stack.parameters.values, expected.stack.parameters.values)


def test_step_without_static_graph_cannot_be_captured():
    """Shows that the graph of the test above would notice."""
    run = TrainLoop(NetworkStack(CONFIGS, 1, static_graph=False), TEXT, TRAIN_CONFIG)
    with pytest.raises(RuntimeError, match="reads a computed number"), Graph():
        list(run.train())


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_streams_that_share_tokens_train_as_separate_ones(precision):
    shared, separate = (train(CONFIGS, precision, static_graph) for static_graph in (False, True))
    tolerance = 1e-9 if precision == "fp64" else 0.02
    for curve, expected in zip(shared.curves, separate.curves, strict=True):
        assert curve == pytest.approx(expected, rel=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("configs", [CONFIGS, DIFFERENT], ids=["stack", "optimizers"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_cuda_graph_repeats_bit_for_bit_across_a_removal(precision, configs):
    def train_on_gpu():
        stack = NetworkStack(configs, 1, precision, device=torch.device("cuda"))
        run = TrainLoop(stack, TEXT, TRAIN_CONFIG)

        def on_step():
            if run.step == 11:
                run.remove_configs(configs[1:2])

        list(run.train(on_step))
        return run.curves

    first = train_on_gpu()
    assert len(first) == 3
    assert first == train_on_gpu()
