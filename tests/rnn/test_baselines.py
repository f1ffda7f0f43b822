"""The baseline cells compute what PyTorch's own modules compute."""

import itertools

import pytest
import torch
from network_configs import baseline_configs, label
from torch import nn

from rnn.config import BaselineConfig, TrialConfig
from rnn.models.bptt_network import BPTTNetwork

STREAMS, VOCAB_SIZE, STEPS = 3, 11, 5
EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("config", baseline_configs(2, 4), ids=label)
def test_losses_and_gradients_equal_those_of_torchs_module(config: BaselineConfig):
    n = config.state_size
    network = BPTTNetwork([TrialConfig(config, 0, STEPS)], 3, "fp64", VOCAB_SIZE)
    parameters = network.parameters
    weights = parameters.extract(0, parameters.values)
    module = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[config.cell](n, n, config.layers)
    module.double()
    maps = list(itertools.product(range(config.layers), (("input", "ih"), ("state", "hh"))))
    for layer, (name, suffix) in maps:
        weight, bias = (weights[f"layers.{layer}.{name}.{kind}"] for kind in ("weight", "bias"))
        with torch.no_grad():
            getattr(module, f"weight_{suffix}_l{layer}").copy_(weight.T)
            getattr(module, f"bias_{suffix}_l{layer}").copy_(bias)

    generator = torch.Generator().manual_seed(1)
    text = torch.randint(VOCAB_SIZE, (STEPS + 1, STREAMS), generator=generator)
    xs = weights["embedding.weight"][text[:-1]] + weights["embedding.bias"]
    outputs, _ = module(xs)  # (STEPS, B, n)
    expected = outputs @ weights["head.weight"] + weights["head.bias"]
    states = network.init_state(STREAMS)
    for t in range(STEPS):
        logits, states = network.forward(text[t], states)
        torch.testing.assert_close(logits[0], expected[t].detach(), **EXACT)
        losses = nn.functional.cross_entropy(expected[t], text[t + 1], reduction="none")
        torch.testing.assert_close(network.losses(logits, text[t + 1])[0], losses.detach(), **EXACT)

    states = network.init_training_state(STREAMS)
    for t in range(STEPS):
        _, states = network.loss_and_grad(text[t], text[t + 1], states)
    losses.mean().backward()
    grads = parameters.extract(0, parameters.grads)
    for layer, (name, suffix) in maps:
        weight, bias = (grads[f"layers.{layer}.{name}.{kind}"] for kind in ("weight", "bias"))
        torch.testing.assert_close(weight.T, getattr(module, f"weight_{suffix}_l{layer}").grad)
        torch.testing.assert_close(bias, getattr(module, f"bias_{suffix}_l{layer}").grad)
