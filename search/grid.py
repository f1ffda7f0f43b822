"""The grid: Optuna's ``GridSampler``, on points that wait in the storage."""
# TODO-MERGE A study's grid that grows: new values at the end of a list, and the points that they
# bring.

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.errors import GridExhaustedError
from search.parameters import distributions, search_space
from studies.attributes import COMMANDS, CONFIG
from studies.config import StudyConfig
from studies.errors import ConfigMismatchError
from studies.space import Params, ParamValue, Space
from studies.storage.create import PlannedTrial, extend_study
from studies.storage.storage import LeasedRDBStorage

SURPLUS = "surplus"
"""The system attribute of a trial that found no point left; it is no point of the grid."""


class GridSampler(optuna.samplers.GridSampler):
    """Runs each point of a grid once, whoever asks: ``optimize``, ask-and-tell or our worker.

    Optuna's sampler draws a point when a trial is already there, so that two processes may draw
    the same one. Here each point is a trial from the start, which waits with its parameters fixed,
    and asking is claiming. A study made by :mod:`search.study` holds its points already; in any
    other study the first trial puts them there: begin such a study in one process, and have others
    join when its first trial runs.

    When no point is left, ``optimize`` stops, and ``ask`` raises :class:`GridExhaustedError`. A
    process
    that asked while another took the last point leaves a trial without parameters, pruned and
    marked :data:`SURPLUS`.

    Args:
        search_space: each parameter's values.
        seed: of the order in which the points are run.
        exclude: combinations of values to leave out.
        points: the points, in the order in which they are to be run, where they are not all
            combinations of the values.
    """

    def __init__(
        self,
        search_space: Mapping[str, Sequence[ParamValue]],
        seed: int | None = None,
        *,
        exclude: Sequence[Params] = (),
        points: Sequence[Params] | None = None,
    ) -> None:
        super().__init__(search_space, seed)
        self._distributions = distributions(search_space)
        if points is None:
            points = [
                point
                for point in map(self._point, self._all_grids)
                if not any(exclusion.items() <= point.items() for exclusion in exclude)
            ]
        self._all_grids = [tuple(point[name] for name in self._param_names) for point in points]
        self._n_min_trials = len(self._all_grids)

    @property
    def points(self) -> list[Params]:
        """The points, in the order in which they are to be run."""
        return [self._point(grid) for grid in self._all_grids]

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Let a claimed point pass; give a trial that is none its point, or turn it away.

        Raises:
            GridExhaustedError: outside ``optimize``, if every point is taken.
        """
        if trial.params or "fixed_params" in trial.system_attrs:
            return
        missing = self._missing(study)
        if not missing:
            self._turn_away(study, trial)
            return
        # A study that nobody has planned: this trial is the first point, the others wait.
        study._storage.set_trial_system_attr(trial._trial_id, "grid_id", missing[0])
        study._storage.set_trial_system_attr(trial._trial_id, "search_space", self._search_space)
        for grid_id in missing[1:]:
            study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params=self._point(self._all_grids[grid_id]),
                    distributions=dict(self._distributions),
                )
            )

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the value of the trial's point.

        Raises:
            GridExhaustedError: for a trial that found no point left.
        """
        if trial.system_attrs.get(SURPLUS):
            raise GridExhaustedError("no point of the grid is left")
        return super().sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Stop ``optimize`` when no point waits any more."""
        waiting = study._storage.get_all_trials(
            study._study_id, deepcopy=False, states=(TrialState.WAITING,)
        )
        if not waiting:
            _stop(study)

    def _point(self, grid: Sequence[Any]) -> Params:
        named = dict(zip(self._param_names, grid, strict=True))
        # In the order of the definition, which is that of tables and plots.
        return {name: named[name] for name in self._distributions}

    def _missing(self, study: Study) -> list[int]:
        """Return the numbers of the points for which the study has no trial."""
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        there = {self._key(trial.params) for trial in trials if trial.params}
        given = {trial.system_attrs.get("grid_id") for trial in trials}
        return [
            grid_id
            for grid_id, grid in enumerate(self._all_grids)
            if grid_id not in given and self._key(self._point(grid)) not in there
        ]

    def _get_unvisited_grid_ids(self, study: Study) -> list[int]:
        """Return the numbers of the points that are not finished; Optuna's own loop asks it."""
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        finished = {self._key(t.params) for t in trials if t.params and t.state.is_finished()}
        return [
            grid_id
            for grid_id, grid in enumerate(self._all_grids)
            if self._key(self._point(grid)) not in finished
        ]

    @staticmethod
    def _key(point: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
        return frozenset(point.items())

    @staticmethod
    def _turn_away(study: Study, trial: FrozenTrial) -> None:
        study._storage.set_trial_system_attr(trial._trial_id, SURPLUS, True)
        if not study._thread_local.in_optimize_loop:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED)
            raise GridExhaustedError(
                f"no point of study {study.study_name!r} is left to be asked for; every one is "
                "running or finished"
            )
        _stop(study)


def _stop(study: Study) -> None:
    if study._thread_local.in_optimize_loop:
        study.stop()


def extend(
    study: optuna.Study,
    storage: LeasedRDBStorage,
    stored: StudyConfig,
    wider: StudyConfig,
    command: str,
) -> StudyConfig | None:
    """Add the points that a definition's space has more than the study's.

    Returns:
        The wider definition as stored; None if the study is no longer as it was.
    """
    assert wider.space is not None
    if stored.space is None:
        raise ConfigMismatchError(
            f"study {study.study_name!r} was derived, and has no grid; allowed with --extend: "
            "studies with a [space]; extend its source and refine that"
        )
    if stored.space.parameters != wider.space.parameters:
        raise ConfigMismatchError(
            f"study {study.study_name!r} has the parameters {', '.join(stored.space.parameters)}; "
            "allowed with --extend: the same; make another study"
        )
    for name in stored.space.parameters:
        old, new = list(stored.space.values(name)), list(wider.space.values(name))
        if new[: len(old)] != old:
            raise ConfigMismatchError(
                f"study {study.study_name!r}: space.{name} is {old} in the study and {new} here; "
                "allowed with --extend: the same values in the same order, new ones after them"
            )
    old_points = list(stored.space.combinations())
    new_points = grid_of(wider).points
    if lost := [point for point in old_points if point not in new_points]:
        raise ConfigMismatchError(
            f"study {study.study_name!r} has {len(lost)} points that space.exclude leaves out "
            "here; allowed with --extend: to exclude new points only"
        )
    extended = stored.model_copy(update={"space": wider.space})
    done = extend_study(
        storage,
        study._study_id,
        {CONFIG: stored.model_dump(mode="json")},
        {
            CONFIG: extended.model_dump(mode="json"),
            COMMANDS: [*study.user_attrs.get(COMMANDS, []), command],
        },
        distributions(search_space(wider.space)),
        [PlannedTrial(point) for point in new_points if point not in old_points],
    )
    return extended if done else None


def is_beginning(own: Space, stored: Space) -> bool:
    """Tell whether a grid can have been extended to the stored one."""
    if own.parameters != stored.parameters:
        return False
    for name in own.parameters:
        values = list(own.values(name))
        if list(stored.values(name))[: len(values)] != values:
            return False
    points = {tuple(point.values()) for point in stored.combinations()}
    return all(tuple(point.values()) in points for point in own.combinations())


def grid_of(config: StudyConfig) -> GridSampler:
    """Return the sampler of a definition's grid."""
    assert config.space is not None
    return GridSampler(search_space(config.space), config.seed, exclude=config.space.exclude)
