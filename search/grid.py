"""Optuna's ``GridSampler`` over enqueued trials."""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search.errors import GridExhaustedError
from studies.attributes import IS_GRID_TRIAL
from studies.config import StudyConfig
from studies.space import Params, complete_params

NO_TRIAL_LEFT = "no_trial_left"
"""System attribute of a trial that was asked for when no grid trial was left."""


class GridSampler(optuna.samplers.GridSampler):
    """Grid sampler of a study that contains its grid trials, under ``optimize`` or ask-and-tell.

    Optuna's sampler chooses a combination for a trial that already exists, so two processes may
    choose the same one. Here every combination is a waiting trial with fixed parameters
    (:mod:`search.study`), and asking for a trial claims one: nothing is left to sample.

    When no trial is left, ``optimize`` stops and ``ask`` raises :class:`GridExhaustedError`. A
    process that asks while another claims the last trial leaves a pruned trial without parameters,
    marked :data:`NO_TRIAL_LEFT`.
    """

    def __init__(self) -> None:
        super().__init__({})  # the study has the combinations

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Reject a trial that is neither of the grid nor enqueued.

        Raises:
            GridExhaustedError: outside ``optimize``.
        """
        if trial.params or "fixed_params" in trial.system_attrs:
            return
        study._storage.set_trial_system_attr(trial._trial_id, NO_TRIAL_LEFT, True)
        if not study._thread_local.in_optimize_loop:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED)
            raise GridExhaustedError(
                f"no trial of study {study.study_name!r} is left: all are running or finished"
            )
        study.stop()

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Refuse to sample a parameter that a trial lacks.

        Raises:
            GridExhaustedError: for a trial that was rejected.
            ValueError: for any other.
        """
        if trial.system_attrs.get(NO_TRIAL_LEFT):
            raise GridExhaustedError("no grid trial is left")
        raise ValueError(
            f"trial {trial.number} has no parameter {param_name!r}: its combination is "
            f"{trial.params}"
        )

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
        if not waiting and study._thread_local.in_optimize_loop:
            study.stop()

    def _get_unvisited_grid_ids(self, study: Study) -> list[int]:
        """Return the numbers of unfinished grid trials, for Optuna's ``is_exhausted``."""
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        return [
            trial.number
            for trial in trials
            if IS_GRID_TRIAL in trial.system_attrs and not trial.state.is_finished()
        ]


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


def _key(params: Params) -> frozenset[tuple[str, Any]]:
    return frozenset(complete_params(params).items())
