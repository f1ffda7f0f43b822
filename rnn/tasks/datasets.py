"""Tasks on stored sequences, and two of them: small images and signals with ten classes."""

import random
from functools import cache

import numpy as np

from rnn.errors import TaskError
from rnn.tasks.task import SPLITS, Array, Sample, Split

_MAX_SLICES = 20
"""Number of classes up to which results are recorded by class."""


class DataSet:
    """A task on N stored sequences of T steps. Training draws them at random, with replacement.

    Args:
        x: inputs (N, T, …).
        y: targets (N,) or (N, T, …).
        rows: numbers of the sequences of each split.
        mask: weights of the targets (N, T); None if all are 1.
    """

    def __init__(
        self, x: Array, y: Array, rows: dict[Split, Array], mask: Array | None = None
    ) -> None:
        self._arrays = {"inputs": x, "targets": y, **({} if mask is None else {"mask": mask})}
        self._rows = rows

    def sample(self, split: Split, rng: np.random.Generator, count: int) -> Sample:
        rows = self._rows[split]
        if split == "train":
            rows = rng.choice(rows, count)
        drawn: Sample = {name: array[rows] for name, array in self._arrays.items()}
        if getattr(self, "classes", _MAX_SLICES + 1) <= _MAX_SLICES:
            drawn["slices"] = {"class": drawn["targets"]}
        return drawn


def split_rows(count: int, train: int, validation: int) -> dict[Split, Array]:
    """Split numbers below a count at random, the same on every machine.

    Args:
        count: number of sequences.
        train: percentage for training.
        validation: percentage for validation; the rest is for the test.
    """
    # NumPy promises that the numbers of RandomState never change.
    rows = np.random.RandomState(0).permutation(count)
    borders = count * train // 100, count * (train + validation) // 100
    return dict(zip(SPLITS, np.split(rows, borders), strict=True))


class Digits(DataSet):
    """Recognise a handwritten digit, of which a step is a row of 8 pixels, or one pixel.

    The 1797 images of 8 × 8 pixels that scikit-learn ships, from Alpaydin & Kaynak, *Optical
    Recognition of Handwritten Digits*, 1998. 60% are for training, 20% each for validation and
    test.
    """

    classes = 10

    def __init__(self, *, pixelwise: bool = False) -> None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        self.input_size = 1 if pixelwise else 8
        steps = images.reshape(len(images), -1, self.input_size) / 16
        super().__init__(steps, labels, split_rows(len(images), 60, 20))


class MNIST1D(DataSet):
    """Recognise a digit that is drawn as a noisy line of 40 points, of which a step is one.

    Greydanus & Kobak, *Scaling Down Deep Learning with MNIST-1D*, 2024. The test is the published
    one, of 1000 lines; of the 4000 others the last 1000 are for validation.
    """

    input_size = 1
    classes = 10

    def __init__(self) -> None:
        lines, labels = _make_mnist1d()
        rows = np.split(np.arange(len(labels)), (3000, 4000))
        super().__init__(lines, labels, dict(zip(SPLITS, rows, strict=True)))


@cache
def _make_mnist1d() -> tuple[Array, Array]:
    """Return lines (5000, 40, 1) and labels (5000,), those of the published test last."""
    try:
        from mnist1d.data import make_dataset
    except ImportError as error:
        raise TaskError(
            "task mnist1d needs the package mnist1d: install it with pip install "
            "'rnn-search[mnist1d]', or pip install '.[mnist1d]' in a clone"
        ) from error
    # The package seeds the global generators.
    states = random.getstate(), np.random.get_state()
    try:
        data = make_dataset()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    lines = np.concatenate((data["x"], data["x_test"]))[..., None]
    return lines, np.concatenate((data["y"], data["y_test"]))
