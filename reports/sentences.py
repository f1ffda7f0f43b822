"""Findings of a study, in words: answer, warnings, notes.

The only writer of the answer on the page, in the terminal, in notebooks and in the dashboard's
note, so that they agree. The findings are data (:mod:`reports.findings`). Texts may have marks of
:func:`reports.formatting.strong`; clauses have neither a capital letter nor a full stop.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reports.analysis.leaderboard import LeaderboardEntry
from reports.analysis.pruning import PruningAudit
from reports.findings import Divergence, StudyFindings, TaskComparison, UnequalBudget
from reports.formatting import (
    format_shares,
    format_solved,
    join_params,
    label_change,
    strong,
    to_plain,
    to_sentence,
)
from reports.stats.audit import MIN_STOPPED, STATED_SHARE, Obstacle
from reports.stats.conditional_effects import ConditionalEffect, RankedEffect
from reports.stats.design import Contrast
from reports.stats.differences import Method, PairedDifference
from reports.stats.effects import Effect
from reports.stats.estimate import CONFIDENCE
from reports.stats.judged import Edge
from reports.stats.power import MIN_DIFFERENCES
from studies.measure import Measure
from studies.messages import format_count, format_param, format_value, join
from studies.network_facts import NOT_TRAINED

MAX_LEVELS = 3
"""Values of a parameter at which an effect that depends on it is stated; of more, the extremes."""

NO_PAIR = "no two trials differ in it alone"

MAX_NAMED = 4
"""Undecided effects, divergences and the like that are named; of more, the number is given."""

TELLING_RECALL = 0.5
"""Lower bound of the recall below which an audit says little about it."""

# ------------------------------------------------------------------ the answer


def list_answer(findings: StudyFindings) -> list[str]:
    """Answer the question of a study, a clause for each line; the best network comes last."""
    lines = [*_list_solved(findings), *_list_scope(findings)]
    if findings.summary.has_verdicts:
        lines.append(count_verdicts(findings))
        if not math.isnan(findings.summary.best.parameter_count):
            lines.append(describe_smallest(findings))
    elif findings.ranked:
        lines += _list_effects(findings)
    elif findings.summary.worse is None or _has_excluded_all(findings):
        lines.append(explain_missing_effects(findings))
    lines += _list_uncompared(findings)
    return [*lines, describe_best(findings)]


def list_headline(
    studies: Sequence[StudyFindings], across_tasks: Mapping[str, TaskComparison]
) -> list[str]:
    """Return the lines with which a report ends in a terminal: the answers and the warnings."""
    lines: list[str] = []
    for comparison in across_tasks.values():
        lines += list_agreement(comparison)
    for findings in studies:
        if len(studies) > 1:
            lines.append(f"{findings.results.title}:")
        lines += list_answer(findings)
        lines += [f"warning: {warning}" for warning in list_warnings(findings)]
    return [to_plain(line) for line in lines]


def _list_scope(findings: StudyFindings) -> list[str]:
    """Say for which trials the answer holds; nothing of a whole grid."""
    results = findings.results
    counts = results.counts
    lines = []
    if counts.finished < counts.planned:
        lines.append(f"so far: {counts.finished:,} of {counts.planned:,} trials are finished")
    if findings.summary.has_verdicts or not findings.ranked:
        return lines
    refinement = results.config.refinement
    if refinement is not None and refinement.trial is None:
        lines.append(f"effects hold among the best of {refinement.source}")
    if results.nuisance:
        lines.append(f"each {results.noun} is judged at its best {join_params(results.nuisance)}")
    if findings.audited:
        lines.append(
            f"effects are by predictions for the {counts.pruned:,} pruned trials, corrected by "
            "the audit"
        )
    if findings.misled and findings.excludes_some:
        count = f"{findings.misled:,} of {findings.networks:,} networks"
        lines.append(f"{count} do not see their input and count in no effect")
    return [*lines, *list_additive(findings)]


def list_additive(findings: StudyFindings) -> list[str]:
    """Say what effects by least squares rest on; nothing without any."""
    if findings.is_additive:
        return ["no two runs differ in one parameter alone: effects are taken to add up"]
    names = join_params(findings.additive_parameters)
    clause = f"effects of {names} are by least squares: they are taken to add up"
    return [clause] if names else []


def _list_solved(findings: StudyFindings) -> list[str]:
    """Say how many runs are solved, and what that says of architectures; nothing without a bound.

    ``31 of 72 runs are solved, all runs of 8 of 24 architectures``
    """
    if findings.solved is None:
        return []
    summary = findings.summary
    solved, runs = findings.solved
    line = f"{strong(f'{solved:,} of {runs:,} runs')} are solved"
    if not findings.results.has_replicates or not solved:
        return [line]
    counts = summary.solved_runs
    always = sum(found.solved == found.runs for found in counts.values())
    noun = f"{findings.results.noun}s"
    lines = [f"{line}, all runs of {always:,} of {len(counts):,} {noun}"]
    if findings.results.config.refinement is not None and summary.worse is not None:
        lines.append(describe_solved_verdicts(findings))
    return lines


def describe_solved_verdicts(findings: StudyFindings) -> str:
    """Say how many architectures solve fewer runs than another, or that no test can show it."""
    summary = findings.summary
    assert summary.worse is not None
    noun = f"{findings.results.noun}s"
    if not summary.can_differ:
        return (
            f"{noun} cannot be tested against each other: {summary.needed_runs} seeds of each are "
            f"needed for {summary.comparisons:,} comparisons"
        )
    worse = len(summary.worse)
    return (
        f"{worse:,} of {len(summary.solved_runs):,} {noun} solve significantly fewer than another"
    )


def _list_effects(findings: StudyFindings) -> list[str]:
    answer = findings.answer
    lines = [_answer_effect(effect, findings) for effect in answer.largest]
    if not (answer.largest or answer.reversals or answer.dependent):
        lines.append(describe_insignificance(findings.effects))
    lines += [_answer_effect(effect, findings) for effect in answer.reversals]
    if answer.smaller:
        one = "other change has a smaller significant effect"
        several = "other changes have smaller significant effects"
        lines.append(format_count(len(answer.smaller), one, several))
    named = sorted(answer.dependent, key=_has_no_level)[:MAX_NAMED]
    lines += [_answer_effect(effect, findings) for effect in named]
    if others := len(answer.dependent) - len(named):
        one = "other effect depends on another parameter"
        lines.append(format_count(others, one, "other effects depend on another parameter"))
    is_known = any(effect.main.is_decidable for effect in findings.ranked)
    if answer.undecided and is_known:
        lines.append(_describe_undecided(answer.undecided))
    return [*lines, *_list_ranks(findings.effects)]


def _has_no_level(effect: RankedEffect) -> bool:
    """Return whether an effect is significant at no value of the parameter that it depends on."""
    condition = effect.condition
    return condition is None or not any(level.is_significant for level in condition.levels)


def _answer_effect(effect: RankedEffect, findings: StudyFindings) -> str:
    """State an effect, and what is not learned at one of the values that it compares."""
    stated = describe_effect(effect, findings.measure)
    drawn = describe_drawn(findings, effect.main.contrast)
    return f"{stated} ({drawn})" if drawn else stated


def _list_ranks(effects: Sequence[Effect]) -> list[str]:
    """Name the changes that move the losses of solved and failed runs, by the second test."""
    return [
        f"{strong(label_change(effect.contrast))} has the lower loss in {effect.ranks.lower} of "
        f"{effect.ranks.pairs} pairs of runs"
        for effect in effects
        if effect.ranks is not None and effect.ranks.p < 1 - CONFIDENCE
    ]


def describe_effect(effect: RankedEffect, measure: Measure) -> str:
    """State an effect: direction, size and interval; by its conditions if it depends on one.

    ``new state lowers the validation loss by 0.399 nats [0.393, 0.404]``
    """
    main = effect.main
    if effect.condition is not None:
        return describe_condition(effect.condition, measure)
    if main.shares is not None:
        return _describe_share(main, measure)
    return f"{strong(label_change(main.contrast))} {_describe_size(main, measure, measure.name)}"


def _describe_size(effect: PairedDifference, measure: Measure, what: str) -> str:
    """Say by how much a change lowers or raises something: ``lowers it by 0.1 nats [0.0, 0.2]``."""
    verb = _choose_verb(effect)
    the = "" if what == "it" else "the "
    return f"{verb} {the}{what} {_describe_amount(effect, measure)}"


def _choose_verb(effect: PairedDifference) -> str:
    return "lowers" if effect.mean < 0 else "raises"


def _describe_amount(effect: PairedDifference, measure: Measure) -> str:
    """Say by how much a change lowers or raises something: ``by 0.1 nats [0.0, 0.2]``."""
    size = measure.format_size(abs(effect.mean))
    interval = ""
    if not math.isnan(effect.low):
        ends = sorted([effect.low, effect.high], key=abs)
        spec = measure.difference_spec
        interval = f" [{_format_end(ends[0], effect.mean, spec)}, {abs(ends[1]):{spec}}]"
    return f"by {size}{interval}"


def _format_end(end: float, mean: float, spec: str) -> str:
    """Format the end of an interval nearer to zero, for the size of its mean."""
    return f"{-abs(end) if end * mean < 0 else abs(end):{spec}}".replace("-", "−")


def _describe_share(main: Effect, measure: Measure) -> str:
    """State an effect on the share of runs that are solved.

    ``residual rescues 8 of 12 pairs and ruins 1: solved 17% → 75%, +58% [+21%, +79%]``
    """
    shares = main.shares
    assert shares is not None
    pairs = format_count(shares.pairs, "pair of runs", "pairs of runs")
    changes = [(shares.rescued, "rescues"), (shares.ruined, "ruins")]
    (first, does), (second, also) = changes if main.is_improvement else changes[::-1]
    size = measure.format_difference(main.mean) + measure.format_interval(main.low, main.high)
    return (
        f"{strong(label_change(main.contrast))} {does} {first:,} of {pairs} and {also} {second:,}: "
        f"solved {format_shares(main)}, {size}"
    )


def describe_condition(condition: ConditionalEffect, measure: Measure) -> str:
    """State an effect at the values of another parameter, each with its interval.

    ``new state lowers the loss by 0.38 nats [0.37, 0.39] without the residual; with it no effect is
    shown (+0.01 nats [−0.02, +0.03])``. Where no effect that is shown is significant, the
    difference between the two ends is stated.
    """
    label = strong(label_change(condition.contrast))
    levels = [*condition.levels]
    if len(levels) > MAX_LEVELS:
        levels = [*condition.extremes]
    levels.sort(key=lambda level: (not level.is_significant, -abs(level.mean)))
    parameter = condition.parameter
    if not levels[0].is_significant:
        first, last = (format_value(level.value) for level in condition.extremes)
        size = measure.format_size(condition.difference.mean)
        return (
            f"the effect of {label} differs significantly, by {size}, between "
            f"{format_param(parameter)} {first} and {last}; neither effect is significant"
        )
    clauses: list[str] = []
    verb = ""
    for level in levels:
        where = _name_place(parameter, level.value, is_first=not clauses)
        if level.is_significant and verb == _choose_verb(level):
            clauses.append(f"{_describe_amount(level, measure)} {where}")
        elif level.is_significant:
            what = "it" if clauses else measure.name
            clauses.append(f"{_describe_size(level, measure, what)} {where}")
            verb = _choose_verb(level)
        else:
            size = measure.format_difference(level.mean)
            size += measure.format_interval(level.low, level.high)
            if level.low > 0 or level.high < 0:  # before the correction for several tests
                clauses.append(f"{where} {size} is not significant")
            else:
                clauses.append(f"{where} no effect is shown ({size})")
    for excluded in condition.excluded:
        where = _name_place(parameter, excluded.value, is_first=False)
        is_drawn = excluded.obstacle == NOT_TRAINED
        what = "it is not trained" if is_drawn else "networks do not see their input"
        clauses.append(f"{where} {what}")
    return f"{label} {'; '.join(clauses)}"


def _name_place(parameter: str, value: Any, is_first: bool) -> str:
    """Name a value of a parameter as a place: ``without the residual``, then ``with it``."""
    name = format_param(parameter)
    if isinstance(value, bool | np.bool_):
        named = f"the {name}" if is_first else "it"
        return f"{'with' if value else 'without'} {named}"
    return f"at {name} {format_value(value)}" if is_first else f"at {format_value(value)}"


def describe_drawn(findings: StudyFindings, contrast: Contrast) -> str:
    """Say which parts stay as they were drawn at one of two values; "" if all are trained alike."""
    drawn = findings.find_drawn(contrast)
    if drawn is None:
        return ""
    value, names = drawn
    parts = join([format_param(name) for name in names])
    stay = "stays as it was" if len(names) == 1 else "stay as they were"
    return f"at {format_param(contrast.parameter)} {format_value(value)}, {parts} {stay} drawn"


def describe_insignificance(effects: Sequence[Effect]) -> str:
    """Say that no effect is significant, or why that is not known."""
    reasons = {effect.reason for effect in effects}
    if "" in reasons:
        return "no change has a significant effect"
    most = max(effects, key=lambda effect: effect.pairs)
    return f"whether any change has an effect is not known ({most.reason})"


def _describe_undecided(effects: Sequence[RankedEffect]) -> str:
    if len(effects) > MAX_NAMED:
        return f"{len(effects)} changes are undecided"
    names = join([strong(label_change(effect.main.contrast)) for effect in effects])
    return f"{names} {'is' if len(effects) == 1 else 'are'} undecided"


def _list_uncompared(findings: StudyFindings) -> list[str]:
    """Name the parameters of which no two values are compared, and say why."""
    if not findings.effects:
        return []
    reasons: dict[str, list[str]] = {}
    for name in findings.uncompared:
        reasons.setdefault(_explain_uncompared(name, findings), []).append(name)
    lines = []
    for reason, names in reasons.items():
        if reason == NO_PAIR and len(names) > 1:
            reason = "no two trials differ in one of them alone"
        lines.append(f"{strong(join_params(names))}: not compared, {reason}")
    return lines


def _explain_uncompared(name: str, findings: StudyFindings) -> str:
    if name in findings.results.uncontrasted:
        return "too many values"
    if findings.has_excluded_pairs(name):
        return "no pair of networks can show it"
    if findings.audited is not None:
        return "too few audited trials say what it does"
    return NO_PAIR


def _has_excluded_all(findings: StudyFindings) -> bool:
    """Return whether the study has no effect because no pair of networks can show one."""
    return not findings.effects and any(map(findings.has_excluded_pairs, findings.uncompared))


def explain_missing_effects(findings: StudyFindings) -> str:
    """Say why the study has no effects."""
    audited = findings.audited
    noun = findings.results.noun
    if audited is None and _has_excluded_all(findings):
        return "no effect can be estimated: no pair of networks can show one"
    if audited is None or audited.obstacle is None:
        return "no effect can be estimated: no two complete trials differ in one parameter only"
    if audited.obstacle is not Obstacle.FEW_STOPPED:
        return str(audited.obstacle).replace("architecture", noun)
    return (
        f"pruning would have changed the value of {audited.stopped} of the {audited.audited} "
        f"audited {noun}s: at least {MIN_STOPPED} are needed to estimate an effect"
    )


# ------------------------------------------------------------------ architectures


def describe_best(findings: StudyFindings) -> str:
    """Name the best architecture with its loss, and say what its place is worth."""
    best = findings.summary.best
    metric = findings.results.metric
    name = f"{strong(best.full_label)} (trial {best.number})"
    if best.solved is not None and best.runs > 1:
        return f"best: {name}, {describe_runs(best, metric)}"
    line = f"best: {name}, {metric.name} {metric.format(best.loss)}"
    if best.runs > 1:
        mean = "adjusted mean" if best.is_adjusted else "mean"
        interval = f"[{metric.format_number(best.low)}, {metric.format_number(best.high)}]"
        return f"{line}, {mean} of {best.runs} runs {interval}"
    rivals = findings.rivals
    if rivals is None:
        return f"{line}; a single run, so its place is partly luck"
    noun = findings.results.noun
    others = format_count(rivals.count, f"other {noun}") if rivals.count else f"no other {noun}"
    are = "is" if rivals.count < 2 else "are"
    width = metric.format_size(rivals.width)
    return f"{line}; {others} {are} within the noise of two runs ({width})"


def describe_runs(entry: LeaderboardEntry, metric: Measure) -> str:
    """Describe runs that are solved or not.

    ``solved 2 of 3 [21%, 94%], validation cross-entropy 0.003, from 0.0006 to 0.675``
    """
    assert entry.solved is not None
    ends = [metric.format_number(end) for end in (entry.low, entry.high)]
    return (
        f"solved {format_solved(entry.solved)}, median {metric.name} {metric.format(entry.loss)}, "
        f"from {ends[0]} to {ends[1]}"
    )


def count_verdicts(findings: StudyFindings) -> str:
    """Count the verdicts on all architectures but the best mean."""
    judgement = findings.summary.judgement
    assert judgement is not None
    counts = [f"{judgement.count(name)} {name}" for name in ("worse", "as good", "undecided")]
    if judgement.without_run:
        counts.append(f"{judgement.without_run} without a complete run")
    return f"compared with the best: {', '.join(counts)}"


def describe_smallest(findings: StudyFindings) -> str:
    """Say which is the smallest architecture that is as good as the best."""
    summary = findings.summary
    assert summary.judgement is not None
    limit = f"{summary.judgement.margin:g} {findings.results.metric.unit}".rstrip()
    margin = f"at most {limit} worse"
    if smallest := summary.smallest:
        name = strong(smallest.full_label)
        size = f"{smallest.parameter_count:,.0f} parameters instead of "
        return (
            f"the smallest that is as good as the best ({margin}): {name}, with {size}"
            f"{summary.best.parameter_count:,.0f}"
        )
    if summary.best.parameter_count <= min(entry.parameter_count for entry in summary.entries):
        return "the best is the smallest"
    return f"no smaller one is shown to be as good as the best ({margin})"


def list_agreement(comparison: TaskComparison) -> list[str]:
    """Say which changes have the same effect across tasks, a clause for each line."""
    contrasts = comparison.contrasts
    effects = [effect for contrast in contrasts for effect in contrast.by_task.values()]
    if not any(effect.is_decidable for effect in effects):
        return ["whether a change has the same effect in several tasks is not known: too few pairs"]
    lines = [
        f"{strong(label_change(contrast.contrast))} {contrast.agreement} tasks"
        for contrast in contrasts
        if contrast.agrees
    ]
    mixed = [
        label_change(contrast.contrast)
        for contrast in contrasts
        if contrast.helps and contrast.harms
    ]
    if not lines:
        lines = ["no change has significant effects of the same sign in two tasks or more"]
    return [*lines, f"of opposite signs: {', '.join(mixed)}"] if mixed else lines


# ------------------------------------------------------------------ warnings


def list_warnings(findings: StudyFindings) -> list[str]:
    """List what a reader of the answer must know."""
    results = findings.results
    warnings = [describe_edge(edge, results.noun) for edge in findings.edges if edge.is_prominent]
    warnings += [describe_divergence(found) for found in findings.divergences[:MAX_NAMED]]
    if more := findings.divergences[MAX_NAMED:]:
        count = format_count(len(more), f"other {results.noun}")
        warnings.append(f"{count} diverged in most trials")
    warnings += [_describe_budget(budget) for budget in findings.budgets]
    for name, column in (("the training code", "code"), ("PyTorch", "torch")):
        versions = results.count_versions(column)
        if versions > 1:
            warnings.append(f"the trials were trained by {versions} versions of {name}")
    if results.config.results and results.config.results.is_adaptive:
        warnings.append(
            "a sampler may have chosen later trials by the results of earlier ones: effects and "
            "importances describe these trials, not the whole space"
        )
    return warnings


def describe_edge(edge: Edge, noun: str) -> str:
    """Warn that architectures are best at an end of the values tried."""
    end = "highest" if edge.is_highest else "lowest"
    advice = "higher" if edge.is_highest else "lower"
    are = f"{noun} is" if edge.total == 1 else f"{noun}s are"
    best = ", the best of all among them" if edge.has_best and edge.total > 1 else ""
    return (
        f"{edge.count:,} of {edge.total:,} {are} best at {format_param(edge.parameter)} "
        f"{format_value(edge.value)}, the {end} value tried{best}: try {advice} ones"
    )


def describe_divergence(divergence: Divergence) -> str:
    """Say how often a cell or an architecture diverged."""
    trials = format_count(divergence.ended, "trial")
    return f"{strong(divergence.name)} diverged in {divergence.diverged:,} of {trials}"


def _describe_budget(budget: UnequalBudget) -> str:
    """Say that the values of a parameter get unequal budgets in the same number of steps."""
    values = f"{format_param(budget.parameter)} {format_value(budget.most)} has"
    times = f"{budget.ratio:.3g} times as many {budget.unit}"
    return f"in the same number of steps, {values} {times} as {format_value(budget.least)}"


# ------------------------------------------------------------------ effects


def describe_pairs(findings: StudyFindings) -> str:
    """Say in sentences what the effects are means over."""
    results = findings.results
    sign = "positive" if findings.measure.higher_is_better else "negative"
    better = f"a {sign} difference is better"
    if findings.is_additive:
        return to_sentence(better)
    if findings.solved is not None:
        return (
            "Shares of runs that are solved, over all pairs that differ in this alone: a pair is "
            "rescued if only its second run is solved, ruined if only its first is."
        )
    if findings.audited:
        return (
            "Mean difference over all pairs of values or, of pruned trials, of predictions; the "
            f"{findings.audited.audited} audited {results.judged_noun}s correct the mean, "
            f"whatever the predictions are worth; {better}."
        )
    parts = [f"at its best {join_params(results.nuisance)}"] if results.nuisance else []
    judged = f"{results.noun}s, each {' and '.join(parts)}," if parts else "trials"
    text = f"Mean difference over all pairs of {judged} that differ in this alone; {better}."
    if findings.excludes_some:
        text += (
            " Pairs that cannot show it do not count: those with a network that does not see its "
            "input, and those in which the parts that the change adds are never trained."
        )
    if results.is_grid and results.table["value"].notna().all():
        return text
    return f"{text} With all combinations of the values an effect may be another."


def list_noise(findings: StudyFindings) -> list[str]:
    """Say in sentences what the intervals of the effects were estimated from; none without any."""
    methods = {effect.method for effect in findings.effects} - {Method.ADDITIVE}
    if not methods:
        return []
    if Method.AUDIT in methods:
        return ["The interval is that of drawing other audited trials, without the noise of runs."]
    if Method.SHARES in methods:
        return [
            "Significance is that of McNemar’s mid-p test, the interval that of Bonett and Price.",
            "Second, a test of its own: in how many pairs the loss is lower, by Wilcoxon’s signed "
            "ranks; the loss of a run that diverged is the highest.",
        ]
    lines = [f"Intervals rest on the {join(sorted(methods))}."]
    if Method.SEEDS in methods:
        lines.append("They hold for the orders of the data that the seeds had.")
    if not all(effect.is_decidable for effect in findings.effects):
        lines.append(f"Fewer than {MIN_DIFFERENCES} differences are not tested.")
    return lines


# ------------------------------------------------------------------ pruning


def describe_pruning(findings: StudyFindings) -> str:
    """Say what the audited trials show about what pruning lost."""
    audit = findings.audit
    counts = findings.results.counts
    if counts.finished < counts.planned:
        return "what is lost is measured at the end"
    if not audit or not audit.is_valid or not audit.stopped:
        return "what was lost is not measured"
    if audit.recall_low < TELLING_RECALL:
        return f"{audit.stopped} audited are too few to bound what was lost"
    kept = f"at least {audit.recall_low:.0%} of the best {audit.top_count} are complete"
    wrong = "; their predictions were not right" if audit.is_alarm else ""
    return f"{kept}, by {audit.stopped} audited{wrong}"


def list_audit(findings: StudyFindings) -> list[str]:
    """Say in sentences what was audited, and what that shows about recall and predictions."""
    audit = findings.audit
    results = findings.results
    noun = results.judged_noun
    if audit is None:
        return ["No trial was audited: what pruning lost is not known."]
    sample = format_count(audit.architectures, noun)
    sentences = [
        f"{sample} of {audit.planned}, chosen at random, were to be trained to the end whatever "
        f"the pruner decided; {audit.stopped} of them would have been pruned."
    ]
    if any(look.alarm for look in audit.looks.values()):
        sentences.append(
            "Too few of them finished where they were predicted: the predictions were recalibrated."
        )
    if not audit.is_valid:
        reason = "They were drawn for other nuisance parameters and measure nothing."
        return [*sentences, reason]
    if not results.is_finished or not audit.stopped:
        return sentences
    recall = (
        f"Recall: {audit.lost} of these are better than the last of the best {audit.top_count} "
        "that the pruner kept"
    )
    if audit.recall_low < TELLING_RECALL:
        sentences.append(f"{recall}; so few say little about what was lost.")
    else:
        pruned = format_count(audit.pruned, f"pruned {noun}")
        sentences.append(
            f"{recall}. With 95% confidence at most {audit.lost_high} of the {pruned} are, so at "
            f"least {audit.recall_low:.0%} of the best are complete."
        )
    if audit.tested:
        sentences.append(_describe_predictions(audit, results.measure))
    return sentences


def _describe_predictions(audit: PruningAudit, measure: Measure) -> str:
    interval = measure.format_interval(audit.bias_low, audit.bias_high)
    text = (
        f"Predictions: {audit.inside} of {audit.tested} trials finished within two scales, "
        f"{STATED_SHARE:.0%} expected (exact test, p = {audit.p_value:.2g}); mean error "
        f"{measure.format_difference(audit.bias)}{interval}."
    )
    if not audit.is_alarm:
        return text
    return f"{text} {strong('The predictions were not right: do not rely on what was pruned.')}"
