"""The numbers that limit what a study can say."""

import math
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean, median

import numpy as np

from reports.formatting import format_count, loss_unit
from reports.page.section import Section
from reports.stats.nuisance import build_judged_table
from reports.stats.run_noise import NoiseSource

_VARYING = 1.5
"""Ratio of two standard deviations from which they are given as a range."""


_TELLING_RECALL = 0.5
"""Lower bound of the recall below which the audit says little about it."""


@dataclass(frozen=True)
class Limit:
    """A number that limits what a study can say.

    Attributes:
        name: what it is.
        value: the number.
        unit: its unit.
        detail: where it is from, or what follows from it.
    """

    name: str
    value: str
    unit: str = ""
    detail: str = ""


def list_limits(section: Section) -> list[Limit]:
    """List the numbers that limit what a study can say, the most important first."""
    limits = [
        _count_runs(section),
        _describe_pruning(section),
        _measure_intervals(section),
        _measure_noise(section),
        _count_replicates(section),
        _describe_training(section),
        _name_best(section),
    ]
    return [each for each in limits if each]


def _count_runs(section: Section) -> Limit:
    counts = section.results.counts
    names = ("running", "waiting", "diverged", "failed")
    others = {name: getattr(counts, name) for name in names}
    others["waiting"] -= counts.paused
    others |= {"paused": counts.paused}
    parts = [f"{count:,} {name}" for name, count in others.items() if count]
    if section.pruning is None:
        parts.append(f"{counts.pruned:,} pruned" if counts.pruned else "none pruned")
    detail = ", ".join(parts)
    return Limit("Runs complete", f"{counts.complete:,} of {counts.planned:,}", detail=detail)


def _describe_pruning(section: Section) -> Limit | None:
    """Say what was pruned, and what it is estimated to have lost."""
    pruning, audit, counts = section.pruning, section.audit, section.results.counts
    if pruning is None:
        return None
    value = f"{counts.pruned:,} of {counts.planned:,}"
    steps = f"{100 * pruning.step_share:.0f}% of all steps were trained"
    if counts.finished < counts.planned:
        return Limit("Pruned so far", value, detail=f"{steps}; what is lost is measured at the end")
    if not counts.pruned:
        return Limit("Pruned", "none", detail="pruning was on")
    if not audit or not audit.is_valid or not audit.stopped:
        return Limit("Pruned", value, detail=f"{steps}; what was lost is not measured")
    if audit.recall_low < _TELLING_RECALL:
        return Limit(
            "Pruned",
            value,
            detail=f"{steps}; {audit.stopped} audited are too few to bound what was lost",
        )
    kept = f"at least {100 * audit.recall_low:.0f}% of the best {audit.top_count} are complete"
    return Limit("Pruned", value, detail=f"{steps}; {kept}, by {audit.stopped} audited")


def _measure_intervals(section: Section) -> Limit | None:
    """Return the typical half-width of an effect's interval."""
    effects = section.effects[0].effects
    widths = [each.high - each.mean for each in effects if not math.isnan(each.high)]
    if not widths:
        return None
    digits = section.results.scale.digits
    detail = f"median; from {min(widths):.{digits}f} to {max(widths):.{digits}f}"
    unit = loss_unit(section.results.config)
    return Limit("95% interval of an effect", f"± {median(widths):.{digits}f}", unit, detail)


def _measure_noise(section: Section) -> Limit:
    """Return the standard deviation between runs of one architecture, and how it is known."""
    name = "Noise between runs"
    results = section.results
    if results.has_replicates:
        deviations = [each.std for each in section.summary.entries if not math.isnan(each.std)]
        if not deviations:
            return Limit(name, "not known", detail=f"no {results.noun} has two complete runs")
        value = math.sqrt(fmean(each**2 for each in deviations))
        runs = sum(each.runs for each in section.summary.entries)
        unit = results.metric.unit
        digits = results.metric.scale.value_digits
        return Limit(name, f"{value:.{digits}f}", unit, f"standard deviation over {runs:,} runs")
    if section.audited_effects is not None:
        return Limit(
            name, "not measured", detail="intervals leave out what another run would change"
        )
    noise = build_judged_table(results).noise
    known = noise is not None and noise.degrees > 0
    if noise is None or not np.any(known):
        return Limit(
            name, "not known", detail="intervals use the differences between pairs instead"
        )
    low, high = (float(f(np.sqrt(noise.variances[known]))) for f in (np.min, np.max))
    digits = results.scale.digits
    text = f"{low:.{digits}f} to {high:.{digits}f}"
    if high < _VARYING * low:
        text = f"{high:.{digits}f}"
    sources = {source for source in noise.sources if source is not NoiseSource.PAIRS}
    source = sources.pop() if len(sources) == 1 else NoiseSource.MIXED
    unit = loss_unit(results.config)
    return Limit(name, text, unit, f"standard deviation, from {source}")


def _count_replicates(section: Section) -> Limit:
    """Return how often each architecture was run."""
    results = section.results
    if results.has_replicates:
        counts = [each.runs for each in section.summary.entries]
        least, most = min(counts), max(counts)
        count = format_count(most, "run") if least == most else f"{least} to {most} runs"
        return Limit("Replicates", count, detail=f"of each {results.noun}")
    others = results.replicates
    if others is not None and len(others):
        return Limit("Replicates", f"{len(others):,}", detail="further runs, from other studies")
    return Limit("Replicates", "none", detail="a ranking of single runs is partly luck")


def _describe_training(section: Section) -> Limit | None:
    """Return how long each network was trained, and on which text."""
    results = section.results
    if results.corpus is None:
        return None
    name = PurePath(results.corpus.name).name  # a corpus may be a path
    corpus = f"on {results.corpus.length:,} bytes of {name}"
    return Limit("Training", f"{results.trained.training.steps:,}", "steps", corpus)


def _name_best(section: Section) -> Limit | None:
    """Name the best architecture, unless the answer is about it."""
    best, metric = section.summary.best, section.results.metric
    if not section.ranked_effects or section.summary.has_verdicts:
        return None
    name = f"{metric.scale.best_name.capitalize()} {metric.name}"
    return Limit(name, metric.scale.format_value(best.mean), metric.unit, best.full_label)
