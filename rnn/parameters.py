"""The weights of K networks: one contiguous segment of a flat tensor for each network.

Gradients, moments and averages are flat tensors of the same layout.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rnn.config import NetworkConfig, TaskSpec, TrialConfig
from rnn.errors import CellError
from rnn.network import NamedTensors, network_shapes


class Segment:
    """Takes tensors from the memory of a network, one after another.

    Args:
        memory: memory of one network (S,), or of each of several (K, S).

    Attributes:
        size: how much was taken of each network's memory; tensors begin at whole cache lines.
    """

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory
        self.size = 0

    @classmethod
    def unlimited(cls) -> "Segment":
        """Return a segment without memory, for the shapes of what is taken, and their size."""
        return cls(torch.empty(2**48, device="meta"))

    def take(self, *shape: int) -> Tensor:
        """Return the next tensor, a view of the memory, (…) or (K, …)."""
        count = math.prod(shape)
        taken = self._memory[..., self.size : self.size + count]
        self.size += align(count)
        return taken.view(*taken.shape[:-1], *shape)


def _place(config: NetworkConfig, spec: TaskSpec, segment: Segment) -> NamedTensors:
    """Place the trained tensors of a network in a segment, in the order of its state dict.

    The matrices of built-in networks are stored as (inputs, outputs), as the library in C reads
    them. Those of a user's cell need not be linear maps and are stored as it defines them, but for
    the embedding, where the row of a token is contiguous then.

    Returns:
        The views by their names in the state dict.
    """
    views = {}
    for name, shape in network_shapes(config, spec).parameters.items():
        is_transposed = len(shape) == 2 and (config.is_built_in or name == "embedding.weight")
        views[name] = segment.take(*shape[::-1]).mT if is_transposed else segment.take(*shape)
    return views


class Parameters:
    """Weights and gradients of K networks.

    Args:
        configs: configs of the K networks.
        dtype: dtype of weights and gradients.
        device: device of the tensors.
        spec: what the networks read and predict.

    Attributes:
        values: weights (P,); zeros between tensors.
        grads: gradients of the values (P,); zero where the loss does not depend on the weight.
        matmul_grads: gradients of the first values in bfloat16, where matrix products compute them
            so; otherwise empty.
        full_grads: gradients of the other values.
        matmul_values: copies of the first values in bfloat16, where matrix products read them;
            otherwise empty.
        places: the ranges of the flat tensors that belong to each network: one segment.
        constants: what is saved with the weights but not trained (K, …), by name.
    """

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        dtype: torch.dtype,
        device: torch.device,
        spec: TaskSpec,
    ) -> None:
        self._configs = configs
        self._spec = spec
        self.places: list[list[slice]] = []
        self.constants: dict[str, Tensor] = {}
        end = 0
        for config in configs:
            segment = Segment.unlimited()
            _place(config.architecture, spec, segment)
            self.places.append([slice(end, end + segment.size)])
            end += segment.size
        self.values = torch.zeros(end, dtype=dtype, device=device)
        self.grads = torch.zeros_like(self.values)
        self.full_grads = self.grads
        self.matmul_grads = self.grads[:0]
        self.matmul_values = self.values[:0]

    def views(self, flat: Tensor, k: int) -> NamedTensors:
        """Return the parameters of network k as views of a flat tensor (P,)."""
        (place,) = self.places[k]
        segment = Segment(flat[place])
        return _place(self._configs[k].architecture, self._spec, segment)

    def module_views(self, flat: Tensor) -> NamedTensors:
        """Return what modules read (K, …), of networks of one architecture, as views."""
        segment = Segment(flat.view(len(self._configs), -1))
        return _place(self._configs[0].architecture, self._spec, segment)

    def extract(self, k: int, flat: Tensor) -> NamedTensors:
        """Copy the part of network k to CPU memory, of the values with their constants.

        Args:
            k: position of the network in the stack.
            flat: the values, or another tensor (P,) of their layout.
        """
        return {
            name: torch.empty(view.shape, dtype=view.dtype).copy_(view)
            for name, view in self._saved(flat, k).items()
        }

    def load(self, k: int, flat: Tensor, params: Mapping[str, Tensor]) -> None:
        """Set the part of network k in a flat tensor; see :meth:`extract`.

        Raises:
            CellError: if names or shapes are not those of the network.
        """
        targets = self._saved(flat, k)
        for name in [*targets, *params]:
            shape = tuple(targets[name].shape) if name in targets else None
            found = tuple(params[name].shape) if name in params else None
            if shape != found:
                raise CellError(
                    f"weights do not match the network {self._configs[k].architecture.label}: "
                    f"{name} is {found or 'missing'}, expected {shape or 'no such tensor'}"
                )
        for name, target in targets.items():
            target.copy_(params[name])

    def load_flat(self, values: Tensor) -> None:
        """Set the weights of all networks (P,)."""
        self.values.copy_(values)

    def _saved(self, flat: Tensor, k: int) -> NamedTensors:
        views = self.views(flat, k)
        if flat is self.values:
            views |= {name: constant[k] for name, constant in self.constants.items()}
        return views


def align(size: int) -> int:
    """Round a size up to whole cache lines, which matrix products read."""
    return -(-size // 64) * 64
