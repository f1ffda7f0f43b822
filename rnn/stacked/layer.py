"""One recurrent layer of K gated networks with different options, one time step at a time.

The equations are those of the reference, :class:`rnn.cells.GatedCell`, and so are the
letters. Products with the same input are fused: c' is multiplied by [W_u ; W_z ; W_f] in one
product, r by [W_o ; W_y]. An option that is off costs no product.

R is the number of networks with the same options, B the number of streams, n the state size, U the
number of distinct inputs. A forward pass keeps what the backward pass needs; ``dx`` is the gradient
with respect to x of the losses' sum over the networks.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from rnn.config import GATED_OPTIONS, GatedOptions, NetworkConfig, ParamValue
from rnn.stacked.linear import BufferCache, FusedLinear, GatheredInput, Part, StackedLinear

_ops = torch.ops.aten

_STATE_OPTIONS = {"input_gate", "state_gate", "forget_gate", "gate_inputs"}
"""Options that :class:`StateUpdate` alone computes."""

_OUTPUT_OPTIONS = {"state_source", "residual", "output_gate"}
"""Options that :class:`Output` alone computes. Another option keeps products of both apart."""


def state_options(options: GatedOptions) -> tuple[ParamValue, ...]:
    """Return the options that networks with one product for their state update agree in."""
    return tuple(getattr(options, name) for name in GATED_OPTIONS if name not in _OUTPUT_OPTIONS)


def output_options(options: GatedOptions) -> tuple[ParamValue, ...]:
    """Return the options that networks with one product for their outputs agree in."""
    return tuple(getattr(options, name) for name in GATED_OPTIONS if name not in _STATE_OPTIONS)


class Group(NamedTuple):
    """Networks with the same options, whose part of a layer is computed at once.

    Attributes:
        config: config of one of the networks.
        prefix: prefix of the names of the layer's parameters.
        networks: positions of the networks in the stack.
        requires_grad: whether the loss depends on the layer's output.
        shares_x: whether streams share their input.
    """

    config: NetworkConfig
    prefix: str
    networks: Sequence[int]
    requires_grad: bool
    shares_x: bool

    def fuse(self, width: int, parts: Sequence[Part], includes_x: bool = True) -> FusedLinear:
        """Return a layer of x and states with ``width`` · n outputs."""
        n = self.config.state_size
        return FusedLinear(self.networks, n, width * n, parts, includes_x, self.shares_x)

    def linear_of(self, name: str, first: int) -> StackedLinear:
        """Return a layer of the n rows of a parameter from the first on, without a bias."""
        n = self.config.state_size
        part = Part(f"{self.prefix}{name}", range(first, first + n))
        return StackedLinear(self.networks, n, [part], has_bias=False)


class StackedLayer:
    """One layer of K networks of one state size.

    Args:
        configs: configs of the K networks; networks with the same gates are consecutive.
        prefix: prefix of the names of the layer's parameters.
        requires_grad: for each network, whether the loss depends on the layer's output.
        shares_x: whether streams share their input.
        device: device to compute on.

    Attributes:
        linears: its linear layers.
    """

    def __init__(
        self,
        configs: Sequence[NetworkConfig],
        prefix: str,
        requires_grad: Sequence[bool],
        shares_x: bool,
        device: torch.device,
    ) -> None:
        def state_update_key(k: int) -> Hashable:
            options = configs[k].gated
            needs_state_grad = requires_grad[k] and options.reads_new_state
            needs_previous_state_grad = requires_grad[k] and options.has_previous_state_grad
            return state_options(options), needs_state_grad, needs_previous_state_grad

        def output_key(k: int) -> tuple[ParamValue, ...]:
            options = configs[k].gated
            return *output_options(options), options.has_previous_state_grad, requires_grad[k]

        order = range(len(configs))
        self._state_updates = [
            (rows, StateUpdate(Group(configs[k], prefix, [k, *others], requires_grad[k], shares_x)))
            for rows, (k, *others) in _divide(order, state_update_key)
        ]
        # Outputs need another order of the networks; None where it is the stack's.
        perm = sorted(order, key=output_key)
        self._outputs = [
            (rows, Output(Group(configs[k], prefix, [k, *others], requires_grad[k], shares_x)))
            for rows, (k, *others) in _divide(perm, output_key)
        ]
        self._perm: Tensor | None = None
        self._inverse_perm: Tensor | None = None
        if perm != list(order):
            self._perm = torch.tensor(perm, device=device)  # (K,)
            self._inverse_perm = self._perm.argsort()  # (K,)
        self.linears = [linear for _, update in self._state_updates for linear in update.linears]
        self.linears += [linear for _, output in self._outputs for linear in output.linears]
        self._buffers = BufferCache()

    def forward(self, x: GatheredInput, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one time step.

        Args:
            x: the layer's input, (K, U, n) before gathering.
            h: previous state (K, B, n); not to be modified before the backward pass.

        Returns:
            The output (K, B, n) and the next state (K, B, n), in buffers that the next step reuses.
        """
        u = self._buffers.get("u", h.shape, like=h)
        if len(self._state_updates) == 1:
            gated_h = self._state_updates[0][1].forward(x, h, u)
        else:
            gated_h = self._buffers.get("h'", h.shape, like=h)
            for rows, state_update in self._state_updates:
                gated_h[rows].copy_(state_update.forward(x.select(rows), h[rows], u[rows]))
        y = self._buffers.get("y", h.shape, like=h)
        inputs = GatheredInput(self._permute("x", x.values), x.index)
        new = self._permute("u permuted", u)
        previous = self._permute("h' permuted", gated_h)
        for rows, output in self._outputs:
            output.forward(inputs.select(rows), new[rows], previous[rows], y[rows])
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
        for rows, output in self._outputs:
            output.backward(dy[rows], du[rows], dh[rows], dx[rows])
        du, dh, dx = (
            self._permute(f"{name} permuted", d, inverse=True)
            for name, d in (("du", du), ("dh", dh), ("dx", dx))
        )
        for rows, state_update in self._state_updates:
            state_update.backward(du[rows], dh[rows], dx[rows])
        return dx

    def _permute(self, name: str, x: Tensor, inverse: bool = False) -> Tensor:
        """Return x (K, …) in the order of the outputs, or (inverse) of the stack."""
        perm = self._inverse_perm if inverse else self._perm
        if perm is None:
            return x
        return torch.index_select(x, 0, perm, out=self._buffers.get(name, x.shape, like=x))


class InputGate:
    """[x' ; h'] = σ([x ; h]·W_i + b) ⊙ [x ; h]."""

    def __init__(self, group: Group) -> None:
        self.n = n = group.config.state_size
        self.fused = group.fuse(
            2, _stack(f"{group.prefix}input_gate", 0, range(n), range(n, 2 * n))
        )
        self._buffers = BufferCache()

    def forward(self, x: GatheredInput, h: Tensor) -> tuple[Tensor, Tensor]:
        """Gate the input and the previous state (R, B, n); return x' and h', each (R, B, n)."""
        n = self.n
        self.input = x
        self.x = x.gather(self._buffers)
        self.h = h
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
        n = self.n
        width = d.shape[2]
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
    """Gates and candidate state, for R networks with the same gates."""

    def __init__(self, group: Group) -> None:
        options = group.config.gated
        prefix = group.prefix
        self.n = n = group.config.state_size
        self.needs_state_grad = group.requires_grad and options.reads_new_state
        self.needs_previous_state_grad = group.requires_grad and options.has_previous_state_grad
        self.input_gate = InputGate(group) if options.input_gate else None
        gates = ["state_gate"] * options.state_gate + ["forget_gate"] * options.forget_gate
        self.state_gate = options.state_gate
        self.forget_gate = options.forget_gate
        self.columns = {name: slice(n * i, n * (i + 1)) for i, name in enumerate(gates, start=1)}
        parts = [
            part
            for i, name in enumerate(("candidate", *gates))
            for part in _stack(f"{prefix}{name}", n * i, range(n), range(n, 2 * n))
        ]
        # After an input gate streams no longer share their input.
        self.fused = group.fuse(1 + len(gates), parts, includes_x=not options.input_gate)
        self.candidate_linears = {
            name: group.linear_of(name, 2 * n) for name in gates if options.gates_read_candidate
        }
        of_input_gate = self.input_gate.fused.linears if self.input_gate else []
        self.linears = [*of_input_gate, *self.fused.linears, *self.candidate_linears.values()]
        self._buffers = BufferCache()

    def forward(self, x: GatheredInput, h: Tensor, out: Tensor) -> Tensor:
        """Compute the new state from the input and the previous state h; return h' (R, B, n).

        Args:
            x: the layer's input.
            h: (R, B, n)
            out: output (R, B, n): the new state.
        """
        n = self.n
        self.h = gated_h = h
        if self.input_gate is None:  # h itself: by way of a copy it would get gradients of zero
            p = self.fused.forward(x, h)  # (R, B, n to 3n)
        else:
            gated_x, gated_h = self.input_gate.forward(x, h)
            p = self.fused.forward(x, gated_x, gated_h)  # (R, B, n to 3n)

        # tanh(a) = 2σ(2a) − 1, in one pass with the gates.
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
            dc = self.fused.linears[0].input_grad(2 * self.n)
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


class Output:
    """Read-out and output gate, for R networks that read the same states."""

    def __init__(self, group: Group) -> None:
        options = group.config.gated
        prefix = group.prefix
        self.n = n = group.config.state_size
        self.requires_grad = group.requires_grad
        self.reads_new_state = options.reads_new_state
        self.reads_previous_state = options.reads_previous_state
        self.has_previous_state_grad = options.has_previous_state_grad
        states = n * (options.reads_new_state + options.reads_previous_state)
        # A parameter's rows are ordered o, u, h', x. Here x comes first, and what needs no gradient
        # comes last; the rows of o are a layer of their own.
        parts = []
        for column, first, name in ((0, 0, "read_out"), (n, n, "output_gate")):
            rows_of_x = [range(first + states, first + states + n)] * options.residual
            if name == "read_out" or options.output_gate:
                parts += _stack(prefix + name, column, *rows_of_x, range(first, first + states))
        self.fused = group.fuse(1 + options.output_gate, parts, includes_x=options.residual)
        self.gate_linear = group.linear_of("output_gate", 0) if options.output_gate else None
        self.linears = [*self.fused.linears, *([self.gate_linear] if self.gate_linear else [])]
        self._buffers = BufferCache()

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
        else:
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
            do = d[:, :, :n]
            da = d[:, :, n:]
            torch.mul(dy, self.o, out=do)
            _ops.sigmoid_backward.grad_input(do, self.gate, grad_input=da)
            torch.mul(dy, self.gate, out=do)
            self.gate_linear.backward(da)
            do.add_(self.gate_linear.input_grad(n))
        self.fused.backward(d)
        d_x, d_states = self.fused.input_grads(self.reads_new_state + self.has_previous_state_grad)
        dx.zero_() if d_x is None else dx.copy_(d_x)
        if d_states is None:
            return
        if self.reads_new_state:
            du.copy_(d_states[:, :, :n])
        if self.has_previous_state_grad:
            dh.copy_(d_states[:, :, n * self.reads_new_state :])


def _divide(
    networks: Sequence[int], key: Callable[[int], Hashable]
) -> Iterator[tuple[slice, list[int]]]:
    """Yield the positions of neighbours with the same key, and the neighbours."""
    first = 0
    for _, same in groupby(networks, key):
        neighbours = list(same)
        yield slice(first, first + len(neighbours)), neighbours
        first += len(neighbours)


def _stack(param: str, column: int, *rows: range) -> list[Part]:
    """Return parts that lie below one another in a fused weight."""
    parts: list[Part] = []
    for selected in rows:
        parts.append(Part(param, selected, sum(len(part.rows) for part in parts), column))
    return parts
