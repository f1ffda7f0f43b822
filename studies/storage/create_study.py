"""Creation and extension of studies, each in one transaction."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import (
    AUDIT,
    EARLIER_ENDS,
    IS_GRID_TRIAL,
    PAUSED,
    REPORT_CLAIM,
    AuditState,
)
from studies.errors import StudiesError
from studies.space import Params
from studies.storage.backup import merge_log
from studies.storage.damage import parse_choices
from studies.storage.earlier_ends import NewEnd, reopen_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_rows import (
    STUDIES,
    STUDY_DIRECTIONS,
    STUDY_SYSTEM_ATTRS,
    STUDY_USER_ATTRS,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIALS,
    attr_row,
    has_system_attr,
    insert,
    is_grid_trial,
)

METRIC_NAMES = "study:metric_names"
"""System attribute that Optuna's ``set_metric_names`` writes."""


class PlannedTrial(NamedTuple):
    """Parameters and user attributes of a grid trial to create, and whether it is audited."""

    params: Params
    attributes: Mapping[str, Any] = {}
    is_audited: bool = False


def create_study(
    storage: LeasedRDBStorage,
    name: str,
    metric_name: str,
    attributes: Mapping[str, Any],
    distributions: Mapping[str, CategoricalDistribution],
    trials: Sequence[PlannedTrial],
) -> bool:
    """Store a study with all its grid trials waiting, in one transaction.

    Args:
        storage: storage to create it in.
        name: name of the study.
        metric_name: name of the value to minimize.
        attributes: user attributes of the study.
        distributions: distribution of every parameter.
        trials: grid trials, in the order in which to run them.

    Returns:
        False if a study of that name exists, which is left unchanged.
    """
    try:
        with storage.transaction() as connection:
            study_id = insert_study(
                connection, name, metric_name, StudyDirection.MINIMIZE, attributes
            )
            _insert_trials(connection, study_id, distributions, trials)
    except sa.exc.IntegrityError:
        return False
    merge_log(storage)
    return True


def insert_study(
    connection: Connection,
    name: str,
    metric: str,
    direction: StudyDirection,
    attributes: Mapping[str, Any],
    system_attributes: Mapping[str, Any] | None = None,
) -> int:
    """Store a study without trials.

    Args:
        connection: connection in a writing transaction.
        name: name of the study.
        metric: name of its value.
        direction: whether a lower or a higher value is better.
        attributes: its user attributes.
        system_attributes: its system attributes, the name of its value aside.

    Returns:
        The identifier of the study.
    """
    query = sa.insert(STUDIES).values(study_name=name).returning(STUDIES.c.study_id)
    study_id: int = connection.execute(query).scalar_one()
    insert(
        connection,
        STUDY_DIRECTIONS,
        [{"study_id": study_id, "objective": 0, "direction": direction}],
    )
    system = {METRIC_NAMES: [metric], **(system_attributes or {})}
    for table, owned in ((STUDY_USER_ATTRS, attributes), (STUDY_SYSTEM_ATTRS, system)):
        rows = [attr_row("study_id", study_id, *item) for item in owned.items()]
        insert(connection, table, rows)
    return study_id


def extend_study(
    storage: LeasedRDBStorage,
    study_id: int,
    expected: Mapping[str, Any],
    attributes: Mapping[str, Any],
    distributions: Mapping[str, CategoricalDistribution],
    trials: Sequence[PlannedTrial],
    new_end: NewEnd | None = None,
) -> bool:
    """Append grid trials to a study, and values to the choices of its parameters.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        expected: expected values of the user attributes that the new trials depend on.
        attributes: user attributes of the study to replace.
        distributions: distribution of every parameter. Values that the stored one lacks are
            appended to its choices, so that stored indices of choices stay valid.
        trials: grid trials to add.
        new_end: more steps, for which the complete trials wait again; None for the same steps.

    Returns:
        False, without any change, if the expected attributes have changed.

    Raises:
        StudiesError: if a worker holds a grid trial, because it would continue with the old config,
            or if trials are pruned, because they were compared with the old grid only, and, before
            the old end, paused; if complete trials cannot continue.
    """
    with storage.transaction() as connection:
        stored = _lock_attributes(connection, study_id, [*expected, EARLIER_ENDS])
        if {key: stored.get(key) for key in expected} != expected:
            return False
        written = dict(attributes)
        _require_extensible(connection, study_id, new_end)
        if new_end is not None:
            earlier_end = reopen_trials(connection, study_id, new_end)
            written[EARLIER_ENDS] = [
                *stored.get(EARLIER_ENDS, []),
                earlier_end.model_dump(mode="json"),
            ]
        trial_ids = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
        distributions = _append_choices(connection, study_id, distributions)
        for name, distribution in distributions.items():
            connection.execute(
                sa.update(TRIAL_PARAMS)
                .where(TRIAL_PARAMS.c.param_name == name, TRIAL_PARAMS.c.trial_id.in_(trial_ids))
                .values(distribution_json=distribution_to_json(distribution))
            )
        _write_attributes(connection, study_id, written)
        _insert_trials(connection, study_id, distributions, trials)
    merge_log(storage)
    return True


def replace_attributes(
    storage: LeasedRDBStorage,
    study_id: int,
    expected: Mapping[str, Any],
    attributes: Mapping[str, Any],
) -> bool:
    """Replace user attributes of a study in one transaction, also while workers hold its trials.

    A report that was written before does not show them, so that the next process writes another.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        expected: expected values of the user attributes that the new ones depend on.
        attributes: user attributes to replace.

    Returns:
        False, without any change, if the expected attributes have changed.
    """
    with storage.transaction() as connection:
        if _lock_attributes(connection, study_id, list(expected)) != expected:
            return False
        _write_attributes(connection, study_id, attributes)
        connection.execute(
            sa.delete(STUDY_SYSTEM_ATTRS).where(
                STUDY_SYSTEM_ATTRS.c.study_id == study_id, STUDY_SYSTEM_ATTRS.c.key == REPORT_CLAIM
            )
        )
    return True


def _lock_attributes(connection: Connection, study_id: int, keys: Sequence[str]) -> dict[str, Any]:
    """Lock a study for the rest of the transaction; return those of some user attributes it has."""
    connection.execute(sa.select(STUDIES).where(STUDIES.c.study_id == study_id).with_for_update())
    query = sa.select(STUDY_USER_ATTRS.c.key, STUDY_USER_ATTRS.c.value_json).where(
        STUDY_USER_ATTRS.c.study_id == study_id, STUDY_USER_ATTRS.c.key.in_(keys)
    )
    return {key: json.loads(value) for key, value in connection.execute(query)}


def _write_attributes(connection: Connection, study_id: int, attributes: Mapping[str, Any]) -> None:
    """Write user attributes of a study in place of those of the same keys."""
    connection.execute(
        sa.delete(STUDY_USER_ATTRS).where(
            STUDY_USER_ATTRS.c.study_id == study_id, STUDY_USER_ATTRS.c.key.in_(attributes)
        )
    )
    rows = [attr_row("study_id", study_id, *item) for item in attributes.items()]
    insert(connection, STUDY_USER_ATTRS, rows)


def _require_extensible(connection: Connection, study_id: int, new_end: NewEnd | None) -> None:
    """Check that no grid trial was compared with others that change, or is held by a worker."""
    of_study = TRIALS.c.study_id == study_id
    count = sa.select(sa.func.count()).select_from(TRIALS).where(of_study, is_grid_trial())
    is_pruned = TRIALS.c.state == TrialState.PRUNED
    if new_end is None:
        outcome, remedy = "pruned, compared with the old grid only", "start a wider study"
    else:
        # Workers skip locked trials: none is claimed and finished meanwhile.
        ids = sa.select(TRIALS.c.trial_id).where(of_study).order_by(TRIALS.c.trial_id)
        connection.execute(ids.with_for_update())
        is_pruned |= (TRIALS.c.state == TrialState.WAITING) & has_system_attr(PAUSED)
        outcome, remedy = "pruned or paused, compared at the old steps only", "train longer"
    if pruned := connection.scalar(count.where(is_pruned)):
        raise StudiesError(
            f"{pruned} trials are {outcome}: --extend expects a study without such trials; "
            f"{remedy} under another --name"
        )
    if running := connection.scalar(count.where(TRIALS.c.state == TrialState.RUNNING)):
        raise StudiesError(
            f"{running} grid trials are held by workers: --extend expects none; stop the workers "
            "first"
        )


def _append_choices(
    connection: Connection, study_id: int, distributions: Mapping[str, CategoricalDistribution]
) -> dict[str, CategoricalDistribution]:
    """Return the stored distributions with the choices of others that they lack at the end."""
    query = (
        sa.select(TRIAL_PARAMS.c.param_name, TRIAL_PARAMS.c.distribution_json)
        .join(TRIALS, TRIALS.c.trial_id == TRIAL_PARAMS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, is_grid_trial())
        .distinct()
    )
    stored = {name: parse_choices(text) for name, text in connection.execute(query)}
    return {
        name: CategoricalDistribution(
            tuple(dict.fromkeys((*stored.get(name, ()), *distribution.choices)))
        )
        for name, distribution in distributions.items()
    }


def update_system_attributes(
    storage: LeasedRDBStorage, study_id: int, update: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> None:
    """Update system attributes of a study in one transaction.

    Args:
        storage: storage that holds the study.
        study_id: id of the study; if it no longer exists, nothing is done.
        update: function that maps the current system attributes to those to write.
    """
    of_study = STUDY_SYSTEM_ATTRS.c.study_id == study_id
    with storage.transaction() as connection:
        study = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)
        if connection.scalar(study.with_for_update()) is None:
            return
        query = sa.select(STUDY_SYSTEM_ATTRS.c.key, STUDY_SYSTEM_ATTRS.c.value_json).where(of_study)
        changed = update({key: json.loads(value) for key, value in connection.execute(query)})
        connection.execute(
            sa.delete(STUDY_SYSTEM_ATTRS).where(of_study, STUDY_SYSTEM_ATTRS.c.key.in_(changed))
        )
        rows = [attr_row("study_id", study_id, *item) for item in changed.items()]
        insert(connection, STUDY_SYSTEM_ATTRS, rows)


def _insert_trials(
    connection: Connection,
    study_id: int,
    distributions: Mapping[str, CategoricalDistribution],
    trials: Sequence[PlannedTrial],
) -> None:
    stored = {name: distribution_to_json(d) for name, d in distributions.items()}
    first = connection.scalar(
        sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)
    )
    assert first is not None
    numbers = range(first, first + len(trials))
    waiting = {"study_id": study_id, "state": TrialState.WAITING}
    insert(connection, TRIALS, [{**waiting, "number": number} for number in numbers])
    query = sa.select(TRIALS.c.trial_id).where(
        TRIALS.c.study_id == study_id, TRIALS.c.number >= first
    )
    trial_ids = connection.scalars(query.order_by(TRIALS.c.number)).all()
    created = list(zip(trial_ids, trials, strict=True))
    params = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": distributions[name].to_internal_repr(value),
            "distribution_json": stored[name],
        }
        for trial_id, trial in created
        for name, value in trial.params.items()
    ]
    insert(connection, TRIAL_PARAMS, params)
    rows = [
        attr_row("trial_id", trial_id, *item)
        for trial_id, trial in created
        for item in trial.attributes.items()
    ]
    insert(connection, TRIAL_USER_ATTRS, rows)
    rows = [attr_row("trial_id", trial_id, IS_GRID_TRIAL, True) for trial_id in trial_ids]
    rows += [
        attr_row("trial_id", trial_id, AUDIT, AuditState().model_dump())
        for trial_id, trial in created
        if trial.is_audited
    ]
    insert(connection, TRIAL_SYSTEM_ATTRS, rows)
