"""Candidates of the pruner: architectures at their nuisance values, each with its runs.

The runs of a candidate, its replicates, are compared by their mean, and stop or train on together:
a run pauses at a rung until the others have reached it, the last of them decides, and runs whose
candidate has trained on are resumed before any others. Without replicates a candidate is a trial.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reports.stats.run_means import RunMeans
from search.pruning.regression import Floats
from studies.attributes import AuditState
from studies.space import replicate_of
from studies.storage.trials import StoredTrial, TrialStatus

_PRECEDENCE = (
    TrialStatus.WAITING,
    TrialStatus.RUNNING,
    TrialStatus.PAUSED,
    TrialStatus.PRUNED,
    TrialStatus.COMPLETE,
    TrialStatus.DIVERGED,
    TrialStatus.TOLD,
    TrialStatus.FAIL,
)
"""Stages, of which a candidate has the first that one of its runs has."""


@dataclass(frozen=True)
class Candidate:
    """An architecture at one value of each nuisance parameter.

    Attributes:
        runs: its runs but for those that failed: the others stand for it.
        paused_at: number of rungs at which each was paused last; 0 for none.
    """

    runs: Sequence[StoredTrial]
    paused_at: Sequence[int]

    def find_stage(self, deferred: Collection[int] = ()) -> TrialStatus:
        """Return the stage; runs that wait to be retried after an error, by id, count as running.

        It is paused only if all of its runs wait for a decision: one that has to catch up with
        others is about to run.
        """
        stages = {
            TrialStatus.RUNNING
            if run.status is TrialStatus.WAITING and run.trial_id in deferred
            else run.status
            for run in self.runs
        }
        stage = min(stages, key=_PRECEDENCE.index)
        return TrialStatus.RUNNING if stage is TrialStatus.PAUSED and self.behind else stage

    @cached_property
    def behind(self) -> list[StoredTrial]:
        """Paused runs at a rung from which another run has been let to train on."""
        goal = max(self._granted)
        return [
            run for run in self.runs if run.status is TrialStatus.PAUSED and count_rungs(run) < goal
        ]

    def must_continue(self, run: StoredTrial) -> bool:
        """Return whether another run has been let to train on from the rung of this one."""
        granted = zip(self.runs, self._granted, strict=True)
        return any(other is not run and count_rungs(run) < rungs for other, rungs in granted)

    def is_together(self, rungs: int) -> bool:
        """Return whether all runs have reached a rung and none is paused there."""
        return all(
            count_rungs(run) >= rungs and run.status is not TrialStatus.PAUSED for run in self.runs
        )

    @cached_property
    def audit(self) -> AuditState | None:
        """What was decided about it if it is audited; runs that were added later follow."""
        audits = [run.audit for run in self.runs if run.audit is not None]
        if not audits:
            return None
        return AuditState(
            rungs=max(audit.rungs for audit in audits), pruned=any(audit.pruned for audit in audits)
        )

    @cached_property
    def _granted(self) -> list[int]:
        """Number of rungs to which each run has certainly been let to train.

        One that runs from where it was paused was resumed; of another that has just reached a rung
        it is not known whether it continues.
        """
        granted = []
        for run, paused_at in zip(self.runs, self.paused_at, strict=True):
            rungs = count_rungs(run)
            if run.status is TrialStatus.COMPLETE:
                rungs = len(run.losses) + 1
            elif run.status in (TrialStatus.RUNNING, TrialStatus.WAITING):
                rungs = max(rungs, paused_at + 1)
            granted.append(rungs)
        return granted


def count_rungs(run: StoredTrial) -> int:
    """Return the number of rungs that a run has reached."""
    return sum(not math.isnan(loss) for loss in run.losses)


def average_runs(candidates: Sequence[Candidate], losses: Floats) -> Floats:
    """Return the mean losses of N candidates, (N, C), adjusted where runs have failed.

    Args:
        candidates: the candidates.
        losses: (T, C) losses of all their runs, in order; NaN if missing. A candidate has a mean
            only of columns in which all of its runs have a loss.
    """
    counts = [len(candidate.runs) for candidate in candidates]
    if max(counts, default=1) == 1:
        return losses
    owners = np.repeat(np.arange(len(candidates)), counts)
    runs = [run for candidate in candidates for run in candidate.runs]
    replicates = np.array([replicate_of(run.params) for run in runs])
    means = np.empty((len(candidates), losses.shape[1]))
    for column, of_candidates in zip(losses.T, means.T, strict=True):
        is_known = ~np.isin(owners, owners[np.isnan(column)])
        fit = RunMeans.fit(owners[is_known], replicates[is_known], len(candidates))
        of_candidates[:] = fit.compute(column[is_known])
    return means
