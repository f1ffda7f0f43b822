"""How networks that are trained to the end are measured: on text that they have not seen."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rnn.evaluation import bits_per_character, held_out_lanes, held_out_losses
from rnn.networks import Network
from rnn.training import Run
from rnn.vocabulary import Text
from studies.definition import Definition

_DIGITS = 5
"""Of a lane's bits per character: their error is a thousandth of what lanes scatter by."""


@dataclass(frozen=True)
class Measured:
    """What a network came to.

    Attributes:
        value: of its trial, nats a symbol, by the study's objective; None if it is not finite.
        attributes: of :class:`studies.records.TrialRecord`.
    """

    value: float | None
    attributes: Mapping[str, Any]


class Measuring:
    """Measures networks as a study wants it.

    Args:
        definition: of the study.
        text: its splits; the test split is read only if the definition says so.
    """

    def __init__(self, definition: Definition, text: Text) -> None:
        self._definition = definition
        self._text = text

    def measure(self, run: Run, between_steps: Callable[[], None]) -> list[Measured]:
        """Measure the members of a run that has come to its end, in their order."""
        curves = list(run.curves)
        run.take_average()
        population = run.population  # as it is now, whoever leaves the run meanwhile
        splits = {"validation": self._held_out(population, "validation", between_steps)}
        if self._definition.evaluate == "test":
            splits["test"] = self._held_out(population, "test", between_steps)
        found = []
        for k, curve in enumerate(curves):
            training = min(curve.values())
            validation = float(splits["validation"][0][k].mean())
            attributes: dict[str, Any] = {
                "training_loss": training,
                "validation_loss": validation,
            }
            for split, (_, bits) in splits.items():
                attributes |= _of_lanes(split, bits[k])
            value = training if self._definition.objective == "training" else validation
            numbers = (number for number in attributes.values() if isinstance(number, float))
            is_finite = all(map(math.isfinite, numbers))
            found.append(Measured(value if is_finite else None, attributes))
        return found

    def _held_out(
        self, population: Network, split: str, between_steps: Callable[[], None]
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of each lane, (K, lanes), in nats a symbol and in bits a character."""
        evaluation = self._definition.evaluation
        symbols: Any = getattr(self._text, split)
        held_out = held_out_lanes(symbols, evaluation.lanes, evaluation.lane_length)
        losses = held_out_losses(population, held_out, between_steps).double()
        return losses, bits_per_character(losses, held_out, self._text.vocabulary.lengths)


def _of_lanes(split: str, bits: Tensor) -> dict[str, Any]:
    """Return what is recorded of a split's lanes (lanes,)."""
    count = len(bits)
    found: dict[str, Any] = {
        f"{split}_bits_per_character": float(bits.mean()),
        f"{split}_lanes": [round(lane, _DIGITS) for lane in bits.tolist()],
    }
    if count > 1:
        found[f"{split}_error"] = float(bits.std()) / math.sqrt(count)
    return found
