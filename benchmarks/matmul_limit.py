"""Matrix products of a training step, and the time that the machine needs for them alone."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rnn.training.devices import configure_matmul
from rnn.training.loop import TrainLoop

Shape = tuple[int, int, int]
"""Sizes (i, j, k) of a product of (i, j) by (j, k)."""

_FREE_OPERATIONS = {
    "_local_scalar_dense", "_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty",
    "new_empty_strided",
}  # fmt: skip
"""Operations that compute nothing; views are recognized by their schema."""


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that counts operations that compute or copy: on a GPU, about the kernel launches.

    Attributes:
        operations: number of operations by name.
        products: number of matrix products by shape; a batch of R counts as R.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Counter[str] = Counter()
        self.products: Counter[Shape] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Count an operation and run it."""
        name = function.overloadpacket.__name__
        if not function.is_view and name not in _FREE_OPERATIONS:
            self.operations[name] += 1
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            first, second = [a for a in args if isinstance(a, torch.Tensor)][-2:]
            batch = len(first) if first.dim() == 3 else 1
            self.products[*first.shape[-2:], second.shape[-1]] += batch
        elif name in ("matmul", "linear", "einsum", "dot", "mv", "convolution"):
            raise AssertionError(f"unexpected operation {name}")
        return function(*args, **(kwargs or {}))


def count_operations(work: Callable[[], object]) -> int:
    """Run work; return the number of its operations that compute or copy."""
    counter = OperationCounter()
    with counter:
        work()
    return counter.operations.total()


def matmul_shapes(run: TrainLoop) -> Counter[Shape]:
    """Run the next step of a train loop; return its products."""
    window, _ = next(run._windows())
    counter = OperationCounter()
    with counter:
        run._train_step.step(window)
    return counter.products


def min_seconds(shapes: Counter[Shape], dtype: torch.dtype) -> float:
    """Measure the time of products alone, with factors in the cache: the machine's limit.

    Returns:
        Sum over all products of the lesser of two times for their shape.
    """
    if dtype is torch.float32:
        configure_matmul("fp32", torch.device("cpu"))
    total = 0.0
    for (i, j, k), count in shapes.items():
        a, b = torch.rand(i, j).to(dtype), torch.rand(j, k).to(dtype)
        out = torch.empty(i, k, dtype=dtype)
        repetitions = max(1, int(5e8 / (2 * i * j * k)))
        minimum = float("inf")
        for _ in range(2):
            start = time.perf_counter()
            for _ in range(repetitions):
                torch.mm(a, b, out=out)
            minimum = min(minimum, (time.perf_counter() - start) / repetitions)
        total += count * minimum
    return total
