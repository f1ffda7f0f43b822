"""Networks of users' own cells: memory, constants, lockstep, and what is refused."""

import gc
import itertools

import numpy as np
import pytest
import torch
from networks import STREAMS, extract
from networks import VOCAB_SIZE as VOCAB
from torch import Tensor
from user_cells import EXAMPLES, cell_config

from rnn.config import CellConfig, TrialConfig
from rnn.errors import CellError
from rnn.models.cell_module import build_seeded
from rnn.models.cell_network import lockstep_obstacle, supports_lockstep
from rnn.models.factory import build_network
from rnn.models.shapes import constant_shapes, count_parameters, estimate_memory, parameter_shapes
from rnn.training.checkpoint import max_checkpoint_size, serialize_checkpoint
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.step import TrainStep

TEXT = np.frombuffer(b"the cat sat on the mat; " * 40, np.uint8)
TRAIN_CONFIG = TrainConfig(20, STREAMS, sequence_length=8, log_every=4, smoothing=0.9, seed=3)


def random_text(steps: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (steps, STREAMS), generator=torch.Generator().manual_seed(seed))


def tensor_memory() -> dict[int, int]:
    """Return the bytes of every tensor storage by its address."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.mark.parametrize(
    ("cell", "precision", "count"), [("MinGRU", "bf16", 3), ("LayerNormGRU", "fp32", 1)]
)
def test_networks_take_no_more_memory_than_estimated(cell, precision, count):
    config, tokens, kept = TrialConfig(cell_config(cell, 2, 32), 0, 5), torch.arange(256), []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    configs = [config._replace(replicate=replicate) for replicate in range(count)]
    before = tensor_memory()
    train_step = TrainStep(build_network(configs, 0, precision), 256, 0.9)
    for _ in range(config.bptt_steps):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            train_step.step(tokens, tokens)
    allocated = sum(size for address, size in tensor_memory().items() if address not in before)
    assert allocated < count * estimate_memory(config, 256, precision) < 8 * allocated


def test_buffers_and_frozen_parameters_are_saved_but_not_trained():
    config = cell_config("Everything", layers=1)
    constants = {f"layers.0.{name}" for name in ("frozen", "mixing", "order")}
    assert set(constant_shapes(config, VOCAB)) == constants
    module = build_seeded(config, VOCAB, 0)
    trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
    assert parameter_shapes(config, VOCAB) == {name: each.shape for name, each in trained.items()}
    assert count_parameters(config, VOCAB) == sum(each.numel() for each in trained.values())

    trial_config = TrialConfig(config)
    before = build_network([trial_config], 1)
    saved = extract(before)
    after = build_network([trial_config], 2, weights={trial_config: saved})
    assert all(torch.equal(each, saved[name]) for name, each in extract(after).items())
    loop = TrainLoop(after, TEXT, TRAIN_CONFIG)
    list(loop.train())
    for name in saved:
        assert torch.equal(extract(after)[name], saved[name]) is (name in constants), name


def test_layers_read_float32_in_bf16():
    config = cell_of(
        "self.own = nn.Linear(4, 4)",
        "assert x.dtype == state.dtype == torch.float32; y = self.own(x); "
        "assert y.dtype == torch.bfloat16; return y, y",
    )
    network = build_network([TrialConfig(config, 0, 3)], 0, "bf16", VOCAB)
    states = network.init_training_state(STREAMS)
    for tokens, targets in itertools.pairwise(random_text(4)):
        losses, states = network.loss_and_grad(tokens, targets, states)
    assert losses.dtype == torch.float32


def test_size_of_a_checkpoint_includes_buffers():
    config = TrialConfig(cell_of('self.register_buffer("table", torch.zeros(600, 600))'))
    loop = TrainLoop(build_network([config], 0), TEXT, TRAIN_CONFIG)
    size = len(serialize_checkpoint(loop.train_state(config), "me"))
    assert size < max_checkpoint_size(config, 256, STREAMS, TRAIN_CONFIG.steps) < 4 * size


def test_weights_of_another_network_are_refused():
    config, other = (TrialConfig(cell_config("MinGRU", 1, n)) for n in (4, 5))
    weights = extract(build_network([other], 0))
    with pytest.raises(CellError, match=r"embedding.weight is \(5, 256\), expected \(4, 256\)"):
        build_network([config], 0, weights={config: weights})
    del weights["head.bias"]
    with pytest.raises(CellError, match=r"head.bias is missing, expected \(256,\)"):
        build_network([other], 0, weights={other: weights})


def cell_of(
    constructor: str = "pass", forward: str = "return x, state", more: str = ""
) -> CellConfig:
    text = f"""
class Cell(nn.Module):
    def __init__(self, input_size, state_size):
        super().__init__()
        {constructor}

    def forward(self, x, state):
        {forward}

    {more}
"""
    return cell_config("Cell", 2, 4, text)


CONSTRUCTORS = {
    "raise ValueError('odd size')": "(input_size=4, state_size=4) raises ValueError (odd size) in",
    "self.a = nn.Linear(4, 4); self.b = self.a": "has one parameter under two names, layers.0.a.w",
    "self.a = nn.BatchNorm1d(4); self.register_buffer('b', self.a.running_mean)": "has one buffer",
    "self.a = nn.Parameter(torch.zeros(4, dtype=torch.complex64))": "layers.0.a of cell Cell is c",
    "self.a = nn.LazyLinear(4)": "parameter layers.0.a.weight of cell Cell has no shape yet",
}
FORWARDS = {
    "x": "forward returned a tensor of shape (3, 4): expected the output and the new state",
    "x[:, :2], state": "returned a tensor of shape (3, 2) as the output: expected a tensor",
    "x, state[:, :2]": "as the state: expected a tensor of shape (3, 4), like the initial state",
    "x, [state]": "returned a value of type list as the state: expected a real tensor or a",
}
MORE = {
    "def initial_state(self, b): return torch.zeros(4, b)": "shape (4, 1) for a batch size of 1",
    "def initial_state(self, b): return torch.zeros(b, 4).double()": "a state of torch.float64",
    "def initial_state(self, b): return 0": "initial_state returned a value of type int: expected",
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        *(((code,), expected) for code, expected in CONSTRUCTORS.items()),
        *((("pass", f"return {code}"), expected) for code, expected in FORWARDS.items()),
        *((("pass", "return x, state", code), expected) for code, expected in MORE.items()),
    ],
)
def test_cell_that_breaks_the_contract_is_refused(arguments, expected):
    def train():
        network = build_network([TrialConfig(cell_of(*arguments))], 0, vocab_size=VOCAB)
        tokens, targets = random_text(2)
        network.loss_and_grad(tokens, targets, network.init_training_state(STREAMS))

    with pytest.raises(CellError) as refused:
        train()
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


# vmap replaces the weight of the linear map, but not the one in the list.
IN_A_LIST = "self.own = nn.Linear(4, 4); self.weights = [self.own.weight]"
# What depends on the weight in the list is multiplied by zero at first.
SCALED = f"{IN_A_LIST}; self.scale = nn.Parameter(torch.zeros(4))"
OTHER_GRADIENTS = "torch.vmap: the gradients are not those of a network that trains alone"


@pytest.mark.parametrize(
    ("constructor", "output", "precision", "expected"),
    [
        ("pass", "(x if x.sum() > 0 else -x)", "fp32", "torch.vmap: RuntimeError (vmap"),
        ("pass", "x + torch.rand(4)", "bf16", "torch.vmap: RuntimeError (vmap"),
        (IN_A_LIST, "x @ self.weights[0] + self.own.bias", "bf16", OTHER_GRADIENTS),
        (SCALED, "x + self.scale * (x @ self.weights[0])", "fp32", OTHER_GRADIENTS),
    ],
)
def test_cell_that_cannot_be_trained_in_lockstep_is_found(constructor, output, precision, expected):
    architecture = cell_of(constructor, f"return {output}, state")
    assert not supports_lockstep(architecture, precision)
    obstacle = lockstep_obstacle(architecture, precision)
    assert obstacle.startswith(expected)
    assert "\n" not in obstacle


def test_lockstep_needs_a_batching_rule_of_every_operation():
    for cell in (*EXAMPLES, "Everything", "Delay"):
        assert lockstep_obstacle(cell_config(cell), "bf16") is None
    expected = "torch.vmap has no batching rule for aten::gru_cell"
    assert lockstep_obstacle(cell_config("TorchGRU")) == expected
