"""The output of a layer; the equations are in :class:`rnn.stacked.layer.StackedLayer`."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rnn.config import GatedConfig
from rnn.stacked.linear import BufferCache, FusedLinear, GatheredInput, StackedLinear, WeightSlice

_ops = torch.ops.aten


class OutputLayer:
    """What a layer hands on, for members that read the same things.

    Args:
        a: an architecture that reads so.
        configs: which of the K they are; where they stand in a row is for
            :class:`StackedLayer` to know.
        learns: whether the loss depends on what they hand on.
        repeats: whether lanes share their input.
    """

    def __init__(
        self, a: GatedConfig, configs: Sequence[int], first: int, learns: bool, repeats: bool
    ) -> None:
        n = a.state_size
        self.n = n
        self.space = BufferCache()
        self.of = slice(first, first + len(configs))
        self.learns = learns
        self.reads_new_state, self.reads_previous_state, self.residual = (
            a.reads_new_state,
            a.reads_previous_state,
            a.residual,
        )
        self.has_previous_state_grad = a.has_previous_state_grad
        states = a.reads_new_state + a.reads_previous_state
        # A member's own order is u, h', x; here x comes first, and what needs no gradient last.
        blocks = []
        for column, (name, skipped) in enumerate((("read_out", 0), ("output_gate", n))):
            if name == "output_gate" and not a.output_gate:
                continue
            if a.residual:
                blocks.append(WeightSlice(name, (skipped + n * states, n), (0, n * column)))
            blocks.append(WeightSlice(name, (skipped, n * states), (n * a.residual, n * column)))
        outputs = n * (1 + a.output_gate)
        self.joint = FusedLinear(configs, n, a.residual, states, outputs, blocks, repeats)
        self.seen: StackedLinear | None = None
        if a.output_gate:
            self.seen = StackedLinear(
                configs, n, n, [WeightSlice("output_gate", (0, n))], has_bias=False
            )

    def maps(self) -> Iterator[StackedLinear]:
        """Yield the affine maps."""
        yield from self.joint.maps
        if self.seen is not None:
            yield self.seen

    def forward(self, x: GatheredInput, u: Tensor, h: Tensor, y: Tensor) -> None:
        """Read the input, the new and the gated previous state (R, B, n); write y (R, B, n)."""
        n = self.n
        states = [u] * self.reads_new_state + [h] * self.reads_previous_state
        p = self.joint.forward(x, *states)  # (R, B, n or 2n)
        self.o = p[:, :, :n]
        if self.seen is None:
            _ops.silu.out(self.o, out=y)
            return
        self.gate = p[:, :, n:].add_(self.seen.forward(self.o)).sigmoid_()  # (R, B, n)
        torch.mul(self.gate, self.o, out=y)

    def backward(self, dy: Tensor, du: Tensor, dh: Tensor, dx: Tensor) -> None:
        """Take the gradients of the weights; set those of u, h' and x where they are read.

        Args:
            dy: (R, B, n), at the output.
            du: (R, B, n), at the new state, to be set.
            dh: (R, B, n), at the gated previous state, to be set.
            dx: (R, U, n), at the input, to be set.
        """
        n = self.n
        if not self.learns:
            dx.zero_()
            return
        if self.seen is None:
            d = self.space("do", dy.shape, like=dy)
            _ops.silu_backward.grad_input(dy, self.o, grad_input=d)
        else:
            d = self.space("do", (*dy.shape[:2], 2 * n), like=dy)
            do, da = d[:, :, :n], d[:, :, n:]
            torch.mul(dy, self.o, out=do)
            _ops.sigmoid_backward.grad_input(do, self.gate, grad_input=da)
            torch.mul(dy, self.gate, out=do)
            self.seen.backward(da)
            do.add_(self.seen.input_gradient(n))
        self.joint.backward(d)
        d_states = self.joint.input_gradients(
            dx, self.reads_new_state + self.has_previous_state_grad
        )
        if d_states is None:
            return
        if self.reads_new_state:
            du.copy_(d_states[:, :, :n])
        if self.has_previous_state_grad:
            dh.copy_(d_states[:, :, n * self.reads_new_state :])
