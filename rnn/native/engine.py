"""K gated networks of one shape on a CPU, each computed in its caches by the library in C.

K is the number of networks, B the number of streams, n the state size, V the vocabulary size, P the
number of values of all networks.
"""

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from rnn.autograd import AutogradStack
from rnn.config import BYTES, GatedOptions, NetworkConfig, Precision, TaskSpec, TrialConfig
from rnn.native.library import MAPS, OPTIONS, library_error, load_library, multiplies_tiles
from rnn.network import NamedTensors, Window, draw_initial_weights, network_shapes
from rnn.parameters import Parameters, align
from rnn.precision import EngineName
from rnn.stacked.engine import can_stack

_MAX_STATE_SIZE: dict[Precision, int] = {"fp32": 256, "bf16": 384}
"""State size up to which the library is faster than PyTorch on CPUs with AVX-512."""

_MAX_AMX_STATE_SIZE = 1024
"""The same in bfloat16 on CPUs with AMX instructions, which both use. There memory limits a step:
Adam in the library, prefetched weights and smaller chunks of streams gained nothing, and without
AMX neither did an update of each weight once its gradient is known, 0.84 to 1.03 times as fast."""

# ------------------------------------------------------------------ structs of the library


def _numbers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_int64) for name in names]


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


class _Map(ctypes.Structure):
    """Struct Map of layer.h; struct Layer is an array of these, in the order of ``MAPS``."""

    _fields_ = _numbers("weight", "bias", "inputs", "outputs", "packed", "transposed")


class _Network(ctypes.Structure):
    """Struct Network of layer.h."""

    _fields_ = [
        ("embedding", _Map),
        ("head", _Map),
        *_numbers(*OPTIONS, "begin", "end", "packed_size"),
        *_pointers("layers"),
    ]


class _Step(ctypes.Structure):
    """Struct Step of step.c."""

    _fields_ = [
        *_numbers("count", "layers", "n", "vocabulary", "streams"),
        *_numbers("threads", "most_packed", "scratch_size"),
        *_pointers("networks", "weights", "grads", "states", "next_states"),
        *_pointers("tokens", "targets", "logits", "losses", "scratch"),
    ]


class _Buffers(NamedTuple):
    """Memory of a step.

    Attributes:
        step: the struct with its addresses.
        next_states: states after the step, (K, B, n) for each layer.
        output: losses (K, B) in training, else logits (K, B, V).
        state_addresses: addresses of the states before the step.
        others: memory that only the library reads.
    """

    step: _Step
    next_states: list[Tensor]
    output: Tensor
    state_addresses: "ctypes.Array[ctypes.c_void_p]"
    others: tuple[object, ...]


# ------------------------------------------------------------------ the engine


class NativeStack:
    """An :class:`rnn.engines.Engine` of K gated networks of one shape on a CPU.

    In bfloat16 the factors of matrix products are rounded, all sums, gradients and biases are
    float32. The numbers of a network depend neither on the others nor on the number of threads.

    Args:
        configs, seed, spec, device, weights: as of :func:`rnn.engines.build_network`.
        precision: precision of the arithmetic, fp32 or bf16.

    Raises:
        ValueError: if there is no library for the precision.
    """

    static_graph = False
    reads_windows = False

    name: ClassVar[EngineName] = "native"

    @staticmethod
    def can_train(
        config: TrialConfig, spec: TaskSpec, precision: Precision, device: torch.device | None
    ) -> bool:
        return can_stack(config, spec) and pays_off(
            config.architecture.state_size, precision, device
        )

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        seed: int,
        precision: Precision = "fp32",
        spec: TaskSpec = BYTES,
        device: torch.device | None = None,
        weights: Mapping[TrialConfig, NamedTensors] | None = None,
    ) -> None:
        library = load_library(precision)
        if library is None:
            raise ValueError(f"no library in C computes {precision}")
        self._library = library
        self.configs = tuple(configs)
        self.device = torch.device("cpu")
        self._seed = seed
        self._precision = precision
        self.spec = spec
        architectures = [config.architecture for config in configs]
        self._layers = architectures[0].layers
        self._state_size = architectures[0].state_size
        self.parameters = Parameters(self.configs, torch.float32, self.device, spec)
        for k, config in enumerate(self.configs):
            params = (weights or {}).get(config) or draw_initial_weights(config, seed, spec)
            self.parameters.load(k, self.parameters.values, params)
        # Kept as long as the stack: the library reads them at their addresses.
        self._maps = (_Map * (len(configs) * self._layers * len(MAPS)))()
        self._networks = (_Network * len(configs))()
        for k, architecture in enumerate(architectures):
            self._describe(k, architecture)
        self._buffers: dict[tuple[int, int, bool], _Buffers] = {}

    def with_configs(self, weights: Mapping[TrialConfig, NamedTensors]) -> "NativeStack":
        return NativeStack(list(weights), self._seed, self._precision, self.spec, None, weights)

    def init_state(self, streams: int) -> list[Tensor]:
        shape = (len(self.configs), streams, self._state_size)
        return [torch.zeros(shape) for _ in range(self._layers)]

    init_training_state = init_state

    def advance(self, window: Window, states: Sequence[Tensor]) -> list[Tensor]:
        return self.forward(window.inputs[:1], states)[1]

    def forward(
        self, tokens: Tensor, states: Sequence[Tensor], places: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        buffers = self._step(tokens[0], None, states)
        logits = buffers.output
        return logits[:, None] if places is None else logits[:, places], buffers.next_states

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        index = targets[None, :, None].expand(len(logits), -1, 1)
        return logits.logsumexp(2) - logits.gather(2, index)[:, :, 0]

    def loss_and_grad(
        self, window: Window, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        buffers = self._step(window.inputs[0], window.targets[0], states)
        return buffers.output.mean(1), buffers.next_states

    def _step(self, tokens: Tensor, targets: Tensor | None, states: Sequence[Tensor]) -> _Buffers:
        streams = tokens.numel()
        is_training = targets is not None
        given = [tokens, tokens if targets is None else targets, *states]
        shapes = [tuple(tensor.shape) for tensor in given]
        of_states = [(len(self.configs), streams, self._state_size)] * self._layers
        if shapes != [(streams,), (streams,), *of_states]:  # the library would read other memory
            raise ValueError(
                f"tokens, targets and states have the shapes {shapes}: expected one token and one "
                f"target per stream, and states {of_states}"
            )
        tokens = tokens.long().contiguous()
        states = [state.float().contiguous() for state in states]
        key = streams, torch.get_num_threads(), is_training
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
            raise IndexError(f"a token is not below {self.spec.inputs}, the vocabulary size")
        return buffers

    def _allocate(self, streams: int, threads: int, is_training: bool) -> _Buffers:
        """Allocate the memory of a step, which every step of as many streams reuses."""
        count = len(self.configs)
        values = self.parameters.values
        grads = self.parameters.grads
        most_packed = max(network.packed_size for network in self._networks)
        output = torch.empty(count, streams, *([] if is_training else [self.spec.outputs]))
        next_states = self.init_state(streams)
        addresses = ctypes.c_void_p * self._layers
        state_addresses = addresses()
        next_addresses = addresses(*(state.data_ptr() for state in next_states))
        step = _Step(
            count=count,
            layers=self._layers,
            n=self._state_size,
            vocabulary=self.spec.inputs,
            streams=streams,
            threads=threads,
            most_packed=most_packed,
            networks=ctypes.addressof(self._networks),
            weights=values.data_ptr(),
            grads=grads.data_ptr() if is_training else None,
            states=ctypes.addressof(state_addresses),
            next_states=ctypes.addressof(next_addresses),
            logits=None if is_training else output.data_ptr(),
            losses=output.data_ptr() if is_training else None,
        )
        step.scratch_size = self._library.rnn_scratch_size(ctypes.addressof(step))
        scratch = torch.empty(threads, step.scratch_size)
        step.scratch = scratch.data_ptr()
        others = scratch, next_addresses
        return _Buffers(step, next_states, output, state_addresses, others)

    def _describe(self, k: int, architecture: NetworkConfig) -> None:
        """Write the structs that tell the library where the weights of network k are."""
        packed_size = self._library.rnn_packed_size
        views = self.parameters.views(self.parameters.values, k)
        n = self._state_size
        maps: dict[str, _Map] = {}
        packed = 0
        linear_maps = network_shapes(architecture, self.spec).linear_maps
        for name, (inputs, outputs) in linear_maps.items():
            parts = 0 if name == "embedding" else inputs // n
            transposed = packed + parts * packed_size(n, outputs)
            weight = views[f"{name}.weight"]
            bias = views[f"{name}.bias"]
            places = weight.storage_offset(), bias.storage_offset()
            maps[name] = _Map(*places, inputs, outputs, packed, transposed)
            packed = transposed + parts * packed_size(outputs, n)
        first = k * self._layers * len(MAPS)
        names = [f"layers.{index}.{name}" for index in range(self._layers) for name in MAPS]
        for place, name in enumerate(names, first):
            self._maps[place] = maps.get(name, _Map(-1))
        (segment,) = self.parameters.places[k]
        self._networks[k] = _Network(
            embedding=maps["embedding"],
            head=maps["head"],
            begin=segment.start,
            end=segment.stop,
            packed_size=align(packed),
            layers=ctypes.addressof(self._maps[first]),
            **{name: getattr(architecture.gated, name) for name in OPTIONS},
        )


# ------------------------------------------------------------------ where it is used


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
    if precision == "bf16" and multiplies_tiles():
        limit = _MAX_AMX_STATE_SIZE
    return state_size <= limit


@cache
def computes_correctly(precision: Precision) -> bool:
    """Return whether the library can be loaded and computes the right losses and gradients.

    A network with every option is compared with :class:`rnn.autograd.AutogradStack`.
    """
    if load_library(precision) is None:
        return False
    config = TrialConfig(GatedOptions.of_largest().network(layers=2, state_size=20))
    tokens = torch.arange(19) % 7
    tolerance = 1e-4 if precision == "fp32" else 3e-2
    spec = TaskSpec.of_text(7)
    native = NativeStack([config], 0, precision, spec)
    stacks: list[NativeStack | AutogradStack] = [native, AutogradStack([config], 0, "fp32", spec)]
    carried = [stack.init_training_state(19) for stack in stacks]
    window = Window(tokens[None], tokens.flip(0)[None])
    for _ in range(2):
        results = []
        for number, stack in enumerate(stacks):
            states = carried[number]
            losses, after = stack.loss_and_grad(window, states)
            for state, new in zip(states, after, strict=True):
                state.copy_(new)
            results.append([losses, *stack.parameters.extract(0, stack.parameters.grads).values()])
        for actual, expected in zip(*results, strict=True):
            scale = float(expected.abs().max())
            if not torch.allclose(actual, expected, rtol=0, atol=tolerance * scale):
                return False
    return True
