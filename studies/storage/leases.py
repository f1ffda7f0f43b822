"""The lease that a worker holds a running trial by, and the judgement that it has run out."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Self

LEASE = "lease"
"""The system attribute of a running trial that holds its lease."""


@dataclass(frozen=True)
class Lease:
    """What a worker has said of a trial that it holds.

    Attributes:
        claim_token: the worker's name, a slash, and a token of this claim alone.
        seconds: without a renewal, after which the trial is anybody's.
        heartbeats: how often the worker has said that it lives.
    """

    claim_token: str
    seconds: float
    heartbeats: int = 0

    @classmethod
    def parse(cls, stored: str) -> Self:
        """Return the lease that a stored attribute holds."""
        return cls(**json.loads(stored))

    @property
    def stored(self) -> str:
        """The lease as it is stored."""
        return json.dumps(asdict(self))

    @property
    def worker(self) -> str:
        """The name of the worker, whatever it has claimed."""
        return self.claim_token.rpartition("/")[0] or self.claim_token

    def with_heartbeat(self) -> "Lease":
        """Return the lease with one more renewal."""
        return replace(self, heartbeats=self.heartbeats + 1)


@dataclass
class _Observation:
    lease: Lease
    unchanged_for: float = 0.0


class LeaseMonitor:
    """Judges which leases have run out, by the observer's own monotonic clock alone.

    A lease has run out when the observer has seen it unchanged, in one look after another, for the
    lease's length. Clocks of other machines do not count, nor does the time of day. The time
    between two looks counts up to a limit: an observer that was itself held up (by a signal, a
    closed lid, a database that did not answer) has not watched meanwhile, and those who were held
    up with it get the time to renew.
    """

    def __init__(self) -> None:
        self._watched: dict[int, _Observation] = {}
        self._looked: float | None = None

    def observe(self, leases: Iterable[tuple[int, Lease]], now: float) -> list[int]:
        """Take in what is stored now.

        Args:
            leases: of the running trials, by trial id.
            now: seconds of a monotonic clock.

        Returns:
            The trials whose leases have run out.
        """
        elapsed = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        before, self._watched = self._watched, {}
        stale = []
        for trial_id, lease in leases:
            watched = before.get(trial_id)
            if watched is None or watched.lease != lease:
                watched = _Observation(lease)
            else:
                watched.unchanged_for += min(elapsed, lease.seconds / 2)
            self._watched[trial_id] = watched
            if watched.unchanged_for >= lease.seconds:
                stale.append(trial_id)
        return stale

    def durations(self) -> list[float]:
        """Return the lengths of the leases that were last seen, in seconds."""
        return [watched.lease.seconds for watched in self._watched.values()]

    def reset(self) -> None:
        """Begin anew: the storage could not be reached, and nobody could renew."""
        self._watched.clear()
        self._looked = None
