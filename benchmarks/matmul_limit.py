"""The matrix products of a training step, and how fast the machine takes them."""

import time
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rnn.training.loop import TrainLoop
from rnn.training.precision import configure_matmul

Shape = tuple[int, int, int]
"""Of a product (i, j) by (j, k)."""


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts products by their shapes while the context lasts; a batch of R counts as R."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[Shape] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Take note of an operation, and have it done."""
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            first, second = [a for a in args if isinstance(a, torch.Tensor)][-2:]
            batch = len(first) if first.dim() == 3 else 1
            self.found[*first.shape[-2:], second.shape[-1]] += batch
        elif name in ("matmul", "linear", "einsum", "dot", "mv", "convolution"):
            raise AssertionError(f"{name} is not counted here")
        return function(*args, **(kwargs or {}))


def param_shapes(run: TrainLoop) -> Counter[Shape]:
    """Take a run's next step; return its products."""
    reads, targets, _ = next(iter(run._steps()))
    counting = Counting()
    with counting:
        run._program.step(reads, targets)
    return counting.found


def work_of(param_shapes: Counter[Shape]) -> int:
    """Return the floating-point operations of products: a multiplication and a sum each."""
    return sum(2 * i * j * k * count for (i, j, k), count in param_shapes.items())


def least_seconds(param_shapes: Counter[Shape], dtype: torch.dtype, repeat: int = 5) -> float:
    """Measure what products take alone, their factors at hand: the machine's limit.

    Returns:
        The sum over all products of the least time that one of its shape took.
    """
    if dtype is torch.float32:
        configure_matmul("fp32", torch.device("cpu"))
    total = 0.0
    for (i, j, k), count in param_shapes.items():
        a, b = torch.rand(i, j).to(dtype), torch.rand(j, k).to(dtype)
        out = torch.empty(i, k, dtype=dtype)
        at_once = max(1, int(5e8 / (2 * i * j * k)))
        least = float("inf")
        for _ in range(repeat + 1):
            began = time.perf_counter()
            for _ in range(at_once):
                torch.mm(a, b, out=out)
            least = min(least, (time.perf_counter() - began) / at_once)
        total += count * least
    return total
