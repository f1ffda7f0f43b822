"""Labelled sequences of different lengths: which of two sensors fired first."""

import numpy as np


class PulseOrder:
    input_size = 2
    classes = 2
    eval_lengths = (60, 120)

    def __init__(self, *, length: int = 30) -> None:
        self.length = length

    def sample(self, split, rng, count, length=None):
        steps, rows = length or self.length, np.arange(count)
        lengths = rng.integers(steps // 2, steps, count, endpoint=True)
        first, second = rng.integers(lengths // 2), rng.integers(lengths // 2, lengths)
        labels = rng.integers(2, size=count)
        inputs = rng.normal(0, 0.1, (count, steps, 2))
        inputs[rows, first, labels] += 1
        inputs[rows, second, 1 - labels] += 1
        step = np.arange(steps)
        inputs[step >= lengths[:, None]] = 0  # padding: all sequences of a batch have one length
        return {
            "inputs": inputs,
            "targets": np.broadcast_to(labels[:, None], (count, steps)),
            "mask": step == lengths[:, None] - 1,  # the only target is at the last real step
            "slices": {"gap": (second - first) // 10 * 10},  # results by distance, in tens
        }
