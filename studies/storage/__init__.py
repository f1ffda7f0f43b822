"""Optuna's RDB storage, made safe for many workers that share one study.

The tables are Optuna's: plain Optuna reads and drives such a study. This package adds rules for
writing to them.

- A study and all its grid trials are created in one transaction. A grid trial is one row for its
  whole life: WAITING with fixed parameters, RUNNING, perhaps requeued or paused, then COMPLETE,
  PRUNED or FAIL for good.
- A worker claims a waiting trial and stores a :class:`~studies.storage.leases.Lease` with it: a
  claim token that no other claim has, a duration, and a heartbeat counter.
- Every later write of the worker is one transaction that first checks its claim token. Otherwise
  nothing is written and :class:`~studies.errors.LeaseLostError` is raised.
- A lease expires when an observer has seen its heartbeat unchanged for the lease's duration, on the
  observer's own monotonic clock, while the storage was writable. The trial is then requeued. Clocks
  of different machines are never compared.
- On SQLite, writers begin with ``BEGIN IMMEDIATE``, since ``SELECT … FOR UPDATE`` is ignored there.

Open a storage with :func:`studies.storage.open.open_storage`.
"""
