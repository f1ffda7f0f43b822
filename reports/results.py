"""Results of a stored study as frames: trials, curves, evaluation windows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from reports.stats.design import ParameterTraits, has_levels, number_groups, order_values
from reports.stats.effects import Kinds
from reports.stats.run_means import average_runs
from reports.stats.shares import place_groups
from reports.trial_table import (
    LAST,
    NETWORK_RESULTS,
    absent_columns,
    list_params,
    metric_column,
)
from rnn.config import BYTES, GATED_CELL, OPTIMIZERS, TaskSpec
from studies.attributes import AuditLook, select_looks
from studies.config import StudyConfig
from studies.measure import Measure, find_measure
from studies.messages import format_param, format_value
from studies.network_facts import find_facts, find_kinds, is_misled
from studies.records import Floors
from studies.space import BPTT_STEPS, CELL, REPLICATE, TASK, param_order
from studies.stated_hypotheses import HypothesisRecord
from studies.storage.counts import TrialCounts, count_statuses
from studies.storage.trials import TrialStatus
from studies.study_settings import OPTIMIZER_PARAMS, UPDATE_EVERY, TrainingSettings, uses_setting
from studies.traits import find_traits

POINT = ["number", "step"]
"""Columns that identify a point of a curve."""

BUDGET_PARAMS = ("batch_size", "sequence_length", BPTT_STEPS, UPDATE_EVERY)
"""Parameters that may change how much data, or how many updates, a number of steps has."""


@dataclass(frozen=True)
class Results:
    """Results of a study with at least one complete trial.

    Attributes:
        floors: losses without memory in a task other than text; None if they are not stored.
        task_floors: the same of each of several tasks.
        task: name of the task, in the results of one of several; else "".
        commands: commands that created and extended it; empty if unknown.
        earlier_replicates: number of replicates before each extension by more of them.
        table: one row per trial, indexed by its number, the best first: ``architecture`` (its
            label), ``label`` (with its nuisance values and the replicate), ``state``, ``value``,
            the parameters (BPTT steps always among them; missing where the trial lacks one), and
            the attributes that the trial recorded.
        curves: one row per log point: ``number``, ``step``, ``loss`` (of text in nats per token, of
            a training loop the study's metric), of the trials whose curves were read.
        metrics: one row per point of their other curves: ``number``, ``step``, and a column for
            each curve: held-out ones, such as ``validation_loss`` and ``validation_accuracy``, or
            by the name under which a training loop has logged it.
        curve_ends: length of each curve, indexed by trial: ``points`` and ``last_step``; empty if
            no curves were read.
        sources: of a refinement, one row per complete trial of its source, indexed by number:
            ``value``, by this study's objective, and the parameters.
        windows: held-out loss on each evaluation window, or sequence, by trial number.
        audit_looks: planned looks at the audited trials of a pruned study, by name.
        audit_nuisance: nuisance parameters over which its audited architectures were drawn.
    """

    name: str
    config: StudyConfig
    commands: list[str]
    table: pd.DataFrame
    curves: pd.DataFrame
    curve_ends: pd.DataFrame
    sources: pd.DataFrame
    metrics: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=POINT))
    floors: Floors | None = None
    task_floors: dict[str, Floors] = field(default_factory=dict)
    task: str = ""
    windows: dict[int, list[float]] = field(default_factory=dict)
    hypotheses: list[HypothesisRecord] = field(default_factory=list)
    audit_looks: dict[str, AuditLook] = field(default_factory=dict)
    audit_nuisance: list[str] = field(default_factory=list)
    earlier_replicates: list[int] = field(default_factory=list)

    @cached_property
    def computed(self) -> dict[Any, Any]:
        """Statistics of these results that several parts of a page show, by what they are."""
        return {}

    @property
    def title(self) -> str:
        """Name of the study, with the task of one of several."""
        return f"{self.name}, task {self.task}" if self.task else self.name

    def split_tasks(self) -> "list[Results]":
        """Return the results of each of several tasks that has a complete trial; else these alone.

        They are those of a study of that task, with the numbers of the trials of this one.
        """
        if not self.config.task_records or TASK not in self.table:
            return [self]
        found = [self.at_task(name) for name in self.config.task_records]
        return [results for results in found if len(results.complete)]

    def at_task(self, name: str) -> "Results":
        """Return the results of one of several tasks, which may have no complete trial."""
        table = self.table[self.table[TASK] == name].drop(columns=TASK)
        config, curves, numbers = self.config.at_task(name), self.curves, table.index
        others = absent_columns(config) | {
            metric_column(split, metric)
            for record in self.config.task_records.values()
            for metric in record.metrics.keys() - self.config.task_records[name].metrics.keys()
            for split in ("validation", "test")
        }
        ends = self.curve_ends
        metrics = self.metrics[self.metrics["number"].isin(numbers)]
        return replace(
            self,
            config=config,
            task=name,
            table=table.drop(columns=others.intersection(table.columns)),
            curves=curves[curves["number"].isin(numbers)],
            metrics=metrics.drop(columns=others.intersection(metrics.columns)),
            floors=self.task_floors.get(name),
            hypotheses=[record.at_task(name) for record in self.hypotheses],
            windows={number: self.windows[number] for number in numbers if number in self.windows},
            curve_ends=ends[ends.index.isin(numbers)],
            audit_looks=select_looks(self.audit_looks, name),
        )

    @cached_property
    def all_parameters(self) -> list[str]:
        """Parameters of the trials, without replicate; of networks BPTT steps are among them."""
        names = self.config.list_params()
        if self.cells:
            names = param_order([CELL, *names])
        return [name for name in names if name in self.table]

    @cached_property
    def parameters(self) -> list[str]:
        """Parameters that have several values in this study, nuisance parameters included.

        Carried ones are not: each architecture has one value.
        """
        names = [name for name in self.all_parameters if name not in self.carried]
        return [name for name in names if self.table[name].nunique() > 1]

    @cached_property
    def nuisance(self) -> list[str]:
        """Parameters over which each architecture is judged at its best values."""
        return [name for name in self.parameters if name in self.config.nuisance]

    @cached_property
    def carried(self) -> list[str]:
        """Nuisance parameters of a derived study that has one value of them for each architecture.

        It has several if its variants name them: then each is judged at its best, as in a grid.
        """
        if self.config.refinement is None:
            return []
        names = self.all_parameters
        others = [name for name in names if name not in self.config.nuisance]
        architectures = number_groups(self.table, others)
        if self.number_settings(self.table).nunique() > architectures.nunique():
            return []
        return [name for name in names if name in self.config.nuisance]

    @property
    def judged_parameters(self) -> list[str]:
        """Parameters that distinguish architectures: those with several values, less nuisance."""
        return [name for name in self.parameters if name not in self.nuisance]

    @cached_property
    def cells(self) -> list[str]:
        """Names of the cells; none if the trials are no networks of this program."""
        if not self.config.has_networks:
            return []
        return sorted(self.table[CELL].unique()) if CELL in self.table else [GATED_CELL]

    @property
    def data_columns(self) -> list[str]:
        """Columns that trials of this study can have: those of networks only if it has any."""
        if self.cells:
            return [str(name) for name in self.table]
        if not self.config.is_imported:
            return [str(name) for name in self.table if name not in NETWORK_RESULTS]
        columns = ("architecture", "label", "state", "value", "started", "completed")
        return [*columns, *self.all_parameters, *self.axes[len(self.parameters) :]]

    @property
    def effects_title(self) -> str:
        """Title of the main effects: of gated networks alone, each parameter is a switch."""
        return f"Effect of each {'switch' if self.cells == [GATED_CELL] else 'parameter'}"

    @property
    def noun(self) -> str:
        """What the parameters describe: an architecture, or a configuration of anything."""
        return "architecture" if self.cells else "configuration"

    @property
    def judged_noun(self) -> str:
        """What is compared: a trial, or the several trials of an architecture."""
        return self.noun if self.nuisance or self.has_replicates else "trial"

    @property
    def pruned_noun(self) -> str:
        """What is pruned: a trial, or all runs of an architecture at its nuisance values."""
        if not self.has_replicates:
            return "trial"
        return "setting" if self.nuisance else self.noun

    @cached_property
    def measure(self) -> Measure:
        """Name, unit, direction and format of ``value``."""
        measure = find_measure(self.config)
        if self.config.has_networks:
            return measure
        values = self.table["value"].dropna()
        # What a user's metric can be is not known: one that is minimized and is never negative here
        # is taken for one that cannot be.
        is_nonnegative = not measure.higher_is_better and bool((values >= 0).all())
        least = 0.0 if is_nonnegative else -math.inf
        return replace(measure.with_decimals(values), least=least)

    def find_traits(self, names: Sequence[str]) -> ParameterTraits:
        """Return what is known of some parameters besides their values."""
        return find_traits(names, self.config)

    @cached_property
    def uncontrasted(self) -> frozenset[str]:
        """Parameters that have too many values to compare each two; cells never have."""
        names = [name for name in self.parameters if name != CELL or not self.cells]
        values = {name: self.table[name].dropna().unique().tolist() for name in names}
        return frozenset(name for name, found in values.items() if not has_levels(found))

    @cached_property
    def is_grid(self) -> bool:
        """Whether the trials are a grid, complete or not, and no selection by results.

        Of an imported study this is known if no combination of the values is missing.
        """
        return self.has_all_combinations(self.judged_parameters)

    def has_all_combinations(self, names: Sequence[str]) -> bool:
        """Return whether trials are a grid of some parameters; see :attr:`is_grid`."""
        if self.config.has_networks:
            return self.config.refinement is None
        count = len(self.table.drop_duplicates(names)) if names else 1
        return count == math.prod(self.table[name].nunique(dropna=False) for name in names)

    @property
    def spec(self) -> TaskSpec:
        """What the networks read and predict."""
        task = self.config.task_record
        return BYTES if task is None else task.spec

    def values_of(self, setting: str) -> str:
        """Return the values of a training setting, for a reader: ``32``, or ``16, 32``."""
        values = [getattr(self.config.training, setting)]
        if setting in self.all_parameters:
            values = order_values(self.table[setting].dropna().unique().tolist())
        return ", ".join(f"{v:,}" if isinstance(v, int) else format_value(v) for v in values)

    @property
    def reaches(self) -> list[int | str]:
        """Numbers of steps that gradients go back, or ``sequence``, in their order."""
        return order_values(self.table[BPTT_STEPS].dropna().unique().tolist())

    @property
    def optimizer(self) -> str:
        """The optimizer, or optimizers, with the settings that are not the default."""
        default = TrainingSettings()
        names = self.values_of("optimizer").split(", ")
        titles = [OPTIMIZERS[name].title for name in names]
        settings = [
            f"{format_param(name)} {self.values_of(name)}"
            for name in OPTIMIZER_PARAMS
            if name != "optimizer"
            and any(uses_setting(optimizer, name) for optimizer in names)
            and (
                name in self.table
                or name in ("learning_rate", "momentum")
                or getattr(self.config.training, name) != getattr(default, name)
            )
        ]
        return f"{' and '.join(titles)} with {', '.join(settings)}"

    @cached_property
    def metric(self) -> Measure:
        """Number by which the architectures are ranked.

        Replicates are ranked by their loss on unseen text (:mod:`studies.best`), all others by
        their value.
        """
        complete = self.complete
        if not self.has_replicates or complete.empty:
            return self.measure
        return self.measure.choose_metric(lambda name: bool(complete[name].notna().all()))

    @property
    def metric_columns(self) -> dict[str, str]:
        """Column of each metric of the task, on the split of :attr:`metric`.

        Of a training loop: of each logged value but the study's metric, the last one.
        """
        if self.config.loop is not None:
            last = metric_column(LAST, "")
            found = [str(name) for name in self.table if str(name).startswith(last)]
            return {name.removeprefix(last): name for name in found if name not in self.axes}
        task = self.config.task_record
        split = self.metric.split
        names = task.metrics if task else ()
        columns = {name: metric_column(split, name) for name in names}
        return {name: column for name, column in columns.items() if column in self.table}

    def has_any(self, column: str) -> bool:
        """Return whether some trial has recorded an attribute."""
        return bool(self.table[column].notna().any())

    @property
    def shows_validation(self) -> bool:
        """Whether the loss on the validation split is another number than metric and value."""
        column = self.measure.held_out_column("validation")
        if self.metric.column == column or self.config.objective == "validation":
            return False
        return bool(self.complete[column].notna().any())

    def count_versions(self, name: str) -> int:
        """Return how many versions of ``code`` or ``torch`` trained the complete trials."""
        recorded = pd.concat([self.complete[name], self.complete[f"earlier_{name}"]]).dropna()
        versions = recorded.astype(str).str.split(", ").explode()
        return int(versions.nunique())

    @property
    def axes(self) -> list[str]:
        """Parameters that distinguish any two trials: those with several values, and replicate."""
        return self.parameters + ([REPLICATE] if REPLICATE in self.table else [])

    @property
    def judged_axes(self) -> list[str]:
        """Parameters that distinguish any two rows of :meth:`judge`."""
        return [name for name in self.axes if name not in self.nuisance]

    @cached_property
    def outcomes(self) -> "pd.Series[float] | None":
        """1 for a trial that solved its task, 0 for one that did not or diverged, NaN for others.

        None if the task does not declare when it is solved, and if trials were pruned: these have
        no outcome.
        """
        task = self.config.task_record
        columns = {metric_column("validation", name): name for name in task.solved} if task else {}
        if task is None or not columns or not columns.keys() <= set(self.table) or self.is_pruned:
            return None
        rows: list[Any] = self.table[list(columns)].rename(columns=columns).to_dict("records")
        found: Any = [task.has_solved(row) for row in rows]
        return self.code_outcomes(pd.Series(found, self.table.index, dtype=bool))

    def code_outcomes(self, is_solved: "pd.Series[bool]") -> "pd.Series[float]":
        """Return 1 for a complete trial that is solved, 0 if not or diverged, NaN for others."""
        states = self.table["state"]
        is_complete = states == TrialStatus.COMPLETE
        outcomes = is_solved.astype(float).where(is_complete)
        return outcomes.mask(states == TrialStatus.DIVERGED, 0.0)

    @cached_property
    def facts(self) -> "pd.Series[Any]":
        """What the network of each trial can learn, as :class:`rnn.config.NetworkFacts`.

        None where that is not known.
        """
        if not self.cells:
            return pd.Series([None] * len(self.table), self.table.index, dtype=object)
        names = [CELL, *self.config.list_params()]
        keys = ["architecture", BPTT_STEPS, *([TASK] if TASK in self.table else [])]
        groups = number_groups(self.table, keys)
        rows = self.table[~groups.duplicated()].to_dict("records")
        found = [find_facts(list_params(row, names), self.config) for row in rows]
        return pd.Series([found[group] for group in groups], self.table.index, dtype=object)

    def find_kinds(self, rows: pd.DataFrame) -> Kinds | None:
        """Return which pairs of some rows cannot show a change; None if all can."""
        return find_kinds(list(self.facts[rows.index]), self.config)

    def find_misled(self, rows: pd.DataFrame) -> "pd.Series[bool]":
        """Return which of some rows are networks that do not see the input that they may need."""
        found = [is_misled(facts, self.config) for facts in self.facts[rows.index]]
        return pd.Series(found, rows.index, dtype=bool)

    def find_untrained(self, rows: pd.DataFrame, name: str) -> "pd.Series[bool]":
        """Return in which of some rows the parts that a parameter adds are never trained.

        A parameter adds the parts that networks have or lack by its value alone.
        """
        parts = pd.DataFrame(
            [facts.cell_parts if facts else {} for facts in self.facts[rows.index]], rows.index
        )
        values = rows[name].map(repr)
        is_untrained = pd.Series(False, rows.index)
        for part in parts:
            has_part = parts[part].notna()
            shares = has_part.groupby(values).mean()
            if shares.isin([0, 1]).all() and shares.nunique() == 2:
                is_untrained |= has_part & (parts[part] == False)  # noqa: E712  # NaN is neither
        return is_untrained

    @cached_property
    def losses(self) -> "pd.Series[float]":
        """Value of each trial of which the least is the best; infinite for one that diverged."""
        losses: pd.Series[float] = self.measure.to_loss(self.table["value"]).astype(float)
        return losses.mask(self.table["state"] == TrialStatus.DIVERGED, math.inf)

    def judge(self, table: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return the row of each architecture, or of those in a table, at its best nuisance values.

        Of replicates these are all runs at the values of the best mean; of a task that is solved or
        not, those at which most are solved, and of these those of the lowest median. Without
        nuisance parameters these are all rows. The best comes first.
        """
        rows = self.table if table is None else table
        if not self.nuisance:
            return rows
        losses = self.measure.to_loss(rows["value"])
        settings = self.number_settings(rows)
        if self.outcomes is not None:
            losses = self._places[rows.index]
        elif self.has_replicates:
            known = losses.notna()
            runs = zip(settings[known], rows[REPLICATE][known], losses[known], strict=True)
            losses = settings.map(average_runs(runs)).astype(float)
        rows = rows.loc[losses.sort_values(kind="stable", na_position="last").index]
        is_best = ~self.number_architectures(rows).duplicated()
        if self.has_replicates:
            is_best = settings[rows.index].isin(settings[rows.index[is_best]])
        judged: pd.DataFrame = rows[is_best]
        return judged

    @cached_property
    def _places(self) -> "pd.Series[float]":
        """Place of the setting of each trial, of a task that is solved or not."""
        assert self.outcomes is not None
        settings = np.array(self.number_settings(self.table), dtype=np.int64)
        places = place_groups(settings, np.array(self.outcomes), np.array(self.losses))
        return pd.Series(places, self.table.index, dtype=float)

    def number_settings(self, rows: pd.DataFrame) -> "pd.Series[int]":
        """Number the rows by their parameters, replicates alike."""
        return number_groups(rows, self.all_parameters)

    def number_architectures(self, rows: pd.DataFrame) -> "pd.Series[int]":
        """Number the rows by all of their parameters that are no nuisance."""
        return number_groups(rows, [n for n in self.all_parameters if n not in self.nuisance])

    @cached_property
    def has_replicates(self) -> bool:
        """Whether each architecture is run several times."""
        return REPLICATE in self.table and self.table[REPLICATE].nunique() > 1

    @property
    def is_finished(self) -> bool:
        """Whether all grid trials are finished."""
        return self.counts.finished == self.counts.planned

    @property
    def is_pruned(self) -> bool:
        """Whether trials lack a value because the pruner has stopped them."""
        counts = self.counts
        return self.config.pruning.enabled and bool(counts.pruned or counts.paused)

    @property
    def has_valid_audit(self) -> bool:
        """Whether the audited trials are a sample of the architectures, as these are judged now.

        The nuisance parameters of a study may be changed after the sample was drawn.
        """
        return {name for name in self.audit_nuisance if name in self.parameters} == set(
            self.nuisance
        )

    @cached_property
    def complete(self) -> pd.DataFrame:
        """Rows of the complete trials."""
        return self.table[self.table["state"] == TrialStatus.COMPLETE]

    @cached_property
    def counts(self) -> TrialCounts:
        """Number of trials in each state."""
        counts = self.table["state"].value_counts()
        return count_statuses({status: int(counts.get(status, 0)) for status in TrialStatus})
