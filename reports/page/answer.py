"""Answer the question of a study in two sentences that claim no more than the intervals allow.

The first sentence names the largest effects with their direction and size, the second one the
smaller effects and those that are undecided. Whether an effect is significant is corrected for the
number of effects, see :class:`reports.stats.conditional_effects.RankedEffect`.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup

from reports.formatting import format_count, format_signed, objective_name
from reports.page.section import Section
from reports.stats.conditional_effects import RankedEffect, describe_insignificance
from reports.stats.paired_difference import MIN_PAIRS

MAX_NAMED = 4
"""Undecided effects that are named; of more, the number is given."""


def answer_question(section: Section) -> list[Markup]:
    """Return the two sentences, as HTML."""
    if section.summary.has_verdicts:
        return [_name_best(section), _state_verdicts(section)]
    ranked = section.ranked_effects
    if not ranked:
        return [_to_sentence("{}", explain_missing_effects(section)), _name_best(section)]
    if not section.largest_effects:
        return [
            _state_nothing(section, ranked),
            _to_sentence(_describe_undecided(ranked, len(ranked))),
        ]
    return [_state_largest(section), _state_others(section, ranked)]


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
    summary, unit = section.summary, section.results.metric.unit
    judgement = summary.judgement
    assert judgement is not None
    return _to_sentence(
        "of the others, {} significantly worse, {} as good (at most {} {} worse) and {} "
        "undecided{}; {}",
        format_count(judgement.count("worse"), "is", "are"),
        judgement.count("as good"),
        judgement.margin,
        unit,
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
    return audited.reason[0].lower() + audited.reason[1:].removesuffix(".")


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


def _state_largest(section: Section) -> Markup:
    """State the largest significant effects, by their direction."""
    by_verb: dict[str, list[Markup]] = {}
    for effect in section.largest_effects:
        by_verb.setdefault(_find_verb(effect), []).append(_emphasize(effect))
    phrases = [
        Markup("{} {}with {}").format(verb, "most " if i == 0 else "", _join(effects))
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
    return _to_sentence("{}", Markup("; ").join(parts) or "no other change was tried")


def _describe_undecided(effects: Sequence[RankedEffect], tried: int) -> Markup:
    """Name effects that are not significant, and the range of their intervals.

    Args:
        effects: the effects.
        tried: number of all effects, for which the tests are corrected.
    """
    names = [_name(each) for each in effects]
    if len(effects) > MAX_NAMED:
        names = [Markup("{} changes").format(len(effects))]
        if len(effects) == tried:
            names = [Markup("all {} changes").format(tried)]
        # A reader sees these intervals exclude zero.
        apart = [each for each in effects if each.main.is_significant][:MAX_NAMED]
        if apart:
            names = [Markup("{}, {} among them,").format(names[0], _join(list(map(_name, apart))))]
    verb = "is" if len(effects) == 1 else "are"
    text = Markup("{} {} undecided").format(_join(names), verb)
    if not any(each.main.is_decidable for each in effects):
        each_has = "it has" if len(effects) == 1 else "each has"
        text += Markup(": {} fewer than {} pairs, too few to decide").format(each_has, MIN_PAIRS)
    elif tried > 1:
        number = "their number" if len(effects) == tried else f"{tried} changes"
        text += Markup(" after correction for {}").format(number)
    bounds = [bound for each in effects for bound in (each.main.low, each.main.high)]
    if any(map(math.isnan, bounds)):
        return text
    digits = effects[0].main.scale.digits
    low, high = (format_signed(end, digits) for end in (min(bounds), max(bounds)))
    intervals = "the 95% interval reaches" if len(effects) == 1 else "the 95% intervals reach"
    return Markup("{} ({} from {} to {})").format(text, intervals, low, high)


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
    refinement = None if results.is_imported else results.trained.refinement
    if refinement is not None and refinement.trial is None:
        parts.append(f"among the best of {refinement.source}")
    if section.nuisance:
        parts.append(f"at each architecture’s best {section.nuisance.names}")
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
