"""Recorded curves of a complete search, and a search with the pruner simulated on them."""

import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import TrialState

from search.pruning.audited_trials import number_architectures
from search.pruning.policy import Decisions
from search.pruning.regression import Floats, Mask
from search.pruning.scheduler import PauseResumeScheduler, StudyProgress, compute_rungs
from studies.attributes import KEEP_PROBABILITY, RUNG, AuditLook, AuditState
from studies.best import top_count
from studies.config import StudyConfig
from studies.space import REPLICATE
from studies.storage.reads import Rung, fill_gaps
from studies.storage.trials import StoredTrial, TrialStatus


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
    def best(self) -> list[list[int]]:
        """Runs of each architecture at its best nuisance values, the best architecture first."""
        candidates = number_architectures(self.params, ())
        means = np.bincount(candidates, self.values) / np.bincount(candidates)
        architectures = number_architectures(self.params, self.nuisance)
        found: dict[int, list[int]] = {}
        for candidate in np.argsort(means, kind="stable").tolist():
            runs = np.flatnonzero(candidates == candidate).tolist()
            found.setdefault(int(architectures[runs[0]]), runs)
        return list(found.values())

    def select(self, replicates: int) -> "RecordedCurves":
        """Return the first so many replicates."""
        chosen = [i for i, row in enumerate(self.params) if row.get(REPLICATE, 0) < replicates]
        params = [self.params[i] for i in chosen]
        return replace(self, params=params, curves=self.curves[chosen], values=self.values[chosen])

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
        is_kept = [bool(complete[runs].all()) for runs in best]
        return cls(
            cost=steps / (count * recorded.end),
            recall=float(np.mean(is_kept[: top_count(keep, len(best))])),
            has_winner=is_kept[0],
            complete=float(complete.mean()),
        )


class Replay:
    """Simulated search with the scheduler that pauses and resumes, which audited trials disobey."""

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
        config = StudyConfig.model_validate(
            {
                "space": {"layers": [1], "state_size": [32]},
                "training": {"steps": recorded.end, "log_every": int(recorded.steps[0])},
                "pruning": {"enabled": True, "keep": keep, "confidence": confidence},
            }
        )
        no_storage: Any = SimpleNamespace(reader=lambda *_: None)
        self.scheduler = PauseResumeScheduler(no_storage, 0, config)
        self.trials = [
            StoredTrial(
                params,
                number=number,
                trial_id=number,
                audit=AuditState() if number in audited else None,
                losses=[math.nan] * len(recorded.rungs),
            )
            for number, params in enumerate(recorded.params)
        ]
        self.stops = [0, *(rung.step for rung in recorded.rungs), recorded.end]
        self.reached = [0] * len(self.trials)
        self.paused_at: dict[int, int] = {}
        self.waiting: list[int] = []  # the next one last
        self.running: list[tuple[int, int, int]] = []
        self.steps = 0
        self.now = 0  # in steps of one trial
        # Mean, scale and keep probability of those that were pruned, or would have been.
        self.predictions: dict[int, tuple[float, float, float]] = {}
        self.looks: dict[str, AuditLook] = {}

    def run(self, order: Sequence[int]) -> ReplayResult:
        self.waiting = list(reversed(order))
        while True:
            while len(self.running) < self.concurrent:
                chosen = self.waiting.pop() if self.waiting else self._select_to_resume()
                if chosen is None:
                    break
                self._advance(chosen)
            if not self.running:
                break
            self.now, _, trial = heapq.heappop(self.running)
            self._reach_rung(trial)
        complete = np.array([trial.status is TrialStatus.COMPLETE for trial in self.trials])
        return ReplayResult.summarize(self.recorded, self.keep, complete, self.steps)

    def read(self) -> StudyProgress:
        pruned_at = {number: found[2] for number, found in self.predictions.items()}
        nuisance = self.recorded.nuisance
        return self.scheduler.assemble(
            self.trials, pruned_at, self.paused_at, dict(self.looks), nuisance
        )

    def _select_to_resume(self) -> int | None:
        """Return the paused trial to resume, after audited ones before it resumed in decisions."""
        while True:
            decisions = self.scheduler.select(self.read(), 1.0)
            self._store(decisions)
            for trial, stop in decisions.pruned.items():
                self._prune(trial, stop.attributes)
            if decisions.resumed:
                return decisions.resumed[0]
            if not (decisions.audited or decisions.looks):
                return None

    def _store(self, decisions: Decisions) -> None:
        """Store decisions about audited trials, and looks at them."""
        self.looks |= dict(decisions.looks)
        for trial, decision in decisions.audited.items():
            self.trials[trial].audit = decision.after
            if decision.after.pruned:
                self._record(trial, decision.attributes)

    def _prune(self, trial: int, attributes: Mapping[str, Any]) -> None:
        self.trials[trial].state = TrialState.PRUNED
        self.trials[trial].is_paused = False
        self._record(trial, attributes)

    def _record(self, trial: int, attributes: Mapping[str, Any]) -> None:
        """Record that a trial is pruned, or, if it is audited, would be."""
        names = ("predicted_value", "predicted_scale", KEEP_PROBABILITY)
        mean, scale, probability = (attributes[name] for name in names)
        self.predictions[trial] = mean, scale, probability

    def _advance(self, trial: int) -> None:
        """Train a trial to its next rung."""
        self.trials[trial].state = TrialState.RUNNING
        self.trials[trial].is_paused = False
        length = self.stops[self.reached[trial] + 1] - self.stops[self.reached[trial]]
        self.steps += length
        heapq.heappush(self.running, (self.now + length, self.steps, trial))

    def _reach_rung(self, number: int) -> None:
        trial, rung = self.trials[number], self.reached[number]
        self.reached[number] += 1
        if rung == len(self.recorded.rungs):
            trial.state = TrialState.COMPLETE
            trial.value = float(self.recorded.values[number])
            return
        losses = self.recorded.losses[number, : rung + 1]
        trial.losses = fill_gaps([*losses, *trial.losses[rung + 1 :]])
        if trial.is_audited:
            self._advance(number)
        decisions = self.scheduler.decide(self.read(), [number])
        self._store(decisions)
        stop = decisions.stops.get(number)
        if stop is None and not trial.is_audited:
            self._advance(number)
        elif stop is not None and stop.is_final:
            self._prune(number, stop.attributes)
        elif stop is not None:
            trial.state = TrialState.WAITING
            trial.is_paused = True
            self.paused_at[number] = stop.attributes[RUNG]
