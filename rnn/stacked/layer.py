"""One recurrent layer of K networks, their switches mixed, one time step at a time."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from rnn.config import GatedConfig
from rnn.stacked.linear import BufferCache, GatheredInput, StackedLinear
from rnn.stacked.output_layer import OutputLayer
from rnn.stacked.state_update import StateUpdate


class StackedLayer:
    """One layer of K members of one state size.

    With [a ; b] joining along the last axis, ⊙ element-wise and σ the logistic function::

        c = [x ; h]
        input gate    [x' ; h'] = c' = σ(c·W_i + b) ⊙ c     else c' = c
        candidate     u = tanh(c'·W_u + b)
        state gate    z = σ(g·W_z + b)      u ← z ⊙ u + (1 − z) ⊙ h
        forget gate   f = σ(g·W_f + b)      u ← f ⊙ u
        read-out      r joins u if new or both; h' if old or both; x if residual
                      o = r·W_o + b
        output gate   y = σ([o ; r]·W_y + b) ⊙ o            else y = o ⊙ σ(o)

    g is c', or [c' ; u] with u as it stands where ``gate_inputs`` is ``"candidate"``: there the
    forget gate sees what the state gate made. The output is y, the next state u: no gradient ever
    crosses a time step.

    Products with the same input are one: c' is multiplied by [W_u ; W_z ; W_f] side by side, r by
    [W_o ; W_y], as far as the switches are on.

    Args:
        architectures: the K members', those with the same gates one after another.
        learns: for each, whether the loss depends on the layer's output.
        repeats: whether lanes share their input.
        device: where to compute.
    """

    def __init__(
        self,
        architectures: Sequence[GatedConfig],
        learns: Sequence[bool],
        repeats: bool,
        device: torch.device,
    ) -> None:
        def gated_alike(k: int) -> Hashable:
            a = architectures[k]
            gates = a.input_gate, a.state_gate, a.forget_gate
            return gates, learns[k] and a.reads_new_state, learns[k] and a.has_previous_state_grad

        def read_alike(k: int) -> tuple[str, bool, bool, bool, bool]:
            a = architectures[k]
            return a.state_source, a.residual, a.output_gate, a.has_previous_state_grad, learns[k]

        self.gates: list[StateUpdate] = []
        for configs in _runs(range(len(architectures)), gated_alike):
            run = range(configs[0], configs[-1] + 1)
            self.gates.append(StateUpdate(architectures[run[0]], run, learns[run[0]], repeats))
        order = sorted(range(len(architectures)), key=read_alike)
        self.read_outs: list[OutputLayer] = []
        first = 0
        for configs in _runs(order, read_alike):
            k = configs[0]
            self.read_outs.append(OutputLayer(architectures[k], configs, first, learns[k], repeats))
            first += len(configs)
        # Read-outs stand in an order of their own; where it is the same, nothing is moved.
        self.order: Tensor | None = None
        self.back: Tensor | None = None
        if order != sorted(order):
            self.order = torch.tensor(order, device=device)  # (K,)
            self.back = self.order.argsort()  # (K,)
        self.space = BufferCache()

    def maps(self) -> Iterator[StackedLinear]:
        """Yield the affine maps."""
        for gates in self.gates:
            yield from gates.maps()
        for read_out in self.read_outs:
            yield from read_out.maps()

    def forward(self, x: GatheredInput, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one time step.

        Args:
            x: the layer's input, (K, U, n) as lanes share it.
            h: (K, B, n), its previous state; to stay as it is until the backward pass.

        Returns:
            The output (K, B, n) and the next state (K, B, n), which last until the next step.
        """
        u = self.space("u", h.shape, like=h)
        if len(self.gates) == 1:
            gated_h = self.gates[0].forward(x, h, u)
        else:
            gated_h = self.space("h'", h.shape, like=h)
            for gates in self.gates:
                some = gates.of
                gated_h[some].copy_(gates.forward(x.of(some), h[some], u[some]))
        y = self.space("y", h.shape, like=h)
        reads = GatheredInput(self._ordered("x", x.values), x.rows)
        new, old = self._ordered("u in order", u), self._ordered("h' in order", gated_h)
        for read_out in self.read_outs:
            some = read_out.of
            read_out.forward(reads.of(some), new[some], old[some], y[some])
        return self._ordered("y in order", y, back=True), u

    def backward(self, dy: Tensor, distinct: int) -> Tensor:
        """Take the gradients of the weights.

        Args:
            dy: (K, B, n), at the output.
            distinct: U, of the input.

        Returns:
            (K, U, n), at the input.
        """
        k, _, n = dy.shape
        dy = self._ordered("dy", dy)
        du, dh = (self.space(name, dy.shape, like=dy) for name in ("du", "dh"))
        dx = self.space("dx", (k, distinct, n), like=dy)
        for read_out in self.read_outs:
            some = read_out.of
            read_out.backward(dy[some], du[some], dh[some], dx[some])
        du, dh, dx = (
            self._ordered(f"{name} in order", d, back=True)
            for name, d in (("du", du), ("dh", dh), ("dx", dx))
        )
        for gates in self.gates:
            gates.backward(du[gates.of], dh[gates.of], dx[gates.of])
        return dx

    def _ordered(self, name: str, x: Tensor, back: bool = False) -> Tensor:
        """Return x (K, …) with its members in the read-outs' order, or back in the population's."""
        order = self.back if back else self.order
        if order is None:
            return x
        return torch.index_select(x, 0, order, out=self.space(name, x.shape, like=x))


def _runs(configs: Sequence[int], alike: Callable[[int], Hashable]) -> list[list[int]]:
    """Divide members into those that are alike and stand one after another."""
    return [list(run) for _, run in groupby(configs, alike)]
