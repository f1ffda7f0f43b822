"""A stack of K gated language models of one shape, trained in lockstep.

K is the number of networks, B the number of streams, n the state size, V the vocabulary size, U the
number of unique tokens that the streams read at a step.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import NamedTuple

import torch
from torch import Tensor

from rnn.config import BYTE_VOCAB_SIZE, CellConfig, GatedConfig, Precision, TrialConfig
from rnn.errors import CellError
from rnn.stacked.flat_parameters import FlatParameters, NamedTensors
from rnn.stacked.layer import StackedLayer
from rnn.stacked.linear import BufferCache, GatheredInput, StackedLinear, WeightSlice
from rnn.stacked.padding import can_pad, pad, padding_pays
from rnn.training.precision import configure_matmul

_PAD_MULTIPLE = 16
"""The number of unique tokens is padded to a multiple of this, for few shapes of products."""


class UniqueTokens(NamedTuple):
    """The tokens that the streams read at one step, as ``torch.unique`` gives them.

    Attributes:
        values: the tokens that occur (U,), padded with repetitions.
        inverse: position among the U of each stream's token (B,); None if stream b reads the b-th.
    """

    values: Tensor
    inverse: Tensor | None = None

    @classmethod
    def from_tokens(cls, tokens: Tensor) -> "UniqueTokens":
        """Find the unique tokens of the streams (B,)."""
        occurs = torch.bincount(tokens) > 0  # (at most V,)
        values = occurs.nonzero()[:, 0]
        inverse = (occurs.cumsum(0) - 1)[tokens.long()]
        padding = -len(values) % _PAD_MULTIPLE
        return cls(torch.cat((values, values[:1].expand(padding))), inverse)


class NetworkStack:
    """K gated networks of one shape, with different options, as one tensor program.

    It is a :class:`rnn.models.factory.TrainableNetwork`, which documents the methods.

    Args:
        configs, seed, precision, vocab_size, device, weights: as of
            :func:`rnn.models.factory.build_network`.
        static_graph: whether every step runs the same operations on the same memory, as a CUDA
            graph requires. Otherwise what streams with the same token share is computed once; by
            default where that is faster: float32 or float64 on a CPU, more than 64 states.
        is_padded: whether options that a network does not have are computed with constants, see
            :mod:`rnn.stacked.padding`; by default for up to 64 states on a GPU. Only with
            ``static_graph``, and if all networks can be padded.

    Attributes:
        configs: the configs in the order of the stack: those with the same options are consecutive.
        is_padded: whether they are padded.

    Raises:
        ValueError: if configs differ in layers, state size or ``gate_inputs``, or one is not a
            gated network with ``bptt_steps = 1``.
    """

    separate_texts = False

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        seed: int,
        precision: Precision = "fp32",
        vocab_size: int = BYTE_VOCAB_SIZE,
        device: torch.device | None = None,
        weights: Mapping[TrialConfig, NamedTensors] | None = None,
        static_graph: bool | None = None,
        is_padded: bool | None = None,
    ) -> None:
        architectures = require_one_shape(configs)
        self.seed, self.precision = seed, precision
        self.device = device or torch.device("cpu")
        self.layers, self.state_size = architectures[0].layers, architectures[0].state_size
        sharing_pays = self.device.type == "cpu" and precision != "bf16" and self.state_size > 64
        self.static_graph = not sharing_pays if static_graph is None else static_graph
        if is_padded is None:
            is_padded = padding_pays(self.device, self.state_size)
        self.is_padded = is_padded and self.static_graph and can_pad(configs)
        self.configs = tuple(sorted(configs, key=_padded_sort_key if self.is_padded else _sort_key))
        architectures = require_one_shape(self.configs)
        self.vocab_size = vocab_size
        configure_matmul(precision, self.device)

        networks, n = range(len(configs)), self.state_size
        if self.is_padded:
            architectures = pad(architectures)
        self._embedding = _whole_linear("embedding", networks, vocab_size, n)
        self._head = _whole_linear("head", networks, n, vocab_size)
        requires_grad = [True] * len(configs)
        self._layers: list[StackedLayer] = []
        for index in reversed(range(self.layers)):
            # The first layer's input stands for a token, which many streams share.
            shares_x = index == 0 and not self.static_graph
            layer = StackedLayer(architectures, requires_grad, shares_x, self.device)
            self._layers.insert(0, layer)
            requires_grad = [
                required and a.output_depends_on_input
                for a, required in zip(architectures, requires_grad, strict=True)
            ]
        self.parameters = FlatParameters(
            self.configs,
            [*self._linears(), ("", self._head)],
            self._embedding,
            torch.float64 if precision == "fp64" else torch.float32,
            precision == "bf16",
            self.device,
            vocab_size,
            architectures if self.is_padded else None,
        )
        for k, config in enumerate(self.configs):
            params = (weights or {}).get(config) or draw_initial_weights(config, seed, vocab_size)
            self.parameters.load(k, self.parameters.values, params)
        self._buffers = BufferCache()

    def with_configs(self, weights: Mapping[TrialConfig, NamedTensors]) -> "NetworkStack":
        """Return a stack of these configs and weights, otherwise like this one."""
        return NetworkStack(
            list(weights),
            self.seed,
            self.precision,
            self.vocab_size,
            self.device,
            weights,
            self.static_graph,
            self.is_padded,
        )

    def _linears(self) -> Iterator[tuple[str, StackedLinear]]:
        for index, layer in enumerate(self._layers):
            for linear in layer.linears():
                yield f"layers.{index}.", linear

    def init_state(self, streams: int) -> list[Tensor]:
        """Return the states at a sequence's start: zeros (K, B, n) for each layer."""
        shape = (len(self.configs), streams, self.state_size)
        return [self.parameters.values.new_zeros(shape) for _ in self._layers]

    def init_training_state(self, streams: int) -> list[Tensor]:
        """Return what training carries from step to step, at a sequence's start: the states."""
        return self.init_state(streams)

    def forward(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance all networks by one time step; return logits and states in reused buffers."""
        return self._forward(self._find_unique(tokens), states)

    def _find_unique(self, tokens: Tensor) -> UniqueTokens:
        return UniqueTokens(tokens) if self.static_graph else UniqueTokens.from_tokens(tokens)

    def _forward(
        self, inputs: UniqueTokens, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        embedding = self._embedding
        shape = (len(self.configs), len(inputs.values), self.state_size)
        values = self._buffers.get("x", shape, like=embedding.weight)
        torch.index_select(embedding.weight, 1, inputs.values, out=values).add_(embedding.bias)
        x = GatheredInput(values, inputs.inverse)  # (K, U, n)
        next_states = []
        for layer, h in zip(self._layers, states, strict=True):
            y, u = layer.forward(x, h)  # (K, B, n) both
            x = GatheredInput(y)
            next_states.append(u)
        return self._head.forward(x.values), next_states

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each stream (K, B), in nats."""
        losses, _ = self._cross_entropy(logits, targets)
        return losses

    def loss_and_grad(
        self, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step; compute the gradients of its losses, which stay in the step."""
        inputs = self._find_unique(tokens)
        logits, next_states = self._forward(inputs, states)
        losses, d = self._cross_entropy(logits, targets)
        # The gradient of the mean cross-entropy: (softmax − one-hot) / B.
        index = targets[None, :, None].expand(len(d), -1, 1)
        d.scatter_add_(2, index, d.new_full((), -1.0).expand(index.shape))
        self._head.backward(d.mul_(1 / d.shape[1]))
        d = self._head.input_grad(self.state_size)  # (K, B, n)
        for index_of_layer, layer in reversed(list(enumerate(self._layers))):
            distinct = len(inputs.values) if index_of_layer == 0 else d.shape[1]
            d = layer.backward(d.to(losses.dtype), distinct)  # (K, U or B, n)
        self._backward_embedding(inputs.values, d)
        self.parameters.clear_constant_grads()
        return losses.mean(1), next_states

    def _backward_embedding(self, tokens: Tensor, d: Tensor) -> None:
        embedding = self._embedding
        torch.sum(d, 1, keepdim=True, out=embedding.bias_grad)
        if self.device.type == "cpu":
            embedding.weight_grad.zero_().index_add_(1, tokens, d)
        else:
            self._add_rows_by_product(tokens, d)

    def _add_rows_by_product(self, tokens: Tensor, d: Tensor) -> None:
        # A GPU's index_add_ sums in any order; a product repeats bit for bit.
        vocabulary = torch.arange(self.vocab_size, device=self.device)
        one_hot = (vocabulary[:, None] == tokens).to(d.dtype)  # (V, U)
        one_hot = one_hot.expand(len(d), *one_hot.shape)  # (K, V, U)
        torch.bmm(one_hot, d, out=self._embedding.weight_grad)

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropies (K, B), and the probabilities (K, B, V)."""
        p = self._buffers.get("p", logits.shape, like=logits)
        torch.ops.aten._softmax.out(logits, 2, False, out=p)
        # The most likely token has the probability 1 / Σ exp(logit − greatest logit).
        log_sum = logits.amax(2) - p.amax(2).log()  # (K, B)
        index = targets[None, :, None].expand(len(logits), -1, 1)
        return log_sum - logits.gather(2, index)[:, :, 0], p


def draw_initial_weights(
    config: TrialConfig, seed: int, vocab_size: int = BYTE_VOCAB_SIZE
) -> NamedTensors:
    """Draw a network's weights and biases as ``torch.nn.Linear`` does: U(±1/√inputs).

    They depend on the seed, the architecture and the replicate alone, not on the other networks of
    the stack. They are drawn in float64 and are the same numbers, rounded, in every precision.

    Returns:
        The weights and biases by the names of :func:`rnn.models.shapes.parameter_shapes`.
    """
    if isinstance(config.architecture, CellConfig):
        raise CellError(
            f"cell {config.architecture.cell} is not built in: expected a built-in cell"
        )
    generator = torch.Generator().manual_seed(initialization_seed(config, seed))
    weights: NamedTensors = {}
    for param, (inputs, outputs) in config.architecture.param_shapes(vocab_size).items():
        bound = 1 / math.sqrt(inputs)
        drawn = torch.rand(inputs + 1, outputs, generator=generator, dtype=torch.float64)
        drawn = (2 * drawn - 1) * bound
        weights |= {f"{param}.weight": drawn[:-1], f"{param}.bias": drawn[-1]}
    return weights


def initialization_seed(config: TrialConfig, seed: int) -> int:
    """Return the seed of a network's initial weights, which must never change."""
    name = f"{seed}/{config.architecture.init_key}/{config.replicate}"
    # 63 bits, which every torch generator accepts.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def require_one_shape(configs: Sequence[TrialConfig]) -> list[GatedConfig]:
    """Return the architectures of configs, if they can be stacked.

    Raises:
        ValueError: if they differ in layers, state size or ``gate_inputs``, or one is not a gated
            network with ``bptt_steps = 1``.
    """
    architectures = [_require_gated(config) for config in configs]
    shapes = {(a.layers, a.state_size, a.gate_inputs) for a in architectures}
    if len(shapes) != 1:
        raise ValueError(
            f"networks have the shapes {sorted(shapes)}: expected one (layers, state size, "
            "gate inputs) in a stack"
        )
    return architectures


def _require_gated(config: TrialConfig) -> GatedConfig:
    """Return the architecture of a config, if it can be stacked."""
    architecture = config.architecture
    if not isinstance(architecture, GatedConfig) or config.bptt_steps != 1:
        raise ValueError(
            f"{architecture.label} with bptt_steps {config.bptt_steps} cannot be stacked: expected "
            "a gated network with bptt_steps 1"
        )
    return architecture


def _sort_key(config: TrialConfig) -> tuple[object, ...]:
    """Return a key by which configs with the same gates and outputs become consecutive."""
    a = _require_gated(config)
    return (
        a.input_gate,
        a.state_gate,
        a.forget_gate,
        not a.reads_new_state,
        not a.reads_previous_state,
        a.residual,
        a.output_gate,
        config.replicate,
        config.varied,
        astuple(config.optimizer),
    )


def _padded_sort_key(config: TrialConfig) -> tuple[object, ...]:
    """Return a key by which padded networks with the same output gate become consecutive."""
    return _require_gated(config).output_gate, *_sort_key(config)


def _whole_linear(param: str, networks: range, inputs: int, outputs: int) -> StackedLinear:
    return StackedLinear(networks, inputs, outputs, [WeightSlice(param, (0, inputs))])
