"""A population of byte-level language models trained in lockstep; one network is K = 1.

K is the number of members, B the number of lanes, n the state size, V the size of the vocabulary,
U the number of distinct symbols that the lanes read at a step.
"""
# TODO-MERGE What the lanes read at one step, told by the symbols that occur. B is the number of
# lanes, U the number of distinct symbols, V the size of the vocabulary.

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnn.config import BYTE_VOCAB_SIZE, BaselineConfig, GatedConfig, TrialConfig
from rnn.stacked.flat_parameters import FlatParameters, NamedTensors
from rnn.stacked.layer import StackedLayer
from rnn.stacked.linear import BufferCache, GatheredInput, StackedLinear, WeightSlice
from rnn.training.precision import Precision, configure_matmul


def initial_weights(
    config: TrialConfig, seed: int, vocab_size: int = BYTE_VOCAB_SIZE
) -> NamedTensors:
    """Draw a member's weights as PyTorch's ``Linear`` does: U(±1/√inputs), biases too.

    They depend on the seed, the architecture and the replicate alone, so that a member starts the
    same whoever it is trained with. They are drawn in float64, and are the same numbers, rounded,
    in every precision.

    Returns:
        For each of the architecture's products its weight (inputs, outputs) and bias (outputs,).
    """
    name = f"{seed}/{config.architecture.key}/{config.replicate}"
    # 63 bits: what every generator of torch takes.
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(digest)
    weights = {}
    for product, (inputs, outputs) in config.architecture.param_shapes(vocab_size).items():
        bound = 1 / math.sqrt(inputs)
        drawn = torch.rand(inputs + 1, outputs, generator=generator, dtype=torch.float64)
        drawn = (2 * drawn - 1) * bound
        weights[product] = (drawn[:-1], drawn[-1])
    return weights


_GRANULE = 16
"""Distinct symbols are counted up to a multiple of this, so that products have but few shapes."""


class UniqueTokens(NamedTuple):
    """What the lanes read at one step.

    Attributes:
        distinct: (U,) the symbols that are read; one may stand there more than once.
        rows: (B,) for each lane the one of the U that it reads; None if lane b reads the b-th.
    """

    distinct: Tensor
    rows: Tensor | None = None

    @classmethod
    def of(cls, tokens: Tensor) -> "UniqueTokens":
        """Return what lanes with these symbols (B,) read: most symbols are read by many lanes."""
        occurs = torch.bincount(tokens) > 0  # (at most V,)
        distinct = occurs.nonzero()[:, 0]
        rows = (occurs.cumsum(0) - 1)[tokens.long()]
        over = -len(distinct) % _GRANULE
        return cls(torch.cat((distinct, distinct[:1].expand(over))), rows)


class NetworkStack:
    """K networks of one depth and one state size, whatever their switches, as one program.

    Args:
        configs: the K members.
        seed: of their initial weights.
        precision: of the arithmetic.
        vocab_size: V.
        device: where to compute.
        weights: of members, in place of the initial ones.
        static_graph: whether every step is to be the same operations on the same memory,
            whatever is read,
            as a graph that is recorded once must be. Otherwise what many lanes have in common is
            worked out once; by default where that is worth the trouble: for float32 products of
            large networks on a processor.

    Attributes:
        configs: those with the same switches one after another, whatever order they came in.
        parameters: their weights.

    Raises:
        ValueError: if the members differ in layers, state size or ``gate_inputs``, or one of them
            is of another cell than ours, or has a gradient that crosses a time step.
    """

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        seed: int,
        precision: Precision = "fp32",
        vocab_size: int = BYTE_VOCAB_SIZE,
        device: torch.device | None = None,
        weights: Mapping[TrialConfig, NamedTensors] | None = None,
        static_graph: bool | None = None,
    ) -> None:
        self.configs = tuple(sorted(configs, key=_alike))
        architectures = [_gated(config) for config in self.configs]
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
        self.static_graph = not sharing_pays if static_graph is None else static_graph
        self.vocab_size = vocab_size
        configure_matmul(precision, self.device)

        everyone, n = range(len(configs)), self.state_size
        self._embedding = _whole("embedding", everyone, vocab_size, n)
        self._head = _whole("head", everyone, n, vocab_size)
        learns = [True] * len(configs)
        self.cells: list[StackedLayer] = []
        for layer in reversed(range(self.layers)):
            # In the first layer x stands for a symbol, and many lanes have the same.
            repeats = layer == 0 and not self.static_graph
            self.cells.insert(0, StackedLayer(architectures, learns, repeats, self.device))
            learns = [
                learning and a.output_depends_on_input
                for a, learning in zip(architectures, learns, strict=True)
            ]
        self.parameters = FlatParameters(
            self.configs,
            [*self._maps(), ("", self._head)],
            self._embedding,
            torch.float64 if precision == "fp64" else torch.float32,
            precision == "bf16",
            self.device,
            vocab_size,
        )
        for k, config in enumerate(self.configs):
            own = (weights or {}).get(config) or initial_weights(config, seed, vocab_size)
            self.parameters.put(k, self.parameters.values, own)
        self._space = BufferCache()

    def of(self, weights: Mapping[TrialConfig, NamedTensors]) -> "NetworkStack":
        """Return a population like this one of these members and their weights."""
        return NetworkStack(
            list(weights),
            self.seed,
            self.precision,
            self.vocab_size,
            self.device,
            weights,
            self.static_graph,
        )

    def _maps(self) -> Iterator[tuple[str, StackedLinear]]:
        for layer, cell in enumerate(self.cells):
            for affine in cell.maps():
                yield f"layers.{layer}.", affine

    def init_state(self, streams: int) -> list[Tensor]:
        """Return the zero states at a sequence's start, for each layer (K, B, n)."""
        shape = (len(self.configs), streams, self.state_size)
        return [self.parameters.values.new_zeros(shape) for _ in self.cells]

    def init_training_state(self, streams: int) -> list[Tensor]:
        """Return what a sequence's training begins with, all zero: the states, and no more."""
        return self.init_state(streams)

    def prepare_inputs(self, tokens: Tensor) -> UniqueTokens:
        """Return what lanes with these symbols (B,) read, as this population takes it."""
        return UniqueTokens(tokens) if self.static_graph else UniqueTokens.of(tokens)

    def forward(self, reads: UniqueTokens, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance all members by one time step over the same text.

        Args:
            reads: the symbols.
            states: for each layer (K, B, n).

        Returns:
            The logits of each lane's next symbol (K, B, V), and the next states; both last until
            the next step.
        """
        table = self._embedding
        shape = (len(self.configs), len(reads.distinct), self.state_size)
        values = self._space("x", shape, like=table.weight)
        torch.index_select(table.weight, 1, reads.distinct, out=values).add_(table.bias)
        x = GatheredInput(values, reads.rows)  # (K, U, n)
        next_states = []
        for cell, h in zip(self.cells, states, strict=True):
            y, u = cell.forward(x, h)  # (K, B, n) both
            x = GatheredInput(y)
            next_states.append(u)
        return self._head.forward(x.values), next_states

    def losses(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return the cross-entropy of the symbols that came, in nats.

        Args:
            logits: (K, B, V)
            tokens: (B,)

        Returns:
            (K, B)
        """
        losses, _ = self._losses(logits, tokens)
        return losses

    def loss_and_grad(
        self, reads: UniqueTokens, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step, and take the gradients of its losses; see :meth:`forward`.

        Args:
            reads: the symbols.
            targets: (B,), the symbols that come next.
            states: for each layer (K, B, n); no gradient goes further back.

        Returns:
            The members' mean losses over the lanes (K,), in nats, and the next states.
        """
        logits, next_states = self.forward(reads, states)
        losses, d = self._losses(logits, targets)
        # The gradient of the mean cross-entropy: (softmax − one-hot) / B.
        index = targets[None, :, None].expand(len(d), -1, 1)
        d.scatter_add_(2, index, d.new_full((), -1.0).expand(index.shape))
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
        tokenizer = torch.arange(self.vocab_size, device=self.device)
        one_hot = (tokenizer[:, None] == distinct).to(d.dtype)  # (V, U)
        torch.matmul(one_hot, d, out=table.weight_gradient)

    def _losses(self, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropies (K, B), and the probabilities (K, B, V)."""
        p = self._space("p", logits.shape, like=logits)
        torch.ops.aten._softmax.out(logits, 2, False, out=p)
        # The likeliest symbol has the probability 1 / Σ exp(logit − greatest logit).
        log_sum = logits.amax(2) - p.amax(2).log()  # (K, B)
        index = tokens[None, :, None].expand(len(logits), -1, 1)
        return log_sum - logits.gather(2, index)[:, :, 0], p


def estimate_memory(
    config: TrialConfig,
    streams: int,
    precision: Precision,
    vocab_size: int = BYTE_VOCAB_SIZE,
) -> int:
    """Estimate the memory that a network takes in training, from above.

    Args:
        config: the network; the longer its gradient's window is, the more is kept.
        streams: B.
        precision: of the arithmetic.
        vocab_size: V.
    """
    size = 8 if precision == "fp64" else 4
    parameters = config.architecture.parameter_count(vocab_size)
    # Weights, their mean, gradients, two moments, and the low ones of weights and gradients;
    # autograd's own gradients.
    unrolled = isinstance(config.architecture, BaselineConfig) or config.bptt_steps > 1
    weights = parameters * ((5 + unrolled) * size + 2 * 2 * (precision == "bf16"))
    # All that a pass keeps or needs meanwhile: some numbers for each input and output.
    numbers = sum(
        (4 * inputs + 6 * outputs) * (config.bptt_steps if name.startswith("layers.") else 1)
        for name, (inputs, outputs) in config.architecture.param_shapes(vocab_size).items()
    )
    return weights + streams * numbers * size


def _gated(config: TrialConfig) -> GatedConfig:
    """Return the architecture of a member that a population can have."""
    architecture = config.architecture
    if isinstance(architecture, BaselineConfig) or config.bptt_steps != 1:
        raise ValueError(
            f"a member is a {architecture.label} with a gradient window of "
            f"{config.bptt_steps}; allowed: our own cell, with 1; train it by itself "
            "(rnn.models.bptt_network)"
        )
    return architecture


def _alike(config: TrialConfig) -> tuple[object, ...]:
    a = _gated(config)
    gates = a.input_gate, a.state_gate, a.forget_gate
    return (
        *gates,
        not a.reads_new_state,
        not a.reads_previous_state,
        a.residual,
        a.output_gate,
        config.replicate,
    )


def _whole(product: str, configs: range, inputs: int, outputs: int) -> StackedLinear:
    return StackedLinear(configs, inputs, outputs, [WeightSlice(product, (0, inputs))])
