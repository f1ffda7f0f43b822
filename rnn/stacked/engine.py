"""A stack of K gated language models of one shape, trained in lockstep.

K is the number of networks, B the number of streams, n the state size, V the vocabulary size, U the
number of unique tokens that the streams read at a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import ClassVar

import torch
from torch import Tensor

from rnn.config import BYTES, Precision, TaskSpec, TrialConfig
from rnn.network import NamedTensors, Window, draw_initial_weights
from rnn.precision import EngineName
from rnn.stacked.layer import StackedLayer, output_options, state_options
from rnn.stacked.linear import BufferCache, FlatParameters, GatheredInput, Part, StackedLinear
from rnn.training.devices import configure_matmul

_UNIQUE_MULTIPLE = 16
"""The number of unique tokens is rounded up to a multiple of this, for few shapes of products:
oneDNN prepares each."""


class NetworkStack:
    """K gated networks of one shape, with different options, as one tensor program.

    It is a :class:`rnn.engines.Engine`, which documents the methods.

    Args:
        configs, seed, precision, spec, device, weights: as of
            :func:`rnn.engines.build_network`.
        static_graph: whether every step runs the same operations on the same memory, as a CUDA
            graph requires. Otherwise what streams with the same token share is computed once; by
            default where that is faster: float32 or float64 on a CPU, more than 64 states. Small
            products in bfloat16 are half as fast, which costs what is saved.

    Attributes:
        configs: the configs in the order of the stack: those with the same options are consecutive.

    """

    name: ClassVar[EngineName] = "stacked"
    reads_windows = False

    @staticmethod
    def can_train(
        config: TrialConfig, spec: TaskSpec, precision: Precision, device: torch.device | None
    ) -> bool:
        return can_stack(config, spec)

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        seed: int,
        precision: Precision = "fp32",
        spec: TaskSpec = BYTES,
        device: torch.device | None = None,
        weights: Mapping[TrialConfig, NamedTensors] | None = None,
        static_graph: bool | None = None,
    ) -> None:
        self.configs = tuple(sorted(configs, key=_sort_key))
        architectures = [config.architecture for config in self.configs]
        self.seed = seed
        self.precision = precision
        self.device = device or torch.device("cpu")
        self.layers = architectures[0].layers
        self.state_size = architectures[0].state_size
        sharing_pays = self.device.type == "cpu" and precision != "bf16" and self.state_size > 64
        self.static_graph = not sharing_pays if static_graph is None else static_graph
        self.spec = spec
        configure_matmul(precision, self.device)

        networks = range(len(configs))
        n = self.state_size
        self._embedding = StackedLinear(networks, n, [Part("embedding", range(spec.inputs))])
        self._head = StackedLinear(networks, spec.outputs, [Part("head", range(n))])
        requires_grad = [True] * len(configs)
        self._layers: list[StackedLayer] = []
        for index in reversed(range(self.layers)):
            # The first layer's input stands for a token, which many streams share.
            shares_x = index == 0 and not self.static_graph
            prefix = f"layers.{index}."
            layer = StackedLayer(architectures, prefix, requires_grad, shares_x, self.device)
            self._layers.insert(0, layer)
            requires_grad = [
                required and a.gated.output_depends_on_input
                for a, required in zip(architectures, requires_grad, strict=True)
            ]
        linears = [linear for layer in self._layers for linear in layer.linears]
        self.parameters = FlatParameters(
            self.configs,
            [*linears, self._head],
            self._embedding,
            torch.float64 if precision == "fp64" else torch.float32,
            precision == "bf16",
            self.device,
            spec,
        )
        for k, config in enumerate(self.configs):
            params = (weights or {}).get(config) or draw_initial_weights(config, seed, spec)
            self.parameters.load(k, self.parameters.values, params)
        self._buffers = BufferCache()

    def with_configs(self, weights: Mapping[TrialConfig, NamedTensors]) -> "NetworkStack":
        arguments = self.seed, self.precision, self.spec, self.device, weights
        return NetworkStack(list(weights), *arguments, self.static_graph)

    def init_state(self, streams: int) -> list[Tensor]:
        shape = (len(self.configs), streams, self.state_size)
        return [self.parameters.values.new_zeros(shape) for _ in self._layers]

    init_training_state = init_state

    def advance(self, window: Window, states: Sequence[Tensor]) -> list[Tensor]:
        return self.forward(window.inputs[:1], states)[1]

    def forward(
        self, tokens: Tensor, states: Sequence[Tensor], places: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        logits, next_states = self._forward(*self._find_unique(tokens[0]), states)
        return logits[:, None] if places is None else logits[:, places], next_states

    def _find_unique(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the distinct tokens of the streams, if they share what is computed.

        Returns:
            The tokens that occur (U,), filled up with repetitions, and the position of each
            stream's token among them (B,). None if they are those of the streams.
        """
        if self.static_graph:
            return tokens, None
        occurs = torch.bincount(tokens) > 0  # (at most V,)
        values = occurs.nonzero()[:, 0]
        repetitions = values[:1].expand(-len(values) % _UNIQUE_MULTIPLE)
        return torch.cat((values, repetitions)), (occurs.cumsum(0) - 1)[tokens.long()]

    def _forward(
        self, tokens: Tensor, index: Tensor | None, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        embedding = self._embedding
        shape = (len(self.configs), len(tokens), self.state_size)
        values = self._buffers.get("x", shape, like=embedding.weight)
        torch.index_select(embedding.weight, 1, tokens, out=values).add_(embedding.bias)
        x = GatheredInput(values, index)  # (K, U, n)
        next_states = []
        for layer, h in zip(self._layers, states, strict=True):
            y, u = layer.forward(x, h)  # (K, B, n) both
            x = GatheredInput(y)
            next_states.append(u)
        return self._head.forward(x.values), next_states

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses, _ = self._cross_entropy(logits, targets)
        return losses

    def loss_and_grad(
        self, window: Window, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        tokens = window.inputs[0]
        targets = window.targets[0]
        distinct, index = self._find_unique(tokens)
        logits, next_states = self._forward(distinct, index, states)
        losses, d = self._cross_entropy(logits, targets)
        # The gradient of the mean cross-entropy: (softmax − one-hot) / B.
        target = targets[None, :, None].expand(len(d), -1, 1)
        d.scatter_add_(2, target, d.new_full((), -1.0).expand(target.shape))
        self._head.backward(d.mul_(1 / d.shape[1]))
        d = self._head.input_grad(self.state_size)  # (K, B, n)
        for layer in reversed(self._layers):
            count = len(distinct) if layer is self._layers[0] else d.shape[1]
            d = layer.backward(d.to(losses.dtype), count)  # (K, U or B, n)
        self._backward_embedding(distinct, d)
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
        vocabulary = torch.arange(self.spec.inputs, device=self.device)
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


def can_stack(config: TrialConfig, spec: TaskSpec = BYTES) -> bool:
    """Return whether a network can be trained without autograd, by this engine or that in C."""
    is_gated = config.architecture.is_gated and not config.architecture.is_residual
    return is_gated and config.updates_every_step and spec.is_token_stream


def _sort_key(config: TrialConfig) -> tuple[object, ...]:
    """Return a key by which configs with the same gates and outputs become consecutive."""
    a = config.architecture.gated
    return (
        *state_options(a),
        not a.reads_new_state,
        not a.reads_previous_state,
        *output_options(a),
        config.replicate,
        config.varied,
        astuple(config.optimizer),
    )
