"""Networks of a user's own cell in training: one by autograd, several in lockstep by ``vmap``.

The gradient is that of :mod:`rnn.models.bptt_network`: at each time step there is one update, by
the gradient of that step's loss through the last W steps of the sequence, which are recomputed.

K is the number of networks, B the number of streams, V the vocabulary size, T ≤ W the number of
steps that a gradient passes through.
"""

import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from rnn.cells.loading import describe_error
from rnn.config import BYTE_VOCAB_SIZE, CellConfig, Precision, TrialConfig
from rnn.models.bptt_window import BPTTWindow
from rnn.models.cell_module import CellModule, InitialStates, build_seeded, named_tensors
from rnn.models.cell_parameters import CellParameters
from rnn.stacked.flat_parameters import NamedTensors
from rnn.stacked.network import initialization_seed
from rnn.training.devices import is_out_of_memory, keep_freed_memory
from rnn.training.precision import configure_matmul


class CellNetwork:
    """A :class:`rnn.models.factory.TrainableNetwork` of K networks of one user's own cell.

    It is a :class:`rnn.models.factory.WindowedNetwork` as well.

    Args:
        configs: the configs; they differ in replicate and optimizer only.
        precision: precision of the arithmetic; in bf16 the step runs under ``torch.autocast``.
        seed, vocab_size, device, weights: as of :func:`rnn.models.factory.build_network`.

    Attributes:
        module: the network if K = 1, whose parameters are views of ``parameters``; for more
            networks ``vmap`` replaces its parameters.
        layers: number of layers.

    Raises:
        ValueError: if the configs differ in more, or ``bptt_steps`` is less than 1.
        CellError: if the cell is not loaded or breaks the contract of a cell.
    """

    static_graph = False  # a cell may do anything, which a CUDA graph cannot
    position: int | None = None
    separate_texts = True

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        seed: int,
        precision: Precision = "fp32",
        vocab_size: int = BYTE_VOCAB_SIZE,
        device: torch.device | None = None,
        weights: Mapping[TrialConfig, NamedTensors] | None = None,
    ) -> None:
        self.configs = tuple(configs)
        shared = {(config.architecture, config.bptt_steps) for config in configs}
        if len(shared) != 1:
            raise ValueError(
                f"configs are of {len(shared)} architectures and bptt_steps: expected one of both"
            )
        ((architecture, bptt_steps),) = shared
        if not isinstance(architecture, CellConfig) or bptt_steps < 1:
            raise ValueError(
                f"{architecture.label} with bptt_steps {bptt_steps}: expected a user's own cell "
                "and bptt_steps of 1 or more"
            )
        self.seed, self.precision, self.vocab_size = seed, precision, vocab_size
        self.device = device or torch.device("cpu")
        self.layers = architecture.layers
        configure_matmul(precision, self.device)
        if len(self.configs) > 1:
            keep_freed_memory()

        def build(config: TrialConfig) -> CellModule:
            return build_seeded(architecture, vocab_size, initialization_seed(config, seed))

        dtype = torch.float64 if precision == "fp64" else torch.float32
        self.parameters = CellParameters(self.configs, map(build, configs), dtype, self.device)
        for k, config in enumerate(self.configs):
            if params := (weights or {}).get(config):
                self.parameters.load(k, self.parameters.values, params)
        self.module = build(self.configs[0])
        self._use_flat_parameters()

        with torch.enable_grad():
            self._learns_initial_state = any(
                state.requires_grad for state in self._initial_states(1)
            )
        self._window = BPTTWindow(bptt_steps, self._learns_initial_state)

    def _use_flat_parameters(self) -> None:
        """Make the module and ``vmap`` read the flat tensors."""
        parameters = self.parameters
        stacked = {
            name: parameters.view(parameters.values, name).detach().requires_grad_()
            for name in parameters.names
        }
        grads = {name: parameters.view(parameters.full_grads, name) for name in parameters.names}
        if len(self.configs) > 1:
            self._tensors = stacked | parameters.constants
        else:
            self._tensors = {}
            tensors = named_tensors(self.module)
            for name, value in (stacked | parameters.constants).items():
                # The tensor stays the same object, wherever else the cell may keep it.
                tensors[name].data = value.detach()[0]
            stacked = {name: tensors[name] for name in stacked}
            grads = {name: grad[0] for name, grad in grads.items()}
        self._leaves, self._grads = list(stacked.values()), list(grads.values())

    def with_configs(self, weights: Mapping[TrialConfig, NamedTensors]) -> "CellNetwork":
        """Return networks of these configs and weights, otherwise like these."""
        return CellNetwork(
            list(weights), self.seed, self.precision, self.vocab_size, self.device, weights
        )

    @torch.no_grad()
    def init_state(self, streams: int) -> list[Tensor]:
        """Return the states at a sequence's start, (K, B, …) for each tensor of each layer."""
        return [state.clone() for state in self._initial_states(streams)]

    def init_training_state(self, streams: int) -> list[Tensor]:
        """Return what training carries from step to step, at a sequence's start.

        See :class:`rnn.models.bptt_window.BPTTWindow`.
        """
        return self._window.begin(self.init_state(streams))

    @torch.no_grad()
    def forward(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step; tokens are (B,), or (K, B) if networks read others."""
        logits, next_states = self._run(self._stack(tokens)[:, None], states)
        # A cell may return a part of its old state as a new one.
        return logits, list(map(torch.clone, next_states))

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each stream (K, B), in nats."""
        return functional.cross_entropy(logits.mT, self._stack(targets), reduction="none")

    def loss_and_grad(
        self, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step; compute the gradients of its loss through the last W steps."""
        position, self.position = self.position, None
        window = self._window.advance(self._stack(tokens), states, position)
        is_learned = window.begins_sequence and self._learns_initial_state
        with torch.enable_grad():
            logits, next_states = self._run(window.tokens, None if is_learned else window.states)
            losses = self.losses(logits, targets).mean(1)  # (K,)
        grads = torch.autograd.grad(losses.sum(), self._leaves, materialize_grads=True)
        for target, grad in zip(self._grads, grads, strict=True):
            target.copy_(grad.detach())  # torch 2.7 makes zeros that require a gradient
        after = [state.detach().clone() for state in next_states]
        return losses.detach(), [*after, *window.carried]

    def _stack(self, tokens: Tensor) -> Tensor:
        """Return tokens (B,) or (K, B) as (K, B)."""
        return tokens.expand(len(self.configs), -1).long()

    def _run(self, tokens: Tensor, states: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Read tokens (K, T, B); return logits (K, B, V) and the next states (K, B, …)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if len(self.configs) == 1:
                first = None if states is None else [state[0] for state in states]
                logits, next_states = self.module(tokens[0], first)
                return logits[None], [state[None] for state in next_states]

            def run(
                tensors: dict[str, Tensor], tokens: Tensor, states: Sequence[Tensor] | None
            ) -> tuple[Tensor, list[Tensor]]:
                result: tuple[Tensor, list[Tensor]]
                result = functional_call(self.module, tensors, (tokens, states))
                return result

            return torch.vmap(run, in_dims=(0, 0, None if states is None else 0))(
                self._tensors, tokens, None if states is None else list(states)
            )

    def _initial_states(self, streams: int) -> list[Tensor]:
        if len(self.configs) == 1:
            return [state[None] for state in self.module.initial_states(streams)]
        module = InitialStates(self.module)

        def run(tensors: dict[str, Tensor]) -> list[Tensor]:
            states: list[Tensor] = functional_call(module, tensors, (streams,))
            return states

        return torch.vmap(run)({f"module.{name}": each for name, each in self._tensors.items()})


def supports_lockstep(
    config: CellConfig, precision: Precision = "fp32", device: torch.device | None = None
) -> bool:
    """Return whether networks of a cell can be trained in lockstep; tried once per process."""
    return lockstep_obstacle(config, precision, device) is None


def lockstep_obstacle(
    config: CellConfig, precision: Precision = "fp32", device: torch.device | None = None
) -> str | None:
    """Return why networks of a cell cannot be trained in lockstep, or None if they can.

    Two of them are trained for two steps on a few tokens, in lockstep and alone; this is done once
    per process. For bfloat16 it is done in float32 as well, in which rounding hides no error.
    """
    exact: Precision = "fp64" if precision == "fp64" else "fp32"
    for tried in dict.fromkeys((exact, precision)):
        obstacle = _try_lockstep(replace(config, layers=1), tried, device or torch.device("cpu"))
        if obstacle is not None:
            return obstacle
    return None


@cache
def _try_lockstep(config: CellConfig, precision: Precision, device: torch.device) -> str | None:
    vocab_size, streams, steps = 4, 3, 2
    configs = [TrialConfig(config, replicate, bptt_steps=steps) for replicate in range(2)]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (steps + 1, streams), generator=generator).to(device)
    relative, absolute = {
        "bf16": (0.1, 0.1),
        "tf32": (0.01, 0.01),
        "fp32": (1e-3, 1e-5),
        "fp64": (1e-9, 1e-9),
    }[precision]

    def train(together: Sequence[TrialConfig]) -> list[list[Tensor]]:
        network = CellNetwork(together, 0, precision, vocab_size, device)
        states = network.init_training_state(streams)
        for read, target in itertools.pairwise(tokens):
            losses, states = network.loss_and_grad(read, target, states)
        parameters = network.parameters
        grads = [parameters.extract(k, parameters.grads) for k in range(len(together))]
        return [[losses[k].cpu(), *each.values()] for k, each in enumerate(grads)]

    try:
        alone = [train([each])[0] for each in configs]
        with warnings.catch_warnings(record=True, action="always") as warned:
            stacked = train(configs)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"torch.vmap: {describe_error(error)}"
    for each in warned:
        # Of an operation without one, vmap computes one network after another.
        if found := re.search(r"batching rule for (\S+)\.", str(each.message)):
            return f"torch.vmap has no batching rule for {found[1]}"
    for one, other in zip(alone, stacked, strict=True):
        for a, b in zip(one, other, strict=True):
            if not (a - b).norm() <= relative * a.norm() + absolute:
                return "torch.vmap: the gradients are not those of a network that trains alone"
    return None
