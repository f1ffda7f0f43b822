"""Results of a stored study as frames: trials, curves, evaluation windows."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import Any

import pandas as pd

from reports.data.trial_table import (
    has_levels,
    list_nuisance,
    list_params,
    metric_column,
)
from reports.formatting import (
    format_param,
    format_value,
    loss_unit,
    objective_name,
    order_values,
)
from reports.scale import NATS, VALUE, Metric, Scale
from rnn.config import OPTIMIZERS, TaskSpec
from studies.attributes import (
    EARLIER_CODE,
    EARLIER_TORCH,
    AuditLook,
    CorpusRecord,
    LookRecord,
    TokenizerRecord,
)
from studies.best import choose_split
from studies.config import StudyConfig
from studies.hypothesis_records import HypothesisRecord
from studies.measure import Measure, find_measure
from studies.space import BPTT_STEPS, CELL, GATED_CELL, REPLICATE, param_order
from studies.storage.counts import TrialCounts, count_statuses
from studies.storage.trials import TrialStatus
from studies.task_record import Floors
from studies.training import (
    OPTIMIZER_PARAMS,
    TrainingSettings,
    uses_setting,
)


@dataclass(frozen=True)
class Results:
    """Results of a study with at least one complete trial.

    Attributes:
        name: name of the study.
        config: its configuration.
        corpus: the corpus that it was trained on; None for another task, and if it was imported.
        floors: losses without memory in a task other than text; None if they are not stored.
        commands: commands that created and extended it; empty if unknown.
        table: one row per trial, indexed by its number, the best first: ``architecture`` (its
            label), ``label`` (with its nuisance values and the replicate), ``state``, ``value``,
            the parameters (BPTT steps always among them; missing where the trial lacks one), and
            the attributes that the trial recorded.
        curves: one row per log point: ``number``, ``step``, ``loss`` (of text in nats per token),
            of the trials whose curves were read.
        sources: of a refinement, one row per complete trial of its source, indexed by number:
            ``value``, by this study's objective, and the parameters.
        tokenizer: the tokenizer of the corpus.
        windows: held-out loss on each evaluation window, or sequence, by trial number.
        hypotheses: the hypotheses that the study stores.
        audit_looks: planned looks at the audited trials of a pruned study, by name.
        audit_nuisance: nuisance parameters over which its audited architectures were drawn.
        identity: identity of the study, :func:`reports.output.study_identity`.
        replicates: further runs of its architectures, of other studies, see
            :func:`reports.data.replicates.find_replicates`; None if there are none.
        looks: planned looks at replicates so far.
        stored_ends: lengths of the curves of all trials; None if all curves were read.
        stored_early_losses: loss of each trial at the common step; None if all curves were read.
    """

    name: str
    config: StudyConfig
    corpus: CorpusRecord | None
    commands: list[str]
    table: pd.DataFrame
    curves: pd.DataFrame
    sources: pd.DataFrame
    floors: Floors | None = None
    tokenizer: TokenizerRecord = field(default_factory=TokenizerRecord)
    windows: dict[int, list[float]] = field(default_factory=dict)
    hypotheses: list[HypothesisRecord] = field(default_factory=list)
    audit_looks: dict[str, AuditLook] = field(default_factory=dict)
    audit_nuisance: list[str] = field(default_factory=list)
    identity: str = ""
    replicates: pd.DataFrame | None = None
    looks: list[LookRecord] = field(default_factory=list)
    stored_ends: pd.DataFrame | None = None
    stored_early_losses: "pd.Series[float] | None" = None

    @cached_property
    def computed(self) -> dict[Any, Any]:
        """Statistics of these results that several parts of a page show, by what they are."""
        return {}

    @cached_property
    def all_parameters(self) -> list[str]:
        """Parameters of the trials, without replicate; of networks BPTT steps are among them."""
        names = self.config.list_params()
        if self.config.is_trained:
            names = param_order([CELL, *names])
        return [name for name in names if name in self.table]

    @property
    def parameters(self) -> list[str]:
        """Parameters that have several values in this study, nuisance parameters included.

        Those of a derived study are not: each of its architectures has one value.
        """
        names = self.all_parameters
        if self.config.refinement is not None:
            names = [name for name in names if name not in self.carried]
        return [name for name in names if self.table[name].nunique() > 1]

    @cached_property
    def nuisance(self) -> list[str]:
        """Parameters over which each architecture is judged at its best values."""
        if self.config.refinement is not None:
            return []
        return [name for name in self.parameters if name in self.config.nuisance]

    @cached_property
    def carried(self) -> list[str]:
        """Nuisance parameters of a derived study, which has one value for each architecture."""
        if self.is_imported or self.config.refinement is None:
            return []
        rows = self.table.to_dict("records")
        names = [*self.all_parameters, REPLICATE]
        return list_nuisance(self.trained, [list_params(row, names) for row in rows])

    @property
    def judged_parameters(self) -> list[str]:
        """Parameters that distinguish architectures: those with several values, less nuisance."""
        return [name for name in self.parameters if name not in self.nuisance]

    @property
    def cells(self) -> list[str]:
        """Names of the cells; none if the study was imported."""
        if self.is_imported:
            return []
        return sorted(self.table[CELL].unique()) if CELL in self.table else [GATED_CELL]

    @property
    def is_gated(self) -> bool:
        """Whether all networks are gated."""
        return self.cells == [GATED_CELL]

    @property
    def has_gated(self) -> bool:
        """Whether some networks are gated."""
        return GATED_CELL in self.cells

    @property
    def is_imported(self) -> bool:
        """Whether another program has recorded the results."""
        return not self.config.is_trained

    @property
    def noun(self) -> str:
        """What the parameters describe: an architecture, or a configuration of anything."""
        return "configuration" if self.is_imported else "architecture"

    @property
    def trained(self) -> StudyConfig:
        """The configuration of a study that is trained here."""
        assert self.config.is_trained
        return self.config

    @property
    def data(self) -> tuple[object, ...]:
        """What the networks learn: comparable studies have the same."""
        if self.is_imported:
            return (self.name,)
        config = self.trained
        task = config.task_record and config.task_record.identity()
        return self.corpus and self.corpus.sha256, config.tokenizer, task

    @property
    def data_name(self) -> str:
        """Name of the corpus, without the folder of a file, or of another task."""
        if self.corpus is not None:
            return PurePath(self.corpus.name).name
        task = None if self.is_imported else self.trained.task_record
        return task.name if task else ""

    @cached_property
    def measure(self) -> Measure:
        """Names, units and columns of the losses."""
        return find_measure(self.config)

    @cached_property
    def scale(self) -> Scale:
        """Unit, direction and precision of ``value``."""
        config = self.config
        if config.is_trained:
            return NATS if config.is_text else Scale.of_task(self.measure)
        return Scale.of_values(
            self.table["value"].dropna(),
            self.measure.name,
            self.measure.unit,
            config.direction == "maximize",
        )

    @cached_property
    def uncontrasted(self) -> frozenset[str]:
        """Parameters of an imported study that have too many values to compare each two."""
        names = self.parameters if self.is_imported else []
        values = {name: self.table[name].dropna().unique().tolist() for name in names}
        return frozenset(name for name in names if not has_levels(values[name]))

    @cached_property
    def is_grid(self) -> bool:
        """Whether the trials are a grid, complete or not, and no selection by results.

        Of an imported study this is known if no combination of the values is missing.
        """
        if not self.is_imported:
            return self.config.refinement is None
        names = self.judged_parameters
        count = len(self.table.drop_duplicates(names)) if names else 1
        return count == math.prod(self.table[name].nunique(dropna=False) for name in names)

    @property
    def spec(self) -> TaskSpec:
        """What the networks read and predict."""
        task = self.trained.task_record
        return TaskSpec.of_text(self.tokenizer.size) if task is None else task.spec

    def values_of(self, setting: str) -> str:
        """Return the values of a training setting, for a reader: ``32``, or ``16, 32``."""
        values = [getattr(self.trained.training, setting)]
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
            and any(uses_setting(each, name) for each in names)
            and (
                name in self.table
                or name in ("learning_rate", "momentum")
                or getattr(self.trained.training, name) != getattr(default, name)
            )
        ]
        return f"{' and '.join(titles)} with {', '.join(settings)}"

    @property
    def metric(self) -> Metric:
        """Number by which the architectures are ranked.

        Replicates are ranked by their loss on unseen text (:mod:`studies.best`), all others by
        their value.
        """
        complete, config = self.complete, self.config
        if not config.is_trained:
            return Metric(VALUE, self.measure.name, self.measure.unit, "", self.scale)
        split = None
        if self.has_replicates and len(complete):
            split = choose_split(self.measure, lambda name: bool(complete[name].notna().all()))
        if split is not None:
            column, name = self.measure.column(split), self.measure.name_loss(split)
            return Metric(column, name, self.measure.held_out_unit, split, self.scale)
        name, unit = objective_name(config), loss_unit(config)
        return Metric(VALUE, name, unit, "validation", self.scale)

    @property
    def metric_columns(self) -> dict[str, str]:
        """Column of each metric of the task, on the split of :attr:`metric`."""
        task = None if self.is_imported else self.trained.task_record
        split, names = self.metric.split, task.metrics if task else ()
        columns = {name: metric_column(split, name) for name in names}
        return {name: column for name, column in columns.items() if column in self.table}

    @property
    def shows_validation(self) -> bool:
        """Whether the loss on the validation split is another number than metric and value."""
        column = self.measure.column("validation")
        # The value of a text is in another unit.
        is_value = self.trained.objective == "validation" and not self.trained.is_text
        if self.metric.column == column or is_value:
            return False
        return bool(self.complete[column].notna().any())

    @property
    def training_code(self) -> dict[str, list[int]]:
        """Numbers of the trials that each version of the code trained, by source hash."""
        return self._trials_by_version("code", EARLIER_CODE)

    @property
    def torch_versions(self) -> dict[str, list[int]]:
        """Numbers of the trials that each version of PyTorch trained."""
        return self._trials_by_version("torch", EARLIER_TORCH)

    def _trials_by_version(self, *columns: str) -> dict[str, list[int]]:
        trials: dict[str, list[int]] = {}
        for number, recorded in pd.concat([self.table[name] for name in columns]).dropna().items():
            for version in recorded.split(", "):
                trials.setdefault(version, []).append(number)
        return {version: sorted(trials[version]) for version in sorted(trials)}

    @property
    def axes(self) -> list[str]:
        """Parameters that distinguish any two trials: those with several values, and replicate."""
        return self.parameters + ([REPLICATE] if REPLICATE in self.table else [])

    @property
    def judged_axes(self) -> list[str]:
        """Parameters that distinguish any two rows of :meth:`judge`."""
        return [name for name in self.axes if name not in self.nuisance]

    def judge(
        self, table: pd.DataFrame | None = None, losses: "pd.Series[float] | None" = None
    ) -> pd.DataFrame:
        """Return the row of each architecture at its best values of the nuisance parameters.

        Without nuisance parameters these are all rows. With replicates, which only imported studies
        have next to nuisance parameters, these are all runs at the values of the best mean.

        Args:
            table: rows to choose from; by default all trials.
            losses: number of each row of which the least is the best; by default its ``value``, in
                the study's direction.
        """
        rows = self.table if table is None else table
        if not self.nuisance:
            return rows
        names = [name for name in self.all_parameters if name not in self.nuisance]
        losses = self.scale.to_loss(rows["value"]) if losses is None else losses
        settings = pd.Series(rows.index, rows.index)
        if self.has_replicates:
            groups = rows.groupby([*names, *self.nuisance], dropna=False, sort=False)
            settings = groups.ngroup()
            losses = losses.groupby(settings).transform("mean")
        rows = rows.loc[losses.sort_values(kind="stable", na_position="last").index]
        best = rows.drop_duplicates(names)
        return rows[settings[rows.index].isin(settings[best.index])]

    @property
    def has_replicates(self) -> bool:
        """Whether each architecture is run several times."""
        if self.is_imported:
            return REPLICATE in self.table and self.table[REPLICATE].nunique() > 1
        refinement = self.config.refinement
        return refinement is not None and refinement.replicates > 1

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

    @property
    def complete(self) -> pd.DataFrame:
        """Rows of the complete trials."""
        return self.table[self.table["state"] == TrialStatus.COMPLETE]

    @cached_property
    def curve_ends(self) -> pd.DataFrame:
        """Length of each curve, indexed by trial: ``points`` and ``last_step``."""
        if self.stored_ends is not None:
            return self.stored_ends
        by_trial = self.curves.groupby("number")["step"]
        return pd.DataFrame({"points": by_trial.size(), "last_step": by_trial.max()})

    @property
    def common_step(self) -> int:
        """Last step that all trials with a curve have reached, failed ones aside; 0 for none."""
        has_failed = self.table["state"].isin([TrialStatus.DIVERGED, TrialStatus.FAIL])
        failed = self.table.index[has_failed]
        reached = self.curve_ends["last_step"].drop(failed, errors="ignore")
        return int(reached.min()) if len(reached) else 0

    @property
    def early_losses(self) -> "pd.Series[float]":
        """Loss of each trial at the common step, as far as it has reached it."""
        if self.stored_early_losses is not None:
            return self.stored_early_losses
        early = self.curves[self.curves["step"] == self.common_step]
        return early.set_index("number")["loss"]

    @property
    def counts(self) -> TrialCounts:
        """Number of trials in each state."""
        counts = self.table["state"].value_counts()
        return count_statuses({status: int(counts.get(status, 0)) for status in TrialStatus})
