"""Stored trials as a frame with one row per trial, and the context that their networks use."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, get_args

import numpy as np
import pandas as pd

from reports.stats import Floats
from reports.stats.design import MAX_LEVELS
from rnn.config import NetworkConfig
from studies.attributes import (
    CONTEXT_LISTS,
    COPIED_FROM,
    EARLIER_CODE,
    EARLIER_TORCH,
    LONG_RESULTS,
    OBJECTIVE_ATTRIBUTES,
    SOURCE_TRIALS,
    TrialColumns,
    TrialRecord,
)
from studies.config import StudyConfig
from studies.errors import StudyFormatError, StudyNotFoundError
from studies.measure import find_measure
from studies.messages import format_count, format_param, format_value, is_missing
from studies.space import BPTT_STEPS, CELL, REPLICATE, TASK, param_order
from studies.storage.open import load_study, read_study_record
from studies.storage.reads import read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredTrial, TrialStatus
from studies.study_settings import TRAINING_PARAMS
from studies.trial_params import resolve_params, to_trial_config

_TEXT_RESULTS = (
    "validation_bits_per_byte",
    "test_bits_per_byte",
    *CONTEXT_LISTS,
    "context_loss",
    "sample",
)
"""Attributes of trials that learn a text."""

_TASK_RESULTS = ("test_loss", "metrics", "test_metrics", "lengths", "slices")
"""Attributes of trials that learn another task."""

_METRICS = {"metrics": "validation", "test_metrics": "test"}
"""Split of each attribute with the metrics of a task, which have columns of their own."""

LAST = "last"
"""In place of a split in the columns of what a training loop has logged last: ``last_loss``."""

_RECORDED = [
    name for name in TrialRecord.model_fields if name not in (REPLICATE, *LONG_RESULTS, *_METRICS)
]
"""Recorded attributes in the table: the replicate is a parameter, long results are read apart."""

_CONTEXT_COLUMNS = ("effective_context", "effective_context_low", "effective_context_high")

NETWORK_RESULTS = frozenset(
    {*_TEXT_RESULTS, *_TASK_RESULTS, *_CONTEXT_COLUMNS, *OBJECTIVE_ATTRIBUTES.values()}
    | {"validation_stderr", "test_stderr", "updates", "inputs", "lockstep", "precision", "threads"}
)
"""Columns that only trials of networks have."""


def _is_number(annotation: Any) -> bool:
    """Return whether a field holds a number, perhaps with bounds, or None."""
    kinds = get_args(annotation) or (annotation,)
    return any(getattr(kind, "__origin__", kind) in (int, float) for kind in kinds)


_NUMERIC = (
    "value",
    *(name for name in _RECORDED if _is_number(TrialRecord.model_fields[name].annotation)),
    *_CONTEXT_COLUMNS,
    "solved_at",
)

_NULLABLE = {bool: "boolean", int: "Int64", float: "float64"}
"""Types of columns with missing values."""


def build_table(trials: Sequence[StoredTrial], config: StudyConfig) -> pd.DataFrame:
    """Build the table of a study's trials, see :class:`reports.results.Results`.

    Its column ``solved_at`` is not filled yet.
    """
    names = {BPTT_STEPS, *(name for trial in trials for name in trial.params)}
    params = [resolve_params(trial.params, config, names) for trial in trials]
    nuisance = set(config.nuisance)
    name_architecture = _choose_names(config, params, nuisance)
    splits = _METRICS if config.has_networks else {"metrics": LAST}
    rows = [
        _make_row(trial, of_trial, name_architecture(of_trial), nuisance, splits)
        for trial, of_trial in zip(trials, params, strict=True)
    ]
    table = _arrange_rows(rows, params, config.direction == "maximize", absent_columns(config))
    return table.sort_values(TASK, kind="stable") if config.task_names else table


def absent_columns(config: StudyConfig) -> set[str]:
    """Return the columns that no trial of a study has: results of other kinds of tasks."""
    absent = []
    for name in config.task_records or ("",):
        of_task = config.at_task(name)
        is_text = find_measure(of_task).held_out_column("validation") in _TEXT_RESULTS
        columns = {*_TASK_RESULTS} if is_text else {*_TEXT_RESULTS, *_CONTEXT_COLUMNS}
        absent.append(columns | ({"solved_at"} if of_task.solvable_task is None else set()))
    return set.intersection(*absent)


def _choose_names(
    config: StudyConfig, params: Sequence[Mapping[str, Any]], nuisance: Collection[str]
) -> Callable[[Mapping[str, Any]], str]:
    """Choose how the architectures of some trials are named.

    A network is followed by the settings in which the study varies: ``2×32 GRU, batch_size 16``.
    Other trials have these alone: ``depth 3, activation relu``. Their long numbers are shortened
    unless different trials would have the same name.
    """
    if config.has_networks:
        settings = {*TRAINING_PARAMS, *(config.task_record.options if config.task_record else ())}
        values = {name: {row[name] for row in params if name in row} for name in settings}
        varied = {name for name, found in values.items() if len(found) > 1}.difference(nuisance)

        def name_network(row: Mapping[str, Any]) -> str:
            label = to_trial_config(row, config).architecture.label
            return label + format_settings(row, [name for name in row if name in varied])

        return name_network
    names = set(config.list_params()).difference(nuisance)
    varied = {name for name in names if len({repr(row.get(name)) for row in params}) > 1} or names

    def join(row: Mapping[str, Any], shortens: bool) -> str:
        texts = (
            f"{format_param(name)} "
            + (f"{value:.4g}" if shortens and isinstance(value, float) else format_value(value))
            for name, value in row.items()
            if name in varied
        )
        return ", ".join(texts) or "no parameter"

    short, full = ({join(row, shortens) for row in params} for shortens in (True, False))
    return partial(join, shortens=len(short) == len(full))


def _arrange_rows(
    rows: Sequence[Mapping[str, Any]],
    params: Sequence[Mapping[str, Any]],
    higher_is_better: bool,
    absent: Collection[str],
) -> pd.DataFrame:
    """Return the frame of the values of each trial by column, the best trial first."""
    names = [name for name in dict.fromkeys(chain.from_iterable(rows)) if name not in absent]
    # By column: far faster than a list of dictionaries.
    table = pd.DataFrame({name: [row.get(name, np.nan) for row in rows] for name in names})
    table = set_param_types(table.set_index("number"), params)
    # Absent from older trials, and from those that plain Optuna drives.
    for column in (name for name in _NUMERIC if name not in absent):
        table[column] = pd.to_numeric(table[column]) if column in table else np.nan
    # By value first, then trials that ended without one, then those that have not ended.
    places = {TrialStatus.RUNNING: 1, TrialStatus.PAUSED: 2, TrialStatus.WAITING: 3}
    order = [not higher_is_better, True]
    table = table.sort_values(["value", "number"], ascending=order, na_position="last")
    return table.sort_values("state", kind="stable", key=lambda s: s.map(places).fillna(0))


def _identify_tasks(config: StudyConfig) -> dict[str, Any]:
    if config.own_metric is not None:
        return config.own_metric.model_dump(include={"metric", "unit", "direction"})
    return {name: task.identity() for name, task in config.list_tasks().items()}


def read_source_trials(storage: LeasedRDBStorage, config: StudyConfig) -> pd.DataFrame:
    """Read the complete trials of a refinement's source; none if it is gone or not comparable.

    A parameter that the source did not vary has its value of the source's config. A value is the
    loss that the trial recorded for the objective of the refinement.
    """
    rows = []
    params = []
    if config.refinement is not None:
        try:
            source = load_study(storage, config.refinement.source)
            source_config = read_study_record(source).config
            if _identify_tasks(source_config) == _identify_tasks(config):
                for trial in read_trials(storage, source._study_id):
                    value = trial.value
                    if value is not None and source_config.objective != config.objective:
                        value = trial.attributes.get(OBJECTIVE_ATTRIBUTES[config.objective])
                    if value is not None:
                        params.append(resolve_params(trial.params, source_config, TRAINING_PARAMS))
                        rows.append({"number": trial.number, "value": value} | params[-1])
        except (StudyNotFoundError, StudyFormatError):
            pass
    columns = list(dict.fromkeys(["number", "value", *(name for row in rows for name in row)]))
    return set_param_types(pd.DataFrame(rows, columns=columns).set_index("number"), params)


def metric_column(split: str, metric: str) -> str:
    """Return the column of a metric, on a held-out split of a task: ``validation_accuracy``."""
    return f"{split}_{metric}"


def set_param_types(table: pd.DataFrame, params: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Set the types of the columns in which some trials lack a parameter.

    Switches stay booleans and integers stay integers there, next to missing values.
    """
    types = {}
    for name in param_order(name for row in params for name in row):
        kinds = {type(row[name]) for row in params if name in row}
        if any(name not in row for row in params) and len(kinds) == 1:
            types[name] = _NULLABLE.get(kinds.pop(), "object")
    return table.astype(types)


def list_params(row: "pd.Series[Any] | Mapping[Any, Any]", names: Iterable[str]) -> dict[str, Any]:
    """Return the parameters that a table row has, as Python values."""
    return {
        name: to_python(row[name]) for name in names if name in row and not is_missing(row[name])
    }


def decode_architecture(
    row: "pd.Series[Any] | Mapping[str, Any]", config: StudyConfig
) -> NetworkConfig:
    """Decode the architecture of a table row, whose values may be NumPy scalars."""
    names = [name for name in config.list_params() if name not in TRAINING_PARAMS]
    return to_trial_config(list_params(row, [CELL, *names]), config).architecture


def format_settings(params: Mapping[str, Any], names: Iterable[str], shortens: bool = False) -> str:
    """Format named settings of a trial as they follow a label: ``, learning rate 0.003``.

    Numbers are rounded to four digits if ``shortens``, which may make two labels equal.
    """
    known = {name: params[name] for name in names if name in params}
    if shortens:
        known |= {n: float(f"{v:.4g}") for n, v in known.items() if isinstance(v, float)}
    return "".join(f", {format_param(name)} {value}" for name, value in known.items())


def to_python(value: Any) -> Any:
    """Convert a NumPy scalar to a Python value; return other values as they are."""
    return value.item() if isinstance(value, np.generic) else value


def _make_row(
    trial: StoredTrial,
    params: Mapping[str, Any],
    architecture: str,
    nuisance: Collection[str],
    splits: Mapping[str, str],
) -> dict[str, Any]:
    settings = format_settings(params, [name for name in params if name in nuisance], True)
    replicate = f" #{params[REPLICATE]}" if REPLICATE in params else ""
    recorded = {name: trial.attributes.get(name) for name in _RECORDED}
    for name, split in splits.items():
        metrics = trial.attributes.get(name) or {}
        recorded |= {metric_column(split, metric): value for metric, value in metrics.items()}
    for name in (EARLIER_CODE, EARLIER_TORCH):
        recorded[name] = ", ".join(recorded[name] or ()) or None
    if trial.is_told:
        recorded["told"] = trial.values[0]
    if (profile := read_profile(recorded)) is not None:
        context = profile.estimate()
        recorded |= TrialColumns(
            effective_context=context.size,
            effective_context_low=context.low,
            effective_context_high=context.high,
        )
    columns = TrialColumns(
        number=trial.number,
        architecture=architecture,
        label=architecture + settings + replicate,
        state=trial.status.value,
        value=trial.value,
        audited=trial.is_audited,
        source_trials=trial.attributes.get(SOURCE_TRIALS),
        copied_from=trial.attributes.get(COPIED_FROM),
        started=trial.started,
        completed=trial.completed,
    )
    return {**recorded, **columns, **params}


def list_conditions(rows: pd.DataFrame, of_networks: bool = True) -> dict[str, str]:
    """List what the computing time of each architecture's runs depends on, as far as is known.

    It is "" where it is not recorded, or differs between runs of the architecture.
    """
    if not of_networks:
        hosts = rows["host"].fillna("").groupby(rows["architecture"]).unique()
        return {str(label): found[0] if len(found) == 1 else "" for label, found in hosts.items()}
    names = ["device", "host", "precision", "threads", "lockstep"]
    recorded = rows.reindex(columns=names)
    recorded["lockstep"] = pd.to_numeric(recorded["lockstep"]).fillna(1)
    found: dict[str, set[str]] = {}
    for label, *conditions in zip(
        rows["architecture"], *(recorded[name].tolist() for name in names), strict=True
    ):
        text = ""
        if not any(map(is_missing, conditions)):
            device, host, precision, threads, lockstep = conditions
            text = (
                f"{device} of {host}, {precision}, {format_count(int(threads), 'thread')}, "
                f"{format_count(int(lockstep), 'network')} in lockstep"
            )
        found.setdefault(str(label), set()).add(text)
    return {label: min(texts) if len(texts) == 1 else "" for label, texts in found.items()}


def is_continuous(column: "pd.Series[Any]") -> bool:
    """Return whether a parameter is a number of more values than can be compared one by one."""
    values = column.dropna().unique()
    return len(values) > MAX_LEVELS and not any(isinstance(value, bool | str) for value in values)


# ------------------------------------------------------------------ effective context

THRESHOLD = math.log2(1.01)
"""Excess loss in bits per byte below which a longer context makes no difference: 1% of perplexity,
the threshold of Khandelwal et al., *Sharp Nearby, Fuzzy Far Away: How Neural Language Models Use
Context*, 2018, section 3."""

_QUANTILE = 1.96

_LEAST = THRESHOLD / 10
"""Least excess that is interpolated, for bins without any."""


@dataclass(frozen=True)
class EffectiveContext:
    """Number of tokens of context beyond which the loss falls by less than :data:`THRESHOLD`.

    Attributes:
        size: the estimate, 1 or more; infinite if it exceeds ``longest``.
        low: lower end of its 95% interval over the evaluation windows; NaN with a single window.
        high: upper end of the interval; infinite if it exceeds ``longest``.
        longest: largest number of tokens that was measured, half of an evaluation window.
    """

    size: float
    low: float
    high: float
    longest: int

    def __str__(self) -> str:
        size, low, high = (
            f"{end:.0f}" if math.isfinite(end) else f"> {self.longest}"
            for end in (self.size, self.low, self.high)
        )
        return size if math.isnan(self.low) else f"{size} [{low}, {high}]"


@dataclass(frozen=True)
class ContextProfile:
    """Loss of a network by the number of tokens of context, on the same text.

    Attributes:
        bins: largest number of tokens of context in each bin.
        excess: loss with a context of each bin minus that with half a window more (bins,), in bits
            per byte.
        stderr: standard error of each over the evaluation windows (bins,); NaN if unknown.
        loss: loss with the long context, in bits per byte.
    """

    bins: tuple[int, ...]
    excess: Floats
    stderr: Floats
    loss: float

    @property
    def centers(self) -> Floats:
        """Geometric mean of the smallest and the largest number of tokens in each bin (bins,)."""
        centers: Floats = np.sqrt(np.multiply(self._smallest, self.bins))
        return centers

    def format_ranges(self, token: str) -> list[str]:
        """Format the numbers of tokens in each bin: ``1 byte``, ``2 bytes``, ``3–4 bytes``."""
        return [
            format_count(high, token) if low == high else f"{low:,}–{high:,} {token}s"
            for low, high in zip(self._smallest, self.bins, strict=True)
        ]

    @property
    def _smallest(self) -> list[int]:
        return [1, *(end + 1 for end in self.bins[:-1])]

    def estimate(self) -> EffectiveContext:
        """Estimate the effective context.

        In expectation the excess does not rise with the context, so an isotonic regression,
        weighted by the inverse variances, smooths the noise of single bins. The estimate is where
        it crosses the threshold, interpolated linearly between the logarithms of excess and
        context. The interval is where the excess plus and minus 1.96 standard errors cross it; it
        does not cover the interpolation's error, some 5%.
        """
        margin = _QUANTILE * self.stderr
        low, size, high = (self._cross(self.excess + shift) for shift in (-margin, 0, margin))
        return EffectiveContext(size, low, high, self.bins[-1])

    def _cross(self, excess: Floats) -> float:
        """Return the context at which a decreasing fit crosses the threshold; NaN if unknown."""
        from scipy.optimize import isotonic_regression

        if np.isnan(excess).any():
            return math.nan
        known = np.isfinite(self.stderr) & (self.stderr > 0)
        weights = 1 / self.stderr**2 if known.all() else None
        fit = isotonic_regression(excess, weights=weights, increasing=False).x
        below = np.flatnonzero(fit < THRESHOLD)
        if not len(below):
            return math.inf
        if (first := int(below[0])) == 0:
            return 1.0
        places = np.log(self.centers[[first, first - 1]])
        levels = np.log(np.maximum(fit[[first, first - 1]], _LEAST))
        return float(np.exp(np.interp(math.log(THRESHOLD), levels, places)))


def read_profile(recorded: Mapping[Any, Any]) -> ContextProfile | None:
    """Return the profile of a trial's attributes; None if it has none, as older trials."""
    bins, loss = recorded.get("context_bins"), recorded.get("context_loss")
    stated = recorded.get("context_excess")
    if not isinstance(bins, Sequence) or not isinstance(stated, Sequence):
        return None
    if not isinstance(loss, float):
        return None
    stderr = recorded.get("context_stderr")
    excess = np.array(stated, dtype=float)
    return ContextProfile(
        tuple(bins),
        excess,
        np.array(stderr) if isinstance(stderr, Sequence) else np.full_like(excess, np.nan),
        loss,
    )


def average_profiles(profiles: Sequence[ContextProfile]) -> ContextProfile:
    """Return the mean of the profiles of several runs, all of the same bins.

    The runs read the same windows, so their errors are taken to be fully correlated: the mean has
    the mean standard error.
    """
    return ContextProfile(
        profiles[0].bins,
        np.mean([profile.excess for profile in profiles], axis=0),
        np.mean([profile.stderr for profile in profiles], axis=0),
        float(np.mean([profile.loss for profile in profiles])),
    )
