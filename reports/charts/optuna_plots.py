"""Parameter importances, and Optuna's figures of a study as :mod:`optuna.visualization` draws them.

Only what a reader of the page needs is changed: names, heights, and in parallel coordinates the
colors that would be invisible on a dark page.
"""

from ast import literal_eval
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import BaseImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.search_space import intersection_search_space
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from reports.charts.chart import FULL_WIDTH, Chart, sequential_colors
from reports.formatting import escape_html, value_axis_title
from reports.results import Results
from reports.stats import Floats
from reports.stats.design import find_full_factorial_blocks
from reports.stats.fanova import compute_variance_shares
from reports.stats.scale import format_count, format_param, format_value, order_values
from reports.study_reader import describe_selection, select_history, select_ranked
from reports.trial_table import find_traits, is_continuous, list_params
from rnn.config import ParamValue
from studies.space import CELL

FANOVA_TREES = 32
"""Trees of fANOVA's forest. Optuna's 64 take twice the time, and vary as much between seeds."""

MAX_CATEGORIES = 6
"""Values of a number up to which fANOVA takes them for categories; places of more are better."""

MAX_LINES = 200
"""Trials that parallel coordinates and ranks draw: each is a trace, or nine marks with texts."""

FEW_LINES = 60
"""Lines up to which those of parallel coordinates are thick."""

SPREAD = 0.03
"""Largest distance of a line from its value, as a share of an axis of parallel coordinates."""

SMALL_SAMPLE = 100
"""Trials below which the best tenth is too small for a reliable PED-ANOVA importance."""

_WIDE = 100
"""Ratio of the ends of a range from which its axis is logarithmic."""


class _DrawnStudy(optuna.Study):
    """Study of given trials, which are not in its storage and are never copied.

    An in-memory storage would take a second for a few thousand trials, and Optuna's figures would
    copy them for each bar.
    """

    drawn: Sequence[FrozenTrial] = ()

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials without copying them."""
        return [trial for trial in self.drawn if states is None or trial.state in states]


def to_optuna_study(
    results: Results,
    numbers: Sequence[int],
    parameters: Sequence[str],
    ordinal_above: int | None = None,
) -> optuna.Study:
    """Convert some trials to an in-memory study for Optuna's figures.

    The study has no curves, which these figures do not show.

    Args:
        results: results of the study.
        numbers: numbers of complete trials, in the order in which they are drawn.
        parameters: parameters to keep, under readable names; a trial may lack some.
        ordinal_above: number of values above which a number is replaced by its place among them.
    """
    distributions: dict[str, BaseDistribution] = {}
    places: dict[str, dict[ParamValue, int]] = {}
    for name in parameters:
        values = order_values(results.table[name].dropna().unique().tolist())
        is_many = ordinal_above is not None and len(values) > ordinal_above
        if is_many and not isinstance(values[-1], str):
            places[name] = {value: place for place, value in enumerate(values)}
            distributions[name] = IntDistribution(0, len(values) - 1)
        elif is_continuous(results.table[name]):
            distributions[name] = _create_range(values)
        else:
            distributions[name] = CategoricalDistribution([_format_choice(v) for v in values])
    labels = {name: format_label(name) for name in parameters}
    rows = results.table.loc[list(numbers)]
    # By "records", some versions of pandas give no row for a table without columns.
    records = rows[list(parameters)].astype(object).to_dict("index")
    trials = []
    for number, value, record in zip(rows.index, rows["value"], records.values(), strict=True):
        params = {
            name: places[name][each] if name in places else _format_choice(each)
            for name, each in list_params(record, parameters).items()
        }
        trials.append(_create_trial(int(number), value, params, labels, distributions))
    return _create_study(results, trials)


def _create_study(results: Results, trials: Sequence[FrozenTrial]) -> optuna.Study:
    is_maximized = results.scale.higher_is_better
    direction = StudyDirection.MAXIMIZE if is_maximized else StudyDirection.MINIMIZE
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the study is no news for a user
    try:
        created = optuna.create_study(study_name=escape_html(results.label), direction=direction)
    finally:
        optuna.logging.set_verbosity(verbosity)
    study = _DrawnStudy(created.study_name, created._storage)
    study.drawn = trials
    return study


def _create_trial(
    number: int,
    value: float | None,
    params: dict[str, Any],
    labels: dict[str, str],
    distributions: dict[str, BaseDistribution],
) -> FrozenTrial:
    """Create a complete trial, or one that failed if it has no value."""
    return FrozenTrial(
        number=number,
        state=TrialState.FAIL if value is None else TrialState.COMPLETE,
        value=value,
        datetime_start=None,
        datetime_complete=None,
        params={labels[name]: each for name, each in params.items()},
        distributions={labels[name]: distributions[name] for name in params},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=number,  # by which PED-ANOVA distinguishes trials
    )


def _create_range(values: Sequence[Any]) -> BaseDistribution:
    """Return the range of a continuous parameter, on a logarithmic axis if it is wide."""
    low, high = values[0], values[-1]
    is_wide = low > 0 and high / low >= _WIDE
    if all(isinstance(value, int) for value in (low, high)):
        return IntDistribution(low, high, log=is_wide)
    return FloatDistribution(float(low), float(high), log=is_wide)


def _format_choice(value: ParamValue) -> ParamValue:
    """Return the readable form of a value; numbers stay numbers, which Optuna keeps in order."""
    return escape_html(format_value(value)) if isinstance(value, bool | str) else value


def format_label(name: str) -> str:
    """Return the name of a parameter in Optuna's figures."""
    return escape_html(format_param(name))


def split_parameters(results: Results, numbers: Collection[int]) -> tuple[list[str], list[str]]:
    """List the parameters with several values among some trials: those of all, and of a part."""
    rows = results.table.loc[list(numbers)]
    varying = [name for name in results.parameters if rows[name].nunique() > 1]
    partial = [name for name in varying if rows[name].isna().any()]
    return [name for name in varying if name not in partial], partial


# ---------------------------------------------------------------------- importances


class FanovaEvaluator(BaseImportanceEvaluator):
    """fANOVA with the result of Optuna's evaluator, in a fraction of its time."""

    def evaluate(
        self,
        study: optuna.Study,
        params: list[str] | None = None,
        *,
        target: Callable[[FrozenTrial], float] | None = None,
    ) -> dict[str, float]:
        """Return the share of the variance of all values that each parameter explains alone.

        ``params`` and ``target`` have no effect. A parameter of all trials must vary.
        """
        trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        space = intersection_search_space(trials)
        varying = {name: each for name, each in space.items() if not each.single()}
        columns: list[Floats] = []
        bounds, parameters = [], []
        for name, distribution in varying.items():
            values = np.array([distribution.to_internal_repr(each.params[name]) for each in trials])
            first = len(columns)
            if isinstance(distribution, CategoricalDistribution):
                places = range(len(distribution.choices))
                columns += [(values == place).astype(float) for place in places]
                bounds += [(0.0, 1.0)] * len(places)
            elif isinstance(distribution, FloatDistribution | IntDistribution):
                columns.append(values)
                bounds.append((distribution.low, distribution.high))
            parameters.append(range(first, len(columns)))
        values = np.array([trial.value for trial in trials])
        shares = compute_variance_shares(
            np.stack(columns, axis=1), values, np.array(bounds), parameters, FANOVA_TREES
        )
        return dict.fromkeys(space, 0.0) | dict(zip(varying, shares.tolist(), strict=True))


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
    results: Results, numbers: Collection[int], label: str, caption: str = ""
) -> list[Importances]:
    """Compute the importances over some trials; empty if these are too few or too similar.

    Args:
        results: results of the study.
        numbers: numbers of the trials.
        label: name of the trials.
        caption: how to read the charts.
    """
    numbers, (names, _) = sorted(numbers), split_parameters(results, numbers)
    if len(numbers) < 4 or not names or results.table.loc[numbers, "value"].nunique() < 2:
        return []
    if len(numbers) < SMALL_SAMPLE:
        tenth = format_count(max(1, len(numbers) // 10), "trial")
        caption += f" The best tenth has only {tenth}: PED-ANOVA is unreliable for so few."
    tenths = "Which parameters separate the best tenth of the trials from the rest?"
    variance = f"Which parameters explain the variance of the {results.scale.name}?"
    study = to_optuna_study(results, numbers, names)
    ordered = to_optuna_study(results, numbers, names, MAX_CATEGORIES)
    charts = []
    for title, each, evaluator, question in (
        ("PED-ANOVA", study, PedAnovaImportanceEvaluator(), tenths),
        ("fANOVA", ordered, FanovaEvaluator(), variance),
    ):
        figure = visualization.plot_param_importances(each, evaluator=evaluator)
        figure.update_layout(margin={"r": 45})  # room for the number of the longest bar
        charts.append(Chart(title, _fit(figure, 120 + 30 * len(names)), caption=question))
    count = format_count(len(numbers), "trial")
    return [Importances(f"{label} ({count})", caption.strip(), charts, names)]


def compute_conditional_importances(results: Results) -> list[Importances]:
    """Compute the importances among the trials of each cell that has parameters of its own.

    The same for each optimizer. Over all trials, these parameters have no importance.
    """
    complete, found = results.complete, []
    for owner in (CELL, "optimizer"):
        if owner not in results.parameters:
            continue
        own = find_traits(split_parameters(results, complete.index)[1]).owned[owner]
        for value, rows in complete.groupby(owner):
            if any(rows[name].nunique() > 1 for name in own):
                label = f"where {format_param(owner)} is {format_value(value)}"
                caption = "These trials have parameters that others lack."
                found += compute_importances(results, rows.index, label, caption)
    return found


def compute_block_importances(results: Results) -> list[Importances]:
    """Compute the importances within each full-factorial block of an incomplete design."""
    names, _ = split_parameters(results, results.table.index)
    blocks = find_full_factorial_blocks(results.table, names)
    complete = results.complete.index
    return [
        importances
        for name, block in blocks.items()
        for importances in compute_importances(
            results, block.index.intersection(complete), f"where {name}"
        )
    ]


# ---------------------------------------------------------------------- Optuna's other figures


def chart_parameters(
    results: Results, numbers: Sequence[int], importances: Sequence[Importances]
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
    names, partial = split_parameters(results, numbers)
    drawn = select_ranked(numbers)
    axis, scale = escape_html(value_axis_title(results.config)), results.scale
    selection = describe_selection(len(drawn), len(numbers))
    shown = [name for name in results.parameters if name in (*names, *partial)]
    listed = ", ".join(map(format_param, partial))
    only = f"Only some trials have these parameters, which show those trials: {listed}."
    slices = visualization.plot_slice(
        to_optuna_study(results, sorted(drawn), shown), target_name=axis
    )
    slices.update_xaxes(title={"font": {"size": 11}}, nticks=4)  # else labels overlap
    _remove_quotes(slices)
    # Of Optuna's blues some are invisible on a white page, others on a dark one.
    slices.update_traces(marker={"colorscale": sequential_colors(10)})
    charts = [
        Chart(
            "Slice: value of every trial over each parameter",
            _fit(slices, 420).update_layout(margin={"r": 110}),  # room for its color bar
            caption=(only if partial else "") + selection,
            width=120 * len(shown),
            max_width=FULL_WIDTH,
        )
    ]
    top = importances[0].top_params[:3]
    if len(top) < 2:
        return charts
    left_out = f" Parameters that only some trials have are left out: {listed}." if partial else ""
    labels, lines = list(map(format_label, top)), select_ranked(numbers, MAX_LINES)
    selection = describe_selection(len(lines), len(numbers))
    study = to_optuna_study(results, sorted(lines), names)
    charts.append(
        Chart(
            "Parallel coordinates: a trial is a line",
            plot_parallel_coordinates(study, escape_html(scale.name)),
            caption=f"The best trials are orange, and on top.{left_out}{selection}",
            width=95 * (1 + len(names)),
            max_width=FULL_WIDTH,
        )
    )
    if any(is_continuous(results.table[name]) for name in top):  # else only the best are visible
        # The last trials are drawn over the others.
        ranked = to_optuna_study(results, lines[::-1], names)
        figure = visualization.plot_rank(ranked, params=labels, target_name=axis)
        figure.update_xaxes(categoryorder="category ascending")
        figure.update_yaxes(categoryorder="category ascending")
        charts.append(
            Chart(
                f"Rank over the most important parameters ({', '.join(map(format_param, top))})",
                _fit(figure, 640),
                caption=f"Where trials coincide, the best is on top.{left_out}{selection}",
                width=640,
            )
        )
    everything = to_optuna_study(results, sorted(numbers), names)
    figure = visualization.plot_contour(everything, params=labels[:2], target_name=axis)
    pair = ", ".join(map(format_param, top[:2]))
    caption = f"{scale.best_name.capitalize()} {scale.name} of the trials with the same two "
    charts.append(
        Chart(
            f"Contour over the two most important parameters ({pair})",
            _fit(figure, 460),
            caption=f"{caption}parameters.{left_out}",
        )
    )
    return charts


def _remove_quotes(figure: go.Figure) -> None:
    """Remove the quotes that Optuna writes around texts on the axes of slices."""

    def strip(values: Sequence[Any]) -> list[Any]:
        return [str(literal_eval(each)) if isinstance(each, str) else each for each in values]

    figure.for_each_trace(lambda trace: trace.update(x=strip(trace.x)))
    for axis in figure.select_xaxes(lambda axis: axis.categoryarray):
        axis.update(categoryarray=strip(axis.categoryarray))


def plot_parallel_coordinates(study: optuna.Study, name: str) -> go.Figure:
    """Plot each trial as a line through its parameters' values and its value, of this name."""
    figure = visualization.plot_parallel_coordinate(study, target_name=name)
    *lines, color_bar = figure.data
    # Optuna's dark blue lines, white background and gray text suit a white page only.
    scale = sequential_colors(10)
    scale = scale[::-1] if study.direction == StudyDirection.MAXIMIZE else scale
    lines.sort(key=lambda line: line.y[0], reverse=study.direction == StudyDirection.MINIMIZE)
    places = _spread(np.array([line.y for line in lines], dtype=float))
    width, opacity = (1.2, 0.5) if len(lines) > FEW_LINES else (2, 0.9)
    for line, ys in zip(lines, places, strict=True):
        color = scale[min(9, int(10 * line.y[0]))]
        line.update(y=ys.tolist(), line={"color": color, "width": width}, opacity=opacity)
    figure.data = (*lines, color_bar)  # the best on top
    color_bar.marker.update(colorscale=scale, reversescale=False)
    figure.update_annotations(font={"size": 11, "color": None})
    figure.update_layout(plot_bgcolor=None)
    return _fit(figure, 460)


def _spread(places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Move lines apart where several meet at a value of a parameter, else only the last is seen.

    Args:
        places: place of each line (rows) on each axis (columns), the first of which is the value's.
    """
    spread = places.copy()
    for axis in range(1, places.shape[1]):
        for value in np.unique(places[:, axis]):
            meeting = np.flatnonzero(places[:, axis] == value)
            if len(meeting) > 1:
                spread[meeting, axis] += np.linspace(SPREAD, -SPREAD, len(meeting))
    return spread


def chart_study(results: Results) -> list[Chart]:
    """Chart the distribution and the history of a study's values."""
    complete, axis = results.complete, escape_html(value_axis_title(results.config))
    scale = results.scale
    study = to_optuna_study(results, complete.index.tolist(), [])
    in_time = select_history(complete["value"].dropna().sort_index(), scale)
    order = (
        "Trials are in the order of the source."
        if results.config.results
        else "Trials are in random order: the best value so far falls by chance, not by learning."
    )
    if len(in_time) < len(complete):
        order += f" {len(in_time):,} of {len(complete):,} trials are drawn, all of the best so far."
    history = visualization.plot_optimization_history(
        _fill_gaps(results, in_time), target_name=axis
    )
    return [
        Chart(
            f"Empirical distribution of the {scale.name}",
            _fit(visualization.plot_edf(study, target_name=axis), 400),
        ),
        Chart("Optimization history", _fit(history, 400), caption=order),
    ]


def _fill_gaps(results: Results, numbers: Sequence[int]) -> optuna.Study:
    """Return a study of some trials in which others have failed: Optuna counts them all."""
    values = results.table.loc[list(numbers), "value"].to_dict()
    trials = [_create_trial(n, values.get(n), {}, {}, {}) for n in range(max(numbers) + 1)]
    return _create_study(results, trials)


def _fit(figure: go.Figure, height: int) -> go.Figure:
    """Give a figure of Optuna the height of its place on a page, which has its title."""
    # Between powers of ten, and with prefixes of units, labels overlap.
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(dtick=1, exponentformat="power", selector={"type": "log"})
    return figure.update_layout(title=None, width=None, height=height)
