"""The weights of K networks of one user's own cell in one flat tensor, as optimizers read them."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from rnn.config import TrialConfig
from rnn.errors import CellError
from rnn.models.cell_module import CellModule, is_trained, named_tensors, split_tensors
from rnn.stacked.flat_parameters import Block, NamedTensors, align

_TRANSPOSED = "embedding.weight"
"""Stored as (K, V, n), so that the row of a token is contiguous."""


class CellParameters:
    """The weights of K networks and their gradients; see :class:`FlatParameters`.

    Args:
        configs: configs of the K networks.
        modules: the networks with their initial weights, one after another.
        dtype: dtype of weights and gradients.
        device: device of the tensors.

    Attributes:
        values: weights (P,), each of all networks together.
        matmul_values: the values.
        matmul_grads: gradients of the values.
        full_grads: gradients of the values; zero where the loss does not depend on the weight.
        mixed_precision: False: ``torch.autocast`` casts weights at each step.
        constants: buffers, and parameters that require no gradient (K, …), by name.
    """

    mixed_precision = False

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        modules: Iterator[CellModule],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._configs = configs
        for k, module in enumerate(modules):
            trained, _ = split_tensors(module)
            if not k:
                self._allocate(module, dtype, device)
            for name, tensor in trained.items():
                self.view(self.values, name)[k].copy_(tensor)
            for name, tensor in _constants(module).items():
                self.constants[name][k].copy_(tensor)

    def _allocate(self, module: CellModule, dtype: torch.dtype, device: torch.device) -> None:
        count, end = len(self._configs), 0
        trained, saved = split_tensors(module)
        self._places: dict[str, tuple[slice, tuple[int, ...]]] = {}
        for name, tensor in trained.items():
            size = count * tensor.numel()
            self._places[name] = slice(end, end + size), tuple(tensor.shape)
            end += align(size)
        self.values = torch.zeros(end, dtype=dtype, device=device)
        self.full_grads = torch.zeros_like(self.values)
        self.matmul_values, self.matmul_grads = self.values, self.full_grads
        self._saved_constants = list(saved)
        self.constants = {
            name: torch.zeros(
                (count, *tensor.shape),
                dtype=dtype if tensor.is_floating_point() else tensor.dtype,
                device=device,
            )
            for name, tensor in _constants(module).items()
        }

    @property
    def names(self) -> list[str]:
        """Names of the trained parameters."""
        return list(self._places)

    @property
    def blocks(self) -> list[Block]:
        """The ranges of the flat tensors that hold weights."""
        networks = range(len(self._configs))
        places = (place for place, _ in self._places.values())
        return [Block(networks, place) for place in places if place.start < place.stop]

    @property
    def grads(self) -> Tensor:
        """The gradients of all values (P,)."""
        return self.full_grads

    def view(self, flat: Tensor, name: str) -> Tensor:
        """Return a parameter of all networks (K, …) as a view of a flat tensor (P,)."""
        place, shape = self._places[name]
        if name == _TRANSPOSED:
            return flat[place].view(len(self._configs), *reversed(shape)).mT
        return flat[place].view(len(self._configs), *shape)

    def extract(self, k: int, flat: Tensor) -> NamedTensors:
        """Copy the part of network k to CPU memory, of the values with their constants.

        See :meth:`rnn.stacked.flat_parameters.FlatParameters.extract`.
        """
        views = {name: self.view(flat, name)[k] for name in self._places}
        if flat is self.values:
            views |= {name: self.constants[name][k] for name in self._saved_constants}
        return {
            name: torch.empty(view.shape, dtype=view.dtype).copy_(view)
            for name, view in views.items()
        }

    def load(self, k: int, flat: Tensor, params: NamedTensors) -> None:
        """Set the part of network k in a flat tensor; see :meth:`extract`.

        Raises:
            CellError: if names or shapes are not those of the networks.
        """
        targets = {name: self.view(flat, name)[k] for name in self._places}
        if flat is self.values:
            targets |= {name: self.constants[name][k] for name in self._saved_constants}
        _check_shapes(self._configs[k], targets, params)
        for name, target in targets.items():
            target.copy_(params[name])

    def load_flat(self, values: Tensor) -> None:
        """Set the weights of all networks (P,)."""
        self.values.copy_(values)


def _constants(module: CellModule) -> dict[str, Tensor]:
    """Return buffers, saved or not, and parameters that require no gradient."""
    tensors = named_tensors(module).items()
    return {name: each.detach() for name, each in tensors if not is_trained(each)}


def _check_shapes(
    config: TrialConfig, expected: Mapping[str, Tensor], params: Mapping[str, Tensor]
) -> None:
    for name in [*expected, *params]:
        shape = tuple(expected[name].shape) if name in expected else None
        found = tuple(params[name].shape) if name in params else None
        if shape != found:
            raise CellError(
                f"weights do not match the network {config.architecture.label}: {name} is "
                f"{found or 'missing'}, expected {shape or 'no such tensor'}"
            )
