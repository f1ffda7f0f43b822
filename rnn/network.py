"""A population of byte-level language models trained in lockstep; one network is K = 1.

K is the number of members, B the number of lanes, n the state size, V the size of the vocabulary,
U the number of distinct symbols that the lanes read at a step.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from rnn.affine import Affine, Block, Input, Workspace
from rnn.architecture import BYTES, Architecture
from rnn.cell import Cell
from rnn.known_cell import KnownCell
from rnn.member import Member
from rnn.parameters import Parameters, Weights
from rnn.precision import Precision, prepare
from rnn.symbols import Symbols


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


class Population:
    """K networks of one depth and one state size, whatever their switches, as one program.

    Args:
        members: the K members.
        seed: of their initial weights.
        precision: of the arithmetic.
        vocabulary_size: V.
        device: where to compute.
        weights: of members, in place of the initial ones.
        fixed: whether every step is to be the same operations on the same memory, whatever is read,
            as a graph that is recorded once must be. Otherwise what many lanes have in common is
            worked out once; by default where that is worth the trouble: for float32 products of
            large networks on a processor.

    Attributes:
        members: those with the same switches one after another, whatever order they came in.
        parameters: their weights.

    Raises:
        ValueError: if the members differ in layers, state size or ``gate_inputs``, or one of them
            is of another cell than ours, or has a gradient that crosses a time step.
    """

    def __init__(
        self,
        members: Sequence[Member],
        seed: int,
        precision: Precision = "fp32",
        vocabulary_size: int = BYTES,
        device: torch.device | None = None,
        weights: Mapping[Member, Weights] | None = None,
        fixed: bool | None = None,
    ) -> None:
        self.members = tuple(sorted(members, key=_alike))
        architectures = [_gated(member) for member in self.members]
        shapes = {(a.layers, a.state_size, a.gate_inputs) for a in architectures}
        if len(shapes) != 1:
            raise ValueError(
                f"members have the shapes {sorted(shapes)}; allowed: one shape (layers, "
                "state size, gate inputs); train the others in a population of their own"
            )
        self.seed, self.precision = seed, precision
        self.device = device or torch.device("cpu")
        self.layers, self.state_size, _ = shapes.pop()
        sharing_pays = self.device.type == "cpu" and precision != "bf16" and self.state_size > 64
        self.fixed = not sharing_pays if fixed is None else fixed
        self.vocabulary_size = vocabulary_size
        prepare(precision, self.device)

        everyone, n = range(len(members)), self.state_size
        self._embedding = _whole("embedding", everyone, vocabulary_size, n)
        self._head = _whole("head", everyone, n, vocabulary_size)
        learns = [True] * len(members)
        self.cells: list[Cell] = []
        for layer in reversed(range(self.layers)):
            # In the first layer x stands for a symbol, and many lanes have the same.
            repeats = layer == 0 and not self.fixed
            self.cells.insert(0, Cell(architectures, learns, repeats, self.device))
            learns = [
                learning and a.passes_input
                for a, learning in zip(architectures, learns, strict=True)
            ]
        self.parameters = Parameters(
            self.members,
            [*self._maps(), ("", self._head)],
            self._embedding,
            torch.float64 if precision == "fp64" else torch.float32,
            precision == "bf16",
            self.device,
            vocabulary_size,
        )
        for k, member in enumerate(self.members):
            own = (weights or {}).get(member) or initial_weights(member, seed, vocabulary_size)
            self.parameters.put(k, self.parameters.values, own)
        self._space = Workspace()

    def of(self, weights: Mapping[Member, Weights]) -> "Population":
        """Return a population like this one of these members and their weights."""
        return Population(
            list(weights),
            self.seed,
            self.precision,
            self.vocabulary_size,
            self.device,
            weights,
            self.fixed,
        )

    def _maps(self) -> Iterator[tuple[str, Affine]]:
        for layer, cell in enumerate(self.cells):
            for affine in cell.maps():
                yield f"layers.{layer}.", affine

    def initial_states(self, lanes: int) -> list[Tensor]:
        """Return the zero states at a sequence's start, for each layer (K, B, n)."""
        shape = (len(self.members), lanes, self.state_size)
        return [self.parameters.values.new_zeros(shape) for _ in self.cells]

    def learning_states(self, lanes: int) -> list[Tensor]:
        """Return what a sequence's training begins with, all zero: the states, and no more."""
        return self.initial_states(lanes)

    def symbols(self, symbols: Tensor) -> Symbols:
        """Return what lanes with these symbols (B,) read, as this population takes it."""
        return Symbols(symbols) if self.fixed else Symbols.of(symbols)

    def forward(self, reads: Symbols, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance all members by one time step over the same text.

        Args:
            reads: the symbols.
            states: for each layer (K, B, n).

        Returns:
            The logits of each lane's next symbol (K, B, V), and the next states; both last until
            the next step.
        """
        table = self._embedding
        shape = (len(self.members), len(reads.distinct), self.state_size)
        values = self._space("x", shape, like=table.weight)
        torch.index_select(table.weight, 1, reads.distinct, out=values).add_(table.bias)
        x = Input(values, reads.rows)  # (K, U, n)
        next_states = []
        for cell, h in zip(self.cells, states, strict=True):
            y, u = cell.forward(x, h)  # (K, B, n) both
            x = Input(y)
            next_states.append(u)
        return self._head.forward(x.values), next_states

    def losses(self, logits: Tensor, symbols: Tensor) -> Tensor:
        """Return the cross-entropy of the symbols that came, in nats.

        Args:
            logits: (K, B, V)
            symbols: (B,)

        Returns:
            (K, B)
        """
        losses, _ = self._losses(logits, symbols)
        return losses

    def learn(
        self, reads: Symbols, foretells: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step, and take the gradients of its losses; see :meth:`forward`.

        Args:
            reads: the symbols.
            foretells: (B,), the symbols that come next.
            states: for each layer (K, B, n); no gradient goes further back.

        Returns:
            The members' mean losses over the lanes (K,), in nats, and the next states.
        """
        logits, next_states = self.forward(reads, states)
        losses, d = self._losses(logits, foretells)
        # The gradient of the mean cross-entropy: (softmax − one-hot) / B.
        targets = foretells[None, :, None].expand(len(d), -1, 1)
        d.scatter_add_(2, targets, d.new_full((), -1.0).expand(targets.shape))
        self._head.backward(d.mul_(1 / d.shape[1]))
        d = self._head.input_gradient(self.state_size)  # (K, B, n)
        for layer, cell in reversed(list(enumerate(self.cells))):
            distinct = len(reads.distinct) if layer == 0 else d.shape[1]
            d = cell.backward(d.to(losses.dtype), distinct)  # (K, U or B, n)
        self._learn_embedding(reads.distinct, d)
        return losses.mean(1), next_states

    def _learn_embedding(self, distinct: Tensor, d: Tensor) -> None:
        table = self._embedding
        torch.sum(d, 1, keepdim=True, out=table.bias_gradient)
        if self.device.type == "cpu":
            table.weight_gradient.zero_().index_add_(1, distinct, d)
            return
        # A GPU adds in whatever order its threads come; a product repeats bit for bit.
        vocabulary = torch.arange(self.vocabulary_size, device=self.device)
        one_hot = (vocabulary[:, None] == distinct).to(d.dtype)  # (V, U)
        torch.matmul(one_hot, d, out=table.weight_gradient)

    def _losses(self, logits: Tensor, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropies (K, B), and the probabilities (K, B, V)."""
        p = self._space("p", logits.shape, like=logits)
        torch.ops.aten._softmax.out(logits, 2, False, out=p)
        # The likeliest symbol has the probability 1 / Σ exp(logit − greatest logit).
        log_sum = logits.amax(2) - p.amax(2).log()  # (K, B)
        targets = symbols[None, :, None].expand(len(logits), -1, 1)
        return log_sum - logits.gather(2, targets)[:, :, 0], p


def member_bytes(
    member: Member,
    lanes: int,
    precision: Precision,
    vocabulary_size: int = BYTES,
) -> int:
    """Estimate the memory that a network takes in training, from above.

    Args:
        member: the network; the longer its gradient's window is, the more is kept.
        lanes: B.
        precision: of the arithmetic.
        vocabulary_size: V.
    """
    size = 8 if precision == "fp64" else 4
    parameters = member.architecture.parameter_count(vocabulary_size)
    # Weights, their mean, gradients, two moments, and the low ones of weights and gradients;
    # autograd's own gradients.
    unrolled = isinstance(member.architecture, KnownCell) or member.gradient_window > 1
    weights = parameters * ((5 + unrolled) * size + 2 * 2 * (precision == "bf16"))
    # All that a pass keeps or needs meanwhile: some numbers for each input and output.
    numbers = sum(
        (4 * inputs + 6 * outputs) * (member.gradient_window if name.startswith("layers.") else 1)
        for name, (inputs, outputs) in member.architecture.products(vocabulary_size).items()
    )
    return weights + lanes * numbers * size


def _gated(member: Member) -> Architecture:
    """Return the architecture of a member that a population can have."""
    architecture = member.architecture
    if isinstance(architecture, KnownCell) or member.gradient_window != 1:
        raise ValueError(
            f"a member is a {architecture.label} with a gradient window of "
            f"{member.gradient_window}; allowed: our own cell, with 1; train it by itself "
            "(rnn.unrolled)"
        )
    return architecture


def _alike(member: Member) -> tuple[object, ...]:
    a = _gated(member)
    gates = a.input_gate, a.state_gate, a.forget_gate
    return *gates, not a.reads_new, not a.reads_old, a.residual, a.output_gate, member.replicate


def _whole(product: str, members: range, inputs: int, outputs: int) -> Affine:
    return Affine(members, inputs, outputs, [Block(product, (0, inputs))])
