"""One network of any cell, trained by gradients through a window of time steps.

At each step there is one update, by the gradient of that step's loss alone, taken through the last
W steps of the sequence, or as many as it has had: truncated backpropagation through time with an
update at every step (Williams & Peng, *An Efficient Gradient-Based Algorithm for On-Line Training
of Recurrent Network Trajectories*, 1990). W changes how far the gradient reaches and nothing else:
not the text, nor the number of updates. Because the weights change at every step, all W steps are
computed anew in each, from the state that stood before them: a step costs W times as much.

B is the number of lanes, n the state size, V the size of the vocabulary, w ≤ W the number of steps
that a gradient goes through.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rnn.config import BYTE_VOCAB_SIZE, Precision, TrialConfig
from rnn.models.bptt_layers import layers_of
from rnn.stacked.flat_parameters import FlatParameters, NamedTensors
from rnn.stacked.linear import StackedLinear, WeightSlice
from rnn.stacked.network import UniqueTokens, draw_initial_weights
from rnn.training.precision import configure_matmul


class Unrolled:
    """A population of one, with the face of :class:`rnn.stacked.network.NetworkStack`: K = 1.

    Args:
        configs: the one member, of any architecture and any ``bptt_steps``, W.
        seed: of its initial weights.
        precision: of the arithmetic.
        vocab_size: V.
        device: where to compute.
        weights: of the member, in place of the initial ones.

    Attributes:
        configs: the one.
        parameters: its weights.
        static_graph: False: a window grows, so that a step is not always the same operations.

    Raises:
        ValueError: if there is not one member, or its window is shorter than one step.
    """

    static_graph = False

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        seed: int,
        precision: Precision = "fp32",
        vocab_size: int = BYTE_VOCAB_SIZE,
        device: torch.device | None = None,
        weights: Mapping[TrialConfig, NamedTensors] | None = None,
    ) -> None:
        if len(configs) != 1:
            raise ValueError(
                f"there are {len(configs)} members; allowed: one, of a cell that is not ours or a "
                "gradient through several steps; train each by itself"
            )
        (config,) = self.configs = tuple(configs)
        if config.bptt_steps < 1:
            raise ValueError(
                f"the gradient window is {config.bptt_steps}; allowed: 1 or more; 1 has the "
                "gradient stay within its step"
            )
        self.seed, self.precision = seed, precision
        self.vocab_size = vocab_size
        self.device = device or torch.device("cpu")
        architecture = config.architecture
        self.layers, self.state_size = architecture.layers, architecture.state_size
        self._window = config.bptt_steps
        configure_matmul(precision, self.device)

        n = self.state_size
        self._layers = layers_of(architecture)
        self._embedding, self._head = (
            StackedLinear(range(1), inputs, outputs, [WeightSlice(name, (0, inputs))])
            for name, inputs, outputs in (
                ("embedding", vocab_size, n),
                ("head", n, vocab_size),
            )
        )
        maps = [(f"layers.{i}.", own) for i, layer in enumerate(self._layers) for own in layer.maps]
        maps.append(("", self._head))
        self.parameters = FlatParameters(
            self.configs,
            maps,
            self._embedding,
            torch.float64 if precision == "fp64" else torch.float32,
            precision == "bf16",
            self.device,
            vocab_size,
        )
        own = (weights or {}).get(config) or draw_initial_weights(config, seed, vocab_size)
        self.parameters.load(0, self.parameters.values, own)
        # Where autograd brings the gradients of a map's weight and bias. The embedding's are these
        # themselves; of a product's, which it reads where they lie, they have but the shape.
        none = self.parameters.values.new_zeros(())
        self._leaves = {
            affine: (
                none.expand(affine.in_features, affine.out_features).requires_grad_(),
                none.expand(affine.out_features * affine.has_bias).requires_grad_(),
            )
            for _, affine in maps
        }
        table = self._embedding
        self._leaves[table] = (
            table.weight[0].detach().requires_grad_(),
            table.bias[0, 0].detach().requires_grad_(),
        )

    def with_configs(self, weights: Mapping[TrialConfig, NamedTensors]) -> "Unrolled":
        """Return a network like this one of this member and its weights."""
        return Unrolled(
            list(weights), self.seed, self.precision, self.vocab_size, self.device, weights
        )

    def init_state(self, streams: int) -> list[Tensor]:
        """Return the zero states at a sequence's start, for each layer (1, B, n); 2n of an LSTM."""
        new = self.parameters.values.new_zeros
        return [new(1, streams, layer.state_width) for layer in self._layers]

    def init_training_state(self, streams: int) -> list[Tensor]:
        """Return what a sequence's training begins with, all zero.

        Returns:
            For each layer the state, as of :meth:`init_state`; and where W > 1 for each layer
            the states before each of the last W − 1 steps (1, W − 1, B, n), the symbols read in
            them (1, W − 1, B), and how many of these steps the sequence has had (1,).
        """
        states, earlier = self.init_state(streams), self._window - 1
        if not earlier:
            return states
        past = [state.new_zeros(1, earlier, *state.shape[1:]) for state in states]
        prepare_inputs = torch.zeros(1, earlier, streams, dtype=torch.long, device=self.device)
        return [*states, *past, prepare_inputs, prepare_inputs.new_zeros(1)]

    def prepare_inputs(self, prepare_inputs: Tensor) -> UniqueTokens:
        """Return what lanes with these symbols (B,) read, as this network takes it."""
        return UniqueTokens(prepare_inputs)

    @torch.no_grad()
    def forward(self, reads: UniqueTokens, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step.

        Args:
            reads: the symbols.
            states: for each layer (1, B, n).

        Returns:
            The logits of each lane's next symbol (1, B, V), and the next states.
        """
        logits, after = self._unroll(reads.values[None], [state[0] for state in states])
        return logits[None], [state[None] for state in after]

    def losses(self, logits: Tensor, prepare_inputs: Tensor) -> Tensor:
        """Return the cross-entropy of the symbols that came (B,), in nats: (1, B)."""
        return functional.cross_entropy(logits[0], prepare_inputs, reduction="none")[None]

    def loss_and_grad(
        self, reads: UniqueTokens, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step, and take the gradients of its loss through the last W.

        Args:
            reads: the symbols.
            targets: (B,), the symbols that come next.
            states: of :meth:`init_training_state`; no gradient goes further back than they do.

        Returns:
            The mean loss over the lanes (1,), in nats, and the next states.
        """
        begin = present = states[: self.layers]
        prepare_inputs, window = reads.values[None], []  # (1, B)
        if self._window > 1:
            past, (read, count) = states[self.layers : -2], states[-2:]
            prepare_inputs = torch.cat((read[0], prepare_inputs))  # (W, B)
            window = [
                torch.cat((old[:, 1:], now[:, None]), 1)  # (1, W − 1, B, n)
                for old, now in zip(past, present, strict=True)
            ]
            window += [prepare_inputs[None, 1:], (count + 1).clamp(max=self._window - 1)]
            # Until a window is whole, its first states are the zeros that the sequence began with.
            begin = [old[:, 0] for old in past]
            prepare_inputs = prepare_inputs[-1 - int(count) :]  # (w, B)
        with torch.enable_grad():
            logits, after = self._unroll(prepare_inputs, [state[0] for state in begin])
            loss = functional.cross_entropy(logits, targets)
        leaves = list(chain.from_iterable(self._leaves.values()))
        gradients = iter(torch.autograd.grad(loss, leaves, materialize_grads=True))
        for affine in self._leaves:
            affine.weight_grad[0].copy_(next(gradients))
            affine.bias_grad.view(-1).copy_(next(gradients))
        return loss.detach()[None], [*(state.detach()[None] for state in after), *window]

    def _unroll(
        self, prepare_inputs: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance by w steps.

        Args:
            prepare_inputs: (w, B), those that are read.
            states: for each layer (B, n), before the first step.

        Returns:
            The logits after the last step (B, V), and for each layer the state then (B, n).
        """
        table, bias = self._leaves[self._embedding]
        xs = functional.embedding(prepare_inputs, table) + bias  # (w, B, n)
        after = []
        for index, (layer, state) in enumerate(zip(self._layers, states, strict=True), start=1):
            xs, state = layer(xs, state, self._product, last_alone=index == self.layers)
            after.append(state)
        return self._product(self._head, xs[-1]), after

    def _product(self, affine: StackedLinear, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, *self._leaves[affine], affine)  # type: ignore[no-untyped-call]
        return y


class _Product(torch.autograd.Function):
    """An affine map: in the type of its weights, its inputs, outputs and gradients in the full one.

    What the steps of a window add up to a gradient is so added in the full type.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, affine: StackedLinear) -> Tensor:
        """Map x (…, inputs) to (…, outputs); the gradients are those of weight and bias."""
        low = x.reshape(-1, affine.in_features).to(affine.weight.dtype)
        ctx.save_for_backward(low)
        ctx.affine, ctx.shape = affine, x.shape
        weight = affine.weight[0]
        y = torch.addmm(affine.bias[0], low, weight) if affine.has_bias else low @ weight
        return y.to(x.dtype).view(*x.shape[:-1], affine.out_features)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, of the weight and of the bias."""
        (low,) = ctx.saved_tensors
        affine, dx = ctx.affine, None
        dy = dy.reshape(-1, affine.out_features)
        low_dy = dy.to(low.dtype)
        if ctx.needs_input_grad[0]:
            dx = (low_dy @ affine.weight[0].T).to(dy.dtype).view(ctx.shape)
        return dx, (low.T @ low_dy).to(dy.dtype), dy.sum(0) if affine.has_bias else None, None
