"""Optuna's ``GridSampler`` over enqueued trials, and the extension of a study's grid."""

import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from rnn.config import ParamValue
from search.errors import GridExhaustedError
from search.pruning.audit import draw_audited, number_architectures
from studies.attributes import AUDIT_NUISANCE, COMMANDS, CONFIG, HYPOTHESES, StudyRecord
from studies.config import StudyConfig
from studies.errors import ConfigMismatchError
from studies.grid import Grid
from studies.hypotheses import Registration, update_records
from studies.loader import list_descriptive_changes, read_study_record
from studies.space import Params, complete_params, distributions, param_order
from studies.storage.changes import NewEnd, extend_study
from studies.storage.counts import count_started, count_trials
from studies.storage.reads import read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredTrial
from studies.text import shorten

NO_TRIAL_LEFT = "no_trial_left"
"""System attribute of a trial that was asked for when no grid trial was left."""


class GridSampler(optuna.samplers.GridSampler):
    """Grid sampler that runs each combination once, under ``optimize``, ask-and-tell or workers.

    Optuna's sampler chooses a combination for a trial that already exists, so two processes may
    choose the same one. Here every combination is a waiting trial with fixed parameters, and asking
    for a trial claims one. Studies created by :mod:`search.study` contain their grid trials. In
    other studies the first trial enqueues them: start such a study in one process and let others
    join once its first trial is running.

    When no trial is left, ``optimize`` stops and ``ask`` raises :class:`GridExhaustedError`. A
    process that asks while another claims the last trial leaves a pruned trial without parameters,
    marked :data:`NO_TRIAL_LEFT`.

    Args:
        search_space: values of each parameter.
        seed: seed of the order in which combinations run.
        exclude: combinations of values to leave out.
        combinations: the grid in the order in which it runs, unless it is the full product; a
            combination lacks the parameters that do not apply to it.
    """

    def __init__(
        self,
        search_space: Mapping[str, Sequence[ParamValue]],
        seed: int | None = None,
        *,
        exclude: Sequence[Params] = (),
        combinations: Sequence[Params] | None = None,
    ) -> None:
        if combinations is None:
            super().__init__(search_space, seed)
            self._distributions = distributions(search_space)
            combinations = [
                params
                for params in map(self._to_params, self._all_grids)
                if not any(exclusion.items() <= params.items() for exclusion in exclude)
            ]
        else:  # Optuna's sampler would make the full product, which may be far larger
            super().__init__({name: values[:1] for name, values in search_space.items()}, seed)
            self._search_space = {name: list(search_space[name]) for name in self._search_space}
            self._distributions = distributions(search_space)
        self._all_grids = [
            tuple(params.get(name) for name in self._param_names) for params in combinations
        ]
        self._n_min_trials = len(self._all_grids)

    @property
    def combinations(self) -> list[Params]:
        """The grid in the order in which it runs."""
        return [self._to_params(values) for values in self._all_grids]

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Enqueue the grid if the study lacks it; reject a trial for which nothing is left.

        Raises:
            GridExhaustedError: outside ``optimize``, if no trial is left.
        """
        if trial.params or "fixed_params" in trial.system_attrs:
            return
        missing = self._find_missing(study)
        if not missing:
            self._reject(study, trial)
            return
        # A study created by plain Optuna: this trial is the first combination, the others wait.
        study._storage.set_trial_system_attr(trial._trial_id, "grid_id", missing[0])
        study._storage.set_trial_system_attr(trial._trial_id, "search_space", self._search_space)
        for grid_id in missing[1:]:
            params = self._to_params(self._all_grids[grid_id])
            study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params=params,
                    distributions={name: self._distributions[name] for name in params},
                )
            )

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the parameter's value in the trial's combination.

        Raises:
            GridExhaustedError: for a trial that was rejected.
            ValueError: for a parameter that the combination lacks.
        """
        if trial.system_attrs.get(NO_TRIAL_LEFT):
            raise GridExhaustedError("no grid trial is left")
        grid_id = trial.system_attrs.get("grid_id")
        params = trial.params if grid_id is None else self._to_params(self._all_grids[grid_id])
        if param_name in self._param_names and param_name not in params:
            raise ValueError(
                f"trial {trial.number} has no parameter {param_name!r}: its combination is {params}"
            )
        return super().sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Stop ``optimize`` when no trial is waiting."""
        waiting = study._storage.get_all_trials(
            study._study_id, deepcopy=False, states=(TrialState.WAITING,)
        )
        if not waiting:
            _stop(study)

    def _to_params(self, values: Sequence[Any]) -> Params:
        named = dict(zip(self._param_names, values, strict=True))
        # Optuna sorts parameters by name; tables and plots use the config's order.
        return {name: named[name] for name in self._distributions if named[name] is not None}

    def _find_missing(self, study: Study) -> list[int]:
        """Return the indices of the combinations for which the study has no trial."""
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        present = {_key(trial.params) for trial in trials if trial.params}
        assigned = {trial.system_attrs.get("grid_id") for trial in trials}
        return [
            grid_id
            for grid_id, values in enumerate(self._all_grids)
            if grid_id not in assigned and _key(self._to_params(values)) not in present
        ]

    def _get_unvisited_grid_ids(self, study: Study) -> list[int]:
        """Return the indices of unfinished combinations; called by Optuna's loop."""
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        finished = {_key(t.params) for t in trials if t.params and t.state.is_finished()}
        return [
            grid_id
            for grid_id, values in enumerate(self._all_grids)
            if _key(self._to_params(values)) not in finished
        ]

    @staticmethod
    def _reject(study: Study, trial: FrozenTrial) -> None:
        study._storage.set_trial_system_attr(trial._trial_id, NO_TRIAL_LEFT, True)
        if not study._thread_local.in_optimize_loop:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED)
            raise GridExhaustedError(
                f"no trial of study {study.study_name!r} is left: all are running or finished"
            )
        _stop(study)


def _key(params: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    return frozenset(complete_params(params).items())


def _stop(study: Study) -> None:
    if study._thread_local.in_optimize_loop:
        study.stop()


def create_sampler(config: StudyConfig) -> GridSampler:
    """Return the sampler of a study with a search space."""
    grid = config.grid
    assert grid is not None
    combinations = list(grid.combinations())
    random.Random(config.seed).shuffle(combinations)
    return GridSampler(grid.search_space, config.seed, combinations=combinations)


def extend_grid(
    study: optuna.Study,
    storage: LeasedRDBStorage,
    stored: StudyConfig,
    extended: StudyConfig,
    command: str,
    new_end: NewEnd | None = None,
) -> StudyConfig | None:
    """Add the trials that an extended search space has in addition to the study's.

    Its descriptive settings replace the study's. Where nothing else changes, workers may hold
    trials, and the command is not recorded: the study has the same trials.

    Args:
        study: study to extend.
        storage: storage that holds it.
        stored: its stored config.
        extended: config with the extended space and the descriptive settings.
        command: command line to record.
        new_end: more steps of all trials; None for the same.

    Returns:
        The config that is stored now; None if another process has changed the study meanwhile.

    Raises:
        ConfigMismatchError: if the space is not an extension of the study's.
        StudiesError: if the study cannot be extended now.
    """
    record = read_study_record(study)
    trials = read_trials(storage, study._study_id, is_strict=True)
    nuisance = _choose_audit_nuisance(record, extended, trials)
    added = _plan_added(study.study_name, stored, extended, nuisance, trials)
    changed = list_descriptive_changes(stored, extended)
    update: dict[str, Any] = {name: getattr(extended, name) for name in changed}
    is_larger = new_end is not None or extended.space != stored.space
    if not (is_larger or update):  # extended before, by an attempt whose answer was lost
        return stored
    if is_larger:
        update |= {"space": extended.space, "cells": stored.cells | extended.cells}
    if new_end is not None:
        update["training"] = stored.training.model_copy(update={"steps": new_end.steps})
    raw = study.user_attrs[CONFIG]  # perhaps stored by an earlier version
    if StudyConfig.model_validate(raw) != stored:
        return None
    config = stored.model_copy(update=update)
    written: dict[str, Any] = {CONFIG: config.model_dump(mode="json")}
    if "hypothesis" in changed:
        written[HYPOTHESES] = _update_hypotheses(study, storage, config)
    if not is_larger:
        is_done = extend_study(storage, study._study_id, {CONFIG: raw}, written)
        return config if is_done else None
    grid = config.grid
    is_done = extend_study(
        storage,
        study._study_id,
        {CONFIG: raw},
        written | {COMMANDS: [*record.commands, command], AUDIT_NUISANCE: nuisance},
        {} if grid is None else distributions(grid.search_space),
        added,
        new_end,
    )
    return config if is_done else None


def _update_hypotheses(
    study: optuna.Study, storage: LeasedRDBStorage, config: StudyConfig
) -> list[dict[str, Any]]:
    """Return what a study stores about its hypotheses once its config is the given one."""
    record, counts = read_study_record(study), count_trials(storage, study._study_id)
    # Trials that wait to be trained for more steps have been finished before.
    ended = max((len(end.values) for end in record.earlier_ends), default=0)
    now = Registration(
        time=datetime.now(UTC),
        started=max(count_started(storage, study._study_id), ended),
        finished=max(counts.finished, ended),
        planned=counts.planned,
        report_threshold=config.report_threshold,
        nuisance=config.nuisance,
    )
    records = update_records(record.hypotheses, config.hypothesis, now)
    return [each.model_dump(mode="json") for each in records]


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


def _plan_added(
    name: str,
    stored: StudyConfig,
    extended: StudyConfig,
    nuisance: Sequence[str],
    trials: Sequence[StoredTrial],
) -> list[StoredTrial]:
    """Return the trials that an extended search space adds.

    Args:
        name: name of the study.
        stored: its stored config.
        extended: config with the extended space.
        nuisance: nuisance parameters over which audited architectures are drawn.
        trials: its trials.

    Raises:
        ConfigMismatchError: if it is not an extension.
    """
    if extended.space == stored.space:
        return []
    if conflict := find_conflict(stored, extended):
        raise ConfigMismatchError(f"study {name!r} {conflict}")
    old, new = stored.grid, create_sampler(extended).combinations
    assert old is not None
    planned = [StoredTrial(params) for params in subtract(new, old.combinations())]
    return draw_audited(planned, stored, nuisance, trials)


def subtract(grid: Iterable[Params], other: Iterable[Params]) -> list[Params]:
    """Return the combinations of a grid that another does not have, in linear time."""
    present = {_key(params) for params in other}
    return [params for params in grid if _key(params) not in present]


def find_conflict(stored: StudyConfig, extended: StudyConfig) -> str:
    """Return why a config's grid is no extension of a study's, as a predicate of it; "" if it is.

    Every list of a stored table must begin that of the same table of the extension, whose further
    tables are new. Trials have the parameters that their combinations have, so every stored
    combination must be one of the extended grid.
    """
    old, new = stored.grid, extended.grid
    if old is None or new is None:
        return "is a refinement without a [space]: extend its source and refine that"
    old_tables, new_tables = stored.space or (), extended.space or ()
    if len(new_tables) < len(old_tables):
        return (
            f"has {len(old_tables)} tables [[space]], not {len(new_tables)}: --extend expected "
            "these, then new ones"
        )
    for number, old_table in enumerate(old_tables):
        new_table = new_tables[number]
        table = "space." if len(old_tables) == 1 else f"space {number + 1}: "
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
    if added := wider.keys() - first.keys():
        return (
            f"has {len(removed)} trials without {', '.join(param_order(added))}, which they would "
            "have: --extend expected the parameters of existing trials to stay; start another "
            "study with --name"
        )
    if lost := first.keys() - set(grid.search_space):
        return (
            f"has {len(removed)} trials with {', '.join(param_order(lost))}, which they would "
            "lack: --extend expected the parameters of existing trials to stay"
        )
    return (
        f"has {len(removed)} trials that space leaves out, such as "
        f"{shorten(repr(first), 300)}: --extend can exclude new trials only"
    )
