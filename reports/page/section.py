"""What the page shows of one study."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from reports.analysis.audited_effects import AuditedEffects
from reports.analysis.hypothesis_tests import HypothesisTest
from reports.analysis.leaderboard import StudySummary
from reports.analysis.nuisance import NuisanceSummary
from reports.analysis.pareto_front import CostSummary
from reports.analysis.pruning_audit import PruningAudit, PruningSummary
from reports.analysis.ranking import LeaderboardEntry
from reports.analysis.refinement_effects import VariantEffect
from reports.charts.chart import Chart
from reports.charts.filtered_effects import EffectSubset, SubsetFilter
from reports.charts.importances import Importances
from reports.charts.outcome_plots import OutcomeSubset
from reports.data.results import MAX_DRAWN, Results
from reports.findings import StudyFindings
from reports.formatting import effects_title
from reports.page.task import RECURRENT, FloorRow, list_floors
from reports.stats.additive_model import AdditiveModel
from reports.stats.conditional_effects import ConditionalEffect


@dataclass(frozen=True, kw_only=True)
class Section:
    """Part of the page about one study.

    Attributes:
        results: results of the study.
        findings: what the study shows.
        is_complete: whether every combination of the grid has a value.
        filters: filters for the effects.
        hypotheses: the hypotheses that the study stores, and their tests.
        additive: additive model of trials that matched pairs do not compare; None if they do.
        trend_charts: charts of its trends, the significant ones first.
        levels_chart: chart of its effects.
        effects: effects within each combination of filters; the whole grid comes first.
        conditional: effects over the whole grid within each value of the other parameters.
        conditional_chart: chart of those that differ between the values; None without any.
        outcomes: outcomes of the pairs below and above the threshold within each combination;
            empty without a threshold.
        nuisance: summary of the nuisance parameters; None without them.
        pruning: summary of pruning; None if it was not enabled.
        audit: what the audited trials measure; None without them.
        audited_effects: effects of a pruned study, which replace all others; None without pruned or
            paused trials.
        early_effects: effects at the last step that all trials of a pruned study have reached.
        interactions: chart of the two-way interactions.
        curves: chart of the training curves.
        summary: ranking and comparison of the architectures.
        replicates_chart: chart of the runs of each replicated architecture.
        pairwise_chart: chart of their pairwise comparison.
        context_chart: chart of the loss by the length of the context; None without such losses.
        detectable_gap: gap that their comparison finds with a probability of 80%; None without one.
        importances: parameter importances: over all trials, among those that have parameters of
            their own, and within full-factorial blocks.
        has_blocks: whether some of them are those of full-factorial blocks.
        optuna_charts: Optuna's other charts.
        slopes: chart of a refinement's architectures in the source and in each variant.
        variants: effect of each variant of a refinement.
        timeline: chart of the trials by worker and time.
        costs: computing time by the parameters that determine it; None if it is not recorded.
        costs_and_losses: Pareto fronts of loss and cost; None without held-out losses.
        cost_charts: chart of each front.
    """

    results: Results
    findings: StudyFindings
    is_complete: bool
    filters: list[SubsetFilter] = field(default_factory=list)
    hypotheses: list[HypothesisTest] = field(default_factory=list)
    effects: list[EffectSubset]
    conditional: list[ConditionalEffect]
    conditional_chart: Chart | None
    outcomes: list[OutcomeSubset] = field(default_factory=list)
    nuisance: NuisanceSummary | None = None
    pruning: PruningSummary | None = None
    audit: PruningAudit | None = None
    audited_effects: AuditedEffects | None = None
    early_effects: EffectSubset | None = None
    additive: AdditiveModel | None = None
    trend_charts: list[Chart] = field(default_factory=list)
    levels_chart: Chart | None = None
    interactions: Chart | None
    curves: Chart | None
    summary: StudySummary
    replicates_chart: Chart | None
    pairwise_chart: Chart | None = None
    context_chart: Chart | None = None
    detectable_gap: float | None = None
    importances: list[Importances]
    has_blocks: bool
    optuna_charts: list[Chart]
    slopes: Chart | None = None
    variants: list[VariantEffect] = field(default_factory=list)
    timeline: Chart | None = None
    costs: pd.DataFrame | None = None
    costs_and_losses: CostSummary | None = None
    cost_charts: list[Chart] = field(default_factory=list)

    @property
    def effects_title(self) -> str:
        """Heading of the main effects."""
        return effects_title(self.results.is_gated)

    @property
    def shows_effects(self) -> bool:
        """Whether there are effects, or a reason why they are not what they seem."""
        return bool(self.effects[0].effects or self.audited_effects or self.nuisance)

    @property
    def has_networks(self) -> bool:
        """Whether trials trained networks, of which the source code is known."""
        return self.summary.best.architecture is not None

    @property
    def leaderboard(self) -> list[LeaderboardEntry]:
        """Best architectures; of replicated studies all of them."""
        summary = self.summary
        return summary.entries if self.results.has_replicates else summary.leaderboard

    @property
    def listed_trials(self) -> list[dict[Any, Any]]:
        """Rows of the trials that the page lists, the best first."""
        rows: list[dict[Any, Any]] = (
            self.results.table.head(MAX_DRAWN).reset_index().to_dict("records")
        )
        return rows

    @property
    def has_recall(self) -> bool:
        """Whether the corpus is ``recall:D``, and trials recorded their accuracy."""
        rows = self.results.complete
        return "recall_accuracy" in rows and bool(rows["recall_accuracy"].notna().any())

    @property
    def floors(self) -> list[FloorRow]:
        """The best network of a task other than text, and what needs no memory; may be empty."""
        return list_floors(self.results.floors, self.summary.best)

    @property
    def least_floor(self) -> FloorRow | None:
        """The floor of the least loss among those without memory; None if none are stored."""
        floors = [row for row in self.floors[1:] if row.name != RECURRENT]
        return min(floors, key=lambda row: row.loss, default=None)

    @property
    def slice_columns(self) -> dict[str, list[int]]:
        """Values of each slice by which the losses of the best networks are shown."""
        columns: dict[str, set[int]] = {}
        for entry in self.summary.leaderboard:
            for name, values in entry.slices.items():
                columns.setdefault(name, set()).update(values)
        return {name: sorted(values) for name, values in columns.items()}

    @property
    def longest_context(self) -> int:
        """Largest number of tokens of context of which losses were recorded."""
        return max(entry.context.bins[-1] for entry in self.summary.entries if entry.context)

    @property
    def samples(self) -> list[LeaderboardEntry]:
        """Best architectures that generated a sample."""
        return [entry for entry in self.summary.leaderboard if entry.sample]

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Headings of the section: the end of the element's id, and the text."""
        nuisance = self.nuisance
        headings = {
            "summary": ("Summary", True),
            "effects": (self.effects_title, self.shows_effects),
            "conditional": ("What the effects depend on", self.conditional),
            "additive": ("Additive model", self.additive),
            "nuisance": (f"Best {nuisance.names}" if nuisance else "", nuisance),
            "hypotheses": ("Hypotheses", self.hypotheses),
            "outcomes": ("Rescued and ruined", self.outcomes),
            "curves": (self.curves.title if self.curves else "", self.curves),
            "leaderboard": ("Leaderboard", True),
            "task": ("Task", self.results.config.task_record),
            "cost": ("Equal cost", self.costs_and_losses),
            "memory": ("Memory", self.context_chart),
            "code": ("Source code of the best", self.has_networks),
            "samples": ("Samples", self.samples),
            "importances": ("Importances", True),
            "comparison": ("Comparison", self.slopes or self.pairwise_chart),
            "accounting": ("Accounting", True),
        }
        return [(name, title) for name, (title, is_shown) in headings.items() if is_shown]
