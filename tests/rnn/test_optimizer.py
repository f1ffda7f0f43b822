"""The optimizer gives what torch's own gives, whatever the products are taken in."""

import pytest
import torch

from rnn.config import GatedConfig, TrialConfig
from rnn.stacked.network import NetworkStack
from rnn.training import optimizer as adam
from rnn.training.optimizer import Adam

MEMBERS = [
    TrialConfig(GatedConfig(False, True, False, True, True, "new", 2, 6)),
    TrialConfig(GatedConfig(True, True, True, True, True, "both", 2, 6)),
    # Of which candidate and gates never have a gradient.
    TrialConfig(GatedConfig(False, True, True, True, True, "old", 2, 6)),
]


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("chunk", [100, 1 << 16])
def test_updates_are_those_of_torch(monkeypatch, precision, chunk):
    monkeypatch.setattr(adam, "_CHUNK_SIZE", chunk)
    stack = NetworkStack(MEMBERS, 3, precision, vocab_size=11)
    parameters, states = stack.parameters, stack.init_state(4)
    optimizer = Adam(parameters, 0.01)
    reference = parameters.values.clone().requires_grad_()
    torchs = torch.optim.Adam([reference], lr=0.01)
    begin = parameters.values.clone()
    for step in range(8):
        tokens = torch.tensor([step, 1, 2, 10 - step])
        stack.loss_and_grad(stack.prepare_inputs(tokens), tokens.flip(0), states)
        reference.grad = parameters.grads.clone()
        optimizer.step()
        torchs.step()
        torch.testing.assert_close(parameters.values, reference.detach(), rtol=1e-5, atol=1e-7)
        assert torch.equal(
            parameters.matmul_values,
            parameters.values[: len(parameters.matmul_values)].to(parameters.matmul_values),
        )
    assert optimizer.updates == 8
    never = stack.configs.index(MEMBERS[2])
    before, after = (parameters.extract(never, flat) for flat in (begin, parameters.values))
    assert torch.equal(before["layers.1.candidate"][0], after["layers.1.candidate"][0])
    assert not torch.equal(before["layers.1.read_out"][0], after["layers.1.read_out"][0])


def test_training_imports_no_compiler():
    """Which torch.optim does, and takes a second for it in every worker."""
    import subprocess
    import sys

    code = (
        "import sys, numpy, rnn.training.loop as t, rnn.stacked.network as n, rnn.config as a\n"
        "m = [a.TrialConfig(a.GatedConfig(True, True, True, True, True, 'both', 1, 3))]\n"
        "text = numpy.zeros(99, numpy.uint8)\n"
        "list(t.TrainLoop(n.NetworkStack(m, 0), text, "
        "t.TrainConfig(3, 2, 5, 1, 0.1, 0.9, 0)).train())\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
