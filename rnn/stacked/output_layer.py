"""Read-out and output gate of a layer, for networks with the same options.

The equations are in :class:`rnn.stacked.layer.StackedLayer`.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rnn.config import GatedConfig
from rnn.stacked.linear import BufferCache, FusedLinear, GatheredInput, StackedLinear, WeightSlice

_ops = torch.ops.aten


class OutputLayer:
    """The output of a layer, for R networks that read the same states.

    Args:
        config: config of one of the networks.
        networks: positions of the networks in the stack.
        first: position of the first of them in the order of :class:`StackedLayer`, where they are
            consecutive.
        requires_grad: whether the loss depends on the output.
        shares_x: whether streams share their input.
    """

    def __init__(
        self,
        config: GatedConfig,
        networks: Sequence[int],
        first: int,
        requires_grad: bool,
        shares_x: bool,
    ) -> None:
        n = config.state_size
        self.n = n
        self.group = slice(first, first + len(networks))
        self.requires_grad = requires_grad
        self.reads_new_state = config.reads_new_state
        self.reads_previous_state = config.reads_previous_state
        self.has_previous_state_grad = config.has_previous_state_grad
        states = config.reads_new_state + config.reads_previous_state
        # A parameter's rows are ordered u, h', x. Here x comes first, and what needs no gradient
        # comes last.
        slices = []
        for column, (name, skipped) in enumerate((("read_out", 0), ("output_gate", n))):
            if name == "output_gate" and not config.output_gate:
                continue
            if config.residual:
                slices.append(WeightSlice(name, (skipped + n * states, n), (0, n * column)))
            slices.append(
                WeightSlice(name, (skipped, n * states), (n * config.residual, n * column))
            )
        out_features = n * (1 + config.output_gate)
        self.fused = FusedLinear(
            networks, n, config.residual, states, out_features, slices, shares_x
        )
        self.gate_linear: StackedLinear | None = None
        if config.output_gate:
            self.gate_linear = StackedLinear(
                networks, n, n, [WeightSlice("output_gate", (0, n))], has_bias=False
            )
        self._buffers = BufferCache()

    def linears(self) -> Iterator[StackedLinear]:
        """Yield the linear layers."""
        yield from self.fused.linears
        if self.gate_linear is not None:
            yield self.gate_linear

    def forward(self, x: GatheredInput, u: Tensor, h: Tensor, y: Tensor) -> None:
        """Compute the output y from the input, the new state u and the gated previous state h.

        Args:
            x: the layer's input.
            u: (R, B, n)
            h: (R, B, n)
            y: output (R, B, n).
        """
        n = self.n
        states = [u] * self.reads_new_state + [h] * self.reads_previous_state
        p = self.fused.forward(x, *states)  # (R, B, n or 2n)
        self.o = p[:, :, :n]
        if self.gate_linear is None:
            _ops.silu.out(self.o, out=y)
            return
        self.gate = p[:, :, n:].add_(self.gate_linear.forward(self.o)).sigmoid_()  # (R, B, n)
        torch.mul(self.gate, self.o, out=y)

    def backward(self, dy: Tensor, du: Tensor, dh: Tensor, dx: Tensor) -> None:
        """Compute the gradients of the weights, and of u, h' and x where they are read.

        Args:
            dy: gradient of the output (R, B, n).
            du: output (R, B, n): gradient of the new state.
            dh: output (R, B, n): gradient of the gated previous state.
            dx: output (R, U, n): gradient of the input.
        """
        n = self.n
        if not self.requires_grad:
            dx.zero_()
            return
        if self.gate_linear is None:
            d = self._buffers.get("do", dy.shape, like=dy)
            _ops.silu_backward.grad_input(dy, self.o, grad_input=d)
        else:
            d = self._buffers.get("do", (*dy.shape[:2], 2 * n), like=dy)
            do, da = d[:, :, :n], d[:, :, n:]
            torch.mul(dy, self.o, out=do)
            _ops.sigmoid_backward.grad_input(do, self.gate, grad_input=da)
            torch.mul(dy, self.gate, out=do)
            self.gate_linear.backward(da)
            do.add_(self.gate_linear.input_grad(n))
        self.fused.backward(d)
        d_states = self.fused.input_grads(dx, self.reads_new_state + self.has_previous_state_grad)
        if d_states is None:
            return
        if self.reads_new_state:
            du.copy_(d_states[:, :, :n])
        if self.has_previous_state_grad:
            dh.copy_(d_states[:, :, n * self.reads_new_state :])
