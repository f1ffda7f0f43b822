"""What an additive model found, in sentences and as effects.

All texts are plain: the caller escapes them for HTML or Markdown.
"""

import math

import numpy as np

from reports.stats.additive_model import AdditiveModel, LevelDifference, Trend
from reports.stats.contrast import Contrast
from reports.stats.effects import Effect
from reports.stats.noise import NoiseSource
from reports.stats.scale import Scale, format_count, format_param, format_signed

MAX_FINDINGS = 5
"""Significant terms that are listed, the largest first."""

_NO_PAIRS = (
    "There are no matched pairs: a sampler drew the values, or a parameter has too many, so no two "
    "runs differ in one parameter alone."
)
_FEW_PAIRS = "Matched pairs do not compare every parameter well."
_ASSUMPTION = (
    "What follows assumes that parameters act additively, that is, that the effect of each is the "
    "same whatever the others are."
)


def list_level_effects(model: AdditiveModel, scale: Scale) -> list[Effect]:
    """Return the differences between levels that can be estimated, for tables and figures."""
    return [
        Effect(
            contrast=Contrast(each.parameter, each.before, each.after),
            pairs=0,
            mean=each.estimate.mean,
            error=each.estimate.error,
            degrees=each.estimate.degrees,
            source=NoiseSource.ADDITIVE,
            improved_count=0,
            scale=scale,
            only_before=0,
            only_after=0,
            neither=0,
        )
        for each in model.levels
        if not each.estimate.reason
    ]


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
    found, more = _list_findings(model, scale), ""
    if len(found) > MAX_FINDINGS:
        more = f"; and {format_count(len(found) - MAX_FINDINGS, 'smaller one')}"
    if found:
        listed = "; ".join(found[:MAX_FINDINGS])
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


def format_additive_line(model: AdditiveModel, scale: Scale) -> str:
    """Describe a model in one clause, for the line at the end of a report."""
    if model.reason:
        return f"no matched pairs, and no additive model: {model.reason}"
    listed = "; ".join(_list_findings(model, scale)[:3])
    return (
        "no matched pairs; if parameters act additively: "
        f"{listed or 'no parameter has a significant effect'}"
    )


def _list_findings(model: AdditiveModel, scale: Scale) -> list[str]:
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
