"""A trial that a worker has claimed, and its values that are not written yet."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping

from optuna.trial import FrozenTrial

from studies.attributes import CHECKPOINTED
from studies.errors import LeaseLostError
from studies.storage.leases import PendingWrite

HEARTBEATS_PER_LEASE = 4
"""Heartbeats in the duration of a lease: three may fail before it expires."""

FLUSH_INTERVAL = 1.0
"""Seconds between two writes of a running trial's values: each costs a commit."""


class Claim:
    """A trial that this worker has claimed, and its values that are not written yet.

    Attributes:
        trial: the trial as it was claimed, with its curve and retry counts.
        claim_token: token of this claim.
        lost: set once another worker has claimed the trial.
        has_reported: whether values may have been written since the trial was claimed.
        was_paused: whether the trial was paused before.
    """

    def __init__(
        self, trial: FrozenTrial, claim_token: str, lease_seconds: float, was_paused: bool = False
    ) -> None:
        self.trial = trial
        self.claim_token = claim_token
        self.was_paused = was_paused
        self.lost: LeaseLostError | None = None
        self.has_reported = False
        self._is_checkpointed = CHECKPOINTED in trial.system_attrs
        self._record_checkpoint = False
        self._curve: dict[int, float] = {}
        self._replace_all = False
        self._lock = threading.Lock()
        self._heartbeat_interval = lease_seconds / HEARTBEATS_PER_LEASE
        self._heartbeat_at = time.monotonic() + self._heartbeat_interval
        self._flush_at = 0.0

    @property
    def trial_id(self) -> int:
        """Id of the trial in the storage."""
        return self.trial._trial_id

    @property
    def due_at(self) -> float:
        """Monotonic time at which the next write is due."""
        has_values = self._curve or self._replace_all or self._record_checkpoint
        return min(self._heartbeat_at, self._flush_at if has_values else math.inf)

    def report(self, step: int, value: float) -> None:
        """Add an intermediate value to the next write."""
        with self._lock:
            self._curve[step] = value
            self.has_reported = True

    def replace_curve(self, curve: Mapping[int, float]) -> None:
        """Have the next write replace all values written before by this curve."""
        with self._lock:
            self._curve, self._replace_all = dict(curve), True
            self.has_reported = True

    def record_checkpoint(self) -> None:
        """Have the next write record that a checkpoint was written, unless that is recorded."""
        with self._lock:
            if not self._is_checkpointed:
                self._is_checkpointed = self._record_checkpoint = True

    @contextlib.contextmanager
    def pending_write(self) -> Iterator[PendingWrite]:
        """Take what is to be written, for the duration of the write; keep it if that fails."""
        heartbeat = self._heartbeat_at <= time.monotonic()
        with self._lock:
            write = PendingWrite(
                self.trial_id,
                self.claim_token,
                self._curve,
                self._replace_all,
                heartbeat,
                self._record_checkpoint,
            )
            self._curve, self._replace_all, self._record_checkpoint = {}, False, False
        try:
            yield write
        except BaseException:
            with self._lock:
                self._record_checkpoint |= write.checkpointed
                if not self._replace_all:  # else the values do not count any more
                    self._curve = {**write.curve, **self._curve}
                    self._replace_all = write.replace_all
            raise
        now = time.monotonic()
        self._flush_at = now + FLUSH_INTERVAL
        if heartbeat:
            self._heartbeat_at = now + self._heartbeat_interval
