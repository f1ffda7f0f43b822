"""Architectures of a study, ranked and compared on the same held-out text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from reports.analysis.ranking import LeaderboardEntry, list_first_trials, rank_architectures
from reports.data.results import Results
from reports.stats.pairwise_comparison import (
    Comparison,
    Difference,
    LossesByRun,
    compare_pairwise,
    compute_differences,
    find_difference,
)
from reports.stats.planned_looks import PlannedLook, take_look
from reports.stats.run_means import find_look
from reports.stats.verdicts import Judgement, Verdict, judge
from studies.attributes import LookRecord
from studies.space import REPLICATE

LEADERBOARD_SIZE = 10
"""Number of architectures on the report's leaderboard, each with its code."""


@dataclass(frozen=True)
class StudySummary:
    """Architectures of a study, the best first.

    Attributes:
        entries: every architecture with a complete run. Runs after the planned look that the
            verdicts are of are left out.
        judgement: verdicts on replicated architectures; None for single runs, and before the first
            planned look.
        smallest: of replicated architectures, the smallest that is as good as the best; None if
            none that is smaller than the best is shown to be.
        look: planned look that the verdicts are of; None without planned looks, or before the
            first.
        comparisons: pairwise comparisons of replicated architectures, with planned looks that of
            each look, the latest first; an architecture is in those until its last one.
    """

    entries: list[LeaderboardEntry]
    judgement: Judgement | None = None
    smallest: LeaderboardEntry | None = None
    look: LookRecord | None = None
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def best(self) -> LeaderboardEntry:
        """The best architecture; of replicates the best on average, not the luckiest run."""
        return self.entries[0]

    @property
    def is_best_smallest(self) -> bool:
        """Whether no architecture has fewer parameters than the best."""
        return self.best.parameter_count <= min(entry.parameter_count for entry in self.entries)

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
    def has_adjusted_means(self) -> bool:
        """Whether the architectures have different replicates."""
        return any(entry.is_adjusted for entry in self.entries)

    @property
    def compares_single_runs(self) -> bool:
        """Whether single runs are compared, each with the best."""
        return self.judgement is None and any(entry.gap for entry in self.entries)


def summarize_study(results: Results) -> StudySummary:
    """Rank and compare the architectures of a study."""
    refinement = results.config.refinement
    if refinement is not None and refinement.looks:
        return _summarize_looks(results, refinement.looks)
    entries = rank_architectures(results)
    if not results.has_replicates:
        gaps = _compare_with_best(results, entries)
        return StudySummary([replace(e, gap=gaps.get(e.label)) for e in entries])
    if refinement is None:  # without a margin below which a difference makes none
        return StudySummary(entries)
    losses = list_losses(results)
    losses = {entry.label: losses[entry.label] for entry in entries}
    judgement = judge(compare_pairwise(losses), refinement.margin)
    without_run = results.table["architecture"].nunique() - len(losses)
    return _add_verdicts(entries, [replace(judgement, without_run=without_run)], None)


def _summarize_looks(results: Results, planned: Sequence[int]) -> StudySummary:
    """Rank and compare replicates by the latest planned look whose runs are all finished."""
    entries, looks, losses = rank_architectures(results), results.looks, list_losses(results)
    index = find_look(planned, [look.continued for look in looks], results.is_finished)
    if index is None:
        return StudySummary(entries)
    # Without new runs, the latest look is repeated: runs after it are left out.
    found = [look_at_results(results, looks[:i], losses) for i in range(index + 1)]
    judgements = [judgement for judgement, _ in found]
    _, look = found[-1]
    if index < len(looks):  # what was stored is final
        look = looks[-1]
        numbers = list_first_trials(results)
        stored = {n: Verdict(look.verdicts[numbers[n]]) for n in judgements[-1].verdicts}
        judgements[-1] = replace(judgements[-1], verdicts=stored)
    return _add_verdicts(entries, judgements, look)


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
    numbers = list_first_trials(results)
    losses = list_losses(results) if losses is None else losses
    before = [PlannedLook(**each.model_dump()) for each in earlier]
    judgement, look = take_look(losses, numbers, refinement.looks, refinement.margin, before)
    return judgement, LookRecord(**vars(look))


def _add_verdicts(
    entries: Sequence[LeaderboardEntry], judgements: Sequence[Judgement], look: LookRecord | None
) -> StudySummary:
    """Add the verdict of each architecture, and find the smallest that is as good as the best.

    Args:
        entries: the architectures, by their mean.
        judgements: of all looks; the latest one has the verdicts. Bounds and gaps of an
            architecture that stopped earlier are those of its last look.
        look: the latest look; None without planned looks.
    """
    judgement, best = judgements[-1], judgements[-1].comparison.best
    comparisons = [each.comparison for each in reversed(judgements)]
    bounds = {name: bound for each in judgements for name, bound in each.bounds.items()}
    entries = [
        replace(
            entry,
            gap=find_difference(comparisons, entry.label, best),
            verdict=judgement.verdicts.get(entry.label),
            bound=bounds.get(entry.label, math.inf),
        )
        for entry in sorted(entries, key=lambda entry: entry.label != best)
    ]
    sizes = {entry.label: entry.parameter_count for entry in entries}
    label = judgement.find_smallest_as_good(sizes)
    smallest = next((entry for entry in entries if entry.label == label), None)
    return StudySummary(entries, judgement, smallest, look, comparisons)


def _compare_with_best(
    results: Results, entries: Sequence[LeaderboardEntry]
) -> dict[str, Difference]:
    """Compare single runs with the best one, as far as they share its evaluation windows."""
    windows = {entry.label: results.windows.get(entry.number, []) for entry in entries}
    best, *others = entries
    count = len(windows[best.label])
    compared = [other.label for other in others if count and len(windows[other.label]) == count]
    gaps = compute_differences(
        ({0: windows[label]} for label in compared), {0: windows[best.label]}
    )
    return dict(zip(compared, gaps, strict=True))


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
