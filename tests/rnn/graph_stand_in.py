"""Graphs of a training step on a processor, with the rules of a CUDA graph.

A recording runs nothing, and a replay runs no Python code of the work: it repeats the recorded
operations on the recorded memory. It gives the right results only if the work is the same
operations on the same memory in every call. What a recording on a GPU does not allow is an error
here too: reading a computed number, and copying numbers from the host's memory. A replay fails if
memory that the graph does not own has been freed.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

READING = {
    "_local_scalar_dense", "_unique", "_unique2", "bincount", "equal", "histc", "is_nonzero",
    "masked_select", "nonzero", "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operations whose result, or its shape, the host waits for."""

COPYING = {"lift_fresh", "lift_fresh_copy"}
"""Operations that make a tensor of the host's numbers."""


@dataclass(frozen=True)
class OutsideTensor:
    """A tensor in memory that the graph does not own."""

    storage: StorageWeakRef
    dtype: torch.dtype
    offset: int
    size: torch.Size
    stride: tuple[int, ...]

    def materialize(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise RuntimeError("the graph uses memory that has been freed")
        tensor = torch.empty(0, dtype=self.dtype)
        return tensor.set_(storage, self.offset, self.size, self.stride)


class StandInGraph(TorchDispatchMode):
    """Records the operations that run in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor | None]]] = []
        self._outside: dict[int, tuple[StorageWeakRef, Tensor]] = {}
        self._own: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        tensors = tensor_leaves((args, kwargs))
        reads_mask = name.startswith("index") and any(t.dtype == torch.bool for t in tensors[1:])
        if name in READING or reads_mask:
            raise RuntimeError(f"{name} reads a computed number")
        if name in COPYING:
            raise RuntimeError(f"{name} copies from the host's memory")
        before = {storage_id(tensor) for tensor in tensors}
        for tensor in tensors:
            self._save_content(tensor)
        kept_args, kept_kwargs = tree_map_only(Tensor, self._keep, (args, kwargs or {}))
        result = function(*args, **(kwargs or {}))
        results = tensor_leaves(result)
        self._own |= {storage_id(tensor) for tensor in results} - before
        own = [each.detach() if storage_id(each) in self._own else None for each in results]
        self.operations.append((function, kept_args, kept_kwargs, own))
        return result

    def restore(self) -> None:
        """Undo what the operations have written, since a recording runs nothing."""
        for storage, content in self._outside.values():
            memory = torch.UntypedStorage._new_with_weak_ptr(storage.cdata)
            torch.empty(0, dtype=torch.uint8).set_(memory).copy_(content)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, own in self.operations:
            args, kwargs = tree_map_only(OutsideTensor, OutsideTensor.materialize, (args, kwargs))
            repeated = tensor_leaves(function(*args, **kwargs))
            for old, new in zip(own, repeated, strict=True):
                if old is not None and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def _save_content(self, tensor: Tensor) -> None:
        key = storage_id(tensor)
        if key in self._own or key in self._outside:
            return
        storage = tensor.untyped_storage()
        content = torch.empty(0, dtype=torch.uint8).set_(storage).clone()
        self._outside[key] = StorageWeakRef(storage), content

    def _keep(self, tensor: Tensor) -> Tensor | OutsideTensor:
        key = storage_id(tensor)
        if key in self._own:
            return tensor.detach()
        place = tensor.storage_offset(), tensor.size(), tensor.stride()
        return OutsideTensor(self._outside[key][0], tensor.dtype, *place)


class StandInRecorder:
    """Records graphs on a processor; see :class:`rnn.training.step.CudaGraphRecorder`."""

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def record(self, work: Callable[[], None]) -> StandInGraph:
        graph = StandInGraph()
        try:
            with graph, refuse_reading():
                work()
        finally:
            graph.restore()
        return graph


@contextlib.contextmanager
def refuse_reading() -> Iterator[None]:
    """Refuse what reads a tensor on a processor without an operation."""

    def read(*_: object, **__: object) -> None:
        raise RuntimeError("the host reads a computed number")

    with mock.patch.multiple(Tensor, tolist=read, numpy=read, cpu=read):
        yield


def tensor_leaves(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
