"""One layer of one network through several time steps, for autograd to find its way back.

w is the number of steps, B the number of lanes, n the state size. A layer takes all steps before
the next layer takes any, so that what does not depend on its state is one product for all of them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rnn.config import BaselineCell, BaselineConfig, GatedConfig
from rnn.stacked.linear import StackedLinear, WeightSlice

Product = Callable[[StackedLinear, Tensor], Tensor]
"""Takes a map of some inputs (…, inputs) to its outputs (…, outputs)."""

_ALONE = range(1)
"""The members of every map."""


class GatedLayer:
    """A layer of our own cell, with the equations of :class:`rnn.stacked.layer.BaselineCell`.

    Args:
        a: the architecture.

    Attributes:
        maps: the layer's affine maps.
        state_width: n.
    """

    def __init__(self, a: GatedConfig) -> None:
        n = a.state_size
        self.architecture, self.state_width = a, n
        read = n * (a.reads_new_state + a.reads_previous_state + a.residual)
        gates = ["state_gate"] * a.state_gate + ["forget_gate"] * a.forget_gate
        self.columns = {name: slice(n * i, n * (i + 1)) for i, name in enumerate(gates, start=1)}
        self.input_gate = _whole("input_gate", 2 * n, 2 * n)
        blocks = [
            WeightSlice(name, (0, 2 * n), (0, n * i))
            for i, name in enumerate(("candidate", *gates))
        ]
        self.joint = StackedLinear(_ALONE, 2 * n, n * len(blocks), blocks)
        # What gates see beside what the joint product reads: the candidate, or the output.
        self.seen = {
            name: StackedLinear(_ALONE, n, n, [WeightSlice(name, (2 * n, n))], has_bias=False)
            for name in gates
            if a.gate_inputs == "candidate"
        }
        blocks = [WeightSlice("read_out", (0, read))]
        if a.output_gate:
            blocks.append(WeightSlice("output_gate", (n, read), (0, n)))
            own = [WeightSlice("output_gate", (0, n))]
            self.seen["output_gate"] = StackedLinear(_ALONE, n, n, own, has_bias=False)
        self.read_out = StackedLinear(_ALONE, read, n * len(blocks), blocks)
        self.maps = [*[self.input_gate] * a.input_gate, self.joint, self.read_out]
        self.maps += self.seen.values()

    def __call__(
        self, xs: Tensor, h: Tensor, product: Product, last_alone: bool
    ) -> tuple[Tensor, Tensor]:
        """Advance by w steps.

        Args:
            xs: (w, B, n), the layer's inputs.
            h: (B, n), its state before the first of them.
            product: takes the affine maps.
            last_alone: whether nobody reads the outputs but the last.

        Returns:
            The outputs (w, B, n), or (1, B, n) of the last step, and the last state (B, n).
        """
        a, olds, news = self.architecture, [], []
        for x in xs:
            h, old = self._advance(x, h, product)  # (B, n) both
            news.append(h)
            olds.append(old)
        read = slice(-1 if last_alone else 0, None)
        reads = [torch.stack(news[read])] * a.reads_new_state + [
            torch.stack(olds[read])
        ] * a.reads_previous_state
        return self._output([*reads, *[xs[read]] * a.residual], product), h

    def _advance(self, x: Tensor, h: Tensor, product: Product) -> tuple[Tensor, Tensor]:
        """Return the state after h (B, n), and what the read-out sees of h (B, n)."""
        a, n, old = self.architecture, self.state_width, h
        c = torch.cat((x, h), 1)  # (B, 2n)
        if a.input_gate:
            c = product(self.input_gate, c).sigmoid() * c
            old = c[:, n:]
        p = product(self.joint, c)  # (B, n to 3n)

        def gate(name: str, u: Tensor) -> Tensor:
            own = p[:, self.columns[name]]
            return (own + product(self.seen[name], u) if name in self.seen else own).sigmoid()

        u = _tanh(p[:, :n])
        if a.state_gate:
            u = torch.lerp(h, u, gate("state_gate", u))
        if a.forget_gate:
            u = gate("forget_gate", u) * u
        return u, old

    def _output(self, reads: Sequence[Tensor], product: Product) -> Tensor:
        n = self.state_width
        p = product(self.read_out, torch.cat(tuple(reads), 2))  # (w, B, n or 2n)
        o = p[:, :, :n]
        if "output_gate" not in self.seen:
            return functional.silu(o)
        return (p[:, :, n:] + product(self.seen["output_gate"], o)).sigmoid() * o


class KnownLayer:
    """A layer of a cell that is known, with the equations of torch's.

    With i the maps of the input and s those of the state, side by side, σ the logistic function::

        Elman  h ← tanh(i + s)
        GRU    r = σ(i₁ + s₁)   z = σ(i₂ + s₂)   u = tanh(i₃ + r ⊙ s₃)   h ← (1 − z) ⊙ u + z ⊙ h
        LSTM   a = i + s   m ← σ(a₂) ⊙ m + σ(a₁) ⊙ tanh(a₃)   h ← σ(a₄) ⊙ tanh(m)

    The output is h; an LSTM's state is [h ; m].

    Args:
        known: the network.

    Attributes:
        maps: the layer's affine maps.
        state_width: n, or 2n.
    """

    def __init__(self, known: BaselineConfig) -> None:
        self.step = _STEPS[known.cell]
        n, outputs = known.param_shapes()["layers.0.input"]
        self.state_width = 2 * n if known.cell == "lstm" else n
        self.input, self.state = _whole("input", n, outputs), _whole("state", n, outputs)
        self.maps = [self.input, self.state]

    def __call__(
        self, xs: Tensor, state: Tensor, product: Product, last_alone: bool
    ) -> tuple[Tensor, Tensor]:
        """Advance by w steps; see :class:`GatedLayer`. The outputs cost nothing: all are made."""
        n = self.state.in_features
        inputs = product(self.input, xs)  # (w, B, n to 4n)
        outputs = []
        for own in inputs:
            state = self.step(own, product(self.state, state[:, :n]), state)
            outputs.append(state[:, :n])
        return torch.stack(outputs), state


Layer = GatedLayer | KnownLayer


def layers_of(architecture: GatedConfig | BaselineConfig) -> list[Layer]:
    """Return a network's layers."""
    if isinstance(architecture, BaselineConfig):
        return [KnownLayer(architecture) for _ in range(architecture.layers)]
    return [GatedLayer(architecture) for _ in range(architecture.layers)]


def _elman(i: Tensor, s: Tensor, state: Tensor) -> Tensor:
    return _tanh(i + s)


def _gru(i: Tensor, s: Tensor, h: Tensor) -> Tensor:
    n = h.shape[1]
    r, z = (i[:, : 2 * n] + s[:, : 2 * n]).sigmoid().chunk(2, 1)
    return torch.lerp(_tanh(i[:, 2 * n :] + r * s[:, 2 * n :]), h, z)


def _lstm(i: Tensor, s: Tensor, state: Tensor) -> Tensor:
    let_in, keep, candidate, show = (i + s).chunk(4, 1)
    memory = state.chunk(2, 1)[1]
    memory = keep.sigmoid() * memory + let_in.sigmoid() * _tanh(candidate)
    return torch.cat((show.sigmoid() * _tanh(memory), memory), 1)


_STEPS: dict[BaselineCell, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "elman": _elman,
    "gru": _gru,
    "lstm": _lstm,
}


def _tanh(x: Tensor) -> Tensor:
    # As 2σ(2x) − 1, which is many times faster on a processor.
    return (2 * x).sigmoid() * 2 - 1


def _whole(product: str, inputs: int, outputs: int) -> StackedLinear:
    return StackedLinear(_ALONE, inputs, outputs, [WeightSlice(product, (0, inputs))])
