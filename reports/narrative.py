"""Sentences about a study: the only module that writes what a study shows.

The findings are data (:mod:`reports.findings`). The first screen of a page, the last line of a
search, the note of the dashboard, the page of hypotheses and printed tables are written from them
here, so that they agree. What is emphasised is marked by :func:`strong`; :func:`to_plain`,
:func:`to_html` and :func:`to_markdown` render the marks and escape the text.
"""

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from reports.analysis.hypothesis_tests import Finding
from reports.analysis.leaderboard import StudySummary
from reports.analysis.nuisance import Edge, join_names
from reports.analysis.outcomes import build_outcome_table
from reports.data.results import Results
from reports.findings import Divergence, StudyFindings, UnequalBudget
from reports.formatting import escape_markdown, loss_unit, objective_name
from reports.stats.additive_model import AdditiveModel, LevelDifference, Trend
from reports.stats.conditional_effects import ConditionalEffect, RankedEffect
from reports.stats.contrast import Contrast
from reports.stats.decision_rules import compute_fail_error
from reports.stats.effects import Effect
from reports.stats.outcome_table import GOOD, UNKNOWN, ContrastOutcomes
from reports.stats.paired_difference import PairedDifference
from reports.stats.scale import Scale, format_count, format_param, format_signed, format_value

MAX_NAMED = 4
"""Undecided effects, divergences and the like that are named; of more, the number is given."""

N_IN_LINE = 2
"""Largest number of main effects in the last line of a search."""

MAX_TERMS = 5
"""Significant terms of an additive model that are listed, the largest first."""

TELLING_RECALL = 0.5
"""Lower bound of the recall below which an audit says little about it."""

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


def _join(parts: Sequence[str]) -> str:
    """Join phrases: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _name_some(names: Sequence[str], noun: str, plural: str = "") -> str:
    """Name up to :data:`MAX_NAMED` things; of more, give their number."""
    return _join(names) if len(names) <= MAX_NAMED else format_count(len(names), noun, plural)


# ------------------------------------------------------------------ what a study answers


def write_answer(findings: StudyFindings) -> list[str]:
    """Answer the question of a study in two or three sentences, marked.

    The first names the largest effects with direction and size, the second the smaller ones and
    those that are undecided; of replicates they name the best and state the verdicts.
    """
    if findings.summary.has_verdicts:
        return [to_sentence(describe_best(findings)), to_sentence(describe_verdicts(findings))]
    if not findings.ranked:
        said = write_additive(findings) or [to_sentence(explain_missing_effects(findings))]
        return [*said, to_sentence(describe_best(findings))]
    if not findings.largest:
        rest = [_describe_undecided(findings.ranked, findings.ranked), *_list_uncompared(findings)]
        return [_state_nothing(findings), to_sentence("; ".join(rest)), *_state_holding(findings)]
    return [_state_largest(findings), _state_others(findings)]


def write_headline(studies: Sequence[StudyFindings]) -> str:
    """Name the best network and the largest significant effects; warnings follow, each on a line.

    The network is the best of all studies that are comparable with the first one. The effects are
    those of the first study that has any.

    Args:
        studies: findings of the studies of a report.
    """
    in_study = "in study {!r}, " if len(studies) > 1 else ""
    warnings = [
        f"warning: {in_study.format(each.results.name)}{warning}"
        for each in studies
        for warning in list_warnings(each)
    ]
    return to_plain("\n".join([_write_line(studies), *warnings]))


def _write_line(studies: Sequence[StudyFindings]) -> str:
    key = _comparison_key(studies[0].results)
    best = min(
        (each for each in studies if _comparison_key(each.results) == key),
        key=lambda each: each.results.scale.to_loss(each.summary.best.mean),
    )
    leader, metric = best.summary.best, best.results.metric
    runs = ""
    if leader.runs > 1 or leader.is_adjusted:
        mean = "adjusted mean" if leader.is_adjusted else "mean"
        runs = f", {mean} of {format_count(leader.runs, 'run')}"
    value = f"{metric.scale.format_value(leader.mean)} {metric.unit}".rstrip()
    trial = f"trial {leader.number}{_of_study(best, studies)}"
    parts = [f"best: {leader.full_label} ({trial}), {value}, {metric.name}{runs}"]
    if best.summary.has_verdicts:
        parts.append(describe_smallest(best.summary, metric.unit))
    first = next((each for each in studies if each.ranked), None)
    if first is not None:
        parts.append(_list_largest(first, _of_study(first, studies)))
        parts += _list_uncompared(first)
    elif best.additive and not best.summary.has_verdicts:
        parts.append(write_additive_clause(best.additive, best.results.scale))
    elif not best.summary.has_verdicts:
        parts.append(explain_missing_effects(best))
    return "; ".join(parts)


def _comparison_key(results: Results) -> tuple[object, ...]:
    """Return what comparable studies have in common."""
    return results.metric.column, results.metric.name, results.metric.unit, results.data


def _of_study(findings: StudyFindings, studies: Sequence[StudyFindings]) -> str:
    return f" of {findings.results.name!r}" if len(studies) > 1 else ""


def _list_largest(findings: StudyFindings, study: str) -> str:
    """List the largest effects in a clause, and all changes that help here and harm there."""
    if not (findings.largest or findings.reversals):
        return f"{describe_insignificance(findings.effects)}{study}"
    named = findings.largest[:N_IN_LINE]
    parts = [describe_effect(each) for each in named]
    reversals = [each for each in findings.reversals if each not in named]
    listed = f"largest significant effects{study}: {'; '.join(parts)}" if parts else ""
    return "; ".join(filter(None, [listed, *map(_describe_reversal, reversals)]))


def list_warnings(findings: StudyFindings) -> list[str]:
    """List what a reader of the answer must know, clauses without a final full stop."""
    named, more = findings.divergences[:MAX_NAMED], findings.divergences[MAX_NAMED:]
    warnings = [*map(describe_edge, findings.edges), *map(describe_divergence, named)]
    if more:
        count = format_count(len(more), "other architecture")
        warnings.append(
            f"{count} diverged in most of {'its' if len(more) == 1 else 'their'} trials"
        )
    return [*warnings, *map(describe_budget, findings.budgets)]


def _state_nothing(findings: StudyFindings) -> str:
    ranked = findings.ranked
    nothing = "no change has a significant effect on the {}"
    if not any(each.main.is_decidable for each in ranked):
        nothing = "whether any change has an effect on the {} is not known"
    name, first = objective_name(findings.results.config), ranked[0]
    # The next sentence gives the sizes of those whose interval excludes zero.
    largest = "" if _excludes_zero(first) else f"; the largest is {describe_effect(first)}"
    return to_sentence(f"{_format_scope(findings)}{nothing.format(name)}{largest}")


def _excludes_zero(effect: RankedEffect) -> bool:
    return effect.main.low > 0 or effect.main.high < 0


def _state_holding(findings: StudyFindings) -> list[str]:
    """Say why a hypothesis holds although no change is significant; nothing if none does."""
    holding = findings.holding
    if not holding:
        return []
    claims = _name_some([f"“{each.hypothesis.claim}”" for each in holding], "hypothesis")
    verb = "holds" if len(holding) == 1 else "hold"
    return [f"{claims} {verb} by a test of its own, without the correction for all changes."]


def _state_largest(findings: StudyFindings) -> str:
    """State the largest significant effects, by their direction."""
    most = "most " if findings.ranked[0].is_significant else ""  # else a larger one is undecided
    by_verb: dict[str, list[str]] = {}
    for effect in findings.largest:
        by_verb.setdefault(_find_verb(effect), []).append(describe_effect(effect))
    phrases = [
        f"{verb} {'' if i else most}with {_join(effects)}"
        for i, (verb, effects) in enumerate(by_verb.items())
    ]
    name = objective_name(findings.results.config)
    return to_sentence(f"{_format_scope(findings)}the {name} {', and '.join(phrases)}")


def _state_others(findings: StudyFindings) -> str:
    """Name what depends on another parameter, count smaller effects, and name undecided ones."""
    named = set(map(id, [*findings.largest, *findings.reversals]))
    others = [each for each in findings.ranked if id(each) not in named]
    smaller = [each for each in others if each.has_significant_mean]
    conditional = [e for e in others if e.is_significant and not e.has_significant_mean]
    undecided = [each for each in others if not each.is_significant]
    parts = [
        _describe_reversal(each) for each in findings.reversals if each not in findings.largest
    ]
    if smaller:
        one = "other change has a smaller significant effect"
        several = "other changes have smaller significant effects"
        parts.append(format_count(len(smaller), one, several))
    if conditional:
        parts.append(_describe_conditional(conditional))
    if undecided:
        parts.append(_describe_undecided(undecided, findings.ranked))
    parts += _list_uncompared(findings)
    return to_sentence("; ".join(parts) or "no other change was tried")


def _find_verb(effect: RankedEffect) -> str:
    """Return what the loss does with a change, under each condition where it is significant."""
    means = [effect.main.mean]
    if effect.condition:
        shown = effect.condition.extremes
        # If neither is, their difference is: both sizes are shown.
        means = [each.mean for each in shown if each.is_significant] or [e.mean for e in shown]
    if max(means) < 0:
        return "falls"
    if min(means) > 0 or effect.condition is None:
        return "rises"
    return f"falls or rises, depending on {format_param(effect.condition.parameter)},"


def _describe_conditional(effects: Sequence[RankedEffect]) -> str:
    """Name effects that are significant under a condition alone."""
    listed = _join([describe_effect(each) for each in effects[:MAX_NAMED]])
    if len(effects) > MAX_NAMED:
        count = format_count(len(effects), "change")
        return f"{count} have a significant effect under a condition only, such as {listed}"
    verb = "has" if len(effects) == 1 else "have"
    return f"{listed} {verb} a significant effect under that condition only"


def _describe_undecided(effects: Sequence[RankedEffect], tried: Sequence[RankedEffect]) -> str:
    """Name effects that are not significant, and the range of their intervals.

    Args:
        effects: the effects.
        tried: all effects, for the number of which the tests are corrected.
    """
    # A reader sees these intervals exclude zero, which a range of several would hide.
    apart = list(filter(_excludes_zero, effects))[:MAX_NAMED]
    labels = [strong(each.main.contrast.label) for each in effects]
    names = _join(
        [
            describe_effect(each) if each in apart else label
            for each, label in zip(effects, labels, strict=True)
        ]
    )
    is_all = len(effects) == len(tried)
    if len(effects) > MAX_NAMED:
        names = f"{'all ' if is_all else ''}{len(effects)} changes"
        if apart:
            names += f", {_join(list(map(describe_effect, apart)))} among them,"
    text = f"{names} {'is' if len(effects) == 1 else 'are'} undecided"
    untested = [each.main for each in effects if each.main.reason]
    if len(untested) == len(effects):
        return f"{text}: {_join_reasons(untested)}"
    if len(tried) > 1:
        text += f" after correction for {'their number' if is_all else f'{len(tried)} changes'}"
    if untested:
        return f"{text}; {_count_untested(untested)}"
    bounds = [bound for each in effects for bound in (each.main.low, each.main.high)]
    if apart or any(map(math.isnan, bounds)):
        return text
    spec = effects[0].main.scale.spec
    low, high = (format_signed(end, spec) for end in (min(bounds), max(bounds)))
    intervals = "the 95% interval reaches" if len(effects) == 1 else "the 95% intervals reach"
    return f"{text} ({intervals} from {low} to {high})"


def describe_insignificance(effects: Sequence[Effect]) -> str:
    """Say that no effect is significant, or why that is not known, in one clause."""
    untested = [each for each in effects if each.reason]
    if not effects:
        return "no effect can be estimated: no two complete trials differ in one parameter only"
    if len(untested) == len(effects):
        return f"whether any effect differs from zero is not known: {_join_reasons(untested)}"
    none = "no effect is significantly different from zero"
    return f"{none}; {_count_untested(untested)}" if untested else none


def _join_reasons(effects: Sequence[Effect]) -> str:
    """Return the reason of most effects, which they have in common but for their numbers."""
    return max(effects, key=lambda each: each.pairs).reason + " at most" * (
        len({each.reason for each in effects}) > 1
    )


def _count_untested(effects: Sequence[Effect]) -> str:
    return f"{format_count(len(effects), 'change has', 'changes have')} {_join_reasons(effects)}"


def _list_uncompared(findings: StudyFindings) -> list[str]:
    """Say what is known of the parameters that no matched pair compares, a clause for each."""
    scale, names = findings.results.scale, findings.uncompared
    clauses = [f"by an additive model, {describe_trend(e, scale)}" for e in findings.trends]
    if not names:
        return clauses
    listed = _join([strong(format_param(name)) for name in names])
    verb, it = ("is", "it") if len(names) == 1 else ("are", "one of them")
    reason = f"no two trials differ in {it} alone"
    if findings.results.uncontrasted.issuperset(names):
        reason = "too many values"
    return [*clauses, f"{listed} {verb} not compared: {reason}"]


def explain_missing_effects(findings: StudyFindings) -> str:
    """Say why the study has no effects, in one clause."""
    counts, audited = findings.results.counts, findings.audited
    if audited is None:
        return describe_insignificance([])
    if counts.finished < counts.planned:
        return (
            "there is no answer yet: the effects of a pruned study are estimated once its search "
            f"is finished, and {counts.finished:,} of {counts.planned:,} trials are"
        )
    return audited.reason[:1].lower() + audited.reason[1:].removesuffix(".")


def _format_scope(findings: StudyFindings) -> str:
    """Return for which trials the statement holds, to begin a sentence; "" for a whole grid."""
    results = findings.results
    parts = []
    refinement = results.config.refinement
    if refinement is not None and refinement.trial is None:
        parts.append(f"among the best of {refinement.source}")
    if results.nuisance:
        parts.append(f"at each {results.noun}’s best {join_names(results.nuisance)}")
    if findings.audited:
        pruned = results.counts.pruned
        parts.append(f"by predictions for the {pruned:,} pruned trials, corrected by an audit")
    return _format_progress(findings) + (f"{', '.join(parts)}, " if parts else "")


def _format_progress(findings: StudyFindings) -> str:
    """Return how much of an unfinished study is known, to begin a sentence."""
    counts = findings.results.counts
    if counts.finished >= counts.planned:
        return ""
    if findings.audited is not None:  # another sentence has the numbers
        return "so far, "
    return f"so far, with {counts.finished:,} of {counts.planned:,} trials finished, "


# ------------------------------------------------------------------ changes


def format_estimate(difference: PairedDifference) -> str:
    """Format a mean difference with its unit and interval: ``−0.399 nats [−0.404, −0.393]``."""
    scale, interval = difference.scale, ""
    if not math.isnan(difference.low):
        ends = (format_signed(end, scale.spec) for end in (difference.low, difference.high))
        interval = f" [{', '.join(ends)}]"
    return f"{scale.format_difference(difference.mean)}{interval}"


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


def _describe_reversal(effect: RankedEffect) -> str:
    """Name a change that helps at one value of another parameter and harms at another."""
    assert effect.condition is not None
    parameter = format_param(effect.condition.parameter)
    size = describe_condition(effect.condition)
    return f"{strong(effect.main.contrast.label)} helps or harms, by {parameter} ({size})"


def describe_budget(budget: UnequalBudget) -> str:
    """Say that the values of a parameter get unequal budgets in the same number of steps."""
    name = format_param(budget.parameter)
    most, least = format_value(budget.most), format_value(budget.least)
    ratio = f"{budget.ratio:.3g} times as"
    if budget.parameter == "batch_size":
        return (
            "larger batches read more data in the same number of steps: "
            f"{ratio} much with {name} {most} as with {least}"
        )
    return (
        f"the values of {name} differ in the number of updates in the same number of steps: "
        f"{ratio} many with {most} as with {least}"
    )


def describe_outcomes(findings: StudyFindings) -> str:
    """Say in a sentence which changes bring trials below the threshold; "" without one."""
    sentence, outcomes = count_outcomes(findings.results), findings.outcomes
    if not sentence:
        return ""
    significant = [each for each in outcomes if each.is_significant]
    significant.sort(key=lambda each: -abs(each.gain))
    rescuing = [count_pairs(each) for each in significant if each.gain > 0]
    ruining = [count_pairs(each) for each in significant if each.gain <= 0]
    parts = [
        f"{amount} with {', '.join(changes)}"
        for amount, changes in (("more", rescuing), ("fewer", ruining))
        if changes
    ]
    if parts:
        return f"{sentence}, significantly {'; '.join(parts)}."
    if not outcomes:
        return f"{sentence}."
    nothing = "no change makes a significant difference to that"
    if len(outcomes) > 1:
        nothing += f" after correction for {len(outcomes)} changes"
    return f"{sentence}; {nothing}."


def count_outcomes(results: Results) -> str:
    """Say how many trials are on the good side of the threshold, in a clause; "" without one."""
    threshold, scale = results.config.report_threshold, results.scale
    if threshold is None:
        return ""
    found = build_outcome_table(results, threshold).values
    judged = format_count(int((found != UNKNOWN).sum()), results.judged_noun)
    limit = f"{threshold} {loss_unit(results.config)}".rstrip()
    good = format_count(int((found == GOOD).sum()), f"of {judged} is", f"of {judged} are")
    return f"{good} {scale.good_side} {limit}"


def count_pairs(outcomes: ContrastOutcomes) -> str:
    """Count the rescued and the ruined pairs of a change."""
    return (
        f"{outcomes.contrast.label} ({outcomes.rescued:,} rescued, {outcomes.ruined:,} ruined of "
        f"{format_count(outcomes.pairs, 'pair')})"
    )


# ------------------------------------------------------------------ architectures


def describe_best(findings: StudyFindings) -> str:
    """Name the best architecture, with its loss, in a clause."""
    best, metric = findings.summary.best, findings.results.metric
    name, interval, format_loss = metric.name, "", metric.scale.format_value
    if best.runs > 1:
        mean = "adjusted mean" if best.is_adjusted else "mean"
        name = f"{mean} {name} of {best.runs} runs"
        interval = f", 95% interval {format_loss(best.low)} to {format_loss(best.high)}"
    value = f"{format_loss(best.mean)} {metric.unit}".strip()
    return (
        f"{_format_progress(findings)}the {metric.scale.best_name} {name} is {value}{interval}, of "
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
    if summary.is_best_smallest:
        return "the best is the smallest"
    return f"no smaller one is shown to be as good as the best ({margin})"


def describe_edge(edge: Edge) -> str:
    """Warn that architectures are best at an end of the values tried, in a clause."""
    end, advice = ("highest", "higher") if edge.is_highest else ("lowest", "lower")
    is_are = f"{edge.noun} is" if edge.total == 1 else f"{edge.noun}s are"
    best = "; the best of all is among them" if edge.has_best and edge.total > 1 else ""
    return (
        f"{edge.count:,} of {edge.total:,} {is_are} best at {format_param(edge.parameter)} "
        f"{format_value(edge.value)}, the {end} value tried: try {advice} ones{best}"
    )


def describe_divergence(divergence: Divergence) -> str:
    """Say how often a cell or an architecture diverged, in a clause."""
    trials = format_count(divergence.ended, "trial")
    return f"{strong(divergence.name)} diverged in {divergence.diverged:,} of {trials}"


def describe_judged(results: Results) -> str:
    """Describe what matched pairs are of: ``trials``; of several trials each, which count."""
    parts = [f"at its best {join_names(results.nuisance)}"] if results.nuisance else []
    parts += ["the mean of its runs"] if results.has_replicates else []
    return f"{results.noun}s, each {' and '.join(parts)}," if parts else "trials"


def describe_pruning(findings: StudyFindings) -> str:
    """Say what the audited trials show about what pruning lost, in a clause."""
    audit, counts = findings.audit, findings.results.counts
    if counts.finished < counts.planned:
        return "what is lost is measured at the end"
    if not audit or not audit.is_valid or not audit.stopped:
        return "what was lost is not measured"
    if audit.recall_low < TELLING_RECALL:
        return f"{audit.stopped} audited are too few to bound what was lost"
    kept = f"at least {audit.recall_low:.0%} of the best {audit.top_count} are complete"
    wrong = "; their predictions were not right" if audit.is_alarm else ""
    return f"{kept}, by {audit.stopped} audited{wrong}"


# ------------------------------------------------------------------ hypotheses


def list_notes(finding: Finding) -> list[str]:
    """List what a reader needs to know besides the verdicts on a contrast, in sentences."""
    notes = []
    if finding.conjunction > 1 and finding.verdict and not math.isnan(finding.effect.error):
        confidence = 1 - compute_fail_error(finding.conjunction)
        ends = finding.effect.compute_interval(confidence)
        low, high = (format_signed(end, finding.effect.scale.spec) for end in ends)
        notes.append(
            f"Of {finding.conjunction} contrasts, “{finding.contrast}” is the least favorable; its "
            f"interval of {100 * confidence:.4g}% is {low} to {high}."
        )
    if reversal := finding.reversal:
        name = format_param(reversal.parameter)
        size = describe_condition(reversal)
        notes.append(f"The sign of “{finding.contrast}” depends on {name}: {size}.")
    return notes


# ------------------------------------------------------------------ additive model

_NO_PAIRS = (
    "There are no matched pairs: a sampler drew the values, or a parameter has too many, so no two "
    "runs differ in one parameter alone."
)
_FEW_PAIRS = "Matched pairs do not compare every parameter well."
_ASSUMPTION = (
    "What follows assumes that parameters act additively, that is, that the effect of each is the "
    "same whatever the others are."
)


def write_additive(findings: StudyFindings) -> list[str]:
    """Describe the additive model of a study in sentences; none without one."""
    if findings.additive is None:
        return []
    return describe_additive(findings.additive, findings.results.scale, bool(findings.effects))


def describe_additive(model: AdditiveModel, scale: Scale, has_pairs: bool = False) -> list[str]:
    """Describe a model in sentences: the assumption, the findings, what is not known, its fit.

    Args:
        model: the model.
        scale: unit, direction and precision of the values.
        has_pairs: whether matched pairs compare some parameters.
    """
    sentences = [f"{_FEW_PAIRS if has_pairs else _NO_PAIRS} {_ASSUMPTION}"]
    if model.reason:
        return [*sentences, f"Nothing can be estimated: {model.reason}."]
    found, more = _list_terms(model, scale), ""
    if len(found) > MAX_TERMS:
        more = f"; and {format_count(len(found) - MAX_TERMS, 'smaller one')}"
    if found:
        listed = "; ".join(found[:MAX_TERMS])
        sentences.append(f"Significant, the largest first: {listed}{more}.")
    else:
        sentences.append("No parameter has a significant effect.")
    tests: list[LevelDifference | Trend] = [e for e in model.levels if not e.estimate.reason]
    tests += model.trends
    names = {each.parameter for each in tests if each.is_significant}
    undecided = dict.fromkeys(each.parameter for each in tests if each.parameter not in names)
    if undecided:
        listed = ", ".join(map(format_param, undecided))
        sentences.append(f"Not significant after correction: {listed}.")
    unknown = dict(model.reasons)
    unknown |= {e.parameter: e.estimate.reason for e in model.levels if e.estimate.reason}
    if unknown:
        listed = ", ".join(f"{format_param(name)} ({each})" for name, each in unknown.items())
        sentences.append(f"Not estimated: {listed}.")
    return [*sentences, _describe_fit(model)]


def write_additive_clause(model: AdditiveModel, scale: Scale) -> str:
    """Describe a model in one clause, for the last line of a search."""
    if model.reason:
        return f"no matched pairs, and no additive model: {model.reason}"
    listed = "; ".join(_list_terms(model, scale)[:3])
    return (
        "no matched pairs; if parameters act additively: "
        f"{listed or 'no parameter has a significant effect'}"
    )


def _list_terms(model: AdditiveModel, scale: Scale) -> list[str]:
    """Return a clause for each significant term, the largest first."""
    sized = [
        (abs(each.estimate.mean), _describe_level(each, scale))
        for each in model.levels
        if each.is_significant
    ]
    sized += [
        (float(np.ptp(each.curve)), describe_trend(each, scale))
        for each in model.trends
        if each.is_significant
    ]
    return [text for _, text in sorted(sized, key=lambda each: -each[0])]


def describe_trend(trend: Trend, scale: Scale) -> str:
    """Say where a parameter is best, with the interval, and how much that changes."""
    name, optimum = format_param(trend.parameter), trend.optimum
    if not trend.is_significant:
        return f"{name}: no significant trend"
    size = scale.add_unit(f"{float(np.ptp(trend.curve)):{scale.spec}}")
    changes = f"fitted {scale.name} varies by {size}"
    if optimum.reason:
        return f"{name}: {changes}; where it is best is not determined: {optimum.reason}"
    best, low, high = (format_place(x, trend) for x in (optimum.value, optimum.low, optimum.high))
    end = "lowest" if optimum.is_open_below else "highest"
    if optimum.low == optimum.high:
        return f"{name}: best at the {end} value tried, {best}, or beyond; {changes}"
    if optimum.is_open_below or optimum.is_open_above:
        bound = f"at most {high}" if optimum.is_open_below else f"at least {low}"
        place = f"best near {best}, {bound}; it may lie beyond the {end} value tried"
        return f"{name}: {place}; {changes}"
    return f"{name}: best near {best} [{low}, {high}]; {changes}"


def format_place(value: float, trend: Trend) -> str:
    """Format a value of a parameter with two significant digits, or three on a linear axis."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.1e}"
    digits = 2 if trend.is_log else 3
    text: str = np.format_float_positional(
        value, precision=digits, unique=False, fractional=False, trim="-"
    )
    return text


def _describe_level(each: LevelDifference, scale: Scale) -> str:
    """State one difference with its interval and direction."""
    mean, low, high = each.estimate.mean, each.estimate.low, each.estimate.high
    ends = (format_signed(end, scale.spec) for end in (low, high))
    direction = "better" if scale.improves(mean) else "worse"
    description = Contrast(each.parameter, each.before, each.after).description
    return f"{description} {scale.format_difference(mean)} [{', '.join(ends)}], {direction}"


def _describe_fit(model: AdditiveModel) -> str:
    """Say how well the model predicts configurations that it was not fitted to."""
    share = model.predicted_share
    count = format_count(model.configurations, "configuration")
    if math.isnan(share):
        return f"How well the model predicts the {count} is not known."
    if share <= 0:
        return (
            f"Of {count}, each left out in turn, the model predicts the values no better than "
            "their mean: it describes little, and parameters may not act additively."
        )
    return (
        f"The model predicts {share:.0%} of the variance of {count}, each left out in turn: the "
        "rest is noise, or parameters that do not act additively."
    )
