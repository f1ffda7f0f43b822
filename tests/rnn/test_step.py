"""A training step as a program that can be recorded once and played again."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rnn.config import GatedConfig, TrialConfig
from rnn.stacked.network import NetworkStack
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.step import TrainStep

TEXT = np.frombuffer(b"It was the best of times, it was the worst of times. " * 30, np.uint8)
SETTINGS = TrainConfig(
    steps=20,
    batch_size=6,
    sequence_length=9,
    log_every=2,
    learning_rate=0.01,
    smoothing=0.9,
    seed=3,
)
MEMBERS = [
    TrialConfig(GatedConfig(False, True, False, True, True, "new", 2, 8)),
    TrialConfig(GatedConfig(True, True, True, True, True, "both", 2, 8)),
    TrialConfig(GatedConfig(False, False, False, False, False, "old", 2, 8)),
    TrialConfig(GatedConfig(True, False, False, False, True, "old", 2, 8)),
]


class Tape(TorchDispatchMode):
    """What a graphics card's recorder keeps of some work: operations and the memory they use.

    Played, it asks Python for nothing, as a graph does: it gives the same results only if the work
    is the same operations on the same memory whatever that holds. To read a number in the midst of
    it, which a recorder refuses, is an error here too.
    """

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "unique2", "is_nonzero", "bincount"):
            raise RuntimeError(f"{name} reads what is computed")
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def play(self):
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(tensors(result), tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors(result):
    if isinstance(result, torch.Tensor):
        return [result]
    parts = result if isinstance(result, tuple | list) else []
    return [part for part in parts if isinstance(part, torch.Tensor)]


def curves(configs, precision, static_graph):
    run = TrainLoop(NetworkStack(configs, 1, precision, static_graph=static_graph), TEXT, SETTINGS)
    list(run.train())
    return run


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
@pytest.mark.parametrize("configs", [MEMBERS[:1], MEMBERS], ids=["alone", "together"])
def test_a_step_that_is_recorded_trains_as_one_that_is_not(monkeypatch, configs, precision):
    tapes = []

    class CudaGraphRunner:
        """As a graphics card's: three times it is done, once noted, and then played."""

        def __init__(self):
            self.times, self.tape = 0, None

        def run(self, work):
            self.times += 1
            if self.times < 4:
                work()
            elif self.times == 4:
                with Tape() as self.tape:
                    work()
                tapes.append(self.tape)
            else:
                self.tape.play()

    class Recorded(TrainStep):
        def __init__(self, *args):
            super().__init__(*args)
            self._graph_runner = CudaGraphRunner()

    expected = curves(configs, precision, static_graph=True)
    monkeypatch.setattr("rnn.training.loop.TrainStep", Recorded)
    found = curves(configs, precision, static_graph=True)
    assert len(tapes) == 1
    assert found.curves == expected.curves
    values = (run.stack.parameters.values for run in (found, expected))
    assert torch.equal(*values)


def test_what_lanes_have_in_common_cannot_be_recorded():
    """Or the test above would prove nothing."""
    run = TrainLoop(NetworkStack(MEMBERS, 1, static_graph=False), TEXT, SETTINGS)
    with pytest.raises(RuntimeError, match="reads what is computed"), Tape():
        list(run.train())


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_lanes_that_share_symbols_learn_as_if_each_were_alone(precision):
    shared, each = (curves(MEMBERS, precision, static_graph) for static_graph in (False, True))
    tolerance = 1e-9 if precision == "fp64" else 0.02
    for one, other in zip(shared.curves, each.curves, strict=True):
        assert one == pytest.approx(other, rel=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card on this machine")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_graph_repeats_bit_for_bit_and_goes_on_after_some_have_left(precision):
    def run():
        stack = NetworkStack(MEMBERS, 1, precision, device=torch.device("cuda"))
        run = TrainLoop(stack, TEXT, SETTINGS)

        def look():
            if run.step == 11:
                run.remove_configs(MEMBERS[1:2])

        list(run.train(look))
        return run.curves

    first = run()
    assert len(first) == 3
    assert first == run()
