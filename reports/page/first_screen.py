"""What a reader sees first: the question, its answer, one figure, and the numbers that limit it."""

import math
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from reports.analysis.nuisance import build_judged_table, measure_noise
from reports.charts.chart import Chart
from reports.narrative import describe_pruning
from reports.page.page_tables import RECURRENT, list_floors
from reports.page.section import Section
from reports.results import Results
from reports.stats.noise import NoiseSource
from reports.stats.scale import format_count

_VARYING = 1.5
"""Ratio of two standard deviations from which they are given as a range."""


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
        _state_floor(section),
    ]
    return [each for each in limits if each]


def _count_runs(section: Section) -> Limit:
    counts = section.results.counts
    names = ("running", "waiting", "diverged", "failed", "paused")
    others = {name: getattr(counts, name) for name in names}
    others["waiting"] -= counts.paused
    parts = [f"{count:,} {name}" for name, count in others.items() if count]
    if section.pruning is None:
        parts.append(f"{counts.pruned:,} pruned" if counts.pruned else "none pruned")
    detail = ", ".join(parts)
    return Limit("Runs complete", f"{counts.complete:,} of {counts.planned:,}", detail=detail)


def _describe_pruning(section: Section) -> Limit | None:
    """Say what was pruned, and what it is estimated to have lost."""
    pruning, counts = section.pruning, section.results.counts
    if pruning is None:
        return None
    is_finished = counts.finished == counts.planned
    if is_finished and not counts.pruned:
        return Limit("Pruned", "none", detail="pruning was on")
    steps = f"{100 * pruning.step_share:.0f}% of all steps were trained"
    return Limit(
        "Pruned" if is_finished else "Pruned so far",
        f"{counts.pruned:,} of {counts.planned:,}",
        detail=f"{steps}; {describe_pruning(section.findings)}",
    )


def _measure_intervals(section: Section) -> Limit | None:
    """Return the typical half-width of an effect's interval."""
    effects = section.main_effects.effects
    widths = [each.high - each.mean for each in effects if not math.isnan(each.high)]
    if not widths:
        return None
    spec = section.results.scale.spec
    least, typical, most = (f"{f(widths):{spec}}" for f in (min, median, max))
    detail = f"median; from {least} to {most}" if least != most else ""
    unit = section.results.measure.unit
    return Limit("95% interval of an effect", f"± {typical}", unit, detail)


def _measure_noise(section: Section) -> Limit:
    """Return the standard deviation between runs of one architecture, and how it is known."""
    name, results = "Noise between runs", section.results
    if results.has_replicates:
        entries = section.findings.summary.entries
        deviations = [each.std for each in entries if not math.isnan(each.std)]
        if not deviations:
            return Limit(name, "not known", detail=f"no {results.noun} has two complete runs")
        value = math.sqrt(fmean(each**2 for each in deviations))
        detail = f"standard deviation over {sum(each.runs for each in entries):,} runs"
        return Limit(name, results.metric.scale.format_value(value), results.metric.unit, detail)
    if section.findings.audited is not None:
        detail = "intervals leave out what another run would change"
        return Limit(name, "not measured", detail=detail)
    noise, whose = build_judged_table(results).noise, ""
    effects = section.main_effects.effects
    sources = {effect.source for effect in effects}
    of_effects = {NoiseSource.PAIRS, NoiseSource.ADDITIVE}
    is_unused = noise is None or (effects and sources <= of_effects)
    if is_unused and results.nuisance:  # it corrects the best of several runs
        noise, whose = measure_noise(results), " of all trials"
    if noise is None or (is_unused and not whose):
        used = max(sources, default=NoiseSource.PAIRS)
        return Limit(name, "not known", detail=f"intervals use {used} instead")
    low, high = (float(f(noise.deviations.deviations)) for f in (np.nanmin, np.nanmax))
    spec = results.scale.spec
    text = f"{high:{spec}}" if high < _VARYING * low else f"{low:{spec}} to {high:{spec}}"
    detail = f"standard deviation, from {noise.source}{whose}"
    return Limit(name, text, results.measure.unit, detail)


def _count_replicates(section: Section) -> Limit:
    """Return how often each architecture was run."""
    results = section.results
    if results.has_replicates:
        counts = [each.runs for each in section.findings.summary.entries]
        least, most = min(counts), max(counts)
        count = format_count(most, "run") if least == most else f"{least} to {most} runs"
        return Limit("Replicates", count, detail=f"of each {results.noun}")
    others = results.replicates
    if others is not None and len(others):
        return Limit("Replicates", f"{len(others):,}", detail="further runs, from other studies")
    return Limit("Replicates", "none", detail="a ranking of single runs is partly luck")


def _describe_training(section: Section) -> Limit | None:
    """Return how long each network was trained, and on what."""
    corpus, config = section.results.corpus, section.results.config
    if corpus is not None:
        on = f"on {corpus.split[0]:,} bytes of {section.results.data_name}"
    elif task := config.task_record:
        on = f"on {task.name}, sequences of {format_count(task.steps, 'step')}"
    else:
        return None
    return Limit("Training", f"{config.training.steps:,}", "steps", on)


def _name_best(section: Section) -> Limit | None:
    """Name the best architecture, unless the answer is about it."""
    best, metric = section.findings.summary.best, section.results.metric
    if not section.findings.ranked or section.findings.summary.has_verdicts:
        return None
    name = metric.best_name
    return Limit(
        name[:1].upper() + name[1:],
        metric.scale.format_value(best.mean),
        metric.unit,
        best.full_label,
    )


def _state_floor(section: Section) -> Limit | None:
    """Return the least loss of a task without memory."""
    best, measure = section.findings.summary.best, section.results.measure
    floors = list_floors(section.results.floors, best)[1:]
    without_memory = (row for row in floors if row.name != RECURRENT)
    least = min(without_memory, key=lambda row: row.loss, default=None)
    if least is None:
        return None
    loss = section.results.scale.format_value(least.loss)
    detail = f"{measure.name_loss('validation')} of the {least.name}"
    if least.loss <= best.validation_loss:
        detail += "; no network is better: none has learned to use its memory"
    return Limit("Without memory", loss, measure.held_out_unit, detail)


def choose_title(results: Results) -> str:
    """Choose the title of a study: its question, or its name if it has none."""
    config = results.config
    if config.results and not config.question:
        return f"Which parameters matter for {results.metric.name}?"
    return config.question or results.title


def choose_chart(section: Section) -> tuple[Chart | None, str]:
    """Choose the chart that answers the question, and say what to see in it.

    Returns:
        The chart, None if nothing can be drawn, and its caption.
    """
    results = section.results
    unit, name = results.judged_noun, results.scale.name
    better, worse = ("rises", "falls") if results.scale.higher_is_better else ("falls", "rises")
    has_effects = section.main_effects.chart and not section.findings.summary.has_verdicts
    if section.replicates_chart and not has_effects:
        caption = (
            f"Every run of each {results.noun}, and the mean with its 95% interval. Verdicts are "
            "of runs in pairs: two may differ significantly although their intervals overlap."
        )
        return section.replicates_chart, caption
    if section.main_effects.chart:
        drawn = "95% interval"
        if section.findings.audited:
            drawn = "95% interval of drawing other audited trials"
        effects = section.main_effects.effects
        caption = f"Mean change of the {name} over all pairs of {unit}s that differ in this alone"
        if any(effect.source is NoiseSource.ADDITIVE for effect in effects):
            caption = f"Change of the {name}, as far as effects add up"
        if all(effect.reason for effect in effects):
            caption += ". None can be tested."
        elif any(effect.is_significant for effect in effects):
            caption += (
                f", with its {drawn}. Triangles: the interval excludes zero, in blue if the {name} "
                f"{better} and in orange if it {worse}."
            )
        else:
            caption += f", with its {drawn}. None is significant."
        return section.main_effects.chart, caption
    if section.early_effects and section.pruning:
        step, steps = section.pruning.common_step, results.config.training.steps
        caption = (
            f"Not the answer: effects after {step:,} of {steps:,} steps, the last one that all "
            "trials have reached. What helps at first may not help at the end."
        )
        return section.early_effects.chart, caption
    if section.slopes:
        return section.slopes, section.slopes.caption
    return None, ""
