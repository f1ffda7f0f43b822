"""Studies whose trials workers hold are not renamed, copied, deleted or retried."""

import time
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.errors import StudyHeldError, StudyNotFoundError
from studies.storage.active_workers import read_active_workers
from studies.storage.engine import redact
from studies.storage.leases import LeaseMonitor
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_rows import STUDIES, TRIALS
from studies.text import did_you_mean, shorten

MAX_POLL_SECONDS = 5.0
"""Longest time between two looks at the leases of a study."""

_MAX_LISTED = 5


def find_study(connection: Connection, name: str, lock: bool = False) -> int:
    """Return the id of a study.

    Args:
        connection: connection in a transaction.
        name: name of the study.
        lock: whether to lock the study until the transaction ends.

    Raises:
        StudyNotFoundError: if it does not exist; the message lists the studies that do.
    """
    query = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)
    study_id = connection.scalar(query.with_for_update() if lock else query)
    if study_id is None:
        names = sa.select(STUDIES.c.study_name).order_by(STUDIES.c.study_name)
        existing = connection.scalars(names).all()
        known = shorten(", ".join(existing) or "none", 1000)
        raise StudyNotFoundError(
            f"study {shorten(name)!r} is not in {redact(connection.engine.url)}: "
            f"{did_you_mean(name, existing)}check the name (existing studies: {known})"
        )
    return int(study_id)


def lock_unheld(connection: Connection, name: str) -> int:
    """Lock a study and its trials until the transaction ends; return its id.

    Workers skip locked trials, so none is claimed meanwhile.

    Raises:
        StudyNotFoundError: if it does not exist.
        StudyHeldError: if workers hold trials of it.
    """
    study_id = find_study(connection, name, lock=True)
    ids = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    connection.execute(ids.order_by(TRIALS.c.trial_id).with_for_update())
    require_unheld(connection, name, study_id)
    return int(study_id)


def require_unheld(connection: Connection, name: str, study_id: int) -> None:
    """Check that no worker holds a trial of a study.

    Raises:
        StudyHeldError: if one does; the message names the workers.
    """
    workers = read_active_workers(connection, study_id)
    if not workers:
        return
    listed = "; ".join(worker.description for worker in workers[:_MAX_LISTED])
    others = len(workers) - _MAX_LISTED
    more = f"; and {others} other{'s' * (others > 1)}" if others > 0 else ""
    raise StudyHeldError(
        f"trials of study {name!r} are held: {listed}{more}; stop these workers first; --wait "
        "waits for them, and for the leases of those that died"
    )


def wait_until_unheld(
    storage: LeasedRDBStorage, name: str, print_line: Callable[[str], None]
) -> None:
    """Wait until no worker holds a trial of a study.

    As a worker does, this observes the leases, and requeues the trials of those that expire.

    Args:
        storage: storage that holds the study, opened for writing.
        name: name of the study.
        print_line: prints what is waited for, once, and again when it changes.

    Raises:
        StudyNotFoundError: if the study does not exist.
    """
    monitor = LeaseMonitor()
    shown = None
    while True:
        with storage.reading() as connection:
            study_id = find_study(connection, name)
            workers = read_active_workers(connection, study_id)
        if not workers:
            return
        holders = [(worker.name, worker.trials) for worker in workers]
        if holders != shown:
            shown = holders
            print_line(f"waiting: {'; '.join(each.description for each in workers[:_MAX_LISTED])}")
        storage.expire_leases(study_id, monitor, time.monotonic)
        time.sleep(min([MAX_POLL_SECONDS, *(seconds / 8 for seconds in monitor.durations())]))
