"""Recorded curves of a complete search, and a search with the pruner simulated on them."""

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.pruning.audit import Look, number_architectures
from search.pruning.design_matrix import DesignMatrix
from search.pruning.policy import PruningPolicy
from search.pruning.predictions import Prediction
from search.pruning.regression import Floats, Mask
from search.pruning.rungs import compute_rungs, compute_steps_to_next_rung
from search.pruning.study_state import StudyState, TrialStage, to_decision_stage
from studies.config import top_count
from studies.storage.reads import Rung


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
    recall_of_ten: float
    has_winner: bool
    complete: float  # share of all trials that was trained to the end
    starts: float  # starts and resumptions per trial

    @classmethod
    def summarize(
        cls, recorded: RecordedCurves, keep: float, complete: Mask, steps: int, starts: int
    ) -> "ReplayResult":
        count = len(recorded.values)
        best = recorded.best
        return cls(
            cost=steps / (count * recorded.end),
            recall=float(complete[best[: top_count(keep, len(best))]].mean()),
            recall_of_ten=float(complete[best[:10]].mean()),
            has_winner=bool(complete[best[0]]),
            complete=float(complete.mean()),
            starts=starts / count,
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
        self.stages = [TrialStage.WAITING] * count
        self.architectures = number_architectures(recorded.params, recorded.nuisance)
        self.losses = np.full_like(recorded.losses, math.nan)
        self.values = np.full(count, math.nan)
        self.stops = [0, *(rung.step for rung in recorded.rungs), recorded.end]
        self.reached = [0] * count
        self.steps_to_next_rung = compute_steps_to_next_rung(recorded.rungs, recorded.end)
        self.prediction: Prediction | None = None
        self.running: list[tuple[int, int, int]] = []
        self.steps = self.starts = 0
        self.granted = dict.fromkeys(audited, 1)
        self.pruned: set[int] = set()  # audited trials that would have been
        # Mean, scale and keep probability of those that were pruned, or would have been.
        self.predictions: dict[int, tuple[float, float, float]] = {}
        self.looks: dict[str, Look] = {}

    def run(self, order: Sequence[int]) -> ReplayResult:
        waiting = list(reversed(order))
        now = 0
        while True:
            while len(self.running) < self.concurrent:
                chosen = [waiting.pop()] if waiting else self._select_to_resume()
                if not chosen:
                    break
                self.starts += 1
                self._advance(chosen[0], now)
            # A look at the end may lead to trials that resume.
            if not self.running and not self.evaluate_policy().to_resume:
                break
            if self.running:
                now, _, trial = heapq.heappop(self.running)
                self._reach_rung(trial, now)
        policy = self.evaluate_policy()
        for trial in np.flatnonzero(policy.state.in_stage(TrialStage.PAUSED)).tolist():
            self._record(policy, trial)
        complete = np.array([stage is TrialStage.COMPLETE for stage in self.stages])
        return ReplayResult.summarize(self.recorded, self.keep, complete, self.steps, self.starts)

    def evaluate_policy(self, at_rung: int | None = None) -> PruningPolicy:
        """Return the policy, where an audited trial may just have reached a rung."""
        stages, losses = list(self.stages), self.losses.copy()
        held_out = np.full(len(stages), -1)
        for trial, granted in self.granted.items():
            rungs = len(self.recorded.rungs)
            reached = min(self.reached[trial], rungs)
            stages[trial], stop = to_decision_stage(
                stages[trial], reached, granted, trial in self.pruned, rungs
            )
            if stop >= 0 and math.isnan(self.values[trial]):
                losses[trial, stop:] = math.nan
            elif stop >= 0:
                held_out[trial] = stop
        if at_rung is not None:
            stages[at_rung] = TrialStage.RUNNING
        observed = stages, losses, self.values, self.recorded.design
        state = StudyState(*observed, self.steps_to_next_rung, held_out, self.architectures)
        has_alarm = any(look.is_alarm for look in self.looks.values())
        policy = PruningPolicy(state, self.keep, self.confidence, self.prediction, has_alarm)
        if TrialStage.WAITING not in self.stages:
            self.prediction = policy.prediction  # valid until a trial reaches its next rung
        if self.granted and (name := policy.due_look(self.looks, not self.running)) is not None:
            self.looks[name] = policy.look()
            if self.looks[name].is_alarm:
                self.prediction = None
                return self.evaluate_policy(at_rung)
        return policy

    def _select_to_resume(self) -> list[int]:
        """Return the paused trial to resume, after audited ones before it resumed in decisions."""
        while chosen := self.evaluate_policy().to_resume[:1]:
            if chosen[0] not in self.granted:
                break
            self.granted[chosen[0]] += 1
            self.prediction = None
        return chosen

    def _record(self, policy: PruningPolicy, trial: int) -> None:
        """Record that a trial is pruned, or, if it is audited, would be."""
        self.predictions[trial] = (
            float(policy.prediction.mean[trial]),
            float(policy.prediction.scale[trial]),
            float(policy.keep_probabilities[trial]),
        )
        if trial in self.granted:
            self.pruned.add(trial)
        else:
            self.stages[trial] = TrialStage.PRUNED

    def _advance(self, trial: int, now: int) -> None:
        """Train a trial to its next rung."""
        self.stages[trial] = TrialStage.RUNNING
        length = self.stops[self.reached[trial] + 1] - self.stops[self.reached[trial]]
        self.steps += length
        heapq.heappush(self.running, (now + length, self.steps, trial))

    def _reach_rung(self, trial: int, now: int) -> None:
        self.prediction = None
        rung = self.reached[trial]
        self.reached[trial] += 1
        if rung == len(self.recorded.rungs):
            self.stages[trial] = TrialStage.COMPLETE
            self.values[trial] = self.recorded.values[trial]
            return
        self.losses[trial, rung] = self.recorded.losses[trial, rung]
        is_audited = trial in self.granted
        if is_audited:
            self._advance(trial, now)
            if trial in self.pruned or self.granted[trial] != rung + 1:
                return
        policy = self.evaluate_policy(trial)
        if policy.should_continue(trial):
            if is_audited:
                self.granted[trial] += 1
            else:
                self._advance(trial, now)
        elif policy.should_prune_now(trial):
            self._record(policy, trial)
        elif not is_audited:
            self.stages[trial] = TrialStage.PAUSED
