"""Networks of users' own cells: gradients, lockstep, resumption, and what is refused."""

import gc
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from network_configs import assert_close
from torch import Tensor, nn
from user_cells import EXAMPLES, cell_config

from rnn.config import BaselineConfig, CellConfig, OptimizerConfig, TrialConfig
from rnn.errors import CellError
from rnn.models.cell_module import CellModule, build_seeded
from rnn.models.cell_network import CellNetwork, lockstep_obstacle, supports_lockstep
from rnn.models.factory import build_network, is_stackable, stack_key
from rnn.models.shapes import constant_shapes, count_parameters, parameter_shapes
from rnn.stacked.memory import estimate_memory
from rnn.training.checkpoint import (
    deserialize_checkpoint,
    max_checkpoint_size,
    serialize_checkpoint,
)
from rnn.training.evaluation import compute_eval_losses
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.step import TrainStep

STREAMS, VOCAB = 3, 11
ALL = [*EXAMPLES, "TorchGRU", "Everything", "Delay"]


def random_text(steps: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (steps, STREAMS), generator=torch.Generator().manual_seed(seed))


def weights_of(network, k=0):
    return network.parameters.extract(k, network.parameters.values)


def grads_of(network, k=0):
    return network.parameters.extract(k, network.parameters.grads)


def unrolled(module: CellModule, tokens: Tensor, targets: Tensor, states):
    """Return the loss, its gradients and the last states of a plain loop over the layers."""
    module.zero_grad()
    for each in tokens:
        x = module.embedding(nn.functional.one_hot(each, VOCAB).to(module.head.weight.dtype))
        next_states = []
        for layer, state in zip(module.layers, states, strict=True):
            x, state = layer(x, state)
            next_states.append(state)
        states = next_states
    loss = nn.functional.cross_entropy(module.head(x), targets)
    loss.backward()
    grads = {
        name: torch.zeros_like(each) if each.grad is None else each.grad.clone()
        for name, each in module.named_parameters()
        if each.requires_grad
    }
    return loss.detach(), grads, states


def initial(module: CellModule):
    n = module.head.in_features
    return [
        layer.initial_state(STREAMS)
        if hasattr(layer, "initial_state")
        else torch.zeros(STREAMS, n, dtype=torch.float64)
        for layer in module.layers
    ]


def detached(state):
    return tuple(map(detached, state)) if isinstance(state, tuple) else state.detach()


slow_vmap = pytest.mark.filterwarnings("ignore:There is a performance drop")


@slow_vmap
@pytest.mark.parametrize("bptt_steps", [1, 3])
@pytest.mark.parametrize(
    ("cell", "count"), [*((cell, count) for cell in ALL for count in (1, 2)), ("OneStepGRU", 1)]
)
def test_gradient_is_that_of_the_last_steps_unrolled_by_hand(cell, bptt_steps, count):
    config = cell_config(cell)
    configs = [TrialConfig(config, replicate, bptt_steps) for replicate in range(count)]
    network = build_network(configs, 3, "fp64", VOCAB)
    module = build_seeded(config, VOCAB, 0).double()
    module.load_state_dict(weights_of(network))
    text, carried = random_text(7), network.init_training_state(STREAMS)
    past = [initial(module)]  # states before each step
    for step, (tokens, targets) in enumerate(itertools.pairwise(text)):
        losses, following = network.loss_and_grad(tokens, targets, carried)
        for old, new in zip(carried, following, strict=True):
            old.copy_(new)  # as the train loop does
        first = max(0, step + 1 - bptt_steps)
        start = initial(module) if first == 0 else [detached(each) for each in past[first]]
        loss, grads, states = unrolled(module, text[first : step + 1], targets, start)
        torch.testing.assert_close(losses[0], loss)
        assert_close(grads_of(network), grads)
        past.append([detached(each) for each in states])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("cell", ["MinGRU", "Everything", "Delay"])
def test_losses_on_held_out_text_are_those_of_the_plain_module(cell, count):
    config = cell_config(cell)
    network = build_network([TrialConfig(config, k) for k in range(count)], 3, "fp64", VOCAB)
    module = build_seeded(config, VOCAB, 0).double()
    module.load_state_dict(weights_of(network))
    windows = random_text(9)
    expected = torch.zeros(STREAMS, dtype=torch.float64)
    with torch.no_grad():
        states = module.initial_states(STREAMS)
        for tokens, targets in itertools.pairwise(windows):
            logits, states = module(tokens[None], states)
            expected += nn.functional.cross_entropy(logits, targets, reduction="none") / 8
    losses = compute_eval_losses(network, windows.numpy().astype(np.uint8))
    torch.testing.assert_close(losses[0], expected)


def tensor_memory() -> dict[int, int]:
    """Return the bytes of every tensor storage by its address."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", EXAMPLES)
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


@slow_vmap
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp64", 1e-9), ("fp32", 2e-3), ("bf16", 0.2)]
)
@pytest.mark.parametrize("cell", ALL)
def test_networks_in_lockstep_train_as_each_alone(cell, precision, tolerance):
    config = cell_config(cell)
    expected = "torch.vmap has no batching rule for aten::gru_cell" if cell == "TorchGRU" else None
    assert lockstep_obstacle(config, precision) == expected
    configs = [
        TrialConfig(config, replicate, bptt_steps=2, optimizer=OptimizerConfig(learning_rate=rate))
        for replicate, rate in ((0, 0.01), (1, 0.01), (0, 0.003))
    ]
    text = random_text(20)

    def train(together):
        network = build_network(together, 1, precision, VOCAB)
        train_step = TrainStep(network, STREAMS, 0.9)
        for step, (tokens, targets) in enumerate(itertools.pairwise(text)):
            if step % 8 == 0:
                train_step.begin_sequence()
            train_step.step(tokens, targets)
        windows = random_text(6, seed=5).numpy().astype(np.uint8)
        losses = compute_eval_losses(network, windows)
        return [
            weights_of(network, k) | {"losses": losses[k], "ema": train_step.ema_losses[k]}
            for k in range(len(together))
        ]

    together = train(configs)
    for each, expected in zip(together, [train([config])[0] for config in configs], strict=True):
        assert_close(each, expected, rtol=tolerance, atol=tolerance)


TEXT = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)
TRAIN_CONFIG = TrainConfig(
    steps=20,
    batch_size=STREAMS,
    sequence_length=8,
    log_every=4,
    smoothing=0.9,
    seed=3,
    average_fraction=0.6,
)


class StopError(Exception):
    pass


def train_until(run: TrainLoop, step: int) -> None:
    def on_step():
        if run.step == step:
            raise StopError

    with pytest.raises(StopError):
        list(run.train(on_step))


@pytest.mark.parametrize("bptt_steps", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", ALL)
def test_training_resumes_bit_for_bit(cell, precision, bptt_steps):
    config = TrialConfig(cell_config(cell), 1, bptt_steps)

    def start(weights=None, train_states=None):
        network = build_network([config], 1, precision, weights=weights)
        return TrainLoop(network, TEXT, TRAIN_CONFIG, train_states)

    uninterrupted, run = start(), start()
    list(uninterrupted.train())
    for step in (1, 7, 14, 16):  # within a sequence, between two, while weights are averaged
        train_until(run, step)
        content = serialize_checkpoint(run.train_state(config), "me")
        assert len(content) < max_checkpoint_size(config, 256, STREAMS, TRAIN_CONFIG.steps)
        saved = deserialize_checkpoint(config.architecture, "me", content)
        run = start({config: saved.weights}, {config: saved})
    list(run.train())
    assert run.curves == uninterrupted.curves
    for each in (run, uninterrupted):
        each.swap_in_averaged_weights()
    assert_close(weights_of(run.stack), weights_of(uninterrupted.stack), rtol=0, atol=0)


def test_networks_leave_a_stack_and_the_others_continue():
    configs = [
        TrialConfig(cell_config("DiagonalLRU"), 0, 2),
        TrialConfig(cell_config("DiagonalLRU"), 0, 2, OptimizerConfig(learning_rate=0.1)),
    ]
    alone = TrainLoop(build_network(configs[:1], 1, "fp64"), TEXT, TRAIN_CONFIG)
    list(alone.train())
    run = TrainLoop(build_network(configs, 1, "fp64"), TEXT, TRAIN_CONFIG)
    train_until(run, 10)
    run.remove_configs(configs[1:])
    list(run.train())
    assert run.curves[0] == pytest.approx(alone.curves[0], rel=1e-9)


@pytest.mark.parametrize("bptt_steps", [1, 4])
def test_torchs_gru_cell_trains_as_the_baseline(bptt_steps):
    """Weights of the baseline are transposed."""
    baseline = TrialConfig(BaselineConfig("gru", 2, 5), 0, bptt_steps)
    mine = TrialConfig(cell_config("TorchGRU"), 0, bptt_steps)
    reference = build_network([baseline], 1, "fp64")
    names = {"input": "ih", "state": "hh"}
    weights = {}
    for name, tensor in weights_of(reference).items():
        path, _, kind = name.rpartition(".")
        if path.startswith("layers."):
            layer, _, part = path.rpartition(".")
            name = f"{layer}.cell.{kind}_{names[part]}"
        weights[name] = tensor.mT if tensor.dim() == 2 else tensor
    network = build_network([mine], 1, "fp64", weights={mine: weights})
    loops = [TrainLoop(each, TEXT, TRAIN_CONFIG) for each in (reference, network)]
    for loop in loops:
        list(loop.train())
    assert loops[1].curves[0] == pytest.approx(loops[0].curves[0], rel=1e-9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", EXAMPLES)
def test_loss_of_an_example_falls_as_it_trains(cell, precision):
    text = np.frombuffer(b"the cat sat on the mat; " * 40, np.uint8)
    config = TrialConfig(cell_config(cell, 2, 16), optimizer=OptimizerConfig(learning_rate=0.01))
    settings = replace(
        TRAIN_CONFIG, steps=150, sequence_length=50, log_every=75, batch_size=8, smoothing=0.5
    )
    loop = TrainLoop(build_network([config], 0, precision), text, settings)
    middle, end = (point.ema_losses[0] for point in loop.train())
    assert end < middle < 3
    assert end < 1.5


def test_weights_depend_on_seed_and_replicate_and_on_nothing_else():
    config = cell_config("Everything")
    first, second = (TrialConfig(config, replicate) for replicate in range(2))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    stack = build_network([first, second], 3, "fp64")
    assert torch.equal(torch.rand(3), expected)
    alone = build_network([second], 3, "fp32")
    for name, weight in weights_of(stack, 1).items():
        assert torch.equal(weight.to(weights_of(alone)[name].dtype), weights_of(alone)[name])
    names = ("embedding.bias", "layers.1.start", "layers.1.mixing", "layers.1.order", "head.weight")
    for name in names:
        assert not torch.equal(weights_of(stack, 0)[name], weights_of(stack, 1)[name])
        assert not torch.equal(
            weights_of(alone)[name], weights_of(build_network([second], 4, "fp32"))[name]
        )


def test_buffers_and_frozen_parameters_are_saved_but_not_trained():
    config = cell_config("Everything", layers=1)
    assert set(constant_shapes(config, VOCAB)) == {
        "layers.0.frozen",
        "layers.0.mixing",
        "layers.0.order",
    }
    module = build_seeded(config, VOCAB, 0)
    trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
    assert parameter_shapes(config, VOCAB) == {name: each.shape for name, each in trained.items()}
    assert count_parameters(config, VOCAB) == sum(each.numel() for each in trained.values())

    trial_config = TrialConfig(config)
    before = build_network([trial_config], 1)
    saved = weights_of(before)
    after = build_network([trial_config], 2, weights={trial_config: saved})
    assert_close(weights_of(after), saved, rtol=0, atol=0)
    loop = TrainLoop(after, TEXT, TRAIN_CONFIG)
    list(loop.train())
    for name in saved:
        is_constant = name in constant_shapes(config, VOCAB)
        assert torch.equal(weights_of(after)[name], saved[name]) is is_constant, name


@pytest.mark.parametrize("bptt_steps", [1, 3])
def test_every_sequence_starts_from_the_initial_state(bptt_steps):
    start = "def initial_state(self, batch_size): return torch.full((batch_size, 2), 0.5)"
    config = cell_of("self.own = nn.Linear(2, 4)", "return self.own(state) + x, 2 * state", start)
    train_step = TrainStep(
        build_network([TrialConfig(config, 0, bptt_steps)], 0, vocab_size=VOCAB), STREAMS, 0.9
    )
    for tokens, targets in itertools.pairwise(random_text(5)):
        train_step.step(tokens, targets)
    assert train_step.states[0].eq(8).all()
    train_step.begin_sequence()
    for state, initial in zip(
        train_step.states, train_step.stack.init_training_state(STREAMS), strict=True
    ):
        assert torch.equal(state, initial)
    assert train_step.states[0].eq(0.5).all()


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


def test_option_changes_the_network():
    config = cell_config("LayerNormGRU", norm="gates")
    assert config.label == "2×5 LayerNormGRU, norm gates"
    assert count_parameters(config) < count_parameters(cell_config("LayerNormGRU"))
    with pytest.raises(CellError, match="option norm of cell LayerNormGRU is 'most': expected one"):
        build_network([TrialConfig(cell_config("LayerNormGRU", norm="most"))], 0)


def test_configs_of_two_architectures_are_not_stacked():
    configs = [TrialConfig(cell_config("MinGRU", layers)) for layers in (1, 2)]
    with pytest.raises(ValueError, match="configs are of 2 architectures and bptt_steps"):
        build_network(configs, 0)
    with pytest.raises(ValueError, match="bptt_steps 0: expected a user's own cell and bptt"):
        build_network([configs[0]._replace(bptt_steps=0)], 0)


def test_weights_of_another_network_are_refused():
    config, other = (TrialConfig(cell_config("MinGRU", 1, n)) for n in (4, 5))
    weights = weights_of(build_network([other], 0))
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


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"constructor": "raise ValueError('odd size')"},
            "cell Cell(input_size=4, state_size=4) raises ValueError (odd size) in line 8",
        ),
        (
            {"constructor": "self.a = nn.Linear(4, 4); self.b = self.a"},
            "cell Cell has one parameter under two names, layers.0.a.weight and layers.0.b.weight",
        ),
        (
            {
                "constructor": "self.a = nn.BatchNorm1d(4); "
                "self.register_buffer('b', self.a.running_mean)"
            },
            "cell Cell has one buffer under two names, layers.0.b and layers.0.a.running_mean",
        ),
        (
            {"constructor": "self.a = nn.LazyBatchNorm1d(affine=False)"},
            "buffer layers.0.a.running_mean of cell Cell has no shape yet",
        ),
        (
            {"constructor": "self.a = nn.Parameter(torch.zeros(4, dtype=torch.complex64))"},
            "parameter layers.0.a of cell Cell is complex: expected real parameters",
        ),
        (
            {"constructor": "self.a = nn.LazyLinear(4)"},
            "parameter layers.0.a.weight of cell Cell has no shape yet",
        ),
        ({"forward": "return x"}, "forward returned of shape (3, 4): expected the output and"),
        (
            {"forward": "return x[:, :2], state"},
            "returned the output of shape (3, 2): expected a tensor of the input's shape (3, 4)",
        ),
        (
            {"forward": "return x, state[:, :2]"},
            "the state of shape (3, 2): expected the shapes of the initial state, of shape (3, 4)",
        ),
        (
            {"forward": "return x, (state, state)"},
            "the state (of shape (3, 4), of shape (3, 4)): expected the shapes of the initial",
        ),
        ({"forward": "return x, [state]"}, "the state of type list: expected a real tensor or a"),
        (
            {"more": "def initial_state(self, batch_size): return torch.zeros(4, batch_size)"},
            "initial_state returned a tensor of shape (4, 1) for a batch size of 1",
        ),
        (
            {"more": "def initial_state(self, batch_size): return 0"},
            "initial_state returned of type int: expected a real tensor or a tuple of real tensors",
        ),
    ],
)
def test_cell_that_breaks_the_contract_is_refused(config, expected):
    def train():
        network = build_network([TrialConfig(cell_of(**config))], 0, vocab_size=VOCAB)
        tokens, targets = random_text(2)
        network.loss_and_grad(tokens, targets, network.init_training_state(STREAMS))

    with pytest.raises(CellError) as refused:
        train()
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"forward": "return (x if x.sum() > 0 else -x), state"}, "torch.vmap: RuntimeError (vmap"),
        ({"forward": "return x + torch.rand(4), state"}, "torch.vmap: RuntimeError (vmap"),
        (
            # vmap replaces the weight of the linear map, but not the one in the list.
            {
                "constructor": "self.own = nn.Linear(4, 4); self.weights = [self.own.weight]",
                "forward": "return x @ self.weights[0] + self.own.bias, state",
            },
            "torch.vmap: the gradients are not those of a network that trains alone",
        ),
        (
            # What depends on the weight in the list is multiplied by zero at first.
            {
                "constructor": "self.own = nn.Linear(4, 4); self.weights = [self.own.weight]; "
                "self.scale = nn.Parameter(torch.zeros(4))",
                "forward": "return x + self.scale * (x @ self.weights[0] + self.own.bias), state",
            },
            "torch.vmap: the gradients are not those of a network that trains alone",
        ),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cell_that_cannot_be_trained_in_lockstep_is_found(config, expected, precision):
    architecture = cell_of(**config)
    assert not supports_lockstep(architecture, precision)
    obstacle = lockstep_obstacle(architecture, precision)
    assert obstacle.startswith(expected)
    assert "\n" not in obstacle
    network = build_network([TrialConfig(architecture)], 0, vocab_size=VOCAB)
    assert isinstance(network, CellNetwork)
    tokens, targets = random_text(2)
    losses, _ = network.loss_and_grad(tokens, targets, network.init_training_state(STREAMS))
    assert losses.isfinite().all()


def test_stackable_configs_of_one_key_are_trained_together():
    config = TrialConfig(cell_config("MinGRU"), 0, 2)
    others = [
        config._replace(replicate=1),
        config._replace(optimizer=OptimizerConfig("sgd", gradient_clipping=1.0)),
    ]
    assert is_stackable(config)
    assert {stack_key(other) for other in others} == {stack_key(config)}
    assert build_network([config, *others], 0).configs == (config, *others)
    for other in (
        config._replace(bptt_steps=3),
        config._replace(architecture=cell_config("MinGRU", candidate_tanh=True)),
        config._replace(architecture=cell_config("LayerNormGRU")),
    ):
        assert stack_key(other) != stack_key(config)
        with pytest.raises(ValueError, match="expected one of both"):
            build_network([config, other], 0)
    assert not is_stackable(TrialConfig(cell_config("TorchGRU")))


def test_replicates_in_lockstep_read_separate_texts():
    configs = [TrialConfig(cell_config("LayerNormGRU"), replicate) for replicate in (0, 1, 0)]
    configs[2] = configs[2]._replace(optimizer=OptimizerConfig("sgd", 0.1, gradient_clipping=0.5))
    alone = [TrainLoop(build_network([each], 1, "fp64"), TEXT, TRAIN_CONFIG) for each in configs]
    together = TrainLoop(build_network(configs, 1, "fp64"), TEXT, TRAIN_CONFIG)
    for loop in (together, *alone):
        list(loop.train())
    for curve, loop in zip(together.curves, alone, strict=True):
        assert curve == pytest.approx(loop.curves[0], rel=1e-9)


def test_lockstep_is_tried_once(monkeypatch):
    architecture = cell_of("self.own = nn.Linear(4, 4)", "return self.own(x), state")
    assert supports_lockstep(architecture)
    monkeypatch.setattr("rnn.models.cell_network.CellNetwork", None)
    assert supports_lockstep(replace(architecture, layers=3))
