"""Optuna's ``GridSampler`` over enqueued trials."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from rnn.config import ParamValue
from search.errors import GridExhaustedError
from studies.config import StudyConfig
from studies.space import Params, complete_params, distributions

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


def list_combinations(config: StudyConfig) -> list[Params]:
    """Return the combinations of a study with a search space in the order in which they run."""
    assert config.grid is not None
    combinations = list(config.grid.combinations())
    random.Random(config.seed).shuffle(combinations)
    return combinations


def subtract(grid: Iterable[Params], other: Iterable[Params]) -> list[Params]:
    """Return the combinations of a grid that another does not have, in linear time."""
    present = {_key(params) for params in other}
    return [params for params in grid if _key(params) not in present]
