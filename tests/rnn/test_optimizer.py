"""The fused Adam computes what torch.optim.Adam computes, in every precision."""

import subprocess
import sys

import pytest
import torch

from rnn.config import GatedConfig, TrialConfig
from rnn.stacked.network import NetworkStack
from rnn.training import optimizer
from rnn.training.optimizer import Adam

CONFIGS = [
    TrialConfig(GatedConfig(False, True, False, True, True, "new", 2, 6)),
    TrialConfig(GatedConfig(True, True, True, True, True, "both", 2, 6)),
    # Its candidate and gates never have a gradient.
    TrialConfig(GatedConfig(False, True, True, True, True, "old", 2, 6)),
]


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("chunk_size", [100, 1 << 16])
def test_updates_equal_those_of_torch_optim(monkeypatch, precision, chunk_size):
    monkeypatch.setattr(optimizer, "_CHUNK_SIZE", chunk_size)
    stack = NetworkStack(CONFIGS, 3, precision, vocab_size=11)
    parameters, states = stack.parameters, stack.init_state(4)
    adam = Adam(parameters, 0.01)
    reference = parameters.values.clone().requires_grad_()
    torch_adam = torch.optim.Adam([reference], lr=0.01)
    initial = parameters.values.clone()
    for step in range(8):
        tokens = torch.tensor([step, 1, 2, 10 - step])
        stack.loss_and_grad(tokens, tokens.flip(0), states)
        reference.grad = parameters.grads.clone()
        adam.step()
        torch_adam.step()
        torch.testing.assert_close(parameters.values, reference.detach(), rtol=1e-5, atol=1e-7)
        copies = parameters.matmul_values
        assert torch.equal(copies, parameters.values[: len(copies)].to(copies))
    assert adam.updates == 8
    k = stack.configs.index(CONFIGS[2])
    before, after = (parameters.extract(k, flat) for flat in (initial, parameters.values))
    assert torch.equal(before["layers.1.candidate.weight"], after["layers.1.candidate.weight"])
    assert not torch.equal(before["layers.1.read_out.weight"], after["layers.1.read_out.weight"])


def test_training_does_not_import_the_compiler():
    """``torch.optim`` imports it, which takes every worker a second."""
    code = (
        "import sys, numpy, rnn.training.loop as t, rnn.stacked.network as n, rnn.config as a\n"
        "m = [a.TrialConfig(a.GatedConfig(True, True, True, True, True, 'both', 1, 3))]\n"
        "text = numpy.zeros(99, numpy.uint8)\n"
        "list(t.TrainLoop(n.NetworkStack(m, 0), text, "
        "t.TrainConfig(3, 2, 5, 1, 0.1, 0.9, 0)).train())\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
