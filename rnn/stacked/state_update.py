"""The next state of a layer; the equations are in :class:`rnn.stacked.layer.StackedLayer`.

R is the number of members with the same gates, B the number of lanes, n the state size, U the
number of distinct inputs. A forward pass keeps what the backward pass below it needs; ``d`` before
a letter is the gradient, at what the letter stands for, of the losses' sum over the members.
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
        configs: which of the K have it.
        n: the state size.
        repeats: whether lanes share their input.
    """

    def __init__(self, configs: range, n: int, repeats: bool) -> None:
        self.n = n
        self.joint = FusedLinear(
            configs, n, True, 1, 2 * n, [WeightSlice("input_gate", (0, 2 * n))], repeats
        )
        self.space = BufferCache()

    def forward(self, x: GatheredInput, h: Tensor) -> tuple[Tensor, Tensor]:
        """Gate the input and the previous state (R, B, n); return x' and h', each (R, B, n)."""
        n = self.n
        self.read, self.x, self.h = x, x.streams(self.space), h
        self.i = self.joint.forward(x, h).sigmoid_()  # (R, B, 2n)
        gated = self.space("gated", self.i.shape, like=h)
        torch.mul(self.i[:, :, :n], self.x, out=gated[:, :, :n])
        torch.mul(self.i[:, :, n:], h, out=gated[:, :, n:])
        return gated[:, :, :n], gated[:, :, n:]

    def backward(self, d: Tensor, dx: Tensor) -> None:
        """Take the gradients of the weights, and add that of the input.

        Args:
            d: (R, B, 2n) at [x' ; h'], or (R, B, n) at h' where nothing depends on x'; spoilt.
            dx: (R, U, n), to add to.
        """
        n, width = self.n, d.shape[2]
        first = 2 * n - width
        i = self.i[:, :, first:]
        if not first:
            through = self.space("through", self.h.shape, like=self.h)
            self.read.add_lanes(dx, torch.mul(d[:, :, :n], i[:, :, :n], out=through))
            d[:, :, :n].mul_(self.x)
        d[:, :, width - n :].mul_(self.h)
        _ops.sigmoid_backward.grad_input(d, i, grad_input=d)
        self.joint.backward(d, first)
        self.joint.add_x_gradient(dx)


class StateUpdate:
    """The gates and the candidate, for members whose gates are the same.

    Args:
        a: an architecture with these gates.
        configs: which of the K they are, one after another.
        learns: whether the loss depends on the layer's output.
        repeats: whether lanes share their input.
    """

    def __init__(self, a: GatedConfig, configs: range, learns: bool, repeats: bool) -> None:
        n = a.state_size
        self.n = n
        self.of = slice(configs.start, configs.stop)
        self.learns_u = learns and a.reads_new_state
        self.learns_h = learns and a.has_previous_state_grad
        self.input_gate = InputGate(configs, n, repeats) if a.input_gate else None
        gates = ["state_gate"] * a.state_gate + ["forget_gate"] * a.forget_gate
        self.state_gate, self.forget_gate = a.state_gate, a.forget_gate
        self.columns = {name: slice(n * i, n * (i + 1)) for i, name in enumerate(gates, start=1)}
        blocks = [
            WeightSlice(name, (0, 2 * n), (0, n * i))
            for i, name in enumerate(("candidate", *gates))
        ]
        # Behind an input gate lanes no longer share their input.
        has_x = not a.input_gate
        self.joint = FusedLinear(configs, n, has_x, 2 - has_x, n * len(blocks), blocks, repeats)
        self.seen: dict[str, StackedLinear] = {}
        if a.gate_inputs == "candidate":
            for name in gates:
                self.seen[name] = StackedLinear(
                    configs, n, n, [WeightSlice(name, (2 * n, n))], has_bias=False
                )
        self.space = BufferCache()

    def maps(self) -> Iterator[StackedLinear]:
        """Yield the affine maps."""
        if self.input_gate is not None:
            yield from self.input_gate.joint.maps
        yield from self.joint.maps
        yield from self.seen.values()

    def forward(self, x: GatheredInput, h: Tensor, u_out: Tensor) -> Tensor:
        """Make of the input and the previous state h the new state; return h' (R, B, n).

        Args:
            x: the input.
            h: (R, B, n)
            u_out: (R, B, n), where the new state is to stand.
        """
        n = self.n
        self.h = gated_h = h
        if self.input_gate is None:
            p = self.joint.forward(x, h)  # (R, B, n to 3n)
        else:
            gated_x, gated_h = self.input_gate.forward(x, h)
            p = self.joint.forward(x, gated_x, gated_h)  # (R, B, n to 3n)

        # tanh(a) = 2σ(2a) − 1, which is many times faster on a processor.
        p[:, :, :n].mul_(2)
        (p[:, :, :n] if self.seen else p).sigmoid_()
        twice = p[:, :, :n].mul_(2)
        # What is made last stands where it is wanted, all before it in memory of its own.
        last = not (self.state_gate or self.forget_gate)
        u = self.candidate = torch.sub(twice, 1, out=u_out if last else twice)  # (R, B, n)
        if self.state_gate:
            self.z = self._gate("state_gate", p, u)
            mixed = self.space("mixed", h.shape, like=h) if self.forget_gate else u_out
            u = torch.lerp(h, u, self.z, out=mixed)
        self.mixed = u
        if self.forget_gate:
            self.f = self._gate("forget_gate", p, u)
            torch.mul(self.f, u, out=u_out)
        return gated_h

    def backward(self, du: Tensor, dh: Tensor, dx: Tensor) -> None:
        """Take the gradients of the weights, and add that of the input.

        Args:
            du: (R, B, n), at the new state, if the loss depends on it; spoilt.
            dh: (R, B, n), at h', if the loss depends on it through the read-out.
            dx: (R, U, n), to add to.
        """
        if self.learns_u:
            self._learn_from_state(du)
        if self.input_gate is None:
            if self.learns_u:
                self.joint.add_x_gradient(dx)
            return
        if self.learns_u:
            gradient = self.joint.input_gradient(2 * self.n)
            d = self.space("dc", gradient.shape, like=du).copy_(gradient)  # (R, B, 2n)
            if self.learns_h:
                d[:, :, self.n :].add_(dh)
            self.input_gate.backward(d, dx)
        elif self.learns_h:
            self.input_gate.backward(self.space("dh", dh.shape, like=dh).copy_(dh), dx)

    def _learn_from_state(self, du: Tensor) -> None:
        dp = self.space("dp", (*du.shape[:2], self.joint.outputs), like=du)
        t = self.space("t", du.shape, like=du)
        if self.forget_gate:
            torch.mul(du, self.mixed, out=t)
            du.mul_(self.f)
            self._gate_backward("forget_gate", t, self.f, dp, du)
        if self.state_gate:
            torch.sub(self.candidate, self.h, out=t).mul_(du)
            du.mul_(self.z)
            self._gate_backward("state_gate", t, self.z, dp, du)
        _ops.tanh_backward.grad_input(du, self.candidate, grad_input=dp[:, :, : self.n])
        self.joint.backward(dp)

    def _gate(self, name: str, p: Tensor, u: Tensor) -> Tensor:
        gate = p[:, :, self.columns[name]]
        return gate.add_(self.seen[name].forward(u)).sigmoid_() if self.seen else gate

    def _gate_backward(self, name: str, d: Tensor, gate: Tensor, dp: Tensor, du: Tensor) -> None:
        own = dp[:, :, self.columns[name]]
        _ops.sigmoid_backward.grad_input(d, gate, grad_input=own)
        if self.seen:
            self.seen[name].backward(own)
            du.add_(self.seen[name].input_gradient(self.n))
