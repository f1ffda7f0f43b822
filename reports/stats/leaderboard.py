"""Architectures of a study, ranked and compared on the same held-out text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from reports.data.context import ContextProfile, average_profiles, read_profile
from reports.data.results import Results
from reports.data.trial_table import decode_architecture, format_settings, list_params
from reports.stats.paired_difference import CONFIDENCE
from reports.stats.pairwise_comparison import (
    Comparison,
    Difference,
    LossesByRun,
    compare_pairwise,
    compute_difference,
)
from rnn.config import NetworkConfig
from studies.attributes import SOURCE_TRIALS
from studies.config import StudyConfig
from studies.space import BPTT_STEPS, REPLICATE

LEADERBOARD_SIZE = 10
"""Number of architectures on the report's leaderboard, each with its code."""


@dataclass(frozen=True)
class LeaderboardEntry:
    """An architecture with the results of its complete runs.

    Attributes:
        label: name of the architecture, with the training settings in which the study varies.
        architecture: its configuration.
        bptt_steps: number of time steps that a gradient goes back.
        number: number of its trial; with several runs, of the run with the least value, which is
            independent of the test text.
        losses: metric of each run, :attr:`Results.metric`.
        mean: mean of the losses.
        std: standard deviation of the losses; NaN for a single run.
        low: lower end of Student's 95% interval of the mean; NaN for a single run.
        high: upper end of the interval.
        value: mean objective value, in nats per token.
        validation_bits_per_byte: mean bits per byte on the validation split.
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
        gap: difference to the best architecture, in bits per byte or by the metric; None for the
            best, and without losses on the same evaluation windows.
    """

    label: str
    architecture: NetworkConfig
    bptt_steps: int
    number: int
    losses: list[float]
    mean: float
    std: float
    low: float
    high: float
    value: float
    validation_bits_per_byte: float
    validation_stderr: float
    parameter_count: float
    seconds: float
    source_trials: list[int]
    sample: str | None
    sample_trial: int | None
    best_values: dict[str, Any]
    context: ContextProfile | None
    recall_accuracy: float
    gap: Difference | None = None

    @property
    def runs(self) -> int:
        """Number of complete runs."""
        return len(self.losses)

    @property
    def full_label(self) -> str:
        """The label, with the best values of the nuisance parameters."""
        return self.label + format_settings(self.best_values, self.best_values)


@dataclass(frozen=True)
class StudySummary:
    """Architectures of a study, the best first.

    Attributes:
        entries: every architecture with a complete run.
        comparison: pairwise comparison of replicated architectures; None for single runs.
        smallest: of replicated architectures, the smallest that is not significantly worse than the
            best.
    """

    entries: list[LeaderboardEntry]
    comparison: Comparison | None
    smallest: LeaderboardEntry | None

    @property
    def best(self) -> LeaderboardEntry:
        """The best architecture; of replicates the best on average, not the luckiest run."""
        return self.entries[0]

    @property
    def leaderboard(self) -> list[LeaderboardEntry]:
        """The best architectures, at most :data:`LEADERBOARD_SIZE`."""
        return self.entries[:LEADERBOARD_SIZE]

    @property
    def compares_single_runs(self) -> bool:
        """Whether single runs are compared, each with the best."""
        return self.comparison is None and any(entry.gap for entry in self.entries)


def summarize_study(results: Results) -> StudySummary:
    """Rank and compare the architectures of a study."""
    entries = rank_architectures(results)
    if not results.has_replicates:
        gaps = _compare_with_best(results, entries)
        return StudySummary([replace(e, gap=gaps.get(e.label)) for e in entries], None, None)
    losses = _losses_by_window(results) or _losses_by_metric(results)
    comparison = compare_pairwise({entry.label: losses[entry.label] for entry in entries})
    smallest = None
    if comparison.generalizes_over_runs:
        sizes = {entry.label: entry.parameter_count for entry in entries}
        label = comparison.find_smallest_not_worse(sizes)
        smallest = next(entry for entry in entries if entry.label == label)
    entries = [
        replace(entry, gap=comparison.between(entry.label, comparison.best)) for entry in entries
    ]
    return StudySummary(entries, comparison, smallest)


def rank_architectures(results: Results) -> list[LeaderboardEntry]:
    """Rank the architectures of a study by the mean metric of their complete runs.

    Where there are nuisance parameters, each architecture has one run: the best one.
    """
    groups = results.judge(results.complete).groupby("architecture")
    column, names = results.metric.column, [*results.nuisance, *results.carried]
    entries = [
        _make_entry(results.config, column, names, str(label), runs) for label, runs in groups
    ]
    return sorted(entries, key=lambda entry: (entry.mean, entry.number))


def _make_entry(
    config: StudyConfig, column: str, nuisance: Sequence[str], label: str, runs: pd.DataFrame
) -> LeaderboardEntry:
    runs = runs.sort_values("value", kind="stable")
    losses, best = runs[column], runs.iloc[0]
    samples = runs["sample"].dropna()
    profiles = [read_profile(row) for row in runs.to_dict("records")]
    mean, std = float(losses.mean()), float(losses.std())
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, max(1, len(runs) - 1)))
    half_width = quantile * std / math.sqrt(len(runs))
    return LeaderboardEntry(
        label=label,
        architecture=decode_architecture(best, config),
        bptt_steps=int(best[BPTT_STEPS]),
        number=int(runs.index[0]),
        losses=losses.tolist(),
        mean=mean,
        std=std,
        low=mean - half_width,
        high=mean + half_width,
        value=float(runs["value"].mean()),
        validation_bits_per_byte=float(runs["validation_bits_per_byte"].mean()),
        validation_stderr=float(best["validation_stderr"]) if len(runs) == 1 else math.nan,
        parameter_count=float(runs["parameter_count"].mean()),
        seconds=float(runs["seconds"].mean()),
        source_trials=best[SOURCE_TRIALS] or [],
        sample=samples.iloc[0] if len(samples) else None,
        sample_trial=int(samples.index[0]) if len(samples) else None,
        best_values=list_params(best, nuisance),
        context=average_profiles([each for each in profiles if each]) if all(profiles) else None,
        recall_accuracy=float(runs["recall_accuracy"].mean()),
    )


def _compare_with_best(
    results: Results, entries: Sequence[LeaderboardEntry]
) -> dict[str, Difference]:
    """Compare single runs with the best one, as far as they share its evaluation windows."""
    windows = {entry.label: results.windows.get(entry.number, []) for entry in entries}
    best, *others = entries
    count = len(windows[best.label])
    return {
        other.label: compute_difference({0: windows[other.label]}, {0: windows[best.label]})
        for other in others
        if count and len(windows[other.label]) == count
    }


def _losses_by_window(results: Results) -> dict[str, LossesByRun] | None:
    """Return each architecture's losses by window; None unless all runs have the same windows."""
    windows = [results.windows.get(int(number), []) for number in results.complete.index]
    counts = set(map(len, windows))
    return (
        _group_by_architecture(results, windows) if len(counts) == 1 and 0 not in counts else None
    )


def _losses_by_metric(results: Results) -> dict[str, LossesByRun]:
    """Return one number for each run of each architecture."""
    values = results.complete[results.metric.column]
    return _group_by_architecture(results, [[value] for value in values])


def _group_by_architecture(
    results: Results, losses: Sequence[Sequence[float]]
) -> dict[str, LossesByRun]:
    rows = results.complete
    replicates = rows[REPLICATE] if REPLICATE in rows else np.zeros(len(rows))
    grouped: dict[str, dict[int, Sequence[float]]] = {}
    for name, replicate, run in zip(rows["architecture"], replicates, losses, strict=True):
        grouped.setdefault(name, {})[int(replicate)] = run
    return dict(grouped)
