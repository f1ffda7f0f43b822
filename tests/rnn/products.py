"""The matrix products of a training step, as torch is asked for them."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rnn.training import Run

Shape = tuple[int, int, int]
"""Of a product (i, j) by (j, k)."""


class Counting(TorchDispatchMode):
    """Counts products by their shapes; a batch of R counts as R."""

    def __init__(self):
        super().__init__()
        self.found: Counter[Shape] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            first, second = [a for a in args if isinstance(a, torch.Tensor)][-2:]
            batch = len(first) if first.dim() == 3 else 1
            self.found[*first.shape[-2:], second.shape[-1]] += batch
        elif name in ("matmul", "linear", "einsum", "dot", "mv", "convolution"):
            raise AssertionError(f"{name} is not counted here")
        return function(*args, **(kwargs or {}))


def products(run: Run) -> Counter[Shape]:
    """Take a run's next step; return its products."""
    step = next(iter(run._steps()))
    with Counting() as counting:
        run._program.step(*step[:2])
    return counting.found


def work_of(products: Counter[Shape]) -> int:
    """The multiplications of products."""
    return sum(i * j * k * count for (i, j, k), count in products.items())
