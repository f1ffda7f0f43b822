"""Studies of thousands of trials, as a search leaves them, written in bulk.

The grid is that of stage one with more layers, widths and learning rates. Curves and values follow
the switches, their pairs and noise; trials have the attributes that a worker records.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa
from optuna.trial import TrialState

from rnn.network import count_parameters
from search.create_or_join import StudyHandle, create_or_join
from search.pruning.regression import DesignMatrix, Floats, Mask
from search.pruning.scheduler import compute_rungs
from search.run_options import RunOptions
from studies.attributes import (
    CHECKPOINTED,
    FAILURE,
    LEASE,
    PAUSED,
    RETRY_COUNTS,
    AuditState,
    Failure,
    TrialRecord,
)
from studies.config import StudyConfig
from studies.space import distributions
from studies.storage.leases import Lease
from studies.storage.reads import Rung, read_trials
from studies.storage.tables import TRIAL_TABLES, TRIALS, insert_trials, select_trial_ids
from studies.storage.trials import StoredTrial
from studies.trial_params import to_trial_config

NAME = "large"
"""Name of the study."""

LOG_POINTS = 200

LOG_EVERY = 50

WORKERS = 8

BEGIN = datetime(2026, 11, 1)
"""When the search began."""

_SWITCHES = 48
"""Combinations of the switches besides the residual, which the smallest width always has."""


@dataclass
class TrialOutcome:
    """How far a trial has come, and the attributes that only some trials have."""

    state: TrialState = TrialState.WAITING
    log_points: int = 0
    rung: int | None = None  # step at which the pruner has stopped it
    is_paused: bool = False
    audit: AuditState | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


def create_large_study(
    url: str,
    trials: int = 10_080,
    log_points: int = LOG_POINTS,
    *,
    pruning: bool = False,
    progress: float = 0.75,
    corpus: str | None = None,
    overrides: Sequence[str] = (),
    name: str = NAME,
) -> StudyHandle:
    """Create a study of at least so many trials in the middle of its search.

    At a progress of 1 every trial is finished. Without pruning it is the share of finished trials;
    some of the others run. With pruning, all trials have reached the first rung at 0.5, and are
    promoted from then on. The caller closes the storage.
    """
    settings = (*grid_overrides(trials, log_points), *overrides)
    options = RunOptions(
        study="stage-one",
        storage=url,
        name=name,
        corpus=corpus,
        overrides=settings,
        prune=pruning,
        yes=True,
    )
    handle = create_or_join(options)
    random = np.random.default_rng(0)
    rows = read_trials(handle.storage, handle.study_id)
    curves, values = simulate_losses([row.params for row in rows], log_points, random)
    rungs = compute_rungs(log_points * LOG_EVERY, LOG_EVERY)
    if pruning:
        is_audited = np.array([row.is_audited for row in rows])
        outcomes = simulate_pruned_search(values, is_audited, rungs, log_points, progress, random)
    else:
        outcomes = simulate_search(len(rows), log_points, progress, random)
    assert handle.config.grid is not None
    choices = distributions(handle.config.grid.search_space)
    old = select_trial_ids(handle.study_id)
    simulated = _list_trials(handle.config, rows, outcomes, curves, values)
    with handle.storage.transaction() as connection:
        for table in (*TRIAL_TABLES, TRIALS):
            connection.execute(sa.delete(table).where(table.c.trial_id.in_(old)))
        insert_trials(connection, handle.study_id, choices, simulated)
    return handle


def grid_overrides(trials: int, log_points: int = LOG_POINTS) -> list[str]:
    """Return settings over those of stage one for a grid of at least so many trials."""
    grids = itertools.product(range(1, 7), range(1, 9), range(1, 9))
    shapes = [
        (_SWITCHES * layers * (2 * widths - 1) * rates, layers, widths, rates)
        for layers, widths, rates in grids
    ]
    # The nearest to stage one's three numbers of layers, then few widths and rates.
    _, layers, widths, rates = min(
        (shape for shape in shapes if shape[0] >= trials),
        key=lambda shape: (shape[0], abs(shape[1] - 3), shape[2] + shape[3]),
    )
    return [
        f"space.layers={list(range(1, layers + 1))}",
        f"space.state_size={[32, *(256 * width for width in range(1, widths))]}",
        f"space.training.learning_rate={[0.001 * 2**rate for rate in range(rates)]}",
        f"training.steps={log_points * LOG_EVERY}",
        f"training.log_every={LOG_EVERY}",
    ]


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
                outcome.state, outcome.attributes = TrialState.FAIL, {FAILURE: Failure.DIVERGED}
                outcome.log_points = int(random.integers(1, log_points + 1))
        elif number < finished + WORKERS:
            outcome.state, outcome.log_points = TrialState.RUNNING, int(random.integers(log_points))
        if number < finished + 2 * WORKERS and number % 20 == 19:
            outcome.attributes[RETRY_COUNTS] = {Failure.INTERRUPTED: 1}
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
            outcome.audit = AuditState(rungs=granted, pruned=is_pruned)
        if is_complete:
            continue
        if progress >= 1 or ranks[number] > 1 - 0.1 * promoted:
            outcome.state = TrialState.PRUNED
        elif number in running:
            outcome.state = TrialState.RUNNING
        else:
            outcome.is_paused = True
        outcome.attributes = {
            "keep_probability": float(1 - ranks[number]) / 10,
            "predicted_value": float(values[number]),
            "predicted_scale": 0.02,
        }
        if outcome.state is TrialState.PRUNED:
            reason = f"at step {at * LOG_EVERY}: predicted {values[number]:.3f}"
            outcome.attributes["reason"] = reason
    return outcomes


def _list_trials(
    config: StudyConfig,
    rows: Sequence[StoredTrial],
    outcomes: Sequence[TrialOutcome],
    curves: Floats,
    values: Floats,
) -> Iterator[StoredTrial]:
    """Yield the trials of a study, in place of the waiting ones that it was created with."""
    steps = (LOG_EVERY * np.arange(1, curves.shape[1] + 1)).tolist()
    for number, (row, outcome) in enumerate(zip(rows, outcomes, strict=True)):
        loss, start = float(values[number]), BEGIN + timedelta(minutes=number // WORKERS)
        is_ended = outcome.state.is_finished() and outcome.log_points > 0
        is_queued = outcome.state is TrialState.WAITING and not outcome.is_paused
        passed = curves[number, : outcome.log_points].tolist()
        yield StoredTrial(
            params=row.params,
            attributes=_attributes(config, row.params, outcome, number, loss),
            audit=outcome.audit or row.audit,
            state=outcome.state,
            value=loss if outcome.state is TrialState.COMPLETE else None,
            started=start if outcome.log_points and not is_queued else None,
            completed=start + timedelta(minutes=1) if is_ended else None,
            system_attributes=_system_attributes(outcome, number, loss),
            curve=dict(zip(steps, passed, strict=False)),
        )


def _attributes(
    config: StudyConfig, params: Mapping[str, Any], outcome: TrialOutcome, number: int, loss: float
) -> dict[str, Any]:
    is_ended = outcome.state.is_finished() or outcome.is_paused
    if not is_ended and outcome.rung is None:
        return outcome.attributes
    results: dict[str, Any] = {}
    if outcome.state is TrialState.COMPLETE:
        results = {
            "training_loss": loss + 0.01,
            "training_mean_loss": loss + 0.02,
            "validation_loss": loss,
            "validation_bits_per_byte": loss / math.log(2),
            "validation_stderr": 0.02,
        }
    worker = _worker_of(number)
    record = TrialRecord(
        parameter_count=count_parameters(to_trial_config(params, config).architecture),
        steps_per_second=150.0 + number % 17,
        seconds=outcome.log_points * 0.3,
        host=worker.partition("/")[0],
        worker=worker,
        device="cpu",
        threads=1,
        precision=config.precision,
        seed=config.seed,
        replicate=0,
        python="3.11.7",
        torch="2.13.0",
        code="0123456789ab",
        rung=outcome.rung,
        **results,
    )
    return record.attributes() | outcome.attributes


def _worker_of(number: int) -> str:
    return f"host-{number % WORKERS // 4}/{1000 + number % WORKERS}"


def _system_attributes(outcome: TrialOutcome, number: int, loss: float) -> dict[str, Any]:
    found: dict[str, Any] = {PAUSED: BEGIN.isoformat()} if outcome.is_paused else {}
    if outcome.log_points:
        found[CHECKPOINTED] = True
    is_pruned = outcome.state is TrialState.PRUNED
    if not is_pruned and (outcome.state.is_finished() or outcome.state is TrialState.RUNNING):
        found[LEASE] = asdict(Lease(f"{_worker_of(number)}/{number:032x}", 120.0, 3))
    if outcome.state is TrialState.COMPLETE:
        bits = loss / math.log(2)
        windows = [round(bits + 0.3 * math.sin(number + window), 5) for window in range(64)]
        found["validation_windows"] = windows
    return found
