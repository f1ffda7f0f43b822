"""The stored leases of running trials, dated by the database's own clock."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.storage.leases import HEARD, LEASE, Lease
from studies.storage.trial_rows import TRIAL_SYSTEM_ATTRS, TRIALS, delete_attrs


def running_leases(connection: Connection, study_id: int) -> dict[int, Lease]:
    """Read the leases of a study's running trials, by trial id."""
    query = (
        sa.select(TRIALS.c.trial_id, TRIAL_SYSTEM_ATTRS.c.value_json)
        .join(TRIAL_SYSTEM_ATTRS, TRIAL_SYSTEM_ATTRS.c.trial_id == TRIALS.c.trial_id)
        .where(
            TRIALS.c.study_id == study_id,
            TRIALS.c.state == TrialState.RUNNING,
            TRIAL_SYSTEM_ATTRS.c.key == LEASE,
        )
        .order_by(TRIALS.c.trial_id)
    )
    return {trial_id: Lease.parse(stored) for trial_id, stored in connection.execute(query)}


def write_leases(connection: Connection, leases: Mapping[int, Lease]) -> None:
    """Write leases by trial id, each with the time by the database's clock."""
    delete_attrs(connection, TRIAL_SYSTEM_ATTRS, [(trial_id, LEASE) for trial_id in leases])
    now = sa.cast(database_seconds(connection), sa.Text)
    lease_json = sa.func.rtrim(sa.bindparam("lease", type_=sa.Text), "}")
    statement = sa.insert(TRIAL_SYSTEM_ATTRS).values(
        trial_id=sa.bindparam("of_trial"),
        key=LEASE,
        value_json=lease_json + f', "{HEARD}": ' + now + "}",
    )
    rows = [{"of_trial": key, "lease": lease.stored} for key, lease in leases.items()]
    if rows:
        connection.execute(statement, rows)


def database_seconds(connection: Connection) -> sa.ColumnElement[Any]:
    """Return the expression for the time by the database's clock, in seconds since 1970."""
    if connection.dialect.name == "sqlite":
        return (sa.func.julianday("now") - 2440587.5) * 86400.0
    return sa.extract("epoch", sa.func.clock_timestamp())
