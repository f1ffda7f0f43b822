"""The optimizer gives what torch's own gives, whatever the products are taken in."""

import pytest
import torch

from rnn import adam
from rnn.adam import Adam
from rnn.architecture import Architecture
from rnn.member import Member
from rnn.network import Population

MEMBERS = [
    Member(Architecture(False, True, False, True, True, "new", 2, 6)),
    Member(Architecture(True, True, True, True, True, "both", 2, 6)),
    # Of which candidate and gates never have a gradient.
    Member(Architecture(False, True, True, True, True, "old", 2, 6)),
]


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("chunk", [100, 1 << 16])
def test_updates_are_those_of_torch(monkeypatch, precision, chunk):
    monkeypatch.setattr(adam, "_CHUNK", chunk)
    population = Population(MEMBERS, 3, precision, vocabulary_size=11)
    parameters, states = population.parameters, population.initial_states(4)
    optimizer = Adam(parameters, 0.01)
    reference = parameters.values.clone().requires_grad_()
    torchs = torch.optim.Adam([reference], lr=0.01)
    begin = parameters.values.clone()
    for step in range(8):
        symbols = torch.tensor([step, 1, 2, 10 - step])
        population.learn(population.symbols(symbols), symbols.flip(0), states)
        reference.grad = parameters.gradients.clone()
        optimizer.step()
        torchs.step()
        torch.testing.assert_close(parameters.values, reference.detach(), rtol=1e-5, atol=1e-7)
        assert torch.equal(
            parameters.low, parameters.values[: len(parameters.low)].to(parameters.low)
        )
    assert optimizer.updates == 8
    never = population.members.index(MEMBERS[2])
    before, after = (parameters.of(never, flat) for flat in (begin, parameters.values))
    assert torch.equal(before["layers.1.candidate"][0], after["layers.1.candidate"][0])
    assert not torch.equal(before["layers.1.read_out"][0], after["layers.1.read_out"][0])


def test_training_imports_no_compiler():
    """Which torch.optim does, and takes a second for it in every worker."""
    import subprocess
    import sys

    code = (
        "import sys, numpy, rnn.training as t, rnn.network as n, rnn.architecture as a\n"
        "m = [n.Member(a.Architecture(True, True, True, True, True, 'both', 1, 3))]\n"
        "text = numpy.zeros(99, numpy.uint8)\n"
        "list(t.Run(n.Population(m, 0), text, t.Training(3, 2, 5, 1, 0.1, 0.9, 0)).train())\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
