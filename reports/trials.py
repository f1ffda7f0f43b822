"""A study in its storage → rows and curves, in pandas' terms."""

from dataclasses import dataclass
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from reports.errors import ReportError
from rnn.architecture import Architecture
from studies.accounting import Accounting, accounting_of
from studies.definition import PARAMETERS, REPLICATE, Definition
from studies.opening import load_study
from studies.records import CORPUS, DEFINITION, SOURCE_TRIALS, CorpusRecord, TrialRecord, is_point
from studies.storage import Storage

_NUMERIC = (
    "value",
    "validation_bits_per_character",
    "parameter_count",
    "steps_per_second",
    "seconds",
)


@dataclass(frozen=True)
class Results:
    """All that a report is made from.

    Attributes:
        study: as Optuna's own figures want it.
        definition: that it was made with.
        corpus: that it was trained on.
        accounting: of its points.
        table: a row a finished point, indexed by trial number, the best first: ``architecture``
            (its label), ``label`` (with the replicate's number), ``state``,
            ``value``, the parameters, and what the trial recorded.
        curves: a row a log point: ``number``, ``step``, ``loss`` (nats a symbol).
    """

    study: optuna.Study
    definition: Definition
    corpus: CorpusRecord
    accounting: Accounting
    table: pd.DataFrame
    curves: pd.DataFrame

    @property
    def name(self) -> str:
        """The study's name."""
        return self.study.study_name

    @property
    def parameters(self) -> list[str]:
        """The parameters of architectures that take more than one value among the points."""
        return [name for name in PARAMETERS if self.table[name].nunique() > 1]

    @property
    def has_replicates(self) -> bool:
        """Whether architectures are run several times."""
        refinement = self.definition.refinement
        return refinement is not None and refinement.replicates > 1

    @property
    def replicates(self) -> pd.DataFrame:
        """A row an architecture, the best first: its ``runs`` and their ``mean``, ``std``, …."""
        by_label = self.complete.groupby("architecture")["value"]
        rows = by_label.agg(["count", "mean", "std", "min", "max"])
        return rows.rename(columns={"count": "runs"}).sort_values("mean")

    @property
    def complete(self) -> pd.DataFrame:
        """The rows with a value."""
        return self.table[self.table["state"] == TrialState.COMPLETE.name]


def read_results(storage: Storage, name: str) -> Results:
    """Read a study that has something to report.

    Raises:
        StudyNotFound: if it is not in the storage.
        ReportError: if it was not made by this program, or nothing of it is finished.
    """
    study = load_study(storage, name)
    attributes = study.user_attrs
    if DEFINITION not in attributes or CORPUS not in attributes:
        raise ReportError(
            f"study {name!r} was not made by run_search.py or refine.py; allowed: studies that "
            "were; check the name"
        )
    definition = Definition.model_validate(attributes[DEFINITION])
    accounting = accounting_of(storage, study._study_id)
    if not accounting.complete:
        raise ReportError(
            f"study {name!r} has no complete trial (of {accounting.planned} points, "
            f"{accounting.running} are running); a report needs one or more; run the search first"
        )
    points = [trial for trial in study.get_trials(deepcopy=False) if is_point(trial)]
    finished = [trial for trial in points if trial.state.is_finished()]
    table = pd.DataFrame([_row(trial, definition) for trial in finished]).set_index("number")
    for record in _NUMERIC:  # which plain Optuna, driving the study, does not keep
        table[record] = pd.to_numeric(table[record])
    return Results(
        study=study,
        definition=definition,
        corpus=CorpusRecord.model_validate(attributes[CORPUS]),
        accounting=accounting,
        table=table.sort_values(["value", "number"], na_position="last"),
        curves=_curves(points),
    )


def full_factorial_blocks(table: pd.DataFrame, parameters: list[str]) -> dict[str, pd.DataFrame]:
    """Find the largest blocks of a grid with exclusions that lack no combination of values.

    Where combinations are left out, a parameter's effect is mixed with that of those which it
    excludes; within a full block it is not.

    Args:
        table: rows with the parameters' values.
        parameters: those that vary.

    Returns:
        A block's name, such as ``state_size = 256``, to its rows; nothing where the grid is full
        already, or no single parameter parts it into full blocks.
    """
    if _is_full(table, parameters):
        return {}
    found: dict[str, pd.DataFrame] = {}
    for parameter in parameters:
        blocks = {f"{parameter} = {value}": block for value, block in table.groupby(parameter)}
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


def _row(trial: FrozenTrial, definition: Definition) -> dict[str, Any]:
    architecture = Architecture.of(trial.params, definition.gate_inputs).label
    replicate = f" #{trial.params[REPLICATE]}" if REPLICATE in trial.params else ""
    recorded = {name: trial.user_attrs.get(name) for name in TrialRecord.model_fields}
    return recorded | {
        "number": trial.number,
        "architecture": architecture,
        "label": architecture + replicate,
        "state": trial.state.name,
        "value": trial.value if trial.state is TrialState.COMPLETE else None,
        **trial.params,
        SOURCE_TRIALS: trial.user_attrs.get(SOURCE_TRIALS),
        "started": trial.datetime_start,
        "completed": trial.datetime_complete,
    }


def _curves(trials: list[FrozenTrial]) -> pd.DataFrame:
    rows = [
        (trial.number, step, loss)
        for trial in trials
        for step, loss in sorted(trial.intermediate_values.items())
    ]
    return pd.DataFrame(rows, columns=["number", "step", "loss"])
