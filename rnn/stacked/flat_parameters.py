"""All weights of a network stack in one flat tensor, and their gradients in another.

An optimizer step or a cast to bfloat16 is then one pass over memory. Optimizer state has the same
layout, so the part that belongs to one network can be extracted from each, and loaded again.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnn.config import GatedConfig, TrialConfig
from rnn.models.shapes import parameter_shapes
from rnn.stacked.linear import StackedLinear, WeightSlice
from rnn.stacked.padding import OPEN_GATE_BIAS, PADDED_GATES, own_slices

NamedTensors = dict[str, Tensor]
"""A network's weights and biases, or one number for each of them, by the names of
:func:`rnn.models.shapes.parameter_shapes`."""


class Block(NamedTuple):
    """A range of the flat tensors that belongs to some networks in turn, in equal parts.

    Attributes:
        networks: positions in the stack of the networks.
        place: the range; ``flat[place].view(len(networks), -1)`` has one row for each of them.
    """

    networks: Sequence[int]
    place: slice


class _Slot(NamedTuple):
    """A linear layer and the place of its weight and bias in the flat tensor."""

    linear: StackedLinear
    weight: slice
    bias: slice


class FlatParameters:
    """The weights of K networks, as their linear layers use them.

    Sets the weights and gradients of the given layers to views of the flat tensors.

    Args:
        configs: configs of the K networks.
        linears: all linear layers, each with the prefix of its parameter names.
        embedding: the embedding, a table of rows rather than a matrix product.
        dtype: dtype of weights and gradients.
        mixed_precision: whether matrix products use bfloat16.
        device: device of the tensors.
        vocab_size: V.
        padded: architectures of the linear layers, if they have more options than the networks;
            see :mod:`rnn.stacked.padding`.

    Attributes:
        values: weights (P,): matrix product weights, then biases, then the embedding.
        matmul_values: weights and biases that matrix products read: bfloat16 copies, or a view of
            the values.
        matmul_grads: gradients of the matrix product weights, in the dtype of the products.
        full_grads: all other gradients, or all gradients without mixed precision; zero where the
            loss does not depend on the weight.
        mixed_precision: whether matrix products use bfloat16.
        blocks: the ranges of the flat tensors that hold weights; the rest is padding.
    """

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        linears: Sequence[tuple[str, StackedLinear]],
        embedding: StackedLinear,
        dtype: torch.dtype,
        mixed_precision: bool,
        device: torch.device,
        vocab_size: int,
        padded: Sequence[GatedConfig] | None = None,
    ) -> None:
        self._configs = configs
        self._padded = padded
        self._vocab_size = vocab_size
        end = 0

        def allocate(size: int) -> slice:
            nonlocal end
            first, end = end, end + align(size)
            return slice(first, first + size)

        def weight_size(linear: StackedLinear) -> int:
            return len(linear.networks) * linear.in_features * linear.out_features

        prefixed = [*linears, ("", embedding)]
        weights = [allocate(weight_size(linear)) for _, linear in linears]
        matmul_end = end
        biases = [
            allocate(len(linear.networks) * linear.out_features * linear.has_bias)
            for _, linear in prefixed
        ]
        bias_end = end
        weights.append(allocate(weight_size(embedding)))
        self._slots = [
            (prefix, _Slot(linear, weight, bias))
            for (prefix, linear), weight, bias in zip(prefixed, weights, biases, strict=True)
        ]
        self.blocks = [
            Block(slot.linear.networks, place)
            for _, slot in self._slots
            for place in (slot.weight, slot.bias)
            if place.start < place.stop
        ]
        self.mixed_precision = mixed_precision
        self.values = torch.zeros(end, dtype=dtype, device=device)
        skipped = matmul_end if mixed_precision else 0
        self.full_grads = torch.zeros(end - skipped, dtype=dtype, device=device)
        if mixed_precision:
            self.matmul_values = self.values[:bias_end].bfloat16()
            self.matmul_grads = self.values[:matmul_end].bfloat16()
        else:
            self.matmul_values = self.values[:bias_end]
            self.matmul_grads = self.full_grads[:matmul_end]

        def in_full_grads(place: slice) -> slice:
            return slice(place.start - skipped, place.stop - skipped)

        for _, (linear, weight, bias) in self._slots:
            is_embedding = linear is embedding
            values = self.values if is_embedding else self.matmul_values
            linear.weight = _weight_view(values, linear, weight)
            linear.bias = _bias_view(values, linear, bias)
            linear.weight_grad = (
                _weight_view(self.full_grads, linear, in_full_grads(weight))
                if is_embedding
                else _weight_view(self.matmul_grads, linear, weight)
            )
            linear.bias_grad = _bias_view(self.full_grads, linear, in_full_grads(bias))
        if padded is not None:
            self._is_trained = self._find_trained().to(self.matmul_grads.dtype)
            self._open_gates = self._find_open_gates()
            self._set_constants()

    @property
    def grads(self) -> Tensor:
        """The gradients of all values (P,)."""
        if not self.mixed_precision:
            return self.full_grads
        return torch.cat((self.matmul_grads.to(self.values.dtype), self.full_grads))

    def extract(self, k: int, flat: Tensor) -> NamedTensors:
        """Copy the part of network k to CPU memory.

        Args:
            k: position of the network in the stack.
            flat: the values, or another tensor (P,) of their layout.
        """
        shapes = parameter_shapes(self._configs[k].architecture, self._vocab_size)
        params = {name: torch.empty(shape, dtype=flat.dtype) for name, shape in shapes.items()}
        for source, target in self._pairs(k, flat, params):
            target.copy_(source)
        return params

    def load(self, k: int, flat: Tensor, params: NamedTensors) -> None:
        """Set the part of network k in a flat tensor; see :meth:`extract`."""
        for target, source in self._pairs(k, flat, params):
            target.copy_(source)
        if self.mixed_precision and flat is self.values:
            self.matmul_values.copy_(flat[: len(self.matmul_values)])

    def load_flat(self, values: Tensor) -> None:
        """Set the weights of all networks (P,)."""
        self.values.copy_(values)
        self._set_constants()
        if self.mixed_precision:
            self.matmul_values.copy_(self.values[: len(self.matmul_values)])

    def clear_constant_grads(self) -> None:
        """Set the gradients of constants to zero."""
        if self._padded is not None:
            self.matmul_grads.mul_(self._is_trained)

    def _set_constants(self) -> None:
        if self._padded is not None:
            self.values.masked_fill_(self._open_gates, OPEN_GATE_BIAS)

    def _find_trained(self) -> Tensor:
        """Return 1 for each weight of a matrix product that is trained, and 0 for the others."""
        is_trained = torch.zeros_like(self.values)
        for k, config in enumerate(self._configs):
            shapes = parameter_shapes(config.architecture, self._vocab_size)
            self.load(k, is_trained, {name: torch.ones(shape) for name, shape in shapes.items()})
        return is_trained[: len(self.matmul_grads)]

    def _find_open_gates(self) -> Tensor:
        """Return whether each weight is the bias of a gate that the network does not have (P,)."""
        is_open = torch.zeros_like(self.values, dtype=torch.bool)
        for _, (linear, _, bias) in self._slots:
            for each in linear.slices:
                if not linear.has_bias or each.param not in PADDED_GATES:
                    continue
                for row, k in zip(_bias_view(is_open, linear, bias), linear.networks, strict=True):
                    architecture = self._configs[k].architecture
                    assert isinstance(architecture, GatedConfig)
                    width = architecture.state_size * (2 if each.param == "input_gate" else 1)
                    if not getattr(architecture, each.param):
                        row[0, each.offset[1] : each.offset[1] + width] = True
        return is_open

    def _pairs(self, k: int, flat: Tensor, params: NamedTensors) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each piece of network k as a view of the flat tensor and a view of params."""
        for prefix, (linear, weight, bias) in self._slots:
            if k not in linear.networks:
                continue
            r = linear.networks.index(k)
            fused, biases = _weight_view(flat, linear, weight)[r], _bias_view(flat, linear, bias)
            for each in self._own_slices(k, linear):
                param_weight = params[f"{prefix}{each.param}.weight"]
                (first, count), (row, column) = each.rows, each.offset
                columns = slice(column, column + param_weight.shape[1])
                yield fused[row : row + count, columns], param_weight[first : first + count]
                if linear.has_bias:
                    yield biases[r, 0, columns], params[f"{prefix}{each.param}.bias"]

    def _own_slices(self, k: int, linear: StackedLinear) -> Iterator[WeightSlice]:
        if self._padded is None:
            yield from linear.slices
            return
        own = self._configs[k].architecture
        assert isinstance(own, GatedConfig)
        for each in linear.slices:
            yield from own_slices(own, self._padded[k], each)


def align(size: int) -> int:
    """Round a size up to whole cache lines, which matrix products read."""
    return -(-size // 64) * 64


def _weight_view(flat: Tensor, linear: StackedLinear, place: slice) -> Tensor:
    return flat[place].view(len(linear.networks), linear.in_features, linear.out_features)


def _bias_view(flat: Tensor, linear: StackedLinear, place: slice) -> Tensor:
    return flat[place].view(-1, 1, linear.out_features)  # empty without a bias
