"""Tasks on datasets of PyTorch: the items of a user's ``Dataset``, read once into arrays."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from rnn.errors import TaskError
from rnn.tasks.datasets import LabelledSequences
from rnn.tasks.task import SPLITS, Array


def find_definition(found: Any, name: str) -> Any:
    """Return the class of a task, or a function that reads a user's dataset into one.

    Args:
        found: what the user's file has by this name: the class of a task, a dataset, datasets of
            the three splits, or a function or class that makes either, with the task's options.
        name: the name.
    """
    is_class = isinstance(found, type)
    if is_class and (hasattr(found, "sample") or not issubclass(found, Dataset)):
        return found
    make = found if callable(found) and not isinstance(found, Dataset) else lambda: found

    @functools.wraps(make, updated=())  # inspect finds the arguments
    def read(**options: Any) -> LabelledSequences:
        return _read_datasets(f"task {name}", make(**options))

    read.__name__ = name
    read.__module__ = name  # no class of this package: its exceptions are the user's
    return read


def _read_datasets(task: str, found: Any) -> LabelledSequences:
    """Return the task of a dataset, or of the datasets of its splits."""
    if isinstance(found, list | tuple) and len(found) == len(SPLITS):
        found = dict(zip(SPLITS, found, strict=True))
    if not isinstance(found, Mapping):
        found = {"dataset": found}
    elif found.keys() != set(SPLITS):
        names = ", ".join(map(str, found))[:80]
        raise TaskError(f"{task} has the datasets {names}: expected train, validation and test")
    for split, dataset in found.items():
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, Dataset):
            raise TaskError(
                f"{task}: {split} is of class {type(dataset).__name__}: expected a map-style "
                "Dataset of torch, or three of them: train, validation and test"
            )
    sizes = [len(dataset) for dataset in found.values()]
    least = 10 if len(found) == 1 else 1  # of one, a tenth is held out for each split
    if min(sizes) < least:
        raise TaskError(f"{task}: datasets of {sizes} items: expected {least} or more in each")
    arrays = _read_items(task, found)
    if len(found) > 1:
        arrays["split"] = np.repeat([SPLITS.index(split) for split in found], sizes)
    read = LabelledSequences(f"{task}, items (x, y) of {' + '.join(found)}", arrays)
    digest = hashlib.sha256()
    for name, values in arrays.items():
        digest.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
    read.data_sha256 = digest.hexdigest()
    return read


def _read_items(task: str, datasets: Mapping[str, Any]) -> dict[str, Array]:
    """Return arrays x (N, …) and y (N, …) of all items (x, y), those of a dataset in their order.

    Raises:
        TaskError: if an item is not like the first one, or memory does not suffice.
    """
    count = sum(map(len, datasets.values()))
    arrays: dict[str, Array] = {}
    row = 0
    for split, dataset in datasets.items():
        for index in range(len(dataset)):
            place = f"{task}: {split}[{index}]"
            item = _read_item(place, dataset[index])
            arrays = arrays or _allocate(task, count, item)
            for name, values in item.items():
                shape = arrays[name].shape[1:]
                dtype = arrays[name].dtype
                if (values.shape, values.dtype) != (shape, dtype):
                    raise TaskError(
                        f"{place} has {name} of shape {values.shape} and dtype {values.dtype}: "
                        f"expected {shape} and {dtype}, as in the first item; for sequences of "
                        "different lengths take sequences:FILE.npz"
                    )
                arrays[name][row] = values
            row += 1
    return arrays


def _read_item(place: str, item: Any) -> dict[str, Array]:
    if not isinstance(item, list | tuple) or len(item) != 2:
        raise TaskError(f"{place} is of class {type(item).__name__}: expected a pair (x, y)")
    pair = zip("xy", item, strict=True)
    return {
        name: part.numpy(force=True) if isinstance(part, Tensor) else np.asarray(part)
        for name, part in pair
    }


def _allocate(task: str, count: int, item: Mapping[str, Array]) -> dict[str, Array]:
    """Return arrays for a number of items like one; later they are copied once."""
    size = 2 * count * sum(values.nbytes for values in item.values())
    free = psutil.virtual_memory().available
    if size > free:
        raise TaskError(
            f"{task} needs {size / 2**30:.1f} GiB of memory, as its dataset is read as a whole, "
            f"and {free / 2**30:.1f} GiB are free: expected fewer or shorter items"
        )
    return {name: np.empty((count, *part.shape), part.dtype) for name, part in item.items()}
