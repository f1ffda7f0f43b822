"""Polyphonic music: predict the next chord of a chorale, 88 keys that are pressed or not."""

from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat

PARTS = {"train": "traindata", "validation": "validdata", "test": "testdata"}


class Chorales:
    """Chorales of J. S. Bach as piano rolls, of Allan & Williams (2005).

    In the form of Boulanger-Lewandowski et al. (2012), with their splits: 229, 76 and 77 chorales.
    The loss of a step is the negative log-likelihood of the next chord, summed over the keys.

    Args:
        folder: folder of this file; ``JSB_Chorales.mat`` is to be there.
        length: steps of a sequence of training, from a random place of a chorale. Held-out chorales
            are whole.
    """

    input_size = 88
    output_size = 88
    loss_unit = "nats"
    metrics = {"accuracy": "maximize"}
    files = ["JSB_Chorales.mat"]

    def __init__(self, folder: Path, *, length: int = 64) -> None:
        path = folder / self.files[0]
        if not path.is_file():
            raise FileNotFoundError(f"{path} not found: docs/how-to/chorales.md says where it is")
        rolls = loadmat(path)
        self.length = length
        self.rolls = {}
        for split, name in PARTS.items():
            self.rolls[split] = [roll.astype(np.float32) for roll in rolls[name][0]]

    def sample(self, split, rng, count):
        rolls = self.rolls[split]
        length = max(len(roll) for roll in rolls) - 1
        if split == "train":
            length = self.length
            rolls = [
                cut(rolls[number], length, rng) for number in rng.integers(len(rolls), size=count)
            ]
        inputs = np.zeros((len(rolls), length, 88), np.float32)
        targets = np.zeros_like(inputs)
        mask = np.zeros(inputs.shape[:2], bool)
        for number, roll in enumerate(rolls):
            steps = len(roll) - 1
            inputs[number, :steps] = roll[:-1]
            targets[number, :steps] = roll[1:]
            mask[number, :steps] = True
        return {"inputs": inputs, "targets": targets, "mask": mask}

    def loss(self, outputs, targets):
        """Return the negative log-likelihood (N,) of chords (N, 88)."""
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            outputs, targets, reduction="none"
        )
        return losses.sum(1)

    def accuracy(self, outputs, targets):
        """Return the right keys of each chord (N,), as a share of those played or predicted."""
        is_predicted = outputs > 0
        is_played = targets > 0
        either = (is_predicted | is_played).sum(1)
        return (is_predicted & is_played).sum(1) / either.clamp(min=1)


def cut(roll, length, rng):
    """Return length + 1 steps from a random place of a roll, or the whole roll if it is shorter."""
    first = rng.integers(max(len(roll) - length, 1))
    return roll[first : first + length + 1]
