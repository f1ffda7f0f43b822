"""One recurrent layer of K networks, their switches mixed, one time step at a time.

The letters are those of the equations in :class:`Cell`; K is the number of members (networks
trained in lockstep), B the number of lanes (texts read side by side), n the state size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rnn.architecture import Architecture

Weights = dict[str, tuple[Tensor, Tensor]]
"""A network's affine maps: a name to a weight (inputs, outputs) and a bias (outputs,)."""


class Product(nn.Module):
    """The affine map x·W + b of those members that have it, each with weights of its own.

    Args:
        name: the map's key in each member's weights.
        members: the weights of all K members; those without ``name`` have no such map.
        mixed: take the product in bfloat16, and the sum in the weights' own type.

    Attributes:
        weight: (R, inputs, outputs), R the number of members that have the map.
        bias: (R, 1, outputs)
    """

    def __init__(self, name: str, members: Sequence[Weights], mixed: bool = False) -> None:
        super().__init__()
        self.rows = [k for k, weights in enumerate(members) if name in weights]
        self.mixed = mixed
        self.weight = nn.Parameter(torch.stack([members[k][name][0] for k in self.rows]))
        self.bias = nn.Parameter(torch.stack([members[k][name][1][None] for k in self.rows]))
        # None where every member has the map: the case of one network alone needs no indexing.
        index = None if len(self.rows) == len(members) else torch.tensor(self.rows)
        self.register_buffer("index", index, persistent=False)
        self.index: Tensor | None

    def take(self, x: Tensor) -> Tensor:
        """Return the rows of x (K, …) that belong to the members with this map: (R, …)."""
        return x if self.index is None else x.index_select(0, self.index)

    def put(self, rows: Tensor, x: Tensor) -> Tensor:
        """Return x (K, …) with the rows of the members with this map replaced by rows (R, …)."""
        return rows if self.index is None else x.index_copy(0, self.index, rows)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (R, B, inputs) to (R, B, outputs)."""
        if self.mixed:
            product = torch.bmm(x.bfloat16(), self.weight.bfloat16())  # (R, B, outputs)
            return product.to(self.bias.dtype) + self.bias  # (R, B, outputs)
        return torch.baddbmm(self.bias, x, self.weight)  # (R, B, outputs)


class ReadOut(nn.Module):
    """What a layer hands on, for those members (rows, R of the K) that read the same things."""

    def __init__(
        self,
        architecture: Architecture,
        rows: Sequence[int],
        members: Sequence[Weights],
        mixed: bool = False,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.rows: Tensor
        members = [members[k] for k in rows]
        self.read_out = Product("read_out", members, mixed)
        self.output_gate = (
            Product("output_gate", members, mixed) if architecture.output_gate else None
        )

    def forward(self, u: Tensor, h: Tensor, x: Tensor) -> Tensor:
        """Read the new state u, the gated previous state h' and the input x, each (K, B, n).

        Returns:
            (R, B, n)
        """
        a = self.architecture
        reads = ((u, a.reads_new), (h, a.reads_old), (x, a.residual))
        r = torch.cat([part for part, read in reads if read], dim=2)  # (K, B, n to 3n)
        if len(self.rows) < len(r):
            r = r.index_select(0, self.rows)  # (R, B, n to 3n)
        o: Tensor = self.read_out(r)  # (R, B, n)
        if self.output_gate is None:
            return o * torch.sigmoid(o)  # (R, B, n)
        y = self.output_gate(torch.cat((o, r), dim=2))  # (R, B, n)
        return torch.sigmoid(y) * o  # (R, B, n)


class Cell(nn.Module):
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
    forget gate sees what the state gate made. The output is y, the next state u, detached: no
    gradient ever crosses a time step.

    Args:
        architectures: the K members' architectures.
        members: the K members' weights of this layer, under the names of
            :meth:`rnn.architecture.Architecture.products` without their prefix.
        mixed: take the products in bfloat16.
    """

    def __init__(
        self,
        architectures: Sequence[Architecture],
        members: Sequence[Weights],
        mixed: bool = False,
    ) -> None:
        super().__init__()
        self.gates_see_candidate = architectures[0].gate_inputs == "candidate"

        def product(name: str) -> Product | None:
            owned = any(name in weights for weights in members)
            return Product(name, members, mixed) if owned else None

        self.input_gate = product("input_gate")
        self.candidate = Product("candidate", members, mixed)
        self.state_gate = product("state_gate")
        self.forget_gate = product("forget_gate")

        # Members that read alike share one tensor program; the others have each their own.
        alike: dict[tuple[object, ...], list[int]] = {}
        for k, a in enumerate(architectures):
            alike.setdefault((a.state_source, a.residual, a.output_gate), []).append(k)
        self.read_outs = nn.ModuleList(
            ReadOut(architectures[rows[0]], rows, members, mixed) for rows in alike.values()
        )
        order = torch.tensor([k for rows in alike.values() for k in rows]).argsort()
        self.register_buffer("order", order, persistent=False)  # (K,)
        self.order: Tensor

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one time step.

        Args:
            x: (K, B, n), the layer's input.
            h: (K, B, n), its previous state.

        Returns:
            The output (K, B, n) and the next state (K, B, n), which carries no gradient.
        """
        n = h.shape[2]
        c, gated_h = torch.cat((x, h), dim=2), h  # (K, B, 2n), (K, B, n)
        if (gate := self.input_gate) is not None:
            own = gate.take(c)  # (R, B, 2n)
            c = gate.put(torch.sigmoid(gate(own)) * own, c)  # (K, B, 2n)
            gated_h = c[:, :, n:]  # (K, B, n)

        u = torch.tanh(self.candidate(c))  # (K, B, n)
        if (gate := self.state_gate) is not None:
            z = torch.sigmoid(gate(gate.take(self._gate_input(c, u))))  # (R, B, n)
            u = gate.put(z * gate.take(u) + (1 - z) * gate.take(h), u)  # (K, B, n)
        if (gate := self.forget_gate) is not None:
            f = torch.sigmoid(gate(gate.take(self._gate_input(c, u))))  # (R, B, n)
            u = gate.put(f * gate.take(u), u)  # (K, B, n)

        outputs = [read_out(u, gated_h, x) for read_out in self.read_outs]  # each (R, B, n)
        # Alike as all of them are in a network alone, nothing needs to be brought into order.
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs)[self.order]  # (K, B, n)
        return y, u.detach()

    def _gate_input(self, c: Tensor, u: Tensor) -> Tensor:
        return torch.cat((c, u), dim=2) if self.gates_see_candidate else c  # (K, B, 2n or 3n)
