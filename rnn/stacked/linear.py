"""Linear layers of R networks in one batched product, with a hand-written backward pass.

Nothing is recorded by autograd: a layer keeps what its backward pass needs in preallocated buffers.
All weights of a network stack are in one flat tensor, and their gradients in another, so that an
optimizer step or a cast to bfloat16 is one pass over memory.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rnn.config import TaskSpec, TrialConfig
from rnn.network import NamedTensors, network_shapes
from rnn.parameters import align

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


class Part(NamedTuple):
    """Rows of a network's parameter, and their place in a fused weight.

    Attributes:
        param: name of the parameter, as in :attr:`rnn.network.NetworkShapes.linear_maps`.
        rows: its rows, one for each input.
        row: row of the fused weight where the first of them is.
        column: column of the fused weight where they begin.
    """

    param: str
    rows: range
    row: int = 0
    column: int = 0


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

    :class:`FlatParameters` sets the attributes.

    Args:
        networks: positions in the stack of the R networks that have this layer.
        out_features: number of outputs.
        parts: what the weight is made of.
        has_bias: whether there is a b.

    Attributes:
        weight: (R, in_features, out_features), in the dtype of the matrix products.
        bias: (R, 1, out_features), in the same dtype.
        weight_grad: gradient of the weight, of its shape and dtype.
        bias_grad: gradient of the bias, in the dtype of everything that is no matrix product.
        weight_place: range of the flat tensors that holds the weights.
        bias_place: range of the flat tensors that holds the biases; empty if there is none.
    """

    weight: Tensor
    bias: Tensor
    weight_grad: Tensor
    bias_grad: Tensor
    weight_place: slice
    bias_place: slice

    def __init__(
        self,
        networks: Sequence[int],
        out_features: int,
        parts: Sequence[Part],
        has_bias: bool = True,
    ) -> None:
        self.networks = list(networks)
        self.in_features = max(part.row + len(part.rows) for part in parts)
        self.out_features = out_features
        self.parts = parts
        self.has_bias = has_bias
        self._buffers = BufferCache()

    def forward(self, *xs: Tensor) -> Tensor:
        """Map inputs (R, B, …), concatenated along the last axis, to (R, B, out_features)."""
        self._x = self._concat(xs)  # (R, B, in_features)
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

    def _concat(self, xs: Sequence[Tensor]) -> Tensor:
        if len(xs) == 1:
            return self._to_matmul_dtype("x", xs[0])
        joined = self._buffers.get("x", (*xs[0].shape[:2], self.in_features), like=self.weight)
        start = 0
        for x in xs:
            joined[:, :, start : start + x.shape[2]].copy_(x)
            start += x.shape[2]
        return joined

    def _to_matmul_dtype(self, name: str, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return x
        return self._buffers.get(name, x.shape, like=self.weight).copy_(x)


class FusedLinear:
    """A linear layer of [x ; h₁ ; h₂ ; …] that computes a shared x once for all its streams.

    Where streams share their x (in the first layer, whose input stands for a token), each distinct
    x is multiplied once and the product is given to all its streams. Otherwise it is one product.

    Args:
        networks: positions in the stack of the R networks that have this layer.
        n: width of x and of each state.
        out_features: number of outputs.
        parts: what the weight of all inputs is made of; none has rows of both x and a state.
        includes_x: whether x is among the inputs.
        shares_x: whether streams share their x.
    """

    def __init__(
        self,
        networks: Sequence[int],
        n: int,
        out_features: int,
        parts: Sequence[Part],
        includes_x: bool,
        shares_x: bool,
    ) -> None:
        self.n = n
        self.out_features = out_features
        self.is_split = shares_x and includes_x
        self.includes_x = includes_x
        self._buffers = BufferCache()
        if not self.is_split:
            self.linears = [StackedLinear(networks, out_features, parts)]
            return
        of_x = [part for part in parts if part.row < n]
        of_states = [part._replace(row=part.row - n) for part in parts if part.row >= n]
        self.linears = [
            StackedLinear(networks, out_features, of_x),
            StackedLinear(networks, out_features, of_states, has_bias=False),
        ]

    def forward(self, x: GatheredInput, *states: Tensor) -> Tensor:
        """Map x and states, each (R, B, n), to (R, B, out_features)."""
        if not self.is_split:
            first = [x.values] if self.includes_x else []
            return self.linears[0].forward(*first, *states)
        assert x.index is not None
        self._index = x.index
        self._distinct = x.values.shape[1]
        y = gather_rows(self.linears[0].forward(x.values), x.index, self._buffers)
        return y.add_(self.linears[1].forward(*states))

    def backward(self, dy: Tensor, first: int = 0) -> None:
        """Compute the gradients of weight and bias; see :meth:`StackedLinear.backward`."""
        if not self.is_split:
            self.linears[0].backward(dy, first)
            return
        shared = self._buffers.get("dy", (len(dy), self._distinct, dy.shape[2]), like=dy)
        self.linears[0].backward(shared.zero_().index_add_(1, self._index, dy), first)
        self.linears[1].backward(dy, first)

    def add_x_grad(self, dx: Tensor) -> None:
        """Add the gradient of x to dx (R, U, n); call after :meth:`backward`."""
        dx.add_(self.linears[0].input_grad(self.n))

    def input_grads(self, state_count: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of x and of the first states.

        Returns:
            (R, U, n), or None if x is not among the inputs, and (R, B, state_count · n), or None
            for no state.
        """
        n = self.n
        if self.includes_x and not self.is_split:
            both = self.linears[0].input_grad(n * (1 + state_count))
            return both[:, :, :n], both[:, :, n:] if state_count else None
        return (
            self.linears[0].input_grad(n) if self.includes_x else None,
            self.linears[-1].input_grad(n * state_count) if state_count else None,
        )


def gather_rows(x: Tensor, index: Tensor, buffers: BufferCache) -> Tensor:
    """Select the row of x (R, U, m) of each stream by index (B,): (R, B, m)."""
    streams = buffers.get("streams", (len(x), len(index), x.shape[2]), like=x)
    return torch.index_select(x, 1, index, out=streams)


# ------------------------------------------------------------------ weights


class FlatParameters:
    """The weights of K networks, as their linear layers use them.

    Sets the weights and gradients of the given layers to views of the flat tensors, in which
    matrix product weights come first, then biases, then the embedding. Methods and attributes are
    those of :class:`rnn.parameters.Parameters`; a network has many places.

    Args:
        configs, dtype, device, spec: as of :class:`rnn.parameters.Parameters`.
        linears: all linear layers but the embedding.
        embedding: the embedding, a table of rows rather than a matrix product.
        mixed_precision: whether matrix products use bfloat16.
    """

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        linears: Sequence[StackedLinear],
        embedding: StackedLinear,
        dtype: torch.dtype,
        mixed_precision: bool,
        device: torch.device,
        spec: TaskSpec,
    ) -> None:
        self._configs = configs
        self._spec = spec
        self._linears = [*linears, embedding]
        self.places: list[list[slice]] = [[] for _ in configs]
        end = 0

        def allocate(linear: StackedLinear, size: int) -> slice:
            """Return a new range for a number of values of each of the layer's networks."""
            nonlocal end
            first = end
            stop = end + size * len(linear.networks)
            if size:
                for k, start in zip(linear.networks, range(first, stop, size), strict=True):
                    self.places[k].append(slice(start, start + size))
            end = align(stop)
            return slice(first, stop)

        for linear in linears:
            linear.weight_place = allocate(linear, linear.in_features * linear.out_features)
        matmul_end = end
        for linear in self._linears:
            linear.bias_place = allocate(linear, linear.out_features * linear.has_bias)
        bias_end = end
        embedding.weight_place = allocate(embedding, spec.inputs * embedding.out_features)

        self.values = torch.zeros(end, dtype=dtype, device=device)
        skipped = matmul_end if mixed_precision else 0
        self.full_grads = torch.zeros(end - skipped, dtype=dtype, device=device)
        self.matmul_grads = self.values[:skipped].bfloat16()
        self.matmul_values = self.values[: bias_end if mixed_precision else 0].bfloat16()
        for linear in self._linears:
            is_mixed = mixed_precision and linear is not embedding
            values = self.matmul_values if is_mixed else self.values
            linear.weight = _weight_view(values, linear)
            linear.bias = _bias_view(values, linear)
            linear.bias_grad = _bias_view(self.full_grads, linear, skipped)
            linear.weight_grad = (
                _weight_view(self.matmul_grads, linear)
                if is_mixed
                else _weight_view(self.full_grads, linear, skipped)
            )

    @property
    def grads(self) -> Tensor:
        """A copy of the gradients of all values (P,)."""
        return torch.cat((self.matmul_grads.to(self.values.dtype), self.full_grads))

    def extract(self, k: int, flat: Tensor) -> NamedTensors:
        shapes = network_shapes(self._configs[k].architecture, self._spec).parameters
        params = {name: torch.empty(shape, dtype=flat.dtype) for name, shape in shapes.items()}
        for source, target in self._pairs(k, flat, params):
            target.copy_(source)
        return params

    def load(self, k: int, flat: Tensor, params: NamedTensors) -> None:
        for target, source in self._pairs(k, flat, params):
            target.copy_(source)
        if flat is self.values:
            self._cast()

    def load_flat(self, values: Tensor) -> None:
        self.values.copy_(values)
        self._cast()

    def _cast(self) -> None:
        self.matmul_values.copy_(self.values[: len(self.matmul_values)])

    def _pairs(self, k: int, flat: Tensor, params: NamedTensors) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each piece of network k as a view of the flat tensor and a view of params."""
        for linear in self._linears:
            if k not in linear.networks:
                continue
            r = linear.networks.index(k)
            weight = _weight_view(flat, linear)[r]
            bias = _bias_view(flat, linear)
            for part in linear.parts:
                own = params[f"{part.param}.weight"].T
                rows = slice(part.row, part.row + len(part.rows))
                columns = slice(part.column, part.column + own.shape[1])
                yield weight[rows, columns], own[part.rows.start : part.rows.stop]
                if linear.has_bias:
                    yield bias[r, 0, columns], params[f"{part.param}.bias"]


def _weight_view(flat: Tensor, linear: StackedLinear, skipped: int = 0) -> Tensor:
    place = slice(linear.weight_place.start - skipped, linear.weight_place.stop - skipped)
    return flat[place].view(len(linear.networks), linear.in_features, linear.out_features)


def _bias_view(flat: Tensor, linear: StackedLinear, skipped: int = 0) -> Tensor:
    place = slice(linear.bias_place.start - skipped, linear.bias_place.stop - skipped)
    return flat[place].view(-1, 1, linear.out_features)  # empty without a bias
