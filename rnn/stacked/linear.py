"""Linear layers of R networks in one batched product, with a hand-written backward pass.

Nothing is recorded by autograd: a layer keeps what its backward pass needs in preallocated buffers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LOOP_MM_THRESHOLD = 128 * 128
"""Weight size from which the CPU multiplies by transposed weights one network at a time.

``torch.bmm`` would copy the transposed weights first.
"""


class BufferCache:
    """Reusable buffers by name; their content lasts until the next step."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}
        self._outgrown: list[Tensor] = []  # a graph that was recorded may use it
        self._views: dict[tuple[str, torch.dtype, tuple[int, ...]], Tensor] = {}

    def get(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return the uninitialized buffer of this name, reallocated if it is too small.

        Args:
            name: name of the buffer.
            shape: shape of the returned view.
            like: tensor that gives dtype and device.
        """
        key = (name, like.dtype, tuple(shape))
        view = self._views.get(key)
        if view is not None:
            return view
        size = math.prod(shape)
        memory = self._memory.get(key[:2])
        if memory is None or memory.numel() < size:
            if memory is not None:
                self._outgrown.append(memory)
            memory = self._memory[key[:2]] = like.new_empty(size)
            self._views = {other: v for other, v in self._views.items() if other[:2] != key[:2]}
        view = self._views[key] = memory[:size].view(key[2])
        return view


@dataclass(frozen=True)
class WeightSlice:
    """Rows of a network's parameter and their place in a fused weight matrix.

    Attributes:
        param: name of the parameter, as in :meth:`GatedConfig.param_shapes`.
        rows: first input row of the parameter, and the number of rows.
        offset: row and column in the fused weight matrix where they are placed.
    """

    param: str
    rows: tuple[int, int]
    offset: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class GatheredInput:
    """A layer's input (K, B, n), stored once for streams that share it.

    Attributes:
        values: distinct inputs (K, U, n).
        index: position among the U of each stream (B,); None if stream b has the b-th.
    """

    values: Tensor
    index: Tensor | None = None

    def select(self, networks: slice) -> "GatheredInput":
        """Return the input of some of the networks."""
        return GatheredInput(self.values[networks], self.index)

    def gather(self, buffers: BufferCache) -> Tensor:
        """Return the input of each stream (K, B, n)."""
        return self.values if self.index is None else gather_rows(self.values, self.index, buffers)

    def scatter_add(self, dx: Tensor, d: Tensor) -> None:
        """Add the streams' gradient d (K, B, n) to dx (K, U, n)."""
        dx.add_(d) if self.index is None else dx.index_add_(1, self.index, d)


class StackedLinear:
    """y = [x₁ ; x₂ ; …]·W + b for R networks with separate weights.

    Args:
        networks: positions in the stack of the R networks that have this layer.
        in_features: number of inputs.
        out_features: number of outputs.
        slices: parameters that the weight matrix is made of.
        has_bias: whether there is a b.

    Attributes:
        weight: (R, in_features, out_features), in the dtype of the matrix products.
        bias: (R, 1, out_features), in the same dtype.
        weight_grad: gradient of the weight, of its shape and dtype; set by :meth:`backward`.
        bias_grad: gradient of the bias, in the dtype of everything that is no matrix product.
    """

    weight: Tensor
    bias: Tensor
    weight_grad: Tensor
    bias_grad: Tensor

    def __init__(
        self,
        networks: Sequence[int],
        in_features: int,
        out_features: int,
        slices: Sequence[WeightSlice],
        has_bias: bool = True,
    ) -> None:
        self.networks = list(networks)
        self.in_features = in_features
        self.out_features = out_features
        self.slices = slices
        self.has_bias = has_bias
        self._buffers = BufferCache()

    def forward(self, *parts: Tensor) -> Tensor:
        """Map parts (R, B, …), concatenated along the last axis, to (R, B, out_features)."""
        self._x = self._concat(parts)  # (R, B, in_features)
        y = self._buffers.get("y", (*self._x.shape[:2], self.out_features), like=self.weight)
        if self.has_bias:
            torch.baddbmm(self.bias, self._x, self.weight, out=y)
        else:
            torch.bmm(self._x, self.weight, out=y)
        full = self.bias_grad
        return y if y.dtype == full.dtype else self._buffers.get("full", y.shape, full).copy_(y)

    def backward(self, dy: Tensor, first: int = 0) -> None:
        """Compute the gradients of weight and bias.

        Args:
            dy: gradient (R, B, ≤ out_features) of a contiguous range of the outputs.
            first: first output of that range.
        """
        self._outputs = slice(first, first + dy.shape[2])
        if self.has_bias:
            db = self.bias_grad[:, :, self._outputs]
            torch.sum(dy, 1, keepdim=True, out=db)
        self._dy = self._to_matmul_dtype("dy", dy)
        dw = self.weight_grad
        if dy.shape[2] == self.out_features:
            torch.bmm(self._x.mT, self._dy, out=dw)
        else:
            dw[:, :, self._outputs].copy_(torch.bmm(self._x.mT, self._dy))

    def input_grad(self, count: int) -> Tensor:
        """Return the gradient of the first inputs (R, B, count); call after :meth:`backward`."""
        weight = self.weight[:, :count, self._outputs]
        dx = self._buffers.get("dx", (*self._dy.shape[:2], count), like=weight)
        if weight.device.type != "cpu" or count * self.out_features < _LOOP_MM_THRESHOLD:
            return torch.bmm(self._dy, weight.mT, out=dx)
        for dy, w, result in zip(self._dy, weight, dx, strict=True):
            torch.mm(dy, w.T, out=result)
        return dx

    def _concat(self, parts: Sequence[Tensor]) -> Tensor:
        if len(parts) == 1:
            return self._to_matmul_dtype("x", parts[0])
        x = self._buffers.get("x", (*parts[0].shape[:2], self.in_features), like=self.weight)
        start = 0
        for part in parts:
            x[:, :, start : start + part.shape[2]].copy_(part)
            start += part.shape[2]
        return x

    def _to_matmul_dtype(self, name: str, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return x
        return self._buffers.get(name, x.shape, like=self.weight).copy_(x)


class FusedLinear:
    """A linear layer of [x ; p₁ ; p₂ ; …] that computes a shared x once for all its streams.

    Where streams share their x (in the first layer, whose input stands for a token), each distinct
    x is multiplied once and the product is given to all its streams. Otherwise it is one product.

    Args:
        networks: positions in the stack of the R networks that have this layer.
        n: width of x and of each part.
        includes_x: whether x is among the inputs.
        part_count: number of parts.
        out_features: number of outputs.
        slices: parameters that the weight matrix of all inputs is made of.
        shares_x: whether streams share their x.
    """

    def __init__(
        self,
        networks: Sequence[int],
        n: int,
        includes_x: bool,
        part_count: int,
        out_features: int,
        slices: Sequence[WeightSlice],
        shares_x: bool,
    ) -> None:
        self.n = n
        self.out_features = out_features
        self.is_split = shares_x and includes_x
        self.includes_x = includes_x
        self._buffers = BufferCache()
        in_features = n * (part_count + includes_x)
        if not self.is_split:
            self.linears = [StackedLinear(networks, in_features, out_features, slices)]
            return
        of_x, of_parts = _split_slices(slices, n)
        self.linears = [StackedLinear(networks, n, out_features, of_x)]
        if part_count:
            self.linears.append(
                StackedLinear(networks, in_features - n, out_features, of_parts, has_bias=False)
            )

    def forward(self, x: GatheredInput, *parts: Tensor) -> Tensor:
        """Map x and the parts, each (R, B, n), to (R, B, out_features)."""
        if not self.is_split:
            first = [x.values] if self.includes_x else []
            return self.linears[0].forward(*first, *parts)
        assert x.index is not None
        self._index, self._distinct = x.index, x.values.shape[1]
        y = gather_rows(self.linears[0].forward(x.values), x.index, self._buffers)
        return y.add_(self.linears[1].forward(*parts)) if parts else y

    def backward(self, dy: Tensor, first: int = 0) -> None:
        """Compute the gradients of weight and bias; see :meth:`StackedLinear.backward`."""
        if not self.is_split:
            self.linears[0].backward(dy, first)
            return
        shared = self._buffers.get("dy", (len(dy), self._distinct, dy.shape[2]), like=dy)
        self.linears[0].backward(shared.zero_().index_add_(1, self._index, dy), first)
        if len(self.linears) > 1:
            self.linears[1].backward(dy, first)

    def input_grad(self, count: int) -> Tensor:
        """Return the gradient of the first inputs (R, B, count); no x may be shared."""
        return self.linears[0].input_grad(count)

    def add_x_grad(self, dx: Tensor) -> None:
        """Add the gradient of x to dx (R, U, n)."""
        dx.add_(self.linears[0].input_grad(self.n))

    def input_grads(self, dx: Tensor, part_count: int) -> Tensor | None:
        """Write the gradient of x to dx and return that of the first parts.

        Args:
            dx: output (R, U, n).
            part_count: number of leading parts whose gradient is needed.

        Returns:
            (R, B, part_count · n), or None for no part.
        """
        n = self.n
        if self.is_split or not self.includes_x:
            dx.copy_(self.linears[0].input_grad(n)) if self.includes_x else dx.zero_()
            return self.linears[-1].input_grad(n * part_count) if part_count else None
        both = self.linears[0].input_grad(n * (1 + part_count))
        dx.copy_(both[:, :, :n])
        return both[:, :, n:] if part_count else None


def gather_rows(x: Tensor, index: Tensor, buffers: BufferCache) -> Tensor:
    """Select the row of x (R, U, m) of each stream by index (B,): (R, B, m)."""
    streams = buffers.get("streams", (len(x), len(index), x.shape[2]), like=x)
    return torch.index_select(x, 1, index, out=streams)


def _split_slices(
    slices: Sequence[WeightSlice], n: int
) -> tuple[list[WeightSlice], list[WeightSlice]]:
    """Split a fused weight matrix into the slices of its first n rows and of the rest."""
    upper, lower = [], []
    for each in slices:
        (first, count), (row, column) = each.rows, each.offset
        above = min(count, max(0, n - row))
        if above:
            upper.append(WeightSlice(each.param, (first, above), (row, column)))
        if count > above:
            offset = (max(row - n, 0), column)
            lower.append(WeightSlice(each.param, (first + above, count - above), offset))
    return upper, lower
