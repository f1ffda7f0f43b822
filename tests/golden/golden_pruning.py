"""Decisions of the pruner on the curves in ``inputs/curves.csv``, in four orders of the trials.

The curves are made up: those of deep networks start slowly and cross others, and one diverges. A
simulated search follows them, with several trials at a time that are equally fast, and asks the
scheduler of a stored study as a worker does.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from golden import FOLDER, Golden
from helpers import study_attributes
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from search.pruning.audited_trials import draw_audited
from search.pruning.policy import Decisions
from search.pruning.scheduler import PauseResumeScheduler, StudyProgress, compute_rungs
from studies.config import StudyConfig
from studies.storage.edits import create_study
from studies.storage.leases import PendingWrite
from studies.storage.open import open_storage
from studies.storage.trials import StoredStudy, StoredTrial

CONCURRENT = (1, 4, 8, 16)
"""Number of trials that train at a time, by order."""

STEPS, LOG_EVERY, KEEP = 1000, 40, 0.1

WORKER = "worker"
"""Token of all claims."""


class RecordedCurves:
    """Parameters, final values and curves of some trials; NaN from where one diverges."""

    def __init__(self) -> None:
        table = pd.read_csv(FOLDER / "inputs" / "curves.csv")
        losses = table.filter(regex="loss_").rename(columns=lambda name: int(name[5:]))
        names = list(table.columns[: list(table).index("value")])
        self.params = table[names].to_dict("records")
        self.values = table["value"].tolist()
        self.curves = losses.to_dict("records")
        self.choices = {name: table[name].unique().tolist() for name in names}
        self.distributions = {name: CategoricalDistribution(v) for name, v in self.choices.items()}

    def measure(self, ends: Mapping[int, int]) -> dict[str, float]:
        """Return the share of all steps that were trained, and of the best trials at the end."""
        best = np.argsort(self.values)[: round(KEEP * len(self.values))].tolist()
        recall = sum(ends[row] == STEPS for row in best) / len(best)
        return {"cost": sum(ends.values()) / (STEPS * len(self.values)), "recall": recall}


class StoredSearch:
    """A search in a new study whose trials follow recorded curves; a trial is named by its row."""

    def __init__(self, recorded: RecordedCurves, order: Sequence[int], storage: Any) -> None:
        config = _create_study(recorded, order, storage)
        self.recorded, self.storage = recorded, storage
        self.study_id = storage.get_study_id_from_name("replay")
        self.scheduler = PauseResumeScheduler(storage, self.study_id, config)
        self.stops = [*(rung.step for rung in compute_rungs(STEPS, LOG_EVERY)), STEPS]
        trials = self.scheduler.read().trials
        self.rows = {each.trial_id: row for each, row in zip(trials, order, strict=True)}
        self.audited = [self.rows[each.trial_id] for each in trials if each.audit is not None]
        # In brackets, where an audited trial, which trains on, would have gone on or been pruned.
        self.events: dict[int, list[str]] = {row: [] for row in sorted(order)}
        self.ends = dict.fromkeys(sorted(order), 0)
        self.predictions: dict[int, list[float]] = {}
        self.looks: dict[str, Any] = {}

    def run(self, concurrent: int) -> None:
        """Train the trials, some at a time, until all have ended."""
        running: list[tuple[int, int, int]] = []
        now = started = 0
        while True:
            chosen = self._claim() if len(running) < concurrent else None
            if chosen is None and not running:
                return
            if chosen is None:
                now, _, trial = heapq.heappop(running)
                chosen = trial if self._reach_stop(trial) else None
            if chosen is not None:
                started += 1
                end = self.ends[self.rows[chosen]]
                heapq.heappush(running, (now + self._find_stop(end) - end, started, chosen))

    def _find_stop(self, step: int) -> int:
        return next(stop for stop in self.stops if stop > step)

    def _claim(self) -> int | None:
        """Claim a trial that waits, or else resume one if the scheduler selects it."""
        trial = self.storage.claim(self.study_id, WORKER)
        while trial is None:
            progress = self.scheduler.read()
            decisions = self.scheduler.select(progress, 1.0)
            self._store(progress, decisions)
            if decisions.resumed:
                trial = self.storage.claim(self.study_id, WORKER, paused_ids=decisions.resumed)
                self._note(trial, "resumes")
            elif not (decisions.audited or decisions.looks):
                return None
        return int(trial)

    def _reach_stop(self, trial: int) -> bool:
        """Train a trial to its next rung or its end; return whether it trains on."""
        row = self.rows[trial]
        before, end = self.ends[row], self._find_stop(self.ends[row])
        passed = {k: v for k, v in self.recorded.curves[row].items() if before < k <= end}
        known = {step: loss for step, loss in passed.items() if not math.isnan(loss)}
        self.ends[row] = max(known, default=before)
        self.storage.flush([PendingWrite(trial, WORKER, known)])
        if len(known) < len(passed):
            return self._finish(trial, TrialState.FAIL, None, {"failure": "diverged"})
        if end == STEPS:
            return self._finish(trial, TrialState.COMPLETE, self.recorded.values[row], {})
        progress = self.scheduler.read()
        decisions = self.scheduler.decide(progress, [trial])
        self._store(progress, decisions)
        stop = decisions.stops.get(trial)
        if stop is None:
            self._note(trial, "continues")
            return True
        if stop.is_final:
            self._note_prediction(trial, stop.attributes)
            return self._finish(trial, TrialState.PRUNED, None, stop.attributes)
        self._note(trial, "pauses")
        self.storage.pause(trial, WORKER, stop.attributes)
        return False

    def _finish(self, trial, state, value, attributes) -> bool:
        self._note(trial, state.name)
        self.storage.finish(trial, WORKER, state, value, {"seconds": 1.0, **attributes})
        return False

    def _store(self, progress: StudyProgress, decisions: Decisions) -> None:
        self._note_decisions(decisions)
        self.scheduler.store(progress, decisions)
        for trial, stop in decisions.pruned.items():
            self._note(trial, TrialState.PRUNED.name)
            self._note_prediction(trial, stop.attributes)

    def _note_decisions(self, decisions: Decisions) -> None:
        """Note decisions about audited trials, and looks at them."""
        self.looks |= {name: look.model_dump() for name, look in decisions.looks.items()}
        for trial, decision in decisions.audited.items():
            step = self.stops[decision.before.rungs - 1]
            event = "would be pruned" if decision.after.pruned else "would continue"
            self.events[self.rows[trial]].append(f"({step} {event})")
            if decision.after.pruned:
                self._note_prediction(trial, decision.attributes)

    def _note(self, trial: int, event: str) -> None:
        row = self.rows[trial]
        self.events[row].append(f"{self.ends[row]} {event}")

    def _note_prediction(self, trial: int, attributes: Mapping[str, Any]) -> None:
        names = ("keep_probability", "predicted_value", "predicted_scale")
        self.predictions[self.rows[trial]] = [attributes[name] for name in names]


def _create_study(recorded: RecordedCurves, order: Sequence[int], storage: Any) -> Any:
    """Store a study of the trials, which start in this order; return its config."""
    fixed = {name: [False] for name in ("input_gate", "output_gate", "state_gate")}
    raw = {
        "space": recorded.choices | fixed | {"state_size": [64]},
        "training": {"steps": STEPS, "log_every": LOG_EVERY},
        "pruning": {"enabled": True, "keep": KEEP},
    }
    config = StudyConfig.model_validate(raw)
    attributes = study_attributes(config)
    planned = draw_audited([StoredTrial(recorded.params[row]) for row in order], config, ())
    create_study(
        storage, StoredStudy("replay", "loss", attributes, recorded.distributions, planned)
    )
    return config


def replay_search(
    recorded: RecordedCurves, order: Sequence[int], concurrent: int
) -> dict[str, Any]:
    """Replay a search that pauses, resumes and prunes trials."""
    with (
        TemporaryDirectory() as folder,
        closing(open_storage(f"sqlite:///{folder}/studies.db")) as storage,
    ):
        search = StoredSearch(recorded, order, storage)
        search.run(concurrent)
    return {
        **recorded.measure(search.ends),
        "audited": search.audited,
        "looks": search.looks,
        "trials": {str(row): ", ".join(events) for row, events in search.events.items()},
        "predictions": {str(row): found for row, found in sorted(search.predictions.items())},
    }


def _replay(number: int) -> dict[str, Any]:
    recorded = RecordedCurves()
    order = np.random.default_rng(number).permutation(len(recorded.values)).tolist()
    return {"pause and resume": replay_search(recorded, order, CONCURRENT[number])}


GOLDEN = [
    Golden(f"pruning-{number}", partial(_replay, number), 1e-6, 1e-9, is_extended=number in (0, 2))
    for number in range(len(CONCURRENT))
]
