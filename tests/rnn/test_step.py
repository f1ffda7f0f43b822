"""Steps of streams that share tokens; :mod:`test_gpu` has those that are recorded as a graph."""

import numpy as np
import pytest

from rnn.config import GatedConfig, OptimizerConfig, TrialConfig
from rnn.stacked.network import NetworkStack
from rnn.training.loop import TrainConfig, TrainLoop

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


def train(configs, precision, static_graph):
    stack = NetworkStack(configs, 1, precision, static_graph=static_graph)
    run = TrainLoop(stack, TEXT, TRAIN_CONFIG)
    list(run.train())
    return run


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_streams_that_share_tokens_train_as_separate_ones(precision):
    shared, separate = (train(CONFIGS, precision, static_graph) for static_graph in (False, True))
    tolerance = 1e-9 if precision == "fp64" else 0.02
    for curve, expected in zip(shared.curves, separate.curves, strict=True):
        assert curve == pytest.approx(expected, rel=tolerance)
