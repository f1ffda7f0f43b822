"""A trial that this worker holds, and what is still to be recorded of it."""

import math
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from optuna.trial import FrozenTrial

from studies.errors import LeaseLostError

RENEWALS = 4
"""In the length of a lease: three may fail before it runs out."""


class UnflushedValues(NamedTuple):
    """What is still to be recorded of a trial.

    Attributes:
        curve: values, by step.
        replace_all: whether they are to take the place of all that were recorded before.
        beginnings: how often the curve had begun anew.
    """

    curve: dict[int, float]
    replace_all: bool
    beginnings: int


class Claim:
    """A trial that this worker holds.

    Attributes:
        trial: as it was claimed, with the curve and the setbacks that it had.
        claim_token: the token of this claim.
        lost: set once another worker has taken the trial over.
        has_reported: whether values of the trial may have been recorded since it was claimed.
    """

    def __init__(self, trial: FrozenTrial, claim_token: str, lease_seconds: float) -> None:
        self.trial = trial
        self.claim_token = claim_token
        self.lost: LeaseLostError | None = None
        self.has_reported = False
        self.record_at = 0.0
        self._curve: dict[int, float] = {}
        self._anew = False
        self._beginnings = 0
        self._lock = threading.Lock()
        self._pause = lease_seconds / RENEWALS
        self.renewed()

    @property
    def trial_id(self) -> int:
        """The trial's id in the storage."""
        return self.trial._trial_id

    @property
    def due_at(self) -> float:
        """When something is to be recorded of the trial, on the monotonic clock."""
        return min(self.renew_at, self.record_at if self._curve or self._anew else math.inf)

    def report(self, step: int, value: float) -> None:
        """Have an intermediate value recorded; what is not recorded yet is kept."""
        with self._lock:
            self._curve[step] = value
            self.has_reported = True

    def begin_with(self, curve: Mapping[int, float]) -> None:
        """Have the trial's curve be this one and no longer, whatever was recorded before."""
        with self._lock:
            self._curve, self._anew = dict(curve), True
            self._beginnings += 1
            self.has_reported = True

    def unrecorded(self) -> UnflushedValues:
        """Return what is still to be recorded."""
        with self._lock:
            return UnflushedValues(self._curve.copy(), self._anew, self._beginnings)

    def recorded(self, values: UnflushedValues) -> None:
        """Take note that these values are recorded."""
        with self._lock:
            if values.beginnings != self._beginnings:
                return  # the curve has begun anew meanwhile: they do not count
            self._anew = False
            for step in values.curve:
                del self._curve[step]

    def renewed(self) -> None:
        """Take note that the lease is as good as new."""
        self.renew_at = time.monotonic() + self._pause
