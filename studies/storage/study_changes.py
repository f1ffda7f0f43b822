"""Renaming and deletion of studies, each in one transaction."""

import json
import re
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from sqlalchemy.engine import Connection

from studies.attributes import (
    CONFIG,
    FOLDER_NAME,
    PUBLISHED,
)
from studies.errors import StudiesError, StudyExistsError
from studies.storage.backup import merge_log
from studies.storage.held_trials import lock_unheld
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_rows import (
    INTERMEDIATE_VALUES,
    STUDIES,
    STUDY_DIRECTIONS,
    STUDY_SYSTEM_ATTRS,
    STUDY_USER_ATTRS,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
)

_HEARTBEATS = models.BaseModel.metadata.tables["trial_heartbeats"]

ARTIFACT_PREFIX = "artifacts:"
"""Prefix of the system attributes that Optuna writes for the files of a study or a trial."""


@dataclass(frozen=True)
class OwnedFiles:
    """What a study's rows say about its files.

    Attributes:
        folder: its artifact folder; None if no valid one is stored, as of plain Optuna.
        artifact_ids: names of its files in the store of kind ``artifacts``.
    """

    folder: str | None
    artifact_ids: tuple[str, ...] = ()


def rename_study(storage: LeasedRDBStorage, old: str, new: str) -> list[str]:
    """Rename a study, also where the studies that derive from it name their source.

    Returns:
        The names of those studies.

    Raises:
        StudyNotFoundError: if it does not exist.
        StudyExistsError: if another study has the new name.
        StudyHeldError: if workers hold trials of it.
    """
    taken = StudyExistsError(f"study {new!r} exists already: expected another name")
    try:
        with storage.transaction() as connection:
            study_id = lock_unheld(connection, old)
            if connection.scalar(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == new)):
                raise taken
            connection.execute(
                sa.update(STUDIES).where(STUDIES.c.study_id == study_id).values(study_name=new)
            )
            derived = _derived_studies(connection, old)
            for other_id, (_, config) in derived.items():
                config["refinement"]["source"] = new
                connection.execute(
                    sa.update(STUDY_USER_ATTRS)
                    .where(
                        STUDY_USER_ATTRS.c.study_id == other_id, STUDY_USER_ATTRS.c.key == CONFIG
                    )
                    .values(value_json=json.dumps(config))
                )
            for each in (study_id, *derived):
                outdate_publication(connection, each)
    except sa.exc.IntegrityError as error:  # another process took the name at this moment
        raise taken from error
    merge_log(storage)
    return [name for name, _ in derived.values()]


def list_derived(storage: LeasedRDBStorage, name: str) -> list[str]:
    """Return the names of the studies that derive from a study."""
    with storage.reading() as connection:
        return [derived for derived, _ in _derived_studies(connection, name).values()]


def delete_study(storage: LeasedRDBStorage, name: str, force: bool = False) -> OwnedFiles:
    """Delete a study with all of its trials.

    Args:
        storage: storage that holds the study.
        name: name of the study.
        force: whether to delete it although others derive from it.

    Returns:
        What it said about its files, which are not deleted, without those that another study owns
        as well, as after ``optuna.copy_study``.

    Raises:
        StudyNotFoundError: if it does not exist.
        StudyHeldError: if workers hold trials of it.
        StudiesError: if others derive from it.
    """
    with storage.transaction() as connection:
        study_id = lock_unheld(connection, name)
        derived = [each for each, _ in _derived_studies(connection, name).values()]
        if derived and not force:
            raise StudiesError(
                f"study {name!r} is the source of {', '.join(map(repr, derived))}, whose reports "
                "compare with it: delete those first, or use --force"
            )
        owned = read_owned_files(connection, study_id)
        _delete_rows(connection, study_id)
        owned = _without_shared(connection, owned)
    merge_log(storage)
    return owned


def _without_shared(connection: Connection, owned: OwnedFiles) -> OwnedFiles:
    """Return the files of a deleted study that no other study owns."""
    keys = {artifact_id: f"{ARTIFACT_PREFIX}{artifact_id}" for artifact_id in owned.artifact_ids}
    shared: set[str] = set()
    for table in (STUDY_SYSTEM_ATTRS, TRIAL_SYSTEM_ATTRS):
        query = sa.select(table.c.key).where(table.c.key.in_(keys.values()))
        shared |= set(connection.scalars(query))
    is_shared = owned.folder is not None and is_owned(connection, owned.folder)
    kept = tuple(artifact_id for artifact_id, key in keys.items() if key not in shared)
    return OwnedFiles(None if is_shared else owned.folder, kept)


def is_owned(connection: Connection, folder: str) -> bool:
    """Return whether a study has an artifact folder."""
    query = sa.select(STUDY_USER_ATTRS.c.study_id).where(
        STUDY_USER_ATTRS.c.key == "artifact_folder",
        STUDY_USER_ATTRS.c.value_json == json.dumps(folder),
    )
    return connection.execute(query).first() is not None


def _delete_rows(connection: Connection, study_id: int) -> None:
    ids = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    for table in (*TRIAL_TABLES, _HEARTBEATS):
        connection.execute(sa.delete(table).where(table.c.trial_id.in_(ids)))
    for table in (TRIALS, *STUDY_TABLES, STUDIES):
        connection.execute(sa.delete(table).where(table.c.study_id == study_id))


STUDY_TABLES = (STUDY_DIRECTIONS, STUDY_USER_ATTRS, STUDY_SYSTEM_ATTRS)
"""Tables of what a study has, other than its trials."""

TRIAL_TABLES = (
    TRIAL_PARAMS,
    TRIAL_USER_ATTRS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_VALUES,
    INTERMEDIATE_VALUES,
)
"""Tables of what a trial has. Heartbeats, which plain Optuna writes while it runs one, are left
out."""


def read_owned_files(connection: Connection, study_id: int) -> OwnedFiles:
    """Read what a study's rows say about its files, also of a damaged study."""
    query = sa.select(STUDY_USER_ATTRS.c.value_json).where(
        STUDY_USER_ATTRS.c.study_id == study_id, STUDY_USER_ATTRS.c.key == "artifact_folder"
    )
    folder = parse_or_none(connection.scalar(query))
    if not isinstance(folder, str) or not re.fullmatch(FOLDER_NAME, folder):
        folder = None
    ids = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    of_study = STUDY_SYSTEM_ATTRS.c.study_id == study_id
    of_trials = TRIAL_SYSTEM_ATTRS.c.trial_id.in_(ids)
    artifact_ids = set()
    for table, condition in ((STUDY_SYSTEM_ATTRS, of_study), (TRIAL_SYSTEM_ATTRS, of_trials)):
        keys = sa.select(table.c.key).where(
            condition,
            table.c.key.startswith(ARTIFACT_PREFIX),
            table.c.value_json.not_in(("null", '"null"')),  # removed in the dashboard
        )
        for key in connection.scalars(keys):
            artifact_id = key.removeprefix(ARTIFACT_PREFIX)
            if re.fullmatch(FOLDER_NAME, artifact_id):
                artifact_ids.add(artifact_id)
    return OwnedFiles(folder, tuple(sorted(artifact_ids)))


def outdate_publication(connection: Connection, study_id: int) -> None:
    """Have the dashboard's note and files written again, because a name in them has changed."""
    query = sa.select(STUDY_SYSTEM_ATTRS.c.value_json).where(
        STUDY_SYSTEM_ATTRS.c.study_id == study_id, STUDY_SYSTEM_ATTRS.c.key == PUBLISHED
    )
    state = parse_or_none(connection.scalar(query))
    if isinstance(state, dict):
        connection.execute(
            sa.update(STUDY_SYSTEM_ATTRS)
            .where(STUDY_SYSTEM_ATTRS.c.study_id == study_id, STUDY_SYSTEM_ATTRS.c.key == PUBLISHED)
            .values(value_json=json.dumps({**state, "format": 0}))
        )


def _derived_studies(connection: Connection, name: str) -> dict[int, tuple[str, dict[str, Any]]]:
    """Return name and stored config of the studies that derive from a study, by their id."""
    query = (
        sa.select(STUDIES.c.study_id, STUDIES.c.study_name, STUDY_USER_ATTRS.c.value_json)
        .join(STUDY_USER_ATTRS, STUDY_USER_ATTRS.c.study_id == STUDIES.c.study_id)
        .where(STUDY_USER_ATTRS.c.key == CONFIG)
        .order_by(STUDIES.c.study_name)
    )
    derived = {}
    for study_id, study_name, stored in connection.execute(query):
        config = parse_or_none(stored)
        refinement = config.get("refinement") if isinstance(config, dict) else None
        if isinstance(refinement, dict) and refinement.get("source") == name != study_name:
            derived[study_id] = study_name, config
    return derived


def parse_or_none(stored: str | None) -> Any:
    """Parse a stored attribute; None if it is missing or no JSON."""
    try:
        return None if stored is None else json.loads(stored)
    except (ValueError, TypeError, RecursionError):
        return None
