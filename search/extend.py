"""Extension of a study: further values or replicates, and other descriptions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from pydantic import ValidationError

import search
from rnn.errors import UserError
from search.derive import (
    add_replicates,
    check_count,
    find_space,
    list_combinations,
    subtract,
)
from search.open_study import OpenStudy
from search.planned_study import describe_trials
from search.run_options import RunOptions
from studies.attributes import (
    COMMANDS,
    CONFIG,
    EARLIER_REPLICATES,
    HYPOTHESES,
    TASK_FLOORS,
    StudyRecord,
)
from studies.config import StudyConfig
from studies.loader import list_descriptive_changes
from studies.messages import shorten
from studies.records import Floors, first_message
from studies.space import distributions
from studies.stated_hypotheses import register
from studies.storage.counts import count_trials
from studies.storage.edits import extend_study
from studies.storage.open import read_study_record
from studies.storage.reads import read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredTrial

if TYPE_CHECKING:  # which imports PyTorch
    from search.cells_tasks import StudyTask


def extend(
    study: optuna.Study,
    storage: LeasedRDBStorage,
    record: StudyRecord,
    config: StudyConfig,
    tasks: "Mapping[str, StudyTask]",
    options: RunOptions,
) -> list[str] | None:
    """Extend a study to a config that differs in what an extension can change.

    These are the space, the number of replicates and descriptive settings. Workers may hold trials
    where the space stays. Where only descriptive settings change, the command is not recorded: the
    study has the same trials.

    Returns:
        Notices for the user; None if another process has changed the study meanwhile.

    Raises:
        UserError: if the config is not an extension of the study's.
        UserError: if the study cannot be extended now.
    """
    study_id = study._study_id
    stored = record.config
    extension = _plan(study.study_name, record, config, read_trials(storage, study_id))
    check_count(len(extension.added), options.yes)
    extended = extension.config
    floors: dict[str, Floors] = {}  # of new tasks
    notices: list[str] = []
    if extended.has_networks:
        params = [trial.params for trial in extension.added]
        extended, floors, notices = search.networks.fit_extension(stored, extended, tasks, params)
    if extended == stored:
        return []  # extended before, by an attempt whose answer was lost

    written: dict[str, Any] = {CONFIG: extended.model_dump(mode="json")}
    choices = {}
    grid_size = None
    if extended.space != stored.space:
        assert extended.grid is not None
        choices = distributions(extended.grid.search_space)
        grid_size = extended.grid.count()
    elif extension.has_more_replicates:
        choices = distributions(find_space(extension.added, extended))
        written[EARLIER_REPLICATES] = record.replicates[::-1]
    if choices:
        written[COMMANDS] = [*record.commands, options.command]
    if extended.hypothesis != stored.hypothesis or extended.nuisance != stored.nuisance:
        written[HYPOTHESES] = _update_hypotheses(storage, study_id, record, extended)
    if floors:
        all_floors = record.task_floors | floors
        written[TASK_FLOORS] = {name: found.model_dump() for name, found in all_floors.items()}
    raw = study.user_attrs[CONFIG]
    if StudyConfig.model_validate(raw) != stored:
        return None
    expected = {CONFIG: raw}
    if not extend_study(storage, study_id, expected, written, choices, extension.added, grid_size):
        return None
    return [*_describe_extension(study, record, extension), *notices]


@dataclass(frozen=True)
class _Extension:
    """What an extension changes.

    Attributes:
        config: config of the extended study.
        changed: names of the descriptive settings that change.
        added: further trials.
        has_more_replicates: whether the number of replicates of a refinement changes.
    """

    config: StudyConfig
    changed: Sequence[str]
    added: Sequence[StoredTrial]
    has_more_replicates: bool


def _plan(
    name: str, record: StudyRecord, config: StudyConfig, trials: Sequence[StoredTrial]
) -> _Extension:
    stored = record.config
    replicates = _find_more_replicates(name, record, config)
    _check_nuisance(name, stored, config)
    changed = list_descriptive_changes(stored, config)
    extended = _redescribe(stored, config, changed)
    is_same = replicates is None and extended == stored and not record.earlier_replicates
    if stored.space is None and (config.space is not None or is_same):
        raise no_space_error(name)
    if len(record.commands) > 1 and has_earlier_grid(stored, config):
        config = stored  # whose space is as large
    added: Sequence[StoredTrial] = ()
    if replicates is not None:
        extended = _enlarge(extended, config, replicates)
        added = add_replicates(trials, replicates)
    elif config.space != stored.space:
        extended = _enlarge(extended, config, replicates)
        added = _plan_added(name, stored, extended)
    return _Extension(extended, changed, added, replicates is not None)


def _redescribe(stored: StudyConfig, config: StudyConfig, changed: Sequence[str]) -> StudyConfig:
    """Return a study's config with other descriptive settings; a stored hypothesis stays."""
    update: dict[str, Any] = {name: getattr(config, name) for name in changed}
    new_hypotheses = [new for new in config.hypothesis if new not in stored.hypothesis]
    update["hypothesis"] = [*stored.hypothesis, *new_hypotheses]
    return stored.model_copy(update=update)


def _enlarge(stored: StudyConfig, config: StudyConfig, replicates: int | None) -> StudyConfig:
    """Return a study's config with the space and replicates of an extension."""
    update: dict[str, Any] = {
        "space": config.space,
        "cells": config.cells | stored.cells,  # with what was measured of them
        "loop_parameters": config.list_params() if config.loop else [],
        # A text may be new; of one that is not, the study has the tokenizer.
        "task": config.task if config.task_records else stored.task,
        "task_records": config.task_records | stored.task_records,
    }
    if replicates is not None and stored.refinement is not None:
        refinement = stored.refinement.model_copy(update={"replicates": replicates})
        update["refinement"] = refinement
    return stored.model_copy(update=update)


def no_space_error(name: str) -> UserError:
    """Return the error for a refinement that has nothing to extend."""
    return UserError(
        f"study {name!r} is a refinement without a [space]: extend its source and refine that, or "
        "extend refinement.replicates"
    )


# ------------------------------------------------------------------ notices


def format_setting(config: StudyConfig, setting: str) -> str:
    """Format the value of a setting for a notice."""
    value = getattr(config, setting)
    return "none" if value is None else shorten(repr(value))


def _describe_extension(
    study: optuna.Study, before: StudyRecord, extension: _Extension
) -> list[str]:
    notices = []
    if extension.added:
        notices.append(describe_trials("extended", extension.added, extension.config))
    for setting in extension.changed:
        old = format_setting(before.config, setting)
        new = format_setting(extension.config, setting)
        notices.append(f"changed {setting} from {old} to {new}")
    for stored in read_study_record(study).hypotheses:
        if stored not in before.hypotheses:
            statement = shorten(stored.hypothesis.statement)
            notices.append(f"hypothesis {statement!r}: registered {stored.mark}")
    return notices


# ------------------------------------------------------------------ more replicates


def _find_more_replicates(name: str, record: StudyRecord, config: StudyConfig) -> int | None:
    """Return the number of replicates to extend a study to; None if it has or had as many."""
    if config.refinement is None:
        return None
    old = record.replicates[0]
    new = config.refinement.replicates
    if new in record.replicates:
        return None
    if new < old:
        raise UserError(
            f"study {name!r} has refinement.replicates = {old}, not {new}: --extend expected more "
            "replicates; compare fewer in another study with --name"
        )
    if old == 1:
        raise UserError(
            f"study {name!r} has one run of each architecture, without a number of its replicate: "
            "--extend expected refinement.replicates of 2 or more in the study; replicate its "
            "source under another --name"
        )
    return new


# ------------------------------------------------------------------ other descriptions


def _check_nuisance(name: str, stored: StudyConfig, config: StudyConfig) -> None:
    """Check that no hypothesis that a study stores is about a new nuisance parameter."""
    added = set() if stored.refinement else {*config.nuisance} - {*stored.nuisance}
    for hypothesis in stored.hypothesis:
        for parameter, _ in hypothesis.settings:
            if parameter in added:
                raise UserError(
                    f"study {name!r} has a hypothesis about {parameter!r} "
                    f"({shorten(hypothesis.statement)!r}): --extend expected another nuisance; "
                    "start another study with --name"
                )


def _update_hypotheses(
    storage: LeasedRDBStorage, study_id: int, record: StudyRecord, config: StudyConfig
) -> list[dict[str, Any]]:
    """Return what a study stores about its hypotheses once its config is the given one."""
    finished = count_trials(storage, study_id).finished
    records = record.hypotheses
    if config.nuisance != record.config.nuisance:  # which makes each test another one
        records = register([], [stored.hypothesis for stored in records], finished)
    records = register(records, config.hypothesis, finished)
    return [stored.model_dump(mode="json") for stored in records]


# ------------------------------------------------------------------ a larger grid


def _plan_added(name: str, stored: StudyConfig, extended: StudyConfig) -> list[StoredTrial]:
    if conflict := _find_conflict(stored, extended):
        raise UserError(f"study {name!r} {conflict}")
    if stored.pruning.enabled:
        raise UserError(
            f"study {name!r} prunes its trials in competition with each other: --extend expected "
            "one that does not; start a wider study under another --name"
        )
    assert stored.grid is not None
    new = subtract(list_combinations(extended), stored.grid.combinations())
    return [StoredTrial(params) for params in new]


def has_earlier_grid(stored: StudyConfig, config: StudyConfig) -> bool:
    """Return whether a study's grid, if it has one, can be an extension of that of a config."""
    if config.space is None or stored.space is None:
        return config.space is stored.space
    return not _find_conflict(config, stored)


def _find_conflict(stored: StudyConfig, extended: StudyConfig) -> str:
    """Return why a config's grid is no extension of a study's, as a predicate of it; "" if it is.

    Every list of a stored table must begin that of the same table of the extension, whose further
    tables are new. Trials have the parameters that their combinations have, so every stored
    combination must be one of the extended grid.
    """
    old = stored.grid
    new = extended.grid
    assert old is not None
    assert new is not None
    old_tables = stored.space or ()
    new_tables = extended.space or ()
    if len(new_tables) < len(old_tables):
        return (
            f"has {len(old_tables)} tables [[space]], not {len(new_tables)}: --extend expected "
            "these, then new ones"
        )
    for number, (old_table, new_table) in enumerate(zip(old_tables, new_tables, strict=False), 1):
        table = "space." if len(old_tables) == 1 else f"space {number}: "
        if new_table.replicates < old_table.replicates:
            return (
                f"has {table}replicates = {old_table.replicates}, not {new_table.replicates}: "
                "--extend expected as many or more"
            )
        for parameter in old.search_space:
            old_values = old_table.values(parameter)
            new_values = new_table.values(parameter)
            if old_values is None or new_values is None:
                continue
            if list(new_values[: len(old_values)]) != list(old_values):
                return (
                    f"has {table}{parameter} = {list(old_values)}, not {list(new_values)}: "
                    "--extend expected the same values in the same order, then new ones"
                )
    removed = subtract(old.combinations(), new.combinations())
    if not removed:
        return ""
    return (
        f"has {len(removed)} trials that space leaves out, such as "
        f"{shorten(repr(removed[0]), 300)}: --extend expected all trials to keep their parameters"
    )


# ------------------------------------------------------------------ pruning


def enable_pruning(opened: OpenStudy) -> StudyConfig:
    """Have a study with a loop prune its trials from now on; return its config.

    Another process may have done so.

    Raises:
        UserError: if its trials have no log point before the last.
    """
    raw = opened.study.user_attrs[CONFIG]
    settings = {**raw, "pruning": {**raw.get("pruning", {}), "enabled": True}}
    try:
        StudyConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"study {opened.name!r} {first_message(error)}") from error
    extend_study(opened.storage, opened.study_id, {CONFIG: raw}, {CONFIG: settings})
    pruning = opened.config.pruning.model_copy(update={"enabled": True})
    return opened.config.model_copy(update={"pruning": pruning})
