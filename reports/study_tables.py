"""Tables of a study: effects, hypotheses, architectures, results by length and slice, trials."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from reports.analysis.hypotheses import HypothesisTest
from reports.analysis.leaderboard import LeaderboardEntry, StudySummary
from reports.analysis.pruning import PruningSummary
from reports.analysis.refinement import VariantEffect
from reports.blocks import MARK, TEXT, Column, Row, Table, estimate_column
from reports.findings import StudyFindings, TaskComparison, TaskContrast
from reports.formatting import (
    describe_change,
    format_number,
    format_shares,
    format_solved,
    format_stderr,
    label_change,
    shorten_labels,
)
from reports.results import Results
from reports.stats.conditional_effects import ConditionalEffect, ExcludedLevel, LevelEffect
from reports.stats.differences import PairedDifference
from reports.stats.effects import Effect
from reports.stats.estimate import CONFIDENCE
from reports.study_reader import MAX_DRAWN
from reports.trial_table import is_continuous
from studies.measure import Measure
from studies.messages import format_count, format_param, format_value, is_missing
from studies.records import Direction, of_task

_LAST = "last logged"
"""Below the name of what a training loop has logged besides the study's metric."""

# ------------------------------------------------------------------ effects


def tabulate_effects(findings: StudyFindings, name: str) -> Table[Effect]:
    """Tabulate the main effects, ranked as the answer ranks them."""
    measure = findings.measure
    threshold = findings.threshold_effects
    is_solved = findings.solved is not None
    effects = [ranked.main for ranked in findings.ranked]
    conditions = {
        ranked.main.contrast: format_param(ranked.condition.parameter)
        for ranked in findings.ranked
        if ranked.condition
    }

    def find_reached(effect: Effect) -> str:
        found = threshold.get(effect.contrast)
        if found is None:
            return ""
        return format_shares(found) + (MARK if found.is_significant else "")

    def describe_p(effect: Effect) -> str:
        found = threshold.get(effect.contrast)
        return f"McNemar’s mid-p test, corrected: p = {found.p_adjusted:.2g}" if found else ""

    def count_lower(effect: Effect) -> str:
        ranks = effect.ranks
        if ranks is None:
            return ""
        return f"{ranks.lower} of {ranks.pairs}{MARK if ranks.p < 1 - CONFIDENCE else ''}"

    return Table(
        name,
        effects,
        [
            _change_column(lambda effect: effect),
            Column("solved", format_shares, TEXT, unit="before → after", condition=is_solved),
            estimate_column(
                "difference" if is_solved else "mean difference", lambda effect: effect,
                measure.difference_unit, f"+{measure.difference_spec}",
            ),
            Column("depends on", lambda effect: conditions.get(effect.contrast, ""),
                   condition=conditions),
            Column("rescued", lambda effect: effect.shares.rescued, ",d", condition=is_solved),
            Column("ruined", lambda effect: effect.shares.ruined, ",d", condition=is_solved),
            Column("improved", improved_share, ".0f", unit="%", condition=not is_solved),
            Column("pairs", _count_pairs, TEXT),
            Column("seeds", lambda effect: effect.seeds, "d",
                   condition=any(effect.seeds > 1 for effect in effects)),
            Column("missing", lambda effect: effect.missing_pairs, ",d",
                   condition=any(effect.missing_pairs for effect in effects)),
            Column("not tested", lambda effect: effect.reason,
                   condition=any(effect.reason for effect in effects)),
            Column("lower loss", count_lower, TEXT, unit="pairs of runs", condition=is_solved),
            Column("better than the threshold" if is_solved else "solved", find_reached, TEXT,
                   unit="before → after", condition=threshold, hint=describe_p),
        ],
    )  # fmt: skip


def tabulate_conditional(
    conditional: Sequence[ConditionalEffect], measure: Measure, name: str
) -> Table[tuple[ConditionalEffect, LevelEffect | ExcludedLevel]]:
    """Tabulate the effects within each value of the other parameters, a row for each value.

    At a value at which no pair can show the change, the finding says why.
    """
    spec = measure.difference_spec
    unit = measure.difference_unit

    def describe_finding(found: ConditionalEffect) -> str:
        parts = ["opposite signs"] if found.has_opposite_signs else []
        parts += ["depends on it"] if found.rivals_main else []
        return ", ".join(parts)

    return Table(
        name,
        [
            (found, level)
            for found in conditional
            for level in (*found.levels, *found.excluded)
        ],
        [
            _change_column(lambda row: row[0].main),
            Column("by", lambda row: format_param(row[0].parameter)),
            Column("value", lambda row: format_value(row[1].value), TEXT),
            estimate_column("effect",
                            lambda row: row[1] if isinstance(row[1], LevelEffect) else None,
                            unit, f"+{spec}"),
            Column("pairs", lambda row: row[1].pairs, ",d"),
            Column("range", lambda row: row[0].difference.mean, spec, unit=unit,
                   note=lambda row: MARK if row[0].is_significant else ""),
            Column("finding", lambda row: row[1].obstacle if isinstance(row[1], ExcludedLevel)
                   else describe_finding(row[0])),
        ],
    )  # fmt: skip


def tabulate_hypotheses(findings: StudyFindings, name: str) -> Table[HypothesisTest]:
    """Tabulate the hypotheses of a study with their verdicts."""
    measure = findings.measure

    def describe_verdict(test: HypothesisTest) -> str:
        return ": ".join(filter(None, [test.verdict, test.problem]))

    return Table(
        name,
        findings.hypotheses,
        [
            Column("statement", lambda test: test.hypothesis.statement),
            Column("verdict", describe_verdict, is_strong=True),
            estimate_column("effect", lambda test: test.effect, measure.difference_unit,
                            f"+{measure.difference_spec}", note=lambda test: ""),
            Column("pairs", lambda test: _count_pairs(test.effect) if test.effect else "", TEXT),
            Column("change", lambda test: test.change),
            Column("expected", lambda test: test.hypothesis.expect),
            Column("margin", lambda test: of_task(test.hypothesis.margin), "g"),
            Column("registered", lambda test: test.mark),
        ],
    )  # fmt: skip


def tabulate_variants(findings: StudyFindings, name: str) -> Table[VariantEffect]:
    """Tabulate the variants of a derived study."""
    variants = findings.variants
    measure = findings.results.measure
    has_pairs = any(variant.pairs for variant in variants)
    unit = measure.difference_unit
    spec = f"+{measure.difference_spec}"
    versus = findings.measure
    return Table(
        name,
        variants,
        [
            Column("variant", lambda variant: variant.variant),
            Column("trials", lambda variant: variant.count, ",d"),
            Column("best", lambda variant: variant.best, measure.spec, unit=measure.unit),
            Column("vs. source", lambda variant: variant.source_difference, spec, unit=unit),
            estimate_column(
                "solved vs. unchanged" if findings.solved else "vs. unchanged",
                lambda variant: variant, versus.difference_unit, f"+{versus.difference_spec}",
                condition=has_pairs,
            ),
            Column("improved", improved_share, ".0f", unit="%", condition=has_pairs),
            Column("pairs", lambda variant: variant.pairs or None, ",d", condition=has_pairs),
        ],
    )  # fmt: skip


def tabulate_across_tasks(comparison: TaskComparison) -> Table[TaskContrast]:
    """Tabulate the effect of each change in each task, and whether their signs agree."""

    def get(task: str, row: TaskContrast) -> Effect | None:
        return row.by_task.get(task)

    columns: list[Column[TaskContrast]] = [
        Column("change", lambda row: label_change(row.contrast)),
    ]
    for task, measure in comparison.measures.items():
        unit = ", ".join(filter(None, [measure.loss, measure.difference_unit]))
        spec = f"+{measure.difference_spec}"
        columns.append(estimate_column(task, partial(get, task), unit, spec))
    columns.append(Column("signs", lambda row: row.agreement))
    return Table(f"{comparison.name} across tasks", comparison.contrasts, columns)


def _count_pairs(effect: Effect) -> str:
    """Count the pairs, and all if some cannot show the change: ``192 of 216``."""
    if not effect.excluded_pairs:
        return f"{effect.pairs:,}"
    return f"{effect.pairs:,} of {effect.pairs + effect.excluded_pairs:,}"


def _change_column(effect: Callable[[Row], Effect]) -> Column[Row]:
    return Column(
        "change",
        lambda row: label_change(effect(row).contrast),
        hint=lambda row: describe_change(effect(row)),
    )


def improved_share(effect: PairedDifference) -> float | None:
    """Return the percentage of pairs that a change improves; None without pairs."""
    return 100 * effect.improved_count / effect.pairs if effect.pairs else None


# ------------------------------------------------------------------ architectures


def tabulate_leaderboard(
    results: Results, summary: StudySummary, entries: Sequence[LeaderboardEntry], name: str
) -> Table[LeaderboardEntry]:
    """Tabulate some architectures of a study, the best first."""
    metric = results.metric
    measure = results.measure
    is_replicated = results.has_replicates
    margin = f"margin {summary.judgement.margin:g}" if summary.judgement else ""
    center = "median, from least to largest" if summary.solved_runs else "mean"
    unit = ", ".join(filter(None, [center if is_replicated else "", metric.unit]))
    validation_spec = results.measure.held_out_spec
    labels = shorten_labels([entry.label for entry in summary.entries])

    def describe_solved(entry: LeaderboardEntry) -> str:
        if entry.solved is None:
            return ""
        if is_replicated:
            return format_solved(entry.solved)
        return "yes" if entry.solved.solved else "no"

    return Table(
        name,
        entries,
        [
            Column(results.noun, lambda entry: labels[entry.label]),
            Column("trial", lambda entry: entry.number, "d"),
            *_best_values(entries, "best " if results.nuisance else ""),
            Column("runs", lambda entry: entry.runs, "d", condition=is_replicated),
            Column("solved", describe_solved, TEXT, condition=summary.solved_runs),
            Column("solved at", lambda entry: entry.solved_at, ",.0f", unit="updates",
                   condition=any(math.isfinite(entry.solved_at) for entry in entries)),
            Column(metric.name, lambda entry: entry.loss, metric.spec, unit=unit,
                   ends=(lambda entry: (entry.low, entry.high)) if is_replicated else None),
            *metric_columns(results.metric_columns, results, lambda entry: entry.metrics),
            Column("verdict", summary.name_verdict, unit=margin,
                   condition=summary.has_verdicts or summary.worse),
            Column("at most", lambda entry: metric.to_loss(entry.bound) + 0, f"+{metric.spec}",
                   unit="vs. best", condition=summary.has_verdicts),
            Column(measure.name_loss("validation"), lambda entry: entry.validation_loss,
                   validation_spec, unit=measure.held_out_unit,
                   note=lambda entry: format_stderr(entry.validation_stderr, validation_spec),
                   condition=results.shows_validation),
            Column("vs. best", lambda entry: entry.gap and entry.gap.mean, f"+{metric.spec}",
                   unit=measure.held_out_unit, condition=summary.compares_single_runs),
            Column("effective context",
                   lambda entry: str(entry.context.estimate()) if entry.context else "",
                   TEXT, unit=f"{results.config.token_name}s",
                   condition=any(entry.context for entry in entries)),
            Column(measure.name, lambda entry: entry.value, measure.spec, unit=measure.unit,
                   condition=not metric.is_value and not summary.solved_runs),
            Column("parameters", lambda entry: entry.parameter_count, ",.0f",
                   condition=results.has_any("parameter_count")),
            Column("time", lambda entry: entry.seconds, ",.1f", unit="s",
                   condition=results.has_any("seconds")),
            Column("source trials", lambda entry: ", ".join(map(str, entry.source_trials)),
                   condition=results.config.refinement),
        ],
    )  # fmt: skip


def _best_values(entries: Sequence[LeaderboardEntry], prefix: str) -> list[Column[Any]]:
    def get(name: str, entry: LeaderboardEntry) -> str:
        return format_value(entry.best_values.get(name))

    names = dict.fromkeys(name for entry in entries for name in entry.best_values)
    return [Column(prefix + format_param(name), partial(get, name), TEXT) for name in names]


def metric_columns(
    names: Iterable[str], results: Results, metrics: Callable[[Any], Mapping[str, Any]]
) -> list[Column[Any]]:
    """Return a column for each metric of a task."""
    task = results.config.task_record

    def get(name: str, row: Any) -> float | None:
        return metrics(row).get(name)

    units = dict.fromkeys(names, _LAST)
    if task is not None:
        units = {name: describe_direction(task.metrics[name]) for name in names}
    return [Column(name, partial(get, name), ".4g", unit=unit) for name, unit in units.items()]


def describe_direction(direction: Direction) -> str:
    """Say whether a higher or a lower value of a metric is better."""
    return "higher is better" if direction == "maximize" else "lower is better"


def tabulate_memory(
    results: Results, entries: Sequence[LeaderboardEntry], name: str
) -> Table[tuple[str, str]]:
    """Tabulate the results of the best networks by length and by the values of each slice.

    A row is a length, or a value of a slice, and a quantity; a column is an architecture.
    """
    task = results.config.task_record
    shown = entries[:_MAX_COLUMNS]
    labels = shorten_labels([entry.full_label for entry in entries])
    cells: dict[tuple[str, str], dict[int, float]] = {}
    for entry in shown:
        places = {
            f"length {format_count(length, 'step')}": numbers
            for length, numbers in entry.lengths.items()
        }
        if task is not None and task.steps and places:
            own = {"loss": entry.validation_loss, **entry.validation_metrics}
            places = {f"length {format_count(task.steps, 'step')}": own, **places}
        for slice_name, values in entry.slices.items():
            for value, numbers in values.items():
                places[f"{format_param(slice_name)} {value}"] = numbers
        for place, numbers in places.items():
            for quantity, number in numbers.items():
                cells.setdefault((place, quantity), {})[entry.number] = number

    def get(number: int, row: tuple[str, str]) -> str:
        spec = results.measure.spec if row[1] == "loss" else ".4g"
        return format_number(cells[row].get(number), spec)

    return Table(
        name,
        cells,
        [
            Column("targets", lambda row: row[0]),
            Column("quantity", lambda row: results.measure.loss if row[1] == "loss" else row[1]),
            *(Column(labels[entry.full_label], partial(get, entry.number), TEXT)
              for entry in shown),
        ],
    )  # fmt: skip


_MAX_COLUMNS = 5
"""Architectures in the table by length and slice."""

# ------------------------------------------------------------------ trials


def tabulate_rungs(pruning: PruningSummary, name: str) -> Table[Any]:
    """Tabulate after which steps trials were pruned."""
    return Table(
        name,
        pruning.rungs.to_dict("records"),
        [
            Column("pruned after step", itemgetter("step"), ",.0f"),
            Column("trials", itemgetter("trials"), ",.0f"),
            Column("of the best", itemgetter("keep_probability"), ".2f", unit="expected number"),
        ],
    )


def tabulate_trials(results: Results, name: str) -> Table[Any]:
    """Tabulate the trials, of too many the best."""
    config = results.config
    measure = results.measure
    validation = measure.held_out_column("validation")
    spec = results.measure.held_out_spec
    is_pruned = config.pruning.enabled

    def describe_state(row: Mapping[Any, Any]) -> str:
        copied = "" if is_missing(row["copied_from"]) else ", copied"
        audited = ", audited" if row["audited"] and is_pruned else ""
        told = "" if is_missing(row.get("told")) else f" {measure.format(row['told'])}"
        return f"{row['state'].lower()}{told}{copied}{audited}"

    def format_item(axis: str, row: Mapping[Any, Any]) -> str:
        return format_value(row[axis])

    axes: list[Column[Any]] = []
    for axis in results.axes:
        if is_continuous(results.table[axis]):
            axes.append(Column(format_param(axis), itemgetter(axis), ".6g"))
        else:
            axes.append(Column(format_param(axis), partial(format_item, axis)))
    return Table(
        name,
        results.table.head(MAX_DRAWN).reset_index().to_dict("records"),
        [
            Column("trial", itemgetter("number"), "d"),
            Column("state", describe_state, hint=itemgetter("reason")),
            Column(measure.loss, itemgetter("value"), measure.spec, unit=measure.unit),
            Column("paused at step", itemgetter("rung"), ",.0f", condition=is_pruned),
            Column(f"predicted {measure.loss}", itemgetter("predicted_value"),
                   measure.difference_spec, unit=measure.unit, condition=is_pruned),
            Column("keep probability", itemgetter("keep_probability"), ".2g",
                   condition=is_pruned),
            Column(measure.name_loss("validation"), lambda row: row[validation], spec,
                   unit=measure.held_out_unit,
                   note=lambda row: format_stderr(row["validation_stderr"], spec),
                   condition=measure.held_out_unit != measure.unit
                   or results.shows_validation),
            *(Column(metric, itemgetter(column), ".4g",
                     unit="" if results.cells else _LAST)
              for metric, column in results.metric_columns.items()),
            *axes,
            Column("parameters", itemgetter("parameter_count"), ".0f",
                   condition=results.has_any("parameter_count")),
            Column("time", itemgetter("seconds"), ".1f", unit="s",
                   condition=results.has_any("seconds")),
            Column("worker", itemgetter("worker"), condition=results.has_any("worker")),
        ],
    )  # fmt: skip
