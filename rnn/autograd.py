"""The autograd engine: K networks of one cell, by truncated backpropagation through time.

At each time step there is one update, by the gradient of that step's loss through the last W steps
of the sequence, or as many as it has had (Williams & Peng, *An Efficient Gradient-Based Algorithm
for On-Line Training of Recurrent Network Trajectories*, 1990). W changes how far the gradient
reaches and nothing else: neither the text nor the number of updates. The weights change at every
step, so all W steps are recomputed from the state before them: a step costs W times as much.

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
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from rnn.config import (
    BYTE_VOCAB_SIZE,
    CellConfig,
    GatedConfig,
    NetworkConfig,
    Precision,
    TrialConfig,
)
from rnn.network import (
    NamedTensors,
    Network,
    build_seeded,
    draw_initial_weights,
    initialization_seed,
    is_trained,
    named_tensors,
    split_tensors,
)
from rnn.own_cells import describe_error
from rnn.parameters import Parameters, place_stored
from rnn.training.devices import configure_matmul, is_out_of_memory, keep_freed_memory
from rnn.unrolling import UNROLLED, FusedGatedCell, place_fused


class AutogradStack:
    """An :class:`rnn.engines.Engine` of K networks of one architecture, of any cell.

    One network is called as it is, several by ``torch.vmap``. In bf16 the step runs under
    ``torch.autocast``.

    Args:
        configs: the configs; they differ in replicate and optimizer only.
        seed, precision, vocab_size, device, weights: as of :func:`rnn.engines.build_network`.

    Attributes:
        module: the network if K = 1, whose parameters are views of ``parameters``; for more
            networks ``vmap`` replaces its parameters.

    Raises:
        ValueError: if the configs differ in more, or ``bptt_steps`` is less than 1.
        CellError: if a user's cell is not loaded or breaks the contract of a cell.
    """

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
                "configs differ in architecture or bptt_steps: expected one of each in a stack"
            )
        ((architecture, self._window),) = shared
        if self._window < 1:
            raise ValueError(f"bptt_steps is {self._window}: expected 1 or more")
        self._seed, self._precision, self._vocab_size = seed, precision, vocab_size
        self.device = device or torch.device("cpu")
        # A user's cell may do anything, which a CUDA graph cannot.
        self.static_graph = not isinstance(architecture, CellConfig)
        configure_matmul(precision, self.device)
        if len(configs) > 1:
            keep_freed_memory()

        dtype = torch.float64 if precision == "fp64" else torch.float32
        place = place_fused if isinstance(architecture, GatedConfig) else place_stored
        self.parameters = Parameters(configs, dtype, self.device, vocab_size, place)
        constants: NamedTensors = {}
        for k, config in enumerate(self.configs):
            self.module = module = self._build(config, vocab_size)
            trained, saved = split_tensors(module)
            for name, tensor in named_tensors(module).items():
                if not is_trained(tensor):
                    shape = len(configs), *tensor.shape
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    empty = torch.empty(shape, dtype=kind, device=self.device)
                    constants.setdefault(name, empty)[k].copy_(tensor.detach())
            self.parameters.constants = {name: constants[name] for name in saved}
            params = (weights or {}).get(config)
            if params is None and isinstance(architecture, CellConfig):
                params = {**trained, **saved}
            params = params or draw_initial_weights(config, seed, vocab_size)
            self.parameters.load(k, self.parameters.values, params)
        self._use_flat_parameters(constants)
        with torch.enable_grad():
            self._learns_initial_state = any(
                state.requires_grad for state in self._initial_states(1)
            )

    def _build(self, config: TrialConfig, vocab_size: int) -> Network:
        architecture = config.architecture
        if isinstance(architecture, CellConfig):
            seed = initialization_seed(config, self._seed)
            return build_seeded(architecture, vocab_size, seed)
        with torch.device("meta"):
            module = Network(architecture, vocab_size)
            if isinstance(architecture, GatedConfig):
                layers = (FusedGatedCell(architecture) for _ in range(architecture.layers))
                module.layers = nn.ModuleList(layers)
        module.unrolled = UNROLLED
        return module.to_empty(device=self.device)

    def _use_flat_parameters(self, constants: NamedTensors) -> None:
        """Make the module, or ``vmap``, read the flat tensors."""
        leaves = self.parameters.module_views(self.parameters.values)
        grads = self.parameters.module_views(self.parameters.grads)
        self._tensors: NamedTensors = {}
        if len(self.configs) > 1:
            leaves = {name: view.detach().requires_grad_() for name, view in leaves.items()}
            self._tensors = leaves | constants
        else:
            tensors = named_tensors(self.module)
            for name, value in (leaves | constants).items():
                # The tensor stays the same object, wherever else the cell may keep it.
                tensors[name].data = value[0]
            leaves = {name: tensors[name] for name in leaves}
            grads = {name: grad[0] for name, grad in grads.items()}
        self._leaves = list(leaves.values())
        self._grads = [grads[name] for name in leaves]

    def with_configs(self, weights: Mapping[TrialConfig, NamedTensors]) -> "AutogradStack":
        return AutogradStack(
            list(weights), self._seed, self._precision, self._vocab_size, self.device, weights
        )

    @torch.no_grad()
    def init_state(self, streams: int) -> list[Tensor]:
        return [state.clone() for state in self._initial_states(streams)]

    def init_training_state(self, streams: int) -> list[Tensor]:
        """Return the states and, if W > 1, what the last W − 1 steps read.

        These are the states before each of them (K, W − 1, B, …), and their tokens (K, W − 1, B).
        """
        states, earlier = self.init_state(streams), self._window - 1
        if not earlier:
            return states
        past = [state[:, None].repeat(1, earlier, *[1] * (state.dim() - 1)) for state in states]
        shape = len(self.configs), earlier, streams
        return [*states, *past, torch.zeros(shape, dtype=torch.long, device=self.device)]

    @torch.no_grad()
    def forward(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        logits, next_states = self._run(self._stack(tokens)[:, None], states)
        return logits, self._detach(next_states)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        flat = self._stack(targets).flatten()
        losses = functional.cross_entropy(logits.flatten(0, 1), flat, reduction="none")
        return losses.view(logits.shape[:2])

    def loss_and_grad(
        self, tokens: Tensor, targets: Tensor, states: Sequence[Tensor], position: int
    ) -> tuple[Tensor, list[Tensor]]:
        window, carried = self._stack(tokens)[:, None], []  # (K, 1, B)
        if self._window > 1:
            half = len(states) // 2
            *past, past_tokens = states[half:]
            window = torch.cat((past_tokens, window), 1)  # (K, W, B)
            carried = [
                torch.cat((before[:, 1:], now[:, None]), 1)  # (K, W − 1, B, …)
                for before, now in zip(past, states[:half], strict=True)
            ]
            carried.append(window[:, 1:])
            # In a sequence's first steps these are the states that it starts from.
            states = [before[:, 0] for before in past]
        begins_sequence = position < self._window
        window = window[:, -1 - min(position, self._window - 1) :]  # (K, T, B)
        is_learned = begins_sequence and self._learns_initial_state
        with torch.enable_grad():
            logits, next_states = self._run(window, None if is_learned else states)
            if len(self.configs) == 1:
                losses = functional.cross_entropy(logits[0], self._stack(targets)[0])[None]
            else:
                losses = self.losses(logits, targets).mean(1)  # (K,)
            total = losses.sum() if len(self.configs) > 1 else losses
        grads = torch.autograd.grad(total, self._leaves, materialize_grads=True)
        for target, grad in zip(self._grads, grads, strict=True):
            target.copy_(grad.detach())  # torch 2.7 makes zeros that require a gradient
        return losses.detach(), [*self._detach(next_states), *carried]

    def _detach(self, states: Sequence[Tensor]) -> list[Tensor]:
        detached = [state.detach() for state in states]
        # A user's cell may return a part of its old state as a new one.
        return detached if self.static_graph else [state.clone() for state in detached]

    def _stack(self, tokens: Tensor) -> Tensor:
        """Return tokens (B,) or (K, B) as (K, B)."""
        return tokens.expand(len(self.configs), -1).long()

    def _run(self, tokens: Tensor, states: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Read tokens (K, T, B); return logits (K, B, V) and the next states (K, B, …)."""
        if self._precision != "bf16":  # a context takes longer to enter than an operation
            return self._call(tokens, states)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self._call(tokens, states)

    def _call(self, tokens: Tensor, states: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        if len(self.configs) == 1:
            first = None if states is None else [state[0] for state in states]
            logits, next_states = self.module(tokens[0], first)
            return logits[None], [state[None] for state in next_states]

        def run(
            tensors: NamedTensors, tokens: Tensor, states: Sequence[Tensor] | None
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
        module = _InitialStates(self.module)

        def run(tensors: NamedTensors) -> list[Tensor]:
            states: list[Tensor] = functional_call(module, tensors, (streams,))
            return states

        return torch.vmap(run)({f"module.{name}": each for name, each in self._tensors.items()})


class _InitialStates(nn.Module):
    """The initial states of a network as a module, for ``torch.func.functional_call``."""

    def __init__(self, module: Network) -> None:
        super().__init__()
        self.module = module

    def forward(self, streams: int) -> list[Tensor]:
        return self.module.initial_states(streams)


def lockstep_obstacle(
    architecture: NetworkConfig, precision: Precision = "fp32", device: torch.device | None = None
) -> str | None:
    """Return why networks of a cell cannot be trained in lockstep, or None if they can.

    Two networks of a user's cell are trained for three steps on a few tokens, in lockstep and
    alone, once per process. For bfloat16 it is done in float32 as well, in which rounding
    hides no error.
    """
    if not isinstance(architecture, CellConfig):
        return None
    exact: Precision = "fp64" if precision == "fp64" else "fp32"
    for tried in dict.fromkeys((exact, precision)):
        small = replace(architecture, layers=1)
        obstacle = _try_lockstep(small, tried, device or torch.device("cpu"))
        if obstacle is not None:
            return obstacle
    return None


@cache
def _try_lockstep(config: CellConfig, precision: Precision, device: torch.device) -> str | None:
    vocab_size, streams, steps = 4, 3, 2
    configs = [TrialConfig(config, replicate, bptt_steps=steps) for replicate in range(2)]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (steps + 2, streams), generator=generator).to(device)
    relative, absolute = {
        "bf16": (0.1, 0.1),
        "tf32": (0.01, 0.01),
        "fp32": (1e-3, 1e-5),
        "fp64": (1e-9, 1e-9),
    }[precision]

    def train(together: Sequence[TrialConfig]) -> list[list[Tensor]]:
        stack = AutogradStack(together, 0, precision, vocab_size, device)
        states = stack.init_training_state(streams)
        for position, (read, target) in enumerate(itertools.pairwise(tokens)):
            losses, states = stack.loss_and_grad(read, target, states, position)
        parameters = stack.parameters
        grads = [parameters.views(parameters.grads, k) for k in range(len(together))]
        return [[losses[k], *each.values()] for k, each in enumerate(grads)]

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
