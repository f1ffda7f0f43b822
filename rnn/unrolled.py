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

from rnn.affine import Affine, Block
from rnn.architecture import BYTES
from rnn.member import Member
from rnn.network import initial_weights
from rnn.parameters import Parameters, Weights
from rnn.precision import Precision, prepare
from rnn.symbols import Symbols
from rnn.unrolled_layers import layers_of


class Unrolled:
    """A population of one, with the face of :class:`rnn.network.Population`: K = 1.

    Args:
        members: the one member, of any architecture and any ``gradient_window``, W.
        seed: of its initial weights.
        precision: of the arithmetic.
        vocabulary_size: V.
        device: where to compute.
        weights: of the member, in place of the initial ones.

    Attributes:
        members: the one.
        parameters: its weights.
        fixed: False: a window grows, so that a step is not always the same operations.

    Raises:
        ValueError: if there is not one member, or its window is shorter than one step.
    """

    fixed = False

    def __init__(
        self,
        members: Sequence[Member],
        seed: int,
        precision: Precision = "fp32",
        vocabulary_size: int = BYTES,
        device: torch.device | None = None,
        weights: Mapping[Member, Weights] | None = None,
    ) -> None:
        if len(members) != 1:
            raise ValueError(
                f"there are {len(members)} members; allowed: one, of a cell that is not ours or a "
                "gradient through several steps; train each by itself"
            )
        (member,) = self.members = tuple(members)
        if member.gradient_window < 1:
            raise ValueError(
                f"the gradient window is {member.gradient_window}; allowed: 1 or more; 1 has the "
                "gradient stay within its step"
            )
        self.seed, self.precision = seed, precision
        self.vocabulary_size = vocabulary_size
        self.device = device or torch.device("cpu")
        architecture = member.architecture
        self.layers, self.state_size = architecture.layers, architecture.state_size
        self._window = member.gradient_window
        prepare(precision, self.device)

        n = self.state_size
        self._layers = layers_of(architecture)
        self._embedding, self._head = (
            Affine(range(1), inputs, outputs, [Block(name, (0, inputs))])
            for name, inputs, outputs in (
                ("embedding", vocabulary_size, n),
                ("head", n, vocabulary_size),
            )
        )
        maps = [(f"layers.{i}.", own) for i, layer in enumerate(self._layers) for own in layer.maps]
        maps.append(("", self._head))
        self.parameters = Parameters(
            self.members,
            maps,
            self._embedding,
            torch.float64 if precision == "fp64" else torch.float32,
            precision == "bf16",
            self.device,
            vocabulary_size,
        )
        own = (weights or {}).get(member) or initial_weights(member, seed, vocabulary_size)
        self.parameters.put(0, self.parameters.values, own)
        # Where autograd brings the gradients of a map's weight and bias. The embedding's are these
        # themselves; of a product's, which it reads where they lie, they have but the shape.
        none = self.parameters.values.new_zeros(())
        self._leaves = {
            affine: (
                none.expand(affine.inputs, affine.outputs).requires_grad_(),
                none.expand(affine.outputs * affine.has_bias).requires_grad_(),
            )
            for _, affine in maps
        }
        table = self._embedding
        self._leaves[table] = (
            table.weight[0].detach().requires_grad_(),
            table.bias[0, 0].detach().requires_grad_(),
        )

    def of(self, weights: Mapping[Member, Weights]) -> "Unrolled":
        """Return a network like this one of this member and its weights."""
        return Unrolled(
            list(weights), self.seed, self.precision, self.vocabulary_size, self.device, weights
        )

    def initial_states(self, lanes: int) -> list[Tensor]:
        """Return the zero states at a sequence's start, for each layer (1, B, n); 2n of an LSTM."""
        new = self.parameters.values.new_zeros
        return [new(1, lanes, layer.state_width) for layer in self._layers]

    def learning_states(self, lanes: int) -> list[Tensor]:
        """Return what a sequence's training begins with, all zero.

        Returns:
            For each layer the state, as of :meth:`initial_states`; and where W > 1 for each layer
            the states before each of the last W − 1 steps (1, W − 1, B, n), the symbols read in
            them (1, W − 1, B), and how many of these steps the sequence has had (1,).
        """
        states, earlier = self.initial_states(lanes), self._window - 1
        if not earlier:
            return states
        past = [state.new_zeros(1, earlier, *state.shape[1:]) for state in states]
        symbols = torch.zeros(1, earlier, lanes, dtype=torch.long, device=self.device)
        return [*states, *past, symbols, symbols.new_zeros(1)]

    def symbols(self, symbols: Tensor) -> Symbols:
        """Return what lanes with these symbols (B,) read, as this network takes it."""
        return Symbols(symbols)

    @torch.no_grad()
    def forward(self, reads: Symbols, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step.

        Args:
            reads: the symbols.
            states: for each layer (1, B, n).

        Returns:
            The logits of each lane's next symbol (1, B, V), and the next states.
        """
        logits, after = self._unroll(reads.distinct[None], [state[0] for state in states])
        return logits[None], [state[None] for state in after]

    def losses(self, logits: Tensor, symbols: Tensor) -> Tensor:
        """Return the cross-entropy of the symbols that came (B,), in nats: (1, B)."""
        return functional.cross_entropy(logits[0], symbols, reduction="none")[None]

    def learn(
        self, reads: Symbols, foretells: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step, and take the gradients of its loss through the last W.

        Args:
            reads: the symbols.
            foretells: (B,), the symbols that come next.
            states: of :meth:`learning_states`; no gradient goes further back than they do.

        Returns:
            The mean loss over the lanes (1,), in nats, and the next states.
        """
        begin = present = states[: self.layers]
        symbols, window = reads.distinct[None], []  # (1, B)
        if self._window > 1:
            past, (read, count) = states[self.layers : -2], states[-2:]
            symbols = torch.cat((read[0], symbols))  # (W, B)
            window = [
                torch.cat((old[:, 1:], now[:, None]), 1)  # (1, W − 1, B, n)
                for old, now in zip(past, present, strict=True)
            ]
            window += [symbols[None, 1:], (count + 1).clamp(max=self._window - 1)]
            # Until a window is whole, its first states are the zeros that the sequence began with.
            begin = [old[:, 0] for old in past]
            symbols = symbols[-1 - int(count) :]  # (w, B)
        with torch.enable_grad():
            logits, after = self._unroll(symbols, [state[0] for state in begin])
            loss = functional.cross_entropy(logits, foretells)
        leaves = list(chain.from_iterable(self._leaves.values()))
        gradients = iter(torch.autograd.grad(loss, leaves, materialize_grads=True))
        for affine in self._leaves:
            affine.weight_gradient[0].copy_(next(gradients))
            affine.bias_gradient.view(-1).copy_(next(gradients))
        return loss.detach()[None], [*(state.detach()[None] for state in after), *window]

    def _unroll(self, symbols: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance by w steps.

        Args:
            symbols: (w, B), those that are read.
            states: for each layer (B, n), before the first step.

        Returns:
            The logits after the last step (B, V), and for each layer the state then (B, n).
        """
        table, bias = self._leaves[self._embedding]
        xs = functional.embedding(symbols, table) + bias  # (w, B, n)
        after = []
        for index, (layer, state) in enumerate(zip(self._layers, states, strict=True), start=1):
            xs, state = layer(xs, state, self._product, last_alone=index == self.layers)
            after.append(state)
        return self._product(self._head, xs[-1]), after

    def _product(self, affine: Affine, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, *self._leaves[affine], affine)  # type: ignore[no-untyped-call]
        return y


class _Product(torch.autograd.Function):
    """An affine map: in the type of its weights, its inputs, outputs and gradients in the full one.

    What the steps of a window add up to a gradient is so added in the full type.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, affine: Affine) -> Tensor:
        """Map x (…, inputs) to (…, outputs); the gradients are those of weight and bias."""
        low = x.reshape(-1, affine.inputs).to(affine.weight.dtype)
        ctx.save_for_backward(low)
        ctx.affine, ctx.shape = affine, x.shape
        weight = affine.weight[0]
        y = torch.addmm(affine.bias[0], low, weight) if affine.has_bias else low @ weight
        return y.to(x.dtype).view(*x.shape[:-1], affine.outputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, of the weight and of the bias."""
        (low,) = ctx.saved_tensors
        affine, dx = ctx.affine, None
        dy = dy.reshape(-1, affine.outputs)
        low_dy = dy.to(low.dtype)
        if ctx.needs_input_grad[0]:
            dx = (low_dy @ affine.weight[0].T).to(dy.dtype).view(ctx.shape)
        return dx, (low.T @ low_dy).to(dy.dtype), dy.sum(0) if affine.has_bias else None, None
