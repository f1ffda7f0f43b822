"""Findings in words, one at a time: changes, architectures, hypotheses.

What is emphasised is marked by :func:`strong`; :func:`to_plain`, :func:`to_html` and
:func:`to_markdown` render the marks and escape the text. :mod:`reports.narrative` joins them.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from reports.analysis.hypotheses import HypothesisTest
from reports.analysis.leaderboard import StudySummary
from reports.analysis.nuisance import join_names
from reports.analysis.solved import count_solved
from reports.findings import MAX_DISTANCE, Divergence, StudyFindings, UnequalBudget
from reports.results import Results
from reports.stats.conditional_effects import ConditionalEffect, RankedEffect
from reports.stats.effects import PairedDifference
from reports.stats.judged import Edge
from reports.stats.noise import NoiseSource
from reports.stats.scale import (
    format_count,
    format_interval,
    format_param,
    format_signed,
    format_value,
)
from reports.stats.task_contrasts import TaskContrast
from reports.study_reader import describe_selection, select_drawn_curves
from studies.text import escape_markdown

# ------------------------------------------------------------------ emphasis

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Marks around what is emphasised: noncharacters, which no text contains (Unicode 23.7)."""


def strong(text: str) -> str:
    """Mark a text as emphasised."""
    return f"{_OPEN}{text}{_CLOSE}"


def to_plain(text: str) -> str:
    """Return a marked text without emphasis."""
    return text.replace(_OPEN, "").replace(_CLOSE, "")


def to_html(text: str) -> Markup:
    """Return a marked text as HTML."""
    html = str(escape(text)).replace(_OPEN, "<strong>").replace(_CLOSE, "</strong>")
    return Markup(html)  # escaped above


def to_markdown(text: str) -> str:
    """Return a marked text as one line of Markdown."""
    return escape_markdown(text).replace(_OPEN, "**").replace(_CLOSE, "**")


def to_sentence(clause: str) -> str:
    """Return a clause with an upper-case first letter and a full stop."""
    start = len(_OPEN) if clause.startswith(_OPEN) else 0
    return f"{clause[:start]}{clause[start : start + 1].upper()}{clause[start + 1 :]}."


def join(parts: Sequence[str]) -> str:
    """Join phrases: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


# ------------------------------------------------------------------ changes


def format_estimate(difference: PairedDifference) -> str:
    """Format a mean difference with its unit and interval: ``−0.399 nats [−0.404, −0.393]``."""
    scale = difference.scale
    if math.isnan(difference.mean):
        return difference.reason if difference.source is NoiseSource.ADDITIVE else "no pair"
    interval = format_interval(difference.low, difference.high, scale.spec)
    return f"{scale.format_difference(difference.mean)}{interval}"


def name_unit(values: str, unit: str) -> str:
    """Name the unit of a table's values in a clause, such as ``of the variance``; "" for none."""
    if unit.startswith("of "):
        return f"{values} {unit}"
    return f"{values} in {unit}" if unit else ""


def describe_effect(effect: RankedEffect) -> str:
    """Return a change with its size: under its condition, or else the mean with its interval."""
    condition = effect.condition
    size = describe_condition(condition) if condition else format_estimate(effect.main)
    return f"{strong(effect.main.contrast.label)} ({size})"


def describe_condition(condition: ConditionalEffect) -> str:
    """Return the extreme effects: ``−0.530 nats without residual, −0.015 with it``.

    Where only one of them is significant, the other one is named so.
    """
    first, last = condition.extremes
    name = format_param(condition.parameter)
    if isinstance(first.value, bool):
        places = f"without {name}", "with it"
    else:
        places = f"with {name} {format_value(first.value)}", f"with {format_value(last.value)}"
    scale = condition.main.scale
    sizes = [scale.format_difference(first.mean), format_signed(last.mean, scale.spec)]
    if first.is_significant < last.is_significant:
        sizes = ["no significant effect", scale.format_difference(last.mean)]
    elif last.is_significant < first.is_significant:
        sizes[1] = "no significant effect"
    return f"{sizes[0]} {places[0]}, {sizes[1]} {places[1]}"


def describe_reversal(effect: RankedEffect) -> str:
    """Name a change that helps at one value of another parameter and harms at another."""
    assert effect.condition is not None
    parameter = format_param(effect.condition.parameter)
    size = describe_condition(effect.condition)
    return f"{strong(effect.main.contrast.label)} helps or harms, depending on {parameter} ({size})"


def describe_dependence(effect: RankedEffect) -> str:
    """Name a change whose effect differs between two values and is significant at neither."""
    assert effect.condition is not None
    parameter = format_param(effect.condition.parameter)
    return (
        f"the effect of {describe_effect(effect)} differs with {parameter}, significant at neither"
    )


def describe_least_squares(findings: StudyFindings) -> str:
    """Say in a clause which effects rest on no matched pairs, and what they assume; "" if none."""
    effects = findings.effects
    names = [e.contrast.parameter for e in effects if e.source is NoiseSource.ADDITIVE]
    if not names:
        return ""
    runs = "too few runs" if findings.paired else "no two runs"
    alone = "one parameter"
    if len(names) < len(effects):
        alone = join([format_param(name) for name in dict.fromkeys(names)])
    return f"{runs} differ in {alone} alone: effects are by least squares, taken to add up"


def describe_budget(budget: UnequalBudget) -> str:
    """Say that the values of a parameter get unequal budgets in the same number of steps."""
    name = format_param(budget.parameter)
    most, least = format_value(budget.most), format_value(budget.least)
    ratio = f"{budget.ratio:.3g} times as many {budget.unit}"
    if budget.parameter == "batch_size":
        return (
            "larger batches read more data in the same number of steps: "
            f"{ratio} with {name} {most} as with {least}"
        )
    return f"in the same number of steps, {name} {most} has {ratio} as {least}"


def describe_solved(results: Results) -> str:
    """Say how many architectures are solved, in a clause; "" where nothing says when one is."""
    counted = count_solved(results)
    if counted is None:
        return ""
    solved, known = counted
    judged = format_count(known, results.judged_noun)
    verb = "is" if solved == 1 else "are"
    threshold, task = results.config.report_threshold, results.config.task_record
    if threshold is None and task is not None:
        return f"{solved:,} of {judged} {verb} solved: {task.solved_text}"
    limit = f"{threshold} {results.measure.unit}".rstrip()
    return f"{solved:,} of {judged} {verb} solved: {results.scale.good_side} {limit}"


def describe_agreement(contrasts: Sequence[TaskContrast]) -> str:
    """Say in a clause which changes have the same effect across tasks."""
    effects = [each.effect for contrast in contrasts for each in contrast.by_task.values()]
    if effects and all(each.reason for each in effects):
        most = max(effects, key=lambda each: each.pairs)
        return f"whether a change has the same effect in several tasks is not known ({most.reason})"
    agreeing = [each for each in contrasts if each.agrees]
    mixed = [each for each in contrasts if each.helps and each.harms]
    parts = [f"{each.contrast.label} {each.agreement} tasks" for each in agreeing]
    if not parts:
        parts = ["no change has significant effects of the same sign in two tasks or more"]
    if mixed:
        count = format_count(len(mixed), "change")
        names = ", ".join(each.contrast.label for each in mixed)
        parts.append(f"{count} of opposite signs: {names}")
    return "; ".join(parts)


# ------------------------------------------------------------------ architectures


def format_progress(findings: StudyFindings) -> str:
    """Return how much of an unfinished study is known, to begin a sentence."""
    counts = findings.results.counts
    if counts.finished >= counts.planned:
        return ""
    if findings.audited is not None:  # another sentence has the numbers
        return "so far, "
    return f"so far, with {counts.finished:,} of {counts.planned:,} trials finished, "


def describe_best(findings: StudyFindings) -> str:
    """Name the best architecture, with its loss, in a clause."""
    best, metric = findings.summary.best, findings.results.metric
    name, interval, format_loss = metric.best_name, "", metric.scale.format_value
    if best.runs > 1:
        mean = "adjusted mean" if best.is_adjusted else "mean"
        name = f"{metric.scale.best_name} {mean} {metric.name} of {best.runs} runs"
        interval = f", 95% interval {format_loss(best.low)} to {format_loss(best.high)}"
    value = f"{format_loss(best.mean)} {metric.unit}".strip()
    return (
        f"{format_progress(findings)}the {name} is {value}{interval}, of "
        f"{strong(best.full_label)} (trial {best.number})"
    )


def describe_verdicts(findings: StudyFindings) -> str:
    """State how many replicated architectures are worse than the best or as good, in a clause."""
    summary = findings.summary
    assert summary.judgement is not None
    verdicts = count_verdicts(summary)
    return f"of the others {verdicts}; {describe_smallest(summary, findings.results.metric.unit)}"


def count_verdicts(summary: StudySummary) -> str:
    """Count the verdicts on all architectures but the best mean."""
    judgement = summary.judgement
    assert judgement is not None
    counts = [f"{judgement.count(each)} {each}" for each in ("worse", "as good", "undecided")]
    without_run = judgement.without_run
    return ", ".join(counts) + (f", {without_run} without a complete run" if without_run else "")


def describe_smallest(summary: StudySummary, unit: str) -> str:
    """Say which is the smallest architecture that is as good as the best, in a clause.

    Args:
        summary: ranking and comparison of replicated architectures.
        unit: unit of the margin; "" for none.
    """
    assert summary.judgement is not None
    margin = f"at most {f'{summary.judgement.margin:g} {unit}'.rstrip()} worse"
    if smallest := summary.smallest:
        name = strong(smallest.full_label)
        size = f"{smallest.parameter_count:,.0f} parameters instead of "
        return (
            f"the smallest that is as good as the best ({margin}) is {name}, with {size}"
            f"{summary.best.parameter_count:,.0f}"
        )
    if summary.best.parameter_count <= min(each.parameter_count for each in summary.entries):
        return "the best is the smallest"
    return f"no smaller one is shown to be as good as the best ({margin})"


def describe_edge(edge: Edge, noun: str) -> str:
    """Warn that architectures are best at an end of the values tried, in a clause."""
    end, advice = ("highest", "higher") if edge.is_highest else ("lowest", "lower")
    is_are = f"{noun} is" if edge.total == 1 else f"{noun}s are"
    best = "; the best of all is among them" if edge.has_best and edge.total > 1 else ""
    return (
        f"{edge.count:,} of {edge.total:,} {is_are} best at {format_param(edge.parameter)} "
        f"{format_value(edge.value)}, the {end} value tried: try {advice} ones{best}"
    )


def describe_divergence(divergence: Divergence) -> str:
    """Say how often a cell or an architecture diverged, in a clause."""
    trials = format_count(divergence.ended, "trial")
    return f"{strong(divergence.name)} diverged in {divergence.diverged:,} of {trials}"


def describe_outliers(findings: StudyFindings) -> str:
    """Say how many values lie far from all others, and name the farthest, in a clause."""
    outliers, measure = findings.outliers, findings.results.measure
    count = format_count(len(findings.results.complete), "complete trial")
    value = f"{outliers.iloc[0]:.3g} {measure.unit}".rstrip()
    lies, dominate = "have values", "they dominate every mean that contains one"
    if len(outliers) == 1:
        lies, dominate = "has a value", "it dominates every mean that contains it"
    return (
        f"{len(outliers):,} of {count} {lies} over {MAX_DISTANCE:,.0f} times as far from the "
        f"median as half of them (trial {outliers.index[0]}: {value}): {dominate}"
    )


def describe_judged(results: Results) -> str:
    """Describe what matched pairs are of: ``trials``; of several trials each, which count."""
    parts = [f"at its best {join_names(results.nuisance)}"] if results.nuisance else []
    parts += ["the mean of its runs"] if results.has_replicates else []
    return f"{results.noun}s, each {' and '.join(parts)}," if parts else "trials"


def explain_single_runs(findings: StudyFindings) -> str:
    """Say what a comparison of single runs over held-out data covers, in sentences."""
    measure, complete = findings.results.measure, findings.results.counts.complete
    return (
        f"The difference to the best is over the same {measure.window}s, with Student’s 95% "
        f"interval. It covers the variation over {measure.data} of these two runs only, not "
        f"another training run, nor the selection of the best of {complete}. Replicate "
        "architectures to compare them."
    )


def describe_drawn_curves(results: Results, points: int) -> str:
    """Say how much of the training curves a figure of so many log points draws; "" for all."""
    drawn, everything = select_drawn_curves(results), results.curve_ends["points"]
    if points == everything.sum():
        return ""
    text = describe_selection(len(drawn), len(everything)).replace(" trials are", " curves are")
    if points < everything.reindex(drawn).sum():
        text += " Of each curve, log points at even distances, the least and the last are drawn."
    return (
        f"{text} That is {points:,} of {everything.sum():,} log points; rnn-search report with "
        "study.curves has all of them."
    )


# ------------------------------------------------------------------ hypotheses


def describe_holding(tests: Sequence[HypothesisTest]) -> list[str]:
    """Say why hypotheses hold although no change is significant, in a clause; none without any."""
    if not tests:
        return []
    statements = join([f"“{each.hypothesis.statement.rstrip('.')}”" for each in tests])
    it_holds = "a hypothesis, holds" if len(tests) == 1 else "hypotheses, hold"
    return [f"{statements}, {it_holds} by a test of its own, not corrected for the other changes"]
