"""Architectures of a study, ranked and compared on the same held-out text."""

import math
from collections.abc import Mapping, Sequence
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
from reports.stats.planned_looks import limit_runs, take_look
from reports.stats.verdicts import Judgement, Verdict, judge
from rnn.config import NetworkConfig
from studies.attributes import SOURCE_TRIALS, LookRecord
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
        verdict: of a replicated architecture, what its runs show.
        bound: upper confidence bound of its difference to the best architecture, whichever that is;
            infinite without one.
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
    verdict: Verdict | None = None
    bound: float = math.inf

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
        entries: every architecture with a complete run. With planned looks the order is that of the
            differences to the best over common runs, because the numbers of runs differ.
        judgement: verdicts on replicated architectures; None for single runs, and before the first
            planned look.
        smallest: of replicated architectures, the smallest that is as good as the best; None if
            none that is smaller than the best is shown to be.
        look: planned look that the verdicts are of; None without planned looks, or before the
            first.
    """

    entries: list[LeaderboardEntry]
    judgement: Judgement | None = None
    smallest: LeaderboardEntry | None = None
    look: LookRecord | None = None

    @property
    def best(self) -> LeaderboardEntry:
        """The best architecture; of replicates the best on average, not the luckiest run."""
        return self.entries[0]

    @property
    def comparison(self) -> Comparison | None:
        """Pairwise comparison of replicated architectures; None for single runs."""
        return self.judgement.comparison if self.judgement else None

    @property
    def has_verdicts(self) -> bool:
        """Whether there are enough runs for verdicts."""
        return self.comparison is not None and self.comparison.generalizes_over_runs

    @property
    def leaderboard(self) -> list[LeaderboardEntry]:
        """The best architectures, at most :data:`LEADERBOARD_SIZE`."""
        return self.entries[:LEADERBOARD_SIZE]

    @property
    def compares_single_runs(self) -> bool:
        """Whether single runs are compared, each with the best."""
        return self.judgement is None and any(entry.gap for entry in self.entries)


def summarize_study(results: Results) -> StudySummary:
    """Rank and compare the architectures of a study."""
    entries = rank_architectures(results)
    if not results.has_replicates:
        gaps = _compare_with_best(results, entries)
        return StudySummary([replace(e, gap=gaps.get(e.label)) for e in entries])
    losses = list_losses(results)
    assert results.config.refinement is not None
    if results.config.refinement.looks:
        return _summarize_looks(results, entries, losses)
    ranked = {entry.label: losses[entry.label] for entry in entries}
    judgement = judge(compare_pairwise(ranked), results.config.refinement.margin)
    best = judgement.comparison.best
    entries = [
        replace(entry, gap=judgement.comparison.between(entry.label, best)) for entry in entries
    ]
    return _add_verdicts(entries, judgement, None)


def _summarize_looks(
    results: Results, entries: Sequence[LeaderboardEntry], losses: Mapping[str, LossesByRun]
) -> StudySummary:
    """Rank and compare replicates by the latest planned look whose runs are all finished."""
    counts, looks = results.counts, results.looks
    is_due = counts.finished == counts.planned and not (looks and not looks[-1].continued)
    if not (looks or is_due):
        return StudySummary(list(entries))
    # Without new runs, the latest look is repeated: runs after it are left out.
    judgement, look = look_at_results(results, looks if is_due else looks[:-1], losses)
    if not is_due:  # what was stored is final
        look = looks[-1]
        numbers = _list_first_trials(results)
        stored = {name: Verdict(look.verdicts[numbers[name]]) for name in judgement.verdicts}
        judgement = replace(judgement, verdicts=stored)
    by_label = {entry.label: entry for entry in entries}
    best, limited = judgement.comparison.best, limit_runs(losses, look.runs)
    gaps = {name: compute_difference(runs, limited[best]) for name, runs in limited.items()}
    order = sorted(gaps, key=lambda name: (name != best, gaps[name].mean, by_label[name].number))
    ranked = [replace(by_label[name], gap=None if name == best else gaps[name]) for name in order]
    ranked += [entry for entry in entries if entry.label not in gaps]
    return _add_verdicts(ranked, judgement, look)


def _list_first_trials(results: Results) -> dict[str, int]:
    """Return the number of the first trial of each architecture."""
    firsts = results.table.reset_index().groupby("architecture")["number"].min()
    return {str(name): int(number) for name, number in firsts.items()}


def look_at_results(
    results: Results, earlier: Sequence[LookRecord], losses: Mapping[str, LossesByRun] | None = None
) -> tuple[Judgement, LookRecord]:
    """Take the planned look of a study after some earlier ones.

    Args:
        results: results of a study of replicates with planned looks.
        earlier: results of the earlier looks.
        losses: losses of its runs; None to read them from the results.
    """
    refinement = results.config.refinement
    assert refinement is not None
    numbers = _list_first_trials(results)
    losses = list_losses(results) if losses is None else losses
    return take_look(losses, numbers, refinement.looks, refinement.margin, earlier)


def _add_verdicts(
    entries: Sequence[LeaderboardEntry], judgement: Judgement, look: LookRecord | None
) -> StudySummary:
    """Add the verdict of each architecture, and find the smallest that is as good as the best."""
    entries = [
        replace(
            entry,
            verdict=judgement.verdicts.get(entry.label),
            bound=judgement.bounds.get(entry.label, math.inf),
        )
        for entry in entries
    ]
    sizes = {entry.label: entry.parameter_count for entry in entries}
    label = judgement.find_smallest_as_good(sizes)
    smallest = next((entry for entry in entries if entry.label == label), None)
    return StudySummary(entries, judgement, smallest, look)


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


def list_losses(results: Results) -> dict[str, LossesByRun]:
    """Return the losses of each architecture: by window, or the metric of each run."""
    return _losses_by_window(results) or _losses_by_metric(results)


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
