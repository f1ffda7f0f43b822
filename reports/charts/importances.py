"""Charts of parameter importances, and Optuna's other charts of a study."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from reports.charts.alt_text import (
    describe_best,
    describe_distribution,
    describe_history,
    describe_importances,
    describe_medians,
)
from reports.charts.chart import FULL_WIDTH, Chart
from reports.charts.optuna_plots import (
    create_importance_evaluators,
    format_label,
    has_enough_trials,
    list_partial_parameters,
    list_varying_parameters,
    plot_best,
    plot_contour,
    plot_distribution,
    plot_history,
    plot_importances,
    plot_parallel_coordinates,
    plot_ranks,
    plot_slices,
    to_optuna_study,
)
from reports.data.results import (
    Results,
    describe_selection,
    select_best_of_each,
    select_history,
    select_ranked,
)
from reports.data.trial_table import find_traits, is_continuous
from reports.formatting import escape_html, value_axis_title
from reports.stats.factorial_design import find_full_factorial_blocks
from reports.stats.scale import format_count, format_param, format_value
from studies.space import CELL

MAX_FANOVA_TRIALS = 600
"""Trials from which fANOVA is computed: its time grows with the square of their number."""

MAX_BLOCK_TRIALS = 400
"""The same within a block of an incomplete design, of which there may be many."""

MAX_CATEGORIES = 6
"""Values of a number up to which fANOVA takes them for categories: its time doubles with each."""

MAX_RANKED = 400
"""Trials that the chart of ranks draws, each nine times with its parameters."""

SMALL_SAMPLE = 100
"""Trials below which the best tenth is too small for a reliable PED-ANOVA importance."""

_QUESTIONS = {
    "PED-ANOVA": "Which parameters separate the best tenth of the trials from the rest?",
    "fANOVA": "Which parameters explain the variance of the {}?",
}


@dataclass(frozen=True)
class Importances:
    """Parameter importances by PED-ANOVA and fANOVA over some of the trials.

    Attributes:
        label: name of the subset of trials.
        caption: how to read the charts.
        charts: one chart per method, PED-ANOVA first.
        parameters: the parameters.
    """

    label: str
    caption: str
    charts: list[Chart]
    parameters: Sequence[str] = ()

    @property
    def top_params(self) -> list[str]:
        """The parameters, ordered by their fANOVA importance."""
        bars = self.charts[-1].figure.data[0]
        by_label = {format_label(name): name for name in self.parameters}
        ranked = sorted(zip(bars.x, bars.y, strict=True), reverse=True)
        return [by_label[label] for _, label in ranked]


def compute_importances(
    results: Results,
    numbers: list[int],
    label: str,
    caption: str = "",
    max_trials: int = MAX_FANOVA_TRIALS,
) -> list[Importances]:
    """Compute the importances over some trials; empty if these are too few or too similar.

    Args:
        results: results of the study.
        numbers: numbers of the trials.
        label: name of the trials.
        caption: how to read the charts.
        max_trials: number of trials from which fANOVA is computed at most.
    """
    if not has_enough_trials(results, numbers):
        return []
    names = list_varying_parameters(results, numbers)
    study = to_optuna_study(results, numbers, names)
    if len(numbers) < SMALL_SAMPLE:
        tenth = format_count(max(1, len(numbers) // 10), "trial")
        caption += f" The best tenth has only {tenth}: PED-ANOVA is unreliable for so few."
    charts = []
    for name, evaluator in create_importance_evaluators().items():
        meaning = _QUESTIONS[name].format(results.scale.name)
        if name == "fANOVA" and len(numbers) > max_trials:
            sample = sorted(random.Random(0).sample(sorted(numbers), max_trials))
            meaning += (
                f" Computed from a random sample of {len(sample):,} of the {len(numbers):,} trials."
            )
            study = to_optuna_study(results, sample, names, MAX_CATEGORIES)
        elif name == "fANOVA":
            study = to_optuna_study(results, numbers, names, MAX_CATEGORIES)
        figure = plot_importances(study, evaluator)
        charts.append(Chart(name, figure, f"{label}: {describe_importances(figure)}", meaning))
    return [
        Importances(
            f"{label} ({format_count(len(numbers), 'trial')})", caption.strip(), charts, names
        )
    ]


def compute_conditional_importances(results: Results) -> list[Importances]:
    """Compute the importances among the trials of each cell that has parameters of its own.

    The same for each optimizer. Over all trials, these parameters have no importance.
    """
    complete, found = results.complete, []
    for owner in (CELL, "optimizer"):
        if owner not in results.parameters:
            continue
        own = find_traits(list_partial_parameters(results, complete.index)).owned[owner]
        for value, rows in complete.groupby(owner):
            if any(rows[name].nunique() > 1 for name in own):
                label = f"where {format_param(owner)} is {format_value(value)}"
                caption = "These trials have parameters that others lack."
                found += compute_importances(results, list(rows.index), label, caption)
    return found


def compute_block_importances(results: Results) -> list[Importances]:
    """Compute the importances within each full-factorial block of an incomplete design."""
    names = list_varying_parameters(results, results.table.index)
    blocks = find_full_factorial_blocks(results.table, names)
    complete = results.complete.index
    return [
        importances
        for name, block in blocks.items()
        for importances in compute_importances(
            results,
            list(block.index.intersection(complete)),
            f"where {name}",
            max_trials=MAX_BLOCK_TRIALS,
        )
    ]


def chart_parameters(
    results: Results, numbers: list[int], importances: list[Importances]
) -> list[Chart]:
    """Chart the values of some trials over their parameters.

    Args:
        results: results of the study.
        numbers: numbers of the trials, the best first.
        importances: importances over the trials, of which the first select the most important
            parameters; without them there are no charts.
    """
    if not importances:
        return []
    names = list_varying_parameters(results, numbers)
    drawn = select_ranked(numbers)
    study = to_optuna_study(results, drawn, names)
    selection = describe_selection(len(drawn), len(numbers))
    rows = results.table.loc[numbers]
    ranked, scale = importances[0].top_params, results.scale
    axis = escape_html(value_axis_title(results.config))
    partial = list_partial_parameters(results, numbers)
    shown = [name for name in results.parameters if name in (*names, *partial)]
    listed = ", ".join(map(format_param, partial))
    charts = [
        Chart(
            "Slice: value of every trial over each parameter",
            plot_slices(to_optuna_study(results, drawn, shown) if partial else study, axis),
            describe_medians(rows, shown, scale),
            (
                f"Only some trials have these parameters, which show those trials: {listed}."
                if partial
                else ""
            )
            + selection,
            width=125 * len(shown),
            max_width=FULL_WIDTH,
        )
    ]
    left_out = f" Parameters that only some trials have are left out: {listed}." if partial else ""
    if len(ranked) > 1:
        charts.append(
            Chart(
                "Parallel coordinates: every trial as a line",
                plot_parallel_coordinates(study, escape_html(scale.name)),
                describe_medians(rows, names, scale),
                f"The best trials are orange, and on top.{left_out}{selection}",
                width=95 * (1 + len(names)),
                max_width=FULL_WIDTH,
            )
        )
        charts += _chart_best(results, rows, ranked, names, left_out)
    return charts


def _chart_best(
    results: Results, rows: pd.DataFrame, ranked: list[str], names: list[str], left_out: str
) -> list[Chart]:
    """Chart the best values over the most important parameters.

    Args:
        results: results of the study.
        rows: complete trials, the best first.
        ranked: parameters, the most important first.
        names: all parameters.
        left_out: which parameters are not among them, to end a caption.
    """
    scale, top, pair = results.scale, ranked[:3], ranked[:2]
    listed = ", ".join(map(format_param, pair))
    best = f"{scale.best_name.capitalize()} {scale.name} of the trials with the same two parameters"
    if not any(is_continuous(rows[name]) for name in pair):
        return [
            Chart(
                f"{scale.best_name.capitalize()} {scale.name} by {listed}",
                plot_best(rows, pair, scale),
                describe_best(rows, pair, scale),
                f"{best}: what they reach with all others at their best. The stronger the color, "
                f"the better.{left_out}",
            )
        ]
    axis = escape_html(value_axis_title(results.config))
    of_ranks = select_ranked(list(rows.index), MAX_RANKED)
    best_of_pairs = select_best_of_each(rows, pair, scale)
    top_labels, pair_labels = (list(map(format_label, each)) for each in (top, pair))
    return [
        Chart(
            f"Rank over the most important parameters ({', '.join(map(format_param, top))})",
            plot_ranks(to_optuna_study(results, of_ranks, names), top_labels, axis),
            describe_best(rows, top, scale),
            "The bluer, the better the trial's rank. Where trials coincide, the best is on "
            f"top.{left_out}{describe_selection(len(of_ranks), len(rows))}",
            width=640,
        ),
        Chart(
            f"Contour over the two most important parameters ({listed})",
            plot_contour(to_optuna_study(results, best_of_pairs, names), pair_labels, axis),
            describe_best(rows, pair, scale),
            f"{best}.{left_out}",
        ),
    ]


def chart_study(results: Results) -> list[Chart]:
    """Chart the distribution and the history of a study's values."""
    complete, axis = results.complete, escape_html(value_axis_title(results.config))
    scale = results.scale
    study = to_optuna_study(results, complete.index, [])
    in_time = select_history(complete["value"].dropna().sort_index(), scale=scale)
    drawn = f" {len(in_time):,} of {len(complete):,} trials are drawn, all of the best so far."
    return [
        Chart(
            f"Empirical distribution of the {scale.name}",
            plot_distribution(study, axis),
            describe_distribution(complete, scale),
        ),
        Chart(
            "Optimization history",
            plot_history(to_optuna_study(results, in_time, []), axis),
            describe_history(complete, scale),
            (
                "Trials are in the order of the source."
                if results.config.results
                else "Trials are in random order: the best value so far falls by chance, not by "
                "learning."
            )
            + (drawn if len(in_time) < len(complete) else ""),
        ),
    ]
