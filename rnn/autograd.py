"""The autograd engine: K networks of one cell, by truncated backpropagation through time.

Every U time steps there is one update, by the gradient of the mean of the last U losses taken back
through the last W steps of the sequence, or as many as it has had: BPTT(W; U) of Williams & Peng,
*An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories*,
1990. Where windows overlap (W > U), the weights change between them, so all W steps are recomputed
from the state before them: a step costs W / U times as much. With W = 1 no gradient crosses a time
step, whatever U is.

K is the number of networks, B the number of streams, V the number of outputs, T the number of steps
that a window has.
"""

import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from rnn.config import (
    BYTES,
    NetworkConfig,
    Precision,
    TaskSpec,
    TrialConfig,
)
from rnn.errors import is_out_of_memory
from rnn.network import (
    NamedTensors,
    Network,
    Window,
    build_seeded,
    draw_initial_weights,
    has_sequence_form,
    initialization_seed,
    is_trained,
    named_tensors,
    reset_states,
    split_tensors,
)
from rnn.own_code import describe_error, load_class, loaded_source
from rnn.parameters import Parameters
from rnn.precision import EngineName
from rnn.training.devices import configure_matmul, keep_freed_memory


class AutogradStack:
    """An :class:`rnn.engines.Engine` of K networks of one architecture, of any cell.

    One network is called as it is, several by ``torch.vmap``. In bf16 the step runs under
    ``torch.autocast``.

    Args:
        configs: the configs; they differ in replicate and optimizer only.
        seed, precision, spec, device, weights: as of :func:`rnn.engines.build_network`.

    Attributes:
        module: the network if K = 1, whose parameters are views of ``parameters``; for more
            networks ``vmap`` replaces its parameters.

    Raises:
        CellError: if a user's cell is not loaded or breaks the contract of a cell.
    """

    name: ClassVar[EngineName] = "autograd"
    reads_windows = True

    @staticmethod
    def can_train(
        config: TrialConfig, spec: TaskSpec, precision: Precision, device: torch.device | None
    ) -> bool:
        return True

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        seed: int,
        precision: Precision = "fp32",
        spec: TaskSpec = BYTES,
        device: torch.device | None = None,
        weights: Mapping[TrialConfig, NamedTensors] | None = None,
    ) -> None:
        self.configs = tuple(configs)
        first = configs[0]
        architecture = first.architecture
        self._detaches = first.bptt_steps == 1
        self._earlier = first.earlier_states
        # How far behind the last update the state lies that the first of the earlier ones becomes.
        self._kept_step = -first.bptt_steps % first.update_every
        self._seed = seed
        self._precision = precision
        self.spec = spec
        self.device = device or torch.device("cpu")
        # A user's cell or loss may do anything, which a CUDA graph cannot.
        self.static_graph = architecture.is_built_in and spec.loss is None
        configure_matmul(precision, self.device)
        keep_freed_memory()

        dtype = torch.float64 if precision == "fp64" else torch.float32
        self.parameters = Parameters(configs, dtype, self.device, spec)
        constants: NamedTensors = {}
        for k, config in enumerate(self.configs):
            self.module = module = self._build(config, spec)
            trained, saved = split_tensors(module)
            for name, tensor in named_tensors(module).items():
                if not is_trained(tensor):
                    shape = len(configs), *tensor.shape
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    empty = torch.empty(shape, dtype=kind, device=self.device)
                    constants.setdefault(name, empty)[k].copy_(tensor.detach())
            self.parameters.constants = {name: constants[name] for name in saved}
            params = (weights or {}).get(config)
            if params is None and not architecture.is_built_in:
                params = {**trained, **saved}
            params = params or draw_initial_weights(config, seed, spec)
            self.parameters.load(k, self.parameters.values, params)
        self._use_flat_parameters(constants)
        with torch.enable_grad():
            self._learns_initial_state = any(
                state.requires_grad for state in self._initial_states(1)
            )

    def _build(self, config: TrialConfig, spec: TaskSpec) -> Network:
        architecture = config.architecture
        if not architecture.is_built_in:
            seed = initialization_seed(config, self._seed)
            return build_seeded(architecture, spec, seed)
        with torch.device("meta"):
            module = Network(architecture, spec)
        # Module.to_empty would import SymPy, which takes a second.
        empty = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
            for name, tensor in module.state_dict().items()
        }
        module.load_state_dict(empty, assign=True)
        return module

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
            list(weights), self._seed, self._precision, self.spec, self.device, weights
        )

    @torch.no_grad()
    def init_state(self, streams: int) -> list[Tensor]:
        return [state.clone() for state in self._initial_states(streams)]

    def init_training_state(self, streams: int) -> list[Tensor]:
        states = self.init_state(streams)
        if self._earlier:
            states += [torch.stack([state] * self._earlier, 1) for state in states]
        return states

    @torch.no_grad()
    def forward(
        self, inputs: Tensor, states: Sequence[Tensor], places: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        outputs, next_states = self._run(inputs, states, len(inputs), places)
        return outputs, self._detach(next_states)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._target_losses(outputs, targets.expand(len(self.configs), *targets.shape))

    @torch.no_grad()
    def advance(self, window: Window, states: Sequence[Tensor]) -> list[Tensor]:
        return self._read(window, states)[1]

    def loss_and_grad(
        self, window: Window, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        counted = None
        if window.mask is not None and self._can_select:
            counted = window.mask > 0
        with torch.enable_grad():
            outputs, next_states = self._read(window, states, counted)
            losses = self._mean_losses(outputs, window, counted)  # (K,)
            total = losses.sum() if len(self.configs) > 1 else losses[0]
        grads = torch.autograd.grad(total, self._leaves, materialize_grads=True)
        for target, grad in zip(self._grads, grads, strict=True):
            target.copy_(grad.detach())  # torch 2.7 makes zeros that require a gradient
        return losses.detach(), next_states

    @property
    def _can_select(self) -> bool:
        """Whether the outputs of a window may be as many as its targets, which a graph forbids."""
        return self.device.type == "cpu" or not self.static_graph

    def _mean_losses(self, outputs: Tensor, window: Window, counted: Tensor | None) -> Tensor:
        """Return the weighted mean losses (K,).

        Args:
            outputs: (K, N, V), as of :meth:`_read`.
            window: the window.
            counted: which of its targets (U, B) the outputs belong to; None for all.
        """
        is_plain = self.spec.predicts_classes and self.spec.loss is None
        if len(self.configs) == 1 and is_plain and window.mask is None:
            return functional.cross_entropy(outputs[0], window.targets.reshape(-1).long())[None]
        if window.mask is None:
            targets = self._stack(window.targets, 1 if self.spec.predicts_classes else 2)
            return self._target_losses(outputs, targets.flatten(1, 2)).mean(1)
        weights = window.mask.flatten()
        targets = window.targets.flatten(0, 1)  # (U·B, …)
        if counted is not None:
            places = _find_places(counted)
            weights = weights[places]
            targets = targets[places]
        return (self.losses(outputs, targets) * weights).sum(1) / weights.sum()

    def _target_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (K, N) of outputs (K, N, V) and targets (K, N, …)."""
        rows = outputs.flatten(0, 1)
        wanted = targets.flatten(0, 1)
        if self.spec.loss is not None:
            losses: Tensor = self.spec.loss(rows, wanted)
        elif self.spec.predicts_classes:
            losses = functional.cross_entropy(rows, wanted.long(), reduction="none")
        else:
            losses = (rows - wanted.to(rows.dtype)).square().mean(1)
        return losses.view(outputs.shape[:2])

    def _read(
        self, window: Window, states: Sequence[Tensor], counted: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Read a window.

        Args:
            window: the window.
            states: what the last one carried on.
            counted: which of its targets (U, B) need outputs; None for all.

        Returns:
            The outputs (K, N, V) of these targets, and what to carry on.
        """
        steps = len(window.inputs)
        needed = len(window.targets)
        half = len(states) // 2 if self._earlier else len(states)
        earlier = states[half:]
        current: Sequence[Tensor] | None = states[:half]
        if earlier:
            # In the first steps of a sequence this is the state that it starts from.
            current = [states[:, 0] for states in earlier]
        if window.begins and self._learns_initial_state:
            current = None
        kept = states[:half]
        kept_step = steps - window.advance + self._kept_step
        resets = dict(window.resets)
        cuts = {0, steps, *resets}
        if earlier and self._kept_step and kept_step < steps:
            cuts.add(kept_step)
        if self._detaches:
            cuts = set(range(steps + 1))
        outputs = []
        for first, stop in itertools.pairwise(sorted(cuts)):
            if first and self._detaches and current is not None:
                current = [state.detach() for state in current]
            if first in resets:
                current = self._reset(current, resets[first])
            if first == kept_step and self._kept_step and current is not None:
                kept = current
            end = needed - (steps - stop)  # of its targets
            wanted = max(1, min(stop - first, end))
            places = None
            if counted is not None and end > 0:
                places = _find_places(counted[end - wanted : end])
            some, current = self._run(window.inputs[first:stop], current, wanted, places)
            if end > 0:
                outputs.append(some.flatten(1, -2))
        assert current is not None
        result = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        carried = [
            torch.cat((states[:, 1:], state[:, None]), 1).detach()
            for states, state in zip(earlier, kept, strict=False)
        ]
        return result, [*self._detach(current), *carried]

    def _reset(self, states: Sequence[Tensor] | None, streams: Tensor) -> list[Tensor]:
        """Set the states of some streams (B,) or (K, B) to the initial ones."""
        initial = self._initial_states(streams.shape[-1])
        if states is None:
            return initial
        return reset_states(states, initial, streams.expand(len(self.configs), -1))

    def _detach(self, states: Sequence[Tensor]) -> list[Tensor]:
        detached = [state.detach() for state in states]
        # A user's cell may return a part of its old state as a new one.
        return detached if self.static_graph else [state.clone() for state in detached]

    def _stack(self, values: Tensor, trailing: int) -> Tensor:
        """Return values (T, B, …) or (T, K, B, …) as (K, T, B, …).

        Args:
            values: what the networks read or predict.
            trailing: number of axes behind T and K.
        """
        if values.dim() == 1 + trailing:
            return values.expand(len(self.configs), *values.shape)
        return values.transpose(0, 1)

    def _run(
        self,
        inputs: Tensor,
        states: Sequence[Tensor] | None,
        outputs: int,
        places: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Read T steps; return the last outputs (K, U, B, V), or (K, N, V) of N places among them.

        The second result are the next states (K, B, …).
        """
        inputs = self._stack(inputs, 1 if self.spec.reads_tokens else 2)
        if self.spec.reads_tokens:
            inputs = inputs.long()
        else:
            inputs = inputs.to(self.parameters.values.dtype)
        if self._precision != "bf16":  # a context takes longer to enter than an operation
            return self._call(inputs, states, outputs, places)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self._call(inputs, states, outputs, places)

    def _call(
        self,
        inputs: Tensor,
        states: Sequence[Tensor] | None,
        outputs: int,
        places: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        if len(self.configs) == 1:
            first = None if states is None else [state[0] for state in states]
            results, next_states = self.module(inputs[0], first, outputs, places)
            return results[None], [state[None] for state in next_states]

        def run(
            tensors: NamedTensors, inputs: Tensor, states: Sequence[Tensor] | None
        ) -> tuple[Tensor, list[Tensor]]:
            result: tuple[Tensor, list[Tensor]]
            given = inputs, states, outputs, places
            result = functional_call(self.module, tensors, given)
            return result

        return torch.vmap(run, in_dims=(0, 0, None if states is None else 0))(
            self._tensors, inputs, None if states is None else list(states)
        )

    def _initial_states(self, streams: int) -> list[Tensor]:
        if len(self.configs) == 1:
            return [state[None] for state in self.module.initial_states(streams)]
        module = _InitialStates(self.module)

        def run(tensors: NamedTensors) -> list[Tensor]:
            states: list[Tensor] = functional_call(module, tensors, (streams,))
            return states

        return torch.vmap(run)({f"module.{name}": tensor for name, tensor in self._tensors.items()})


def _find_places(counted: Tensor) -> Tensor:
    """Return the places (N,) of true elements among all."""
    return counted.flatten().nonzero()[:, 0]


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

    Two networks of a user's cell are trained on a few tokens, in lockstep and alone, once per
    process: by one step, then by several at once. For bfloat16 it is done in float32 as well, in
    which rounding hides no error.
    """
    if architecture.is_built_in:
        return None
    exact: Precision = "fp64" if precision == "fp64" else "fp32"
    for tried in dict.fromkeys((exact, precision)):
        small = replace(architecture, layers=1)
        obstacle = _try_lockstep(small, tried, device or torch.device("cpu"))
        if obstacle is not None:
            return obstacle
    return None


@cache
def _try_lockstep(config: NetworkConfig, precision: Precision, device: torch.device) -> str | None:
    vocab_size = 4
    streams = 3
    assert config.sha256 is not None, "a user's cell"
    cls = load_class(loaded_source(config.cell, config.sha256))
    steps = 70 if has_sequence_form(cls) else 3
    configs = [
        TrialConfig(config, replicate, bptt_steps=steps, update_every=steps)
        for replicate in range(2)
    ]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (1 + steps + 1, streams), generator=generator).to(device)
    relative, absolute = {
        "bf16": (0.1, 0.1),
        "tf32": (0.01, 0.01),
        "fp32": (1e-3, 1e-5),
        "fp64": (1e-9, 1e-9),
    }[precision]

    def train(together: Sequence[TrialConfig]) -> list[list[Tensor]]:
        stack = AutogradStack(together, 0, precision, TaskSpec.of_text(vocab_size), device)
        states = stack.init_training_state(streams)
        for first, stop in ((0, 1), (1, 1 + steps)):
            read = tokens[first:stop], tokens[first + 1 : stop + 1]
            window = Window(*read, begins=not first, advance=stop - first)
            losses, states = stack.loss_and_grad(window, states)
        parameters = stack.parameters
        grads = [parameters.views(parameters.grads, k) for k in range(len(together))]
        return [[losses[k], *gradients.values()] for k, gradients in enumerate(grads)]

    try:
        alone = [train([config])[0] for config in configs]
        with warnings.catch_warnings(record=True, action="always") as warned:
            stacked = train(configs)
    except Exception as error:  # a user's cell may raise any
        if is_out_of_memory(error):
            raise
        return f"torch.vmap: {describe_error(error)}"
    for warning in warned:
        # Of an operation without one, vmap computes one network after another.
        if found := re.search(r"batching rule for (\S+)\.", str(warning.message)):
            return f"torch.vmap has no batching rule for {found[1]}"
    for one, other in zip(alone, stacked, strict=True):
        for a, b in zip(one, other, strict=True):
            if not (a - b).norm() <= relative * a.norm() + absolute:
                return "torch.vmap: the gradients are not those of a network that trains alone"
    return None
