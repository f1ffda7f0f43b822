"""Edits of studies, each in one transaction: create, extend, retry, rename, delete, note.

Studies whose trials workers hold are not renamed, deleted or retried.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from rnn.errors import UserError
from studies.atomic_files import default_report
from studies.attributes import (
    AUDIT,
    CHECKPOINTED,
    CONFIG,
    CURVE,
    EARLIER_FAILURES,
    FOLDER_NAME,
    GRID_SIZE,
    LEASE,
    LONG_RESULTS,
    NOTE,
    AuditState,
    TrialRecord,
)
from studies.errors import RowError
from studies.messages import escape_markdown
from studies.storage.counts import count_where, lock_all_trials, lock_unheld
from studies.storage.reads import RECORDS, read_distributions, read_grid_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.tables import (
    ARTIFACT_PREFIX,
    HEARTBEATS,
    INTERMEDIATE_VALUES,
    STUDIES,
    STUDY_SYSTEM_ATTRS,
    STUDY_TABLES,
    STUDY_USER_ATTRS,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_TABLES,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    delete_attrs,
    delete_rows,
    insert_study,
    insert_trials,
    of_study,
    read_study_attrs,
    select_trial_ids,
    update_trials,
    write_attrs,
)
from studies.storage.trials import (
    StoredStudy,
    StoredTrial,
    TrialStatus,
    decode_choices,
    decode_json,
    locating,
)

_RECORDED = tuple(TrialRecord.model_fields)

_NOTE_VERSION = "dashboard:note_ver"
"""System attribute: version of the note, which a dashboard raises with each edit. A note of another
version than :data:`NOTE` has a user's text."""

_NOTE_PIECE = "dashboard:note_str:"
"""Prefix of the system attributes with the pieces of the note."""

_NOTE_LENGTH = 2045
"""Number of characters in each of them."""


# ------------------------------------------------------------------ create


def create_study(storage: LeasedRDBStorage, study: StoredStudy) -> bool:
    """Store a study with all its trials, in the order in which to run them, in one transaction.

    Returns:
        False if a study of that name exists, which is left unchanged.
    """
    try:
        with storage.transaction() as connection:
            insert_study(connection, study)
    except sa.exc.IntegrityError:
        return False
    storage.merge_log()
    return True


# ------------------------------------------------------------------ extend


def extend_study(
    storage: LeasedRDBStorage,
    study_id: int,
    expected: Mapping[str, Any],
    attributes: Mapping[str, Any],
    distributions: Mapping[str, CategoricalDistribution] | None = None,
    trials: Sequence[StoredTrial] = (),
    grid_size: int | None = None,
) -> bool:
    """Append grid trials to a study, and values to the choices of its parameters.

    Without distributions, only attributes are replaced.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        expected: expected values of the user attributes on which the new ones and trials depend.
        attributes: user attributes of the study to replace.
        distributions: distribution of every parameter. Values that the stored one lacks are
            appended to its choices, so that stored indices of choices stay valid.
        trials: grid trials to add.
        grid_size: number of points in the grid with the added values, which no worker may hold;
            processes that opened the smaller one stop at their next write. None if the grid is the
            same, so that workers may go on.

    Returns:
        False, without any change, if the expected attributes have changed.

    Raises:
        UserError: if the grid grows and a worker holds a grid trial, because it would continue
            with the old config, or trials are pruned, because they were compared with the old grid.
    """
    with storage.transaction() as connection:
        if _lock_attributes(connection, study_id, STUDY_USER_ATTRS, expected) != expected:
            return False
        if grid_size is not None:
            _require_extensible(connection, study_id)
            write_attrs(connection, STUDY_SYSTEM_ATTRS, {study_id: {GRID_SIZE: grid_size}})
        write_attrs(connection, STUDY_USER_ATTRS, {study_id: attributes})
        if distributions:
            extended = _append_choices(connection, study_id, distributions)
            insert_trials(connection, study_id, extended, trials)
    storage.merge_log()
    return True


def update_system_attributes(
    storage: LeasedRDBStorage, study_id: int, update: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> None:
    """Write what a function returns for the current system attributes of a study.

    This is one transaction. Of a deleted study nothing is written.
    """
    with storage.transaction() as connection:
        stored = _lock_attributes(connection, study_id, STUDY_SYSTEM_ATTRS)
        if stored is not None:
            write_attrs(connection, STUDY_SYSTEM_ATTRS, {study_id: update(stored)})


def _lock_attributes(
    connection: Connection, study_id: int, table: sa.Table, keys: Collection[str] | None = None
) -> dict[str, Any] | None:
    """Lock a study until the transaction ends; return its attributes, or None if it is gone."""
    study = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)
    if connection.scalar(study.with_for_update()) is None:
        return None
    stored = read_study_attrs(connection, table, study_id, keys)
    with locating(study_id):
        return {key: decode_json(value, key) for key, value in stored.items()}


def _require_extensible(connection: Connection, study_id: int) -> None:
    """Check that no grid trial was compared with others that change, or is held by a worker."""
    lock_all_trials(connection, study_id)
    if pruned := count_where(connection, study_id, TRIALS.c.state == TrialState.PRUNED):
        raise UserError(
            f"{pruned} trials are pruned, compared with the old grid only: --extend expects a "
            "study without such trials; start a wider study under another --name"
        )
    if running := count_where(connection, study_id, TRIALS.c.state == TrialState.RUNNING):
        raise UserError(
            f"{running} grid trials are held by workers: --extend expects none; stop the workers "
            "first"
        )


def _append_choices(
    connection: Connection, study_id: int, distributions: Mapping[str, CategoricalDistribution]
) -> dict[str, CategoricalDistribution]:
    """Append the choices that stored distributions lack; return what they are now."""
    stored = read_distributions(connection, study_id)
    extended = {}
    for name, distribution in distributions.items():
        with locating(study_id):
            earlier = decode_choices(stored[name]) if name in stored else ()
        choices = dict.fromkeys((*earlier, *distribution.choices))
        extended[name] = CategoricalDistribution(tuple(choices))
        connection.execute(
            sa.update(TRIAL_PARAMS)
            .where(TRIAL_PARAMS.c.param_name == name, of_study(TRIAL_PARAMS, study_id))
            .values(distribution_json=distribution_to_json(extended[name]))
        )
    return extended


# ------------------------------------------------------------------ retry


def retry_trials(storage: LeasedRDBStorage, name: str, kinds: Collection[str]) -> dict[str, int]:
    """Set failed grid trials waiting again, as if they had never been trained.

    What each was is appended to its system attribute :data:`EARLIER_FAILURES`; its retries count
    from 0 again.

    Returns:
        The number of trials that were set waiting of each of the given kinds: ``failed`` are those
        that used up their retries, ``diverged`` those whose loss was not finite.

    Raises:
        StudyNotFoundError: if the study does not exist.
        UserError: if workers hold trials of it.
    """
    names = {TrialStatus.FAIL: "failed", TrialStatus.DIVERGED: "diverged"}
    with storage.transaction() as connection:
        study_id = lock_unheld(connection, name)
        is_failed = TRIALS.c.state == TrialState.FAIL
        failed = read_grid_trials(connection, study_id, [is_failed], RECORDS)
        reopened = [trial for trial in failed if names[trial.status] in kinds]
        _reopen(connection, reopened)
    storage.merge_log()
    counts = Counter(names[trial.status] for trial in reopened)
    return {kind: counts[kind] for kind in kinds}


def _describe(trial: StoredTrial) -> dict[str, Any]:
    """Return what a trial was, for the attribute that keeps it."""
    attributes = {key: value for key, value in trial.attributes.items() if key in _RECORDED}
    for key in LONG_RESULTS:
        if key in trial.system_attributes:
            attributes[key] = trial.system_attributes[key]
    return {
        "started": trial.started and trial.started.isoformat(),
        "completed": trial.completed and trial.completed.isoformat(),
        "attributes": attributes,
    }


def _reopen(connection: Connection, trials: Sequence[StoredTrial]) -> None:
    """Set failed trials waiting again; the pruner decides again about the audited ones."""
    records: dict[int, dict[str, Any]] = {}
    for trial in trials:
        failures = trial.system_attributes.get(EARLIER_FAILURES, ())
        records[trial.trial_id] = {EARLIER_FAILURES: [*failures, _describe(trial)]}
        if trial.is_audited:
            records[trial.trial_id][AUDIT] = AuditState().model_dump()
    rows = [{"trial_id": trial_id} for trial_id in records]
    delete_rows(connection, TRIAL_VALUES, rows)
    delete_rows(connection, INTERMEDIATE_VALUES, rows)
    stored = [
        (trial.trial_id, name) for trial in trials for name in trial.attributes.keys() & _RECORDED
    ]
    delete_attrs(connection, TRIAL_USER_ATTRS, stored)
    removed = (LEASE, CHECKPOINTED, *LONG_RESULTS)
    keys = [(trial_id, name) for trial_id in records for name in removed]
    keys += [
        (trial.trial_id, name)
        for trial in trials
        for name in trial.system_attributes
        if name.startswith(CURVE)
    ]
    delete_attrs(connection, TRIAL_SYSTEM_ATTRS, keys)
    write_attrs(connection, TRIAL_SYSTEM_ATTRS, records)
    waiting = {"state": TrialState.WAITING, "datetime_start": None, "datetime_complete": None}
    update_trials(connection, dict.fromkeys(records, waiting))


# ------------------------------------------------------------------ rename and delete


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
    """Rename a study, also where the studies that derive from it name it; return their names.

    Raises:
        StudyNotFoundError: if it does not exist.
        UserError: if another study has the new name.
        UserError: if workers hold trials of it.
    """
    try:
        with storage.transaction() as connection:
            study_id = lock_unheld(connection, old)
            connection.execute(
                sa.update(STUDIES).where(STUDIES.c.study_id == study_id).values(study_name=new)
            )
            derived = _derived_studies(connection, old)
            for other_id in derived:
                current = _lock_attributes(connection, other_id, STUDY_USER_ATTRS, [CONFIG])
                if current:  # it was not deleted meanwhile
                    current[CONFIG]["refinement"]["source"] = new
                    write_attrs(connection, STUDY_USER_ATTRS, {other_id: current})
    except sa.exc.IntegrityError as error:
        raise UserError(f"study {new!r} exists already: expected another name") from error
    storage.merge_log()
    return list(derived.values())


def list_derived(storage: LeasedRDBStorage, name: str) -> list[str]:
    """Return the names of the studies that derive from a study."""
    with storage.reading() as connection:
        return list(_derived_studies(connection, name).values())


def delete_study(storage: LeasedRDBStorage, name: str, force: bool = False) -> OwnedFiles:
    """Delete a study with all of its trials.

    Returns:
        What it said about its files, which are not deleted, without those that another study owns
        as well, as after ``optuna.copy_study``.

    Raises:
        StudyNotFoundError: if it does not exist.
        UserError: if workers hold trials of it, without ``force``.
        UserError: if others derive from it, without ``force``.
    """
    with storage.transaction() as connection:
        study_id = lock_unheld(connection, name, allow_held=force)
        derived = _derived_studies(connection, name).values()
        if derived and not force:
            raise UserError(
                f"study {name!r} is the source of {', '.join(map(repr, derived))}, whose reports "
                "compare with it: delete those first, or use --force"
            )
        owned = read_owned_files(connection, study_id)
        ids = select_trial_ids(study_id)
        for table in (*TRIAL_TABLES, HEARTBEATS):
            connection.execute(sa.delete(table).where(table.c.trial_id.in_(ids)))
        for table in (TRIALS, *STUDY_TABLES, STUDIES):
            connection.execute(sa.delete(table).where(table.c.study_id == study_id))
        keys = {f"{ARTIFACT_PREFIX}{name}": name for name in owned.artifact_ids}
        for table in (STUDY_SYSTEM_ATTRS, TRIAL_SYSTEM_ATTRS):
            for key in connection.scalars(sa.select(table.c.key).where(table.c.key.in_(keys))):
                keys.pop(key, None)
        same_folder = sa.select(STUDY_USER_ATTRS.c.study_id).where(
            STUDY_USER_ATTRS.c.key == "artifact_folder",
            STUDY_USER_ATTRS.c.value_json == json.dumps(owned.folder),
        )
        is_shared = connection.execute(same_folder).first() is not None
    storage.merge_log()
    return OwnedFiles(None if is_shared else owned.folder, tuple(keys.values()))


def read_owned_files(connection: Connection, study_id: int) -> OwnedFiles:
    """Read what a study's rows say about its files, also of a damaged study."""
    stored = read_study_attrs(connection, STUDY_USER_ATTRS, study_id, ["artifact_folder"])
    folder = re.fullmatch(f'"({FOLDER_NAME})"', str(stored.get("artifact_folder")))
    files: set[str] = set()
    for table in (STUDY_SYSTEM_ATTRS, TRIAL_SYSTEM_ATTRS):
        keys = sa.select(table.c.key).where(
            of_study(table, study_id),
            table.c.key.startswith(ARTIFACT_PREFIX),
            table.c.value_json.not_in(("null", '"null"')),  # removed in the dashboard
        )
        files |= {key.removeprefix(ARTIFACT_PREFIX) for key in connection.scalars(keys)}
    artifact_ids = sorted(file for file in files if re.fullmatch(FOLDER_NAME, file))
    return OwnedFiles(folder and folder[1], tuple(artifact_ids))


def _derived_studies(connection: Connection, name: str) -> dict[int, str]:
    """Return the names of the studies that derive from a study, by their id."""
    query = (
        sa.select(STUDIES.c.study_id, STUDIES.c.study_name, STUDY_USER_ATTRS.c.value_json)
        .join(STUDY_USER_ATTRS, STUDY_USER_ATTRS.c.study_id == STUDIES.c.study_id)
        .where(STUDY_USER_ATTRS.c.key == CONFIG)
        .order_by(STUDIES.c.study_name)
    )
    derived = {}
    for study_id, study_name, stored in connection.execute(query):
        try:
            config = decode_json(stored, CONFIG)
        except RowError:  # another study is damaged
            continue
        # Plain Optuna may have given the name to something else.
        refinement = config.get("refinement") if isinstance(config, dict) else None
        if isinstance(refinement, dict) and refinement.get("source") == name != study_name:
            derived[study_id] = study_name
    return derived


# ------------------------------------------------------------------ the note in optuna-dashboard


def write_note(
    name: str,
    question: str,
    commands: Sequence[str],
    report: Path | None = None,
    answer: Sequence[str] = (),
) -> str:
    """Write the text of a study's note, as Markdown.

    Args:
        name: name of the study.
        question: its question; "" for none.
        commands: commands that created and extended it.
        report: its report; None if it is not written yet.
        answer: lines of the report's answer.
    """
    parts = [f"## {escape_markdown(question or name)}"]
    if answer:
        parts.append("\n".join(f"- {escape_markdown(line)}" for line in answer))
    # Indented lines are code: nothing in them has to be escaped.
    if commands:
        if answer:  # after a list, an indented line is code only behind a paragraph
            parts.append("The command:")
        parts.append(f"    {commands[0]}")
    if report is None:
        command = shlex.join(["rnn-search", "report", name])
        parts += [f"    {command}", "writes the report:"]
        report = default_report([name])
    else:
        parts.append("The report:")
    parts.append(f"    {report}")
    return "\n\n".join(parts)


def to_note_attributes(text: str, stored: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the system attributes of a study with a note; pieces of an earlier one are emptied."""
    attributes: dict[str, Any] = {key: "" for key in stored or {} if key.startswith(_NOTE_PIECE)}
    for start in range(0, len(text), _NOTE_LENGTH):
        attributes[f"{_NOTE_PIECE}{start // _NOTE_LENGTH}"] = text[start : start + _NOTE_LENGTH]
    return attributes | {_NOTE_VERSION: 1, NOTE: 1}


def update_note(storage: LeasedRDBStorage, study_id: int, text: str) -> None:
    """Replace the note of a study, unless a user has edited or written it."""

    def replace(stored: dict[str, Any]) -> dict[str, Any]:
        is_edited = stored.get(_NOTE_VERSION) != stored.get(NOTE)
        return {} if is_edited else to_note_attributes(text, stored)

    update_system_attributes(storage, study_id, replace)
