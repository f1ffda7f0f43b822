"""How networks that are trained to the end are measured: on text that they have not seen."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rnn.data.tokenizer import TokenCorpus
from rnn.models.factory import TrainableNetwork
from rnn.training.evaluation import compute_eval_losses, select_eval_windows, to_bits_per_byte
from rnn.training.loop import TrainLoop
from studies.config import StudyConfig

_DIGITS = 5
"""Of a lane's bits per character: their error is a thousandth of what lanes scatter by."""


@dataclass(frozen=True)
class EvalResult:
    """What a network came to.

    Attributes:
        value: of its trial, nats a symbol, by the study's objective; None if it is not finite.
        attributes: of :class:`studies.attributes.TrialRecord`.
    """

    value: float | None
    attributes: Mapping[str, Any]


class Evaluator:
    """Measures networks as a study wants it.

    Args:
        config: of the study.
        text: its splits; the test split is read only if the definition says so.
    """

    def __init__(self, config: StudyConfig, text: TokenCorpus) -> None:
        self._definition = config
        self._text = text

    def measure(self, run: TrainLoop, on_step: Callable[[], None]) -> list[EvalResult]:
        """Measure the members of a run that has come to its end, in their order."""
        curves = list(run.curves)
        run.swap_in_averaged_weights()
        lockstep = run.stack  # as it is now, whoever leaves the run meanwhile
        splits = {"validation": self._held_out(lockstep, "validation", on_step)}
        if self._definition.eval_split == "test":
            splits["test"] = self._held_out(lockstep, "test", on_step)
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
            found.append(EvalResult(value if is_finite else None, attributes))
        return found

    def _held_out(
        self, lockstep: TrainableNetwork, split: str, on_step: Callable[[], None]
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of each lane, (K, lanes), in nats a symbol and in bits a character."""
        evaluation = self._definition.evaluation
        tokens: Any = getattr(self._text, split)
        held_out = select_eval_windows(tokens, evaluation.windows, evaluation.window_length)
        losses = compute_eval_losses(lockstep, held_out, on_step).double()
        return losses, to_bits_per_byte(losses, held_out, self._text.tokenizer.token_byte_lengths)


def _of_lanes(split: str, bits: Tensor) -> dict[str, Any]:
    """Return what is recorded of a split's lanes (lanes,)."""
    count = len(bits)
    found: dict[str, Any] = {
        f"{split}_bits_per_byte": float(bits.mean()),
        f"{split}_windows": [round(lane, _DIGITS) for lane in bits.tolist()],
    }
    if count > 1:
        found[f"{split}_stderr"] = float(bits.std()) / math.sqrt(count)
    return found
