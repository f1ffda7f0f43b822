"""How far the trials of a large study have come in the middle of its search, simulated."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from optuna.trial import TrialState

from search.pruning.design_matrix import DesignMatrix
from search.pruning.regression import Floats, Mask
from search.pruning.rungs import Rung
from studies.attributes import AUDIT, FAILURE, PAUSED, RETRY_COUNTS, AuditState, Failure

LOG_EVERY = 50

WORKERS = 8

BEGIN = datetime(2026, 11, 1)
"""When the search began."""


@dataclass
class TrialOutcome:
    """How far a trial has come.

    Attributes:
        state: its state.
        log_points: number of its log points.
        rung: step of the rung at which the pruner has stopped it; None if it has not.
        is_paused: whether it waits for the pruner to resume it.
        user: user attributes besides those that every trained trial has.
        system: system attributes besides those that a new trial has.
    """

    state: TrialState = TrialState.WAITING
    log_points: int = 0
    rung: int | None = None
    is_paused: bool = False
    user: dict[str, Any] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)


def simulate_losses(
    params: Sequence[Mapping[str, Any]], log_points: int, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """Simulate curves (N, L) and values (N,)."""
    design = DesignMatrix.from_params(params)
    columns = design.main_effects.shape[1]
    values = 2.1 + design.main_effects @ random.normal(0, 0.08, columns)
    for a, b in itertools.combinations(range(columns), 2):
        product = design.main_effects[:, a] * design.main_effects[:, b]
        values += random.normal(0, 0.03) * product
    values += random.normal(0, 0.02, len(values))
    steps = LOG_EVERY * np.arange(1, log_points + 1)
    end = log_points * LOG_EVERY
    lead = random.normal(0, 0.06, len(values))[:, None] * np.exp(-2 * steps / end)
    curves = values[:, None] + lead + 1.2 * np.exp(-7 * steps / end)
    curves += random.normal(0, 0.01, curves.shape)
    return curves, values


def simulate_search(
    count: int, log_points: int, progress: float, random: np.random.Generator
) -> list[TrialOutcome]:
    finished = round(progress * count)
    outcomes = [TrialOutcome() for _ in range(count)]
    for number, outcome in enumerate(outcomes):
        if number < finished:
            outcome.state, outcome.log_points = TrialState.COMPLETE, log_points
            if number % 50 == 49:
                outcome.state, outcome.user = TrialState.FAIL, {FAILURE: Failure.DIVERGED}
                outcome.log_points = int(random.integers(1, log_points + 1))
        elif number < finished + WORKERS:
            outcome.state, outcome.log_points = TrialState.RUNNING, int(random.integers(log_points))
        if number < finished + 2 * WORKERS and number % 20 == 19:
            outcome.user[RETRY_COUNTS] = {Failure.INTERRUPTED: 1}
            outcome.log_points = outcome.log_points or int(random.integers(log_points))
    return outcomes


def simulate_pruned_search(
    values: Floats,
    is_audited: Mask,
    rungs: Sequence[Rung],
    log_points: int,
    progress: float,
    random: np.random.Generator,
) -> list[TrialOutcome]:
    """Simulate a search in which the better trials have come further."""
    count = len(values)
    ranks = (values + random.normal(0, 0.02, count)).argsort().argsort() / count
    started = round(min(1.0, 2 * progress) * count)
    promoted = max(0.0, 2 * progress - 1)
    # Shares of the trials that have come to their end, and to each rung but the first.
    shares = 0.12 * promoted * 2.0 ** np.arange(len(rungs))
    running = set(random.choice(np.flatnonzero(ranks < 0.2), WORKERS, replace=False).tolist())
    outcomes = []
    for number in range(count):
        stop = len(rungs) - int((ranks[number] < shares).sum())
        outcome = TrialOutcome()
        outcomes.append(outcome)
        if number >= started:
            continue
        is_complete = stop == 0 or bool(is_audited[number])
        at = rungs[stop - 1].step // LOG_EVERY if stop else log_points
        outcome.log_points = log_points if is_complete else at
        outcome.state = TrialState.COMPLETE if is_complete else TrialState.WAITING
        outcome.rung = rungs[stop - 1].step if stop else None
        if is_audited[number]:
            granted = stop or len(rungs) + 1
            is_pruned = progress >= 1 and bool(stop)
            outcome.system[AUDIT] = AuditState(rungs=granted, pruned=is_pruned).model_dump()
        if is_complete:
            continue
        if progress >= 1 or ranks[number] > 1 - 0.1 * promoted:
            outcome.state = TrialState.PRUNED
        elif number in running:
            outcome.state = TrialState.RUNNING
        else:
            outcome.is_paused, outcome.system = True, {PAUSED: BEGIN.isoformat()}
        outcome.user = {
            "keep_probability": float(1 - ranks[number]) / 10,
            "predicted_value": float(values[number]),
            "predicted_scale": 0.02,
        }
        if outcome.state is TrialState.PRUNED:
            outcome.user["reason"] = f"at step {at * LOG_EVERY}: predicted {values[number]:.3f}"
    return outcomes
