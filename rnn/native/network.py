"""K gated networks of one shape on a CPU, each computed in its caches by the library in C.

K is the number of networks, B the number of streams, n the state size, V the vocabulary size, P the
number of values of all networks.
"""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from rnn.config import BYTE_VOCAB_SIZE, GatedConfig, Precision, TrialConfig
from rnn.native.library import library_error, load_library
from rnn.native.structs import MAPS, Layer, Map, Network, Step
from rnn.stacked.flat_parameters import FlatParameters, NamedTensors, align
from rnn.stacked.linear import StackedLinear, WeightSlice
from rnn.stacked.network import NetworkStack, draw_initial_weights, require_one_shape

_MAX_STATE_SIZE: dict[Precision, int] = {"fp32": 256, "bf16": 384}
"""State size up to which the library is faster than PyTorch on CPUs with AVX-512."""

_MAX_AMX_STATE_SIZE = 128
"""The same in bfloat16 on CPUs with AMX instructions, which PyTorch uses and the library lacks."""


class NativeStack:
    """K gated networks of one shape on a CPU.

    It is a :class:`rnn.models.factory.TrainableNetwork`, which documents the methods, and computes
    what :class:`rnn.stacked.network.NetworkStack` computes. In bfloat16 the factors of matrix
    products are rounded, all sums, gradients and biases are float32. The numbers of a network
    depend neither on the others nor on the number of threads.

    Args:
        precision: precision of the arithmetic, fp32 or bf16.
        configs, seed, vocab_size, weights: as of :func:`rnn.models.factory.build_network`.

    Raises:
        ValueError: if configs differ in layers, state size or ``gate_inputs``, or one is not a
            gated network with ``bptt_steps = 1``, or there is no library for the precision.
    """

    static_graph = False
    separate_texts = False

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        seed: int,
        precision: Precision = "fp32",
        vocab_size: int = BYTE_VOCAB_SIZE,
        weights: Mapping[TrialConfig, NamedTensors] | None = None,
    ) -> None:
        library = load_library(precision)
        if library is None:
            raise ValueError(f"no library in C computes {precision}")
        self._library = library
        self.configs = tuple(configs)
        self.device = torch.device("cpu")
        self._seed, self._precision, self._vocab_size = seed, precision, vocab_size
        self._architectures = require_one_shape(configs)
        self._layers = self._architectures[0].layers
        self._state_size = self._architectures[0].state_size
        linears = list(_stacked_linears(self._architectures, vocab_size))
        *others, (_, embedding) = sorted(linears, key=lambda each: each[0] == "embedding")
        self.parameters = FlatParameters(
            self.configs,
            [("", linear) for _, linear in others],
            embedding,
            torch.float32,
            False,
            self.device,
            vocab_size,
        )
        for k, config in enumerate(self.configs):
            params = (weights or {}).get(config) or draw_initial_weights(config, seed, vocab_size)
            self.parameters.load(k, self.parameters.values, params)
        # Kept as long as the stack: the library reads them at their addresses.
        self._layer_structs = (Layer * (len(configs) * self._layers))()
        self._network_structs = (Network * len(configs))()
        self._describe_networks(linears)
        self._buffers: dict[tuple[int, int, bool], _Buffers] = {}

    def with_configs(self, weights: Mapping[TrialConfig, NamedTensors]) -> "NativeStack":
        """Return a stack of these configs and weights, otherwise like this one."""
        return NativeStack(list(weights), self._seed, self._precision, self._vocab_size, weights)

    def init_state(self, streams: int) -> list[Tensor]:
        """Return the states at a sequence's start: zeros (K, B, n) for each layer."""
        shape = (len(self.configs), streams, self._state_size)
        return [torch.zeros(shape) for _ in range(self._layers)]

    def init_training_state(self, streams: int) -> list[Tensor]:
        """Return what training carries from step to step, at a sequence's start: the states."""
        return self.init_state(streams)

    def forward(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance all networks by one time step; return logits and states in reused buffers."""
        buffers = self._step(tokens, None, states)
        return buffers.output, buffers.next_states

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each stream (K, B), in nats."""
        index = targets[None, :, None].expand(len(logits), -1, 1)
        return logits.logsumexp(2) - logits.gather(2, index)[:, :, 0]

    def loss_and_grad(
        self, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step; compute the gradients of its losses, which stay in the step."""
        self.parameters.full_grads.zero_()
        buffers = self._step(tokens, targets, states)
        return buffers.output.mean(1), buffers.next_states

    def _step(self, tokens: Tensor, targets: Tensor | None, states: Sequence[Tensor]) -> "_Buffers":
        self._check_shapes(tokens, targets, states)  # the library reads whatever is in memory
        tokens = tokens.long().contiguous()
        states = [state.float().contiguous() for state in states]
        threads, is_training = torch.get_num_threads(), targets is not None
        key = len(tokens), threads, is_training
        buffers = self._buffers.get(key)
        if buffers is None:
            buffers = self._buffers[key] = self._allocate(*key)
        step = buffers.step
        step.tokens = tokens.data_ptr()
        if targets is not None:
            targets = targets.long().contiguous()
            step.targets = targets.data_ptr()
        for index, state in enumerate(states):
            buffers.state_addresses[index] = state.data_ptr()
        if self._library.rnn_step(ctypes.addressof(step)):
            raise IndexError(f"a token is not below {self._vocab_size}, the vocabulary size")
        return buffers

    def _check_shapes(
        self, tokens: Tensor, targets: Tensor | None, states: Sequence[Tensor]
    ) -> None:
        if tokens.dim() != 1 or not len(tokens):
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}: expected one per stream")
        if targets is not None and targets.shape != tokens.shape:
            raise ValueError(
                f"targets have shape {tuple(targets.shape)}: expected {tuple(tokens.shape)}"
            )
        expected = len(self.configs), len(tokens), self._state_size
        if len(states) != self._layers or any(state.shape != expected for state in states):
            shapes = [tuple(state.shape) for state in states]
            raise ValueError(f"states have shapes {shapes}: expected {self._layers} of {expected}")

    def _allocate(self, streams: int, threads: int, is_training: bool) -> "_Buffers":
        """Allocate the memory of a step, which every step of as many streams reuses."""
        count, values = len(self.configs), self.parameters.values
        # Blocks of streams are divided among threads where whole networks would leave some idle.
        is_divided = count % threads != 0 and count < 2 * threads
        parts = self._library.rnn_blocks(streams) if is_divided else 1
        most_packed = max(network.packed_size for network in self._network_structs)
        buffers = _Buffers(
            next_states=self.init_state(streams),
            output=torch.empty(count, streams, *([] if is_training else [self._vocab_size])),
            part_grads=torch.zeros((parts - 1) * is_training, len(values)),
            packed=torch.empty(count if parts > 1 else 0, most_packed),
        )
        step = buffers.step
        step.count, step.layers, step.n = count, self._layers, self._state_size
        step.vocabulary, step.streams, step.size = self._vocab_size, streams, len(values)
        step.networks = ctypes.addressof(self._network_structs)
        step.weights = values.data_ptr()
        if is_training:
            step.grads = self.parameters.full_grads.data_ptr()
            step.losses = buffers.output.data_ptr()
        else:
            step.logits = buffers.output.data_ptr()
        step.threads, step.parts = threads, parts
        step.scratch_size = self._library.rnn_scratch_size(ctypes.addressof(step))
        buffers.allocate_scratch()
        return buffers

    def _describe_networks(self, linears: Sequence[tuple[str, StackedLinear]]) -> None:
        """Write the structs that tell the library where each network's weights are."""
        columns = self._library.rnn_tile_columns()
        pair = 2 if self._precision == "bf16" else 1  # numbers that a factor holds in 32 bits
        maps: dict[tuple[int, str], Map] = {}
        packed = [0] * len(self.configs)
        for name, linear in linears:
            inputs, outputs = linear.in_features, linear.out_features
            parts = 0 if name == "embedding" else inputs // self._state_size
            size = parts * -(-self._state_size // pair) * _round_up(outputs, columns)
            transposed = parts * -(-outputs // pair) * _round_up(self._state_size, columns)
            for row, k in enumerate(linear.networks):
                weight, bias = linear.weight[row], linear.bias[row]
                maps[k, name] = Map(
                    weight.storage_offset(),
                    bias.storage_offset(),
                    inputs,
                    outputs,
                    packed[k],
                    packed[k] + size,
                )
                packed[k] += size + transposed
        for k, architecture in enumerate(self._architectures):
            network = self._network_structs[k]
            network.embedding, network.head = maps[k, "embedding"], maps[k, "head"]
            network.reads_new_state = architecture.reads_new_state
            network.reads_previous_state = architecture.reads_previous_state
            network.residual = architecture.residual
            network.gates_read_candidate = architecture.gate_inputs == "candidate"
            network.packed_size = align(packed[k])
            network.layers = ctypes.addressof(self._layer_structs[k * self._layers])
            requires_grad = True
            for index in reversed(range(self._layers)):
                layer = self._layer_structs[k * self._layers + index]
                for name in MAPS:
                    setattr(layer, name, maps.get((k, f"layers.{index}.{name}"), Map(-1)))
                layer.output_has_grad = requires_grad
                layer.state_has_grad = requires_grad and architecture.reads_new_state
                layer.previous_state_has_grad = (
                    requires_grad and architecture.has_previous_state_grad
                )
                requires_grad = requires_grad and architecture.output_depends_on_input


class _Buffers:
    """Memory of a step, and the struct with its addresses.

    Attributes:
        next_states: states after the step, (K, B, n) for each layer.
        output: losses (K, B) in training, else logits (K, B, V).
        state_addresses: addresses of the states before the step.
        step: the struct.
    """

    def __init__(
        self, next_states: list[Tensor], output: Tensor, part_grads: Tensor, packed: Tensor
    ) -> None:
        self.next_states, self.output = next_states, output
        self._others = [part_grads, packed]
        addresses = ctypes.c_void_p * len(next_states)
        self.state_addresses = addresses()
        self._next_addresses = addresses(*(state.data_ptr() for state in next_states))
        self.step = Step(
            part_grads=part_grads.data_ptr(),
            packed=packed.data_ptr(),
            states=ctypes.addressof(self.state_addresses),
            next_states=ctypes.addressof(self._next_addresses),
        )

    def allocate_scratch(self) -> None:
        """Allocate the threads' own memory, given its size."""
        scratch = torch.empty(self.step.threads, self.step.scratch_size)
        self._others.append(scratch)
        self.step.scratch = scratch.data_ptr()


def _stacked_linears(
    architectures: Sequence[GatedConfig], vocab_size: int
) -> Iterator[tuple[str, StackedLinear]]:
    """Yield each linear layer by name and shape, with the networks that have it."""
    networks: dict[tuple[str, tuple[int, int]], list[int]] = {}
    for k, architecture in enumerate(architectures):
        for each in architecture.param_shapes(vocab_size).items():
            networks.setdefault(each, []).append(k)
    for (name, (inputs, outputs)), owners in networks.items():
        yield name, StackedLinear(owners, inputs, outputs, [WeightSlice(name, (0, inputs))])


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def pays_off(state_size: int, precision: Precision, device: torch.device | None = None) -> bool:
    """Return whether networks of a state size are trained fastest by the library in C.

    Args:
        state_size: n.
        precision: precision of the arithmetic.
        device: device to compute on; the CPU by default.
    """
    if device is not None and device.type != "cpu":
        return False
    return _is_small(state_size, precision) and computes_correctly(precision)


def library_obstacle(state_size: int, precision: Precision) -> str | None:
    """Return in one line why the library does not train networks that it would train fastest.

    Args:
        state_size: n.
        precision: precision of the arithmetic.

    Returns:
        None if it trains them, or PyTorch is faster, or the user has switched the library off.
    """
    if not _is_small(state_size, precision):
        return None
    if (error := library_error(precision)) is not None:
        return error
    if load_library(precision) is None or computes_correctly(precision):
        return None
    return "the compiled library computes other numbers than PyTorch"


def _is_small(state_size: int, precision: Precision) -> bool:
    limit = _MAX_STATE_SIZE.get(precision, 0)
    if precision == "bf16" and torch.cpu._is_amx_tile_supported():
        limit = _MAX_AMX_STATE_SIZE
    return state_size <= limit


@cache
def computes_correctly(precision: Precision) -> bool:
    """Return whether the library can be loaded and computes the right losses and gradients.

    A network with all options is compared with :class:`rnn.stacked.network.NetworkStack`.
    """
    if load_library(precision) is None:
        return False
    config = TrialConfig(GatedConfig(True, True, True, True, True, "both", 2, 20))
    tokens = torch.arange(19) % 7
    tolerance = 1e-4 if precision == "fp32" else 3e-2
    stacks = NativeStack([config], 0, precision, 7), NetworkStack([config], 0, "fp32", 7)
    for _ in range(2):
        results = []
        for stack in stacks:
            losses, _ = stack.loss_and_grad(tokens, tokens.flip(0), stack.init_state(19))
            results.append([losses, *stack.parameters.extract(0, stack.parameters.grads).values()])
        for actual, expected in zip(*results, strict=True):
            scale = float(expected.abs().max())
            if not torch.allclose(actual, expected, rtol=0, atol=tolerance * scale):
                return False
    return True
