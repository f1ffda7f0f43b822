"""Gates and candidate state of a layer, for networks with the same gates.

The equations are in :class:`rnn.stacked.layer.StackedLayer`. R is the number of networks with the
same gates, B the number of streams, n the state size, U the number of distinct inputs. A forward
pass keeps what the backward pass needs; ``dx`` is the gradient with respect to x of the losses'
sum over the networks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from rnn.config import GatedConfig
from rnn.stacked.linear import BufferCache, FusedLinear, GatheredInput, StackedLinear, WeightSlice

_ops = torch.ops.aten


class InputGate:
    """[x' ; h'] = σ([x ; h]·W_i + b) ⊙ [x ; h].

    Args:
        networks: positions in the stack of the networks that have it.
        n: state size.
        shares_x: whether streams share their input.
    """

    def __init__(self, networks: range, n: int, shares_x: bool) -> None:
        self.n = n
        self.fused = FusedLinear(
            networks, n, True, 1, 2 * n, [WeightSlice("input_gate", (0, 2 * n))], shares_x
        )
        self._buffers = BufferCache()

    def forward(self, x: GatheredInput, h: Tensor) -> tuple[Tensor, Tensor]:
        """Gate the input and the previous state (R, B, n); return x' and h', each (R, B, n)."""
        n = self.n
        self.input, self.x, self.h = x, x.gather(self._buffers), h
        self.i = self.fused.forward(x, h).sigmoid_()  # (R, B, 2n)
        gated = self._buffers.get("gated", self.i.shape, like=h)
        torch.mul(self.i[:, :, :n], self.x, out=gated[:, :, :n])
        torch.mul(self.i[:, :, n:], h, out=gated[:, :, n:])
        return gated[:, :, :n], gated[:, :, n:]

    def backward(self, d: Tensor, dx: Tensor) -> None:
        """Compute the gradients of the weights, and add the gradient of the input to dx.

        Args:
            d: gradient of [x' ; h'] (R, B, 2n), or of h' (R, B, n) if the loss does not depend on
                x'; overwritten in place.
            dx: (R, U, n)
        """
        n, width = self.n, d.shape[2]
        first = 2 * n - width
        i = self.i[:, :, first:]
        if not first:
            through = self._buffers.get("through", self.h.shape, like=self.h)
            self.input.scatter_add(dx, torch.mul(d[:, :, :n], i[:, :, :n], out=through))
            d[:, :, :n].mul_(self.x)
        d[:, :, width - n :].mul_(self.h)
        _ops.sigmoid_backward.grad_input(d, i, grad_input=d)
        self.fused.backward(d, first)
        self.fused.add_x_grad(dx)


class StateUpdate:
    """Gates and candidate state, for R networks with the same gates.

    Args:
        config: config of one of the networks.
        networks: positions of the networks in the stack, consecutive.
        requires_grad: whether the loss depends on the layer's output.
        shares_x: whether streams share their input.
    """

    def __init__(
        self, config: GatedConfig, networks: range, requires_grad: bool, shares_x: bool
    ) -> None:
        n = config.state_size
        self.n = n
        self.group = slice(networks.start, networks.stop)
        self.needs_state_grad = requires_grad and config.reads_new_state
        self.needs_previous_state_grad = requires_grad and config.has_previous_state_grad
        self.input_gate = InputGate(networks, n, shares_x) if config.input_gate else None
        gates = ["state_gate"] * config.state_gate + ["forget_gate"] * config.forget_gate
        self.state_gate, self.forget_gate = config.state_gate, config.forget_gate
        self.columns = {name: slice(n * i, n * (i + 1)) for i, name in enumerate(gates, start=1)}
        slices = [
            WeightSlice(name, (0, 2 * n), (0, n * i))
            for i, name in enumerate(("candidate", *gates))
        ]
        # After an input gate streams no longer share their input.
        includes_x = not config.input_gate
        self.fused = FusedLinear(
            networks, n, includes_x, 2 - includes_x, n * len(slices), slices, shares_x
        )
        self.candidate_linears: dict[str, StackedLinear] = {}
        if config.gate_inputs == "candidate":
            for name in gates:
                self.candidate_linears[name] = StackedLinear(
                    networks, n, n, [WeightSlice(name, (2 * n, n))], has_bias=False
                )
        self._buffers = BufferCache()

    def linears(self) -> Iterator[StackedLinear]:
        """Yield the linear layers."""
        if self.input_gate is not None:
            yield from self.input_gate.fused.linears
        yield from self.fused.linears
        yield from self.candidate_linears.values()

    def forward(self, x: GatheredInput, h: Tensor, out: Tensor) -> Tensor:
        """Compute the new state from the input and the previous state h; return h' (R, B, n).

        Args:
            x: the layer's input.
            h: (R, B, n)
            out: output (R, B, n): the new state.
        """
        n = self.n
        self.h = gated_h = h
        if self.input_gate is None:
            p = self.fused.forward(x, h)  # (R, B, n to 3n)
        else:
            gated_x, gated_h = self.input_gate.forward(x, h)
            p = self.fused.forward(x, gated_x, gated_h)  # (R, B, n to 3n)

        # tanh(a) = 2σ(2a) − 1, which is many times faster on a CPU.
        p[:, :, :n].mul_(2)
        (p[:, :, :n] if self.candidate_linears else p).sigmoid_()
        twice = p[:, :, :n].mul_(2)
        # The last result is written to out, the ones before it to buffers.
        is_last = not (self.state_gate or self.forget_gate)
        u = self.candidate = torch.sub(twice, 1, out=out if is_last else twice)  # (R, B, n)
        if self.state_gate:
            self.z = self._gate("state_gate", p, u)
            mixed = self._buffers.get("mixed", h.shape, like=h) if self.forget_gate else out
            u = torch.lerp(h, u, self.z, out=mixed)
        self.mixed = u
        if self.forget_gate:
            self.f = self._gate("forget_gate", p, u)
            torch.mul(self.f, u, out=out)
        return gated_h

    def backward(self, du: Tensor, dh: Tensor, dx: Tensor) -> None:
        """Compute the gradients of the weights, and add the gradient of the input to dx.

        Args:
            du: gradient of the new state (R, B, n), if the loss depends on it; overwritten in
                place.
            dh: gradient of h' (R, B, n), if the loss depends on it through the read-out.
            dx: (R, U, n)
        """
        if self.needs_state_grad:
            self._backward_state(du)
        if self.input_gate is None:
            if self.needs_state_grad:
                self.fused.add_x_grad(dx)
            return
        if self.needs_state_grad:
            dc = self.fused.input_grad(2 * self.n)
            d = self._buffers.get("dc", dc.shape, like=du).copy_(dc)  # (R, B, 2n)
            if self.needs_previous_state_grad:
                d[:, :, self.n :].add_(dh)
            self.input_gate.backward(d, dx)
        elif self.needs_previous_state_grad:
            self.input_gate.backward(self._buffers.get("dh", dh.shape, like=dh).copy_(dh), dx)

    def _backward_state(self, du: Tensor) -> None:
        dp = self._buffers.get("dp", (*du.shape[:2], self.fused.out_features), like=du)
        t = self._buffers.get("t", du.shape, like=du)
        if self.forget_gate:
            torch.mul(du, self.mixed, out=t)
            du.mul_(self.f)
            self._gate_backward("forget_gate", t, self.f, dp, du)
        if self.state_gate:
            torch.sub(self.candidate, self.h, out=t).mul_(du)
            du.mul_(self.z)
            self._gate_backward("state_gate", t, self.z, dp, du)
        _ops.tanh_backward.grad_input(du, self.candidate, grad_input=dp[:, :, : self.n])
        self.fused.backward(dp)

    def _gate(self, name: str, p: Tensor, u: Tensor) -> Tensor:
        gate = p[:, :, self.columns[name]]
        if not self.candidate_linears:
            return gate
        return gate.add_(self.candidate_linears[name].forward(u)).sigmoid_()

    def _gate_backward(self, name: str, d: Tensor, gate: Tensor, dp: Tensor, du: Tensor) -> None:
        da = dp[:, :, self.columns[name]]
        _ops.sigmoid_backward.grad_input(d, gate, grad_input=da)
        if self.candidate_linears:
            self.candidate_linears[name].backward(da)
            du.add_(self.candidate_linears[name].input_grad(self.n))
