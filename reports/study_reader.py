"""Read the results of a stored study, and select what is drawn."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pandas as pd
from optuna import Study

from reports.results import POINT, Results
from reports.trial_table import build_table, read_source_trials
from rnn.config import count_updates
from rnn.errors import UserError
from studies.attributes import CURVE, EVAL_WINDOWS, StudyRecord
from studies.best import split_by_task
from studies.config import StudyConfig, training_settings
from studies.storage.open import load_study, read_record
from studies.storage.reads import (
    list_curves,
    read_attribute_of_all,
    read_audit_looks,
    read_curve_ends,
    read_curves,
    read_trials,
)
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredTrial

MAX_DRAWN = 1000
"""Trials that a figure draws. Of more, it draws the best 500, and 500 spread over the others."""

_MAX_NAMED = 5000
"""Number of trials from which all curves are read: a statement names no more."""

_T = TypeVar("_T")


def read_studies(storage: LeasedRDBStorage, names: Sequence[str], **options: bool) -> list[Results]:
    """Read the results of several studies, with options of :func:`read_results`."""
    return [read_results(storage, name, **options) for name in names]


def read_results(
    storage: LeasedRDBStorage,
    name: str,
    with_curves: bool = True,
    with_windows: bool = True,
    require_complete: bool = True,
    drawn_only: bool = False,
) -> Results:
    """Read the results of a study.

    Args:
        storage: storage of the study.
        name: name of the study.
        with_curves: whether curves are read, their lengths, and of a pruned study the losses at
            the common step.
        with_windows: whether the losses on each evaluation window are read.
        require_complete: whether to reject a study in which no trial is complete yet.
        drawn_only: whether only the curves that a page draws are read, and the predictions of the
            best networks.

    Raises:
        StudyNotFoundError: if the study is missing.
        StudyFormatError: if another program or version stored it.
        UserError: if no trial is complete, and one has to be.
    """
    study = load_study(storage, name)
    study_id = study._study_id
    record = read_record(study)
    trials = read_trials(storage, study_id)
    if not trials:
        raise UserError(f"study {name!r} has no grid trial: expected one or more")
    results = _build(storage, study, record, trials)
    counts = results.counts
    if require_complete and not counts.complete:
        hint = f"rnn-search {'status' if counts.finished == counts.planned else 'continue'}"
        raise UserError(
            f"study {name!r} has no complete trial ({counts.describe()}): type {hint} {name}"
        )
    if with_curves:
        results = _add_curves(results, storage, study_id, drawn_only)
    if not with_windows:
        return results
    windows = read_attribute_of_all(storage, study_id, EVAL_WINDOWS[results.metric.split])
    return replace(results, windows=windows)


def _build(
    storage: LeasedRDBStorage,
    study: Study,
    record: StudyRecord,
    trials: Sequence[StoredTrial],
) -> Results:
    name = study.study_name
    config = record.config
    is_pruning = config.pruning.enabled
    table = build_table(trials, config)
    if "solved_at" in table:
        table["solved_at"] = _find_solved_at(config, storage, study._study_id, trials)
    return Results(
        name=name,
        config=config,
        commands=record.commands,
        table=table,
        curves=_to_frame([]),
        curve_ends=_index_ends([]),
        sources=read_source_trials(storage, config),
        floors=record.floors,
        task_floors=record.task_floors,
        hypotheses=record.hypotheses,
        audit_looks=read_audit_looks(storage, study._study_id) if is_pruning else {},
        audit_nuisance=record.audit_nuisance,
        earlier_replicates=record.earlier_replicates,
    )


def _find_solved_at(
    config: StudyConfig, storage: LeasedRDBStorage, study_id: int, trials: Sequence[StoredTrial]
) -> "pd.Series[float]":
    """Return the updates of trials at the first point of their held-out curves that solves."""
    found = {}
    for name, of_task in split_by_task(trials, config).items():
        task_config = config.at_task(name)
        task = task_config.solvable_task
        if task is None or task.steps is None:
            continue
        curves = {
            measure: read_attribute_of_all(storage, study_id, f"{CURVE}validation_{measure}")
            for measure in task.solved
        }
        for trial in of_task:
            points: dict[int, dict[str, float]] = {}
            for measure, curve in curves.items():
                for step, value in curve.get(trial.number, []):
                    points.setdefault(step, {})[measure] = math.nan if value is None else value
            steps = [step for step, measured in points.items() if task.has_solved(measured)]
            if steps:
                _, update_every = training_settings(trial.params, task_config).gradient_window
                found[trial.number] = count_updates(min(steps), task.steps, update_every)
    return pd.Series(found, dtype=float)


def _add_curves(
    results: Results, storage: LeasedRDBStorage, study_id: int, drawn_only: bool
) -> Results:
    results = replace(results, curve_ends=_index_ends(read_curve_ends(storage, study_id)))
    config = results.config
    numbers = None
    if drawn_only and config.has_networks:  # others may have no curve that is counted here
        parts = results.split_tasks()
        drawn = {number for part in parts for number in select_drawn_curves(part)}
        numbers = drawn if len(drawn) <= _MAX_NAMED else None
    return replace(
        results,
        curves=_to_frame(read_curves(storage, study_id, numbers)),
        metrics=_read_metrics(config, storage, study_id, numbers),
    )


def _read_metrics(
    config: StudyConfig, storage: LeasedRDBStorage, study_id: int, numbers: Collection[int] | None
) -> pd.DataFrame:
    metrics = [name for task in config.list_tasks().values() for name in task.metrics]
    names = ["validation_loss", *(f"validation_{name}" for name in metrics)]
    if not config.has_networks:
        names = list_curves(storage, study_id)
    columns = []
    for name in dict.fromkeys(names):
        curves = read_attribute_of_all(storage, study_id, CURVE + name, numbers)
        points = [(number, *point) for number, curve in curves.items() for point in curve]
        columns.append(pd.DataFrame(points, columns=[*POINT, name_column(name)]).set_index(POINT))
    if not columns:
        return pd.DataFrame(columns=POINT)
    joined = pd.concat(columns, axis=1).dropna(axis=1, how="all")
    return joined.astype(float).reset_index()


def name_column(name: str) -> str:
    """Return the column of a curve, whatever its name is."""
    return f"{name}_" if name in POINT else name


def _index_ends(ends: Sequence[tuple[int, int, int]]) -> pd.DataFrame:
    return pd.DataFrame(ends, columns=["number", "points", "last_step"]).set_index("number")


def _to_frame(points: Sequence[tuple[int, int, float]]) -> pd.DataFrame:
    return pd.DataFrame(points, columns=[*POINT, "loss"])


# ------------------------------------------------------------------ trials that a page draws


def select_evenly(items: Sequence[_T], limit: int | None = None) -> list[_T]:
    """Select items that are spread evenly, the first and the last among them."""
    limit = MAX_DRAWN if limit is None else limit
    if len(items) <= limit:
        return list(items)
    places = np.linspace(0, len(items) - 1, limit).round().astype(int)
    return [items[i] for i in places.tolist()]


def list_with_curve(results: Results) -> set[int]:
    """List the numbers of the trials that have a curve."""
    return {*results.curve_ends.index, *results.metrics["number"]}


def select_drawn_curves(results: Results) -> list[int]:
    """Select the numbers of the trials whose curves are drawn, the best first.

    Of too many these are the best half of the limit, and others that are spread evenly.
    """
    with_curve = list_with_curve(results)
    ranked = [int(number) for number in results.table.index if number in with_curve]
    if len(ranked) <= MAX_DRAWN:
        return ranked
    half = MAX_DRAWN // 2
    return [*ranked[:half], *select_evenly(ranked[half:], MAX_DRAWN - half)]


def describe_selection(drawn: int, total: int) -> str:
    """Say which trials :func:`select_drawn_curves` has selected; "" if all."""
    if drawn >= total:
        return ""
    best = drawn // 2
    return (
        f" {drawn:,} of {total:,} trials are drawn: the best {best:,}, and {drawn - best:,} spread "
        "evenly over the others."
    )
