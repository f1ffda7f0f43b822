"""The gated cell and the network around a stack of layers, as plain modules.

This is the reference: :mod:`rnn.stacked` computes the same for many networks at once, and
:mod:`rnn.codegen` writes it out for one config. T is the number of time steps, B the number of
streams, n the state size, V the vocabulary size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rnn.config import BYTE_VOCAB_SIZE, GatedConfig


class RecurrentLayer(nn.Module):
    """Base of layers; :meth:`GatedLayer.forward` documents the signature of ``forward``.

    Attributes:
        state_width: size of the layer's state, at least that of its output.
    """

    state_width: int


class GatedLayer(RecurrentLayer):
    """One layer of the gated cell.

    With x the layer's input and h its previous state, [a ; b] for concatenation along the last
    axis, ⊙ for the element-wise product and σ for the logistic function::

        c = [x ; h]
        input gate     c' = σ(c·W_i + b_i) ⊙ c                   else c' = c
                       [x' ; h'] = c'
        candidate      u = tanh(c'·W_u + b_u)
        state gate     z = σ(g·W_z + b_z)     u ← z ⊙ u + (1 − z) ⊙ h
        forget gate    f = σ(g·W_f + b_f)     u ← f ⊙ u
        read-out       r joins u (source new or both), h' (old or both), x (residual)
                       o = r·W_o + b_o
        output gate    y = σ([o ; r]·W_y + b_y) ⊙ o              else y = o ⊙ σ(o)

    g is c' if ``gate_inputs`` is ``"state"``. If it is ``"candidate"``, g is [c' ; u] with u as it
    stands at that point. The output is y, the next state u.

    Weights that multiply the same input are fused, as in ``nn.LSTM``: W_uzf is W_u, W_z and W_f
    side by side, W_oy is W_o and W_y. The rows of W_z, W_f and W_y that multiply u or o are the
    modules W_z_u, W_f_u and W_y_o.

    Args:
        config: options and state size of the layer.
    """

    def __init__(self, config: GatedConfig) -> None:
        super().__init__()
        n = config.state_size
        self.config, self.state_width = config, n
        z, f, y = config.state_gate, config.forget_gate, config.output_gate
        sees_candidate = config.gate_inputs == "candidate"
        r = n * (config.reads_new_state + config.reads_previous_state + config.residual)
        self.W_i = nn.Linear(2 * n, 2 * n) if config.input_gate else None
        self.W_uzf = nn.Linear(2 * n, n * (1 + z + f))
        self.W_z_u = nn.Linear(n, n, bias=False) if z and sees_candidate else None
        self.W_f_u = nn.Linear(n, n, bias=False) if f and sees_candidate else None
        self.W_oy = nn.Linear(r, n * (1 + y))
        self.W_y_o = nn.Linear(n, n, bias=False) if y else None

    def forward(self, xs: Tensor, h: Tensor, last_only: bool = False) -> tuple[Tensor, Tensor]:
        """Advance by T time steps.

        Args:
            xs: inputs (T, B, n).
            h: state (B, n) before the first step.
            last_only: whether to compute only the output of the last step.

        Returns:
            The outputs (T, B, n), or (1, B, n) of the last step, and the last state (B, n).
        """
        config, n = self.config, self.config.state_size
        new_states, previous_states = [], []
        for x in xs:
            c = torch.cat((x, h), 1)  # (B, 2n)
            gated_h = h  # (B, n), h'
            if self.W_i is not None:
                c = self.W_i(c).sigmoid() * c  # (B, 2n), c'
                gated_h = c[:, n:]  # (B, n)
            u, *gates = self.W_uzf(c).split(n, 1)  # (B, n) each
            u = tanh(u)  # (B, n)
            if config.state_gate:
                z = _gate(gates[0], self.W_z_u, u)  # (B, n)
                u = torch.lerp(h, u, z)  # (B, n), z ⊙ u + (1 − z) ⊙ h
            if config.forget_gate:
                f = _gate(gates[-1], self.W_f_u, u)  # (B, n)
                u = f * u  # (B, n)
            h = u  # (B, n)
            new_states.append(h)
            previous_states.append(gated_h)

        # The states do not depend on the read-out: it is one product for all steps.
        steps = slice(-1 if last_only else 0, None)
        parts = []
        if config.reads_new_state:
            parts.append(torch.stack(new_states[steps]))  # (T, B, n)
        if config.reads_previous_state:
            parts.append(torch.stack(previous_states[steps]))  # (T, B, n)
        if config.residual:
            parts.append(xs[steps])  # (T, B, n)
        r = torch.cat(parts, 2)  # (T, B, n to 3n)
        o, *gates = self.W_oy(r).split(n, 2)  # (T, B, n) each
        if self.W_y_o is None:
            y = functional.silu(o)  # (T, B, n), o ⊙ σ(o)
            return y, h
        y = _gate(gates[0], self.W_y_o, o) * o  # (T, B, n)
        return y, h


class RecurrentNetwork(nn.Module):
    """A language model: embedding, recurrent layers, linear head.

    Gradients pass through all T time steps that :meth:`forward` is given, and through the states
    that it starts from unless the caller detaches them.

    Args:
        layers: the layers, all with inputs and outputs of size n.
        state_size: n.
        vocab_size: V.
    """

    def __init__(
        self, layers: Sequence[RecurrentLayer], state_size: int, vocab_size: int = BYTE_VOCAB_SIZE
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(vocab_size, state_size)
        self.layers = nn.ModuleList(layers)
        self.state_widths = [layer.state_width for layer in layers]
        self.head = nn.Linear(state_size, vocab_size)

    def init_state(self, streams: int) -> list[Tensor]:
        """Return the zero state of each layer (B, ``state_width``)."""
        new_zeros = self.embedding.weight.new_zeros
        return [new_zeros(streams, width) for width in self.state_widths]

    def forward(
        self, tokens: Tensor, states: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Read T tokens of each stream and predict the next one.

        Args:
            tokens: (T, B).
            states: state of each layer before the first token; None for zeros.

        Returns:
            The logits (B, V) after the last token, and the state of each layer then.
        """
        states = self.init_state(tokens.shape[1]) if states is None else states
        # A linear map of a one-hot token is a row of its weights.
        xs = functional.embedding(tokens, self.embedding.weight.T)  # (T, B, n)
        xs = xs + self.embedding.bias  # (T, B, n)
        next_states = []
        for layer, state in zip(self.layers, states, strict=True):
            last_only = layer is self.layers[-1]
            xs, next_state = layer(xs, state, last_only)  # (T, B, n), (B, state_width)
            next_states.append(next_state)
        logits = self.head(xs[-1])  # (B, V)
        return logits, next_states


def tanh(x: Tensor) -> Tensor:
    """Compute tanh as 2σ(2x) − 1, which is several times faster on a CPU."""
    return (2 * x).sigmoid() * 2 - 1


def _gate(a: Tensor, linear: nn.Module | None, u: Tensor) -> Tensor:
    """Return σ(a + linear(u)), or σ(a) without the linear module."""
    return (a if linear is None else a + linear(u)).sigmoid()
