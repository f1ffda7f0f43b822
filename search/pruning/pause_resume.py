"""Pause-and-resume scheduler: apply the pruning policy to the stored state of a study.

Reads and writes take a few statements, and what is computed between them may take longer.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from search.pruning.decisions import Decisions, PruneDecision
from search.pruning.design_matrix import DesignMatrix
from search.pruning.policy import PruningPolicy
from search.pruning.predictions import MIN_COMPLETE, PredictionMemory
from search.pruning.rungs import compute_rungs, compute_steps_to_next_rung
from search.pruning.study_progress import StudyProgress, StudyProgressReader, build_state
from search.pruning.study_state import TrialStage
from studies.attributes import AUDIT_LOOKS, RUNG, AuditLook, AuditState
from studies.config import StudyConfig
from studies.storage.changes import update_system_attributes
from studies.storage.storage import AuditDecision, LeasedRDBStorage
from studies.storage.trials import StoredTrial


class PauseResumeScheduler:
    """Decides which trials to pause, resume and prune, from the stored state of the study alone.

    Only :meth:`read`, :meth:`store` and :meth:`prune` use the storage. The other methods may run in
    another thread than these.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        config: study config with pruning enabled.
    """

    def __init__(self, storage: LeasedRDBStorage, study_id: int, config: StudyConfig) -> None:
        self._storage = storage
        self._study_id = study_id
        self._settings = config.pruning
        self._steps = config.training.steps
        self._rungs = compute_rungs(config.training.steps, config.training.log_every)
        self._reader = StudyProgressReader(storage, study_id, self._rungs)
        self._memory = PredictionMemory()
        # Parameters are the same object until the study is extended.
        self._encoded: tuple[Sequence[Mapping[str, Any]], DesignMatrix] | None = None

    def read(self) -> StudyProgress:
        """Read the state of the study."""
        return self._reader.read()

    def decide(
        self, progress: StudyProgress, trial_ids: Collection[int], deferred: Collection[int] = ()
    ) -> Decisions:
        """Decide which of these running trials, which have reached a rung, are paused or pruned.

        Args:
            progress: state of the study.
            trial_ids: ids of the trials.
            deferred: ids of waiting trials to retry after an error; other trials do not wait for
                them.

        Returns:
            ``stops``, in which trials that continue are absent, and ``audited``.
        """
        indices = {trial.trial_id: index for index, trial in enumerate(progress.trials)}
        asked = {trial_id: indices[trial_id] for trial_id in trial_ids if trial_id in indices}
        policy = self._build_policy(progress, deferred, asked.values())
        can_prune = not progress.is_audited or bool(progress.looks)
        stops: dict[int, PruneDecision] = {}
        audited: dict[int, AuditDecision] = {}
        for trial_id, index in asked.items():
            audit = progress.trials[index].audit
            if audit is not None and not self._is_at_rung(progress.trials[index], audit):
                continue
            if not policy.state.rungs_reached[index]:
                continue  # before the first target of its task nothing tells it from others
            if policy.should_continue(index):
                if audit is not None:
                    audited[trial_id] = _let_continue(audit)
                continue
            is_final = can_prune and policy.should_prune_now(index)
            if audit is None:
                attributes = self._decision_attributes(policy, index, is_final)
                stops[trial_id] = PruneDecision(is_final, attributes)
            elif is_final:
                audited[trial_id] = self._record_pruned(policy, index, audit)
        return Decisions(stops=stops, audited=audited)

    def select_to_resume(
        self,
        progress: StudyProgress,
        min_keep_probability: float,
        deferred: Collection[int] = (),
        ignore_running: bool = False,
    ) -> Decisions:
        """Select the paused trials to resume in one batch.

        Args:
            progress: state of the study.
            min_keep_probability: keep probability from which a trial joins the first one's batch.
            deferred: ids of waiting trials to retry after an error; other trials do not wait for
                them.
            ignore_running: resume even if results of running trials are still expected.

        Returns:
            ``resumed``, trials at one rung, empty if none is needed. With ``audited`` or ``looks``
            there is more to decide once these are stored.
        """
        if progress.damaged_paused:  # a worker that claims a damaged trial fails it
            return Decisions(resumed=list(progress.damaged_paused))
        trials, policy = progress.trials, self._build_policy(progress, deferred)
        if looks := self._take_look(policy, progress):
            return Decisions(looks=looks)
        to_resume = policy.to_resume_ignoring_running if ignore_running else policy.to_resume
        if not to_resume:
            return Decisions()
        reached = policy.state.rungs_reached
        first, *others = to_resume
        chosen = [first] + [
            index
            for index in others
            if reached[index] == reached[first]
            and policy.keep_probabilities[index] >= min_keep_probability
        ]
        return Decisions(
            resumed=[trials[index].trial_id for index in chosen if trials[index].audit is None],
            audited={
                trials[index].trial_id: _let_continue(audit)
                for index in chosen
                if (audit := trials[index].audit) is not None
            },
        )

    def select_to_prune(self, progress: StudyProgress) -> Decisions:
        """Select all paused trials to be pruned if none of them will be resumed.

        Returns:
            ``pruned`` and ``audited``, empty if some may resume; or ``looks``, after which there is
            more to decide.
        """
        policy = self._build_policy(progress)
        if looks := self._take_look(policy, progress):
            return Decisions(looks=looks)
        if not policy.is_final:
            return Decisions()
        pruned: dict[int, Mapping[str, Any]] = {}
        audited: dict[int, AuditDecision] = {}
        for index in np.flatnonzero(policy.state.in_stage(TrialStage.PAUSED)).tolist():
            trial = progress.trials[index]
            if trial.audit is None:
                pruned[trial.trial_id] = self._decision_attributes(policy, index, is_final=True)
            else:
                audited[trial.trial_id] = self._record_pruned(policy, index, trial.audit)
        return Decisions(pruned=pruned, audited=audited)

    def store(self, decisions: Decisions) -> None:
        """Store decisions about audited trials, and looks at them; others keep what was stored."""
        if decisions.audited:
            self._storage.write_audit(decisions.audited)
        if decisions.looks:
            new = {name: look.model_dump() for name, look in decisions.looks.items()}

            def add(stored: dict[str, Any]) -> dict[str, Any]:
                return {AUDIT_LOOKS: {**new, **stored.get(AUDIT_LOOKS, {})}}

            update_system_attributes(self._storage, self._study_id, add)

    def prune(self, progress: StudyProgress, selected: Decisions) -> list[int]:
        """Prune paused trials, unless the study was extended or a trial resumed since it was read.

        Args:
            progress: state of the study from which they were selected.
            selected: decisions of :meth:`select_to_prune`.

        Returns:
            Numbers of the trials pruned by this call.
        """
        trials = progress.trials
        pruned = set(
            self._storage.prune_paused(
                self._study_id, progress.planned, selected.pruned, selected.audited
            )
        )
        return [trial.number for trial in trials if trial.trial_id in pruned]

    def _take_look(self, policy: PruningPolicy, progress: StudyProgress) -> dict[str, AuditLook]:
        """Return the planned look at the audited trials that is due now, by name."""
        if not progress.is_audited:
            return {}
        name = policy.due_look(progress.looks, progress.is_idle)
        if name is None:
            return {}
        found = policy.look()
        complete = int(policy.state.in_stage(TrialStage.COMPLETE).sum())
        return {
            name: AuditLook(
                complete=complete, trials=found.trials, inside=found.inside, alarm=found.is_alarm
            )
        }

    def _is_at_rung(self, trial: StoredTrial, audit: AuditState) -> bool:
        """Return whether the pruner decides now whether an audited trial would continue."""
        reached = int((~np.isnan(trial.losses)).sum())
        return not audit.pruned and reached == audit.rungs

    def _build_policy(
        self,
        progress: StudyProgress,
        deferred: Collection[int] = (),
        asked: Collection[int] = (),
    ) -> PruningPolicy:
        """Return the policy for the state of a study.

        Args:
            progress: state of the study.
            deferred: ids of waiting trials to retry after an error.
            asked: indices of running trials to decide about; audited ones are not stopped yet.
        """
        if self._encoded is None or self._encoded[0] is not progress.params:
            self._encoded = progress.params, DesignMatrix.from_params(progress.params)
        steps = compute_steps_to_next_rung(self._rungs, self._steps)
        state = build_state(progress, self._encoded[1], steps, deferred, asked)
        has_alarm = any(look.alarm for look in progress.looks.values())
        settings = self._settings
        return PruningPolicy(
            state, settings.keep, settings.confidence, recalibrate=has_alarm, memory=self._memory
        )

    def _record_pruned(self, policy: PruningPolicy, index: int, audit: AuditState) -> AuditDecision:
        """Return the decision that an audited trial would have been pruned."""
        attributes = self._decision_attributes(policy, index, is_final=True)
        attributes["reason"] = f"audited; would have been pruned {attributes['reason']}"
        return AuditDecision(audit, audit.model_copy(update={"pruned": True}), attributes)

    def _decision_attributes(
        self, policy: PruningPolicy, index: int, is_final: bool
    ) -> dict[str, Any]:
        """Return the user attributes that record why a trial is paused or pruned."""
        state = policy.state
        step = [0, *(rung.step for rung in self._rungs)][state.rungs_reached[index]]
        attributes: dict[str, Any] = {RUNG: step}
        complete = int(state.in_stage(TrialStage.COMPLETE).sum())
        if complete < MIN_COMPLETE and not is_final:
            return attributes  # without a regression there is no prediction to record
        mean = float(policy.prediction.mean[index])
        scale = float(policy.prediction.scale[index])
        keep_probability = float(policy.keep_probabilities[index])
        attributes |= {
            "keep_probability": keep_probability,
            "predicted_value": mean,
            "predicted_scale": scale,
        }
        if is_final:
            attributes["reason"] = (
                f"at step {step:,} of {self._steps:,}: predicted {mean:#.4g} ± {scale:#.2g}; "
                f"the top {policy.top_count} of {len(state.stages)} trials are expected below "
                f"{policy.top_threshold:#.4g}; keep probability {keep_probability:.2g} with "
                f"{complete} trials complete"
            )
        return attributes


def _let_continue(audit: AuditState) -> AuditDecision:
    """Return the decision that an audited trial would have trained to its next rung."""
    return AuditDecision(audit, audit.model_copy(update={"rungs": audit.rungs + 1}))
