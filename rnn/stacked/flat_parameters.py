"""All weights of a population in one tensor, and their gradients in another.

One optimizer step, or one cast to bfloat16, is then one pass over memory. What an optimizer keeps
lies in the same order, so that whatever belongs to one member can be taken out of each, and put
back.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnn.config import TrialConfig
from rnn.stacked.linear import StackedLinear

NamedTensors = dict[str, tuple[Tensor, Tensor]]
"""One number for each weight of a network: an affine map's name
(:meth:`GatedConfig.param_shapes`) to
what is of its weight (inputs, outputs) and of its bias (outputs,)."""


class _Place(NamedTuple):
    affine: StackedLinear
    weight: slice
    bias: slice


class FlatParameters:
    """The weights of K members, as affine maps use them.

    Args:
        configs: of the population.
        maps: all affine maps, by the layer's prefix to the names of their products; they are told
            where their weights and gradients are.
        table: the embedding, of which rows are looked up.
        dtype: of weights and gradients.
        mixed: whether products are taken in bfloat16.
        device: where to keep them.
        vocab_size: V.

    Attributes:
        values: (P,), in the order: weights that take part in products, biases, the embedding.
        low: what products read, as far as the biases: in bfloat16, or the values themselves.
        low_gradients: what products write, of the weights that take part in them.
        full_gradients: all others; or all, if there is no lower type. What nothing depends on has a
            gradient of zero.
        is_mixed: whether products are taken in bfloat16.
    """

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        maps: Sequence[tuple[str, StackedLinear]],
        table: StackedLinear,
        dtype: torch.dtype,
        mixed: bool,
        device: torch.device,
        vocab_size: int,
    ) -> None:
        self._members = configs
        self._vocabulary_size = vocab_size
        end = 0

        def placed(size: int) -> slice:
            nonlocal end
            first, end = end, end + _aligned(size)
            return slice(first, first + size)

        named = [*maps, ("", table)]
        weights = [placed(len(a.configs) * a.inputs * a.outputs) for _, a in maps]
        param_shapes = end
        biases = [placed(len(a.configs) * a.outputs * a.has_bias) for _, a in named]
        read = end
        weights.append(placed(len(table.configs) * table.inputs * table.outputs))
        self._places = [
            (prefix, _Place(affine, *place))
            for (prefix, affine), *place in zip(named, weights, biases, strict=True)
        ]
        self.is_mixed = mixed
        self.values = torch.zeros(end, dtype=dtype, device=device)
        gradients = torch.zeros(end - param_shapes if mixed else end, dtype=dtype, device=device)
        self.full_gradients = gradients
        # Without a lower type, products read and write the values and gradients themselves.
        self.low = self.values[:read]
        self.low_gradients = gradients[:param_shapes]
        if mixed:
            self.low = self.low.bfloat16()
            self.low_gradients = self.values[:param_shapes].bfloat16()
        skipped = param_shapes if mixed else 0
        for affine, weight, bias in (place for _, place in self._places):
            is_table = affine is table
            affine.weight = _weight_of(self.values if is_table else self.low, affine, weight)
            affine.bias = _bias_of(self.values if is_table else self.low, affine, bias)
            own = slice(weight.start - skipped, weight.stop - skipped)
            affine.weight_gradient = (
                _weight_of(gradients, affine, own)
                if is_table
                else _weight_of(self.low_gradients, affine, weight)
            )
            own = slice(bias.start - skipped, bias.stop - skipped)
            affine.bias_gradient = _bias_of(gradients, affine, own)

    @property
    def gradients(self) -> Tensor:
        """The gradients of all values (P,)."""
        if not self.is_mixed:
            return self.full_gradients
        return torch.cat((self.low_gradients.to(self.values.dtype), self.full_gradients))

    def of(self, k: int, flat: Tensor) -> NamedTensors:
        """Return a copy of what belongs to member k, in the processor's memory.

        Args:
            k: its number.
            flat: (P,), the values, or whatever an optimizer keeps for each.
        """
        shapes = self._members[k].architecture.param_shapes(self._vocabulary_size)
        memory = torch.empty(0, dtype=flat.dtype)  # of the processor
        taken = {
            name: (memory.new_empty(shape), memory.new_empty(shape[1]))
            for name, shape in shapes.items()
        }
        for here, there in self._pairs(k, flat, taken):
            there.copy_(here)
        return taken

    def put(self, k: int, flat: Tensor, weights: NamedTensors) -> None:
        """Set what belongs to member k; see :meth:`of`."""
        for here, there in self._pairs(k, flat, weights):
            here.copy_(there)
        if self.is_mixed and flat is self.values:
            self.low.copy_(flat[: len(self.low)])

    def replace(self, values: Tensor) -> None:
        """Set the weights of all members (P,)."""
        self.values.copy_(values)
        if self.is_mixed:
            self.low.copy_(self.values[: len(self.low)])

    def _pairs(
        self, k: int, flat: Tensor, weights: NamedTensors
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for prefix, (affine, weight, bias) in self._places:
            if k not in affine.configs:
                continue
            r = affine.configs.index(k)
            joined, biases = _weight_of(flat, affine, weight)[r], _bias_of(flat, affine, bias)
            for block in affine.blocks:
                own_weight, own_bias = weights[prefix + block.product]
                (first, count), (row, column) = block.inputs, block.at
                columns = slice(column, column + own_weight.shape[1])
                yield joined[row : row + count, columns], own_weight[first : first + count]
                if affine.has_bias:
                    yield biases[r, 0, columns], own_bias


def _aligned(size: int) -> int:
    """Return the size with what is left of its last line of a cache: products read whole lines."""
    return -(-size // 64) * 64


def _weight_of(flat: Tensor, affine: StackedLinear, place: slice) -> Tensor:
    return flat[place].view(len(affine.configs), affine.inputs, affine.outputs)


def _bias_of(flat: Tensor, affine: StackedLinear, place: slice) -> Tensor:
    return flat[place].view(-1, 1, affine.outputs)  # of a map that has none: empty
