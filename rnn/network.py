"""A population of byte-level language models trained in lockstep; one network is K = 1.

K is the number of members, B the number of lanes, n the state size, V the size of the vocabulary.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rnn.architecture import BYTES, Member
from rnn.cell import Cell, Product, Weights

Precision = Literal["fp32", "bf16", "fp64"]
"""Of the arithmetic: ``bf16`` takes products in bfloat16 and all else in float32; ``fp64`` is for
checks of exactness."""


def initial_weights(member: Member, seed: int, vocabulary_size: int = BYTES) -> Weights:
    """Draw a member's weights as PyTorch's ``Linear`` does: U(±1/√inputs), biases too.

    They depend on the seed, the architecture and the replicate alone, so that a member starts the
    same whoever it is trained with. They are drawn in float64, and are the same numbers, rounded,
    in every precision.

    Returns:
        For each of the architecture's products its weight (inputs, outputs) and bias (outputs,).
    """
    name = f"{seed}/{member.architecture.key}/{member.replicate}"
    # 63 bits: what every generator of torch takes.
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(digest)
    weights = {}
    for product, (inputs, outputs) in member.architecture.products(vocabulary_size).items():
        bound = 1 / math.sqrt(inputs)
        drawn = torch.rand(inputs + 1, outputs, generator=generator, dtype=torch.float64)
        drawn = (2 * drawn - 1) * bound
        weights[product] = (drawn[:-1], drawn[-1])
    return weights


class Population(nn.Module):
    """K networks of one depth and one state size, whatever their switches, as one program.

    Args:
        members: the K members.
        seed: of their initial weights.
        precision: of the arithmetic.
        vocabulary_size: V.

    Raises:
        ValueError: if the members differ in layers, state size or ``gate_inputs``.
    """

    def __init__(
        self,
        members: Sequence[Member],
        seed: int,
        precision: Precision = "fp32",
        vocabulary_size: int = BYTES,
    ) -> None:
        super().__init__()
        architectures = [member.architecture for member in members]
        shapes = {(a.layers, a.state_size, a.gate_inputs) for a in architectures}
        if len(shapes) != 1:
            raise ValueError(
                f"members have the shapes {sorted(shapes)}; allowed: one shape (layers, "
                "state size, gate inputs); train the others in a population of their own"
            )
        self.members = tuple(members)
        self.layers, self.state_size, _ = shapes.pop()
        self.vocabulary_size = vocabulary_size

        dtype = torch.float64 if precision == "fp64" else torch.float32
        mixed = precision == "bf16"
        weights = [
            {
                name: (weight.to(dtype), bias.to(dtype))
                for name, (weight, bias) in initial_weights(member, seed, vocabulary_size).items()
            }
            for member in members
        ]
        self.embedding = Product("embedding", weights)
        self.cells = nn.ModuleList(
            Cell(architectures, [_under(f"layers.{index}.", w) for w in weights], mixed)
            for index in range(self.layers)
        )
        self.head = Product("head", weights, mixed)
        # Member k's embedding stands in rows k·V … (k+1)·V of one table.
        first_rows = torch.arange(len(members))[:, None] * vocabulary_size  # (K, 1)
        self.register_buffer("first_rows", first_rows, persistent=False)
        self.first_rows: Tensor

    def initial_state(self, lanes: int) -> list[Tensor]:
        """Return the zero states at a sequence's start, for each layer (K, B, n)."""
        shape = (len(self.members), lanes, self.state_size)
        weight = self.embedding.weight
        return [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in self.cells]

    def forward(self, symbols: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance all members by one time step over the same text.

        Args:
            symbols: (B,), integers below V, the symbol that each lane reads.
            states: for each layer (K, B, n).

        Returns:
            The logits of each lane's next symbol (K, B, V), and the next states, which carry no
            gradient.
        """
        table = self.embedding.weight.flatten(0, 1)  # (K·V, n)
        x = nn.functional.embedding(self.first_rows + symbols, table) + self.embedding.bias
        # x: (K, B, n)
        next_states = []
        for cell, h in zip(self.cells, states, strict=True):
            x, u = cell(x, h)  # (K, B, n) both
            next_states.append(u)
        return self.head(x), next_states

    def loss(self, logits: Tensor, symbols: Tensor) -> Tensor:
        """Return the cross-entropy of the symbols that came, in nats.

        Args:
            logits: (K, B, V)
            symbols: (B,)

        Returns:
            (K, B)
        """
        k, b, v = logits.shape
        targets = symbols.expand(k, b).reshape(-1)  # (K·B,)
        losses = nn.functional.cross_entropy(logits.view(-1, v), targets, reduction="none")
        return losses.view(k, b)


def _under(prefix: str, weights: Weights) -> Weights:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
