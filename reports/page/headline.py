"""The main result of a report in one line, for a terminal."""

from collections.abc import Sequence

from reports.formatting import format_count, format_signed
from reports.page.sections import Section
from reports.stats.effects import Effect

EFFECTS = 2
"""Main effects in the line."""


def headline_of(sections: Sequence[Section]) -> str:
    """Name the best network and the largest main effects.

    Args:
        sections: of a report's studies, each with a complete trial. The best network is the best of
            those studies whose values can be compared with the first study's; the effects are those
            of the first study that has any.
    """
    best = min(
        (each for each in sections if _comparable(each) == _comparable(sections[0])),
        key=lambda each: each.winners[0].measured,
    )
    winner, measure = best.winners[0], best.results.metric
    runs = f", mean of {format_count(winner.runs, 'run')}" if winner.runs > 1 else ""
    line = (
        f"best: {winner.label} (trial {winner.number}{_of(best, sections)}), "
        f"{winner.measured:.4f} {measure.unit}, {measure.name}{runs}"
    )
    for each in sections:
        largest = sorted(each.parts[0].effects, key=lambda effect: -abs(effect.mean))[:EFFECTS]
        if largest:
            effects = ", ".join(map(_effect_text, largest))
            return f"{line}; largest effects{_of(each, sections)}: {effects}"
    return line


def _comparable(section: Section) -> tuple[object, ...]:
    """Return what must be equal in two studies for their values to be comparable."""
    results = section.results
    measure = results.metric
    return (
        measure.column,
        measure.name,
        measure.unit,
        results.corpus.sha256,
        results.config.tokenizer,
    )


def _of(section: Section, sections: Sequence[Section]) -> str:
    return f" of {section.results.name!r}" if len(sections) > 1 else ""


def _effect_text(effect: Effect) -> str:
    interval = (
        ""
        if effect.low != effect.low
        else f" [{format_signed(effect.low)}, {format_signed(effect.high)}]"
    )
    return f"{effect.contrast.label} {format_signed(effect.mean)} nats{interval}"
