"""What a study shows, as sentences: its answer, its last line and its warnings.

The only writer of the first screen of a page, the last line of a search, the note of the dashboard
and the warnings in printed tables, so that they agree. The findings are data
(:mod:`reports.findings`), each of them is put into words by :mod:`reports.phrases`.
"""

import math
from collections.abc import Sequence

from reports.analysis.nuisance import join_names
from reports.findings import StudyFindings, TaskComparison
from reports.formatting import objective_name
from reports.phrases import (
    describe_agreement,
    describe_best,
    describe_budget,
    describe_dependence,
    describe_divergence,
    describe_edge,
    describe_effect,
    describe_holding,
    describe_least_squares,
    describe_outliers,
    describe_reversal,
    describe_smallest,
    describe_verdicts,
    format_progress,
    join,
    strong,
    to_plain,
    to_sentence,
)
from reports.results import Results
from reports.stats.audit import MIN_STOPPED, STATED_SHARE, Obstacle
from reports.stats.conditional_effects import RankedEffect
from reports.stats.effects import Effect
from reports.stats.noise import NoiseSource
from reports.stats.scale import format_count, format_interval, format_param, format_signed

MAX_NAMED = 4
"""Undecided effects, divergences and the like that are named; of more, the number is given."""

TELLING_RECALL = 0.5
"""Lower bound of the recall below which an audit says little about it."""

N_IN_LINE = 2
"""Largest number of main effects in the last line of a search."""


def write_answer(findings: StudyFindings) -> list[str]:
    """Answer the question of a study in two sentences, marked.

    The first names the largest effects with direction and size, the second the smaller ones and
    those that are undecided; of replicates they name the best and state the verdicts.
    """
    if findings.summary.has_verdicts:
        return [to_sentence(describe_best(findings)), to_sentence(describe_verdicts(findings))]
    if not findings.ranked:
        missing = to_sentence(explain_missing_effects(findings))
        return [missing, to_sentence(describe_best(findings))]
    if not findings.largest:
        rest = [_describe_undecided(findings.ranked, findings.ranked), *_list_uncompared(findings)]
        rest += describe_holding(findings.holding)
        return [_state_nothing(findings), to_sentence("; ".join(rest))]
    return [_state_largest(findings), _state_others(findings)]


def write_headline(
    studies: Sequence[StudyFindings], across_tasks: TaskComparison | None = None
) -> str:
    """Name the best network and the largest significant effects; warnings follow, each on a line.

    The network is the best of all studies that are comparable with the first one. The effects are
    those of the first study that has any. Of a study of several tasks the best of each is named.

    Args:
        studies: findings of the studies of a report, of one with several tasks those of each.
        across_tasks: comparison of the tasks of the first study; None if it has one.
    """
    in_study = "in study {!r}, " if len(studies) > 1 else ""
    warnings = [
        f"warning: {in_study.format(each.results.title)}{warning}"
        for each in studies
        for warning in list_warnings(each)
    ]
    if across_tasks is not None and len(across_tasks.tasks) > 1:
        tasks = studies[: len(across_tasks.tasks)]
        study = _of_study(studies[0], studies[len(tasks) - 1 :])
        bests = "; ".join(f"{each.results.task}: {_name_best(each)}" for each in tasks)
        line = f"best by task{study}: {bests}; {describe_agreement(across_tasks.contrasts)}"
    else:
        line = _write_line(studies)
    return to_plain("\n".join([line, *warnings]))


def _name_best(findings: StudyFindings, study: str = "") -> str:
    """Name the best network and its loss in a line."""
    best, metric = findings.summary.best, findings.results.metric
    runs = ""
    if best.runs > 1 or best.is_adjusted:
        mean = "adjusted mean" if best.is_adjusted else "mean"
        runs = f", {mean} of {format_count(best.runs, 'run')}"
    value = f"{metric.scale.format_value(best.mean)} {metric.unit}".rstrip()
    return f"{best.full_label} (trial {best.number}{study}), {value}, {metric.name}{runs}"


def _write_line(studies: Sequence[StudyFindings]) -> str:
    key = _comparison_key(studies[0].results)
    best = min(
        (each for each in studies if _comparison_key(each.results) == key),
        key=lambda each: each.results.scale.to_loss(each.summary.best.mean),
    )
    parts = [f"best: {_name_best(best, _of_study(best, studies))}"]
    if best.summary.has_verdicts:
        parts.append(describe_smallest(best.summary, best.results.metric.unit))
    first = next((each for each in studies if each.ranked), None)
    if first is not None:
        parts.append(_list_largest(first, _of_study(first, studies, "in")))
        parts += _list_uncompared(first)
    elif not best.summary.has_verdicts:
        parts.append(explain_missing_effects(best))
    return "; ".join(parts)


def _comparison_key(results: Results) -> tuple[object, ...]:
    """Return what comparable studies have in common."""
    return results.metric.column, results.metric.name, results.metric.unit, results.data


def _of_study(findings: StudyFindings, studies: Sequence[StudyFindings], of: str = "of") -> str:
    return f" {of} {findings.results.name!r}" if len(studies) > 1 else ""


def _list_largest(findings: StudyFindings, study: str) -> str:
    """List the largest effects in a clause, and all changes that help here and harm there."""
    if not (findings.largest or findings.reversals):
        return f"{describe_insignificance(findings.effects)}{study}"
    named = findings.largest[:N_IN_LINE]
    directed = [describe_effect(each) for each in named if _find_verb(each)]
    listed = f"largest significant effects{study}: {'; '.join(directed)}" if directed else ""
    dependent = [describe_dependence(each) for each in named if not _find_verb(each)]
    reversals = [describe_reversal(each) for each in findings.reversals if each not in named]
    return "; ".join(filter(None, [listed, *dependent, *reversals]))


def list_warnings(findings: StudyFindings) -> list[str]:
    """List what a reader of the answer must know, clauses without a final full stop."""
    named, more = findings.divergences[:MAX_NAMED], findings.divergences[MAX_NAMED:]
    edges, noun = [each for each in findings.edges if each.is_prominent], findings.results.noun
    warnings = [describe_edge(each, noun) for each in edges]
    warnings += map(describe_divergence, named)
    if more:
        count = format_count(len(more), "other architecture")
        warnings.append(
            f"{count} diverged in most of {'its' if len(more) == 1 else 'their'} trials"
        )
    if assumption := describe_least_squares(findings):
        warnings.append(assumption)
    if len(findings.outliers):
        warnings.append(describe_outliers(findings))
    warnings += _warn_of_versions(findings.results)
    return [*warnings, *map(describe_budget, findings.budgets)]


def _warn_of_versions(results: Results) -> list[str]:
    """Warn if more than one version of the training code or PyTorch trained complete trials."""
    counts = {
        "the training code": results.count_versions("code"),
        "PyTorch": results.count_versions("torch"),
    }
    mixed = [f"{count} versions of {name}" for name, count in counts.items() if count > 1]
    if not mixed:
        return []
    return [f"the trials were trained by {' and '.join(mixed)}"]


def _state_nothing(findings: StudyFindings) -> str:
    ranked = findings.ranked
    nothing = "no change has a significant effect on the {}"
    if not any(each.main.is_decidable for each in ranked):
        nothing = "whether any change has an effect on the {} is not known"
    name, first = objective_name(findings.results.config), ranked[0]
    # The next sentence gives the sizes of those whose interval excludes zero.
    has_size = not (_excludes_zero(first) or math.isnan(first.size))
    largest = f"; the largest is {describe_effect(first)}" if has_size else ""
    return to_sentence(f"{_format_scope(findings)}{nothing.format(name)}{largest}")


def _excludes_zero(effect: RankedEffect) -> bool:
    return effect.main.low > 0 or effect.main.high < 0


def _state_largest(findings: StudyFindings) -> str:
    """State the largest significant effects, by their direction."""
    largest, name = findings.largest, objective_name(findings.results.config)
    directed = [each for each in largest if _find_verb(each)]
    # Else a larger one is undecided, or has no direction.
    most = "most " if directed[:1] == findings.ranked[:1] else ""
    by_verb: dict[str, list[str]] = {}
    for effect in directed:
        by_verb.setdefault(_find_verb(effect), []).append(describe_effect(effect))
    phrases = [
        f"{verb} {'' if i else most}with {join(effects)}"
        for i, (verb, effects) in enumerate(by_verb.items())
    ]
    parts = [f"the {name} {', and '.join(phrases)}"] if phrases else []
    parts += [describe_dependence(each) for each in largest if each not in directed]
    return to_sentence(_format_scope(findings) + "; ".join(parts))


def _state_others(findings: StudyFindings) -> str:
    """Name what depends on another parameter, count smaller effects, and name undecided ones."""
    named = set(map(id, [*findings.largest, *findings.reversals]))
    others = [each for each in findings.ranked if id(each) not in named]
    smaller = [each for each in others if each.has_significant_mean]
    conditional = [e for e in others if e.is_significant and not e.has_significant_mean]
    dependent = [each for each in conditional if not each.direction]
    conditional = [each for each in conditional if each.direction]
    undecided = [each for each in others if not each.is_significant]
    parts = [describe_reversal(each) for each in findings.reversals if each not in findings.largest]
    if smaller:
        one = "other change has a smaller significant effect"
        several = "other changes have smaller significant effects"
        parts.append(format_count(len(smaller), one, several))
    if conditional:
        parts.append(_describe_conditional(conditional))
    parts += map(describe_dependence, dependent)
    if undecided:
        parts.append(_describe_undecided(undecided, findings.ranked))
    parts += _list_uncompared(findings)
    return to_sentence("; ".join(parts) or "no other change was tried")


def _find_verb(effect: RankedEffect) -> str:
    """Return what the loss does with a change where it is significant; "" if that is nowhere."""
    if effect.direction:
        return "falls" if effect.direction < 0 else "rises"
    if effect.condition is None or not effect.condition.has_opposite_signs:
        return ""
    return f"falls or rises, depending on {format_param(effect.condition.parameter)},"


def _describe_conditional(effects: Sequence[RankedEffect]) -> str:
    """Name effects that are significant under a condition alone."""
    listed = join([describe_effect(each) for each in effects[:MAX_NAMED]])
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
    names = join(
        [
            describe_effect(each) if each in apart else label
            for each, label in zip(effects, labels, strict=True)
        ]
    )
    is_all = len(effects) == len(tried)
    if len(effects) > MAX_NAMED:
        names = f"{'all ' if is_all else ''}{len(effects)} changes"
        if apart:
            names += f", {join(list(map(describe_effect, apart)))} among them,"
    text = f"{names} {'is' if len(effects) == 1 else 'are'} undecided"
    untested = [each.main for each in effects if each.main.reason]
    if len(untested) == len(effects):
        return f"{text} ({_join_reasons(untested)})"
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
        return f"whether any effect differs from zero is not known ({_join_reasons(untested)})"
    none = "no effect is significantly different from zero"
    return f"{none}; {_count_untested(untested)}" if untested else none


def _join_reasons(effects: Sequence[Effect]) -> str:
    """Return the reason of most effects, which they have in common but for their numbers."""
    return max(effects, key=lambda each: each.pairs).reason + " at most" * (
        len({each.pairs for each in effects}) > 1
    )


def _count_untested(effects: Sequence[Effect]) -> str:
    return f"{format_count(len(effects), 'change has', 'changes have')} {_join_reasons(effects)}"


def _list_uncompared(findings: StudyFindings) -> list[str]:
    """Say what is known of the parameters that no matched pair compares, a clause for each."""
    names = findings.uncompared
    if not names:
        return []
    listed = join([strong(format_param(name)) for name in names])
    verb, it = ("is", "it") if len(names) == 1 else ("are", "one of them")
    reason = f"no two trials differ in {it} alone"
    if findings.results.uncontrasted.issuperset(names):
        reason = "too many values"
    return [f"{listed} {verb} not compared: {reason}"]


def explain_missing_effects(findings: StudyFindings) -> str:
    """Say why the study has no effects, in one clause."""
    results, audited = findings.results, findings.audited
    if audited is None or audited.obstacle is None:
        return describe_insignificance([])
    if audited.obstacle is Obstacle.NO_AUDIT:
        return "no trial was audited, so no effect can be estimated"
    if audited.obstacle is Obstacle.OTHER_SAMPLE:
        unit = join_names(results.audit_nuisance)
        drawn = f"architectures, each at all values of {unit}" if unit else "single trials"
        judged = f"at its best {join_names(results.nuisance)}" if results.nuisance else "by trial"
        return (
            f"the audited trials were drawn as {drawn}, and each architecture is now judged "
            f"{judged}: they are no sample of what is compared"
        )
    if audited.obstacle is Obstacle.UNFINISHED:
        return (
            "there is no answer yet: the effects of a pruned study are estimated once its search "
            f"is finished, and {results.counts.finished:,} of {results.counts.planned:,} trials are"
        )
    if audited.obstacle is Obstacle.NO_PAIRS:
        return "no two architectures differ in one parameter only"
    return (
        f"pruning would have changed the value of {audited.stopped} of the {audited.audited} "
        f"audited architectures: at least {MIN_STOPPED} are needed to estimate an effect"
    )


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
    return format_progress(findings) + (f"{', '.join(parts)}, " if parts else "")


def describe_noise(findings: StudyFindings) -> list[str]:
    """Say in sentences what the intervals of the effects were estimated from; none without any."""
    sources, noun = {effect.source for effect in findings.effects}, findings.results.noun
    if not sources:
        return []
    if sources == {NoiseSource.ADDITIVE}:
        return ["The interval allows noise that differs between runs."]
    sources.discard(NoiseSource.ADDITIVE)
    if NoiseSource.AUDIT in sources:
        return ["The interval does not contain the noise between runs."]
    if sources == {NoiseSource.PAIRS}:
        trials = f"{noun}s at their best" if findings.results.nuisance else "trials"
        return [
            f"The noise between runs cannot be estimated from these {trials}, so the interval is "
            "that of the differences between the pairs.",
            "It contains the noise and is too wide where the effect differs between contexts.",
            "An effect of fewer than eight pairs is not called significant.",
        ]
    source = min(sources - {NoiseSource.PAIRS})
    text = f"The noise between runs is estimated from {source}"
    if source is NoiseSource.REPLICATES:
        studies = [f"study {name!r}" for name in findings.results.replicate_studies]
        text += f" of these {noun}s{f' in {join(studies)}' if studies else ''}."
    else:
        text += "; interactions that exist make it look larger, never smaller."
    if NoiseSource.PAIRS not in sources:
        return [text]
    return [
        text,
        f"Where few {noun}s carry an effect, the differences between the pairs are used, and an "
        "effect of fewer than eight such pairs is not called significant.",
    ]


# ------------------------------------------------------------------ pruning


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


def describe_audit(findings: StudyFindings) -> str:
    """Say in sentences, marked, what was audited and what that can measure."""
    audit, results = findings.audit, findings.results
    if audit is None:
        return (
            "No trial was audited: what pruning lost, and whether its predictions were right, is "
            "not known. The setting pruning.audit has a random sample trained to the end."
        )
    sample = format_count(audit.architectures, results.judged_noun)
    was = "was" if audit.architectures == 1 else "were"
    parts = [
        f"{sample} of {audit.planned}, chosen at random, {was} to be trained to the end whatever "
        "the pruner decided."
    ]
    if audit.has_held_back:
        parts.append(
            strong(
                "During the search too few of them finished where they were predicted, so pruning "
                "was held back: the predictions were recalibrated on them."
            )
        )
    if not results.is_finished:
        parts.append("What they measure is shown once the search is finished.")
    elif not audit.is_valid:
        parts.append(
            "They were drawn before the nuisance parameters of this study were changed, or as "
            "single trials: they are no sample of the architectures as these are judged now, and "
            "measure nothing about them."
        )
    elif not audit.stopped:
        parts.append("None of them would have been pruned, so they measure nothing.")
    else:
        best = join_names(results.nuisance)
        judged = f" at some {best}; each is judged at its best one" if best else ""
        parts.append(f"{audit.stopped} of them would have been pruned{judged}.")
    return " ".join(parts)


def list_audit_findings(findings: StudyFindings) -> list[str]:
    """List what the audited trials show, marked: recall, predictions and bias; may be empty."""
    audit, results = findings.audit, findings.results
    if not (audit and results.is_finished and audit.is_valid and audit.stopped):
        return []
    noun, scale = results.judged_noun, results.scale
    recall = (
        f"Recall: {audit.lost} of these {audit.stopped} {'is' if audit.lost == 1 else 'are'} "
        f"better than the last of the best {audit.top_count} that the pruner kept. With 95% "
        f"confidence this is so of at most {audit.lost_high} of the "
        f"{format_count(audit.pruned, f'pruned {noun}')}, so at least {audit.recall_low:.0%} of "
        f"the best {audit.top_count} are complete."
    )
    recall += (
        f" Only audited {noun}s show whether a loss falls after the step at which its {noun} was "
        f"pruned."
    )
    if audit.recall_low < TELLING_RECALL:
        recall += f" So few audited {noun}s say little about recall."
    if not audit.tested:
        return [recall]
    predictions = (
        f"Predictions: {audit.inside} of {audit.tested} trials finished within two scales of the "
        f"recorded prediction, {STATED_SHARE:.0%} expected (exact test, p = "
        f"{audit.p_value:.2g})."
    )
    if audit.is_alarm:
        warning = (
            "The predictions were not right: do not rely on what was pruned, and search without "
            "pruning if every trial of the best counts."
        )
        predictions += f" {strong(warning)}"
    interval = format_interval(audit.bias_low, audit.bias_high, scale.spec)
    bias = (
        f"Bias: they finished {scale.format_difference(audit.bias)}{interval} from their "
        "predictions on average; negative is better than predicted."
    )
    return [recall, predictions, bias]
