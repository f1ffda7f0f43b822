"""Answer the question of a study in two sentences that claim no more than the intervals allow.

The first sentence names the largest effects with their direction and size, the second one the
smaller effects and those that are undecided. Whether an effect is significant is corrected for the
number of effects, see :class:`reports.stats.conditional_effects.RankedEffect`.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup

from reports.formatting import objective_name
from reports.page.section import Section
from reports.stats.additive_findings import describe_trend, format_additive_line
from reports.stats.conditional_effects import RankedEffect, describe_insignificance
from reports.stats.paired_difference import MIN_PAIRS
from reports.stats.scale import format_count, format_param, format_signed
from reports.stats.tasks import describe_agreement

MAX_NAMED = 4
"""Undecided effects that are named; of more, the number is given."""

N_EFFECTS = 2
"""Largest number of main effects in the line."""


def answer_question(section: Section) -> list[Markup]:
    """Return the two sentences, as HTML."""
    if section.summary.has_verdicts:
        return [_name_best(section), _state_verdicts(section)]
    ranked = section.ranked_effects
    if not ranked:
        model = [Markup("{}").format(each) for each in section.additive_sentences]
        missing = [_to_sentence("{}", explain_missing_effects(section))]
        return [*(model or missing), _name_best(section)]
    if not section.largest_effects:
        undecided = [_describe_undecided(ranked, len(ranked)), *_list_uncompared(section)]
        return [_state_nothing(section, ranked), _to_sentence("{}", Markup("; ").join(undecided))]
    return [_state_largest(section, ranked), _state_others(section, ranked)]


def _name_best(section: Section) -> Markup:
    """Name the best architecture, with its loss."""
    best, metric = section.summary.best, section.results.metric
    mean, interval, format_value = "", "", metric.scale.format_value
    if best.runs > 1:
        mean = "adjusted mean " if best.is_adjusted else "mean "
        interval = f", 95% interval {format_value(best.low)} to {format_value(best.high)}"
    return _to_sentence(
        "{}the {} {}{} is {}{}, of <strong>{}</strong>",
        _format_progress(section),
        metric.scale.best_name,
        mean,
        metric.name,
        f"{format_value(best.mean)} {metric.unit}".strip(),
        interval,
        best.full_label,
    )


def _state_verdicts(section: Section) -> Markup:
    """State how many replicated architectures are worse than the best, and how many as good."""
    summary = section.summary
    judgement = summary.judgement
    assert judgement is not None
    return _to_sentence(
        "of the others, {} significantly worse, {} as good (at most {} worse) and {} "
        "undecided{}; {}",
        format_count(judgement.count("worse"), "is", "are"),
        judgement.count("as good"),
        f"{judgement.margin} {section.results.metric.unit}".rstrip(),
        judgement.count("undecided"),
        judgement.without_run_text,
        summary.describe_smallest(Markup("<strong>{}</strong>").format),
    )


def explain_missing_effects(section: Section) -> str:
    """Say why the study has no effects, in one clause."""
    counts, audited = section.results.counts, section.audited_effects
    if audited is None:
        return describe_insignificance([])
    if counts.finished < counts.planned:
        return (
            "there is no answer yet: the effects of a pruned study are estimated once its search "
            f"is finished, and {counts.finished:,} of {counts.planned:,} trials are"
        )
    return audited.reason[:1].lower() + audited.reason[1:].removesuffix(".")


def _state_nothing(section: Section, ranked: Sequence[RankedEffect]) -> Markup:
    nothing = "no change has a significant effect on the {}"
    if not any(each.main.is_decidable for each in ranked):
        nothing = "whether any change has an effect on the {} is not known"
    return _to_sentence(
        "{}" + nothing + "; the largest is {}",
        _format_scope(section),
        objective_name(section.results.config),
        _emphasize(ranked[0]),
    )


def _state_largest(section: Section, ranked: Sequence[RankedEffect]) -> Markup:
    """State the largest significant effects, by their direction."""
    most = "most " if ranked[0].is_significant else ""  # else a larger one is undecided
    by_verb: dict[str, list[Markup]] = {}
    for effect in section.largest_effects:
        by_verb.setdefault(_find_verb(effect), []).append(_emphasize(effect))
    phrases = [
        Markup("{} {}with {}").format(verb, "" if i else most, _join(effects))
        for i, (verb, effects) in enumerate(by_verb.items())
    ]
    name = objective_name(section.results.config)
    return _to_sentence("{}the {} {}", _format_scope(section), name, Markup(", and ").join(phrases))


def _state_others(section: Section, ranked: Sequence[RankedEffect]) -> Markup:
    """State how many effects are smaller, and which are undecided."""
    named = {id(each.main) for each in section.largest_effects}
    others = [each for each in ranked if id(each.main) not in named]
    smaller = sum(each.is_significant for each in others)
    undecided = [each for each in others if not each.is_significant]
    parts = []
    if smaller:
        count = format_count(smaller, "other change has", "other changes have")
        parts.append(Markup("{} smaller significant effects").format(count))
    if undecided:
        parts.append(_describe_undecided(undecided, len(ranked)))
    parts += _list_uncompared(section)
    return _to_sentence("{}", Markup("; ").join(parts) or "no other change was tried")


def _describe_undecided(effects: Sequence[RankedEffect], tried: int) -> Markup:
    """Name effects that are not significant, and the range of their intervals.

    Args:
        effects: the effects.
        tried: number of all effects, for which the tests are corrected.
    """
    # A reader sees these intervals exclude zero, which a range of several would hide.
    apart = [each for each in effects if each.main.low > 0 or each.main.high < 0][:MAX_NAMED]
    names = [_emphasize(each) if each in apart else _name(each) for each in effects]
    if len(effects) > MAX_NAMED:
        names = [Markup("{} changes").format(len(effects))]
        if len(effects) == tried:
            names = [Markup("all {} changes").format(tried)]
        if apart:
            listed = _join(list(map(_emphasize, apart)))
            names = [Markup("{}, {} among them,").format(names[0], listed)]
    verb = "is" if len(effects) == 1 else "are"
    text = Markup("{} {} undecided").format(_join(names), verb)
    if not any(each.main.is_decidable for each in effects):
        each_has = "it has" if len(effects) == 1 else "each has"
        text += Markup(": {} fewer than {} pairs, too few to decide").format(each_has, MIN_PAIRS)
    elif tried > 1:
        number = "their number" if len(effects) == tried else f"{tried} changes"
        text += Markup(" after correction for {}").format(number)
    bounds = [bound for each in effects for bound in (each.main.low, each.main.high)]
    if apart or any(map(math.isnan, bounds)):
        return text
    spec = effects[0].main.scale.spec
    low, high = (format_signed(end, spec) for end in (min(bounds), max(bounds)))
    intervals = "the 95% interval reaches" if len(effects) == 1 else "the 95% intervals reach"
    return Markup("{} ({} from {} to {})").format(text, intervals, low, high)


def _list_uncompared(section: Section) -> list[Markup]:
    """Say what is known of the parameters that no matched pair compares, a clause for each."""
    compared = {each.main.contrast.parameter for each in section.ranked_effects}
    names = [name for name in section.results.judged_parameters if name not in compared]
    trends = section.additive.trends if section.additive else ()
    known = [each for each in trends if each.parameter in names]
    names = [name for name in names if name not in [each.parameter for each in known]]
    clauses = [
        Markup("by an additive model, {}").format(describe_trend(each, section.results.scale))
        for each in known
    ]
    if not names:
        return clauses
    listed = _join([Markup("<strong>{}</strong>").format(format_param(name)) for name in names])
    verb, it = ("is", "it") if len(names) == 1 else ("are", "one of them")
    reason = f"no two trials differ in {it} alone"
    if section.results.uncontrasted.issuperset(names):
        reason = "too many values"
    return [*clauses, Markup("{} {} not compared: {}").format(listed, verb, reason)]


def _find_verb(effect: RankedEffect) -> str:
    """Return what the loss does with a change, under each condition where it is significant."""
    means = [effect.main.mean]
    if effect.condition:
        shown = [effect.condition.least, effect.condition.greatest]
        # If neither is, their difference is: both sizes are shown.
        means = [each.mean for each in shown if each.is_significant] or [e.mean for e in shown]
    if max(means) < 0:
        return "falls"
    return "rises" if min(means) > 0 else "falls or rises, depending on the other parameters,"


def _name(effect: RankedEffect) -> Markup:
    """Return the change in bold."""
    return Markup("<strong>{}</strong>").format(effect.main.contrast.label)


def _emphasize(effect: RankedEffect) -> Markup:
    """Return the change in bold, and its size in parentheses."""
    size = effect.text.removeprefix(effect.main.contrast.label).lstrip(": ")
    return Markup("{} ({})").format(_name(effect), size)


def _format_scope(section: Section) -> Markup:
    """Return for which trials the statement holds, to begin a sentence; "" for a whole grid."""
    results = section.results
    parts = []
    refinement = results.config.refinement
    if refinement is not None and refinement.trial is None:
        parts.append(f"among the best of {refinement.source}")
    if section.nuisance:
        parts.append(f"at each {results.noun}’s best {section.nuisance.names}")
    if section.audited_effects:
        pruned = results.counts.pruned
        parts.append(f"by predictions for the {pruned:,} pruned trials, corrected by an audit")
    text = ", ".join(parts)
    return _format_progress(section) + Markup("{}").format(f"{text}, " if text else "")


def _format_progress(section: Section) -> Markup:
    """Return how much of an unfinished study is known, to begin a sentence."""
    counts = section.results.counts
    if counts.finished >= counts.planned:
        return Markup("")
    if section.audited_effects is not None:  # another sentence has the numbers
        return Markup("so far, ")
    return Markup("so far, with {:,} of {:,} trials finished, ").format(
        counts.finished, counts.planned
    )


def _join(parts: Sequence[Markup]) -> Markup:
    """Join phrases: ``a``, ``a and b``, ``a, b and c``."""
    if len(parts) < 2:
        return Markup("").join(parts)
    return Markup(", ").join(parts[:-1]) + Markup(" and ") + parts[-1]


def _to_sentence(template: str, *values: object) -> Markup:
    """Fill in a template, with an upper-case first letter and a full stop."""
    text = str(Markup(template).format(*values))
    first = text.index(">") + 1 if text.startswith("<strong>") else 0
    return Markup(text[:first] + text[first].upper() + text[first + 1 :] + ".")  # escaped above


def format_headline(sections: Sequence[Section]) -> str:
    """Name the best network and the largest significant effects; warnings follow, each on a line.

    The network is the best of all studies that are comparable with the first one. The effects are
    those of the first study that has any.

    Args:
        sections: sections of the report; each study has a complete trial.
    """
    in_study = "in study {!r}, " if len(sections) > 1 else ""
    warnings = [
        f"warning: {in_study.format(section.results.name)}{warning}"
        for section in sections
        if section.nuisance
        for warning in section.nuisance.warnings
    ]
    result = _format_tasks(sections) if sections[0].across_tasks else _format_result(sections)
    return "\n".join([result, *warnings])


def _format_tasks(sections: Sequence[Section]) -> str:
    """Name the best network of each task of the first study, and what agrees across tasks."""
    comparison = sections[0].across_tasks
    assert comparison is not None
    bests = []
    for section in sections[: len(comparison.tasks)]:
        best, metric = section.summary.best, section.results.metric
        value = f"{metric.scale.format_value(best.mean)} {metric.unit}".rstrip()
        bests.append(
            f"{section.results.task}: {best.full_label} (trial {best.number}), {value}, "
            f"{metric.name}"
        )
    return f"best by task: {'; '.join(bests)}; {describe_agreement(comparison.contrasts)}"


def _format_result(sections: Sequence[Section]) -> str:
    key = _comparison_key(sections[0])
    best = min(
        (section for section in sections if _comparison_key(section) == key),
        key=lambda section: section.results.scale.to_loss(section.summary.best.mean),
    )
    leader, metric = best.leaderboard[0], best.results.metric
    mean = "adjusted mean" if leader.is_adjusted else "mean"
    runs = ""
    if leader.runs > 1 or leader.is_adjusted:
        runs = f", {mean} of {format_count(leader.runs, 'run')}"
    line = (
        f"best: {leader.full_label} (trial {leader.number}{_of_study(best, sections)}), "
        f"{leader.mean:{metric.scale.value_spec}}{metric.unit and f' {metric.unit}'}, "
        f"{metric.name}{runs}"
    )
    summary = best.summary
    if summary.has_verdicts and summary.judgement:
        line += f"; {summary.describe_smallest()} (margin {summary.judgement.margin})"
    for section in sections:
        if section.ranked_effects:
            study = _of_study(section, sections)
            main = [each.main for each in section.ranked_effects]
            found = f"{describe_insignificance(main)}{study}"
            if section.largest_effects:
                largest = [each.text for each in section.largest_effects[:N_EFFECTS]]
                found = f"largest significant effects{study}: {'; '.join(largest)}"
            return "; ".join([line, found, *(u.striptags() for u in _list_uncompared(section))])
    if summary.has_verdicts:
        return line
    if best.additive:
        return f"{line}; {format_additive_line(best.additive, best.results.scale)}"
    return f"{line}; {explain_missing_effects(best)}"


def _comparison_key(section: Section) -> tuple[object, ...]:
    """Return what comparable studies have in common."""
    results = section.results
    return (
        results.metric.column,
        results.metric.name,
        results.metric.unit,
        results.data,
    )


def _of_study(section: Section, sections: Sequence[Section]) -> str:
    return f" of {section.results.name!r}" if len(sections) > 1 else ""
