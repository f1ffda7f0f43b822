"""Reads the results of a stored study: once, or again after it has changed."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import pandas as pd

from reports.data.drawn_trials import select_drawn_curves, select_predictions
from reports.data.results import Results
from reports.data.trial_table import TableBuilder, read_source_trials
from reports.errors import ReportError
from reports.output import study_identity
from studies.attributes import StudyRecord
from studies.loader import read_record
from studies.storage.open import load_study
from studies.storage.reads import (
    TrialReader,
    read_audit_looks,
    read_curve_ends,
    read_curves,
    read_eval_windows,
    read_predictions,
)
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredTrial

_END_COLUMNS = ("points", "last_step")

_MAX_NAMED = 5000
"""Number of trials from which all curves are read: a statement names no more."""


class StudyReader:
    """Reads the results of a study, of its trials only those that may have changed.

    Args:
        storage: storage of the study.
        name: name of the study.

    Raises:
        StudyNotFoundError: if the study is missing.
    """

    def __init__(self, storage: LeasedRDBStorage, name: str) -> None:
        self._storage = storage
        self._study = load_study(storage, name)
        self._folder = ""
        self._trials = TrialReader(storage, self._study._study_id)
        self._table = TableBuilder()

    def read(
        self,
        with_curves: Collection[int] | None = None,
        with_windows: bool = True,
        require_complete: bool = True,
        drawn_only: bool = False,
    ) -> Results:
        """Read the results as they are now; see :func:`read_results`."""
        storage, study_id, name = self._storage, self._study._study_id, self._study.study_name
        record = read_record(self._study)
        if record.artifact_folder != self._folder:  # deleted and created again since
            self._folder = record.artifact_folder
            self._trials, self._table = TrialReader(storage, study_id), TableBuilder()
        trials = self._trials.read()
        if not trials:
            raise ReportError(f"study {name!r} has no grid trial: expected one or more")
        results = self._build(record, trials)
        counts = results.counts
        if require_complete and not counts.complete:
            hint = f"rnn-search {'status' if counts.finished == counts.planned else 'continue'}"
            raise ReportError(
                f"study {name!r} has no complete trial ({counts.describe()}): type {hint} {name}"
            )
        if drawn_only:
            results = _add_drawn_curves(results, storage, study_id)
            parts = [part for part in results.split_tasks() if part.config.task_record]
            best = [number for part in parts for number in select_predictions(part)]
            predictions = read_predictions(storage, study_id, best) if best else {}
            results = replace(results, predictions=predictions)
        elif with_curves is None or with_curves:
            curves = _to_frame(read_curves(storage, study_id, with_curves))
            results = replace(results, curves=curves)
        if not with_windows:
            return results
        windows = read_eval_windows(storage, study_id, results.metric.split)
        return replace(results, windows=windows)

    def _build(self, record: StudyRecord, trials: Sequence[StoredTrial]) -> Results:
        """Build the results without curves and evaluation windows."""
        storage, name = self._storage, self._study.study_name
        identity = study_identity(storage.engine.url, name, record.artifact_folder)
        config, is_pruning = record.config, record.config.pruning.enabled
        return Results(
            name=name,
            config=config,
            corpus=record.corpus,
            commands=record.commands,
            table=self._table.build(trials, config),
            curves=_to_frame([]),
            sources=read_source_trials(storage, config),
            floors=record.floors,
            task_floors=record.task_floors,
            tokenizer=record.tokenizer,
            hypotheses=record.hypotheses,
            audit_looks=read_audit_looks(storage, self._study._study_id) if is_pruning else {},
            audit_nuisance=record.audit_nuisance,
            identity=identity,
            folder=record.artifact_folder,
            looks=record.looks,
        )


def read_results(
    storage: LeasedRDBStorage,
    name: str,
    with_curves: Collection[int] | None = None,
    with_windows: bool = True,
    require_complete: bool = True,
    drawn_only: bool = False,
) -> Results:
    """Read the results of a study.

    Args:
        storage: storage of the study.
        name: name of the study.
        with_curves: numbers of the trials whose curves are read; all by default.
        with_windows: whether the losses on each evaluation window are read.
        require_complete: whether to reject a study in which no trial is complete yet.
        drawn_only: whether of the curves only what a page needs is read: those that it draws, their
            lengths, and the losses at the common step of a pruned study; and the predictions of the
            best networks.

    Raises:
        StudyNotFoundError: if the study is missing.
        StudyFormatError: if another program or version stored it.
        ReportError: if no trial is complete, and one has to be.
    """
    reader = StudyReader(storage, name)
    return reader.read(with_curves, with_windows, require_complete, drawn_only)


def _add_drawn_curves(results: Results, storage: LeasedRDBStorage, study_id: int) -> Results:
    """Read the curves that a page draws, and of the others what it says about them."""
    ends = pd.DataFrame(read_curve_ends(storage, study_id), columns=["number", *_END_COLUMNS])
    results = replace(results, stored_ends=ends.set_index("number"))
    complete = results.complete
    unrecorded = complete.index[complete["training_loss"].isna()]
    with_curve = unrecorded.intersection(ends["number"].tolist())
    drawn = (number for each in results.split_tasks() for number in select_drawn_curves(each))
    wanted = {*drawn, *with_curve.tolist()}
    is_few = len(wanted) <= _MAX_NAMED and not results.varies_budget
    numbers = wanted if is_few else None
    results = replace(results, curves=_to_frame(read_curves(storage, study_id, numbers)))
    if not results.config.pruning.enabled:
        return results
    early = read_curves(storage, study_id, step=results.common_step)
    losses = {number: loss for number, _, loss in early}
    return replace(results, stored_early_losses=pd.Series(losses, dtype=float))


def _to_frame(points: Sequence[tuple[int, int, float]]) -> pd.DataFrame:
    return pd.DataFrame(points, columns=["number", "step", "loss"])
