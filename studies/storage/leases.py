"""Leases of running trials, and the detection of expired ones."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Self

LEASE = "lease"
"""System attribute of a running trial: its lease."""

HEARD = "heard"
"""Field of a stored lease: when the database wrote it, by its own clock. No lease depends on it."""

DEFAULT_LEASE_SECONDS: float = 120
"""Duration of a lease, unless its worker chooses another; also that of an unreadable lease."""

MAX_LEASE_SECONDS: float = 7 * 86400
"""Longest duration of a lease: trials under a longer one might never run again."""


@dataclass(frozen=True)
class Lease:
    """A worker's temporary hold on a trial.

    Attributes:
        claim_token: name of the worker, a slash, and a token unique to the claim.
        seconds: time without a heartbeat after which the lease expires.
        heartbeats: number of heartbeats since the claim.
    """

    claim_token: str
    seconds: float
    heartbeats: int = 0

    @classmethod
    def parse(cls, stored: str) -> Self:
        """Parse a stored attribute; fields that another version may have added are ignored.

        An unreadable lease belongs to no known claim: its trial cannot be written to. It has the
        default duration and differs from other unreadable ones, so it expires unless it changes.
        """
        try:
            fields = json.loads(stored)
            token, seconds = fields["claim_token"], fields["seconds"]
            heartbeats = fields["heartbeats"]
            is_valid = (
                isinstance(token, str)
                and type(seconds) in (int, float)
                and 0 < seconds <= MAX_LEASE_SECONDS
                and type(heartbeats) is int
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            is_valid = False
        if is_valid:
            return cls(token, seconds, heartbeats)
        digest = hashlib.sha256(repr(stored).encode()).hexdigest()
        return cls(f"unreadable/{digest}", DEFAULT_LEASE_SECONDS)

    @property
    def stored(self) -> str:
        """The lease as a stored attribute."""
        return json.dumps(asdict(self))

    @property
    def worker(self) -> str:
        """Name of the worker, the same for all of its claims."""
        return self.claim_token.rpartition("/")[0] or self.claim_token

    def with_heartbeat(self) -> "Lease":
        """Return the lease with one more heartbeat."""
        return replace(self, heartbeats=self.heartbeats + 1)


@dataclass
class _Observation:
    lease: Lease
    unchanged_for: float = 0.0


class LeaseMonitor:
    """Detects expired leases by the observer's own monotonic clock.

    A lease has expired when it was unchanged in consecutive observations that span its duration.
    The time between two observations counts up to half a duration: an observer that was suspended
    itself (by a signal, a closed lid, a database that did not answer) has observed nothing, and
    workers that were suspended with it get time for a heartbeat.
    """

    def __init__(self) -> None:
        self._observations: dict[int, _Observation] = {}
        self._observed_at: float | None = None

    def observe(self, leases: Iterable[tuple[int, Lease]], now: float) -> list[int]:
        """Record the stored leases and return the ids of trials whose leases have expired.

        Args:
            leases: trial ids and leases of the running trials.
            now: seconds of a monotonic clock.
        """
        elapsed = 0.0 if self._observed_at is None else now - self._observed_at
        self._observed_at = now
        previous, self._observations = self._observations, {}
        expired = []
        for trial_id, lease in leases:
            observation = previous.get(trial_id)
            if observation is None or observation.lease != lease:
                observation = _Observation(lease)
            else:
                observation.unchanged_for += min(elapsed, lease.seconds / 2)
            self._observations[trial_id] = observation
            if observation.unchanged_for >= lease.seconds:
                expired.append(trial_id)
        return expired

    def durations(self) -> list[float]:
        """Return the durations of the leases last observed, in seconds."""
        return [observation.lease.seconds for observation in self._observations.values()]

    def reset(self) -> None:
        """Forget all observations, after an outage in which no worker could send a heartbeat."""
        self._observations.clear()
        self._observed_at = None
