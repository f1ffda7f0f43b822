"""The top of a page: question, answer, one figure, and the facts that limit the answer."""

import math
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from reports.analysis.judged_effects import measure_noise
from reports.analysis.solved import describe_threshold
from reports.charts.chart import Chart
from reports.charts.comparison_plots import chart_effects, chart_replicates, chart_variants
from reports.findings import StudyFindings
from reports.page.setup import RECURRENT, list_floors
from reports.results import Results
from reports.sentences import describe_pruning
from studies.messages import format_count, format_param, join
from studies.records import of_task

_VARYING = 1.5
"""Ratio of two standard deviations from which they are given as a range."""


@dataclass(frozen=True)
class Fact:
    """A number that limits what a study can say.

    Attributes:
        name: what it is.
        value: the number.
        detail: where it is from, or what follows from it.
    """

    name: str
    value: str
    unit: str = ""
    detail: str = ""


def list_facts(findings: StudyFindings) -> list[Fact]:
    """List the numbers that limit what a study can say, the most important first."""
    facts = [
        _count_runs(findings),
        _count_untrained(findings),
        _describe_pruning(findings),
        _measure_noise(findings),
        _count_replicates(findings),
        _count_solved(findings),
        _count_reached(findings),
        _describe_training(findings),
        _state_floor(findings),
    ]
    return [fact for fact in facts if fact is not None]


def _count_runs(findings: StudyFindings) -> Fact:
    counts = findings.results.counts
    others = {
        "running": counts.running,
        "waiting": counts.waiting - counts.paused,
        "paused": counts.paused,
        "told": counts.told,
        "diverged": counts.diverged,
        "failed": counts.failed,
    }
    parts = [f"{count:,} {name}" for name, count in others.items() if count]
    detail = ", ".join(parts)
    return Fact("Runs complete", f"{counts.complete:,} of {counts.planned:,}", detail=detail)


def _count_untrained(findings: StudyFindings) -> Fact | None:
    """Count the networks of which a gradient never reaches some parts, and name these."""
    results = findings.results
    untrained: dict[str, None] = {}
    labels = set()
    for label, facts in zip(results.table["architecture"], results.facts, strict=True):
        for part, is_trained in (facts.cell_parts if facts else {}).items():
            if not is_trained:
                untrained[part] = None
                labels.add(label)
    if not labels:
        return None
    parts = join([format_param(part) for part in untrained])
    value = f"{len(labels):,} of {findings.networks:,}"
    return Fact("Untrained parts", value, "networks", f"no gradient reaches their {parts}")


def _describe_pruning(findings: StudyFindings) -> Fact | None:
    pruning = findings.pruning
    counts = findings.results.counts
    if pruning is None and not counts.pruned:
        return None
    value = f"{counts.pruned:,} of {counts.planned:,}"
    if pruning is None:
        return Fact("Pruned", value, detail="the complete runs are a selection")
    steps = f"{100 * pruning.step_share:.0f}% of all steps were trained"
    return Fact("Pruned", value, detail=f"{steps}; {describe_pruning(findings)}")


def _measure_noise(findings: StudyFindings) -> Fact | None:
    """Return the standard deviation between runs of one architecture, and how it is known.

    Runs that are solved or not have no common one.
    """
    name = "Noise between runs"
    results = findings.results
    if findings.solved is not None:
        return None
    if results.has_replicates:
        entries = findings.summary.entries
        deviations = [entry.std for entry in entries if not math.isnan(entry.std)]
        if not deviations:
            return Fact(name, "not known", detail=f"no {results.noun} has two complete runs")
        value = math.sqrt(fmean(deviation**2 for deviation in deviations))
        detail = f"standard deviation over {sum(entry.runs for entry in entries):,} runs"
        return Fact(name, results.metric.format_number(value), results.metric.unit, detail)
    noise = None if findings.audited else measure_noise(results)
    if noise is None:
        return Fact(name, "not measured", detail=_describe_intervals(findings))
    low = float(np.nanmin(noise.deviations))
    high = float(np.nanmax(noise.deviations))
    spec = results.measure.difference_spec
    text = f"{high:{spec}}" if high < _VARYING * low else f"{low:{spec}} to {high:{spec}}"
    detail = "standard deviation, from high-order interactions"
    return Fact(name, text, results.measure.unit, detail)


def _describe_intervals(findings: StudyFindings) -> str:
    """Say what the intervals of the effects rest on without the noise between runs."""
    if not findings.effects:
        return ""
    if findings.audited:
        return "intervals leave out what another run would change"
    source = "residuals" if findings.is_additive else "differences between pairs"
    return f"intervals use the {source} instead"


def _count_replicates(findings: StudyFindings) -> Fact:
    results = findings.results
    if results.has_replicates:
        counts = [entry.runs for entry in findings.summary.entries]
        count = format_count(max(counts), "run")
        if min(counts) < max(counts):
            count = f"{min(counts)} to {count}"
        return Fact("Replicates", count, detail=f"of each {results.noun}")
    return Fact("Replicates", "none", detail="a ranking of single runs is partly luck")


def _count_solved(findings: StudyFindings) -> Fact | None:
    task = findings.results.config.task_record
    if findings.solved is None or task is None:
        return None
    solved, runs = findings.solved
    return Fact("Solved", f"{solved:,} of {runs:,}", "runs", task.solved_text)


def _count_reached(findings: StudyFindings) -> Fact | None:
    threshold = of_task(findings.results.config.report_threshold)
    if findings.reached is None or threshold is None:
        return None
    solved, runs = findings.reached
    name = "Solved" if findings.solved is None else "Better than the threshold"
    detail = describe_threshold(threshold, findings.results.measure)
    return Fact(name, f"{solved:,} of {runs:,}", detail=detail)


def _describe_training(findings: StudyFindings) -> Fact | None:
    results = findings.results
    config = results.config
    task = config.task_record
    if task is None:
        return None
    on = f"on {task.name}"
    if task.steps is not None:
        on += f", sequences of {format_count(task.steps, 'step')}"
    if task.text is not None:
        on = f"on {task.text.split[0]:,} bytes of {task.data_name}"
    return Fact("Training", f"{config.length_of().steps:,}", "steps", on)


def _state_floor(findings: StudyFindings) -> Fact | None:
    best = findings.summary.best
    measure = findings.results.measure
    floors = list_floors(findings.results.floors, best)[1:]
    without_memory = [row for row in floors if row.name != RECURRENT]
    if not without_memory:
        return None
    least = min(without_memory, key=lambda row: row.loss)
    detail = f"{measure.name_loss('validation')} of the {least.name}"
    if least.loss <= best.validation_loss:
        detail += "; no network is better: none has learned to use its memory"
    return Fact("Without memory", measure.format_number(least.loss), measure.held_out_unit, detail)


def choose_title(results: Results) -> str:
    """Choose the title of a study: its question, or its name if it has none."""
    config = results.config
    if config.own_metric and not config.question:
        return f"Which parameters matter for {results.metric.name}?"
    return config.question or results.title


def choose_chart(findings: StudyFindings) -> Chart | None:
    """Choose the chart that answers the question; None if nothing can be drawn."""
    if findings.results.has_replicates and (findings.summary.has_verdicts or not findings.effects):
        return chart_replicates(findings)
    if findings.effects:
        return chart_effects(findings)
    if findings.source_comparison is not None:
        return chart_variants(findings.source_comparison, findings.results)
    return None
