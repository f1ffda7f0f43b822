"""Architectures of a study, ranked by the mean of their runs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from reports.data.results import Results
from reports.data.trial_table import (
    ContextProfile,
    average_profiles,
    decode_architecture,
    format_settings,
    list_params,
    metric_column,
    read_profile,
)
from reports.stats.paired_difference import CONFIDENCE
from reports.stats.pairwise_comparison import Difference
from reports.stats.run_means import RankedArchitecture, Run, average_runs, rank_runs
from reports.stats.verdicts import Verdict
from rnn.config import NetworkConfig
from studies.attributes import SOURCE_TRIALS
from studies.config import training_settings
from studies.space import BPTT_STEPS, REPLICATE


@dataclass(frozen=True)
class LeaderboardEntry:
    """An architecture with the results of its complete runs.

    Attributes:
        label: name of the architecture, with the training settings in which the study varies.
        architecture: its network; None if the study was imported.
        bptt_steps: number of time steps that a gradient goes back.
        number: number of its trial; with several runs, of the run with the least value, which is
            independent of the test text.
        losses: metric of each run, :attr:`Results.metric`.
        mean: mean of the losses, adjusted for the replicates that the architecture has.
        std: standard deviation of the losses; NaN for a single run.
        low: lower end of Student's 95% interval of the mean, by the standard deviation; NaN for a
            single run.
        high: upper end of the interval.
        value: mean objective value, adjusted.
        validation_loss: mean loss on the validation split, adjusted: of text in bits per byte.
        validation_stderr: standard error of that over the evaluation windows; NaN for a mean.
        parameter_count: number of weights and biases.
        seconds: mean computing time of a run.
        source_trials: numbers of the trials that it was derived from.
        sample: generated text; None if there is none.
        sample_trial: number of the trial that generated the text.
        best_values: values of the nuisance parameters at which it is the best, or that a derived
            study carries on.
        context: loss by the length of the context, the mean over the runs; None if a run lacks it.
        recall_accuracy: mean accuracy on the corpus ``recall:D``; NaN on others.
        metrics: mean of each metric of a task other than text, on the split of the metric.
        validation_metrics: the same on the validation split.
        length_losses: mean validation loss at each further length of such a task.
        slices: mean loss and metrics on the targets of each value of each slice of such a task.
        gap: difference to the best architecture, of the held-out loss or by the metric; None for
            the best, and without losses on the same evaluation windows.
        verdict: of a replicated architecture, what its runs show.
        bound: upper confidence bound of its difference to the best architecture, whichever that is;
            infinite without one.
    """

    label: str
    architecture: NetworkConfig | None
    bptt_steps: int
    number: int
    losses: list[float]
    mean: float
    std: float
    low: float
    high: float
    value: float
    validation_loss: float
    validation_stderr: float
    parameter_count: float
    seconds: float
    source_trials: list[int]
    sample: str | None
    sample_trial: int | None
    best_values: dict[str, Any]
    context: ContextProfile | None
    recall_accuracy: float
    metrics: dict[str, float]
    validation_metrics: dict[str, float]
    length_losses: dict[int, float]
    slices: dict[str, dict[int, dict[str, float]]]
    gap: Difference | None = None
    verdict: Verdict | None = None
    bound: float = math.inf

    @property
    def runs(self) -> int:
        """Number of complete runs."""
        return len(self.losses)

    @property
    def is_adjusted(self) -> bool:
        """Whether the mean is another than that of its runs, because some are missing."""
        return not math.isclose(self.mean, fmean(self.losses), rel_tol=1e-9)

    @property
    def full_label(self) -> str:
        """The label, with the best values of the nuisance parameters, rounded."""
        return self.label + format_settings(self.best_values, self.best_values, True)


def _rank(results: Results) -> list[RankedArchitecture]:
    """Rank the architectures of a study, by their labels, as :mod:`studies.best` defines."""
    rows, metric = results.judge(results.complete), results.metric
    replicates = rows[REPLICATE].astype(int) if REPLICATE in rows else pd.Series(0, rows.index)
    values = (metric.scale.to_loss(rows[name]) for name in ("value", metric.column))
    columns = rows["architecture"], rows.index, replicates, *values
    runs = [Run(*row) for row in zip(*(each.tolist() for each in columns), strict=True)]
    architectures = dict(zip(results.table.index, results.table["architecture"], strict=True))
    planned = results.config.refinement.looks if results.config.refinement else []
    continued = [look.continued for look in results.looks]
    return rank_runs(runs, architectures, planned, continued, results.is_finished)


def list_first_trials(results: Results) -> dict[str, int]:
    """Return the number of the first trial of each architecture."""
    firsts = results.table.reset_index().groupby("architecture")["number"].min()
    return {str(name): int(number) for name, number in firsts.items()}


def rank_architectures(results: Results, count: int | None = None) -> list[LeaderboardEntry]:
    """Rank the architectures of a study as :mod:`studies.best` defines.

    Where there are nuisance parameters, each architecture has one run: the best one.

    Args:
        results: results of the study.
        count: number of the best architectures to describe; None for all.
    """
    ranked, metric = _rank(results), results.metric
    rows = results.complete.loc[[run.number for each in ranked for run in each.runs]]
    validation = results.measure.column("validation")
    means = average_columns(rows, ["value", validation]).to_dict("index")
    shown = rows.loc[[run.number for each in ranked[:count] for run in each.runs]]
    records = {row["number"]: row for row in shown.reset_index().to_dict("records")}
    return [
        _make_entry(
            results,
            str(each.architecture),
            [records[run.number] for run in each.runs],
            means[each.architecture] | {metric.column: metric.scale.to_loss(each.mean)},
        )
        for each in ranked[:count]
    ]


def average_columns(rows: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Return adjusted means of some columns of a trial table, one row per architecture."""
    replicates = rows[REPLICATE] if REPLICATE in rows else pd.Series(0, rows.index)
    means = pd.DataFrame(index=rows["architecture"].unique())
    for column in dict.fromkeys(columns):
        known = rows[column].notna()
        losses = rows["architecture"][known], replicates[known], rows[column][known]
        found = average_runs(zip(*losses, strict=True))
        means[column] = pd.Series(found, means.index, dtype=float)
    return means


def _make_entry(
    results: Results, label: str, runs: Sequence[Mapping[Any, Any]], means: Mapping[Any, float]
) -> LeaderboardEntry:
    """Describe an architecture by its runs, that of the best value first, and adjusted means."""
    config, column, best = results.config, results.metric.column, runs[0]
    losses = [float(run[column]) for run in runs]
    samples = [run for run in runs if isinstance(run.get("sample"), str)]
    profiles = [read_profile(run) for run in runs]
    mean, std = means[column], float(np.std(losses, ddof=1)) if len(runs) > 1 else math.nan
    quantile = _quantile(max(1, len(runs) - 1))
    architecture, reach = None, 1
    if results.cells:
        architecture = decode_architecture(best, config)
        settings = training_settings(list_params(best, [BPTT_STEPS]), config)
        reach, _ = settings.gradient_window
    half_width = quantile * std / math.sqrt(len(runs))
    return LeaderboardEntry(
        label=label,
        architecture=architecture,
        bptt_steps=reach,
        number=int(best["number"]),
        losses=losses,
        mean=mean,
        std=std,
        low=mean - half_width,
        high=mean + half_width,
        value=means["value"],
        validation_loss=means[results.measure.column("validation")],
        validation_stderr=float(best["validation_stderr"]) if len(runs) == 1 else math.nan,
        parameter_count=_mean(run["parameter_count"] for run in runs),
        seconds=_mean(run["seconds"] for run in runs),
        source_trials=best[SOURCE_TRIALS] or [],
        sample=samples[0]["sample"] if samples else None,
        sample_trial=int(samples[0]["number"]) if samples else None,
        best_values=list_params(best, [*results.nuisance, *results.carried]),
        context=average_profiles([each for each in profiles if each]) if all(profiles) else None,
        recall_accuracy=_mean(run.get("recall_accuracy", math.nan) for run in runs),
        metrics=_average_metrics(runs, results.metric_columns),
        validation_metrics=_average_metrics(
            runs, {name: metric_column("validation", name) for name in results.metric_columns}
        ),
        length_losses=_average([run.get("length_losses") for run in runs]),
        slices=_average([run.get("slices") for run in runs]),
    )


def _average_metrics(
    runs: Sequence[Mapping[Any, Any]], columns: Mapping[str, str]
) -> dict[str, float]:
    """Return the mean of each metric, of which the column is given."""
    return {
        name: _mean(run.get(column, math.nan) for run in runs) for name, column in columns.items()
    }


def _average(recorded: Sequence[Any]) -> Any:
    """Return the means of numbers in equal, nested dicts; {} if a run has recorded none."""
    if not all(isinstance(each, dict) for each in recorded):
        return _mean(recorded) if all(isinstance(each, float) for each in recorded) else {}
    common = [key for key in recorded[0] if all(key in each for each in recorded)]
    return {key: _average([each[key] for each in recorded]) for key in common}


@cache
def _quantile(degrees: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are known; NaN without any."""
    known = [float(value) for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan
