"""All weights of a population in one tensor, and their gradients in another.

One optimizer step, or one cast to bfloat16, is then one pass over memory. What an optimizer keeps
lies in the same order, so that whatever belongs to one member can be taken out of each, and put
back.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnn.affine import Affine
from rnn.architecture import Member

Weights = dict[str, tuple[Tensor, Tensor]]
"""One number for each weight of a network: an affine map's name (:meth:`Architecture.products`) to
what is of its weight (inputs, outputs) and of its bias (outputs,)."""


class _Place(NamedTuple):
    affine: Affine
    weight: slice
    bias: slice


class Parameters:
    """The weights of K members, as affine maps use them.

    Args:
        members: of the population.
        maps: all affine maps, by the layer's prefix to the names of their products; they are told
            where their weights and gradients are.
        table: the embedding, of which rows are looked up.
        dtype: of weights and gradients.
        mixed: whether products are taken in bfloat16.
        device: where to keep them.
        vocabulary_size: V.

    Attributes:
        values: (P,), with ``grad`` beside it; what nothing depends on has a gradient of zero.
    """

    def __init__(
        self,
        members: Sequence[Member],
        maps: Sequence[tuple[str, Affine]],
        table: Affine,
        dtype: torch.dtype,
        mixed: bool,
        device: torch.device,
        vocabulary_size: int,
    ) -> None:
        self._members = members
        self._vocabulary_size = vocabulary_size
        end = 0
        sizes: list[slice] = []
        for affine in (*(affine for _, affine in maps), table):
            size = len(affine.members) * affine.inputs * affine.outputs
            sizes.append(slice(end, end + size))
            end += _aligned(size)
        self._products = sizes[-1].start  # where the weights end that take part in products
        self._places: list[tuple[str, _Place]] = []
        for (prefix, affine), weight in zip((*maps, ("", table)), sizes, strict=True):
            size = len(affine.members) * affine.outputs if affine.has_bias else 0
            self._places.append((prefix, _Place(affine, weight, slice(end, end + size))))
            end += _aligned(size)
        self.values = torch.zeros(end, dtype=dtype, device=device)
        self.values.grad = torch.zeros_like(self.values)
        low = torch.bfloat16 if mixed else dtype
        # Without a lower type, products read and write the values and gradients themselves.
        self._low = self.values[: self._products].to(low)
        self._low_gradients = self.values.grad[: self._products].to(low)
        for _, place in self._places:
            affine = place.affine
            read, written = (
                (self.values, self.values.grad)
                if affine is table
                else (self._low, self._low_gradients)
            )
            affine.weight, affine.weight_gradient = (
                _weight_of(flat, place) for flat in (read, written)
            )
            affine.bias, affine.bias_gradient = (
                _bias_of(flat, place) for flat in (self.values, self.values.grad)
            )

    def read(self) -> None:
        """Have the products take part with the weights as they are now."""
        if self._low.dtype != self.values.dtype:
            self._low.copy_(self.values[: self._products])

    def sum_up(self) -> None:
        """Have the gradients of the products stand among all others."""
        if self._low.dtype != self.values.dtype:
            assert self.values.grad is not None
            self.values.grad[: self._products].copy_(self._low_gradients)

    def of(self, k: int, flat: Tensor) -> Weights:
        """Return a copy of what belongs to member k.

        Args:
            k: its number.
            flat: (P,), the values, or whatever an optimizer keeps for each.
        """
        shapes = self._members[k].architecture.products(self._vocabulary_size)
        taken = {
            name: (flat.new_empty(shape), flat.new_empty(shape[1]))
            for name, shape in shapes.items()
        }
        for here, there in self._pairs(k, flat, taken):
            there.copy_(here)
        return taken

    def put(self, k: int, flat: Tensor, weights: Weights) -> None:
        """Set what belongs to member k; see :meth:`of`."""
        for here, there in self._pairs(k, flat, weights):
            here.copy_(there)

    def _pairs(self, k: int, flat: Tensor, weights: Weights) -> Iterator[tuple[Tensor, Tensor]]:
        for prefix, place in self._places:
            if k not in place.affine.members:
                continue
            r = place.affine.members.index(k)
            joined, biases = _weight_of(flat, place)[r], _bias_of(flat, place)
            for block in place.affine.blocks:
                weight, bias = weights[prefix + block.product]
                (first, count), (row, column) = block.inputs, block.at
                columns = slice(column, column + weight.shape[1])
                yield joined[row : row + count, columns], weight[first : first + count]
                if place.affine.has_bias:
                    yield biases[r, 0, columns], bias


def _aligned(size: int) -> int:
    """Return the size with what is left of its last line of a cache: products read whole lines."""
    return -(-size // 64) * 64


def _weight_of(flat: Tensor, place: _Place) -> Tensor:
    affine = place.affine
    return flat[place.weight].view(len(affine.members), affine.inputs, affine.outputs)


def _bias_of(flat: Tensor, place: _Place) -> Tensor:
    # A map without a bias has an empty one.
    return flat[place.bias].view(-1, 1, place.affine.outputs)
