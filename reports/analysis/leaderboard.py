"""Architectures of a study: ranked by the mean of their runs, compared on the same text."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, mode
from typing import Any, Literal

import numpy as np
import pandas as pd

from reports.analysis.solved import count_by_architecture
from reports.results import Results
from reports.stats import Floats, Integers
from reports.stats.estimate import CONFIDENCE, mean_half_width
from reports.stats.replicates import (
    Comparison,
    Difference,
    Judgement,
    LossesByRun,
    Verdict,
    compare_pairwise,
    compare_single_runs,
    judge,
)
from reports.stats.run_means import RankedArchitecture, Run, average_runs, rank_runs
from reports.stats.shares import SolvedRuns, compare_architectures, count_needed_runs
from reports.trial_table import (
    ContextProfile,
    average_profiles,
    decode_architecture,
    format_settings,
    list_conditions,
    list_params,
    metric_column,
    read_profile,
)
from rnn.config import NetworkConfig
from studies.attributes import SOURCE_TRIALS
from studies.config import training_settings
from studies.records import of_task
from studies.space import BPTT_STEPS, REPLICATE

Center = Callable[[Sequence[float]], float]
"""Mean, or median of runs that are solved or not."""

LEADERBOARD_SIZE = 10
"""Number of architectures on the report's leaderboard, each with its code."""


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
        loss: mean of the losses, adjusted for the replicates that the architecture has; of several
            runs that are solved or not, the median.
        solved: how many of all its runs are solved; None if the task does not say when.
        value: mean objective value, adjusted.
        validation_loss: mean loss on the validation split, adjusted: of text in bits per byte.
        validation_stderr: standard error of that over the evaluation windows; NaN for a mean.
        source_trials: numbers of the trials that it was derived from.
        sample: generated text; None if there is none.
        sample_trial: number of the trial that generated the text.
        best_values: values of the nuisance parameters at which it is the best, or that a derived
            study carries on.
        context: loss by the length of the context, the mean over the runs; None if a run lacks it.
        metrics: mean of each metric of a task other than text, on the split of the metric.
        validation_metrics: the same on the validation split.
        solved_at: median number of updates after which runs had solved the task; infinite if most
            have not.
        lengths: mean validation loss and metrics at each further length of such a task.
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
    loss: float
    solved: SolvedRuns | None
    value: float
    validation_loss: float
    validation_stderr: float
    parameter_count: float
    trained_count: float
    seconds: float
    source_trials: list[int]
    sample: str | None
    sample_trial: int | None
    best_values: dict[str, Any]
    context: ContextProfile | None
    metrics: dict[str, float]
    validation_metrics: dict[str, float]
    solved_at: float
    lengths: dict[int, dict[str, float]]
    slices: dict[str, dict[int, dict[str, float]]]
    least_loss: float = -math.inf
    gap: Difference | None = None
    verdict: Verdict | None = None
    bound: float = math.inf

    @property
    def runs(self) -> int:
        """Number of complete runs."""
        return len(self.losses)

    @property
    def std(self) -> float:
        """Standard deviation of the losses; NaN for a single run."""
        return float(np.std(self.losses, ddof=1)) if self.runs > 1 else math.nan

    @property
    def low(self) -> float:
        """Lower end of Student's 95% interval of the mean over the runs; NaN for a single run.

        The least loss of runs that are solved or not.
        """
        if self.solved is not None:
            return min(self.losses)
        low = self.loss - mean_half_width(self.losses)
        return low if math.isnan(low) else max(low, self.least_loss)

    @property
    def high(self) -> float:
        """Upper end of the interval; the largest loss."""
        if self.solved is not None:
            return max(self.losses)
        return self.loss + mean_half_width(self.losses)

    @property
    def is_adjusted(self) -> bool:
        """Whether the mean is another than that of its runs, because some are missing."""
        is_mean = math.isclose(self.loss, fmean(self.losses), rel_tol=1e-9)
        return self.solved is None and not is_mean

    @property
    def full_label(self) -> str:
        """The label, with the best values of the nuisance parameters, rounded."""
        return self.label + format_settings(self.best_values, self.best_values, True)


@dataclass(frozen=True)
class StudySummary:
    """Architectures of a study, the best first.

    Attributes:
        entries: every architecture with a complete run.
        judgement: verdicts on replicated architectures; None for single runs.
        smallest: of replicated architectures, the smallest that is as good as the best; None if
            none that is smaller than the best is shown to be.
        worse: of several runs that are solved or not, the names of the architectures of which
            significantly fewer are than of another one; None for other runs.
    """

    entries: list[LeaderboardEntry]
    judgement: Judgement | None = None
    smallest: LeaderboardEntry | None = None
    worse: frozenset[str] | None = None

    @property
    def solved_runs(self) -> dict[str, SolvedRuns]:
        """How many runs of each architecture are solved, by its name; none if that is not known."""
        return {entry.label: entry.solved for entry in self.entries if entry.solved is not None}

    @property
    def comparisons(self) -> int:
        """Number of pairs of architectures."""
        return math.comb(len(self.entries), 2)

    @property
    def needed_runs(self) -> int:
        """Least number of runs of each architecture with which two can differ significantly."""
        return count_needed_runs(max(1, self.comparisons))

    @property
    def can_differ(self) -> bool:
        """Whether there are as many runs as are needed."""
        runs = max((found.runs for found in self.solved_runs.values()), default=0)
        return runs >= self.needed_runs

    def name_verdict(self, entry: LeaderboardEntry) -> str:
        """Return the verdict on an architecture, for a reader; "" without one."""
        if self.worse is not None:
            return "fewer solved" if entry.label in self.worse else ""
        return "best mean" if entry is self.best else str(entry.verdict or "")

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
    def compares_single_runs(self) -> bool:
        """Whether single runs are compared, each with the best."""
        return self.judgement is None and any(entry.gap for entry in self.entries)


def _rank(results: Results) -> list[RankedArchitecture]:
    """Rank the architectures of a study, by their labels, as :mod:`studies.best` defines."""
    rows = results.judge(results.complete)
    metric = results.metric
    replicates = rows[REPLICATE].astype(int) if REPLICATE in rows else pd.Series(0, rows.index)
    is_solved: list[bool | None] = [None] * len(rows)
    if results.outcomes is not None and results.has_replicates:
        is_solved = [outcome == 1 for outcome in results.outcomes[rows.index]]
    runs = zip(
        rows["architecture"].tolist(),
        rows.index.tolist(),
        replicates.tolist(),
        metric.to_loss(rows["value"]).tolist(),
        metric.to_loss(rows[metric.column]).tolist(),
        is_solved,
        strict=True,
    )
    return rank_runs(Run(*run) for run in runs)


def rank_architectures(results: Results) -> list[LeaderboardEntry]:
    """Rank the architectures of a study as :mod:`studies.best` defines.

    Where there are nuisance parameters, each architecture has one run: the best one.
    """
    ranked = _rank(results)
    metric = results.metric
    numbers = [run.number for architecture in ranked for run in architecture.runs]
    rows = results.complete.loc[numbers]
    validation = results.measure.held_out_column("validation")
    columns = average_columns(rows, ["value", validation])
    if results.outcomes is not None:
        columns = rows.groupby("architecture")[["value", validation]].median()
    means: Any = columns.to_dict("index")
    records = {row["number"]: row for row in rows.reset_index().to_dict("records")}
    solved = count_by_architecture(results)
    entries = []
    for architecture in ranked:
        label = str(architecture.architecture)
        runs = [records[run.number] for run in architecture.runs]
        loss = {metric.column: metric.to_loss(architecture.loss)}
        entry = _make_entry(results, label, runs, means[label] | loss)
        entries.append(replace(entry, solved=solved.get(label)))
    return entries


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
    config = results.config
    column = results.metric.column
    best = runs[0]
    losses = [float(run[column]) for run in runs]
    samples = [run for run in runs if isinstance(run.get("sample"), str)]
    profiles = [profile for run in runs if (profile := read_profile(run))]
    solved_at = [run.get("solved_at", math.nan) for run in runs]

    center = fmean if results.outcomes is None else median

    def average(name: str) -> float:
        return _average_known((run.get(name, math.nan) for run in runs), center)

    architecture = None
    reach = 1
    if results.cells:
        architecture = decode_architecture(best, config)
        settings = training_settings(list_params(best, [BPTT_STEPS]), config)
        reach, _ = settings.gradient_window
    return LeaderboardEntry(
        label=label,
        least_loss=results.metric.least,
        architecture=architecture,
        bptt_steps=reach,
        number=int(best["number"]),
        losses=losses,
        loss=means[column],
        solved=None,
        value=means["value"],
        validation_loss=means[results.measure.held_out_column("validation")],
        validation_stderr=float(best["validation_stderr"]) if len(runs) == 1 else math.nan,
        parameter_count=average("parameter_count"),
        trained_count=average("trained_parameter_count"),
        seconds=average("seconds"),
        source_trials=best[SOURCE_TRIALS] or [],
        sample=samples[0]["sample"] if samples else None,
        sample_trial=int(samples[0]["number"]) if samples else None,
        best_values=list_params(best, [*results.nuisance, *results.carried]),
        context=average_profiles(profiles) if len(profiles) == len(runs) else None,
        metrics={name: average(column) for name, column in results.metric_columns.items()},
        validation_metrics={
            name: average(metric_column("validation", name)) for name in results.metric_columns
        },
        solved_at=float(np.median(np.nan_to_num(solved_at, nan=math.inf))),
        lengths=_average([run.get("lengths") for run in runs], center),
        slices=_average([run.get("slices") for run in runs], center),
    )


def _average(recorded: Sequence[Any], center: Center) -> Any:
    """Return the centers of numbers in equal, nested dicts; {} if a run has recorded none."""
    if all(isinstance(value, float) for value in recorded):
        return _average_known(recorded, center)
    if not all(isinstance(value, dict) for value in recorded):
        return {}
    common = [key for key in recorded[0] if all(key in values for values in recorded)]
    return {key: _average([values[key] for values in recorded], center) for key in common}


def _average_known(values: Iterable[float], center: Center) -> float:
    known = [float(value) for value in values if not math.isnan(value)]
    return center(known) if known else math.nan


def summarize_study(results: Results) -> StudySummary:
    """Rank and compare the architectures of a study."""
    refinement = results.config.refinement
    entries = rank_architectures(results)
    if not results.has_replicates:
        gaps = _compare_with_best(results, entries)
        return StudySummary([replace(entry, gap=gaps.get(entry.label)) for entry in entries])
    if results.outcomes is not None:
        summary = StudySummary(entries, worse=frozenset())
        return replace(summary, worse=_find_worse(entries)) if summary.can_differ else summary
    if refinement is None:  # without a margin below which a difference makes none
        return StudySummary(entries)
    losses = list_losses(results)
    losses = {entry.label: losses[entry.label] for entry in entries}
    judgement = judge(compare_pairwise(losses), of_task(refinement.margin))
    without_run = results.table["architecture"].nunique() - len(losses)
    return _add_verdicts(entries, replace(judgement, without_run=without_run))


def _find_worse(entries: Sequence[LeaderboardEntry]) -> frozenset[str]:
    """Return the names of the architectures that solve significantly fewer runs than another."""
    solved = {entry.label: entry.solved for entry in entries if entry.solved is not None}
    worse = set()
    for (first, second), p in compare_architectures(solved).items():
        if p < 1 - CONFIDENCE:
            shares = [solved[name].solved / solved[name].runs for name in (first, second)]
            worse.add(first if shares[0] < shares[1] else second)
    return frozenset(worse)


def _add_verdicts(entries: Sequence[LeaderboardEntry], judgement: Judgement) -> StudySummary:
    """Add the verdict of each architecture, and find the smallest that is as good as the best."""
    comparison = judgement.comparison
    entries = [
        replace(
            entry,
            gap=comparison.between(entry.label, comparison.best),
            verdict=judgement.verdicts[entry.label],
            bound=judgement.bounds[entry.label],
        )
        for entry in entries
    ]
    smaller = [
        entry
        for entry in entries
        if entry.verdict is Verdict.AS_GOOD and entry.parameter_count < entries[0].parameter_count
    ]
    smallest = min(smaller, key=lambda entry: entry.parameter_count, default=None)
    return StudySummary(entries, judgement, smallest)


def _compare_with_best(
    results: Results, entries: Sequence[LeaderboardEntry]
) -> dict[str, Difference]:
    """Compare single runs with the best one, as far as they share its evaluation windows."""
    windows = {entry.label: results.windows.get(entry.number, []) for entry in entries}
    best, *others = entries
    count = len(windows[best.label])
    compared = [other.label for other in others if count and len(windows[other.label]) == count]
    gaps = compare_single_runs((windows[label] for label in compared), windows[best.label])
    return dict(zip(compared, gaps, strict=True))


def list_losses(results: Results) -> dict[str, LossesByRun]:
    """Return the losses of each architecture by run, of which the least is the best.

    They are those by window if all runs have the same windows, and one number, the metric, if not.
    """
    rows = results.judge(results.complete)
    losses = [results.windows.get(int(number), []) for number in rows.index]
    if len(set(map(len, losses))) > 1 or not any(losses):
        losses = [[value] for value in results.metric.to_loss(rows[results.metric.column])]
    replicates = rows[REPLICATE] if REPLICATE in rows else np.zeros(len(rows))
    grouped: dict[str, dict[int, Sequence[float]]] = {}
    for name, replicate, run in zip(rows["architecture"], replicates, losses, strict=True):
        grouped.setdefault(name, {})[int(replicate)] = run
    return dict(grouped)


# ------------------------------------------------------------------ costs

Cost = Literal["parameters", "seconds"]
"""Cost of an architecture: its weights and biases, or the computing time of a run in seconds."""

COSTS: tuple[Cost, ...] = ("parameters", "seconds")


def find_front(costs: Floats, losses: Floats) -> Integers:
    """Find the indices of what nothing of the same cost or less beats, the cheapest first.

    What has no cost or no loss is left out; of equal costs and losses the first is taken.
    """
    order = np.lexsort((losses, costs))
    order = order[np.isfinite(costs[order]) & np.isfinite(losses[order])]
    least = np.minimum.accumulate(losses[order])
    least_before = np.concatenate([[np.inf], least])[:-1]
    front: Integers = order[losses[order] < least_before]
    return front


def _choose_count(entry: LeaderboardEntry) -> float:
    """Return the number of trained parameters, or of all where that is not recorded."""
    return entry.parameter_count if math.isnan(entry.trained_count) else entry.trained_count


def list_costs(results: Results, entries: Sequence[LeaderboardEntry]) -> pd.DataFrame:
    """List the architectures with a held-out loss, and their costs.

    Times compare between runs under the same conditions, the most common ones: those of others are
    left out.

    Args:
        results: results of the study.
        entries: its architectures, each at its best values of the nuisance parameters.

    Returns:
        One row per architecture, the best first: ``architecture``, its ``trial``, ``parameters``
        (those that a gradient reaches, or all where that is not recorded),
        ``seconds`` of a run (NaN where it ran under other conditions) and ``loss``, the value of
        trials that are no networks.
    """
    conditions = list_conditions(results.judge(results.complete), results.config.has_networks)
    common = mode([text for text in conditions.values() if text] or [""])
    rows = [
        {
            "architecture": entry.label,
            "trial": entry.number,
            "parameters": _choose_count(entry),
            "seconds": entry.seconds if common and conditions[entry.label] == common else np.nan,
            "loss": entry.validation_loss if results.metric.is_value else entry.loss,
        }
        for entry in entries
    ]
    columns = ["architecture", "trial", "parameters", "seconds", "loss"]
    table = pd.DataFrame(rows, columns=columns)
    known: pd.DataFrame = table[np.isfinite(table["loss"].to_numpy(dtype=float))]
    return known
