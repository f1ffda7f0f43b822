"""A synthetic task: repeat the number that was read some steps before."""

import numpy as np


class DelayedEcho:
    input_size = output_size = 1
    needs_input = False  # a target is an input of an earlier step

    def __init__(self, *, delay: int = 3, length: int = 20, noise: float = 0.0) -> None:
        self.delay, self.length, self.noise = delay, length, noise

    def sample(self, split, rng, count):
        values = rng.uniform(-1, 1, (count, self.length))
        targets = np.roll(values, self.delay, axis=1)
        mask = np.broadcast_to(np.arange(self.length) >= self.delay, values.shape)
        if split == "train":  # held-out data must not depend on an option that varies
            values = values + self.noise * rng.normal(size=values.shape)
        return {"inputs": values, "targets": targets, "mask": mask}
