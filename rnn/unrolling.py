"""The built-in cells over several time steps, in fewer products than one step after another.

What is here computes what T calls of a cell's ``forward`` compute. T is the number of time steps, B
the number of streams, n the state size.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rnn.cells import ElmanCell, GRUCell, LSTMCell
from rnn.config import BYTES, NetworkConfig, TaskSpec
from rnn.network import NamedTensors, network_shapes
from rnn.parameters import Segment


class FusedGatedCell(nn.Module):
    """A :class:`rnn.cells.GatedCell` whose maps of the same inputs are one matrix.

    Args:
        config: options and state size.

    Its parameters, with their biases ``bias_of_…``, are

    - ``of_x`` (2n, 2n): W_i,
    - ``of_c`` (2n, n to 3n): the rows of W_u, W_z and W_f that read c', side by side,
    - ``state_gate_of_u``, ``forget_gate_of_u`` (n, n): their rows that read u, if they do,
    - ``of_r`` (n to 3n, n or 2n): W_o and the rows of W_y that read r,
    - ``of_o`` (n, n): the rows of W_y that read o.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.options = config.gated
        prefix = "layers.0."
        # Leaves of autograd: to join matrices inside of it costs as much as fewer products save.
        _, fused = place_fused(replace(config, layers=1), BYTES, Segment.unlimited())
        for name, view in fused.items():
            if name.startswith(prefix):
                parameter = nn.Parameter(torch.empty(view.shape))
                self.register_parameter(name.removeprefix(prefix), parameter)

    def unroll(self, xs: Tensor, h: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
        """Advance by T steps.

        Args:
            xs: inputs (T, B, n).
            h: state (B, n) before the first step.
            outputs: U ≤ T, the number of last steps of which to compute outputs.

        Returns:
            The outputs (U, B, n) of the last steps, and the last state (B, n).
        """
        options = self.options
        n = h.shape[1]
        weights = {name: _as_factor(weight) for name, weight in self.named_parameters()}
        new_states = []
        gated_states = []
        for x in xs:
            c = torch.cat((x, h), 1)  # (B, 2n)
            gated_h = h  # (B, n)
            if options.input_gate:
                c = _multiply(c, weights["of_x"], weights["bias_of_x"]).sigmoid() * c  # (B, 2n)
                gated_h = c[:, n:]  # (B, n)
            products = _multiply(c, weights["of_c"], weights["bias_of_c"])  # (B, n to 3n)
            u, *gates = products.chunk(
                1 + options.state_gate + options.forget_gate, 1
            )  # (B, n) each
            u = u.tanh()  # (B, n)
            if options.state_gate:
                z = _gate(gates[0], weights.get("state_gate_of_u"), u)  # (B, n)
                u = torch.lerp(h, u, z)  # (B, n), z ⊙ u + (1 − z) ⊙ h
            if options.forget_gate:
                f = _gate(gates[-1], weights.get("forget_gate_of_u"), u)  # (B, n)
                u = f * u  # (B, n)
            h = u  # (B, n)
            new_states.append(h)
            gated_states.append(gated_h)

        # The states do not depend on the read-out: it is one product for all steps.
        steps = slice(len(xs) - outputs, None)
        parts = []
        if options.reads_new_state:
            parts.append(torch.stack(new_states[steps]))  # (U, B, n)
        if options.reads_previous_state:
            parts.append(torch.stack(gated_states[steps]))  # (U, B, n)
        if options.residual:
            parts.append(xs[steps])  # (U, B, n)
        r = torch.cat(parts, 2)  # (U, B, n to 3n)
        products = _multiply(r, weights["of_r"], weights["bias_of_r"])  # (U, B, n or 2n)
        o, *gates = products.chunk(1 + options.output_gate, 2)  # (U, B, n) each
        y = _gate(gates[0], weights["of_o"], o) * o if options.output_gate else functional.silu(o)
        return y, h  # (U, B, n), (B, n)


def place_fused(
    config: NetworkConfig, spec: TaskSpec, segment: Segment
) -> tuple[NamedTensors, NamedTensors]:
    """Place the tensors of a gated network; see :func:`rnn.parameters.place_stored`.

    Maps of the same inputs are side by side in one block (inputs, outputs). Where one of them reads
    more than the others, a part of the block is unused.

    Returns:
        The views by their stored names, and those of layers of :class:`FusedGatedCell`.
    """
    options = config.gated
    n = config.state_size
    parameters = network_shapes(config, spec).parameters
    shapes = network_shapes(config, spec).linear_maps
    stored: NamedTensors = {
        name: segment.take(*shape)
        for name, shape in parameters.items()
        if name.startswith("norms.")
    }
    fused: NamedTensors = {}

    def join(maps: Sequence[str], first: int = 0) -> tuple[Tensor, Tensor]:
        """Place maps side by side; those with fewer inputs than others begin at row ``first``."""
        rows = max(shapes[name][0] for name in maps)
        width = sum(shapes[name][1] for name in maps)
        block = segment.take(rows, width)
        bias = segment.take(width)
        column = 0
        for name in maps:
            inputs, outputs = shapes[name]
            begin = 0 if inputs == rows else first
            columns = slice(column, column + outputs)
            stored[f"{name}.weight"] = block[..., begin : begin + inputs, columns].mT
            stored[f"{name}.bias"] = bias[..., columns]
            column += outputs
        return block, bias

    def of_layer(index: int, *names: str) -> list[str]:
        own_names = [f"layers.{index}.{name}" for name in names]
        return [name for name in own_names if name in shapes]

    join(["embedding"])
    for index in range(config.layers):
        layer = f"layers.{index}."
        if options.input_gate:
            fused[f"{layer}of_x"], fused[f"{layer}bias_of_x"] = join(of_layer(index, "input_gate"))
        block, bias = join(of_layer(index, "candidate", "state_gate", "forget_gate"))
        fused[f"{layer}of_c"] = block[..., : 2 * n, :]
        fused[f"{layer}bias_of_c"] = bias
        for column, name in enumerate(of_layer(index, "state_gate", "forget_gate"), start=1):
            if options.gate_inputs == "candidate":
                columns = slice(n * column, n * (column + 1))
                fused[f"{name}_of_u"] = block[..., 2 * n :, columns]
        block, bias = join(of_layer(index, "read_out", "output_gate"), first=n)
        fused[f"{layer}bias_of_r"] = bias
        if options.output_gate:
            fused[f"{layer}of_o"] = block[..., :n, n:]
            block = block[..., n:, :]
        fused[f"{layer}of_r"] = block
    join(["head"])
    outside = {name: view for name, view in stored.items() if not name.startswith("layers.")}
    return stored, fused | outside


def unroll_baseline(
    cell: ElmanCell | GRUCell | LSTMCell, xs: Tensor, state: Any, outputs: int
) -> tuple[Tensor, Any]:
    """Advance a baseline cell by T steps, with one product of all inputs.

    Arguments and results are those of :meth:`FusedGatedCell.unroll`.
    """
    # A backward pass of the GRU by hand was a tenth faster, as memory that is kept is as well.
    ys = []
    for wx in cell.input(xs).to(xs.dtype):  # (B, n to 4n)
        y, state = cell.step(wx, state)  # (B, n)
        ys.append(y)
    return torch.stack(ys[len(ys) - outputs :]), state


UNROLLED: dict[type[nn.Module], Callable[..., tuple[Tensor, Any]]] = {
    FusedGatedCell: FusedGatedCell.unroll,
    ElmanCell: unroll_baseline,
    GRUCell: unroll_baseline,
    LSTMCell: unroll_baseline,
}
"""Functions that advance a layer by several steps, by its class."""


def _as_factor(weight: Tensor) -> Tensor:
    """Return a weight in the dtype of products, cast once for all steps."""
    kind = weight.device.type
    return weight.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else weight


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x·W + b in the dtype of x."""
    return functional.linear(x, weight.T, bias).to(x.dtype)


def _gate(gate_input: Tensor, weight: Tensor | None, u: Tensor) -> Tensor:
    """Return the value of a gate that reads u by a weight, or does not."""
    if weight is not None:
        gate_input = gate_input + _multiply(u, weight)
    return gate_input.sigmoid()
