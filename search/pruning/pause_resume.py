"""What the pruner says of a study's points, read from its storage."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.pruning.policy import PruningPolicy, StudyState, TrialStage, ahead_of, rungs_of
from search.pruning.predictions import LEAST_VALUES, DesignMatrix
from studies.attributes import RUNG
from studies.config import StudyConfig
from studies.storage.queries import TrialProgress, read_progress, read_trials
from studies.storage.storage import LeasedRDBStorage


@dataclass(frozen=True)
class PruneDecision:
    """That a point at a rung is not to go on for now, or at all.

    Attributes:
        is_final: whether it is given up.
        attributes: to be recorded with it.
    """

    is_final: bool
    attributes: Mapping[str, Any]


class PauseResumeScheduler:
    """Decides on points by what is stored of the study, and by nothing else.

    Args:
        storage: that holds the study.
        study_id: of the study.
        config: of it, with pruning enabled.
    """

    def __init__(self, storage: LeasedRDBStorage, study_id: int, config: StudyConfig) -> None:
        self._storage = storage
        self._study_id = study_id
        self._settings = config.pruning
        self._steps = config.training.steps
        self._rungs = rungs_of(config.training.steps, config.training.log_every)
        self._coded: list[int] = []
        self._factors = DesignMatrix.of([])

    def verdicts(
        self, trial_ids: Collection[int], avoid: Collection[int] = ()
    ) -> dict[int, PruneDecision]:
        """Tell which of these running trials, all at a rung, do not go on, and why.

        Args:
            trial_ids: of the trials.
            avoid: those of trials that wait to be run again after an error: nobody waits for them.
        """
        points, judgement = self._judge(avoid)
        places = {point.trial_id: place for place, point in enumerate(points)}
        found = {}
        for trial_id in trial_ids:
            place = places.get(trial_id)
            if place is None or judgement.goes_on(place):
                continue
            is_final = judgement.is_hopeless(place)
            found[trial_id] = PruneDecision(is_final, self._why(judgement, place, is_final))
        return found

    def choose(
        self, min_keep_probability: float, avoid: Collection[int] = (), at_any_rate: bool = False
    ) -> list[int]:
        """Return the paused trials to go on with.

        Args:
            min_keep_probability: that a trial must have to be taken along with the first one.
            avoid: the ids of trials that wait to be run again after an error: nobody waits for
                them.
            at_any_rate: not to wait for what those that run will tell.

        Returns:
            Their ids, the most promising first, and those at the same rung that may be trained in
            lockstep with it; none if none is wanted.
        """
        points, judgement = self._judge(avoid)
        wanted = judgement.lacking if at_any_rate else judgement.wanted
        if not wanted:
            return []
        reached = judgement.standing.reached
        first, *others = wanted
        return [points[first].trial_id] + [
            points[place].trial_id
            for place in others
            if reached[place] == reached[first] and judgement.chances[place] >= min_keep_probability
        ]

    def conclude(self) -> list[int]:
        """Prune what is paused, if none of it will be wanted any more.

        Returns:
            The numbers of the trials that are pruned now.
        """
        points, judgement = self._judge()
        if not judgement.is_settled:
            return []
        trials = {
            points[place].trial_id: self._why(judgement, int(place), is_final=True)
            for place in np.flatnonzero(judgement.standing.where(TrialStage.PAUSED))
        }
        if not trials:
            return []
        pruned = set(self._storage.prune_paused(self._study_id, len(points), trials))
        return [point.number for point in points if point.trial_id in pruned]

    def _judge(self, avoid: Collection[int] = ()) -> tuple[list[TrialProgress], PruningPolicy]:
        points = read_progress(self._storage, self._study_id, self._rungs)
        standing = StudyState(
            [_stage(point, avoid) for point in points],
            np.array([point.losses for point in points]),
            np.array([point.value for point in points]),
            self._factors_of(points),
            ahead_of(self._rungs, self._steps),
        )
        return points, PruningPolicy(standing, self._settings.keep, self._settings.confidence)

    def _factors_of(self, points: Sequence[TrialProgress]) -> DesignMatrix:
        """Return the points by their parameters, which change only if the study is extended."""
        numbers = [point.number for point in points]
        if numbers != self._coded:
            params = {p.number: p.params for p in read_trials(self._storage, self._study_id)}
            self._factors = DesignMatrix.of([params[number] for number in numbers])
            self._coded = numbers
        return self._factors

    def _why(self, judgement: PruningPolicy, place: int, is_final: bool) -> dict[str, Any]:
        """Return what to record of a point that does not go on."""
        standing = judgement.standing
        step = [0, *(rung.step for rung in self._rungs)][standing.reached[place]]
        found: dict[str, Any] = {RUNG: step}
        complete = int(standing.where(TrialStage.COMPLETE).sum())
        if complete < LEAST_VALUES and not is_final:
            return found  # nothing is foretold yet
        forecast = judgement.forecast
        mean, deviation = float(forecast.mean[place]), float(forecast.deviation[place])
        keep_probability = float(judgement.chances[place])
        found |= {"keep_probability": keep_probability, "predicted_value": mean}
        if is_final:
            found["reason"] = (
                f"at step {step:,} of {self._steps:,}: foretold {mean:.3f} ± {deviation:.3f}, "
                f"the best {judgement.top_count} of {len(standing.stages)} are below "
                f"{judgement.bound:.3f}; chance to be among them {keep_probability:.2g}, with "
                f"{complete} complete"
            )
        return found


def _stage(point: TrialProgress, avoid: Collection[int]) -> TrialStage:
    if point.is_paused:
        return TrialStage.PAUSED
    stage = TrialStage.of(point.state)
    # It will be run when there is nothing else; until then it is unfinished business like another.
    return TrialStage.RUNNING if stage is TrialStage.FRESH and point.trial_id in avoid else stage
