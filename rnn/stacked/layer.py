"""One recurrent layer of K networks with different options, one time step at a time."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from rnn.config import GatedConfig
from rnn.stacked.linear import BufferCache, GatheredInput, StackedLinear
from rnn.stacked.output_layer import OutputLayer
from rnn.stacked.state_update import StateUpdate


class StackedLayer:
    """One layer of K networks of one state size.

    With [a ; b] for concatenation along the last axis, ⊙ for the element-wise product and σ for
    the logistic function::

        c = [x ; h]
        input gate    [x' ; h'] = c' = σ(c·W_i + b) ⊙ c     else c' = c
        candidate     u = tanh(c'·W_u + b)
        state gate    z = σ(g·W_z + b)      u ← z ⊙ u + (1 − z) ⊙ h
        forget gate   f = σ(g·W_f + b)      u ← f ⊙ u
        read-out      r joins u if new or both; h' if old or both; x if residual
                      o = r·W_o + b
        output gate   y = σ([o ; r]·W_y + b) ⊙ o            else y = o ⊙ σ(o)

    g is c', or [c' ; u] with u as it stands at that point if ``gate_inputs`` is ``"candidate"``:
    the forget gate then reads the result of the state gate. The output is y, the next state u; no
    gradient crosses a time step.

    Products with the same input are fused: c' is multiplied by [W_u ; W_z ; W_f] in one product, r
    by [W_o ; W_y]. An option that is off costs no product.

    Args:
        configs: configs of the K networks; networks with the same gates are consecutive.
        requires_grad: for each network, whether the loss depends on the layer's output.
        shares_x: whether streams share their input.
        device: device to compute on.
    """

    def __init__(
        self,
        configs: Sequence[GatedConfig],
        requires_grad: Sequence[bool],
        shares_x: bool,
        device: torch.device,
    ) -> None:
        def state_update_key(k: int) -> Hashable:
            config = configs[k]
            gates = config.input_gate, config.state_gate, config.forget_gate
            needs_state_grad = requires_grad[k] and config.reads_new_state
            return gates, needs_state_grad, requires_grad[k] and config.has_previous_state_grad

        def output_key(k: int) -> tuple[str, bool, bool, bool, bool]:
            config = configs[k]
            return (
                config.state_source,
                config.residual,
                config.output_gate,
                config.has_previous_state_grad,
                requires_grad[k],
            )

        self.state_updates: list[StateUpdate] = []
        for group in _consecutive_groups(range(len(configs)), state_update_key):
            k = group[0]
            networks = range(k, group[-1] + 1)
            self.state_updates.append(StateUpdate(configs[k], networks, requires_grad[k], shares_x))
        perm = sorted(range(len(configs)), key=output_key)
        self.output_layers: list[OutputLayer] = []
        first = 0
        for group in _consecutive_groups(perm, output_key):
            k = group[0]
            self.output_layers.append(
                OutputLayer(configs[k], group, first, requires_grad[k], shares_x)
            )
            first += len(group)
        # Output layers need another order of the networks; None where it is the stack's.
        self.perm: Tensor | None = None
        self.inverse_perm: Tensor | None = None
        if perm != sorted(perm):
            self.perm = torch.tensor(perm, device=device)  # (K,)
            self.inverse_perm = self.perm.argsort()  # (K,)
        self._buffers = BufferCache()

    def linears(self) -> Iterator[StackedLinear]:
        """Yield the linear layers."""
        for state_update in self.state_updates:
            yield from state_update.linears()
        for output_layer in self.output_layers:
            yield from output_layer.linears()

    def forward(self, x: GatheredInput, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one time step.

        Args:
            x: the layer's input, (K, U, n) before gathering.
            h: previous state (K, B, n); not to be modified before the backward pass.

        Returns:
            The output (K, B, n) and the next state (K, B, n), in buffers that the next step reuses.
        """
        u = self._buffers.get("u", h.shape, like=h)
        if len(self.state_updates) == 1:
            gated_h = self.state_updates[0].forward(x, h, u)
        else:
            gated_h = self._buffers.get("h'", h.shape, like=h)
            for state_update in self.state_updates:
                group = state_update.group
                gated_h[group].copy_(state_update.forward(x.select(group), h[group], u[group]))
        y = self._buffers.get("y", h.shape, like=h)
        inputs = GatheredInput(self._permute("x", x.values), x.index)
        new, previous = self._permute("u permuted", u), self._permute("h' permuted", gated_h)
        for output_layer in self.output_layers:
            group = output_layer.group
            output_layer.forward(inputs.select(group), new[group], previous[group], y[group])
        return self._permute("y permuted", y, inverse=True), u

    def backward(self, dy: Tensor, distinct: int) -> Tensor:
        """Compute the gradients of the weights.

        Args:
            dy: gradient of the output (K, B, n).
            distinct: U, the number of distinct inputs.

        Returns:
            The gradient of the distinct inputs (K, U, n).
        """
        k, _, n = dy.shape
        dy = self._permute("dy", dy)
        du, dh = (self._buffers.get(name, dy.shape, like=dy) for name in ("du", "dh"))
        dx = self._buffers.get("dx", (k, distinct, n), like=dy)
        for output_layer in self.output_layers:
            group = output_layer.group
            output_layer.backward(dy[group], du[group], dh[group], dx[group])
        du, dh, dx = (
            self._permute(f"{name} permuted", d, inverse=True)
            for name, d in (("du", du), ("dh", dh), ("dx", dx))
        )
        for state_update in self.state_updates:
            group = state_update.group
            state_update.backward(du[group], dh[group], dx[group])
        return dx

    def _permute(self, name: str, x: Tensor, inverse: bool = False) -> Tensor:
        """Return x (K, …) in the order of the output layers, or (inverse) of the stack."""
        perm = self.inverse_perm if inverse else self.perm
        if perm is None:
            return x
        return torch.index_select(x, 0, perm, out=self._buffers.get(name, x.shape, like=x))


def _consecutive_groups(networks: Sequence[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    return [list(group) for _, group in groupby(networks, key)]
