"""What the pruner says of a study's points, read from its storage."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from search.forecast import LEAST_VALUES, Factors
from search.pruner import Judgement, Stage, Standing, ahead_of, rungs_of
from studies.definition import Definition
from studies.points import read_points
from studies.records import RUNG
from studies.standing import StandingPoint, read_standing
from studies.storage import Storage


@dataclass(frozen=True)
class Verdict:
    """That a point at a rung is not to go on for now, or at all.

    Attributes:
        is_final: whether it is given up.
        attributes: to be recorded with it.
    """

    is_final: bool
    attributes: Mapping[str, Any]


class Pausing:
    """Decides on points by what is stored of the study, and by nothing else.

    Args:
        storage: that holds the study.
        study_id: of the study.
        definition: of it, with pruning enabled.
    """

    def __init__(self, storage: Storage, study_id: int, definition: Definition) -> None:
        self._storage = storage
        self._study_id = study_id
        self._settings = definition.pruning
        self._steps = definition.training.steps
        self._rungs = rungs_of(definition.training.steps, definition.training.log_every)

    @cached_property
    def steps(self) -> frozenset[int]:
        """The steps at which points are looked at."""
        return frozenset(rung.step for rung in self._rungs)

    def verdicts(self, trial_ids: Collection[int]) -> dict[int, Verdict]:
        """Tell which of these running trials, all at a rung, do not go on, and why."""
        points, judgement = self._judge()
        places = {point.trial_id: place for place, point in enumerate(points)}
        found = {}
        for trial_id in trial_ids:
            place = places.get(trial_id)
            if place is None or judgement.goes_on(place):
                continue
            is_final = judgement.is_hopeless(place)
            found[trial_id] = Verdict(is_final, self._why(judgement, place, is_final))
        return found

    def choose(self, least_chance: float) -> list[int]:
        """Return the paused trials to go on with.

        Args:
            least_chance: that a trial must have to be taken along with the first one.

        Returns:
            Their ids, the most promising first, and those at the same rung that may be trained in
            lockstep with it; none if none is wanted.
        """
        points, judgement = self._judge()
        wanted = judgement.wanted
        if not wanted:
            return []
        reached = judgement.standing.reached
        first, *others = wanted
        return [points[first].trial_id] + [
            points[place].trial_id
            for place in others
            if reached[place] == reached[first] and judgement.chances[place] >= least_chance
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
            for place in np.flatnonzero(judgement.standing.where(Stage.PAUSED))
        }
        if not trials:
            return []
        pruned = set(self._storage.prune(trials))
        return [point.number for point in points if point.trial_id in pruned]

    def _judge(self) -> tuple[list[StandingPoint], Judgement]:
        points = read_standing(self._storage, self._study_id, self._rungs)
        standing = Standing(
            [Stage.PAUSED if point.is_paused else Stage.of(point.state) for point in points],
            np.array([point.losses for point in points]),
            np.array([point.value for point in points]),
            self._factors,
            ahead_of(self._rungs, self._steps),
        )
        return points, Judgement(standing, self._settings.keep, self._settings.confidence)

    @cached_property
    def _factors(self) -> Factors:
        """The points by their parameters, which do not change while a worker is at work."""
        return Factors.of([p.params for p in read_points(self._storage, self._study_id)])

    def _why(self, judgement: Judgement, place: int, is_final: bool) -> dict[str, Any]:
        """Return what to record of a point that does not go on."""
        standing = judgement.standing
        step = [0, *(rung.step for rung in self._rungs)][standing.reached[place]]
        found: dict[str, Any] = {RUNG: step}
        complete = int(standing.where(Stage.COMPLETE).sum())
        if complete < LEAST_VALUES and not is_final:
            return found  # nothing is foretold yet
        forecast = judgement.forecast
        mean, deviation = float(forecast.mean[place]), float(forecast.deviation[place])
        chance = float(judgement.chances[place])
        found |= {"chance": chance, "forecast": mean}
        if is_final:
            found["reason"] = (
                f"at step {step:,} of {self._steps:,}: foretold {mean:.3f} ± {deviation:.3f}, "
                f"the best {judgement.quota} of {len(standing.stages)} are below "
                f"{judgement.bound:.3f}; chance to be among them {chance:.2g}, with "
                f"{complete} complete"
            )
        return found
