"""A forecast with a loss of its own: the quantiles 0.1, 0.5 and 0.9 of the next value."""

import numpy as np

LENGTH = 48
SPANS = {"train": (0, 1600), "validation": (1600, 1800), "test": (1800, 2000)}  # split in time


class Quantiles:
    input_size = 1
    output_size = 3
    standardize = True  # inputs; with an own loss, targets stay as they are
    metrics = {"inside": "maximize"}

    def __init__(self) -> None:
        # In place of a file: self.series = np.loadtxt(folder / "tides.csv"), with an argument
        # folder and self.files = ["tides.csv"].
        hours, rng = np.arange(2000), np.random.RandomState(0)
        scale = 0.2 + 0.2 * (hours % 12 < 6)
        self.series = np.sin(2 * np.pi * hours / 12.4) + scale * rng.normal(size=2000)

    def sample(self, split, rng, count):
        start, end = SPANS[split]
        if split == "train":
            first = rng.integers(start, end - LENGTH, count)
        else:  # every value of the span is predicted once; inputs may be from before its start
            first = np.arange(start, end, LENGTH) - 1
        steps = first[:, None] + np.arange(LENGTH)
        targets = self.series[np.minimum(steps + 1, end - 1)]
        return {
            "inputs": self.series[np.minimum(steps, end - 1)],
            "targets": np.repeat(targets[..., None], 3, axis=2),  # as many as outputs
            "mask": steps + 1 < end,
        }

    def loss(self, outputs, targets):
        """Return the pinball loss (N,) of tensors (N, 3)."""
        error = targets - outputs
        quantiles = outputs.new_tensor([0.1, 0.5, 0.9])
        return (quantiles * error).maximum((quantiles - 1) * error).mean(1)

    def inside(self, outputs, targets):
        """Return whether each value is between the first and the last quantile (N,)."""
        low, _, high = outputs.unbind(1)
        return ((low <= targets[:, 0]) & (targets[:, 0] <= high)).float()
