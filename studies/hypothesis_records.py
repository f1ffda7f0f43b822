"""Records of hypotheses: when a study stored each of them, and what was known then.

They tell a reader a prediction from an explanation (Nosek et al., *The Preregistration Revolution*,
2018).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from studies.hypotheses import Hypothesis

_Count = Annotated[int, Field(ge=0)]


class Registration(BaseModel):
    """What a study was when it stored hypotheses.

    Attributes:
        time: the time, UTC.
        started: number of trials that had been started.
        finished: number of trials that had been finished.
        planned: number of all trials.
        report_threshold: the study's ``report_threshold``.
        nuisance: its nuisance parameters.
    """

    model_config = ConfigDict(frozen=True)

    time: datetime
    started: _Count = 0
    finished: _Count = 0
    planned: _Count
    report_threshold: float | None = None
    nuisance: list[str] = []


class HypothesisRecord(BaseModel):
    """A hypothesis as a study stores it.

    Attributes:
        hypothesis: the hypothesis, with its margin.
        registered: what the study was when it stored the hypothesis.
        withdrawn: time at which the study's file no longer stated it, UTC; None if it does.
    """

    model_config = ConfigDict(frozen=True)

    hypothesis: Hypothesis
    registered: Registration
    withdrawn: datetime | None = None

    @property
    def is_preregistered(self) -> bool:
        """Whether it was stored before the study's first trial was started."""
        return self.registered.started == 0

    @property
    def mark(self) -> str:
        """When it was stored, for a reader: ``pre-registered at 2026-11-26 17:00 UTC``."""
        then = self.registered
        mark = f"pre-registered at {_format_time(then.time)}"
        if not self.is_preregistered:
            count, verb = (
                (then.finished, "finished") if then.finished else (then.started, "started")
            )
            mark = (
                f"added on {_format_time(then.time)}, after {count:,} of {then.planned:,} trials "
                f"{'was' if count == 1 else 'were'} {verb}"
            )
        return f"{mark}; withdrawn on {_format_time(self.withdrawn)}" if self.withdrawn else mark

    def find_changes(self, report_threshold: float | None, nuisance: Sequence[str]) -> list[str]:
        """List the settings that its test depends on and that have other values now."""
        now = {"report_threshold": report_threshold, "nuisance": list(nuisance)}
        return [name for name, value in now.items() if getattr(self.registered, name) != value]


def update_records(
    records: Sequence[HypothesisRecord], hypotheses: Sequence[Hypothesis], now: Registration
) -> list[HypothesisRecord]:
    """Return the records of a study whose file now states the given hypotheses.

    A hypothesis that is stated again keeps its record. One that no longer is stays, as withdrawn.
    """
    kept = [
        each
        if each.withdrawn or each.hypothesis in hypotheses
        else each.model_copy(update={"withdrawn": now.time})
        for each in records
    ]
    stated = [each.hypothesis for each in records if each.withdrawn is None]
    added = [each for each in hypotheses if each not in stated]
    return kept + [HypothesisRecord(hypothesis=each, registered=now) for each in added]


def _format_time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
