"""The reference network as an ordinary module."""

import pytest
import torch
from network_configs import baseline_configs, each_of, gated_configs, label
from torch import nn

from rnn.config import GatedConfig
from rnn.models.bptt_network import build_module

STREAMS, VOCAB_SIZE = 3, 11
GATED, BASELINES = gated_configs(2, 4), baseline_configs(2, 4)


@each_of(GATED, BASELINES, together=3)
def test_many_steps_at_once_equal_single_steps(config):
    torch.manual_seed(0)
    module = build_module(config, VOCAB_SIZE).double()
    tokens = torch.randint(VOCAB_SIZE, (4, STREAMS))
    logits, states = module(tokens, module.init_state(STREAMS))
    single_states = module.init_state(STREAMS)
    for each in tokens:
        single_logits, single_states = module(each[None], single_states)
    assert logits.shape == (STREAMS, VOCAB_SIZE)
    torch.testing.assert_close(single_logits, logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(single_states, states, rtol=1e-12, atol=1e-12)

    layer, xs = module.layers[0], torch.rand(4, STREAMS, 4, dtype=torch.float64)
    ys, state = layer(xs, module.init_state(STREAMS)[0])
    last_ys, last_state = layer(xs, module.init_state(STREAMS)[0], last_only=True)
    assert ys.shape == xs.shape
    torch.testing.assert_close(last_ys[-1], ys[-1], rtol=1e-12, atol=1e-12)
    assert torch.equal(last_state, state)


@pytest.mark.parametrize("config", [GATED[-1], *BASELINES], ids=label)
def test_parameters_start_within_the_bounds_of_linear_layers(config):
    torch.manual_seed(0)
    for linear in build_module(config, VOCAB_SIZE).modules():
        if isinstance(linear, nn.Linear):
            for parameter in linear.parameters():
                assert 0 < parameter.abs().max() <= linear.in_features**-0.5


def test_module_trains_with_an_optimizer_of_torch():
    torch.manual_seed(0)
    module = build_module(GatedConfig(True, True, True, True, True, "both", 2, 16), VOCAB_SIZE)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    text = torch.arange(60).reshape(20, STREAMS).remainder(VOCAB_SIZE)
    losses = []
    for _ in range(20):
        logits, _ = module(text[:-1], module.init_state(STREAMS))
        loss = nn.functional.cross_entropy(logits, text[-1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
