"""Every implementation of networks, and the plain module that each of them must equal.

All networks of the contract (:mod:`test_contract`) are built here. Nothing but PyTorch, numpy and
pytest is needed. K is the number of networks, B the number of streams, T a number of time steps.
"""

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from graph_stand_in import StandInRecorder
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from user_cells import cell_config

from rnn.cells.loading import cell_class
from rnn.codegen.module_code import generate_module, state_dict_mapping
from rnn.config import (
    BASELINE_CELLS,
    GATE_INPUTS,
    STATE_SOURCES,
    BaselineConfig,
    CellConfig,
    GatedConfig,
    NetworkConfig,
    OptimizerConfig,
    Precision,
    TrialConfig,
)
from rnn.models.bptt_network import BPTTNetwork
from rnn.models.cell_network import CellNetwork
from rnn.models.factory import TrainableNetwork, build_network
from rnn.native.library import load_library
from rnn.native.network import NativeStack
from rnn.stacked.flat_parameters import NamedTensors
from rnn.stacked.network import NetworkStack
from rnn.training.evaluation import compute_eval_losses
from rnn.training.step import TrainStep

SEED, STREAMS, SIZE, VOCAB_SIZE = 3, 3, 5, 11

TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4, "tf32": 0.02, "bf16": 0.05}
"""Largest difference of numbers of about 1, after a few steps."""

# ------------------------------------------------------------------ configs


def gated_configs(layers, state_size, gate_inputs=GATE_INPUTS) -> list[GatedConfig]:
    """Return the configs of all combinations of options."""
    return [
        GatedConfig(*switches, source, layers, state_size, inputs)
        for inputs in gate_inputs
        for switches in itertools.product((False, True), repeat=5)
        for source in STATE_SOURCES
    ]


def baseline_configs(layers: int, state_size: int) -> list[BaselineConfig]:
    return [BaselineConfig(cell, layers, state_size) for cell in BASELINE_CELLS]


def representatives(configs: Sequence[GatedConfig]) -> list[GatedConfig]:
    """Choose few configs in which every two fields take all their values in combination."""
    numbers: dict[object, int] = {}
    masks = []
    for config in configs:
        pairs = itertools.combinations(enumerate(astuple(config)), 2)
        masks.append(sum(1 << numbers.setdefault(pair, len(numbers)) for pair in pairs))
    chosen, missing = [], (1 << len(numbers)) - 1
    while missing:
        best = max(range(len(masks)), key=lambda i: (masks[i] & missing).bit_count())
        chosen.append(configs[best])
        missing &= ~masks[best]
    return chosen


def label(config: NetworkConfig) -> str:
    return f"{config.label} {getattr(config, 'gate_inputs', '')}"


def make_model(config, tokenizer, precision="bf16", scale=1.0, **metadata: str) -> Any:
    """Return a network with initial weights as if it were trained; ``scale`` is of its head."""
    from rnn.inference.saved_model import SavedModel  # needs more than PyTorch

    computed = "fp64" if precision == "fp64" else "fp32"
    network = build_network([TrialConfig(config)], 7, computed, tokenizer.size)
    weights = extract(network)
    weights["head.weight"] *= scale
    return SavedModel(config, weights, tokenizer, precision, metadata)


# ------------------------------------------------------------------ the plain module


def execute(code: str) -> dict[str, Any]:
    """Return the names that a source file defines."""
    names: dict[str, Any] = {"__name__": "generated"}
    exec(compile(code, "generated.py", "exec"), names)
    return names


class PlainNetwork:
    """The exported module of a network in float64: the reference of every implementation.

    It reads one token after another, and its gradients are autograd's.
    """

    def __init__(self, config: TrialConfig, vocab_size: int = VOCAB_SIZE) -> None:
        architecture = config.architecture
        code = generate_module(architecture, vocab_size, config.bptt_steps)
        self._mapping = None
        if isinstance(architecture, CellConfig):
            cls = cell_class(architecture)
            sys.modules["cell"] = SimpleNamespace(**{cls.__name__: cls})  # type: ignore[assignment]
        else:
            self._mapping = state_dict_mapping(architecture)
        try:
            self.module: nn.Module = execute(code)["Network"]().double()
        finally:
            sys.modules.pop("cell", None)
        self.initial_states: Callable[[int], list[Any]] = self.module.init_state

    def load(self, weights: NamedTensors) -> None:
        """Set the weights, given by the names and in the layout of an implementation."""
        if self._mapping is not None:
            weights = {
                name: weights[f"{param}.weight"].T if kind == "weight" else weights[f"{param}.bias"]
                for name, (param, kind) in self._mapping.items()
            }
        self.module.load_state_dict(weights)

    def read(self, tokens: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
        """Read tokens (T, B); return the logits (B, V) after the last, and the states."""
        for each in tokens:
            logits, states = self.module(each, states)
        return logits, states

    def loss_and_grad(
        self, tokens: Tensor, targets: Tensor, states: list[Any]
    ) -> tuple[Tensor, NamedTensors, list[Any]]:
        """Return the loss after tokens (T, B), its gradients through all T steps, and the states.

        Gradients have the names and the layout of an implementation.
        """
        logits, states = self.read(tokens, states)
        loss = nn.functional.cross_entropy(logits, targets)
        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
        grads = dict(zip(trained, found, strict=True))
        if self._mapping is not None:
            grads = {
                f"{param}.{kind}": grads[name].T if kind == "weight" else grads[name]
                for name, (param, kind) in self._mapping.items()
            }
        return loss.detach(), grads, states

    @torch.no_grad()
    def eval_losses(self, windows: Tensor) -> Tensor:
        """Return the mean loss of each held-out window (T, windows), from the initial states."""
        states = self.initial_states(windows.shape[1])
        losses = []
        for tokens, targets in itertools.pairwise(windows):
            logits, states = self.module(tokens, states)
            losses.append(nn.functional.cross_entropy(logits, targets, reduction="none"))
        return torch.stack(losses).mean(0)


def extract(network: TrainableNetwork, k: int = 0) -> NamedTensors:
    """Return the weights of network k."""
    return network.parameters.extract(k, network.parameters.values)


def extract_grads(network: TrainableNetwork, k: int = 0) -> NamedTensors:
    return network.parameters.extract(k, network.parameters.grads)


def assert_near(actual, expected, tolerance, name):
    actual, expected = actual.cpu().double(), expected.detach().double()
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=tolerance, msg=lambda message: f"{name}: {message}"
    )


def assert_trains_as_plain_modules(
    network: TrainableNetwork,
    precision: Precision,
    streams: int = STREAMS,
    vocab_size: int = VOCAB_SIZE,
    lengths: Sequence[int] = (8, 5),
) -> TrainStep:
    """Train for a few sequences; compare loss, gradient and states of every step.

    The gradient at a step is that of its loss through the last ``bptt_steps`` steps, recomputed
    with the current weights, from the states as they were before. It is exactly zero where the
    plain module's is. ``lengths`` are the tokens of each sequence.
    """
    tolerance = TOLERANCE[precision]
    generator = torch.Generator().manual_seed(0)
    plain = [PlainNetwork(config, vocab_size) for config in network.configs]
    train_step = TrainStep(network, streams, smoothing=0.0)
    window = network.configs[0].bptt_steps
    reads_separately = len({config.replicate for config in network.configs}) > 1
    shape = (len(plain), streams) if reads_separately else (streams,)
    for length in lengths:
        text = torch.randint(vocab_size, (length, *shape), generator=generator)
        train_step.begin_sequence()
        past = [[each.initial_states(streams)] for each in plain]  # before each step
        for t in range(length - 1):
            weights = [extract(network, k) for k in range(len(plain))]
            train_step.step(text[t], text[t + 1])
            first = max(0, t + 1 - window)
            for k, each in enumerate(plain):
                own_text = text[:, k] if reads_separately else text
                each.load(weights[k])
                start = each.initial_states(streams) if first == 0 else past[k][first]
                loss, grads, states = each.loss_and_grad(
                    own_text[first : t + 1], own_text[t + 1], start
                )
                past[k].append(tree_map(Tensor.detach, states))
                name = f"step {t} of {network.configs[k].label}"
                assert_near(train_step.ema_losses[k], loss, tolerance, name)
                _assert_near_grads(extract_grads(network, k), grads, tolerance, name)
                carried = (state[k] for state in train_step.states)
                for expected in tree_leaves(states):
                    assert_near(next(carried), expected, tolerance, name)
    return train_step


def _assert_near_grads(actual, expected, tolerance, name):
    assert actual.keys() == expected.keys()
    scale = max(float(grad.abs().max()) for grad in expected.values())
    for param, grad in expected.items():
        assert_near(actual[param], grad, tolerance * scale, f"{param}, {name}")
        assert grad.any() or not actual[param].any(), f"{param}, {name}: expected zeros"


def assert_evaluates_as_plain_modules(network, precision, windows, vocab_size):
    """Compare the losses on held-out windows, which start from the initial states."""
    losses = compute_eval_losses(network, windows)
    for k, config in enumerate(network.configs):
        plain = PlainNetwork(config, vocab_size)
        plain.load(extract(network, k))
        expected = plain.eval_losses(torch.from_numpy(windows).long())
        assert_near(losses[k], expected, TOLERANCE[precision], config.label)


# ------------------------------------------------------------------ implementations

NATIVE_PRECISIONS = tuple(each for each in ("fp32", "bf16") if load_library(each) is not None)

OPTIMIZERS = [
    OptimizerConfig("adam", 0.01),
    OptimizerConfig("sgd", 0.1, gradient_clipping=0.5),
    OptimizerConfig("adamw", 0.02, weight_decay=0.1, gradient_clipping=1.0),
    OptimizerConfig("rmsprop", 0.003, beta2=0.9),
]


@dataclass(frozen=True, eq=False)
class Implementation:
    """One way to train networks.

    Attributes:
        build: builds networks from the arguments of :func:`rnn.models.factory.build_network`.
        groups: networks that are trained together, by a name of the group.
        place: ``"cpu"``, ``"cuda"``, or ``"stand-in"``: the processor, which runs the operations
            of a GPU and a stand-in for its graphs.
        is_recorded: whether the step is recorded as a graph where there are graphs.
    """

    name: str
    build: Callable[..., TrainableNetwork]
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

    def build(self, weights=None, seed: int = SEED) -> TrainableNetwork:
        return self.implementation.build(
            self.configs, seed, self.precision, VOCAB_SIZE, self.device, weights
        )

    def of(self, *configs: TrialConfig) -> "Case":
        """Return the case of other networks."""
        return replace(self, configs=configs)

    def without_clipping(self) -> "Case":
        """Return the case with gradients as they are computed."""
        optimizers = [replace(each.optimizer, gradient_clipping=0.0) for each in self.configs]
        changed = zip(self.configs, optimizers, strict=True)
        return self.of(*(each._replace(optimizer=optimizer) for each, optimizer in changed))


def build_native(configs, seed, precision, vocab_size, device, weights):
    return NativeStack(configs, seed, precision, vocab_size, weights)


def group(architectures: Sequence[NetworkConfig], decays: bool = True) -> list[TrialConfig]:
    """Return configs with different optimizers."""
    optimizers = [each if decays else replace(each, weight_decay=0.0) for each in OPTIMIZERS]
    pairs = zip(architectures, itertools.cycle(optimizers), strict=False)
    return [TrialConfig(architecture, optimizer=optimizer) for architecture, optimizer in pairs]


SHAPES = [(2, "state"), (3, "candidate")]
SMALL = [(2, "candidate"), (1, "state")]


def gated_stacks(shapes=SHAPES, count=None, decays=True) -> dict[str, list[TrialConfig]]:
    """Return a group of representative gated networks of each shape, at most ``count``."""
    return {
        f"{layers} layers {inputs}": group(
            representatives(gated_configs(layers, SIZE, [inputs]))[:count], decays
        )
        for layers, inputs in shapes
    }


def each_alone(architectures: Sequence[NetworkConfig]) -> dict[str, list[TrialConfig]]:
    return {label(each.architecture).strip(): [each] for each in group(architectures)}


GATED = [
    GatedConfig(True, True, True, True, True, "both", 2, SIZE),
    GatedConfig(False, True, False, True, False, "new", 2, SIZE, "candidate"),
]
CELLS = ["MinGRU", "LayerNormGRU", "DiagonalLRU", "Everything", "Delay", "TorchGRU", "OneStepGRU"]


def replicates(cell: str) -> list[TrialConfig]:
    """Return three networks of one cell; two of them read the same text."""
    config = cell_config(cell, 2, SIZE)
    return [
        TrialConfig(config, replicate, optimizer=optimizer)
        for replicate, optimizer in zip((0, 1, 0), OPTIMIZERS[:3], strict=True)
    ]


BUILT_IN = each_alone([*GATED, *baseline_configs(2, SIZE)])
RECORDED_BUILT_IN = each_alone([GATED[0], BaselineConfig("lstm", 2, SIZE)])
OWN_CELLS = each_alone([cell_config(cell, 2, SIZE) for cell in CELLS])
LOCKSTEP = {f"3 {cell}": replicates(cell) for cell in ("Everything", "Delay", "LayerNormGRU")}

stacked = partial(NetworkStack, static_graph=True, is_padded=False)
shared_tokens = partial(NetworkStack, static_graph=False, is_padded=False)
padded = partial(NetworkStack, static_graph=True, is_padded=True)

TWO = ("fp64", "bf16")

IMPLEMENTATIONS = [
    Implementation("native", build_native, gated_stacks(), NATIVE_PRECISIONS),
    Implementation("stacked", stacked, gated_stacks(), ("fp64", "fp32", "bf16")),
    Implementation("shared tokens", shared_tokens, gated_stacks(SHAPES[::-1], 4), TWO),
    Implementation("recorded", stacked, gated_stacks(SMALL, 4), TWO, place="stand-in"),
    Implementation("padded", padded, gated_stacks(SMALL[:1], 4, False), TWO, place="stand-in"),
    Implementation("autograd", BPTTNetwork, BUILT_IN, TWO, (3, 1)),
    Implementation("recorded autograd", BPTTNetwork, RECORDED_BUILT_IN, TWO, (3, 1), "stand-in"),
    Implementation("own cell", CellNetwork, OWN_CELLS, TWO, (3, 1), is_recorded=False),
    Implementation("lockstep", CellNetwork, LOCKSTEP, TWO, (3, 1), is_recorded=False),
]
"""The implementations on a processor."""

GPU_IMPLEMENTATIONS = [
    replace(each, place="cuda", precisions=("fp64", "fp32", "tf32", "bf16"))
    for each in IMPLEMENTATIONS
    if each.place == "stand-in" or not each.is_recorded
]

EVERY_NETWORK = {
    f"{layers} layers {inputs}": group(gated_configs(layers, SIZE, [inputs]))
    for layers, inputs in ((2, "candidate"), (3, "state"))
}
EVERY_OPTION = [
    replace(each, groups=EVERY_NETWORK, precisions=each.precisions[:1])
    for each in IMPLEMENTATIONS[:2]
]
"""Networks of all combinations of options."""


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

    def backward_embedding(stack: NetworkStack, tokens: Tensor, d: Tensor) -> None:
        torch.sum(d, 1, keepdim=True, out=stack._embedding.bias_grad)
        stack._add_rows_by_product(tokens, d)

    monkeypatch.setattr(NetworkStack, "_backward_embedding", backward_embedding)
