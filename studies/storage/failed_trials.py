"""Retries of failed trials: they wait again, and keep what they were."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import (
    AUDIT,
    CHECKPOINTED,
    EARLIER_FAILURES,
    EVAL_WINDOWS,
    FAILURE,
    LOOKS,
    REPORT_CLAIM,
    AuditState,
    Failure,
    TrialRecord,
)
from studies.errors import StudiesError
from studies.storage.backup import merge_log
from studies.storage.held_trials import lock_unheld
from studies.storage.leases import LEASE
from studies.storage.storage import LeasedRDBStorage
from studies.storage.study_changes import parse_or_none
from studies.storage.trial_rows import (
    INTERMEDIATE_VALUES,
    STUDY_SYSTEM_ATTRS,
    STUDY_USER_ATTRS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    attr_row,
    delete_attrs,
    is_grid_trial,
    replace_attrs,
)


def retry_trials(storage: LeasedRDBStorage, name: str, kinds: Collection[str]) -> dict[str, int]:
    """Set failed grid trials waiting again, as if they had never been trained.

    What each was is appended to its system attribute :data:`EARLIER_FAILURES`; its retries count
    from 0 again.

    Args:
        storage: storage that holds the study.
        name: name of the study.
        kinds: ``failed`` for trials that used up their retries, ``diverged`` for those whose loss
            was not finite.

    Returns:
        The number of trials of each kind that were set waiting.

    Raises:
        StudyNotFoundError: if the study does not exist.
        StudyHeldError: if workers hold trials of it.
        StudiesError: if a planned look was taken, whose verdicts hold for the runs that it had.
    """
    with storage.transaction() as connection:
        study_id = lock_unheld(connection, name)
        counts = dict.fromkeys(kinds, 0)
        records: dict[int, list[dict[str, Any]]] = {}
        for trial_id, kind, record in _read_failures(connection, study_id):
            if kind in counts:
                counts[kind] += 1
                records[trial_id] = record
        if records and _has_looks(connection, study_id):
            raise StudiesError(
                f"study {name!r} has taken a planned look, whose verdicts hold for the runs that "
                "it had: expected a study without"
            )
        if records:
            _reopen(connection, study_id, records)
    merge_log(storage)
    return counts


def _has_looks(connection: Connection, study_id: int) -> bool:
    query = sa.select(STUDY_USER_ATTRS.c.value_json).where(
        STUDY_USER_ATTRS.c.study_id == study_id, STUDY_USER_ATTRS.c.key == LOOKS
    )
    return bool(parse_or_none(connection.scalar(query)))


def _read_failures(
    connection: Connection, study_id: int
) -> Iterator[tuple[int, str, list[dict[str, Any]]]]:
    """Yield the id of each failed grid trial, how it failed, and the records of its failures."""
    failed = sa.select(TRIALS.c.trial_id).where(
        TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.FAIL, is_grid_trial()
    )
    attributes: dict[int, dict[str, Any]] = {}
    for table, names in (
        (TRIAL_USER_ATTRS, TrialRecord.model_fields.keys()),
        (TRIAL_SYSTEM_ATTRS, {*EVAL_WINDOWS.values(), EARLIER_FAILURES}),
    ):
        query = sa.select(table.c.trial_id, table.c.key, table.c.value_json)
        query = query.where(table.c.trial_id.in_(failed), table.c.key.in_(names))
        for trial_id, key, stored in connection.execute(query):
            attributes.setdefault(trial_id, {})[key] = parse_or_none(stored)
    columns = TRIALS.c.trial_id, TRIALS.c.datetime_start, TRIALS.c.datetime_complete
    query = sa.select(*columns).where(TRIALS.c.trial_id.in_(failed)).order_by(TRIALS.c.trial_id)
    for trial_id, started, completed in connection.execute(query).all():
        found = attributes.get(trial_id, {})
        earlier = found.pop(EARLIER_FAILURES, None)
        record = {
            "started": started and started.isoformat(),
            "completed": completed and completed.isoformat(),
            "attributes": found,
        }
        kind = "diverged" if found.get(FAILURE) == Failure.DIVERGED else "failed"
        yield trial_id, kind, [*(earlier if isinstance(earlier, list) else ()), record]


def _reopen(
    connection: Connection, study_id: int, records: Mapping[int, list[dict[str, Any]]]
) -> None:
    """Set trials waiting again, with their records of earlier failures."""
    ids = [{"old_trial_id": trial_id} for trial_id in records]
    of_trial: sa.BindParameter[int] = sa.bindparam("old_trial_id")
    for table in (TRIAL_VALUES, INTERMEDIATE_VALUES):
        connection.execute(sa.delete(table).where(table.c.trial_id == of_trial), ids)
    stored = [(key, name) for key, each in records.items() for name in each[-1]["attributes"]]
    delete_attrs(connection, TRIAL_USER_ATTRS, stored)
    audited = sa.select(TRIAL_SYSTEM_ATTRS.c.trial_id).where(TRIAL_SYSTEM_ATTRS.c.key == AUDIT)
    in_study = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    audited_ids = set(
        connection.scalars(audited.where(TRIAL_SYSTEM_ATTRS.c.trial_id.in_(in_study)))
    )
    removed = (LEASE, CHECKPOINTED, *EVAL_WINDOWS.values())
    delete_attrs(
        connection, TRIAL_SYSTEM_ATTRS, [(key, name) for key in records for name in removed]
    )
    rows = [attr_row("trial_id", key, EARLIER_FAILURES, each) for key, each in records.items()]
    rows += [  # the pruner decides again
        attr_row("trial_id", key, AUDIT, AuditState().model_dump())
        for key in records.keys() & audited_ids
    ]
    replace_attrs(connection, TRIAL_SYSTEM_ATTRS, rows)
    connection.execute(
        sa.update(TRIALS)
        .where(TRIALS.c.trial_id == of_trial)
        .values(state=TrialState.WAITING, datetime_start=None, datetime_complete=None),
        ids,
    )
    connection.execute(
        sa.delete(STUDY_SYSTEM_ATTRS).where(
            STUDY_SYSTEM_ATTRS.c.study_id == study_id, STUDY_SYSTEM_ATTRS.c.key == REPORT_CLAIM
        )
    )
