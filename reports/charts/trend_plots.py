"""Figures of an additive model: the trend of each number, and the effects of all levels."""

import numpy as np
import plotly.graph_objects as go

from reports.charts import alt_text
from reports.charts.chart import BEST_COLOR, NEUTRAL, PALETTE, TRIAL_COLOR, Chart
from reports.charts.effect_plots import plot_effects
from reports.formatting import escape_html
from reports.narrative import describe_trend
from reports.stats.additive_findings import list_level_effects
from reports.stats.additive_model import AdditiveModel, Trend
from reports.stats.scale import Scale, add_unit, format_param


def chart_trends(model: AdditiveModel, scale: Scale) -> list[Chart]:
    """Chart each trend, the significant ones first."""
    ordered = sorted(model.trends, key=lambda trend: (not trend.is_significant, trend.p))
    return [
        Chart(
            format_param(trend.parameter),
            plot_trend(trend, scale),
            alt_text.describe_curve(trend, scale),
            "Points: runs without the fitted effects of all other parameters. Line: fitted trend. "
            "Diamond: best place with its 95% interval.",
        )
        for trend in ordered
    ]


def chart_levels(model: AdditiveModel, scale: Scale) -> Chart | None:
    """Chart the differences between the levels of all parameters; None if there are none."""
    effects = list_level_effects(model, scale)
    if not effects:
        return None
    return Chart(
        "Effects in the additive model",
        plot_effects(effects, scale.unit),
        alt_text.describe_effects(effects),
        "Difference to the first value, with its 95% interval, other parameters being equal. "
        "Filled triangles: the interval excludes zero, without correction for their number.",
    )


def plot_trend(trend: Trend, scale: Scale) -> go.Figure:
    """Plot the runs, the fitted trend, and the best place with its interval."""
    name = escape_html(format_param(trend.parameter))
    figure = go.Figure()
    figure.add_scatter(
        x=trend.points,
        y=trend.partials,
        mode="markers",
        marker={"size": 6, "color": TRIAL_COLOR, "opacity": 0.6},
        hovertemplate=f"{name} %{{x}}: %{{y:{scale.value_spec}}}<extra></extra>",
    )
    figure.add_scatter(
        x=trend.places,
        y=trend.curve,
        mode="lines",
        line={"color": PALETTE[0] if trend.is_significant else NEUTRAL, "width": 2},
        hovertemplate=f"fitted %{{y:{scale.value_spec}}} at %{{x:.3g}}<extra></extra>",
    )
    optimum = trend.optimum
    if not optimum.reason:
        figure.add_scatter(
            x=[optimum.value],
            y=[float(np.interp(optimum.value, trend.places, trend.curve))],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [optimum.high - optimum.value],
                "arrayminus": [optimum.value - optimum.low],
                "thickness": 3,
                "width": 6,
                "color": BEST_COLOR,
            },
            mode="markers",
            marker={"symbol": "diamond", "size": 12, "color": BEST_COLOR},
            customdata=[escape_html(describe_trend(trend, scale))],
            hovertemplate="%{customdata}<extra></extra>",
        )
    return figure.update_layout(
        xaxis={"title": {"text": name}, "type": "log" if trend.is_log else "linear"},
        yaxis_title=escape_html(add_unit(scale.name, scale.unit)),
        showlegend=False,
        hovermode="closest",
    )
