"""Recorded curves of a complete search, and a search with the pruner simulated on them."""

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.pruning.audited_trials import number_architectures
from search.pruning.forecast import Forecast, forecast_training
from search.pruning.policy import PruningPolicy, StudyState
from search.pruning.predictions import Prediction, PredictionMemory
from search.pruning.regression import DesignMatrix, Floats, Mask
from search.pruning.scheduler import compute_rungs, compute_steps_to_next_rung
from studies.attributes import AuditLook, AuditState
from studies.config import top_count
from studies.storage.reads import Rung
from studies.storage.trials import TrialStatus


@dataclass(frozen=True)
class RecordedCurves:
    """Curves (N, L) of N trials that were trained to the end, at L log points."""

    params: list[dict[str, Any]]
    steps: NDArray[np.int64]
    curves: Floats
    values: Floats
    nuisance: Sequence[str] = ()  # an architecture is judged at its best trial over them

    @property
    def end(self) -> int:
        return int(self.steps[-1])

    @cached_property
    def rungs(self) -> list[Rung]:
        return compute_rungs(self.end, int(self.steps[0]))

    @cached_property
    def design(self) -> DesignMatrix:
        return DesignMatrix.from_params(self.params)

    @cached_property
    def best(self) -> list[int]:
        """Best trial of each architecture, the best architecture first."""
        found: dict[tuple[Any, ...], int] = {}
        for index in np.argsort(self.values, kind="stable").tolist():
            params = self.params[index]
            key = tuple(value for name, value in params.items() if name not in self.nuisance)
            found.setdefault(key if self.nuisance else (index,), index)
        return list(found.values())

    @cached_property
    def losses(self) -> Floats:
        """Loss of each trial at each rung, (N, R)."""
        within = [(self.steps > rung.after) & (self.steps <= rung.step) for rung in self.rungs]
        return np.column_stack([self.curves[:, columns].mean(axis=1) for columns in within])


@dataclass(frozen=True)
class ReplayResult:
    """Result of a simulated search."""

    cost: float  # share of all steps that were trained
    recall: float  # share of the best fraction of the architectures that was trained to the end
    has_winner: bool
    complete: float  # share of all trials that was trained to the end

    @classmethod
    def summarize(
        cls, recorded: RecordedCurves, keep: float, complete: Mask, steps: int
    ) -> "ReplayResult":
        count = len(recorded.values)
        best = recorded.best
        return cls(
            cost=steps / (count * recorded.end),
            recall=float(complete[best[: top_count(keep, len(best))]].mean()),
            has_winner=bool(complete[best[0]]),
            complete=float(complete.mean()),
        )


class Replay:
    """Simulated search with the pause-and-resume policy, which audited trials do not obey."""

    def __init__(
        self,
        recorded: RecordedCurves,
        concurrent: int,
        keep: float,
        confidence: float,
        audited: Collection[int] = (),
    ) -> None:
        self.recorded = recorded
        self.concurrent = concurrent
        self.keep = keep
        self.confidence = confidence
        count = len(recorded.values)
        self.stages = [TrialStatus.WAITING] * count
        self.architectures = number_architectures(recorded.params, recorded.nuisance)
        self.losses = np.full_like(recorded.losses, math.nan)
        self.values = np.full(count, math.nan)
        self.stops = [0, *(rung.step for rung in recorded.rungs), recorded.end]
        self.reached = [0] * count
        self.steps_to_next_rung = compute_steps_to_next_rung(recorded.rungs, recorded.end)
        self.memory: PredictionMemory = {}
        self.running: list[tuple[int, int, int]] = []
        self.steps = 0
        self.audits = dict.fromkeys(audited, AuditState())
        # Mean, scale and keep probability of those that were pruned, or would have been.
        self.predictions: dict[int, tuple[float, float, float]] = {}
        self.looks: dict[str, AuditLook] = {}
        # Steps that were trained, and those that are forecast, at each decision.
        self.forecasts: list[tuple[int, Forecast]] = []

    def run(self, order: Sequence[int]) -> ReplayResult:
        waiting = list(reversed(order))
        now = 0
        while True:
            while len(self.running) < self.concurrent:
                chosen = [waiting.pop()] if waiting else self._select_to_resume(now)
                if not chosen:
                    break
                self._advance(chosen[0], now)
            # A look at the end may lead to trials that resume.
            if not self.running and not self.evaluate_policy().to_resume:
                break
            if self.running:
                now, _, trial = heapq.heappop(self.running)
                self._reach_rung(trial, now)
        policy = self.evaluate_policy()
        self._prune(policy, np.flatnonzero(policy.state.in_stage(TrialStatus.PAUSED)).tolist())
        complete = np.array([stage is TrialStatus.COMPLETE for stage in self.stages])
        return ReplayResult.summarize(self.recorded, self.keep, complete, self.steps)

    def evaluate_policy(self, at_rung: int | None = None) -> PruningPolicy:
        """Return the policy, where an audited trial may just have reached a rung."""
        state = self._state().stop_audited(self.audits, () if at_rung is None else (at_rung,))
        has_alarm = any(look.alarm for look in self.looks.values())
        policy = PruningPolicy(state, self.keep, self.confidence, has_alarm, self.memory)
        if self.audits and (name := policy.due_look(self.looks, not self.running)) is not None:
            self.looks[name] = policy.look()
            if self.looks[name].alarm:
                return self.evaluate_policy(at_rung)
        return policy

    def forecast_rest(self, share: float) -> tuple[Forecast | None, int]:
        """Return the forecast after a share of the search's steps, and the steps that were left."""
        trained, forecast = next(
            (found for found in self.forecasts if found[0] >= share * self.steps),
            (self.steps, None),
        )
        return forecast, self.steps - trained

    def _state(self) -> StudyState:
        pruned_at = np.full(len(self.stages), math.nan)
        for trial, (_, _, probability) in self.predictions.items():
            pruned_at[trial] = probability
        return StudyState(
            self.stages,
            self.losses,
            self.values,
            self.recorded.design,
            self.architectures,
            self.steps_to_next_rung,
            np.full(len(self.stages), -1),
            pruned_at,
        )

    def _forecast(self, policy: PruningPolicy, now: int) -> None:
        is_audited = np.isin(np.arange(len(self.stages)), list(self.audits))
        found = forecast_training(policy, self._state(), is_audited, np.ones(len(self.stages)))
        if found is not None:
            left = sum(end - now for end, _, _ in self.running)
            self.forecasts.append((self.steps - left, found))

    def _grant(self, trial: int) -> None:
        """Let an audited trial train to its next rung in decisions."""
        audit = self.audits[trial]
        self.audits[trial] = audit.model_copy(update={"rungs": audit.rungs + 1})

    def _select_to_resume(self, now: int) -> list[int]:
        """Return the paused trial to resume, after audited ones before it resumed in decisions."""
        while True:
            policy = self.evaluate_policy()
            self._forecast(policy, now)
            paused = np.flatnonzero(policy.state.in_stage(TrialStatus.PAUSED))
            self._prune(policy, [trial for trial in paused.tolist() if trial in policy.to_prune])
            if not (chosen := policy.to_resume[:1]) or chosen[0] not in self.audits:
                return chosen
            self._grant(chosen[0])

    def _prune(self, policy: PruningPolicy, trials: Sequence[int]) -> None:
        if trials:
            prediction = policy.predict_to_record()
            for trial in trials:
                self._record(policy, prediction, trial)

    def _record(self, policy: PruningPolicy, prediction: Prediction, trial: int) -> None:
        """Record that a trial is pruned, or, if it is audited, would be."""
        self.predictions[trial] = (
            float(prediction.mean[trial]),
            float(prediction.scale[trial]),
            float(policy.keep_probabilities[trial]),
        )
        if trial in self.audits:
            self.audits[trial] = self.audits[trial].model_copy(update={"pruned": True})
        else:
            self.stages[trial] = TrialStatus.PRUNED

    def _advance(self, trial: int, now: int) -> None:
        """Train a trial to its next rung."""
        self.stages[trial] = TrialStatus.RUNNING
        length = self.stops[self.reached[trial] + 1] - self.stops[self.reached[trial]]
        self.steps += length
        heapq.heappush(self.running, (now + length, self.steps, trial))

    def _reach_rung(self, trial: int, now: int) -> None:
        rung = self.reached[trial]
        self.reached[trial] += 1
        if rung == len(self.recorded.rungs):
            self.stages[trial] = TrialStatus.COMPLETE
            self.values[trial] = self.recorded.values[trial]
            return
        self.losses[trial, rung] = self.recorded.losses[trial, rung]
        is_audited = trial in self.audits
        if is_audited:
            self._advance(trial, now)
            if self.audits[trial].pruned or self.audits[trial].rungs != rung + 1:
                return
        policy = self.evaluate_policy(trial)
        self._forecast(policy, now)
        if policy.should_continue(trial):
            if is_audited:
                self._grant(trial)
            else:
                self._advance(trial, now)
        elif trial in policy.to_prune:
            left_out = policy.leave_out(trial)
            self._record(left_out, left_out.prediction, trial)
        elif not is_audited:
            self.stages[trial] = TrialStatus.PAUSED
