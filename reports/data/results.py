"""A study in its storage → rows and curves, in pandas' terms."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import pandas as pd
from optuna.trial import TrialState

from reports.data.trial_table import (
    ARCHITECTURE_PARAMS,
    PAUSED,
    build_trial_table,
    read_source_trials,
)
from reports.errors import ReportError
from reports.formatting import format_param, format_value
from reports.output import study_identity
from reports.stats.metric import Metric, select_metric
from studies.attributes import EARLIER_CODE, CorpusRecord, TokenizerRecord
from studies.config import StudyConfig
from studies.loader import read_study_record
from studies.space import REPLICATE
from studies.storage.counts import TrialCounts
from studies.storage.open import load_study
from studies.storage.queries import read_curves, read_eval_windows, read_trials
from studies.storage.storage import LeasedRDBStorage


@dataclass(frozen=True)
class Results:
    """All that a report is made from.

    Attributes:
        name: of the study.
        config: that it was made with.
        corpus: that it was trained on.
        commands: that made it and extended it; none where that is not known.
        table: a row a point, indexed by trial number, the best first: ``architecture`` (its
            label), ``label`` (with the replicate's number), ``state``, ``value``, the parameters
            (the gradient window always among them), and what the trial recorded.
        curves: a row a log point: ``number``, ``step``, ``loss`` (nats per token).
        sources: of a derived study, a row a complete trial of its source, by number: ``value``, by
            this study's objective, and the parameters.
        tokenizer: of what the networks read.
        windows: bits per byte on each evaluation window, by trial number.
        identity: of the study, by :func:`reports.output.study_identity`.
    """

    name: str
    config: StudyConfig
    corpus: CorpusRecord
    commands: list[str]
    table: pd.DataFrame
    curves: pd.DataFrame
    sources: pd.DataFrame
    tokenizer: TokenizerRecord = field(default_factory=TokenizerRecord)
    windows: dict[int, list[float]] = field(default_factory=dict)
    identity: str = ""

    @property
    def parameters(self) -> list[str]:
        """The parameters of architectures that take more than one value among the points."""
        there = [name for name in ARCHITECTURE_PARAMS if name in self.table]
        return [name for name in there if self.table[name].nunique() > 1]

    @property
    def is_gated(self) -> bool:
        """Whether the networks are of our own cell, which has switches."""
        return "cell" not in self.table

    @property
    def metric(self) -> Metric:
        """By what its architectures are ranked."""
        return select_metric(self.complete, self.config)

    @property
    def training_code(self) -> list[str]:
        """The fingerprints of all code that trained its trials."""
        recorded = pd.concat([self.table["code"], self.table[EARLIER_CODE]]).dropna()
        return sorted({code for codes in recorded for code in codes.split(", ")})

    @property
    def axes(self) -> list[str]:
        """What tells one point from another: those parameters, and the replicate's number."""
        return self.parameters + ([REPLICATE] if REPLICATE in self.table else [])

    @property
    def has_replicates(self) -> bool:
        """Whether architectures are run several times."""
        refinement = self.config.refinement
        return refinement is not None and refinement.replicates > 1

    @property
    def complete(self) -> pd.DataFrame:
        """The rows with a value."""
        return self.table[self.table["state"] == TrialState.COMPLETE.name]

    @property
    def below(self) -> pd.DataFrame:
        """The rows with a value below the definition's threshold; all if it has none."""
        threshold = self.config.report_threshold
        rows = self.complete
        return rows if threshold is None else rows[rows["value"] < threshold]

    @property
    def counts(self) -> TrialCounts:
        """How many points are in which state, of those in the table."""
        counts = self.table["state"].value_counts()
        states = ("complete", "pruned", "diverged", "running", "waiting")
        by_state = {state: int(counts.get(state.upper(), 0)) for state in states}
        paused = int(counts.get(PAUSED, 0))
        by_state["waiting"] += paused
        failed = int(counts.get(TrialState.FAIL.name, 0))
        return TrialCounts(**by_state, failed=failed, paused=paused)


def read_results(
    storage: LeasedRDBStorage,
    name: str,
    with_curves: Collection[int] | None = None,
    with_windows: bool = True,
) -> Results:
    """Read a study that has something to report.

    Args:
        storage: that holds it.
        name: of the study.
        with_curves: the numbers of the trials whose curves are read; all by default.
        with_windows: whether what was measured on each lane of held-out text is read.

    Raises:
        StudyNotFoundError: if it is missing.
        StudyFormatError: if another program or version stored it.
        ReportError: if none of its trials is complete.
    """
    study = load_study(storage, name)
    record = read_study_record(study)
    config = record.config
    results = Results(
        name=name,
        config=config,
        corpus=record.corpus,
        commands=record.commands,
        table=build_trial_table(read_trials(storage, study._study_id), config),
        curves=pd.DataFrame(
            read_curves(storage, study._study_id, with_curves), columns=["number", "step", "loss"]
        ),
        sources=read_source_trials(storage, config),
        tokenizer=record.tokenizer,
        identity=study_identity(storage.engine.url, name, record.artifact_folder),
    )
    counts = results.counts
    if not counts.complete:
        mend = "run the search first"
        if counts.finished == counts.planned:
            mend = "all have ended without a loss, as --status tells; make another study"
        raise ReportError(
            f"study {name!r} has no complete trial (of {counts.planned} points, "
            f"{counts.running} are running); a report needs one or more; {mend}"
        )
    if not with_windows:
        return results
    return replace(
        results, windows=read_eval_windows(storage, study._study_id, results.metric.split)
    )


def full_factorial_blocks(table: pd.DataFrame, parameters: list[str]) -> dict[str, pd.DataFrame]:
    """Find the largest blocks of a grid with exclusions that lack no combination of values.

    Where combinations are left out, a parameter's effect is mixed with that of those which it
    excludes; within a full block it is not.

    Args:
        table: rows with the parameters' values.
        parameters: those that vary.

    Returns:
        A block's name, such as ``state size is 256``, to its rows; nothing where the grid is full
        already, or no single parameter parts it into full blocks.
    """
    if _is_full(table, parameters):
        return {}
    found: dict[str, pd.DataFrame] = {}
    for parameter in parameters:
        name = format_param(parameter)
        blocks = {
            f"{name} is {format_value(value)}": block for value, block in table.groupby(parameter)
        }
        if len(blocks) > 1 and all(_is_full(block, parameters) for block in blocks.values()):
            found |= blocks
    rows = {name: set(block.index) for name, block in found.items()}
    return {
        name: block
        for name, block in found.items()
        if not any(rows[name] < rows[other] for other in found)
    }


def _is_full(table: pd.DataFrame, parameters: list[str]) -> bool:
    combinations = 1
    for parameter in parameters:
        combinations *= table[parameter].nunique()
    return not parameters or len(table.drop_duplicates(parameters)) == combinations
