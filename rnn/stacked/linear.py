"""Affine maps of R networks at once: one product for all that share an input, and its gradients.

Nothing here is drawn on autograd's tape: a map keeps what its own backward pass needs, in memory
that is taken once and used again at every step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LARGE = 128 * 128
"""Weights of a map from which on a processor takes products with transposed ones one after another:
of a batch of them it would make copies first."""


class BufferCache:
    """Memory that is taken once and used again: what stands in it lasts until the next step."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}
        self._views: dict[tuple[str, torch.dtype, tuple[int, ...]], Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return the tensor of this name, with whatever it holds.

        Args:
            name: of the tensor.
            shape: one that needs more memory than there is under this name takes it anew.
            like: of the type, and on the device, that is wanted.
        """
        key = (name, like.dtype, tuple(shape))
        view = self._views.get(key)
        if view is not None:
            return view
        size = math.prod(shape)
        memory = self._memory.get(key[:2])
        if memory is None or memory.numel() < size:
            memory = self._memory[key[:2]] = like.new_empty(size)
            self._views = {other: v for other, v in self._views.items() if other[:2] != key[:2]}
        view = self._views[key] = memory[:size].view(key[2])
        return view


@dataclass(frozen=True)
class WeightSlice:
    """Which part of a member's product (:meth:`GatedConfig.param_shapes`) stands where in a map.

    Attributes:
        product: its name.
        inputs: the product's first input in this block, and how many.
        at: where they stand: the map's first input, and its first output.
    """

    product: str
    inputs: tuple[int, int]
    at: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class GatheredInput:
    """What a layer reads: for each member and lane n numbers, which lanes may have in common.

    Attributes:
        values: (K, U, n), the numbers that occur.
        rows: (B,), for each lane the one of the U that it has; None if lane b has the b-th.
    """

    values: Tensor
    rows: Tensor | None = None

    def of(self, configs: slice) -> "GatheredInput":
        """Return what some of the members read."""
        return GatheredInput(self.values[configs], self.rows)

    def streams(self, space: BufferCache) -> Tensor:
        """Return the numbers of each lane, (K, B, n)."""
        return self.values if self.rows is None else spread(self.values, self.rows, space)

    def add_lanes(self, dx: Tensor, d: Tensor) -> None:
        """Add to the gradient dx (K, U, n) what the lanes have of it, d (K, B, n)."""
        dx.add_(d) if self.rows is None else dx.index_add_(1, self.rows, d)


class StackedLinear:
    """y = [p₁ ; p₂ ; …]·W + b for R members, each with weights of its own.

    Args:
        configs: which of the population's K have this map.
        inputs: of the map.
        outputs: of the map.
        blocks: what it joins.
        has_bias: whether there is a b.

    Attributes:
        weight: (R, inputs, outputs), in the type of the products.
        bias: (R, 1, outputs), in that type.
        weight_gradient: of the same shape and type as the weight, set by :meth:`backward`.
        bias_gradient: of the same shape as the bias, in the type of all that is no product.
    """

    weight: Tensor
    bias: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor

    def __init__(
        self,
        configs: Sequence[int],
        inputs: int,
        outputs: int,
        blocks: Sequence[WeightSlice],
        has_bias: bool = True,
    ) -> None:
        self.configs = list(configs)
        self.inputs = inputs
        self.outputs = outputs
        self.blocks = blocks
        self.has_bias = has_bias
        self._space = BufferCache()

    def forward(self, *parts: Tensor) -> Tensor:
        """Map parts, each (R, B, …), joined along the last axis, to (R, B, outputs)."""
        self._x = self._joined(parts)  # (R, B, inputs)
        y = self._space("y", (*self._x.shape[:2], self.outputs), like=self.weight)
        if self.has_bias:
            torch.baddbmm(self.bias, self._x, self.weight, out=y)
        else:
            torch.bmm(self._x, self.weight, out=y)
        full = self.bias_gradient
        return y if y.dtype == full.dtype else self._space("full", y.shape, like=full).copy_(y)

    def backward(self, dy: Tensor, first: int = 0) -> None:
        """Take the gradient of the weights.

        Args:
            dy: (R, B, outputs or less), the gradient of the outputs, of those that have one.
            first: the first of those.
        """
        self._outputs = slice(first, first + dy.shape[2])
        if self.has_bias:
            db = self.bias_gradient[:, :, self._outputs]
            torch.sum(dy, 1, keepdim=True, out=db)
        self._dy = self._low("dy", dy)
        dw = self.weight_gradient
        if dy.shape[2] == self.outputs:
            torch.bmm(self._x.mT, self._dy, out=dw)
        else:
            dw[:, :, self._outputs].copy_(torch.bmm(self._x.mT, self._dy))

    def input_gradient(self, inputs: int) -> Tensor:
        """Return the gradient of the first so many inputs (R, B, inputs), after the weights'."""
        weight = self.weight[:, :inputs, self._outputs]
        dx = self._space("dx", (*self._dy.shape[:2], inputs), like=weight)
        if weight.device.type != "cpu" or inputs * self.outputs < _LARGE:
            return torch.bmm(self._dy, weight.mT, out=dx)
        for dy, w, result in zip(self._dy, weight, dx, strict=True):
            torch.mm(dy, w.T, out=result)
        return dx

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        if len(parts) == 1:
            return self._low("x", parts[0])
        x, at = self._space("x", (*parts[0].shape[:2], self.inputs), like=self.weight), 0
        for part in parts:
            x[:, :, at : at + part.shape[2]].copy_(part)
            at += part.shape[2]
        return x

    def _low(self, name: str, x: Tensor) -> Tensor:
        """Return x in the type of the products."""
        if x.dtype == self.weight.dtype:
            return x
        return self._space(name, x.shape, like=self.weight).copy_(x)


class FusedLinear:
    """An affine map of [x ; p₁ ; p₂ ; …], where lanes may share their x.

    It is one product; but of an x that many lanes have in common (in the first layer, where x
    stands for a symbol) each is multiplied once, and the result given to all its lanes.

    Args:
        configs: which of the population's K have this map.
        n: the width of x and of each part.
        has_x: whether x is among the inputs.
        parts: how many others are.
        outputs: of the map.
        blocks: what it joins, the inputs counted as if x were there in one map.
        repeats: whether lanes share their x.
    """

    def __init__(
        self,
        configs: Sequence[int],
        n: int,
        has_x: bool,
        parts: int,
        outputs: int,
        blocks: Sequence[WeightSlice],
        repeats: bool,
    ) -> None:
        self.n = n
        self.outputs = outputs
        self.split = repeats and has_x
        self.has_x = has_x
        self._space = BufferCache()
        inputs = n * (parts + has_x)
        if not self.split:
            self.maps = [StackedLinear(configs, inputs, outputs, blocks)]
            return
        own, rest = _divided(blocks, n)
        self.maps = [StackedLinear(configs, n, outputs, own)]
        if parts:
            self.maps.append(StackedLinear(configs, inputs - n, outputs, rest, has_bias=False))

    def forward(self, x: GatheredInput, *parts: Tensor) -> Tensor:
        """Map x and the parts, each (R, B, n), to (R, B, outputs)."""
        if not self.split:
            own = [x.values] if self.has_x else []
            return self.maps[0].forward(*own, *parts)
        assert x.rows is not None
        self._rows, self._distinct = x.rows, x.values.shape[1]
        y = spread(self.maps[0].forward(x.values), x.rows, self._space)
        return y.add_(self.maps[1].forward(*parts)) if parts else y

    def backward(self, dy: Tensor, first: int = 0) -> None:
        """Take the gradient of the weights; see :meth:`StackedLinear.backward`."""
        if not self.split:
            self.maps[0].backward(dy, first)
            return
        shared = self._space("dy", (len(dy), self._distinct, dy.shape[2]), like=dy)
        self.maps[0].backward(shared.zero_().index_add_(1, self._rows, dy), first)
        if len(self.maps) > 1:
            self.maps[1].backward(dy, first)

    def input_gradient(self, inputs: int) -> Tensor:
        """Return the gradient of the first so many inputs, of which lanes share none."""
        return self.maps[0].input_gradient(inputs)

    def add_x_gradient(self, dx: Tensor) -> None:
        """Add the gradient of x to dx (R, U, n)."""
        dx.add_(self.maps[0].input_gradient(self.n))

    def input_gradients(self, dx: Tensor, parts: int) -> Tensor | None:
        """Set the gradient of x, and return that of the first so many parts.

        Args:
            dx: (R, U, n)
            parts: how many; they stand before those whose gradient nobody needs.

        Returns:
            (R, B, parts · n); None for no part.
        """
        n = self.n
        if self.split or not self.has_x:
            dx.copy_(self.maps[0].input_gradient(n)) if self.has_x else dx.zero_()
            return self.maps[-1].input_gradient(n * parts) if parts else None
        both = self.maps[0].input_gradient(n * (1 + parts))
        dx.copy_(both[:, :, :n])
        return both[:, :, n:] if parts else None


def spread(x: Tensor, rows: Tensor, space: BufferCache) -> Tensor:
    """Give each lane its row of x (R, U, m): (R, B, m)."""
    streams = space("lanes", (len(x), len(rows), x.shape[2]), like=x)
    return torch.index_select(x, 1, rows, out=streams)


def _divided(blocks: Sequence[WeightSlice], n: int) -> tuple[list[WeightSlice], list[WeightSlice]]:
    """Tell the blocks of x, the first n inputs, from those of the rest, cut where they meet."""
    own, rest = [], []
    for block in blocks:
        (first, count), (row, column) = block.inputs, block.at
        mine = min(count, max(0, n - row))
        if mine:
            own.append(WeightSlice(block.product, (first, mine), (row, column)))
        if count > mine:
            at = (max(row - n, 0), column)
            rest.append(WeightSlice(block.product, (first + mine, count - mine), at))
    return own, rest
