"""Networks of every cell: memory, products, constants, lockstep, and what is refused."""

import gc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from invocation import refused
from networks import (
    SPEC,
    STREAMS,
    assert_trains_as_plain_modules,
    baseline_configs,
    extract,
    gated_configs,
    representatives,
    window_of,
)
from torch import Tensor
from user_cells import EXAMPLES, cell_config

from benchmarks.matmul_limit import matmul_shapes
from rnn.autograd import AutogradStack, lockstep_obstacle
from rnn.config import (
    NORM_EPS,
    GatedOptions,
    NetworkConfig,
    OptimizerConfig,
    TaskSpec,
    TrialConfig,
)
from rnn.engines import build_network
from rnn.errors import CellError
from rnn.network import (
    Network,
    build_seeded,
    count_parameters,
    draw_initial_weights,
    estimate_memory,
    network_shapes,
)
from rnn.stacked.engine import NetworkStack
from rnn.tasks.text import TextData
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.step import TrainStep

DATA = TextData(np.frombuffer(b"the cat sat on the mat; " * 40, np.uint8))
TRAIN_CONFIG = TrainConfig(20, STREAMS, sequence_length=8, log_every=4, smoothing=0.9, seed=3)


def random_text(steps: int, seed: int = 0) -> Tensor:
    return torch.randint(
        SPEC.inputs, (steps, STREAMS), generator=torch.Generator().manual_seed(seed)
    )


def tensor_memory() -> dict[int, int]:
    """Return the bytes of every tensor storage by its address."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def stack_of(size: int) -> list[TrialConfig]:
    return [TrialConfig(each) for each in gated_configs(3, size, ["state"]) if each.gated.residual][
        ::6
    ]


GATED = GatedOptions.of_largest().network(2, 32)
ELMAN = NetworkConfig("elman", 6, 32)


def replicates_of(architecture: NetworkConfig, count: int) -> list[TrialConfig]:
    return [TrialConfig(architecture, replicate, 5) for replicate in range(count)]


@pytest.mark.parametrize(
    ("build", "configs", "precision", "most"),
    [
        (NetworkStack, stack_of(32), "fp32", 3),
        (build_network, stack_of(32), "fp32", 10),  # the library keeps few intermediate results
        pytest.param(NetworkStack, stack_of(128), "bf16", 3, marks=pytest.mark.extended),
        pytest.param(build_network, stack_of(128), "bf16", 10, marks=pytest.mark.extended),
        (build_network, replicates_of(NetworkConfig("lstm", 2, 32), 3), "fp32", 8),
        (build_network, replicates_of(cell_config("MinGRU", 2, 32), 3), "bf16", 8),
        (build_network, replicates_of(cell_config("LayerNormGRU", 2, 32), 1), "fp32", 8),
        (build_network, replicates_of(replace(ELMAN, block="residual"), 1), "fp32", 8),
        (build_network, [TrialConfig(replace(GATED, block="residual"))], "fp32", 8),
    ],
)
def test_networks_take_no_more_memory_than_estimated(build, configs, precision, most):
    text, kept = torch.arange(256).repeat(configs[0].bptt_steps + 1, 1), []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    before = tensor_memory()
    train_step = TrainStep(build(configs, 0, precision), 256, 0.9, 3.0)
    for step in range(1, len(text)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            train_step.step(window_of(text, 0, step))
    allocated = sum(size for address, size in tensor_memory().items() if address not in before)
    estimate = sum(estimate_memory(config, 256, precision) for config in configs)
    assert allocated < estimate < most * allocated


# ------------------------------------------------------------------ built-in cells

EVERY = [*representatives(gated_configs(2, 4)), *baseline_configs(2, 4)]


def test_windows_of_several_steps_train_as_one_step_after_another():
    for config in EVERY:
        network = AutogradStack([TrialConfig(config, bptt_steps=2)], 0, "fp64", SPEC)
        assert_trains_as_plain_modules(network, "fp64", lengths=[3])


# ------------------------------------------------------------------ residual blocks


def test_residual_block_adds_its_input_to_what_the_cell_makes_of_the_normalised_input():
    plain = NetworkConfig("gru", 2, 4)
    config = TrialConfig(replace(plain, block="residual"))
    weights = draw_initial_weights(config, 0, SPEC)
    scales = [weights[f"norms.{index}.weight"] for index in range(2)]
    assert all(torch.equal(scale, torch.ones(4, dtype=torch.float64)) for scale in scales)
    assert count_parameters(config.architecture, SPEC) == count_parameters(plain, SPEC) + 2 * 4
    for scale in scales:
        scale.copy_(torch.rand(4))
    module = Network(config.architecture, SPEC).double()
    module.load_state_dict(weights)

    tokens = random_text(5)
    x = weights["embedding.weight"].T[tokens] + weights["embedding.bias"]  # (T, B, n)
    ends = []
    for layer, scale in zip(module.layers, scales, strict=True):
        h = torch.zeros(STREAMS, 4, dtype=torch.float64)
        ys = []
        for step in x:
            size = (step.square().mean(1, keepdim=True) + NORM_EPS).sqrt()
            y, h = layer(step / size * scale, h)
            ys.append(step + y)
        x = torch.stack(ys)
        ends.append(h)
    expected = x @ weights["head.weight"].T + weights["head.bias"]
    outputs, states = module(tokens)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(states, ends)
    torch.testing.assert_close(module(tokens, None, 2)[0], expected[3:])


# ------------------------------------------------------------------ users' own cells


def test_several_steps_are_read_at_once_unless_states_start_anew_every_few(monkeypatch):
    config = cell_config("Shifted", 1, 4)
    tokens = torch.arange(6).view(3, 2)
    by_steps = build_seeded(config, TaskSpec(6, 2, resets_often=True), 0)
    at_once = build_seeded(config, TaskSpec(6, 2), 0)
    expected = by_steps(tokens)
    monkeypatch.delattr(type(at_once.layers[0]), "forward")
    for actual, wanted in zip(at_once(tokens), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    for network, read in ((at_once, tokens[:1]), (by_steps, tokens)):
        with pytest.raises(NotImplementedError):
            network(read)


def test_buffers_and_frozen_parameters_are_saved_but_not_trained():
    config = cell_config("Everything", layers=1)
    constants = {f"layers.0.{name}" for name in ("frozen", "mixing", "order")}
    shapes = network_shapes(config, SPEC)
    module = build_seeded(config, SPEC, 0)
    trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
    assert shapes.parameters == {name: each.shape for name, each in trained.items()}
    assert count_parameters(config, SPEC) == sum(each.numel() for each in trained.values())

    trial_config = TrialConfig(config)
    before = build_network([trial_config], 1)
    saved = extract(before)
    after = build_network([trial_config], 2, weights={trial_config: saved})
    assert all(torch.equal(each, saved[name]) for name, each in extract(after).items())
    loop = TrainLoop(after, DATA, TRAIN_CONFIG)
    list(loop.train())
    for name in saved:
        assert torch.equal(extract(after)[name], saved[name]) is (name in constants), name


def test_layers_read_float32_in_bf16():
    config = cell_of(
        "self.own = nn.Linear(4, 4)",
        "assert x.dtype == state.dtype == torch.float32; y = self.own(x); "
        "assert y.dtype == torch.bfloat16; return y, y",
    )
    network = build_network([TrialConfig(config, 0, 3)], 0, "bf16", SPEC)
    states, text = network.init_training_state(STREAMS), random_text(4)
    for stop in range(1, 4):
        losses, states = network.loss_and_grad(window_of(text, 0, stop), states)
    assert losses.dtype == torch.float32


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
) -> NetworkConfig:
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
}
FORWARDS = {
    "x": "forward returned a tensor of shape (3, 4): expected the output and the new state",
    "x[:, :2], state": "returned a tensor of shape (3, 2) as the output: expected a tensor",
    "x, state[:, :2]": "as the state: expected a tensor of shape (3, 4), like the initial state",
    "x, [state]": "returned a value of type list as the state: expected a tensor of shape",
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
    with refused(CellError, expected):
        network = build_network([TrialConfig(cell_of(*arguments))], 0, spec=SPEC)
        window = window_of(random_text(2), 0, 1)
        network.loss_and_grad(window, network.init_training_state(STREAMS))


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
    obstacle = lockstep_obstacle(architecture, precision)
    assert obstacle.startswith(expected)
    assert "\n" not in obstacle


def test_sequence_form_is_a_method_of_the_class_that_no_option_switches_off():
    form = "def forward_sequence(self, x, state): raise RuntimeError"
    off = cell_of("self.forward_sequence = None", more=form)
    of_instance = cell_of("self.forward_sequence = lambda x, state: 1 / 0")
    for cell in (off, of_instance):
        build_seeded(cell, SPEC, 0)(torch.zeros(3, 1, dtype=torch.long))
    with pytest.raises(RuntimeError):
        build_seeded(cell_of(more=form), SPEC, 0)(torch.zeros(3, 1, dtype=torch.long))


def test_sequence_form_that_lockstep_cannot_run_is_found():
    read = "return (x if len(x) < 9 or x.sum() > 0 else -x), state"
    cell = cell_of(more=f"def forward_sequence(self, x, state): {read}")
    assert lockstep_obstacle(cell, "fp32").startswith("torch.vmap: RuntimeError (vmap")


def test_lockstep_needs_a_batching_rule_of_every_operation():
    for cell in (*EXAMPLES, "Everything", "Delay"):
        assert lockstep_obstacle(cell_config(cell), "bf16") is None
    expected = "torch.vmap has no batching rule for aten::gru_cell"
    assert lockstep_obstacle(cell_config("TorchGRU")) == expected


# ------------------------------------------------------------------ matrix products of a stack

# What options cost, derived by hand from the equations of :class:`rnn.cells.GatedCell`. B streams,
# n states; a product (i, j, k) is of (i, j) by (j, k).

B, N, V = 40, 6, 256
U = 16
"""Number of unique tokens of a step: twelve, padded to a multiple of 16."""

TOKENS = TextData(np.tile(np.arange(12, dtype=np.uint8), 50))
SETTINGS = TrainConfig(5, B, 9, 5, 0.9, seed=0)


def step_products(*configs, static_graph=False):
    trial_configs = [TrialConfig(config) for config in configs]
    stack = NetworkStack(trial_configs, 0, static_graph=static_graph)
    return matmul_shapes(TrainLoop(stack, TOKENS, SETTINGS))


def linear(rows, inputs, outputs, grad_inputs):
    """Products of a linear map: forward, for the weights, and for the inputs with a gradient."""
    products = Counter({(rows, inputs, outputs): 1})
    products[inputs, rows, outputs] += 1
    if grad_inputs:
        products[rows, outputs, grad_inputs] += 1
    return products


HEAD = linear(B, N, V, N)


def test_products_with_all_options_on():
    first = (
        linear(U, N, 2 * N, N)  # the input gate of x
        + linear(B, N, 2 * N, 0)  # and of h
        + linear(B, 2 * N, 3 * N, 2 * N)  # [x' ; h'] to candidate and both gates
        + linear(U, N, 2 * N, N)  # x to read-out and output gate
        + linear(B, 2 * N, 2 * N, 2 * N)  # [u ; h'] to both
        + linear(B, N, N, N)  # the read-out to the output gate
    )
    second = (
        linear(B, 2 * N, 2 * N, N)
        + linear(B, 2 * N, 3 * N, 2 * N)
        + linear(B, 3 * N, 2 * N, 3 * N)
        + linear(B, N, N, N)
    )
    config = GatedOptions(True, True, True, True, True, "both").network(2, N)
    assert step_products(config) == HEAD + first + second


def test_state_that_only_the_next_step_reads_takes_no_backward_products():
    """With source old, candidate and gates have no gradient."""
    config = GatedOptions(False, True, False, True, True, "old").network(1, N)
    forward = Counter({(U, N, 3 * N): 1, (B, N, 3 * N): 1})
    assert step_products(config) == HEAD + forward + linear(U, N, N, N) + linear(B, N, N, 0)


ALL = gated_configs(2, N, ["state"])


def test_mixed_stack_takes_the_products_of_its_networks_and_no_other():
    configs = representatives(ALL)
    alone = [step_products(config) for config in configs]
    assert step_products(*configs) == sum(alone, Counter())


def test_stack_has_one_order_of_networks_that_differ_in_training_settings_alone():
    configs = [
        TrialConfig(ALL[0], optimizer=OptimizerConfig(name), varied=varied)
        for name in ("adam", "sgd")
        for varied in ((), (("learning_rate", 0.1),), (("learning_rate", 0.02),))
    ]
    shuffled = configs[::2] + configs[1::2]
    orders = {NetworkStack(order, 1).configs for order in (configs, configs[::-1], shuffled)}
    assert len(orders) == 1
    assert set(orders.pop()) == set(configs)
