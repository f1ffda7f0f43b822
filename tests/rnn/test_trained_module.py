"""A trained network as a plain module: the same numbers as the network that was trained."""

from pathlib import Path

import pytest
import torch
from network_configs import baseline_configs, gated_configs, label, representatives

from rnn.cells.loading import load_cell
from rnn.cells.source import read_cell_source
from rnn.config import CellConfig, TrialConfig
from rnn.data.tokenizer import ByteTokenizer
from rnn.inference.saved_model import SavedModel
from rnn.inference.trained_module import build_trained_module
from rnn.models.factory import build_network

CELLS = Path(__file__).parents[2] / "examples" / "cells"


def own_config() -> CellConfig:
    source = read_cell_source("min_gru.py:MinGRU", CELLS)
    load_cell(source)
    return CellConfig("MinGRU", source.sha256, (("candidate_tanh", True),), 2, 3)


@pytest.mark.parametrize(
    "config",
    [*representatives(gated_configs(2, 3), 2), *baseline_configs(2, 3), own_config()],
    ids=label,
)
@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_module_computes_what_the_trained_network_computes(config, precision):
    computed = "fp64" if precision == "fp64" else "fp32"
    network = build_network([TrialConfig(config)], 7, computed)
    weights = network.parameters.extract(0, network.parameters.values)
    module = build_trained_module(SavedModel(config, weights, ByteTokenizer(), precision, {}))
    tokens = torch.randint(256, (5, 4), generator=torch.Generator().manual_seed(0))
    states = network.init_state(4)
    with torch.inference_mode():
        for each in tokens:
            expected, states = network.forward(each, states)
            states = [state.clone() for state in states]
        _, read = module(tokens[:2])
        logits, _ = module(tokens[2:], read)
    assert not module.training
    assert all(parameter.is_contiguous() for parameter in module.parameters())
    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-5)
