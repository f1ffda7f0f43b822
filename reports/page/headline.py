"""Format the main result of a report as a line for a terminal, and warnings about it."""

from collections.abc import Sequence

from reports.formatting import format_count
from reports.page.answer import explain_missing_effects
from reports.page.section import Section
from reports.stats.conditional_effects import describe_insignificance

N_EFFECTS = 2
"""Largest number of main effects in the line."""


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
    return "\n".join([_format_result(sections), *warnings])


def _format_result(sections: Sequence[Section]) -> str:
    key = _comparison_key(sections[0])
    best = min(
        (section for section in sections if _comparison_key(section) == key),
        key=lambda section: section.results.scale.to_loss(section.summary.best.mean),
    )
    leader, metric = best.leaderboard[0], best.results.metric
    mean = "adjusted mean" if leader.is_adjusted else "mean"
    runs = (
        f", {mean} of {format_count(leader.runs, 'run')}"
        if leader.runs > 1 or leader.is_adjusted
        else ""
    )
    line = (
        f"best: {leader.full_label} (trial {leader.number}{_of_study(best, sections)}), "
        f"{leader.mean:.{metric.scale.value_digits}f}{metric.unit and f' {metric.unit}'}, "
        f"{metric.name}{runs}"
    )
    summary = best.summary
    if summary.has_verdicts and summary.judgement:
        line += f"; {summary.describe_smallest()} (margin {summary.judgement.margin})"
    for section in sections:
        if section.ranked_effects:
            study = _of_study(section, sections)
            if not section.largest_effects:
                main = [each.main for each in section.ranked_effects]
                return f"{line}; {describe_insignificance(main)}{study}"
            largest = "; ".join(each.text for each in section.largest_effects[:N_EFFECTS])
            return f"{line}; largest significant effects{study}: {largest}"
    return line if summary.has_verdicts else f"{line}; {explain_missing_effects(best)}"


def _comparison_key(section: Section) -> tuple[object, ...]:
    """Return what comparable studies have in common."""
    results = section.results
    return (
        results.metric.column,
        results.metric.name,
        results.metric.unit,
        results.name if results.is_imported else (results.text, results.trained.tokenizer),
    )


def _of_study(section: Section, sections: Sequence[Section]) -> str:
    return f" of {section.results.name!r}" if len(sections) > 1 else ""
