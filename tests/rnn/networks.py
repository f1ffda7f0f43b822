"""Every implementation of networks, and the plain module that each of them must equal.

All networks of the contract (:mod:`test_contract`) are built here. Nothing but PyTorch, numpy and
pytest is needed. K is the number of networks, B the number of streams, T a number of time steps.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from graph_stand_in import StandInRecorder
from torch import Tensor, nn
from user_cells import cell_config

from rnn.autograd import AutogradStack
from rnn.config import (
    BASELINE_CELLS,
    GATE_INPUTS,
    GATED_OPTIONS,
    GatedOptions,
    NetworkConfig,
    OptimizerConfig,
    Precision,
    TaskSpec,
    TrialConfig,
)
from rnn.engines import Engine
from rnn.native.engine import NativeStack
from rnn.native.library import load_library
from rnn.network import NamedTensors, Network, Window
from rnn.stacked.engine import NetworkStack
from rnn.training.evaluation import compute_eval_losses
from rnn.training.step import TrainStep

SEED, STREAMS, SIZE, VOCAB_SIZE = 3, 3, 5, 11
SPEC = TaskSpec.of_text(VOCAB_SIZE)

TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4, "tf32": 0.02, "bf16": 0.05}
"""Largest difference of numbers of about 1, after a few steps."""

# ------------------------------------------------------------------ configs


def gated_configs(layers, state_size, gate_inputs=GATE_INPUTS) -> list[NetworkConfig]:
    """Return the configs of all combinations of options."""
    shape = {"layers": layers, "state_size": state_size}
    options = {name: values for name, values in GATED_OPTIONS.items() if name != "gate_inputs"}
    return [
        GatedOptions(**dict(zip(options, values, strict=True)), gate_inputs=inputs).network(**shape)
        for inputs in gate_inputs
        for values in itertools.product(*options.values())
    ]


def baseline_configs(layers: int, state_size: int) -> list[NetworkConfig]:
    return [NetworkConfig(cell, layers, state_size) for cell in BASELINE_CELLS]


def representatives(configs: Sequence[NetworkConfig]) -> list[NetworkConfig]:
    """Choose few configs in which every two fields take all their values in combination."""
    numbers: dict[object, int] = {}
    masks = []
    for config in configs:
        values = (*dict(config.options).values(), config.layers, config.state_size)
        pairs = itertools.combinations(enumerate(values), 2)
        masks.append(sum(1 << numbers.setdefault(pair, len(numbers)) for pair in pairs))
    chosen, missing = [], (1 << len(numbers)) - 1
    while missing:
        best = max(range(len(masks)), key=lambda i: (masks[i] & missing).bit_count())
        chosen.append(configs[best])
        missing &= ~masks[best]
    return chosen


def label(config: NetworkConfig) -> str:
    return f"{config.label} {config.gated.gate_inputs if config.is_gated else ''}"


def make_model(config, tokenizer, precision="bf16", scale=1.0, **metadata: str) -> Any:
    """Return a network with initial weights as if it were trained; ``scale`` is of its head."""
    from rnn.export import SavedModel  # needs more than PyTorch
    from rnn.tasks.task import SavedTask

    computed = "fp64" if precision == "fp64" else "fp32"
    network = AutogradStack([TrialConfig(config)], 7, computed, TaskSpec.of_text(tokenizer.size))
    weights = extract(network)
    weights["head.weight"] *= scale
    task = SavedTask("text", tokenizer.size, tokenizer.size, merges=tokenizer.bpe.merges)
    return SavedModel(config, weights, task, precision, metadata)


# ------------------------------------------------------------------ the plain module


def plain_network(config: TrialConfig, spec: TaskSpec = SPEC) -> Network:
    """Return the module that every implementation must equal, in float64 and without shortcuts."""
    return Network(config.architecture, spec).double()


def loss_and_grad(
    module: Network, tokens: Tensor, targets: Tensor, states: list[Tensor] | None = None
) -> tuple[Tensor, NamedTensors, list[Tensor]]:
    """Return the loss after tokens (T, B), autograd's gradients through all T steps, and states."""
    logits, states = module(tokens, states)
    loss = nn.functional.cross_entropy(logits[-1], targets)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
    return loss.detach(), dict(zip(trained, found, strict=True)), [each.detach() for each in states]


def window_of(text: Tensor, first: int, stop: int) -> Window:
    """Return the window of a text's tokens from one step to another, with its last target."""
    return Window(text[first:stop], text[stop : stop + 1], begins=not first)


def extract(network: Engine, k: int = 0) -> NamedTensors:
    return network.parameters.extract(k, network.parameters.values)


def extract_grads(network: Engine, k: int = 0) -> NamedTensors:
    return network.parameters.extract(k, network.parameters.grads)


def assert_near(actual, expected, tolerance, name):
    actual, expected = actual.cpu().double(), expected.detach().double()
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=tolerance, msg=lambda message: f"{name}: {message}"
    )


def assert_trains_as_plain_modules(
    network: Engine,
    precision: Precision,
    streams: int = STREAMS,
    spec: TaskSpec = SPEC,
    lengths: Sequence[int] = (8, 5),
) -> TrainStep:
    """Train for a few sequences; compare loss, gradient and states of every step.

    The gradient at a step is that of its loss through the last ``bptt_steps`` steps, recomputed
    with the current weights, from the states as they were before. It is exactly zero where the
    plain module's is, and not elsewhere. ``lengths`` are the tokens of each sequence.
    """
    tolerance = TOLERANCE[precision]
    generator = torch.Generator().manual_seed(0)
    plain = [plain_network(config, spec) for config in network.configs]
    train_step = TrainStep(network, streams, smoothing=0.0, initial_loss=None)
    reach = network.configs[0].bptt_steps
    reads_separately = len({config.replicate for config in network.configs}) > 1
    shape = (len(plain), streams) if reads_separately else (streams,)
    for length in lengths:
        text = torch.randint(spec.inputs, (length, *shape), generator=generator)
        train_step.begin_sequence()
        past: list[list[Any]] = [[None] for _ in plain]  # states before each step
        for t in range(length - 1):
            weights = [extract(network, k) for k in range(len(plain))]
            first = max(0, t + 1 - reach)
            train_step.step(window_of(text, first, t + 1))
            for k, module in enumerate(plain):
                own_text = text[:, k] if reads_separately else text
                module.load_state_dict(weights[k])
                read, target = own_text[first : t + 1], own_text[t + 1]
                loss, grads, states = loss_and_grad(module, read, target, past[k][first])
                past[k].append(states)
                name = f"step {t} of {network.configs[k].label}"
                assert_near(train_step.ema_losses[k], loss, tolerance, name)
                _assert_near_grads(extract_grads(network, k), grads, tolerance, name)
                carried = (state[k] for state in train_step.states)
                for expected in states:
                    assert_near(next(carried), expected, tolerance, name)
    return train_step


def _assert_near_grads(actual, expected, tolerance, name):
    assert actual.keys() == expected.keys()
    scale = max(float(grad.abs().max()) for grad in expected.values())
    for param, grad in expected.items():
        assert_near(actual[param], grad, tolerance * scale, f"{param}, {name}")
        assert grad.any() == actual[param].any(), f"{param}, {name}: expected zeros or none"


def assert_evaluates_as_plain_modules(network, precision, windows, spec=SPEC):
    """Compare the losses on held-out windows, which start from the initial states."""
    losses = compute_eval_losses(network, windows)
    for k, config in enumerate(network.configs):
        module, states, expected = plain_network(config, spec), None, []
        module.load_state_dict(extract(network, k))
        for tokens, targets in itertools.pairwise(torch.from_numpy(windows).long()):
            (logits,), states = module(tokens[None], states)
            expected.append(nn.functional.cross_entropy(logits, targets, reduction="none"))
        assert_near(losses[k], torch.stack(expected).mean(0), TOLERANCE[precision], config.label)


# ------------------------------------------------------------------ implementations

NATIVE_PRECISIONS = tuple(each for each in ("fp32", "bf16") if load_library(each) is not None)

OPTIMIZERS = [
    OptimizerConfig("adam", 0.01),
    OptimizerConfig("sgd", 0.1, gradient_clipping=0.5, schedule="linear"),
    OptimizerConfig(
        "adamw", 0.02, weight_decay=0.1, gradient_clipping=1.0, schedule="cosine", warmup_steps=3
    ),
    OptimizerConfig("rmsprop", 0.003, beta2=0.9, warmup_steps=5),
]


@dataclass(frozen=True, eq=False)
class Implementation:
    """One way to train networks.

    Attributes:
        build: builds networks from the arguments of :func:`rnn.engines.build_network`.
        groups: networks that are trained together, by a name of the group.
        place: ``"cpu"``, ``"cuda"``, or ``"stand-in"``: the processor, which runs the operations
            of a GPU and a stand-in for its graphs.
        is_recorded: whether the step is recorded as a graph where there are graphs.
    """

    name: str
    build: Callable[..., Engine]
    groups: Mapping[str, Sequence[TrialConfig]]
    precisions: tuple[Precision, ...]
    bptt_steps: tuple[int, ...] = (1,)
    place: str = "cpu"
    is_recorded: bool = True


@dataclass(frozen=True)
class Case:
    """Networks that an implementation trains together."""

    implementation: Implementation
    configs: tuple[TrialConfig, ...]
    precision: Precision

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:0" if self.implementation.place == "cuda" else "cpu")

    def build(self, weights=None, seed: int = SEED) -> Engine:
        return self.implementation.build(
            self.configs, seed, self.precision, SPEC, self.device, weights
        )

    def of(self, *configs: TrialConfig) -> "Case":
        return replace(self, configs=configs)

    def without_clipping(self) -> "Case":
        """Return the case with gradients as they are computed."""
        optimizers = [replace(each.optimizer, gradient_clipping=0.0) for each in self.configs]
        changed = zip(self.configs, optimizers, strict=True)
        return self.of(*(each._replace(optimizer=optimizer) for each, optimizer in changed))


def build_native(configs, seed, precision, spec, device, weights):
    return NativeStack(configs, seed, precision, spec, weights=weights)


def group(architectures: Sequence[NetworkConfig]) -> list[TrialConfig]:
    pairs = zip(architectures, itertools.cycle(OPTIMIZERS), strict=False)
    return [TrialConfig(architecture, optimizer=optimizer) for architecture, optimizer in pairs]


SHAPES = [(2, "state"), (3, "candidate")]
SMALL = [(2, "candidate"), (1, "state")]


def gated_stacks(shapes=SHAPES, count=None) -> dict[str, list[TrialConfig]]:
    """Return a group of representative gated networks of each shape, at most ``count``."""
    return {
        f"{layers} layers {inputs}": group(
            representatives(gated_configs(layers, SIZE, [inputs]))[:count]
        )
        for layers, inputs in shapes
    }


def each_alone(architectures: Sequence[NetworkConfig]) -> dict[str, list[TrialConfig]]:
    return {label(each.architecture).strip(): [each] for each in group(architectures)}


GATED = [
    GatedOptions.of_largest().network(2, SIZE),
    GatedOptions(False, True, False, True, False, "new", "candidate").network(2, SIZE),
]
CELLS = ["MinGRU", "LayerNormGRU", "DiagonalLRU", "Everything", "Delay", "TorchGRU", "OneStepGRU"]


def replicates(config: NetworkConfig) -> list[TrialConfig]:
    """Return three networks of one architecture; two of them read the same text."""
    return [
        TrialConfig(config, replicate, optimizer=optimizer)
        for replicate, optimizer in zip((0, 1, 0), OPTIMIZERS[:3], strict=True)
    ]


BLOCKS = [
    replace(config, block="residual")
    for config in (GATED[1], NetworkConfig("gru", 2, SIZE), cell_config("Everything", 2, SIZE))
]
BUILT_IN = each_alone([*GATED, *baseline_configs(2, SIZE), BLOCKS[0]])
RECORDED_BUILT_IN = each_alone([GATED[0], NetworkConfig("lstm", 2, SIZE)])
OWN_CELLS = each_alone([*(cell_config(cell, 2, SIZE) for cell in CELLS), BLOCKS[2]])
LOCKSTEP = {
    f"3 {cell}": replicates(cell_config(cell, 2, SIZE))
    for cell in ("Everything", "Delay", "LayerNormGRU")
}
BUILT_IN_LOCKSTEP = {
    f"3 {label(config)}".strip(): replicates(config)
    for config in (
        GATED[1],
        NetworkConfig("gru", 2, SIZE),
        NetworkConfig("lstm", 2, SIZE),
        BLOCKS[1],
    )
}

stacked = partial(NetworkStack, static_graph=True)
shared_tokens = partial(NetworkStack, static_graph=False)

TWO = ("fp64", "bf16")

IMPLEMENTATIONS = [
    Implementation("native", build_native, gated_stacks(), NATIVE_PRECISIONS),
    Implementation("stacked", stacked, gated_stacks(), ("fp64", "fp32", "bf16")),
    Implementation("shared tokens", shared_tokens, gated_stacks(SHAPES[::-1], 4), TWO),
    Implementation("recorded", stacked, gated_stacks(SMALL, 4), TWO, place="stand-in"),
    Implementation("autograd", AutogradStack, BUILT_IN, TWO, (3, 1)),
    Implementation("recorded autograd", AutogradStack, RECORDED_BUILT_IN, TWO, (3, 1), "stand-in"),
    Implementation("own cell", AutogradStack, OWN_CELLS, TWO, (3, 1), is_recorded=False),
    Implementation("lockstep", AutogradStack, LOCKSTEP, TWO, (3, 1), is_recorded=False),
    Implementation("built-in lockstep", AutogradStack, BUILT_IN_LOCKSTEP, TWO, (3,), "stand-in"),
]

GPU_IMPLEMENTATIONS = [
    replace(each, place="cuda", precisions=("fp64", "fp32", "tf32", "bf16"))
    for each in IMPLEMENTATIONS
    if each.place == "stand-in" or not each.is_recorded
]

EVERY_OPTION = [
    replace(
        each,
        groups={f"{layers} layers {inputs}": group(gated_configs(layers, SIZE, [inputs]))},
        precisions=each.precisions[:1],
    )
    for each, (layers, inputs) in zip(IMPLEMENTATIONS, SHAPES, strict=False)
]


def list_cases(implementations: Sequence[Implementation], is_complete: bool = False) -> list[Any]:
    """Return cases of implementations as parameters of a test.

    The groups have different precisions and BPTT steps, so that each occurs. ``is_complete`` adds
    all other combinations: as extended tests, or on a GPU as any other.
    """
    parameters = []
    for each in implementations:
        on_gpu = each.place == "cuda"
        settings = sorted(
            itertools.product(each.precisions, each.bptt_steps),
            key=lambda setting: (setting[0] == "fp64") != (setting[1] == each.bptt_steps[0]),
        )
        for number, (name, configs) in enumerate(each.groups.items()):
            for precision, steps in settings:
                is_chosen = (precision, steps) == settings[number % len(settings)]
                if not is_chosen and not is_complete:
                    continue
                marks = [pytest.mark.gpu] if on_gpu else [pytest.mark.extended] * (not is_chosen)
                own = (config._replace(bptt_steps=steps) for config in configs)
                case = Case(each, tuple(own), precision)
                words = each.name, name, precision, str(steps), *["GPU"] * on_gpu
                parameters.append(pytest.param(case, marks=marks, id=" ".join(words)))
    return parameters


def prepare(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the processor run the operations of a GPU, and a stand-in for its graphs."""
    if place != "stand-in":
        return
    monkeypatch.setattr("rnn.training.step.find_recorder", lambda device: StandInRecorder())
    monkeypatch.setattr("rnn.recurrences._find_precision", lambda *tensors: None)

    def backward_embedding(stack: NetworkStack, tokens: Tensor, d: Tensor) -> None:
        torch.sum(d, 1, keepdim=True, out=stack._embedding.bias_grad)
        stack._add_rows_by_product(tokens, d)

    monkeypatch.setattr(NetworkStack, "_backward_embedding", backward_embedding)
