"""Extension of a study: further values or replicates, and other descriptions."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from rnn.errors import UserError
from search.contract_check import check_cells, check_tasks
from search.derive import add_replicates, check_count, list_combinations, subtract
from search.pruning.audited_trials import draw_audited, number_architectures
from search.run_options import RunOptions
from search.study_tasks import StudyTask
from studies.attributes import (
    AUDIT_NUISANCE,
    COMMANDS,
    CONFIG,
    EARLIER_REPLICATES,
    HYPOTHESES,
    TASK_FLOORS,
    StudyRecord,
)
from studies.config import StudyConfig
from studies.grid import Grid
from studies.hypotheses import register
from studies.loader import list_descriptive_changes
from studies.space import Params, distributions, observed_search_space, param_order
from studies.storage.counts import count_trials
from studies.storage.edits import extend_study
from studies.storage.open import read_study_record
from studies.storage.reads import read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredTrial
from studies.text import shorten


def extend(
    study: optuna.Study,
    storage: LeasedRDBStorage,
    record: StudyRecord,
    config: StudyConfig,
    tasks: Mapping[str, StudyTask],
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
    name = study.study_name
    stored = record.config
    trials = read_trials(storage, study._study_id)
    replicates = _find_more_replicates(name, record, config)
    new_hypotheses = [new for new in config.hypothesis if new not in stored.hypothesis]
    changed = list_descriptive_changes(stored, config)
    _check_nuisance(name, stored, config)
    is_same = not (replicates or changed or new_hypotheses or record.earlier_replicates)
    if stored.space is None and (config.space is not None or is_same):
        raise no_space_error(name)
    if len(record.commands) > 1 and has_earlier_grid(stored, config):
        names = ("space", "cells", "task_records")
        config = config.model_copy(update={name: getattr(stored, name) for name in names})
    has_more_points = config.space != stored.space
    nuisance = _choose_audit_nuisance(record, config, trials)
    if replicates is None:
        added = _plan_added(name, stored, config, nuisance, trials)
    else:
        added = add_replicates(trials, replicates)
    check_count(len(added), config.training.steps, options.yes)
    check_cells(config, stored)
    new_tasks = {name: tasks[name] for name in config.task_names if name not in stored.task_records}
    floors = record.task_floors | check_tasks(new_tasks, config.evaluation.windows)
    is_larger = bool(has_more_points or replicates)
    if not (is_larger or changed or new_hypotheses):
        return []  # extended before, by an attempt whose answer was lost

    extended = _redescribe(stored, config, changed)
    if is_larger:
        extended = _enlarge(extended, config, replicates)
    written: dict[str, Any] = {CONFIG: extended.model_dump(mode="json")}
    if new_hypotheses or "nuisance" in changed:
        written[HYPOTHESES] = _update_hypotheses(storage, study._study_id, record, extended)
    if new_tasks:
        written[TASK_FLOORS] = {name: each.model_dump() for name, each in floors.items()}
    choices = {}
    grid_size = None
    if is_larger:
        written |= {COMMANDS: [*record.commands, options.command], AUDIT_NUISANCE: nuisance}
    if has_more_points and extended.grid is not None:
        choices = distributions(extended.grid.search_space)
        grid_size = extended.grid.count()
    if replicates is not None:
        written[EARLIER_REPLICATES] = record.replicates[::-1]
        choices = distributions(observed_search_space(trial.params for trial in added))
    raw = study.user_attrs[CONFIG]  # lacks the switches that were added to the program since
    if StudyConfig.model_validate(raw) != stored:
        return None
    expected = {CONFIG: raw}
    if not extend_study(storage, study._study_id, expected, written, choices, added, grid_size):
        return None
    return _describe_extension(study, record, extended, len(added), changed)


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
        "cells": stored.cells | config.cells,
        "task_records": stored.task_records | config.task_records,
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


def describe_trials(verb: str, count: int, config: StudyConfig) -> str:
    """Return a notice on how many trials were added."""
    trials = f"{count:,} trial{'s' * (count != 1)}"
    return f"{verb} with {trials}, {count * config.training.steps:,} training steps in all"


def format_setting(config: StudyConfig, setting: str) -> str:
    """Format the value of a setting for a notice."""
    value = getattr(config, setting)
    return "none" if value is None else shorten(repr(value))


def _describe_extension(
    study: optuna.Study,
    before: StudyRecord,
    extended: StudyConfig,
    count: int,
    changed: Sequence[str],
) -> list[str]:
    """Return a notice for each thing that an extension has changed."""
    record, notices = read_study_record(study), []
    if count:
        notices.append(describe_trials("extended", count, extended))
    for setting in changed:
        old, new = format_setting(before.config, setting), format_setting(extended, setting)
        notices.append(f"changed {setting} from {old} to {new}")
    for stored in record.hypotheses:
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


def _choose_audit_nuisance(
    record: StudyRecord, extended: StudyConfig, trials: Sequence[StoredTrial]
) -> list[str]:
    """Return the nuisance parameters over which an extended study draws audited architectures.

    They are those of the extended config if these have distinguished no trials so far, so that the
    architectures drawn already are the same.
    """
    new = [] if extended.grid is None else extended.nuisance
    params = [trial.params for trial in trials]
    counts = {
        int(number_architectures(params, nuisance).max(initial=-1))
        for nuisance in (record.audit_nuisance, new, [*record.audit_nuisance, *new])
    }
    return new if len(counts) == 1 else record.audit_nuisance


# ------------------------------------------------------------------ a larger grid


def _plan_added(
    name: str,
    stored: StudyConfig,
    extended: StudyConfig,
    nuisance: Sequence[str],
    trials: Sequence[StoredTrial],
) -> list[StoredTrial]:
    """Return the trials that an extended search space adds."""
    if extended.space == stored.space:
        return []
    if conflict := _find_conflict(stored, extended):
        raise UserError(f"study {name!r} {conflict}")
    old, new = stored.grid, list_combinations(extended)
    assert old is not None
    planned = [StoredTrial(params) for params in subtract(new, old.combinations())]
    return draw_audited(planned, stored, nuisance, trials)


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
    old, new, old_tables, new_tables = stored.grid, extended.grid, stored.space, extended.space
    assert old is not None
    assert new is not None
    assert old_tables is not None
    assert new_tables is not None
    if len(new_tables) < len(old_tables):
        return (
            f"has {len(old_tables)} tables [[space]], not {len(new_tables)}: --extend expected "
            "these, then new ones"
        )
    for number, (old_table, new_table) in enumerate(zip(old_tables, new_tables, strict=False), 1):
        table = "space." if len(old_tables) == 1 else f"space {number}: "
        for parameter in old.search_space:
            old_values, new_values = old_table.values(parameter), new_table.values(parameter)
            if old_values is None or new_values is None:
                continue
            if list(new_values[: len(old_values)]) != list(old_values):
                return (
                    f"has {table}{parameter} = {list(old_values)}, not {list(new_values)}: "
                    "--extend expected the same values in the same order, then new ones"
                )
    removed = subtract(old.combinations(), new.combinations())
    return _describe_removal(removed, new) if removed else ""


def _describe_removal(removed: Sequence[Params], grid: Grid) -> str:
    """Say why a grid does not have some combinations of a study."""
    first = removed[0]
    wider = next((each for each in grid.combinations() if first.items() <= each.items()), first)
    change = ""
    if added := wider.keys() - first.keys():
        change = f"without {', '.join(param_order(added))}, which they would have"
    elif lost := first.keys() - set(grid.search_space):
        change = f"with {', '.join(param_order(lost))}, which they would lack"
    if change:
        return (
            f"has {len(removed)} trials {change}: --extend expected the parameters of existing "
            "trials to stay; start another study with --name"
        )
    return (
        f"has {len(removed)} trials that space leaves out, such as "
        f"{shorten(repr(first), 300)}: --extend can exclude new trials only"
    )
